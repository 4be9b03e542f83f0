"""Which live request covers an image: by its series, its study, or its patient.

A patient's request covers an image by the number that it bears, by those that runs recorded for it,
and by its study, where that is kept with the request: see ``patient_studies``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Select, func, literal_column, select

from segunlearn.records.forget_requests import Cover, MarkStatus, agreed_reason
from segunlearn.records.store import AnyRow, Store
from segunlearn.records.tables import FORGET_HISTORY, FORGET_REQUEST, FORGET_STUDY, LEDGER_CASE
from segunlearn.records.targets import person_name, same_issuer, split_person, unpad

_COLUMNS = (
    FORGET_REQUEST.c.seq,
    FORGET_REQUEST.c.id,
    FORGET_REQUEST.c.source,
    FORGET_REQUEST.c.target_kind,
    FORGET_REQUEST.c.target_id,
    FORGET_REQUEST.c.issuer,
    FORGET_REQUEST.c.state,
    FORGET_REQUEST.c.is_live,
    FORGET_REQUEST.c.reason,
    FORGET_REQUEST.c.needed,
    FORGET_REQUEST.c.reached,
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A series, a study or a patient, with what it belongs to as far as that is known.

    Parameters
    ----------
    series, study
        UIDs, or the names of folders of files; empty when it is a study, or a patient.
    person
        See :mod:`segunlearn.records.targets`; empty when unknown.
    """

    series: str = ""
    study: str = ""
    person: str = ""


def covering(
    store: Store, connection: Connection, subjects: Sequence[Subject], *, proposals: bool = False
) -> list[list[AnyRow]]:
    """Open requests that cover each subject, the nearest first: series, study, patient.

    A subject is of the person given, of those that training runs recorded for its series or study,
    and of those whose requests keep its study: no mark is lost when an archive changes a PatientID.

    Parameters
    ----------
    store, connection
        An open connection of the store.
    subjects
        Any number; six statements answer for all of them.
    proposals
        Also list proposals; without, only requests that keep the subject out of training.
    """
    wanted: dict[str, set[str]] = {"series": set(), "study": set(), "patient": set()}
    keys: list[tuple[str, str, str, str]] = []
    persons: dict[str, tuple[str, str]] = {}
    for subject in subjects:
        person = persons.get(subject.person)
        if person is None:
            person = persons[subject.person] = split_person(subject.person)
        key = (unpad(subject.series), unpad(subject.study), *person)
        keys.append(key)
        for kind, value in zip(wanted, key[:3], strict=True):
            if value:
                wanted[kind].add(value)
    recorded = [
        _recorded(store, connection, "series", wanted["series"]),
        _recorded(store, connection, "study", wanted["study"]),
    ]
    wanted["patient"].update(r.person_id for by in recorded for rows in by.values() for r in rows)
    found = {
        kind: _open_requests(store, connection, kind, values, proposals)
        for kind, values in wanted.items()
    }
    studies = {r.study for by in recorded for rows in by.values() for r in rows}
    kept = _keeping(store, connection, wanted["study"] | studies, proposals)
    if not kept and not any(found.values()):
        return [[] for _ in keys]
    covers = []
    for series, study, *own in keys:
        known = [*recorded[0].get(series, ()), *recorded[1].get(study, ())]
        rows = [*found["series"].get(series, ()), *found["study"].get(study, ())]
        for patient, issuer in [own, *((r.person_id, r.person_issuer) for r in known)]:
            rows += (r for r in found["patient"].get(patient, ()) if same_issuer(r.issuer, issuer))
        for one in (study, *(r.study for r in known)):
            rows += kept.get(one, ())
        covers.append(list({r.id: r for r in rows}.values()))
    return covers


def _open_requests(
    store: Store, connection: Connection, kind: str, values: set[str], proposals: bool
) -> dict[str, list[AnyRow]]:
    if not values:
        return {}
    query = select(*_COLUMNS, FORGET_REQUEST.c.target_id.label("key")).where(
        FORGET_REQUEST.c.target_kind == kind,
        store.among(FORGET_REQUEST.c.target_id, sorted(values)),
    )
    return _open_by_key(connection, query, proposals)


def _keeping(
    store: Store, connection: Connection, studies: set[str], proposals: bool
) -> dict[str, list[AnyRow]]:
    """Open requests about patients by the studies that are kept with them."""
    if not studies:
        return {}
    query = (
        select(*_COLUMNS, FORGET_STUDY.c.study.label("key"))
        .join(FORGET_REQUEST, FORGET_REQUEST.c.seq == FORGET_STUDY.c.request_seq)
        .where(store.among(FORGET_STUDY.c.study, sorted(studies)))
    )
    return _open_by_key(connection, query, proposals)


