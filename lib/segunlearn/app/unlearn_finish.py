"""The steps of publishing, restoring and purging; each can be done again after a kill."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from segunlearn.adapters.deposit import Content, Deposit, Deposits
from segunlearn.adapters.keys import KeyStore
from segunlearn.app.audit_files import Audits
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_journal import Journal
from segunlearn.app.unlearn_reach import known_in, models_that_know
from segunlearn.errors import NotFoundError
from segunlearn.records.forget_states import LEVELS, at_least
from segunlearn.records.versions import VersionInfo, VersionRegistry

logger = logging.getLogger(__name__)

ROLE: Final = "unlearning"
#: Text for the history of what is restored, where nobody says why.
RESTORED: Final = "restored on request"
#: Why a request is fulfilled that was about nothing in service.
NEVER_TRAINED_ON: Final = "never trained on"
ONLY_OUT_OF_SERVICE: Final = "only versions out of service knew it"
#: What a request waits for that one model has forgotten and another one knows.
UNLEARN_THERE: Final = "Unlearn it there, too; where that cannot be done, train it again"


@dataclass(frozen=True)
class Finisher:
    """Finishes what a journal says.

    Parameters
    ----------
    home, records
        Of the installation.
    """

    home: Home
    records: Records

    @property
    def keys(self) -> KeyStore:
        """Keys of the deposits."""
        return KeyStore(self.home.keys)

    @property
    def deposits(self) -> Deposits:
        """Sealed old weights."""
        return Deposits(self.home.deposits, self.keys)

    def registry(self, model: str) -> VersionRegistry:
        """Versions of a model."""
        return VersionRegistry(self.home.model(model))

    def finish(self, journal: Journal) -> None:
        """Do every step that is missing, and close the journal.

        Raises
        ------
        ConflictError, IntegrityError, UnavailableError
            Something stands in the way; the journal stays, and the next start tries again.
        """
        {"unlearn": self._publish, "restore": self._restore, "purge": self._purge}[journal.kind](
            journal
        )
        self.close(journal)

    def close(self, journal: Journal) -> None:
        """Remove a journal and what lies beside it."""
        shutil.rmtree(journal.folder(self.home), ignore_errors=True)
        journal.close(self.home)

    def give_up(self, journal: Journal, why: str) -> None:
        """Leave everything as it was: the candidate goes, the requests are refused, with why."""
        registry = self.registry(journal.model)
        if journal.kind == "restore":
            self._close_original(journal, registry)
        for info in registry.versions():
            mine = info.run_id == journal.run_id and info.unpromoted
            if mine and info.weights_state != "destroyed":  # killed while it was discarded, too
                registry.discard(info.version)
        for request_id in journal.requests:
            request = self.records.forget_set.get(request_id)
            # one that reached a lower level stays in work: what hides it is served
            if request.state == "working" and request.reached == "none":
                self._move(journal, request_id, "refused", why)
        self.close(journal)

    def _publish(self, journal: Journal) -> None:
        registry = self.registry(journal.model)
        if journal.interim:
            registry.promote(journal.candidate)
            for request_id in self._in(journal.requests, "working"):
                self.records.forget_set.set_reached(
                    request_id, journal.reached, actor=journal.actor, role=ROLE, why=journal.why
                )
            return
        if journal.retire:
            self._seal(journal, registry)
        if journal.candidate:
            registry.promote(journal.candidate)
        self._take_out(journal, registry)
        self.records.drop_marked_checkpoints()
        for request_id in self._in(journal.requests, "working"):
            reached = "retrained" if request_id in journal.exact else journal.reached
            self._move(journal, request_id, "fulfilled", journal.why, reached)

    @staticmethod
    def _take_out(journal: Journal, registry: VersionRegistry) -> None:
        for version in journal.retire:
            # a candidate that was refused before knew the studies too, and is destroyed already
            if (info := registry.retire(version)).weights_state != "destroyed":
                registry.destroy_weights(version, sealed=not info.unpromoted)

    def _seal(self, journal: Journal, registry: VersionRegistry) -> None:
        """Seal what is taken out of service, by the keys of what it is taken out for."""
        requests = journal.requests if journal.kind == "unlearn" else journal.stay
        try:
            self.deposits.get(journal.run_id)
        except NotFoundError:
            pass
        else:
            return
        retire = map(registry.get, journal.retire)  # what was never served does not come back
        here = [i for i in retire if i.weights_state == "here" and not i.unpromoted]
        if not here:
            return
        for request_id in requests:
            self.keys.create(request_id)
        contents = [self._content(journal, registry, info) for info in here]
        self.deposits.seal(
            journal.run_id,
            model=journal.model,
            requests=requests,
            replaced_by=registry.get(journal.candidate or registry_active(registry)).sha256,
            contents=contents,
        )

    def _content(self, journal: Journal, registry: VersionRegistry, info: VersionInfo) -> Content:
        """Small where the candidate leads back to the weights bit for bit, else the weights."""
        state = "retired" if info.state == "retired" else "available"
        weights = info.weights.read_bytes()
        small = journal.folder(self.home) / "deposit.bin"
        if info.version == journal.original and small.is_file():
            deposit = small.read_bytes()
            candidate = registry.get(journal.candidate)
            if _original_from(deposit, candidate, candidate.weights.read_bytes()) == weights:
                return Content(info.version, "adapter", info.sha256, deposit, state)
            logger.warning("the deposit of %s is not exact; its weights are sealed", info.version)
        return Content(info.version, "weights", info.sha256, weights, state)

    def opened(self, deposit: Deposit, version: str) -> bytes:
        """Weights that a deposit holds; what replaced them may lie in a later deposit itself.

        They are in memory only.

        Raises
        ------
        NotFoundError
            A request's key was destroyed, or the weights that replaced them were.
        IntegrityError
            A deposit was changed, or does not lead to the weights that were published.
        """
        payload = self.deposits.open(deposit.deposit_id, version)
        if deposit.entry(version).kind == "weights":
            return payload
        after = self.registry(deposit.model).get(deposit.replaced_by)
        if after.weights_state == "here":
            return _original_from(payload, after, after.weights.read_bytes())
        for later in self.deposits.all():
            held = later.model == deposit.model and later.deposit_id != deposit.deposit_id
            if held and any(e.version == after.version for e in later.entries):
                return _original_from(payload, after, self.opened(later, after.version))
        raise NotFoundError(
            f"{version} is sealed as what leads back from {after.version}, and the weights of that "
            "were destroyed. It cannot be restored."
        )

    def open_original(self, journal: Journal) -> None:
        """Bring the weights back that a restore starts from; out of service, until it ends.

        Raises
        ------
        NotFoundError, IntegrityError
            The deposit or what it leads back from is damaged or gone.
        """
        deposit = self._holding(journal)[0]
        payload = self.opened(deposit, journal.original)
        self.registry(journal.model).put_back(journal.original, payload, "retired")

    def _close_original(self, journal: Journal, registry: VersionRegistry) -> None:
        """Undo :meth:`open_original`: the deposit still holds the weights."""
        if self._holding(journal) and registry.get(journal.original).state == "retired":
            registry.destroy_weights(journal.original, sealed=True)

    def _holding(self, journal: Journal) -> list[Deposit]:
        """Deposits of a restore's requests that hold the version it starts from."""
        return [
            d
            for d in self._openable(journal)
            if any(e.version == journal.original for e in d.entries)
        ]

    def _openable(self, journal: Journal) -> list[Deposit]:
        """Deposits of a restore's requests, newest first."""
        return [
            d
            for d in self.deposits.of_request(journal.requests[0])
            if d.model == journal.model and self.deposits.is_openable(d.deposit_id)
        ]

    def _restore(self, journal: Journal) -> None:
        registry = self.registry(journal.model)
        for deposit in self._openable(journal):
            for entry in deposit.entries:
                payload = self.opened(deposit, entry.version)
                back = "retired" if entry.state == "retired" else "available"
                registry.put_back(entry.version, payload, back)  # type: ignore[arg-type]
        if journal.retire:
            self._seal(journal, registry)
        if journal.again:
            registry.promote(journal.candidate)
        elif journal.candidate:  # else what is in service never knew it, and goes on
            registry.activate(journal.original)
        self._take_out(journal, registry)
        for request_id in journal.again:
            self._say_again(journal, request_id)
        for request_id in self._in(journal.requests, "fulfilled"):
            self._move(journal, request_id, "restored", journal.why)
        self._destroy_deposits(journal.requests, journal.model)

    def _say_again(self, journal: Journal, request_id: str) -> None:
        """Write into a request's history that its studies were taken out of a restored version."""
        why = f"forgotten again beside a restore: audit {journal.audit_id} found {journal.reached}"
        if self.records.forget_set.history(request_id)[-1].why != why:
            self.records.forget_set.set_reached(
                request_id, journal.reached, actor=journal.actor, role=ROLE, why=why
            )

    def _purge(self, journal: Journal) -> None:
        registry = self.registry(journal.model)
        self._destroy_deposits(self.bound_to(journal.model, journal.requests, journal.retire))
        for version in journal.retire:
            registry.retire(version)
            registry.destroy_weights(version)
        self.records.drop_marked_checkpoints()
        for folder in (self.home.audits / "work", self.home.cache):
            shutil.rmtree(folder, ignore_errors=True)  # both are made again when they are needed
        for request_id in self._in(journal.requests, "fulfilled"):
            self._move(journal, request_id, "purged", journal.why)

    def bound_to(
        self, model: str, requests: Collection[str], versions: Collection[str]
    ) -> frozenset[str]:
        """List whose keys a purge destroys: the named requests', and all that share a deposit.

        A deposit that holds one of ``versions`` is shared, also where another request made it.
        """
        shared = (
            d.requests
            for d in self.deposits.all()
            if set(requests) & set(d.requests)
            or (d.model == model and any(e.version in versions for e in d.entries))
        )
        return frozenset(requests).union(*shared)

    def _destroy_deposits(self, requests: Iterable[str], model: str = "") -> None:
        """Destroy the keys first: without them the deposits are noise, wherever copies are.

        Those of one ``model`` alone, or of all; a key that another model's deposit needs stays.
        """
        requests = tuple(requests)
        of = {d.deposit_id: d for r in requests for d in self.deposits.of_request(r)}
        found = {i: d for i, d in of.items() if model in ("", d.model)}
        needed = {r for i, d in of.items() if i not in found for r in d.requests}
        others = [d for d in self.deposits.all() if d.deposit_id not in found]
        held = {(d.model, e.version) for d in others for e in d.entries}
        for request_id in set(requests) - needed:
            self.keys.destroy(request_id)
        for deposit in found.values():
            registry = self.registry(deposit.model)
            for entry in deposit.entries:
                info = registry.get(entry.version)
                sealed = info.state == "retired" and info.weights_state == "sealed"
                if sealed and (deposit.model, entry.version) not in held:
                    registry.destroy_weights(info.version)
            self.deposits.destroy(deposit.deposit_id)

    def _in(self, requests: Iterable[str], state: str) -> list[str]:
        return [r for r in requests if self.records.forget_set.get(r).state == state]

    def _move(
        self, journal: Journal, request_id: str, state: str, why: str, reached: str | None = None
    ) -> None:
        request = self.records.forget_set.get(request_id)
        if state == "fulfilled" and not at_least(str(reached), request.needed):
            logger.info("request %s needs more than %s; it stays in work", request_id, reached)
            if request.reached != reached:  # what was made is served, and hides at most
                self.records.forget_set.set_reached(
                    request_id, str(reached), actor=journal.actor, role=ROLE, why=why
                )
            return
        audits = Audits(self.home)
        if state == "fulfilled" and any(
            model != journal.model for model, _ in known_in(audits, self.records, request)
        ):
            if at_least(request.reached, request.needed):  # of another model: the weaker counts
                reached = min(str(reached), request.reached, key=LEVELS.index)
            known = models_that_know(audits, self.records, request)
            if others := [m for m in known if m != journal.model]:
                why += f"; not fulfilled: {', '.join(others)} still knows it. {UNLEARN_THERE}"
                self.records.forget_set.set_reached(
                    request_id, str(reached), actor=journal.actor, role=ROLE, why=why[:1900]
                )
                return
        self.records.forget_set.transition(
            request_id, state, actor=journal.actor, role=ROLE, why=why, reached=reached
        )


def _original_from(deposit: bytes, after: VersionInfo, weights: bytes) -> bytes:
    from segunlearn.app.unlearn_make import original_from  # loads torch
    from segunlearn.networks import ModelConfig, network_from_bytes

    config = ModelConfig.from_json(after.config)
    return original_from(deposit, network_from_bytes(weights, config, after.sha256))


def registry_active(registry: VersionRegistry) -> str:
    """Name of the version that is served."""
    active = registry.active()
    return active.version if active is not None else ""
