"""An unlearning from the approved request to the audited, published version."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from segunlearn.app.audit_files import Audits
from segunlearn.app.audit_order import Order
from segunlearn.app.audit_run import AuditRun
from segunlearn.app.audit_targets import Targets
from segunlearn.app.locks import training_lock
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.train_ledger import library_versions, machine
from segunlearn.app.unlearn_check import check
from segunlearn.app.unlearn_choice import (
    RENAMED,
    UNMEASURED,
    UnlearnChoice,
    choose_unlearning,
    versions_that_know_cases,
)
from segunlearn.app.unlearn_finish import (
    NEVER_TRAINED_ON,
    ONLY_OUT_OF_SERVICE,
    RESTORED,
    ROLE,
    Finisher,
    registry_active,
)
from segunlearn.app.unlearn_journal import Journal
from segunlearn.app.unlearn_make import Made, make
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_others import Left, left_in_others
from segunlearn.app.unlearn_reach import ledger_cases
from segunlearn.app.unlearn_replay import Replay
from segunlearn.app.unlearn_restore import choose_restore
from segunlearn.app.unlearn_settle import settle
from segunlearn.app.version_list import HELD_OUT
from segunlearn.app.watched_run import WatchedRun, why_unexpected
from segunlearn.cases import Case
from segunlearn.errors import CancelledError, ConflictError, SegUnlearnError
from segunlearn.records.durable import write_durably
from segunlearn.records.forget_states import at_least
from segunlearn.records.ledger import LedgerCase, LedgerEntry
from segunlearn.records.runs import Progress
from segunlearn.records.store import utc_now
from segunlearn.records.versions import VersionInfo, VersionRegistry

logger = logging.getLogger(__name__)


@dataclass
class UnlearnRun(WatchedRun):
    """An unlearning under way: its record, and when to stop.

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
    orphan
        Tells that whoever started the run is gone.
    lock_seconds
        To wait for a training of the model.
    """

    order: UnlearnOrder
    home: Home
    records: Records
    requested_by: str = ""
    on_progress: Callable[[Progress], None] | None = None
    stopped: Callable[[], bool] | None = None
    orphan: Callable[[], bool] | None = None
    lock_seconds: float = 5.0
    run_id: str = ""
    gone: bool = False
    audit: dict[str, Any] = field(default_factory=dict)
    _choice: UnlearnChoice | None = None
    _others: tuple[Left, ...] = ()
    _labelled: Sequence[Case] = ()
    _looked: float = 0.0
    _stop: bool = False
    _started: str = ""
    _phase: str = ""
    _first: tuple[float, int] = (0.0, 0)

    @property
    def registry(self) -> VersionRegistry:
        """Versions of the model."""
        return VersionRegistry(self.home.model(self.order.model))

    @property
    def choice(self) -> UnlearnChoice:
        """What is to be done; after :meth:`prepare`."""
        if self._choice is None:
            raise ConflictError("the unlearning was not prepared; say first which cases there are.")
        return self._choice

    def prepare(self, cases: Sequence[Case]) -> UnlearnChoice:
        """Choose requests, version and sets; nothing is changed.

        Parameters
        ----------
        cases
            Every labelled case at hand, those marked for forgetting too.

        Raises
        ------
        SegUnlearnError
            See ``unlearn_choice.choose_unlearning``, ``unlearn_restore.choose_restore`` and
            ``UnlearnChoice.check_expected``.
        """
        self._labelled = cases
        choose = choose_restore if self.order.restore else choose_unlearning
        choice = choose(self.order, self.home, self.records, self.registry, cases)
        if self.order.expected:
            choice.check_expected(self.order.expected)
        self._choice = choice
        return choice

    def left_in_others(self) -> tuple[Left, ...]:
        """Find what other models have to forget besides; after :meth:`prepare`."""
        return left_in_others(self.choice, self.home, self.records, self._labelled)

    def execute(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Unlearn, audit, and publish what passed; on a refusal nothing changes for users.

        With ``order.restore`` the start is the version that knew that request, and what is still
        forgotten is unlearned from it.

        Parameters
        ----------
        cases
            As for :meth:`prepare`, which is done again under the lock.

        Returns
        -------
        dict
            ``outcome`` (``"published"``, ``"hidden"``, ``"restored"``, ``"refused"``,
            ``"not needed"``), ``version``, ``audit_id``, ``verdict``, ``requests`` with their
            states and, as ``next``, other models that still know them, as ``left`` why one was
            not worked on; ``others``: what is left to do in other models; of a restore also
            ``restored`` and ``lost`` as ``Undo.restore`` gives them.

        Raises
        ------
        ConflictError
            A training or another unlearning of this model runs, or nothing is approved.
        CancelledError
            A person stopped it; the old version serves on.
        InvalidInputError, LabelError, GeometryError, IntegrityError
            Images, labels, weights or settings cannot be used; the requests stay approved.
        """
        by = self.requested_by or "unlearning"
        with training_lock(self.home, self.order.model, by, self.lock_seconds, self.orphan):
            settle(self.home, self.records, self.order.model, locked=True)
            choice = self.prepare(cases)
            check(self.order, choice)
            self._others = self.left_in_others()
            Replay.of(self.order, self.records)  # refused before anything is changed
            fulfilled = self._without_work(choice)
            if choice.original is None:
                return self._result("not needed", None, fulfilled)
            return self._unlearn(choice, choice.original, fulfilled)

    def _without_work(self, choice: UnlearnChoice) -> list[str]:
        """Fulfil requests about what no model, or no served one, was taught."""
        forget_set, done = self.records.forget_set, []
        actor = self.requested_by or ROLE
        for request in choice.never:
            forget_set.check_no_older_run(request.request_id)
            if ledger_cases(self.records.ledger, request):
                raise ConflictError(
                    f"forget request {request.request_id}: a run that has just ended was taught "
                    "what it names. Start the unlearning again."
                )
            # runs without a version may have read it, so that it is not fulfilled from approved
            self._to_work(request.request_id, NEVER_TRAINED_ON)
            forget_set.transition(
                request.request_id, "fulfilled", actor=actor, role=ROLE,
                why=NEVER_TRAINED_ON, reached="retrained",
            )  # fmt: skip
            done.append(request.request_id)
        if choice.elsewhere:
            done += self._retire_only(choice)
        return done

    def _retire_only(self, choice: UnlearnChoice) -> list[str]:
        """Seal older versions that know what the served one does not."""
        ids = tuple(r.request_id for r in choice.elsewhere)
        active = registry_active(self.registry)
        studies = [r for r in choice.elsewhere if r.target.kind != "structure"]
        measured = {
            request.request_id
            for request, _, versions in versions_that_know_cases(
                Audits(self.home), self.records, self.registry, studies, "retrained"
            )
            if active in {v.version for v in versions}
        }
        # the one that is unlearned from is sealed when it is replaced
        kept = {active, choice.original.version if choice.original is not None else ""}
        retire = tuple(v.version for v in choice.outdated if v.version not in kept)
        run_id = self.records.runs.start(
            "unlearn", self.order.model,
            {"method": "none", "requests": list(ids), "original": retire[-1] if retire else ""},
            requested_by=self.requested_by,
        )  # fmt: skip
        journal = Journal(
            run_id, "unlearn", self.order.model, ids, self.requested_by or ROLE, active,
            retire=retire,
            reached="unlearned", exact=tuple(r for r in ids if r not in measured),
            decided=True, why=ONLY_OUT_OF_SERVICE,
        ).written(self.home)  # fmt: skip
        for request_id in ids:
            self._to_work(request_id, "only versions out of service know it")
        Finisher(self.home, self.records).finish(journal)
        self.records.runs.finish(
            run_id, "done",
            "older versions were sealed" if choice.is_sealed else "nothing was left to seal",
        )  # fmt: skip
        return list(ids)

    def _unlearn(
        self, choice: UnlearnChoice, original: VersionInfo, fulfilled: list[str]
    ) -> dict[str, Any]:
        method = self.order.method_for(choice.level)
        ids = tuple(r.request_id for r in choice.requests)
        back = tuple(r.request_id for r in choice.back)
        served = self.registry.active()
        self._started = utc_now()
        self.run_id = self.records.runs.start(
            "unlearn",
            self.order.model,
            {
                "method": method, "level": choice.level,
                # also those that are taken along: viewers show what is under way
                "requests": [*ids, *(r.request_id for r in choice.also)],
                "original": original.version, "settings": dict(self.order.settings),
                **({"restored": list(back)} if back else {}),
            },
            requested_by=self.requested_by,
        )  # fmt: skip
        finisher = Finisher(self.home, self.records)
        journal = Journal(
            self.run_id, "restore" if back else "unlearn", self.order.model, back or ids,
            self.requested_by or ROLE, original.version, level=choice.level,
            retire=tuple(v.version for v in choice.know), again=ids if back else (),
            stay=choice.stay,
        ).written(self.home)  # fmt: skip
        try:
            assert choice.sets is not None
            if back:
                finisher.open_original(journal)
            for request_id in () if back else ids:
                self._to_work(request_id, f"by {method}, for the level {choice.level}")
            folder = journal.folder(self.home)
            made = make(
                method, self.order, choice.sets, self.records, folder, self.report,
                self.should_stop,
            )  # fmt: skip
            candidate = self._candidate(choice, original, method, made)
            self.audit = self._audited(choice, original, candidate)
            verdict = self.audit["verdict"]
            if verdict["outcome"] != "passed":
                why = f"{verdict['outcome']}: {' '.join(verdict['reasons'])}"[:1900]
                finisher.give_up(journal, why)
                self.records.runs.finish(self.run_id, "refused", why)
                return self._result("refused", None, fulfilled)
            journal = journal.written(
                self.home, candidate=candidate.version, reached=verdict["reached"], decided=True,
                interim=not at_least(verdict["reached"], choice.needed),
                audit_id=self.audit["about"]["audit_id"],
                why=self.order.why or RESTORED if back
                else f"audit {self.audit['about']['audit_id']} found {verdict['reached']}",
            )  # fmt: skip
        except SegUnlearnError as error:
            stopped = isinstance(error, CancelledError)
            why = "its server is gone; start it again" if self.gone else "stopped by a person"
            self._undo(finisher, journal, why if stopped else str(error))
            self.records.runs.finish(
                self.run_id, "cancelled" if stopped else "failed", str(error)[:1900]
            )
            raise
        except Exception as error:
            why = why_unexpected(error)
            self._undo(finisher, journal, why)
            self.records.runs.finish(self.run_id, "failed", why)
            raise
        # nothing is undone from here on: what a kill interrupts, the next start finishes
        self.report(Progress("publish", 0, 1))
        finisher.finish(journal)
        self.report(Progress("publish", 1, 1))
        outcome = "restored" if back else "hidden" if journal.interim else "published"
        self.records.runs.finish(
            self.run_id, "done", f"{outcome}: {candidate.version}, reached {journal.reached}"
        )
        logger.info("unlearning %s: %s is in service", self.run_id, candidate.version)
        result = self._result(outcome, candidate, fulfilled)
        if back:
            result |= {"restored": list(back), "lost": [served.version] if served else []}
        return result

    def _candidate(
        self, choice: UnlearnChoice, original: VersionInfo, method: str, made: Made
    ) -> VersionInfo:
        """Write the ledger row, then the candidate: no version is there that it does not know."""
        parent = None if made.exact else original.sha256
        if made.deposit:
            write_durably(made.weights.with_name("deposit.bin"), made.deposit)
        digests = dict(choice.sets.changed) if choice.sets is not None else {}
        untaught = choice.sets.untaught if choice.sets is not None else ()
        self.records.ledger.append(
            LedgerEntry(
                run_id=self.run_id,
                kind="unlearn",
                model=self.order.model,
                version_sha256=made.sha256,
                parent_sha256=parent,
                cases=[
                    LedgerCase(c.series, c.study, c.person, role, *digests.get(c.series, ("", "")))
                    for role, cases in made.roles.items()
                    for c in cases
                ],
                parameters={
                    "method": method, "settings": made.settings, "level": choice.level,
                    "read": made.read, "cpu_seconds": made.cpu_seconds,
                    "requests": [r.request_id for r in choice.requests],
                    **({} if made.exact else {"without": sorted(untaught)}),
                },
                seed=made.seed,
                versions=library_versions(),
                machine=machine(),
                started=self._started,
                ended=utc_now(),
                outcome="done",
            )
        )  # fmt: skip
        details = {k: v for k, v in original.details.items() if k in HELD_OUT}
        if choice.level == "hidden":
            details["hides"] = True
        return self.registry.publish(
            made.weights,
            original.config,
            parent_sha256=parent,
            run_id=self.run_id,
            details={**details, "method": method},
            candidate=True,
        )

    def _audited(
        self, choice: UnlearnChoice, original: VersionInfo, candidate: VersionInfo
    ) -> dict[str, Any]:
        run = AuditRun(
            Order(
                self.order.model,
                candidate=candidate.version,
                original=original.version,
                targets=Targets(
                    requests=tuple(r.request_id for r in [*choice.requests, *choice.also]),
                    back=tuple(r.request_id for r in choice.back),
                ),
                level=choice.level,
                quick=self.order.quick,
                references=self.order.references,
                device=self.order.device,
                policy=self.order.policy,
            ),
            self.home,
            self.records,
            self.requested_by,
            on_progress=lambda p: self.report(replace(p, phase=f"audit: {p.phase}")),
            stopped=self.should_stop,
        )
        run.prepare(self._labelled)
        return run.execute()

    def _to_work(self, request_id: str, why: str) -> None:
        request = self.records.forget_set.get(request_id)
        if request.state != "working":
            self.records.forget_set.transition(
                request_id, "working", actor=self.requested_by or ROLE, role=ROLE, why=why
            )

    def _undo(self, finisher: Finisher, journal: Journal, why: str) -> None:
        """Leave the old version in service; what fails here must not hide why."""
        try:
            finisher.give_up(journal, why[:1900])
        except (SegUnlearnError, OSError) as error:
            logger.error("run %s could not be undone; the next start does: %s", self.run_id, error)

    def _result(
        self, outcome: str, version: VersionInfo | None, fulfilled: Sequence[str]
    ) -> dict[str, Any]:
        left = {r.request_id: UNMEASURED for r in self.choice.unmeasured}
        left |= {r.request_id: RENAMED for r in self.choice.renamed}
        asked = [*self.choice.back, *self.choice.requests, *self.choice.there]
        ids = [*fulfilled, *(r.request_id for r in asked), *left]
        states = {r: self.records.forget_set.get(r) for r in ids}
        others = self.choice.others
        return {
            "outcome": outcome,
            "run_id": self.run_id,
            "version": version.version if version else None,
            "audit_id": self.audit["about"]["audit_id"] if self.audit else None,
            "verdict": self.audit["verdict"] if self.audit else None,
            "requests": {
                r: {
                    "state": s.state, "needed": s.needed, "reached": s.reached,
                    **({"next": list(others[r])} if r in others else {}),
                    **({"left": left[r]} if r in left else {}),
                }
                for r, s in states.items()
            },
            "others": [one.to_json() for one in self._others],
        }  # fmt: skip

    def report(self, progress: Progress) -> None:
        """Write progress to the store, with the time that its phase will take if it goes on so."""
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase, self._first = progress.phase, (now, progress.step)
        began, first = self._first
        if progress.eta_seconds is None and progress.step > first:
            pace = (now - began) / (progress.step - first)
            progress = replace(progress, eta_seconds=pace * (progress.total - progress.step))
        self.tell(progress)