def _open_by_key(
    connection: Connection, query: Select[Any], proposals: bool
) -> dict[str, list[AnyRow]]:
    """Open requests among those of a query, by its column ``key``, in the order of the marks."""
    # literal: the partial index serves it
    query = query.where(FORGET_REQUEST.c.is_open == literal_column("1"))
    if not proposals:
        query = query.where(FORGET_REQUEST.c.is_live == 1)
    found: dict[str, list[AnyRow]] = defaultdict(list)
    for row in connection.execute(query.order_by(FORGET_REQUEST.c.seq)):
        found[row.key].append(row)
    return found


def with_known_parents(
    store: Store, connection: Connection, subjects: Sequence[Subject]
) -> list[Subject]:
    """Fill in the study and person of subjects from what training runs recorded.

    The ledger knows every series that was ever used; archives are not asked.
    """
    lacking = [s for s in subjects if not s.person and (s.study or s.series)]
    if not lacking:
        return list(subjects)
    by_series = _recorded(store, connection, "series", {s.series for s in lacking if s.series})
    by_study = _recorded(store, connection, "study", {s.study for s in lacking if s.study})
    result = []
    for subject in subjects:
        known = [*by_study.get(subject.study, ()), *by_series.get(subject.series, ())]
        if known and not subject.person:
            _, study, *person = known[-1]
            subject = Subject(subject.series, subject.study or study, person_name(*person))
        result.append(subject)
    return result


def status_of(
    store: Store, connection: Connection, whole: Sequence[Subject], single: Sequence[Subject]
) -> dict[str, MarkStatus]:
    """Status of studies (``whole``) and series (``single``), by their UID."""
    whole = [replace(s, series="") for s in whole]
    subjects = with_known_parents(store, connection, [*whole, *single])
    covers = covering(store, connection, subjects, proposals=True)
    agreed = agreements(store, connection, [r for rows in covers for r in rows])
    inside = _series_marked(store, connection, {s.study for s in whole})
    result = {}
    for subject, rows in zip(subjects, covers, strict=True):
        brief = []
        for r in rows:
            reason = agreed_reason(agreed.get(r.seq, ("", ""))[1]) or r.reason
            cover = Cover(r.id, r.target_kind, r.state, reason, r.needed, r.reached)
            brief.append((r.is_live, cover))
        live = tuple(cover for is_live, cover in brief if is_live)
        result[subject.series or subject.study] = MarkStatus(
            marked=bool(live),
            covers=live,
            proposals=tuple(cover for is_live, cover in brief if not is_live),
            series_marked=0 if subject.series else inside.get(subject.study, 0),
        )
    return result


def agreements(
    store: Store, connection: Connection, rows: Iterable[AnyRow]
) -> dict[int, tuple[str, str]]:
    """Who agreed to what other systems proposed, and what they said; by ``seq`` of the request."""
    proposed = {r.seq for r in rows if r.source != "person" and r.state != "proposed"}
    if not proposed:
        return {}
    step = FORGET_HISTORY.c
    query = select(step.request_seq, step.actor, step.why).where(
        store.among(step.request_seq, sorted(proposed)),
        step.from_state == "proposed",
        step.to_state == "requested",
    )
    return {seq: (actor, why) for seq, actor, why in connection.execute(query)}


def _series_marked(store: Store, connection: Connection, studies: set[str]) -> dict[str, int]:
    if not studies:
        return {}
    query = (
        select(FORGET_REQUEST.c.study, func.count())
        .where(
            store.among(FORGET_REQUEST.c.study, sorted(studies)),
            FORGET_REQUEST.c.is_live == literal_column("1"),
            FORGET_REQUEST.c.study != literal_column("''"),
        )
        .group_by(FORGET_REQUEST.c.study)
    )
    return {study: int(count) for study, count in connection.execute(query)}


def _recorded(
    store: Store, connection: Connection, column: str, values: set[str]
) -> dict[str, list[AnyRow]]:
    """Look up study and person of series or studies, as often as training runs recorded others."""
    if not values:
        return {}
    case, found = LEDGER_CASE.c, defaultdict[str, list[AnyRow]](list)
    query = select(case[column].label("key"), case.study, case.person_id, case.person_issuer)
    query = query.where(store.among(case[column], sorted(values))).distinct()
    for row in connection.execute(query):
        found[row.key].append(row)
    return found
