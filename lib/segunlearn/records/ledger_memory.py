"""The ledger's graph and cases in memory: read once, then only what was added.

Rows and cases never change, so what was read stays true in every process; a new process reads a
hundred thousand rows in about a tenth of a second.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import Connection

from segunlearn.records.case_sets import Numbers
from segunlearn.records.ledger_entries import ROLES
from segunlearn.records.store import Store
from segunlearn.records.targets import person_name

#: Above the number of roles: a study and a role are one number.
_ROLE_BASE: Final = 64


@dataclass
class Graph:
    """All rows of the ledger in memory, as far as they were read; rows never change."""

    versions: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    twins: list[int] = field(default_factory=list)
    sets: list[int] = field(default_factory=list)
    late: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read_on(self, connection: Connection) -> None:
        """Read the rows that were added since the last time."""
        known = len(self.versions)
        # The driver's own tuples: a hundred thousand rows are read in a tenth of a second.
        result = connection.exec_driver_sql(
            "SELECT seq, version_sha256, parent_seq, twin_seq, set_id FROM ledger_node "
            f"WHERE seq > {known:d} ORDER BY seq"
        )
        rows = list(result.cursor.fetchall())
        result.close()
        if not rows:
            return
        seqs, versions, parents, twins, sets = zip(*rows, strict=True)
        if seqs != tuple(range(known + 1, known + 1 + len(rows))):
            rows = [r for r in rows if r[0] >= 1]
            self._read_with_gaps(rows)
            return
        self.versions += versions
        self.parents += parents
        self.twins += twins
        self.sets += sets
        self.late = self.late or any(p > s for s, p in zip(seqs, parents, strict=True))

    def _read_with_gaps(self, rows: Sequence[Any]) -> None:
        """Rows were removed behind our back: keep the others in their places."""
        for seq, version, parent, twin, set_id in rows:
            while len(self.versions) < seq - 1:
                self.versions.append("")
                self.parents.append(0)
                self.twins.append(0)
                self.sets.append(0)
            self.versions.append(version)
            self.parents.append(parent)
            self.twins.append(twin)
            self.sets.append(set_id)
            self.late = self.late or parent > seq

    def descendants(self, direct: Numbers) -> list[bool]:
        """For each row (index = seq; 0 is unused) whether it or an ancestor is in ``direct``."""
        seen = [False] * (len(self.versions) + 1)
        for seq in direct.tolist():
            seen[seq] = True
        first = int(direct.min()) if len(direct) else len(seen)
        changed = True
        while changed:
            changed = False
            start = 1 if self.late else first
            links = zip(self.parents[start - 1 :], self.twins[start - 1 :], strict=True)
            for seq, (parent, twin) in enumerate(links, start):
                if not seen[seq] and (seen[parent] or seen[twin]):
                    seen[seq] = True
                    changed = self.late
        return seen


class ShapingStudy(NamedTuple):
    """A study that shaped a version, and what it was used for on the way."""

    study: str
    person: str
    roles: tuple[str, ...]


@dataclass
class Cases:
    """Study and role of every case, by its number."""

    studies: list[tuple[str, str]] = field(default_factory=list)
    """(study, person), each once."""
    numbers: dict[tuple[str, str, str], int] = field(default_factory=dict)
    study_of: array[int] = field(default_factory=lambda: array("q", [0]))
    """By case (index 0 is unused), its place in ``studies``."""
    role_of: array[int] = field(default_factory=lambda: array("q", [0]))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read_on(self, connection: Connection) -> None:
        """Read the cases that were added since the last time."""
        result = connection.exec_driver_sql(
            "SELECT id, study, person_id, person_issuer, role FROM ledger_case "
            f"WHERE id >= {len(self.study_of):d} ORDER BY id"
        )
        rows = result.cursor.fetchall()
        result.close()
        roles = {role: n for n, role in enumerate(ROLES)}
        for number, study, patient, issuer, role in rows:
            missing = number - len(self.study_of)
            if missing:  # removed behind our back; keep the others in their places
                self.study_of.extend([0] * missing)
                self.role_of.extend([0] * missing)
            key = (study, patient, issuer)
            place = self.numbers.setdefault(key, len(self.studies))
            if place == len(self.studies):
                self.studies.append((study, person_name(patient, issuer)))
            self.study_of.append(place)
            self.role_of.append(roles[role])

    def shaping(self, members: Numbers) -> list[ShapingStudy]:
        """Studies of some cases with their roles, in the order they were first recorded."""
        with self.lock:
            places = np.array(self.study_of, np.int64)[members]
            roles = np.array(self.role_of, np.int64)[members]
        pairs = np.unique(places * _ROLE_BASE + roles)
        places, starts = np.unique(pairs // _ROLE_BASE, return_index=True)
        masks = np.bitwise_or.reduceat(1 << pairs % _ROLE_BASE, starts) if len(pairs) else places
        names = {
            mask: tuple(sorted(r for n, r in enumerate(ROLES) if mask >> n & 1))
            for mask in np.unique(masks).tolist()
        }
        return [
            ShapingStudy(self.studies[place][0], self.studies[place][1], names[mask])
            for place, mask in zip(places.tolist(), masks.tolist(), strict=True)
        ]


@dataclass
class _Memory:
    graph: Graph = field(default_factory=Graph)
    cases: Cases = field(default_factory=Cases)


_memories: weakref.WeakKeyDictionary[Store, _Memory] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def graph_of(store: Store, connection: Connection) -> Graph:
    """Return the graph of a store's ledger, read up to now."""
    with _lock:
        graph = _memories.setdefault(store, _Memory()).graph
    with graph.lock:
        graph.read_on(connection)
    return graph


def cases_of(store: Store, connection: Connection) -> Cases:
    """Return the cases of a store's ledger, read up to now."""
    with _lock:
        cases = _memories.setdefault(store, _Memory()).cases
    with cases.lock:
        cases.read_on(connection)
    return cases


def forget_memory(store: Store) -> None:
    """Read everything from the start next time."""
    with _lock:
        _memories.pop(store, None)
