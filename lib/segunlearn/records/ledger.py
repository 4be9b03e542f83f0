"""The training ledger: which study shaped which version, append-only and hash-chained.

Each row's digest is the SHA-256 of its canonical JSON, which holds the digest of its list of cases
and the digest of the row before it. ``verify`` recomputes all of it; what it can and cannot find
is said in :mod:`segunlearn.records.ledger_verification`.

Append a run's row before its version is served: a version that is served must be in here. Runs that
failed or were cancelled have a row too, for they read the data.

How it is kept: a hundred thousand runs of five hundred series are fifty million references. A case
(series, study, person, role and digests) is stored once, a list of cases is stored once however
many runs used it, and as few bytes (:mod:`segunlearn.records.case_sets`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from segunlearn.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from segunlearn.records.case_sets import Numbers, decode, encode
from segunlearn.records.chain import ChainHead as LedgerHead
from segunlearn.records.chain import HeadFile
from segunlearn.records.ledger_entries import (
    LedgerCase,
    LedgerEntry,
    cases_digest,
    checked_case,
    row_digest,
)
from segunlearn.records.ledger_index import (
    add_node,
    lineage_members,
    seal_full_blocks,
    sets_holding,
)
from segunlearn.records.ledger_memory import ShapingStudy, cases_of, forget_memory, graph_of
from segunlearn.records.ledger_verification import LedgerFault, find_faults
from segunlearn.records.store import AnyRow, Store, canonical_json, utc_now
from segunlearn.records.tables import (
    LEDGER_CASE,
    LEDGER_HEAD,
    LEDGER_LINEAGE,
    LEDGER_NODE,
    LEDGER_POSTING,
    LEDGER_ROW,
    LEDGER_SET,
)
from segunlearn.records.targets import person_name, same_issuer, split_person, unpad

__all__ = [
    "Ledger",
    "LedgerCase",
    "LedgerEntry",
    "LedgerFault",
    "LedgerHead",
    "LedgerRow",
    "ShapingStudy",
    "Sighting",
]

#: The chain's end, kept a second time outside the database.
HEAD_FILE: Final = "ledger.head"
#: Parents that are followed, at most.
_GENERATIONS: Final = 500


class Sighting(NamedTuple):
    """A version that a study, series or person shaped.

    ``direct``: a run that made it read the data itself; otherwise one of its ancestors did.
    ``seq`` is the row of the (last) run that made it.
    """

    version_sha256: str
    seq: int
    direct: bool


@dataclass(frozen=True)
class LedgerRow:
    """A row as it was recorded; fields as in :class:`LedgerEntry`, its cases are their digest."""

    seq: int
    digest: str
    previous: str
    recorded: str
    run_id: str
    kind: str
    model: str
    version_sha256: str | None
    parent_sha256: str | None
    cases_sha256: str
    cases_count: int
    parameters: Mapping[str, Any]
    seed: int | None
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    started: str
    ended: str
    outcome: str


class Ledger:
    """The ledger in the store.

    Parameters
    ----------
    store
        From :func:`segunlearn.records.store.open_store`.
    head_file
        Where the chain's end is kept a second time, so that rows cut off the end are missed. By
        default ``ledger.head`` beside a SQLite store, and none with PostgreSQL.
    """

    def __init__(self, store: Store, *, head_file: Path | None = None) -> None:
        self._store = store
        if head_file is None and store.path is not None:
            head_file = store.path.with_name(HEAD_FILE)
        self._head_file = head_file

    def append(self, entry: LedgerEntry) -> str:
        """Append a run's row; on return it survives a power cut.

        Appending the same row of the same run again changes nothing and gives the same digest.

        Returns
        -------
        str
            Digest of the row.

        Raises
        ------
        InvalidInputError
            A field is wrong; nothing was appended.
        ConflictError
            The run has another row already.
        """
        with self._store.write() as connection:
            head = self._append(connection, entry)
        self._keep_head(head)
        return head.digest

    def _append(self, connection: Connection, entry: LedgerEntry) -> LedgerHead:
        """Append inside a write transaction; returns the row's place and digest."""
        cases = dict(checked_case(case) for case in entry.cases)
        body = entry.body(cases_digest(list(cases)), len(cases))
        head = self._locked_head(connection)
        known = connection.execute(
            select(LEDGER_ROW.c.seq, LEDGER_ROW.c.body, LEDGER_ROW.c.digest).where(
                LEDGER_ROW.c.run_id == entry.run_id
            )
        ).one_or_none()
        if known is not None:
            return self._same_row(known, body, entry.run_id)
        seq = int(head.rows) + 1
        set_id, counts = self._set_of(connection, head, cases, body["cases_sha256"])
        text = canonical_json({**body, "seq": seq, "previous": head.digest, "recorded": utc_now()})
        digest = row_digest(text)
        connection.execute(
            insert(LEDGER_ROW).values(
                seq=seq,
                run_id=entry.run_id,
                kind=entry.kind,
                model=entry.model,
                version_sha256=entry.version_sha256,
                parent_sha256=entry.parent_sha256,
                set_id=set_id,
                started=entry.started,
                ended=entry.ended,
                outcome=entry.outcome,
                body=text,
                digest=digest,
            )
        )
        add_node(self._store, connection, seq, entry.version_sha256, entry.parent_sha256, set_id)
        connection.execute(update(LEDGER_HEAD).values(rows=seq, digest=digest, **counts))
        seal_full_blocks(connection, counts["sets"], int(head.sealed_blocks))
        return LedgerHead(seq, digest)

    @staticmethod
    def _same_row(known: AnyRow, body: Mapping[str, Any], run_id: str) -> LedgerHead:
        recorded = json.loads(known.body)
        if {k: recorded.get(k) for k in body} != json.loads(canonical_json(body)):
            raise ConflictError(
                f"run {run_id} has a row in the ledger that says otherwise; rows never change. "
                "Start another run."
            )
        return LedgerHead(int(known.seq), str(known.digest))

    def _locked_head(self, connection: Connection) -> AnyRow:
        query = select(LEDGER_HEAD)
        if self._store.dialect == "postgresql":
            query = query.with_for_update()
        return connection.execute(query).one()

    def _set_of(
        self,
        connection: Connection,
        head: AnyRow,
        cases: Mapping[str, LedgerCase],
        digest: str,
    ) -> tuple[int, dict[str, int]]:
        """Find or store the list of cases; returns its number and the new counts."""
        counts = {"cases": int(head.cases), "sets": int(head.sets)}
        set_id = connection.execute(
            select(LEDGER_SET.c.id).where(LEDGER_SET.c.digest == digest)
        ).scalar()
        if set_id is not None:
            return int(set_id), counts
        ids = {
            str(d): int(i)
            for d, i in connection.execute(
                select(LEDGER_CASE.c.digest, LEDGER_CASE.c.id).where(
                    self._store.among(LEDGER_CASE.c.digest, list(cases))
                )
            )
        }
        new = [d for d in cases if d not in ids]
        ids |= {d: counts["cases"] + n for n, d in enumerate(new, 1)}
        rows = [_case_row(ids[d], d, cases[d]) for d in new]
        if rows:
            connection.execute(insert(LEDGER_CASE), rows)
        counts["cases"] += len(new)
        counts["sets"] += 1
        members = encode(np.array(sorted(ids.values()), np.int64))
        connection.execute(
            insert(LEDGER_SET).values(
                id=counts["sets"], digest=digest, size=len(cases), members=members
            )
        )
        return counts["sets"], counts

    def kept_head(self) -> LedgerHead | None:
        """Read the chain's end as it is kept outside the database; None when it is not.

        Raises
        ------
        IntegrityError
            The file is damaged.
        """
        return HeadFile(self._head_file, "ledger").read()

    def _keep_head(self, head: LedgerHead) -> None:
        HeadFile(self._head_file, "ledger").keep(head, self._store, LEDGER_ROW)

    def head(self) -> LedgerHead:
        """Return the chain's end; write it into reports, they then witness all rows up to it."""
        with self._store.read() as connection:
            row = connection.execute(select(LEDGER_HEAD)).one()
        return LedgerHead(int(row.rows), str(row.digest))

    def verify(self, *, witness: LedgerHead | None = None) -> Sequence[LedgerFault]:
        """Recompute every digest; returns all faults, an empty list when there is none.

        Parameters
        ----------
        witness
            A head that was written down elsewhere, e.g. in a signed report: the chain must still
            go through it.

        Notes
        -----
        Linear in the number of rows. See :mod:`segunlearn.records.ledger_verification`.
        """
        noted: list[LedgerFault] = []
        witnesses = [witness] if witness is not None else []
        try:
            kept = self.kept_head()
            witnesses += [kept] if kept is not None else []
        except IntegrityError:
            text = "the note of the chain's end beside the store is damaged."
            noted.append(LedgerFault("witness", 0, text))
        with self._store.read() as connection:
            if self._store.dialect == "postgresql":
                connection.exec_driver_sql(
                    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
                )
            return noted + find_faults(connection, witnesses)

    def row(self, run_id: str) -> LedgerRow:
        """Return the row of a run.

        Raises
        ------
        NotFoundError
            The run has none.
        """
        found = self._rows([LEDGER_ROW.c.run_id == run_id], 1, 0)
        if not found:
            raise NotFoundError(
                f"no row of the ledger belongs to run {str(run_id)[:40]!r}; runs get one when they "
                "end."
            )
        return found[0]

    def rows(
        self,
        *,
        model: str | None = None,
        kind: str | None = None,
        version: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> Sequence[LedgerRow]:
        """Page through rows, newest first; ``version`` is the SHA-256 of what a run made."""
        if not 0 <= limit <= 1000 or not 0 <= offset < 2**62:
            raise InvalidInputError(
                f"limit must lie in 0..1000 and offset be at least 0, got {limit} and {offset}."
            )
        row = LEDGER_ROW.c
        wanted = {row.model: model, row.kind: kind, row.version_sha256: version}
        return self._rows([c == v for c, v in wanted.items() if v is not None], limit, offset)

    def _rows(
        self, where: Sequence[ColumnElement[bool]], limit: int, offset: int
    ) -> Sequence[LedgerRow]:
        query = (
            select(LEDGER_ROW.c.body, LEDGER_ROW.c.digest)
            .where(*where)
            .order_by(LEDGER_ROW.c.seq.desc())
            .limit(limit)
            .offset(offset)
        )
        with self._store.read() as connection:
            found = connection.execute(query).all()
        return [LedgerRow(digest=digest, **json.loads(body)) for body, digest in found]

    def cases_of(self, run_id: str) -> Sequence[LedgerCase]:
        """Return the cases that one run read.

        Raises
        ------
        NotFoundError
            The run has no row.
        """
        query = (
            select(LEDGER_SET.c.members)
            .join(LEDGER_ROW, LEDGER_ROW.c.set_id == LEDGER_SET.c.id)
            .where(LEDGER_ROW.c.run_id == run_id)
        )
        with self._store.read() as connection:
            members = connection.execute(query).scalar()
            if members is not None:
                return self._cases(connection, decode(members))
        self.row(run_id)  # raises
        return []

    def issuers_of(self, patient_id: str) -> set[str]:
        """Issuers of a PatientID among all cases, the empty one for cases without."""
        case, (patient, _) = LEDGER_CASE.c, split_person(patient_id)
        query = select(case.person_issuer).where(case.person_id == patient).distinct()
        with self._store.read() as connection:
            return set(connection.execute(query).scalars())

    def versions_that_saw(
        self,
        *,
        study: str | None = None,
        series: str | None = None,
        person: str | None = None,
        studies: Collection[str] = (),
    ) -> Sequence[Sighting]:
        """Versions that a study, series or person shaped, through any chain of parents.

        Every role counts, validation too. A version that was unlearned from one that saw the
        study is named as well: its request says what became of it.

        Parameters
        ----------
        study, series, person
            Exactly one of them. A person without issuer means every issuer.
        studies
            That count as well, as a forget request keeps them with a patient.

        Returns
        -------
        list of Sighting
            Each version once, in the order of the rows that made them.
        """
        given = {k: v for k, v in {"study": study, "series": series}.items() if v is not None}
        if len(given) + (person is not None) != 1:
            raise InvalidInputError("ask for exactly one of study, series and person.")
        with self._store.read() as connection:
            case = LEDGER_CASE.c
            if person is not None:
                patient, issuer = split_person(person)
                query = select(case.id, case.person_issuer).where(case.person_id == patient)
                cases = [int(i) for i, own in connection.execute(query) if same_issuer(own, issuer)]
            else:
                ((column, value),) = given.items()
                query = select(case.id, case.id).where(case[column] == unpad(value))
                cases = [int(i) for i, _ in connection.execute(query)]
            if studies:
                also = select(case.id).where(self._store.among(case.study, sorted(studies)))
                cases = sorted({*cases, *map(int, connection.execute(also).scalars())})
            if not cases:
                return []
            sealed = connection.execute(select(LEDGER_HEAD.c.sealed_blocks)).scalar_one()
            holding = sets_holding(self._store, connection, cases, int(sealed))
            graph = graph_of(self._store, connection)
        direct = np.isin(graph.sets, holding)
        direct[0] = False
        seen = np.flatnonzero(graph.descendants(direct)).tolist()
        names = [graph.versions[seq] for seq in seen]
        sightings = list(map(Sighting, names, seen, direct[seen].tolist()))
        if graph.twins.any():
            sightings = _each_once(sightings)
        return [s for s in sightings if s[0]]  # without runs that made no version

    def studies_of(self, version_sha256: str) -> Sequence[ShapingStudy]:
        """Studies that shaped a version, its own run's and those of all its ancestors.

        Returns
        -------
        list of ShapingStudy
            In the order in which the ledger first met them. Studies of an ancestor that the
            ledger does not know are missing.

        Raises
        ------
        NotFoundError
            No row made this version.
        """
        with self._store.read() as connection:
            members = self._lineage(connection, version_sha256)
            return cases_of(self._store, connection).shaping(members)

    def with_parents(self, row: LedgerRow) -> Iterator[LedgerRow]:
        """Give a row, that of its parent, and so on: to the root, or to a parent without a row."""
        for _ in range(_GENERATIONS):
            yield row
            parents = row.parent_sha256 and self.rows(
                model=row.model, version=row.parent_sha256, limit=1
            )
            if not parents:
                return
            row = parents[0]

    def lineage_cases(self, version_sha256: str) -> Sequence[LedgerCase]:
        """Cases that shaped a version, its own run's and those of all its ancestors.

        Raises
        ------
        NotFoundError
            No row made this version.
        """
        with self._store.read() as connection:
            return self._cases(connection, self._lineage(connection, version_sha256))

    def _lineage(self, connection: Connection, version: str) -> Numbers:
        seqs = connection.execute(
            select(LEDGER_NODE.c.seq).where(LEDGER_NODE.c.version_sha256 == version)
        ).scalars()
        made = [int(s) for s in seqs] if version else []
        if not made:
            raise NotFoundError(
                f"no row of the ledger made version {str(version)[:16]!r}: it came from elsewhere, "
                "or its digest is mistyped."
            )
        return lineage_members(self._store, connection, made)

    def _cases(self, connection: Connection, members: Numbers) -> Sequence[LedgerCase]:
        query = (
            select(LEDGER_CASE)
            .where(self._store.among(LEDGER_CASE.c.id, members.tolist()))
            .order_by(LEDGER_CASE.c.id)
        )
        return [
            LedgerCase(
                r.series,
                r.study,
                person_name(r.person_id, r.person_issuer),
                r.role,
                r.image_digest,
                r.label_digest,
            )
            for r in connection.execute(query)
        ]

    def rebuild_index(self) -> None:
        """Make the derived tables again from the rows; the rows themselves are not touched."""
        with self._store.write() as connection:
            head = self._locked_head(connection)
            for table in (LEDGER_POSTING, LEDGER_LINEAGE, LEDGER_NODE):
                connection.execute(delete(table))
            connection.execute(update(LEDGER_HEAD).values(sealed_blocks=0))
            row = LEDGER_ROW.c
            query = select(row.seq, row.version_sha256, row.parent_sha256, row.set_id)
            for seq, version, parent, set_id in connection.execute(query.order_by(row.seq)).all():
                add_node(self._store, connection, int(seq), version, parent, int(set_id))
            seal_full_blocks(connection, int(head.sets), 0)
        forget_memory(self._store)


def _each_once(sightings: Sequence[Sighting]) -> list[Sighting]:
    """Keep the last row of each version, direct when any of its rows was."""
    found: dict[str, Sighting] = {}
    for sighting in sightings:
        earlier = found.pop(sighting.version_sha256, sighting)
        found[sighting.version_sha256] = sighting._replace(direct=sighting.direct or earlier.direct)
    return list(found.values())


def _case_row(number: int, digest: str, case: LedgerCase) -> dict[str, Any]:
    person_id, person_issuer = split_person(case.person)
    return {
        "id": number,
        "digest": digest,
        "series": case.series,
        "study": case.study,
        "person_id": person_id,
        "person_issuer": person_issuer,
        "role": case.role,
        "image_digest": case.image_digest,
        "label_digest": case.label_digest,
    }
