"""Restoring what was taken out, and purging it: the two ends of a fulfilled request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segunlearn.app.audit_files import Audits
from segunlearn.app.locks import training_lock
from segunlearn.app.options import Home
from segunlearn.app.places import places_of
from segunlearn.app.records import Records
from segunlearn.app.unlearn_finish import RESTORED, Finisher, registry_active
from segunlearn.app.unlearn_journal import Journal
from segunlearn.app.unlearn_reach import known_in, ledger_cases
from segunlearn.app.unlearn_restore import Restore, fulfilled, restore_of
from segunlearn.app.unlearn_settle import settle
from segunlearn.errors import ConflictError
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_states import at_least
from segunlearn.records.versions import VersionInfo, VersionRegistry


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

        Requests that were unlearned together come back together. One about what nothing in service
        knew only ends: its studies may be trained on again.

        Returns
        -------
        dict
            ``version`` in service, empty without any, ``requests``, and ``lost``: versions made
            since, which are not served.

        Raises
        ------
        ConflictError
            The request is not fulfilled; it was purged; or the old version knows what is still
            forgotten, which then has to be unlearned from it again: ``UnlearnOrder.restore``.
        NotFoundError
            There is no such request, or no deposit of it.
        """
        with training_lock(self.home, self.model, "restore", 5.0):
            settle(self.home, self.records, self.model, locked=True)
            found = self.would_restore(request_id)
            served = self.registry.active()
            if found.again and found.original is not None:
                raise ConflictError(_forgotten_again(request_id, found.original, found.again))
            serves = found.original or served
            version = serves.version if serves is not None else ""
            run_id = self._start("restore", found.requests, version)
            candidate = self.registry.get(found.replaced_by).version if found.original else ""
            journal = Journal(
                run_id, "restore", self.model, found.requests, self.actor, version,
                candidate=candidate, retire=tuple(v.version for v in found.retire),
                decided=True, why=why or RESTORED, stay=found.stay,
            ).written(self.home)  # fmt: skip
            Finisher(self.home, self.records).finish(journal)
            self.records.runs.finish(run_id, "done", f"{version or 'no version'} is in service")
        lost = []
        if found.original is not None and served is not None and served.sha256 != found.replaced_by:
            lost = [served.version]
        return {"version": version, "requests": list(found.requests), "lost": lost}

    def would_restore(self, request_id: str) -> Restore:
        """Find what a restore brings back, and what has to be forgotten again for it.

        Raises
        ------
        ConflictError, NotFoundError
            See :func:`unlearn_restore.restore_of`.
        """
        return restore_of(self.home, self.records, self.registry, self.model, request_id)

    def purge(self, request_id: str, why: str = "") -> dict[str, Any]:
        """Destroy everything that leads back: keys, old weights, checkpoints, caches. Final.

        Returns
        -------
        dict
            ``destroyed``: versions, those of another model as ``MODEL/VERSION``; ``requests`` that
            cannot be restored any more; ``places`` that are still open, such as labels, which the
            hospital may have to keep.

        Raises
        ------
        ConflictError
            The request is not fulfilled, only hidden, or the version in service knows the studies;
            or another model has a version that knows them, which this request's key did not seal.
        NotFoundError
            There is no such request.
        """
        with training_lock(self.home, self.model, "purge", 5.0):
            settle(self.home, self.records, self.model, locked=True)
            request, retire, active = self._may_go(request_id)
            destroyed, others = self.would_destroy(request)
            run_id = self._start("purge", (request_id,), active)
            journal = Journal(
                run_id, "purge", self.model, (request_id,), self.actor, active, retire=retire,
                decided=True, why=why or "purged on request",
            ).written(self.home)  # fmt: skip
            Finisher(self.home, self.records).finish(journal)
            self.records.runs.finish(run_id, "done", f"{len(retire)} versions destroyed")
        cases = ledger_cases(self.records.ledger, request)
        places = places_of(self.records, cases) if cases else []
        return {
            "destroyed": list(destroyed),
            "requests": list(others),
            "places": [p.to_json() for p in places if p.state == "open"],
        }

    def would_purge(self, request_id: str) -> dict[str, Any]:
        """Say what :meth:`purge` would destroy; nothing is changed.

        Returns
        -------
        dict
            ``destroyed`` and ``requests``, as of the purge.

        Raises
        ------
        ConflictError, NotFoundError
            As the purge.
        """
        request, _, _ = self._may_go(request_id)
        destroyed, others = self.would_destroy(request)
        return {"destroyed": list(destroyed), "requests": list(others)}

    def _may_go(self, request_id: str) -> tuple[ForgetRequest, tuple[str, ...], str]:
        """Read a request that may be purged, the versions that know it, and what is in service."""
        request = fulfilled(self.records, request_id)
        if not at_least(request.reached, "unlearned"):
            raise ConflictError(
                f"forget request {request_id} is only {request.reached}: whoever has the "
                "weights can bring the study back, so destroying the old ones erases nothing. "
                "Restore it, mark it anew for the level 'unlearned', and unlearn it first."
            )
        if left := self._left_by(request):
            raise ConflictError(
                f"forget request {request_id}: {', '.join(left)} knows it, too, and a purge "
                f"here would leave that. Purge it there (--model {left[0].split('/')[0]}); "
                "what is in service there has to go first: restore the request, mark it anew "
                "and unlearn it in each model."
            )
        retire, active = self._known(request), registry_active(self.registry)
        if active in retire:
            raise ConflictError(
                f"{active}, which is in service, was taught by what is to be purged. Unlearn "
                "it first."
            )
        return request, retire, active

    def would_destroy(self, request: ForgetRequest) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Versions whose weights a purge destroys, and other requests that lose their way back."""
        versions = self._known(request)
        left = tuple(v for v in versions if self.registry.get(v).weights_state != "destroyed")
        finisher = Finisher(self.home, self.records)
        bound = finisher.bound_to(self.model, (request.request_id,), versions)
        elsewhere = {
            f"{d.model}/{e.version}" for r in bound for d in finisher.deposits.of_request(r)
            for e in d.entries if d.model != self.model
        }  # fmt: skip
        return (*left, *sorted(elsewhere)), tuple(sorted(bound - {request.request_id}))

    def _known(self, request: ForgetRequest) -> tuple[str, ...]:
        found = known_in(Audits(self.home), self.records, request)
        return tuple(v.version for model, v in found if model == self.model)

    def _left_by(self, request: ForgetRequest) -> list[str]:
        """Versions of other models that know a target and that the purge of its key would leave."""
        deposits = Finisher(self.home, self.records).deposits.all()
        held = {
            (d.model, e.version) for d in deposits if request.request_id not in d.requests
            for e in d.entries
        }  # fmt: skip
        return [
            f"{model}/{v.version}"
            for model, v in known_in(Audits(self.home), self.records, request)
            if model != self.model and (v.weights_state == "here" or (model, v.version) in held)
        ]

    def _start(self, kind: str, requests: tuple[str, ...], version: str) -> str:
        return self.records.runs.start(
            kind, self.model,
            {"method": "none", "original": "", "requests": list(requests), "version": version},
            requested_by=self.actor,
        )  # fmt: skip


def _forgotten_again(request_id: str, original: VersionInfo, again: Sequence[ForgetRequest]) -> str:
    """Say why a restore takes an unlearning and an audit, and how to start it."""
    return (
        f"{original.version}, which would come back, also knows what {len(again)} other forget "
        f"request(s) took out of service ({', '.join(r.request_id for r in again)}). That is "
        "forgotten again first, and audited: nothing is restored unless it passes. This needs the "
        f"labelled studies: segunlearn restore {request_id} --data DATA, or POST /train/unlearn "
        f'{{"restore": "{request_id}", "dry_run": false}}. Or restore the others first.'
    )
