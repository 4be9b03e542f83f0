"""The ledger's graph and cases in memory: read once, then only what was added.

Rows and cases never change, so what was read stays true in every process; a new process reads a
hundred thousand rows in about a tenth of a second.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from segunlearn.records.case_sets import Numbers
from segunlearn.records.ledger_entries import ROLES
from segunlearn.records.store import Store
from segunlearn.records.targets import person_name

#: Above the number of roles: a study and a role are one number.
_ROLE_BASE: Final = 64


@dataclass
class Graph:
    """All rows of the ledger as far as they were read; the arrays' index is the row's number.

    Row 0 is none: it has no version and is its own parent, so that links end there.
    """

    versions: list[str] = field(default_factory=lambda: [""])
    parents: Numbers = field(default_factory=lambda: np.zeros(1, np.int64))
    twins: Numbers = field(default_factory=lambda: np.zeros(1, np.int64))
    sets: Numbers = field(default_factory=lambda: np.zeros(1, np.int64))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read_on(self, connection: Connection) -> None:
        """Read the rows that were added since the last time."""
        known = len(self.versions)
        columns = ("seq", "parent_seq", "twin_seq", "set_id", "version_sha256")
        # One text a column: making rows of a hundred thousand would take longer than the query.
        if connection.dialect.name == "postgresql":
            joined = (f"string_agg({c}::text, ',' ORDER BY seq)" for c in columns)
        else:
            joined = (f"group_concat({c})" for c in columns)
        texts = connection.exec_driver_sql(
            f"SELECT {', '.join(joined)} FROM "
            f"(SELECT * FROM ledger_node WHERE seq >= {known:d} ORDER BY seq) AS added"
        ).one()
        if texts[0] is None:
            return
        seqs, parents, twins, sets = (np.array(t.split(","), np.int64) for t in texts[:4])
        # Rows removed behind our back leave gaps: the others keep their places.
        places = seqs - known
        added = [np.zeros(int(places.max()) + 1, np.int64) for _ in range(3)]
        for values, column in zip(added, (parents, twins, sets), strict=True):
            values[places] = column
        names = [""] * len(added[0])
        for place, version in zip(places.tolist(), texts[4].split(","), strict=True):
            names[place] = version
        self.versions += names
        self.parents = np.concatenate([self.parents, added[0]])
        self.twins = np.concatenate([self.twins, added[1]])
        self.sets = np.concatenate([self.sets, added[2]])

    def descendants(self, direct: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """For each row whether it or one of its ancestors is in ``direct``.

        Links are followed in steps that double: seventeen for a chain of a hundred thousand.
        """
        seen = direct.copy()
        while True:
            before = int(seen.sum())
            link = self.parents
            while link.any():
                seen |= seen[link]
                link = link[link]
            seen |= seen[self.twins]
            if int(seen.sum()) == before:
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
