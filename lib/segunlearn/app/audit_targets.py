"""Which versions an audit compares, and which cases of the ledger were to be forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from segunlearn.app.records import Records
from segunlearn.errors import InvalidInputError, NotFoundError, StudyNotInLedgerError
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.ledger import Ledger, LedgerCase
from segunlearn.records.targets import person_name, same_issuer, split_person, unpad
from segunlearn.records.versions import VersionInfo, VersionRegistry

#: Requests that an audit without named targets is about: decided, and not taken back.
DECIDED: Final = ("approved", "working", "refused", "fulfilled", "purged")
#: Roles of cases that taught a version; ``forget`` and ``calibration`` did not.
TAUGHT: Final = ("train", "validation", "retain", "support", "query", "replay")
_PAGE: Final = 500


#: What was to be forgotten: kind and identifier, as :func:`cases_of` takes them.
Named = tuple[str, str]


@dataclass(frozen=True)
class Targets:
    """What was to be forgotten, as somebody names it; empty: every decided request.

    Parameters
    ----------
    requests
        Ids of forget requests.
    studies, series, patients
        Their identifiers; a patient as ``PatientID`` or ``PatientID^^^Issuer``.
    back
        Ids of forget requests that are being restored: what they name is kept, not forgotten.
    """

    requests: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    back: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.requests or self.studies or self.series or self.patients)


#: Nobody named anything: every decided request counts.
NO_TARGETS: Final = Targets()


class People:
    """A set of persons in which an unknown issuer may be any."""

    def __init__(self, persons: Iterable[str] = ()) -> None:
        self._issuers: dict[str, set[str]] = {}
        for person in persons:
            patient, issuer = split_person(person)
            self._issuers.setdefault(patient, set()).add(issuer)

    def __contains__(self, person: str) -> bool:
        patient, issuer = split_person(person)
        return any(same_issuer(issuer, known) for known in self._issuers.get(patient, ()))


def version_of(registry: VersionRegistry, name: str) -> VersionInfo:
    """Version by name or digest; without one, the active version.

    Raises
    ------
    NotFoundError
        There is none.
    """
    info = registry.get(name) if name else registry.active()
    if info is None:
        raise NotFoundError(
            f"model {registry.root.name!r} has no active version to audit. Train one, or name a "
            "version."
        )
    return info


def lineage_of(ledger: Ledger, info: VersionInfo) -> Sequence[LedgerCase]:
    """Cases that shaped a version, its ancestors' too.

    Raises
    ------
    NotFoundError
        The ledger does not know it.
    """
    try:
        return ledger.lineage_cases(info.sha256)
    except NotFoundError as error:
        raise NotFoundError(
            f"{info.version} is not in the ledger: nobody can say what it was trained on, and so "
            "not what it should have forgotten. Audit a version that was trained here."
        ) from error


def find_original(
    records: Records,
    registry: VersionRegistry,
    after: VersionInfo,
    name: str,
    targets: Targets,
    requests: tuple[ForgetRequest, ...],
) -> tuple[
    VersionInfo, Sequence[LedgerCase], list[LedgerCase], tuple[ForgetRequest, ...], list[Named]
]:
    """Find the version before, its cases, those of S among them, the requests, and what is named.

    Raises
    ------
    NotFoundError
        There is no such version, or none before.
    StudyNotInLedgerError
        None of them saw S.
    """
    if name:
        tried = [registry.get(name)]
    else:
        versions = registry.versions()
        earlier = versions[: [v.version for v in versions].index(after.version)][::-1]
        parents = [v for v in earlier if v.sha256 == after.parent_sha256]
        tried = parents or [v for v in earlier if not v.unpromoted]
    if not tried:
        raise NotFoundError(
            f"there is no version before {after.version} to compare with. Name the original."
        )
    failures = []
    for before in tried:
        lineage = lineage_of(records.ledger, before)
        try:
            found, used, named = _forgotten(records, before, after, lineage, targets, requests)
        except StudyNotInLedgerError as error:
            failures.append(error)
            continue
        return before, lineage, found, used, named
    raise failures[0]


def _forgotten(
    records: Records,
    before: VersionInfo,
    after: VersionInfo,
    lineage: Sequence[LedgerCase],
    targets: Targets,
    requests: tuple[ForgetRequest, ...],
) -> tuple[list[LedgerCase], tuple[ForgetRequest, ...], list[Named]]:
    """Cases of S that taught the original.

    Raises
    ------
    StudyNotInLedgerError
        It never saw one of the targets, or, without targets, nothing decided.
    """
    taught = [c for c in lineage if c.role in TAUGHT]
    if not targets:
        return _of_decided(records, before, after, taught)
    named: list[list[Named]] = [names_of(r) for r in requests]
    named += [[("study", t)] for t in targets.studies] + [[("series", t)] for t in targets.series]
    named += [[("patient", t)] for t in targets.patients]
    found: dict[str, LedgerCase] = {}
    for names in named:
        cases = cases_of(names, taught)
        if not cases:
            kind, target = names[0]
            raise StudyNotInLedgerError(
                f"{kind} {records.pseudonyms.of(target)}: no recorded run that made "
                f"{before.version} used it; the model never saw it, so there is nothing to audit. "
                "Name a version that saw it as the original."
            )
        found |= {c.series: c for c in cases}
    return list(found.values()), requests, [name for names in named for name in names]


def _of_decided(
    records: Records, before: VersionInfo, after: VersionInfo, taught: Sequence[LedgerCase]
) -> tuple[list[LedgerCase], tuple[ForgetRequest, ...], list[Named]]:
    """Decided requests about what the original saw and the candidate's own run did not use."""
    own: list[LedgerCase] = []
    if after.sha256 != before.sha256:
        own = [c for c in records.ledger.cases_of(after.run_id) if c.role in TAUGHT]
    found: dict[str, LedgerCase] = {}
    used, used_again = [], 0
    for request in _all_decided(records):
        if request.target.kind == "structure":
            continue
        cases = cases_of(names_of(request), taught)
        if cases and cases_of(names_of(request), own):
            used_again += 1
        elif cases:
            found |= {c.series: c for c in cases}
            used.append(request)
    if not found:
        why = f"no approved forget request is about a study that {before.version} saw"
        if used_again:
            why = f"{after.version} was itself trained on what the approved requests name"
        raise StudyNotInLedgerError(
            f"{why}: there is nothing to audit. Approve a request, unlearn or train without the "
            "studies, or name studies, series or patients."
        )
    return list(found.values()), tuple(used), [name for r in used for name in names_of(r)]


