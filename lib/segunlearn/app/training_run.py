"""A training from its first record to the published version, for server and command line."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from segunlearn.app.audit_files import Audits
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.resumable_run import ResumableRun
from segunlearn.app.structures import withdrawn
from segunlearn.app.train_ledger import entry_of
from segunlearn.app.unlearn_reach import show_what_was_forgotten
from segunlearn.cases import Case
from segunlearn.errors import ConflictError
from segunlearn.networks import ModelConfig
from segunlearn.records.ledger import LedgerEntry
from segunlearn.records.runs import Progress
from segunlearn.records.store import utc_now
from segunlearn.records.trail import TrailEntry
from segunlearn.records.versions import VersionInfo, VersionRegistry
from segunlearn.training import TrainResult, TrainSettings, train
from segunlearn.training.data import PreparedCase

logger = logging.getLogger(__name__)


def refuse_hidden(
    records: Records, registry: VersionRegistry, base: VersionInfo, instead: str
) -> None:
    """Refuse to go on from a version that at most hides what was taken out of service.

    A few steps bring it back, and no audit looks at what trainings and adaptations make.

    Parameters
    ----------
    records, registry
        Of the installation.
    base
        What would be gone on from.
    instead
        Sentence that says what to do.

    Raises
    ------
    ConflictError
        It was taught what a live forget request took out of service.
    """
    audits = Audits(records.home)
    for request, _ in show_what_was_forgotten(audits, records, registry, [base], hidden=True):
        raise ConflictError(
            f"{base.version} was taught what forget request {request.request_id} is about and at "
            f"most hides it (reached: {request.reached}): going on from it could show that again, "
            f"and no audit would look. {instead}"
        )


@dataclass
class TrainingRun(ResumableRun):
    """A training under way: its record, and when to stop.

    Parameters
    ----------
    model
        Name of the model.
    home
        Where runs and models lie.
    records
        Runs, ledger and forget set.
    settings
        Of the training.
    parent
        Version whose weights it starts from, None for random ones.
    requested_by
        Who asked for it.
    on_progress
        Called with every progress record, after it was stored.
    orphan
        Tells that whoever started the run is gone; it then stops and can be resumed.
    stopped
        Tells that the person at the terminal wants it to stop.
    details
        What is written into the version's manifest, beside its scores.
    """

    kind: ClassVar[str] = "train"

    model: str
    home: Home
    records: Records
    settings: TrainSettings
    parent: VersionInfo | None = None
    requested_by: str = ""
    on_progress: Callable[[Progress], None] | None = None
    orphan: Callable[[], bool] | None = None
    stopped: Callable[[], bool] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = ""
    cases: list[Case] = field(default_factory=list)
    gone: bool = False
    _started: str = field(default_factory=utc_now)
    _metrics: dict[str, float] = field(default_factory=dict)
    _looked: float = 0.0
    _stop: bool = False

    @property
    def registry(self) -> VersionRegistry:
        """Versions of the model."""
        return VersionRegistry(self.home.model(self.model))

    def execute(
        self, select: Callable[[TrainingRun], tuple[Sequence[Case], ModelConfig]]
    ) -> tuple[VersionInfo, TrainResult]:
        """Record the run, choose the cases, train, write the ledger row, publish.

        Parameters
        ----------
        select
            Gives the cases, none of which is forgotten, and the network. It is called after the
            run was recorded, so that its own failures and cancellation are too.

        Raises
        ------
        ConflictError
            A case was marked for forgetting while the training ran, its result is retired, or the
            parent only hides what was forgotten.
        CancelledError
            A person stopped it.
        InvalidInputError, LabelError, GeometryError
            Cases, settings and configuration do not fit together.
        """
        with self._recorded():
            self._refuse_hidden()
            cases, config = select(self)
            self.cases = list(cases)
            left_out = withdrawn(self.records, self.model, config.labels)
            self.settings = replace(self.settings, without=left_out)
            result = train(
                self.cases,
                config,
                self.settings,
                run_dir=self._adopt(),
                parent_weights=self.parent.weights if self.parent else None,
                parent_sha256=self.parent.sha256 if self.parent else None,
                check=self._check_read,
                progress=self.report,
                cancel=self.should_stop,
            )
            version = self._publish(result)
        logger.info("version %s (%s…) is in service", version.version, version.sha256[:12])
        return version, result

    def _check_read(self, trained: Sequence[PreparedCase]) -> None:
        """Refuse cases of no use, once their labels were read; here none are."""

    def _parameters(self) -> dict[str, Any]:
        """Return what is recorded when it begins."""
        return {
            "settings": self.settings.to_json(),
            "parent_sha256": self.parent.sha256 if self.parent else None,
        }

    def report(self, progress: Progress) -> None:
        """Write progress to the store; figures of earlier phases stay visible."""
        self._metrics.update(progress.metrics)
        self.tell(replace(progress, metrics=dict(self._metrics)))

    def _refuse_hidden(self) -> None:
        if self.parent is not None:
            instead = (
                "Train from random weights: switch 'pretrained' off (of a meta-training: "
                "'from_active'; on the command line leave --from-active out, 'segunlearn train "
                "--again' keeps labels and network)."
            )
            refuse_hidden(self.records, self.registry, self.parent, instead)

    def _publish(self, result: TrainResult) -> VersionInfo:
        self.report(Progress("publish", 0, 1, {}))
        try:
            self._refuse_hidden()
        except ConflictError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        kept = {c.series for c in self.records.without_forgotten(self.cases)}
        marked = [c for c in [*result.train_cases, *result.val_cases] if c.series not in kept]
        if marked:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ConflictError(
                f"{len(marked)} of the cases were marked for forgetting while the training ran, so "
                "its result is not published. Start the training again, it leaves them out."
            )
        now = withdrawn(self.records, self.model, result.config.labels)
        new = sorted(set(now) - set(self.settings.without))
        if new:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ConflictError(
                f"{', '.join(new)} was marked for forgetting while the training ran, so its "
                "result is not published. Start the training again, it leaves the label out."
            )
        try:
            self.registry.refuse_retired(result.sha256)
        except ConflictError:  # the same images and seed give the same weights
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        # the row first: no version is ever served that the ledger does not know. A mark that comes
        # now is as one after the training: nothing is fulfilled as "never trained on" while an
        # older run goes on, and once it has ended its row says what the version saw
        self.records.ledger.append(self._entry("done", result))
        self.records.trail.append(
            TrailEntry(
                "publish", self.requested_by, kind="weights", what=result.sha256,
                note=f"{self.kind} of {self.model}, run {self.run_id}",
            )
        )  # fmt: skip
        version = self.registry.publish(
            result.weights,
            result.config.to_json(),
            parent_sha256=self.parent.sha256 if self.parent else None,
            run_id=self.run_id,
            details={
                **self.details,
                "best_dice": result.best_dice,
                "epochs": result.epochs_done,
            },
        )
        dice = {} if result.best_dice is None else {"best_dice": result.best_dice}
        self.report(Progress("publish", 1, 1, dice))
        return version

    def _entry(self, outcome: str, result: TrainResult | None = None) -> LedgerEntry:
        """Row of the ledger."""
        return entry_of(
            run_id=self.run_id,
            model=self.model,
            parent_sha256=self.parent.sha256 if self.parent else None,
            settings=self.settings,
            cases=self.cases,
            started=self._started,
            outcome=outcome,
            result=result,
        )
