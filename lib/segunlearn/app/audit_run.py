"""An audit from its first record to the signed report, for server and command line."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import nn

from segunlearn.app import checkpoints
from segunlearn.app.audit_choice import Choice, choose, settings_of, views_of
from segunlearn.app.audit_files import Audits
from segunlearn.app.audit_order import QUICK_NOTE, QUICK_PEOPLE, Order
from segunlearn.app.audit_references import (
    References,
    reference_settings,
    seconds_for,
    train_references,
)
from segunlearn.app.audit_studies import MOST_PEOPLE, sets_of
from segunlearn.app.locks import audit_lock
from segunlearn.app.options import Home
from segunlearn.app.places import places_of
from segunlearn.app.records import Records
from segunlearn.app.watched_run import WatchedRun, why_unexpected
from segunlearn.audit.notes import advice
from segunlearn.audit.report import html_report, middle_slices
from segunlearn.audit.run import AuditResult, run_audit
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.sweep import Place
from segunlearn.cases import Case
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import (
    CancelledError,
    ConflictError,
    NotFoundError,
    SegUnlearnError,
)
from segunlearn.inference import choose_device
from segunlearn.networks import load_weights
from segunlearn.records.runs import Progress
from segunlearn.records.store import canonical_json
from segunlearn.records.versions import VersionInfo, VersionRegistry

logger = logging.getLogger(__name__)

#: How often a running audit tells how far it is.
REPORT_SECONDS: Final = 0.5


@dataclass
class AuditRun(WatchedRun):
    """An audit under way: its record, and when to stop.

    Parameters
    ----------
    order
        What is asked for.
    home, records
        Of the installation.
    requested_by
        Who asked for it.
    on_progress
        Called with every progress record, after it was stored.
    stopped
        Tells that the person at the terminal wants it to stop.
    """

    order: Order
    home: Home
    records: Records
    requested_by: str = ""
    on_progress: Callable[[Progress], None] | None = None
    stopped: Callable[[], bool] | None = None
    run_id: str = ""
    _choice: Choice | None = None
    _looked: float = 0.0
    _told: float = 0.0
    _phase: str = ""
    _stop: bool = False

    @property
    def registry(self) -> VersionRegistry:
        """Versions of the model."""
        return VersionRegistry(self.home.model(self.order.model))

    @property
    def choice(self) -> Choice:
        """Versions and sets; after :meth:`prepare`."""
        if self._choice is None:
            raise ConflictError("the audit was not prepared; say first which cases there are.")
        return self._choice

    def prepare(self, cases: Sequence[Case]) -> Choice:
        """Choose versions and sets; nothing is recorded or read yet.

        Parameters
        ----------
        cases
            Every labelled case at hand, those marked for forgetting too.

        Raises
        ------
        SegUnlearnError
            See ``audit_choice.choose``.
        """
        order = self.order
        self._choice = choose(
            self.records, self.registry, cases, candidate=order.candidate,
            original=order.original, targets=order.targets, level=order.level,
        )  # fmt: skip
        choose_device(order.device)
        return self._choice

    def reference_seconds(self) -> float:
        """Estimate the wall time of the full references; 0 without any."""
        return seconds_for(self.choice, self.order.references)

    def execute(self) -> dict[str, Any]:
        """Audit, and write report and attestation.

        Returns
        -------
        dict
            The audit's JSON, as in ``audit.json``; ``about`` says what it is about.

        Raises
        ------
        ConflictError
            It was not prepared, or the same audit runs already.
        CancelledError
            A person stopped it; what was measured is used by the next start.
        InvalidInputError, LabelError, GeometryError, IntegrityError
            Images, labels or weights cannot be used.
        """
        choice, pseudonyms = self.choice, self.records.pseudonyms
        runs = self.records.runs
        self.run_id = runs.start(
            "audit", self.order.model, self._parameters(pseudonyms), requested_by=self.requested_by
        )
        try:
            with audit_lock(self.home, key_of(choice, pseudonyms)):
                result = self._audit(choice, pseudonyms)
        except CancelledError:
            self._finish("cancelled", "stopped by a person")
            raise
        except SegUnlearnError as error:
            self._finish("failed", str(error))
            raise
        except Exception as error:
            self._finish("failed", why_unexpected(error))
            raise
        finally:  # no lock is held any more
            self.records.drop_marked_checkpoints()
        verdict = result["verdict"]
        self._finish("done", f"verdict: {verdict['outcome']}, reached {verdict['reached']}")
        logger.info("audit %s: %s", self.run_id, verdict["outcome"])
        return result

    def _audit(self, choice: Choice, pseudonyms: Pseudonyms) -> dict[str, Any]:
        order = self.order
        sets, notes = sets_of(
            choice,
            pseudonyms,
            whole=order.whole,
            most_people=QUICK_PEOPLE if order.quick else MOST_PEOPLE,
            report=lambda done, total: self.report(Progress("read studies", done, total)),
            cancel=self.should_stop,
        )
        work = Audits(self.home).work(key_of(choice, pseudonyms))
        marked = checkpoints.named_by(self.records.forget_set.live_targets(), pseudonyms)
        if work.is_dir() and checkpoints.saw(work, marked, pseudonyms):
            shutil.rmtree(work)  # the mark did not meet it, and the list of cases changes now
        work.mkdir(parents=True, exist_ok=True)
        checkpoints.note(work, choice.retain, pseudonyms)  # a later mark deletes the references
        device = choose_device(order.device)
        candidate = _load(choice.candidate, choice).to(device)
        original = _load(choice.original, choice).to(device)
        references = References((), (), 0.0)
        if order.references:
            references = train_references(
                choice,
                reference_settings(self.records, choice, order.device),
                order.references,
                data_digest=sets.digest(),
                folder=work,
                report=self.report,
                cancel=self.should_stop,
            )
        result = run_audit(
            candidate,
            original,
            [n.to(device) for n in references.networks],
            sets,
            order.settings(
                choice.needed,
                len(sets.retain),
                views_of(settings_of(self.records.ledger, choice.row)),
                len(sets.forget) + len(sets.calibration),
            ),
            run_dir=work,
            pseudonyms=pseudonyms,
            provenance=choice.provenance,
            reference_cost={"full": references.cpu_seconds} if order.references else None,
            report=self.report,
            cancel=self.should_stop,
        )
        self.report(Progress("write the report", 0, 1))
        own = (*choice.notes, *notes, *((QUICK_NOTE,) if order.quick else ()))
        # swept afterwards: whether the candidate itself is an open place is what was measured
        places = self._places(choice, result, pseudonyms)
        result = replace(
            result,
            notes=(*result.notes, *own),
            places=places,
            advice=advice(result.verdict, sets, order.policy, places),
        )
        data = {**result.to_json(), "about": self._about(choice)}
        pictures: Sequence[Mapping[str, Any]] = ()
        if order.pictures:
            pictures = self._pictures(sets, candidate, original, references, pseudonyms)
        page = html_report(data, asked=self._asked(choice), pictures=pictures)
        Audits(self.home).write(self.run_id, data, page)
        self.report(Progress("write the report", 1, 1))
        return data

    def _places(
        self, choice: Choice, result: AuditResult, pseudonyms: Pseudonyms
    ) -> tuple[Place, ...]:
        """Sweep the home; the candidate is without S only if this very audit says so."""
        after, reached = choice.candidate.sha256, result.verdict.reached
        measured = {(after, pseudonyms.of(c.series)): reached for c in choice.forget}
        references = {d for n, d in result.digests.items() if n.startswith("reference")}
        return tuple(places_of(self.records, choice.swept, measured=measured, without=references))

    def _pictures(
        self,
        sets: AuditSets,
        candidate: nn.Module,
        original: nn.Module,
        references: References,
        pseudonyms: Pseudonyms,
    ) -> Sequence[Mapping[str, Any]]:
        if references.networks:
            reference = references.networks[0]
        else:
            work = Audits(self.home).work(key_of(self.choice, pseudonyms))
            reference = load_weights(work / "reference.safetensors", sets.config)
        return middle_slices(candidate, original, reference, sets.pseudonymised(pseudonyms))

    def _about(self, choice: Choice) -> dict[str, Any]:
        """Say what the audit is about, without any identifier of a patient."""
        return {
            "audit_id": self.run_id,
            "model": self.order.model,
            "candidate": choice.candidate.version,
            "original": choice.original.version,
            "requests": [r.request_id for r in choice.requests],
            "reasons": sorted({r.stated_reason for r in choice.requests}),
            "quick": self.order.quick,
            "pictures": self.order.pictures,
        }

    def _asked(self, choice: Choice) -> dict[str, str]:
        asked = {"Model": self.order.model, "Version before": choice.original.version}
        asked["Version audited"] = choice.candidate.version
        if choice.requests:
            reasons = sorted({r.stated_reason.replace("_", " ") for r in choice.requests})
            asked["Reason"] = ", ".join(reasons)
            asked["Requests"] = ", ".join(r.request_id for r in choice.requests)
        return asked

    def _parameters(self, pseudonyms: Pseudonyms) -> dict[str, Any]:
        choice = self.choice
        return {
            "candidate": choice.candidate.version,
            "candidate_sha256": choice.candidate.sha256,
            "original": choice.original.version,
            "original_sha256": choice.original.sha256,
            "forget": sorted(pseudonyms.of(c.series) for c in choice.forget),
            "references": self.order.references,
            "quick": self.order.quick,
            "needed": choice.needed,
        }

    def report(self, progress: Progress) -> None:
        """Write progress to the store, at most twice a second within a phase."""
        now, last = time.monotonic(), progress.step >= progress.total
        if progress.phase == self._phase and not last and now - self._told < REPORT_SECONDS:
            return
        self._phase, self._told = progress.phase, now
        self.tell(progress)

    def _finish(self, outcome: Any, message: str) -> None:
        """Record the end."""
        self.record(lambda: self.records.runs.finish(self.run_id, outcome, message))


def key_of(choice: Choice, pseudonyms: Pseudonyms) -> str:
    """Name of the folder in which measures of the same models and studies are kept."""
    parts = [choice.candidate.sha256, choice.original.sha256]
    return pseudonyms.of(canonical_json([*parts, sorted(c.series for c in choice.forget)]))


def _load(info: VersionInfo, choice: Choice) -> nn.Module:
    if not info.weights.is_file():
        raise NotFoundError(
            f"{info.version}: its weights are not here any more, so nothing can be measured on "
            "them. An audit that was made before they were destroyed still stands."
        )
    return load_weights(info.weights, choice.config, info.sha256)
