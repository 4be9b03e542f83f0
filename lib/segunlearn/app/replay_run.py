"""The runs of a generator: its training, and the forgetting of a feature."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Final

import torch

from segunlearn.app.generator_store import Generators
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.resumable_run import ResumableRun
from segunlearn.app.train_ledger import library_versions, machine
from segunlearn.audit.membership import Scores, membership
from segunlearn.cases import Case, number_of
from segunlearn.errors import (
    CancelledError,
    ConflictError,
    InvalidInputError,
    SegUnlearnError,
)
from segunlearn.inference import choose_device
from segunlearn.networks import ModelConfig, save_weights
from segunlearn.records.ledger import LedgerCase, LedgerEntry
from segunlearn.records.runs import Progress
from segunlearn.records.store import utc_now
from segunlearn.records.versions import VersionInfo
from segunlearn.replay.feature import Direction, FeatureSettings, direction_of, forget_feature
from segunlearn.replay.generator import Generator, GeneratorConfig, load_generator
from segunlearn.replay.memory import images_of, reconstruction_errors
from segunlearn.replay.report import feature_report, training_report
from segunlearn.replay.tagging import Sample, latents_of
from segunlearn.replay.training import GeneratorSettings, train_generator
from segunlearn.training import ASSUMED
from segunlearn.training.data import Throttle
from segunlearn.transforms import preprocess
from segunlearn.unlearning import Study
from segunlearn.volumes import read_volume

logger = logging.getLogger(__name__)

#: Kinds of the runs; the first is also the trainer's name.
REPLAY: Final = "replay"
FORGET_FEATURE: Final = "forget_feature"


@dataclass
class GeneratorRun(ResumableRun):
    """A run that makes a generator: its record, and when to stop.

    Parameters
    ----------
    model
        Version of the segmentation network whose patches the generator makes.
    home, records
        Of the installation.
    requested_by
        Who asked for it.
    device
        ``auto``, ``cpu``, ``cuda:0``.
    on_progress, orphan, stopped
        As for ``TrainingRun``.
    """

    kind: ClassVar[str]

    base: VersionInfo
    model: str
    home: Home
    records: Records
    requested_by: str = ""
    device: str = "auto"
    on_progress: Callable[[Progress], None] | None = None
    orphan: Callable[[], bool] | None = None
    stopped: Callable[[], bool] | None = None
    run_id: str = ""
    cases: list[Case] = field(default_factory=list)
    gone: bool = False
    _started: str = field(default_factory=utc_now)
    _digests: dict[str, str] = field(default_factory=dict)
    _looked: float = 0.0
    _stop: bool = False

    @property
    def generators(self) -> Generators:
        """Where it is kept."""
        return Generators(self.home, self.model)

    @property
    def config(self) -> ModelConfig:
        """Of the segmentation network."""
        return ModelConfig.from_json(self.base.config)

    def execute(self, select: Callable[[], Sequence[Case]]) -> VersionInfo:
        """Record the run, make the generator, write the ledger row, publish.

        Parameters
        ----------
        select
            Gives the cases, none of which is forgotten; called after the run was recorded.

        Raises
        ------
        ConflictError
            A case was marked for forgetting meanwhile.
        CancelledError
            A person stopped it.
        SegUnlearnError
            Images or settings cannot be used.
        """
        with self._recorded():
            self.cases = list(select())
            info = self._make()
        logger.info("generator %s of %s replays from now on", info.version, self.model)
        return info

    def _make(self) -> VersionInfo:
        raise NotImplementedError

    def _publish(
        self,
        generator: Generator,
        lineage: Sequence[Case],
        report: str,
        details: Mapping[str, Any],
        parent: str | None = None,
    ) -> VersionInfo:
        """Write the row, then the generator: none is there that the ledger does not know."""
        self.tell(Progress("publish", 0, 1))
        try:
            self._refuse_marked(lineage)
        except ConflictError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        weights = self.folder / "generator.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = save_weights(generator, weights)
        self.records.ledger.append(self._entry("done", digest, parent, details))
        config = {**generator.config.to_json(), "made_for": self.base.sha256}
        info = self.generators.publish(
            weights, config, cases=lineage, pseudonyms=self.records.pseudonyms,
            run_id=self.run_id, details=details, report=report, parent_sha256=parent,
        )  # fmt: skip
        try:  # what was forgotten between the question and the generator found none to destroy
            self.records.forget_set.wait_for_marks()
            self._refuse_marked(lineage)
        except SegUnlearnError:  # something was, or nobody can say
            self.generators.destroy(info.path)
            raise
        self.tell(Progress("publish", 1, 1))
        return info

    def _refuse_marked(self, lineage: Sequence[Case]) -> None:
        if len(self.records.without_forgotten(lineage)) < len(lineage):
            raise ConflictError(
                "a study that shaped the generator was marked for forgetting while it was made, so "
                "it is not kept. Start again: that leaves the study out, or says what does."
            )

    def _entry(
        self,
        outcome: str,
        sha256: str | None = None,
        parent: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> LedgerEntry:
        return LedgerEntry(
            run_id=self.run_id,
            kind=self.kind,
            model=self.model,
            version_sha256=sha256,
            parent_sha256=parent,
            cases=[
                LedgerCase(
                    c.series, c.study, c.person, "train", self._digests.get(c.series, ""), ""
                )
                for c in self.cases
            ],
            parameters={**self._parameters(), **(details or {})},
            seed=int(self._parameters()["settings"]["seed"]),
            versions=library_versions(),
            machine=machine(),
            started=self._started,
            ended=utc_now(),
            outcome=outcome,
        )

    def studies(self, cases: Sequence[Case]) -> tuple[Study, ...]:
        """Read and preprocess images; labels are not needed, and where there are none are empty.

        The last progress counts images whose modality was assumed, see ``training.ASSUMED``.
        """
        found, throttle, assumed = [], Throttle(), Counter[str]()
        for number, case in enumerate(cases):
            if self.run_id and self.should_stop():
                raise CancelledError("the run was stopped while it read images.")
            volume = read_volume(case.image, modality=case.modality)
            self._digests[case.series] = volume.digest()
            ready = preprocess(volume, self.config)
            if ready.assumed is not None:
                assumed[ASSUMED[ready.assumed.modality]] += 1
            label = torch.zeros(ready.tensor.shape[1:], dtype=torch.uint8)
            found.append(Study(case.series, case.study, case.person, ready.tensor, label))
            last = number + 1 == len(cases)
            if throttle.due(last=last):
                figures = {name: float(n) for name, n in assumed.items()} if last else {}
                progress = Progress("read studies", number + 1, len(cases), figures)
                if self.run_id:
                    self.tell(progress)
                elif self.on_progress is not None:
                    self.on_progress(progress)
        return tuple(found)


@dataclass
class ReplayRun(GeneratorRun):
    """The training of a generator; see :class:`GeneratorRun`.

    Parameters
    ----------
    settings
        How.
    shape
        ``latent`` and ``channels`` of ``GeneratorConfig``, where they differ from its defaults.
    unseen
        Images of other people, on which the generator's memory is measured.
    """

    kind: ClassVar[str] = REPLAY

    settings: GeneratorSettings = field(default_factory=GeneratorSettings)
    shape: Mapping[str, Any] = field(default_factory=dict)
    unseen: Sequence[Case] = ()

    def _parameters(self) -> dict[str, Any]:
        return {"settings": self.settings.to_json(), "shape": dict(self.shape)}

    def _make(self) -> VersionInfo:
        config = GeneratorConfig.of(self.config, **self.shape)
        folder, studies = self._adopt(), self.studies(self.cases)
        generator = train_generator(
            studies, self.config, config, self.settings, run_dir=folder,
            device=choose_device(self.device), report=self.tell, cancel=self.should_stop,
        ).cpu()  # fmt: skip
        memory = self._memory(generator, studies)
        trained = images_of(generator, studies, self.config)
        report = training_report(generator, trained, memory, people=len(_people(self.cases)))
        return self._publish(generator, self.cases, report, {"memory": memory})

    def _memory(self, generator: Generator, studies: Sequence[Study]) -> dict[str, Any]:
        """Measure what the generator remembers: how well it can be told who it was trained on."""
        seen = _people(self.cases)
        others = [c for c in self.unseen if number_of(c.person) not in seen]
        if min(len(_people(others)), len(seen)) < 2:
            return {}
        found = membership(
            self._scores(generator, studies), self._scores(generator, self.studies(others))
        )
        return {
            "auc": found.area.value, "low": found.area.low, "high": found.area.high,
            "trained": len(seen), "unseen": len(_people(others)),
        }  # fmt: skip

    def _scores(self, generator: Generator, studies: Sequence[Study]) -> Scores:
        errors = reconstruction_errors(generator, studies, self.config)
        return Scores.of({k: -e for k, e in errors.items()}, {s.series: s.person for s in studies})


@dataclass
class FeatureRun(GeneratorRun):
    """A generator unlearns a visual feature; see :class:`GeneratorRun`.

    Parameters
    ----------
    settings
        How.
    tagged
        Series of images with the feature (True) and without.
    samples
        Generated images with the feature (True) and without.
    feature
        What people call it.
    """

    kind: ClassVar[str] = FORGET_FEATURE

    settings: FeatureSettings = field(default_factory=FeatureSettings)
    tagged: Mapping[str, bool] = field(default_factory=dict)
    samples: Mapping[Sample, bool] = field(default_factory=dict)
    feature: str = "feature"

    def _parameters(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "feature": self.feature, **self._counts()}

    def _counts(self) -> dict[str, int]:
        """Tagged images with the feature and without."""
        found = [*self.tagged.values(), *self.samples.values()]
        return {"with": sum(found), "without": len(found) - sum(found)}

    def _make(self) -> VersionInfo:
        self.records.drop_marked_checkpoints()
        parent = self.generators.usable(
            self.records.forget_set.live_targets(), self.records.pseudonyms
        )
        old = load(parent)
        old.config.check_fits(self.config)
        device = choose_device(self.device)
        studies = self.studies(self.cases)
        direction = self._direction(old, parent.sha256, studies)
        new = forget_feature(
            old.to(device), direction, self.settings, report=self.tell, cancel=self.should_stop
        ).cpu()
        report = feature_report(old.cpu(), new, direction, feature=self.feature)
        details = {
            "feature": self.feature, "threshold": direction.threshold,
            "length": direction.length, **self._counts(),
        }  # fmt: skip
        lineage = [*lineage_of(self.records, parent), *self.cases]
        try:
            return self._publish(new, lineage, report, details, parent.sha256)
        finally:  # the next run begins anew, and these weights know the whole lineage
            shutil.rmtree(self.folder, ignore_errors=True)

    def _direction(self, generator: Generator, sha256: str, studies: Sequence[Study]) -> Direction:
        """Find the feature among the latents of tagged images, real and generated."""
        latents: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        if studies:
            with torch.no_grad():
                means, _ = generator.encode(images_of(generator, studies, self.config))
            for study, mean in zip(studies, means, strict=True):
                latents[self.tagged[study.series]].append(mean)
        if self.samples:
            for latent, has in zip(
                latents_of(generator, sha256, self.samples), self.samples.values(), strict=True
            ):
                latents[has].append(latent)
        if not all(latents.values()):
            raise InvalidInputError(
                f"{len(latents[True])} image(s) are tagged as having the feature and "
                f"{len(latents[False])} as not having it: tag some of both."
            )
        return direction_of(torch.stack(latents[True]), torch.stack(latents[False]))


def load(info: VersionInfo) -> Generator:
    """Read a generator, its digest checked."""
    return load_generator(info.weights, config_of(info), info.sha256)


def config_of(info: VersionInfo) -> GeneratorConfig:
    """Read the configuration of a generator, without its weights."""
    return GeneratorConfig.from_json({k: v for k, v in info.config.items() if k != "made_for"})


def lineage_of(records: Records, info: VersionInfo) -> list[Case]:
    """Whose images shaped a generator, by the ledger; the files are not looked for."""
    cases = records.ledger.lineage_cases(info.sha256)
    unique = {c.series: c for c in cases}
    return [Case(c.series, c.study, c.person, info.weights) for c in unique.values()]


def _people(cases: Sequence[Case]) -> set[str]:
    return {number_of(c.person) for c in cases}
