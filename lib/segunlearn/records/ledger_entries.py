"""What a ledger row says, and its digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from segunlearn.errors import InvalidInputError
from segunlearn.records.store import canonical_json
from segunlearn.records.targets import clean_text, person_name, split_person, unpad

#: What a case was used for. Every one of them shaped the version: validation chose the weights.
ROLES: Final = (
    "train",
    "validation",
    "forget",
    "retain",
    "calibration",
    "support",
    "query",
    "replay",
)
#: Short forms that are accepted and recorded as the word they stand for.
_ROLE_ALIASES: Final = {"val": "validation"}

OUTCOMES: Final = ("done", "failed", "cancelled", "refused", "interrupted")

#: Digest before the first row.
GENESIS: Final = "0" * 64

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


@dataclass(frozen=True)
class LedgerCase:
    """One series that a run used.

    Parameters
    ----------
    series, study, person
        As in :class:`segunlearn.cases.Case`.
    role
        One of ``ROLES`` (``val`` is ``validation``).
    image_digest, label_digest
        SHA-256 of the image and the label as the run read them (``Volume.digest``); empty when
        there is none.
    """

    series: str
    study: str
    person: str
    role: str
    image_digest: str = ""
    label_digest: str = ""

    def checked(self) -> LedgerCase:
        """Return the case normalised.

        Raises
        ------
        InvalidInputError
            A field is wrong.
        """
        role = _ROLE_ALIASES.get(self.role, self.role)
        if role not in ROLES:
            raise InvalidInputError(f"{str(role)[:40]!r} is no role; use one of {ROLES}.")
        for digest in (self.image_digest, self.label_digest):
            _sha256(digest, "the digest of an image or label", optional=True)
        series = clean_text(unpad(self.series), "the series of a case", 128)
        study = clean_text(unpad(self.study), "the study of a case", 128)
        person = person_name(*split_person(clean_text(self.person, "the person of a case", 200)))
        return LedgerCase(series, study, person, role, self.image_digest, self.label_digest)

    def digest(self) -> str:
        """SHA-256 over the canonical JSON list of its fields."""
        fields = (
            self.series,
            self.study,
            self.person,
            self.role,
            self.image_digest,
            self.label_digest,
        )
        return hashlib.sha256(canonical_json(fields).encode()).hexdigest()


@dataclass(frozen=True)
class LedgerEntry:
    """What is recorded of a run of any kind.

    Parameters
    ----------
    run_id, kind, model
        Of the run, see :class:`segunlearn.records.runs.Runs`.
    version_sha256
        Digest of the weights that came out; None when none did.
    parent_sha256
        Digest of the weights it started from; None when they were random. A digest that no
        earlier row made is an origin of which the ledger knows no studies.
    cases
        Every series that it read, with the role: validation too.
    parameters, seed
        Resolved parameters, never the distributions they were drawn from.
    versions, machine
        Code and libraries; device and host.
    started, ended
        UTC ISO 8601.
    outcome
        One of ``OUTCOMES``: failed and cancelled runs read the data too.
    """

    run_id: str
    kind: str
    model: str
    version_sha256: str | None
    parent_sha256: str | None
    cases: Sequence[LedgerCase]
    parameters: Mapping[str, Any]
    seed: int | None
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    started: str
    ended: str
    outcome: str

    def body(self, cases_digest: str, cases_count: int) -> dict[str, Any]:
        """Return the row without its place in the chain.

        Raises
        ------
        InvalidInputError
            A field is wrong.
        """
        for word, what in ((self.kind, "kind"), (self.outcome, "outcome")):
            if not _WORD.fullmatch(str(word)):
                raise InvalidInputError(f"the {what} of a run is a lower-case word, not {word!r}.")
        if self.outcome not in OUTCOMES:
            raise InvalidInputError(f"{self.outcome!r} is no outcome; use one of {OUTCOMES}.")
        seed: object = self.seed
        if seed is not None and not isinstance(seed, int):
            raise InvalidInputError(f"a seed is a whole number, not {self.seed!r}.")
        for time in (self.started, self.ended):
            if not _TIME.fullmatch(str(time)):
                raise InvalidInputError(f"{str(time)[:40]!r} is no UTC time in ISO 8601.")
        _sha256(self.version_sha256, "the digest of the version")
        _sha256(self.parent_sha256, "the digest of the parent")
        body = {
            "run_id": clean_text(self.run_id, "the run's id", 128),
            "kind": self.kind,
            "model": clean_text(self.model, "the model's name", 128),
            "version_sha256": self.version_sha256,
            "parent_sha256": self.parent_sha256,
            "cases_sha256": cases_digest,
            "cases_count": cases_count,
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "started": self.started,
            "ended": self.ended,
            "outcome": self.outcome,
        }
        if "\\u0000" in canonical_json(body):
            raise InvalidInputError("a ledger row holds a NUL character; remove it.")
        return body


@lru_cache(maxsize=200_000)
def checked_case(case: LedgerCase) -> tuple[str, LedgerCase]:
    """(digest, normalised case); remembered, because runs share almost all of their cases.

    Raises
    ------
    InvalidInputError
        A field is wrong.
    """
    case = case.checked()
    return case.digest(), case


def cases_digest(digests: Sequence[str]) -> str:
    """SHA-256 over the sorted digests of the cases, one a line: the order does not matter."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def row_digest(body: str) -> str:
    """SHA-256 of a row's canonical JSON, which holds the digest of the row before it."""
    return hashlib.sha256(body.encode()).hexdigest()


def _sha256(value: str | None, what: str, *, optional: bool = False) -> None:
    if value is None or (optional and value == ""):
        return
    if not _SHA256.fullmatch(str(value)):
        raise InvalidInputError(f"{what} must be 64 hexadecimal digits (SHA-256, lower case).")
