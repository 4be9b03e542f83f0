"""What is derived from the ledger's rows to answer fast, and can be made again from them.

Three tables. ``ledger_node`` is the graph of rows: each knows the newest earlier row that made its
parent's weights, and the newest earlier row that made the same weights as itself (a restored
version has two makers). ``ledger_posting`` tells for each case, by blocks of ``BLOCK`` case lists,
which lists hold it; the last, unfinished block is read from the lists themselves.
``ledger_lineage`` holds, every ``HOPS`` steps along a chain of parents, all cases of the row and
its ancestors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, delete, insert, select, update

from segunlearn.records.case_sets import Numbers, decode, encode, invert, union
from segunlearn.records.ledger_memory import forget_memory
from segunlearn.records.store import Store
from segunlearn.records.tables import (
    LEDGER_HEAD,
    LEDGER_LINEAGE,
    LEDGER_NODE,
    LEDGER_POSTING,
    LEDGER_SET,
)

#: Case lists in one block of postings.
BLOCK: Final = 1024
#: Steps between two rows whose lineage is stored.
HOPS: Final = 64


def sets_holding(
    store: Store, connection: Connection, cases: Sequence[int], sealed: int
) -> Numbers:
    """Numbers of all case lists that hold one of the cases."""
    if not cases:
        return np.empty(0, np.int64)
    found = [np.empty(0, np.int64)]
    for block, data in connection.execute(
        select(LEDGER_POSTING.c.block, LEDGER_POSTING.c.sets).where(
            store.among(LEDGER_POSTING.c.case_id, list(cases)), LEDGER_POSTING.c.block < sealed
        )
    ):
        found.append(decode(data) + int(block) * BLOCK)
    wanted = np.asarray(cases, np.int64)
    open_lists = connection.execute(
        select(LEDGER_SET.c.id, LEDGER_SET.c.members).where(LEDGER_SET.c.id >= sealed * BLOCK)
    ).all()
    if open_lists:
        members = [decode(data) for _, data in open_lists]
        owners = np.repeat([int(i) for i, _ in open_lists], [len(m) for m in members])
        found.append(owners[np.isin(np.concatenate(members), wanted)])
    return union(found)


def lineage_members(store: Store, connection: Connection, seqs: Iterable[int]) -> Numbers:
    """All cases of some rows and of their ancestors."""
    parts: list[Numbers] = []
    done: set[int] = set()
    frontier = set(seqs)
    query = (
        select(
            LEDGER_NODE.c.seq,
            LEDGER_NODE.c.parent_seq,
            LEDGER_NODE.c.twin_seq,
            LEDGER_LINEAGE.c.members,
            LEDGER_SET.c.members.label("own"),
        )
        .join(LEDGER_SET, LEDGER_SET.c.id == LEDGER_NODE.c.set_id)
        .outerjoin(LEDGER_LINEAGE, LEDGER_LINEAGE.c.seq == LEDGER_NODE.c.seq)
    )
    while frontier:
        done |= frontier
        step = (
            LEDGER_NODE.c.seq == next(iter(frontier))
            if len(frontier) == 1
            else store.among(LEDGER_NODE.c.seq, sorted(frontier))
        )
        ahead: set[int] = set()
        for row in connection.execute(query.where(step)):
            if row.members is not None:
                parts.append(decode(row.members))
            else:
                parts.append(decode(row.own))
                ahead |= {int(row.parent_seq), int(row.twin_seq)}
        frontier = ahead - done - {0}
    return union(parts)


def add_node(
    store: Store,
    connection: Connection,
    seq: int,
    version: str | None,
    parent: str | None,
    set_id: int,
) -> None:
    """Index a row that was just appended."""
    parent_seq, parent_hops = _maker(connection, parent, seq)
    twin_seq, twin_hops = _maker(connection, version, seq)
    hops = max(parent_hops, twin_hops) + 1
    connection.execute(
        insert(LEDGER_NODE).values(
            seq=seq,
            version_sha256=version or "",
            parent_sha256=parent or "",
            set_id=set_id,
            parent_seq=parent_seq,
            twin_seq=twin_seq,
            hops=0 if hops >= HOPS else hops,
        )
    )
    if hops >= HOPS:
        members = encode(lineage_members(store, connection, [seq]))
        connection.execute(insert(LEDGER_LINEAGE).values(seq=seq, members=members))
    if version:
        _adopt_orphans(store, connection, seq, version)


def _maker(connection: Connection, version: str | None, before: int) -> tuple[int, int]:
    """(seq, hops) of the newest row before ``before`` that made a version; (0, 0) if none."""
    if not version:
        return 0, 0
    row = connection.execute(
        select(LEDGER_NODE.c.seq, LEDGER_NODE.c.hops)
        .where(LEDGER_NODE.c.version_sha256 == version, LEDGER_NODE.c.seq < before)
        .order_by(LEDGER_NODE.c.seq.desc())
        .limit(1)
    ).one_or_none()
    return (int(row.seq), int(row.hops)) if row is not None else (0, 0)


def _adopt_orphans(store: Store, connection: Connection, seq: int, version: str) -> None:
    """Link rows that named this version as their parent before it was recorded.

    Ancestors of this row are left out: a version that is restored after it came from outside
    the ledger names itself through its descendants, and that is no lineage.
    """
    orphans = connection.execute(
        select(LEDGER_NODE.c.seq).where(
            LEDGER_NODE.c.parent_sha256 == version,
            LEDGER_NODE.c.parent_seq == 0,
            LEDGER_NODE.c.seq < seq,
        )
    ).scalars()
    late = {int(s) for s in orphans}
    late -= _ancestors(connection, seq) if late else set()
    if not late:
        return
    connection.execute(
        update(LEDGER_NODE)
        .where(store.among(LEDGER_NODE.c.seq, sorted(late)))
        .values(parent_seq=seq)
    )
    connection.execute(delete(LEDGER_LINEAGE))  # slower until rebuild_index, never wrong
    forget_memory(store)


def _ancestors(connection: Connection, seq: int) -> set[int]:
    links = {
        int(s): (int(p), int(t))
        for s, p, t in connection.execute(
            select(LEDGER_NODE.c.seq, LEDGER_NODE.c.parent_seq, LEDGER_NODE.c.twin_seq)
        )
    }
    found: set[int] = set()
    frontier = {seq}
    while frontier:
        found |= frontier
        frontier = {a for s in frontier for a in links.get(s, ()) if a} - found
    return found


def seal_full_blocks(connection: Connection, sets: int, sealed: int) -> int:
    """Write the postings of every block that is full.

    Parameters
    ----------
    sets
        Number of the newest case list; they count from 1.
    sealed
        Blocks that are written.

    Returns
    -------
    int
        Blocks that are written now.
    """
    while sets >= (sealed + 1) * BLOCK - 1:
        for rows in _batches(block_postings(connection, sealed), 10_000):
            connection.execute(insert(LEDGER_POSTING), rows)
        sealed += 1
        connection.execute(update(LEDGER_HEAD).values(sealed_blocks=sealed))
    return sealed


def block_postings(connection: Connection, block: int) -> list[dict[str, Any]]:
    """Compute the postings of one block from the case lists."""
    lists = connection.execute(
        select(LEDGER_SET.c.id, LEDGER_SET.c.members)
        .where(LEDGER_SET.c.id >= block * BLOCK, LEDGER_SET.c.id < (block + 1) * BLOCK)
        .order_by(LEDGER_SET.c.id)
    ).all()
    inverted = invert([(int(i) - block * BLOCK, decode(data)) for i, data in lists])
    return [{"case_id": c, "block": block, "sets": encode(owners)} for c, owners in inverted]


def _batches(rows: list[dict[str, Any]], size: int) -> Iterable[list[dict[str, Any]]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))
