"""Restoring what was taken out, and purging it: the two ends of a fulfilled request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segunlearn.adapters.deposit import Deposit
from segunlearn.app.audit_files import Audits, passed_without
from segunlearn.app.locks import training_lock
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_finish import Finisher, registry_active
from segunlearn.app.unlearn_journal import Journal
from segunlearn.app.unlearn_reach import ledger_cases, pseudonyms_of, versions_that_know
from segunlearn.app.unlearn_settle import settle
from segunlearn.audit.sweep import Place, sweep
from segunlearn.errors import ConflictError, NotFoundError
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_states import at_least
from segunlearn.records.targets import split_person
from segunlearn.records.versions import VersionRegistry


@dataclass(frozen=True)
class Undo:
    """Restores and purges.

    Parameters
    ----------
    home, records
        Of the installation.
    model
        Name in the registry.
    actor
        Who asks for it; roles are checked by the caller.
    """

    home: Home
    records: Records
    model: str
    actor: str

    @property
    def registry(self) -> VersionRegistry:
        """Versions of the model."""
        return VersionRegistry(self.home.model(self.model))

    def restore(self, request_id: str, why: str = "") -> dict[str, Any]:
        """Bring the version back that knew what was forgotten, and serve it.

        Requests that were unlearned together come back together.

        Returns
        -------
        dict
            ``version``, ``requests``, and ``lost``: versions made since, which are not served.

        Raises
        ------
        ConflictError
            The request is not fulfilled; it was purged; or others, forgotten later, are known to
            the old version too: restore those first.
        NotFoundError
            There is no such request, or no deposit of it.
        """
        with training_lock(self.home, self.model, "restore", 5.0):
            settle(self.home, self.records, self.model, locked=True)
            request = self._fulfilled(request_id)
            deposit = self._deposit(request)
            self._check_order(deposit)
            served = self.registry.get(registry_active(self.registry))
            original = self._original(deposit)
            replaced = original if original is not None else served.version
            run_id = self._start("restore", deposit.requests, replaced)
            candidate = self.registry.get(deposit.replaced_by).version if original else ""
            journal = Journal(
                run_id, "restore", self.model, deposit.requests, self.actor, replaced,
                candidate=candidate, decided=True, why=why or "restored on request",
            ).written(self.home)  # fmt: skip
            Finisher(self.home, self.records).finish(journal)
            self.records.runs.finish(run_id, "done", f"{replaced} is in service")
        if original is None:
            return {"version": served.version, "requests": list(deposit.requests), "lost": []}
        lost = [] if served.sha256 == deposit.replaced_by else [served.version]
        return {"version": replaced, "requests": list(deposit.requests), "lost": lost}

    def purge(self, request_id: str, why: str = "") -> dict[str, Any]:
        """Destroy everything that leads back: keys, old weights, checkpoints, caches. Final.

        Returns
        -------
        dict
            ``destroyed``: versions; ``requests`` that cannot be restored any more; ``places`` that
            are still open, such as labels, which the hospital may have to keep.

        Raises
        ------
        ConflictError
            The request is not fulfilled, only hidden, or the version in service knows the studies.
        NotFoundError
            There is no such request.
        """
        with training_lock(self.home, self.model, "purge", 5.0):
            settle(self.home, self.records, self.model, locked=True)
            request = self._fulfilled(request_id)
            if not at_least(request.reached, "unlearned"):
                raise ConflictError(
                    f"forget request {request_id} is only {request.reached}: whoever has the "
                    "weights can bring the study back, so destroying the old ones erases nothing. "
                    "Mark it for the level 'unlearned' and unlearn it first."
                )
            retire, others = self.would_destroy(request)
            active = registry_active(self.registry)
            if active in retire:
                raise ConflictError(
                    f"{active}, which is in service, was taught by what is to be purged. Unlearn "
                    "it first."
                )
            run_id = self._start("purge", (request_id,), active)
            journal = Journal(
                run_id, "purge", self.model, (request_id,), self.actor, active, retire=retire,
                decided=True, why=why or "purged on request",
            ).written(self.home)  # fmt: skip
            Finisher(self.home, self.records).finish(journal)
            self.records.runs.finish(run_id, "done", f"{len(retire)} versions destroyed")
        cases = ledger_cases(self.records.ledger, request)
        return {
            "destroyed": list(retire),
            "requests": list(others),
            "places": [p.to_json() for p in self._open_places(cases)] if cases else [],
        }

    def would_destroy(self, request: ForgetRequest) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Versions whose weights a purge destroys, and other requests that lose their way back."""
        series = {c.series for c in ledger_cases(self.records.ledger, request)}
        know = versions_that_know(Audits(self.home), self.records, self.registry, series)
        versions = tuple(v.version for v in know)
        others = {
            r
            for d in Finisher(self.home, self.records).deposits.all()
            if request.request_id in d.requests
            or (d.model == self.model and any(e.version in versions for e in d.entries))
            for r in d.requests
        }
        return versions, tuple(sorted(others - {request.request_id}))

    def _open_places(self, cases: Any) -> list[Place]:
        pseudonyms = self.records.pseudonyms
        series = frozenset(c.series for c in cases)
        names = series | {c.study for c in cases}
        names |= {p for p in (split_person(c.person)[0] for c in cases) if len(p) > 3}
        without = passed_without(Audits(self.home), pseudonyms_of(self.records, series))
        saw = {
            s.version_sha256 for c in cases for s in self.records.ledger.versions_that_saw(
                series=c.series
            )
        }  # fmt: skip
        places = sweep(self.home.root, names, saw, pseudonyms, without=without)
        return [p for p in places if p.state == "open"]

    def _fulfilled(self, request_id: str) -> ForgetRequest:
        request = self.records.forget_set.get(request_id)
        if request.state != "fulfilled":
            raise ConflictError(
                f"forget request {request_id} is {request.state}; only a fulfilled one is restored "
                "or purged."
            )
        return request

    def _deposit(self, request: ForgetRequest) -> Deposit:
        deposits = Finisher(self.home, self.records).deposits
        found = [d for d in deposits.of_request(request.request_id) if d.model == self.model]
        if not found:
            raise NotFoundError(
                f"forget request {request.request_id} has no deposit of model {self.model!r}: no "
                "version knew it, or a purge destroyed the one it had with others. There is "
                "nothing to restore."
            )
        if not deposits.is_openable(found[0].deposit_id):
            raise ConflictError(
                f"forget request {request.request_id}: a key of its deposit was destroyed, by a "
                "purge of a request that was unlearned with it. It cannot be restored."
            )
        return found[0]

    def _check_order(self, deposit: Deposit) -> None:
        """Refuse a version that knows what was forgotten later, too."""
        deposits = Finisher(self.home, self.records).deposits
        own = set(deposit.requests)
        for later in deposits.all():
            if later.model != self.model or later.created <= deposit.created:
                continue
            waiting = [
                r for r in later.requests if r not in own and self.records.forget_set.get(r).is_live
            ]
            if waiting:
                raise ConflictError(
                    f"forget request {waiting[0]} was fulfilled later, and the version that would "
                    "come back knows it too. Restore that one first, or leave this one forgotten."
                )

    def _original(self, deposit: Deposit) -> str | None:
        """Find the version that was replaced; None where only versions out of service were."""
        run = self.records.runs.get(deposit.deposit_id)
        if run.parameters["method"] == "none":
            return None
        return deposit.entry(str(run.parameters["original"])).version

    def _start(self, kind: str, requests: tuple[str, ...], version: str) -> str:
        return self.records.runs.start(
            kind, self.model, {"requests": list(requests), "version": version},
            requested_by=self.actor,
        )  # fmt: skip
