"""What the demonstration does, each step by the product's own app layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segunlearn.app.audit_files import REPORT, Audits
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.training_run import TrainingRun
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_reach import versions_that_know
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.membership import membership
from segunlearn.audit.policy import Policy
from segunlearn.audit.scores import attack_scores, set_mean
from segunlearn.cases import Case
from segunlearn.cli.demo_people import LABEL, SIDE, SPACING, Crowd, write_people
from segunlearn.dicom.identifiers import KEY_BYTES
from segunlearn.errors import NotFoundError
from segunlearn.inference import Segmenter
from segunlearn.networks import ModelConfig
from segunlearn.records.runs import Progress
from segunlearn.records.versions import VersionInfo, VersionRegistry, file_sha256
from segunlearn.training import Augmentation, TrainSettings
from segunlearn.volumes import read_volume, write_volume

MODEL: Final = "demo"
ACTOR: Final = "demonstration"
CONFIG: Final = ModelConfig(
    labels=(LABEL,),
    spatial_dims=2,
    spacing=(SPACING, SPACING, SPACING),
    patch_size=(SIDE, SIDE, 1),
    features=(8, 8, 16, 16, 16, 8),
    normalisation="zscore",
)
#: Wider than the product's: a few dozen people on a tiny network are noisy.
WIDE: Final = Policy(
    unseen_quality=-0.06, forget_level=0.12, gap_excess=0.12, worst_person=0.25, membership=0.3,
    calibrated_membership=0.85, relearning=0.08, distillation=0.12,
)  # fmt: skip
_PLAIN: Final = Augmentation(spatial=0, noise=0, blur=0, brightness=0, contrast=0, gamma=0)

#: Called with what is done, and how far it is.
Bar = Callable[[str, int, int], None]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Parameters
    ----------
    forget, retain, unseen
        People.
    epochs
        Of the training: enough to know everybody by heart.
    hide, published
        Settings of the method for the level ``"hidden"``, and of the published one.
    attempts
        Methods that are tried for the level ``"unlearned"``, with their settings; after them the
        model is trained again.
    policy
        Bars of the audits.
    """

    forget: int = 6
    retain: int = 24
    unseen: int = 30
    epochs: int = 40
    hide: Mapping[str, Any] = field(default_factory=lambda: {"steps": 40, "learning_rate": 5e-3})
    published: Mapping[str, Any] = field(default_factory=lambda: {"epochs": 14})
    attempts: tuple[tuple[str, Mapping[str, Any]], ...] = (
        (
            "erode_and_repair_lora",
            {"epochs": 40, "learning_rate": 1e-2, "batch_size": 6, "inits": 1},
        ),
    )
    policy: Policy = WIDE


@dataclass(frozen=True)
class Line:
    """A row of the table: a model, and what attackers find in it.

    Parameters
    ----------
    name
        For people.
    forgotten, unseen
        Mean Dice over persons.
    membership
        Area under the curve by which forgotten people are told from unseen ones.
    others
        Dice of the forgotten people that an attacker does not have, before the attack.
    relearned
        Best Dice of them while the attacker fine-tunes on the rest.
    verdict
        What the audit said; empty where it was not asked.
    """

    name: str
    forgotten: float
    unseen: float
    membership: float
    others: float
    relearned: float
    verdict: str = ""


@dataclass(frozen=True)
class Outcome:
    """What an unlearning came to.

    Parameters
    ----------
    method, outcome, reached, version, audit_id, reasons
        Of the run and its audit.
    before, after, reference
        Rows of the original, the candidate, and the models that never saw the people.
    calibrated
        Membership with each study's difficulty taken out, of the candidate.
    """

    method: str
    outcome: str
    reached: str
    version: str
    audit_id: str
    reasons: tuple[str, ...]
    before: Line
    after: Line
    reference: Line
    calibrated: float


@dataclass(frozen=True)
class Segmented:
    """What a version draws for each of the forgotten people.

    Parameters
    ----------
    masks
        ``(SIDE, SIDE)`` each.
    overlaps
        Dice with the labels.
    """

    masks: tuple[Mask, ...]
    overlaps: tuple[float, ...]

    @property
    def dice(self) -> float:
        """Mean of the overlaps."""
        return float(np.mean(self.overlaps))


