"""Finding what was changed in the ledger behind its back.

Found, with nothing but the database
    a row, a list of cases or a case that was changed, removed, inserted, moved or exchanged,
    with or without its own digest; rows cut off the end; and any disagreement of the derived
    tables (which would hide a study from the queries) with the rows.

Found only with a witness
    a database that was made again as a whole from some row on, all digests recomputed, or an old
    copy of it. The witness is ``ledger.head`` beside a SQLite store, which no later row replaces
    once the chain does not go through it, and better a head (``Ledger.head``) that was written into
    a signed report or printed: whoever can write the database can often write the file beside it
    as well.

Never found
    a run that was not recorded at all, and rows that were rewritten after the newest witness.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Table, select

from segunlearn.errors import IntegrityError
from segunlearn.records.case_sets import Numbers, decode, union
from segunlearn.records.ledger_entries import GENESIS, LedgerCase, cases_digest, row_digest
from segunlearn.records.ledger_index import BLOCK, block_postings
from segunlearn.records.store import AnyRow, canonical_json
from segunlearn.records.tables import (
    LEDGER_CASE,
    LEDGER_HEAD,
    LEDGER_LINEAGE,
    LEDGER_NODE,
    LEDGER_POSTING,
    LEDGER_ROW,
    LEDGER_SET,
)
from segunlearn.records.targets import person_name

#: Columns of a row that repeat what its body says.
_REPEATED: Final = (
    "run_id",
    "kind",
    "model",
    "version_sha256",
    "parent_sha256",
    "started",
    "ended",
    "outcome",
)


@dataclass(frozen=True)
class LedgerFault:
    """Something in the ledger that is not as it was written.

    Parameters
    ----------
    kind
        ``row-changed``, ``row-removed``, ``row-moved``, ``chain-broken``, ``row-added``,
        ``truncated``, ``rewritten``, ``list-changed``, ``list-removed``, ``case-changed``,
        ``case-removed``, ``index`` or ``witness``.
    number
        Of the row, list or case.
    message
        One sentence, without identifiers of patients.
    """

    kind: str
    number: int
    message: str


@dataclass
class _Chain:
    """What was read on the way through the rows."""

    digests: list[str]
    """By row; index 0 is the digest before the first row."""
    links: dict[int, tuple[str | None, str | None, int]]
    """Row -> (version, parent, list of cases)."""


def find_faults(connection: Connection, witnesses: Sequence[Any]) -> list[LedgerFault]:
    """Read all of the ledger and return its faults.

    Parameters
    ----------
    connection
        Sees one consistent state.
    witnesses
        Heads, with ``rows`` and ``digest``, that the chain must go through.
    """
    head = connection.execute(select(LEDGER_HEAD)).one_or_none()
    if head is None:
        return [LedgerFault("truncated", 0, "the row that keeps the chain's end was removed.")]
    digests, faults = _check_cases(connection, int(head.cases))
    lists, list_faults = _check_lists(connection, int(head.sets), digests)
    chain, row_faults = _check_rows(connection, {i: d for i, (d, _) in lists.items()})
    faults += list_faults + row_faults
    faults += _check_head(head, chain, witnesses)
    faults += _check_nodes(connection, chain)
    faults += _check_postings(connection, int(head.sets), int(head.sealed_blocks))
    faults += _check_lineage(connection, {i: m for i, (_, m) in lists.items()})
    return faults


def _read(connection: Connection, table: Table, *order: str) -> Iterator[AnyRow]:
    query = select(table).order_by(*(table.c[name] for name in order))
    return iter(connection.execution_options(yield_per=5000).execute(query))


def _check_cases(connection: Connection, count: int) -> tuple[dict[int, str], list[LedgerFault]]:
    """Digest of each case as it is stored, and what is wrong with them."""
    digests, faults = {}, []
    for row in _read(connection, LEDGER_CASE, "id"):
        case = LedgerCase(
            row.series,
            row.study,
            person_name(row.person_id, row.person_issuer),
            row.role,
            row.image_digest,
            row.label_digest,
        )
        digests[int(row.id)] = str(row.digest)
        if case.digest() != row.digest:
            faults.append(
                LedgerFault("case-changed", row.id, f"case {row.id} is not what was recorded.")
            )
        elif row.id > count:
            faults.append(LedgerFault("row-added", row.id, f"case {row.id} was put in by hand."))
    missing = [i for i in range(1, count + 1) if i not in digests]
    faults += [LedgerFault("case-removed", i, f"case {i} was removed.") for i in missing]
    return digests, faults


def _check_lists(
    connection: Connection, count: int, digests: dict[int, str]
) -> tuple[dict[int, tuple[str, bytes]], list[LedgerFault]]:
    """(digest, members) of each list of cases, and what is wrong with them."""
    lists: dict[int, tuple[str, bytes]] = {}
    faults = []
    for row in _read(connection, LEDGER_SET, "id"):
        lists[int(row.id)] = (str(row.digest), bytes(row.members))
        try:
            members = decode(row.members).tolist()
            agrees = len(members) == row.size and (
                cases_digest([digests[i] for i in members]) == row.digest
            )
        except (IntegrityError, KeyError):
            agrees = False
        if not agrees or row.id > count:
            faults.append(
                LedgerFault(
                    "list-changed",
                    row.id,
                    f"list of cases {row.id}, or a case in it, is not what was recorded.",
                )
            )
    missing = [i for i in range(1, count + 1) if i not in lists]
    faults += [LedgerFault("list-removed", i, f"list of cases {i} was removed.") for i in missing]
    return lists, faults


def _check_rows(connection: Connection, lists: dict[int, str]) -> tuple[_Chain, list[LedgerFault]]:
    chain, faults = _Chain([GENESIS], {}), []
    previous: str | None = GENESIS
    for row in _read(connection, LEDGER_ROW, "seq"):
        seq = int(row.seq)
        if seq > len(chain.digests):
            first, last = len(chain.digests), seq - 1
            rows = f"row {first} was" if first == last else f"rows {first} to {last} were"
            faults.append(LedgerFault("row-removed", first, f"{rows} removed."))
            chain.digests += [""] * (last - first + 1)
            previous = None  # the digest before this row cannot be known
        fault = _fault_of_row(row, previous, lists)
        if fault is not None:
            faults.append(fault)
        previous = str(row.digest)
        chain.digests.append(previous)
        chain.links[seq] = (row.version_sha256, row.parent_sha256, int(row.set_id))
    return chain, faults


def _fault_of_row(row: AnyRow, previous: str | None, lists: dict[int, str]) -> LedgerFault | None:
    seq = int(row.seq)
    changed = LedgerFault("row-changed", seq, f"row {seq} is not what was recorded.")
    try:
        body = json.loads(row.body)
    except ValueError:
        return changed
    if (
        not isinstance(body, dict)
        or row_digest(row.body) != row.digest
        or canonical_json(body) != row.body
        or any(body.get(name) != row._mapping[name] for name in _REPEATED)
    ):
        return changed
    if body.get("cases_sha256") != lists.get(int(row.set_id)):
        return LedgerFault("row-changed", seq, f"row {seq} points to another list of cases.")
    if body.get("seq") != seq:
        return LedgerFault(
            "row-moved", seq, f"row {seq} was recorded as row {body.get('seq')}: rows were moved."
        )
    if previous is not None and body.get("previous") != previous:
        return LedgerFault(
            "chain-broken",
            seq,
            f"row {seq} does not follow row {seq - 1}: one of them was changed, inserted or moved "
            "and its digest computed anew.",
        )
    return None


def _check_head(head: AnyRow, chain: _Chain, witnesses: Sequence[Any]) -> list[LedgerFault]:
    faults, rows = [], len(chain.digests) - 1
    if rows > head.rows:
        text = f"rows after row {head.rows} were put in by hand."
        faults.append(LedgerFault("row-added", int(head.rows) + 1, text))
    for rows_then, digest, who in (
        (int(head.rows), str(head.digest), "the store's own note"),
        *((int(w.rows), str(w.digest), "a witness outside the store") for w in witnesses),
    ):
        if rows_then > rows:
            text = f"{who} tells of {rows_then} rows, and there are {rows}: the end was cut off."
            faults.append(LedgerFault("truncated", rows + 1, text))
        elif chain.digests[rows_then] not in ("", digest):
            text = f"row {rows_then} is not the one that {who} tells of: the chain was rewritten."
            faults.append(LedgerFault("rewritten", rows_then, text))
    return faults


def _check_nodes(connection: Connection, chain: _Chain) -> list[LedgerFault]:
    """Compare the graph of parents with what the rows tell in the order they came."""
    makers: dict[str, int] = {}
    expected: dict[int, tuple[str, str, int, int, int]] = {}
    made_later: dict[str, list[int]] = {}
    for seq, (version, parent, set_id) in chain.links.items():
        parent_seq = makers.get(parent or "", 0)
        twin_seq = makers.get(version or "", 0)
        expected[seq] = (version or "", parent or "", set_id, parent_seq, twin_seq)
        if version:
            makers[version] = seq
            made_later.setdefault(version, []).append(seq)
    wrong = []
    for row in _read(connection, LEDGER_NODE, "seq"):
        found = (row.version_sha256, row.parent_sha256, row.set_id, row.parent_seq, row.twin_seq)
        should = expected.pop(int(row.seq), None)
        adopted = (
            should is not None
            and should[3] == 0
            and row.parent_seq in made_later.get(should[1], ())
            and found == (*should[:3], row.parent_seq, should[4])
        )
        if found != should and not adopted:
            wrong.append(int(row.seq))
    wrong += list(expected)
    return [
        LedgerFault("index", seq, f"the index does not agree with row {seq}; rebuild it.")
        for seq in sorted(wrong)
    ]


def _check_postings(connection: Connection, sets: int, sealed: int) -> list[LedgerFault]:
    faults = []
    if sealed != (sets + 1) // BLOCK:
        faults.append(LedgerFault("index", 0, "the index of cases is not complete; rebuild it."))
    for block in range(sealed):
        query = select(LEDGER_POSTING.c.case_id, LEDGER_POSTING.c.sets)
        rows = connection.execute(query.where(LEDGER_POSTING.c.block == block))
        found = {int(case): bytes(data) for case, data in rows}
        try:
            should = {r["case_id"]: r["sets"] for r in block_postings(connection, block)}
        except IntegrityError:
            continue  # the list is reported as changed
        if found != should:
            text = f"the index of cases does not agree with block {block} of lists; rebuild it."
            faults.append(LedgerFault("index", block, text))
    return faults


def _check_lineage(connection: Connection, lists: dict[int, bytes]) -> list[LedgerFault]:
    nodes = {
        int(seq): (int(parent), int(twin), int(set_id))
        for seq, parent, twin, set_id in connection.execute(
            select(
                LEDGER_NODE.c.seq,
                LEDGER_NODE.c.parent_seq,
                LEDGER_NODE.c.twin_seq,
                LEDGER_NODE.c.set_id,
            )
        )
    }
    right: dict[int, bytes] = {}
    faults = []
    for row in _read(connection, LEDGER_LINEAGE, "seq"):
        seq = int(row.seq)
        try:
            members = _members_along(seq, nodes, lists, right)
            agrees = np.array_equal(decode(row.members), members)
        except (IntegrityError, KeyError):
            agrees = False
        if agrees:
            right[seq] = bytes(row.members)
        else:
            text = f"the collected studies at row {seq} do not agree with its rows; rebuild it."
            faults.append(LedgerFault("index", seq, text))
    return faults


def _members_along(
    seq: int,
    nodes: dict[int, tuple[int, int, int]],
    lists: dict[int, bytes],
    right: dict[int, bytes],
) -> Numbers:
    parts: list[Numbers] = []
    frontier, done = {seq}, set[int]()
    while frontier:
        current = frontier.pop()
        done.add(current)
        if current in right:
            parts.append(decode(right[current]))
            continue
        parent, twin, set_id = nodes[current]
        parts.append(decode(lists[set_id]))
        frontier |= {parent, twin} - done - {0}
    return union(parts)