def _all_decided(records: Records) -> Iterable[ForgetRequest]:
    offset = 0
    while page := records.forget_set.list(states=DECIDED, limit=_PAGE, offset=offset):
        yield from page
        offset += len(page)


def names_of(request: ForgetRequest) -> list[Named]:
    """Kind and identifier of a request's target, then those of the studies kept with it.

    Raises
    ------
    InvalidInputError
        It is about a structure.
    """
    target = request.target
    if target.kind == "structure":
        raise InvalidInputError(
            f"forget request {request.request_id} is about a structure; this audit is about "
            "studies and people. Leave it out."
        )
    text = person_name(target.id, target.issuer) if target.kind == "patient" else target.id
    return [(target.kind, text), *(("study", study) for study in request.studies)]


def taught_cases(ledger: Ledger, named: Sequence[Named]) -> list[LedgerCase]:
    """Cases of some targets that taught a version of any model; each series once."""
    versions: dict[str, None] = {}
    for kind, target in named:
        by = {"patient": "person"}.get(kind, kind)
        # an ancestor that read it is among the sightings itself
        sightings = (s for s in ledger.versions_that_saw(**{by: target}) if s.direct)
        versions |= {s.version_sha256: None for s in sightings}
    found: dict[str, LedgerCase] = {}
    for sha256 in versions:
        taught = [c for c in ledger.lineage_cases(sha256) if c.role in TAUGHT]
        found = {c.series: c for c in cases_of(named, taught)} | found
    return list(found.values())


def cases_of(named: Sequence[Named], cases: Sequence[LedgerCase]) -> list[LedgerCase]:
    """Cases that one of some targets is about."""
    people = People(target for kind, target in named if kind == "patient")
    others = {(kind, unpad(target)) for kind, target in named if kind != "patient"}
    return [
        c
        for c in cases
        if c.person in people or ("study", c.study) in others or ("series", c.series) in others
    ]