def typical(drawn: Sequence[Segmented]) -> int:
    """Choose the person whose overlaps are nearest to the mean in all versions, by position."""
    table = np.array([d.overlaps for d in drawn])
    return int(np.abs(table - table.mean(axis=1, keepdims=True)).sum(axis=0).argmin())


@dataclass
class Demonstration:
    """Synthetic people, a home, and what is done with them.

    Parameters
    ----------
    folder
        Of data, home, masks and results; there is none yet.
    size
        How much is done.
    bar
        Shows progress.
    stopped
        Whether the person at the terminal wants it to stop.
    """

    folder: Path
    size: Size
    bar: Bar
    stopped: Callable[[], bool]
    crowd: Crowd = field(init=False)
    _seed: int = 0

    @property
    def home(self) -> Home:
        """Of the demonstration's installation."""
        return Home(self.folder / "home")

    @property
    def records(self) -> Records:
        """Of the home."""
        return Records(self.home)

    @property
    def registry(self) -> VersionRegistry:
        """Versions of the model."""
        return VersionRegistry(self.home.model(MODEL))

    @property
    def active(self) -> VersionInfo:
        """Version in service."""
        found = self.registry.active()
        if found is None:
            raise NotFoundError("the demonstration has no model in service; start it again.")
        return found

    def make_people(self) -> None:
        """Write images and labels; the site's key is fixed, as it divides the unseen people."""
        size = self.size
        self.crowd = write_people(
            self.folder / "data", forget=size.forget, retain=size.retain, unseen=size.unseen
        )
        self.home.root.mkdir()
        key = self.home.root / "site.key"
        key.touch(mode=0o600)
        key.write_bytes(bytes(KEY_BYTES))

    def train(self) -> VersionInfo:
        """Train on everybody but the unseen, and publish."""
        settings = TrainSettings(
            epochs=self.size.epochs, batch_size=12, samples_per_case=2, learning_rate=8e-3,
            val_fraction=0, device="cpu", augmentation=_PLAIN,
        )  # fmt: skip
        run = TrainingRun(
            MODEL, self.home, self.records, settings, requested_by=ACTOR,
            on_progress=self._show, stopped=self.stopped,
        )  # fmt: skip
        version, _ = run.execute(lambda _: (self.crowd.trained, CONFIG))
        return version

    def segment(self, name: str) -> Segmented:
        """Segment the forgotten people by the version in service, into ``masks/<name>/``."""
        segmenter = Segmenter.from_version(self.active, "cpu")
        masks, overlaps = [], []
        for case in self.crowd.forget:
            found = segmenter.predict(read_volume(case.image, modality="MR"))
            write_volume(found, self.folder / "masks" / name / f"{case.series}.nii.gz")
            mask, label = np.asarray(found.array[..., 0] == 1), self.label(case)
            overlap = 2 * float((mask & label).sum()) / max(1.0, float(mask.sum() + label.sum()))
            masks.append(mask)
            overlaps.append(overlap)
        return Segmented(tuple(masks), tuple(overlaps))

    @staticmethod
    def label(case: Case) -> Mask:
        """Outline that was drawn, as a mask ``(SIDE, SIDE)``."""
        assert case.label is not None
        return np.asarray(read_volume(case.label).array[..., 0] == 1)

    def mark(self) -> list[str]:
        """Mark the six people and approve; returns the requests."""
        forget_set, ids = self.records.forget_set, []
        for case in self.crowd.forget:
            request, _ = forget_set.mark("patient", case.person, "consent_withdrawn", actor=ACTOR)
            forget_set.approve(request.request_id, actor=ACTOR)
            ids.append(request.request_id)
        return ids

    def plan(self, ids: Sequence[str]) -> list[str]:
        """Say what each way would take; nothing is changed."""
        order = UnlearnOrder(MODEL, requests=tuple(ids), policy=self.size.policy, device="cpu")
        work = UnlearnRun(order, self.home, self.records, ACTOR)
        choice = work.prepare(self.crowd.everybody)
        plan = plan_of(choice, self.records, order, work.left_in_others())
        return plan.lines()[len(plan.requests) :]

    def unlearn(self, ids: Sequence[str], method: str, level: str, **settings: Any) -> Outcome:
        """Make a candidate, audit it, and publish it if it passes."""
        self._seed += 1
        order = UnlearnOrder(
            MODEL, requests=tuple(ids), level=level, method=method, settings=settings, quick=True,
            references=1, policy=self.size.policy, seed=self._seed, device="cpu",
        )  # fmt: skip
        run = UnlearnRun(
            order, self.home, self.records, ACTOR, on_progress=self._show, stopped=self.stopped
        )
        return self._outcome(method, run.execute(self.crowd.everybody))

    def _outcome(self, method: str, result: dict[str, Any]) -> Outcome:
        audit = Audits(self.home).get(result["audit_id"])
        findings = {f["name"]: f for f in audit["findings"]}
        verdict = audit["verdict"]
        lines = {n: _line(n, ModelFigures.from_json(f)) for n, f in audit["figures"].items()}
        said = verdict["outcome"]
        if said == "passed":
            said = f"passed: {verdict['reached']}"
        return Outcome(
            method, result["outcome"], verdict["reached"], result["version"] or "",
            result["audit_id"], tuple(verdict["reasons"]), lines["original"],
            replace(lines["candidate"], verdict=said), lines["reference-1"],
            float(findings["calibrated_membership"]["value"]),
        )  # fmt: skip

    def report_of(self, audit_id: str) -> Path:
        """File of an audit's report."""
        return self.home.audits / audit_id / REPORT

    def restore(self, request_id: str) -> tuple[str, bool]:
        """Bring the old version back.

        Returns
        -------
        version, same
            Its name, and whether its bytes are those that the registry wrote down at first.
        """
        found = Undo(self.home, self.records, MODEL, ACTOR).restore(request_id)
        info = self.registry.get(found["version"])
        return info.version, file_sha256(info.weights) == info.sha256

    def purge(self, ids: Sequence[str]) -> list[str]:
        """Purge every request; returns the versions whose weights were destroyed."""
        undo = Undo(self.home, self.records, MODEL, ACTOR)
        gone: dict[str, None] = {}
        for done, request_id in enumerate(ids):
            self.bar("purge", done, len(ids))
            gone |= dict.fromkeys(undo.purge(request_id)["destroyed"])
        self.bar("purge", len(ids), len(ids))
        return sorted(gone)

    def left_open(self) -> list[str]:
        """Look for what could still bring the old model back: keys, deposits, weights."""
        finisher, found = Finisher(self.home, self.records), []
        for deposit in finisher.deposits.all():
            if finisher.deposits.is_openable(deposit.deposit_id):
                found.append(f"deposit {deposit.deposit_id}")
        series = {case.series for case in self.crowd.forget}
        know = versions_that_know(Audits(self.home), self.records, self.registry, series)
        old = {version.sha256 for version in know}
        for path in self.home.root.rglob("*"):
            if path.is_file() and not path.is_symlink() and file_sha256(path) in old:
                found.append(str(path.relative_to(self.folder)))
        return found

    def _show(self, progress: Progress) -> None:
        self.bar(progress.phase, progress.step, progress.total)


def _line(name: str, figures: ModelFigures) -> Line:
    attacks = [a for a in figures.relearning or () if a.best_others is not None]
    if not attacks:
        raise NotFoundError("the audit made no relearning attack, which the demonstration shows.")
    strongest = max(attacks, key=lambda a: (a.people, a.rate))
    told = membership(attack_scores(figures.forget, "loss"), attack_scores(figures.test, "loss"))
    return Line(
        name,
        set_mean(figures.forget),
        set_mean(figures.test),
        told.area.value,
        float(strongest.curve[0][2] or 0.0),
        float(strongest.best_others or 0.0),
    )
