"""Studies that stood under a marked patient's number: its request covers them under any other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from segunlearn.records.coverage import Subject
from segunlearn.records.store import AnyRow, Store
from segunlearn.records.tables import FORGET_STUDY, LEDGER_CASE
from segunlearn.records.targets import is_of_dicom, same_issuer, unpad


def kept_with(
    store: Store, connection: Connection, seqs: Collection[int]
) -> dict[int, tuple[str, ...]]:
    """Studies that are kept with requests, in the order of their UIDs."""
    if not seqs:
        return {}
    row, found = FORGET_STUDY.c, defaultdict[int, list[str]](list)
    query = select(row.request_seq, row.study).where(store.among(row.request_seq, sorted(seqs)))
    for seq, study in connection.execute(query.order_by(row.request_seq, row.study)):
        found[seq].append(study)
    return {seq: tuple(studies) for seq, studies in found.items()}


def still_to_keep(
    store: Store, connection: Connection, request: AnyRow, studies: Iterable[str]
) -> list[str]:
    """Those of some studies that are to be kept with a request and are not yet; sorted.

    With them those that runs recorded of the patient. One that runs recorded of another issuer's
    patient of this number is left out: whoever listed it did not know the issuer.

    Parameters
    ----------
    store, connection
        An open connection of the store.
    request
        Its row; a request that is closed, or about no patient, keeps none.
    studies
        That stand under the patient's number now.
    """
    if request.target_kind != "patient" or not request.is_open:
        return []
    case = LEDGER_CASE.c
    query = select(case.study, case.person_issuer).where(case.person_id == request.target_id)
    own, others = set[str](), set[str]()
    for study, issuer in connection.execute(query.distinct()):
        (own if same_issuer(issuer, request.issuer) else others).add(study)
    found = ({unpad(s) for s in studies} - others) | own
    known = kept_with(store, connection, [request.seq]).get(request.seq, ())
    return sorted(found - {"", *known})


def keep(
    store: Store, connection: Connection, request: AnyRow, studies: Sequence[str], now: str
) -> None:
    """Put studies to a request; those that it has stay as they are."""
    if not studies:
        return
    dialect: Any = postgresql if store.dialect == "postgresql" else sqlite
    rows = [{"request_seq": request.seq, "study": study, "added": now} for study in studies]
    connection.execute(dialect.insert(FORGET_STUDY).on_conflict_do_nothing(), rows)


def met_now(
    store: Store,
    connection: Connection,
    subjects: Sequence[Subject],
    covers: Sequence[Sequence[AnyRow]],
) -> dict[str, set[str]]:
    """Studies of DICOM that patients' requests cover and do not keep yet, by the request's id.

    Parameters
    ----------
    store, connection
        An open connection of the store.
    subjects, covers
        As :func:`segunlearn.records.coverage.covering` takes and gives them.
    """
    found: dict[tuple[int, str], set[str]] = {}
    for subject, rows in zip(subjects, covers, strict=True):
        study = unpad(subject.study)
        for row in rows:
            if row.target_kind == "patient" and is_of_dicom(study):
                found.setdefault((row.seq, row.id), set()).add(study)
    kept = kept_with(store, connection, [seq for seq, _ in found])
    new = {id_: studies.difference(kept.get(seq, ())) for (seq, id_), studies in found.items()}
    return {request_id: studies for request_id, studies in new.items() if studies}
