"""The steps of publishing, restoring and purging; each can be done again after a kill."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from segunlearn.adapters.deposit import Content, Deposit, Deposits
from segunlearn.adapters.keys import KeyStore
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_journal import Journal, path_of
from segunlearn.errors import NotFoundError
from segunlearn.records.forget_states import at_least
from segunlearn.records.versions import VersionInfo, VersionRegistry

logger = logging.getLogger(__name__)

ROLE: Final = "unlearning"


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
        shutil.rmtree(path_of(self.home, journal.run_id).with_suffix(""), ignore_errors=True)
        journal.close(self.home)

    def give_up(self, journal: Journal, why: str) -> None:
        """Leave everything as it was: the candidate goes, the requests are refused, with why."""
        registry = self.registry(journal.model)
        for info in registry.versions():
            if info.run_id == journal.run_id and info.state == "candidate":
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
        for version in journal.retire:
            # a candidate that was refused before knew the studies too, and is destroyed already
            if registry.retire(version).weights_state != "destroyed":
                registry.destroy_weights(version, sealed=True)
        self.records.drop_marked_checkpoints()
        for request_id in self._in(journal.requests, "working"):
            self._move(journal, request_id, "fulfilled", journal.why, journal.reached)

    def _seal(self, journal: Journal, registry: VersionRegistry) -> None:
        try:
            self.deposits.get(journal.run_id)
        except NotFoundError:
            pass
        else:
            return
        here = [i for i in map(registry.get, journal.retire) if i.weights_state == "here"]
        if not here:
            return
        for request_id in journal.requests:
            self.keys.create(request_id)
        contents = [self._content(journal, registry, info) for info in here]
        self.deposits.seal(
            journal.run_id,
            model=journal.model,
            requests=journal.requests,
            replaced_by=registry.get(journal.candidate or registry_active(registry)).sha256,
            contents=contents,
        )

    def _content(self, journal: Journal, registry: VersionRegistry, info: VersionInfo) -> Content:
        """Small where the candidate leads back to the weights bit for bit, else the weights."""
        state = "retired" if info.state == "retired" else "available"
        weights = info.weights.read_bytes()
        small = path_of(self.home, journal.run_id).with_suffix("") / "deposit.bin"
        if info.version == journal.original and small.is_file():
            deposit = small.read_bytes()
            if self._original_from(deposit, registry.get(journal.candidate)) == weights:
                return Content(info.version, "adapter", info.sha256, deposit, state)
            logger.warning("the deposit of %s is not exact; its weights are sealed", info.version)
        return Content(info.version, "weights", info.sha256, weights, state)

    def _original_from(self, deposit: bytes, candidate: VersionInfo) -> bytes:
        from segunlearn.app.unlearn_make import original_from  # loads torch
        from segunlearn.networks import ModelConfig, load_weights

        config = ModelConfig.from_json(candidate.config)
        network = load_weights(candidate.weights, config, candidate.sha256)
        return original_from(deposit, network, self.home.unlearning)

    def _restore(self, journal: Journal) -> None:
        registry, deposits = self.registry(journal.model), self.deposits
        found = next(iter(deposits.of_request(journal.requests[0])), None)
        if found is not None and deposits.is_openable(found.deposit_id):
            for entry in found.entries:
                state = "retired" if entry.state == "retired" else "available"
                payload = deposits.open(found.deposit_id, entry.version)
                if entry.kind == "adapter":
                    payload = self._original_from(payload, registry.get(journal.candidate))
                registry.put_back(entry.version, payload, state)  # type: ignore[arg-type]
            if journal.candidate:  # else what is in service never knew it, and goes on
                registry.activate(journal.original)
        for request_id in self._in(journal.requests, "fulfilled"):
            self._move(journal, request_id, "restored", journal.why)
        self._destroy_deposits(journal.requests)

    def _purge(self, journal: Journal) -> None:
        registry = self.registry(journal.model)
        holding = [d for d in self.deposits.all() if self._holds(d, journal)]
        self._destroy_deposits({*journal.requests, *(r for d in holding for r in d.requests)})
        for version in journal.retire:
            registry.retire(version)
            registry.destroy_weights(version)
        self.records.drop_marked_checkpoints()
        for folder in (self.home.audits / "work", self.home.cache):
            shutil.rmtree(folder, ignore_errors=True)  # both are made again when they are needed
        for request_id in self._in(journal.requests, "fulfilled"):
            self._move(journal, request_id, "purged", journal.why)

    @staticmethod
    def _holds(deposit: Deposit, journal: Journal) -> bool:
        """Whether a deposit, also another request's, holds a version that is to be purged."""
        return deposit.model == journal.model and any(
            e.version in journal.retire for e in deposit.entries
        )

    def _destroy_deposits(self, requests: Iterable[str]) -> None:
        """Destroy the keys first: without them the deposits are noise, wherever copies are."""
        requests = tuple(requests)
        found = {d.deposit_id: d for r in requests for d in self.deposits.of_request(r)}
        for request_id in requests:
            self.keys.destroy(request_id)
        for deposit in found.values():
            registry = self.registry(deposit.model)
            for entry in deposit.entries:
                info = registry.get(entry.version)
                if info.state == "retired" and info.weights_state == "sealed":
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
            return
        self.records.forget_set.transition(
            request_id, state, actor=journal.actor, role=ROLE, why=why, reached=reached
        )


def registry_active(registry: VersionRegistry) -> str:
    """Name of the version that is served."""
    active = registry.active()
    return active.version if active is not None else ""
