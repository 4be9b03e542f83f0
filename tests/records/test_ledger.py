"""The ledger: its rows, its queries against slow and obvious ones, and every way to tamper."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError as DatabaseIntegrityError

from records_entries import digest, ledger_entry
from segunlearn.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from segunlearn.records import ledger_index
from segunlearn.records.case_sets import decode, encode, invert
from segunlearn.records.ledger import Ledger, LedgerCase, LedgerHead, ShapingStudy
from segunlearn.records.ledger_entries import row_digest
from segunlearn.records.store import Store, canonical_json, open_store


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


def versions(ledger: Ledger, **target: str) -> dict[str, bool]:
    return {s.version_sha256: s.direct for s in ledger.versions_that_saw(**target)}


def test_a_row_says_what_was_recorded(ledger: Ledger) -> None:
    cases = [("1.1", "1", "A", "train", digest("image"), digest("label")), ("2.1", "2", "B", "val")]
    entry = ledger_entry(1, cases=cases, parent="base", parameters={"rate": 0.1, "name": "ünet"})
    row_hash = ledger.append(entry)
    row = ledger.row("run-1")
    assert row.digest == row_hash == ledger.head().digest
    assert (row.seq, row.previous) == (1, "0" * 64)
    for name in ("run_id", "kind", "model", "version_sha256", "parent_sha256", "seed", "started"):
        assert getattr(row, name) == getattr(entry, name)
    assert row.parameters == {"rate": 0.1, "name": "ünet"}
    assert row.cases_count == 2
    first, second = ledger.cases_of("run-1")
    assert first == entry.cases[0]
    assert second.role == "validation"
    assert ledger.verify() == []


def test_the_chain(ledger: Ledger) -> None:
    digests = [ledger.append(ledger_entry(i, cases=[("1.1", "1", "A", "train")])) for i in (1, 2)]
    second, first = ledger.rows()
    assert (first.digest, second.digest) == tuple(digests)
    assert second.previous == first.digest
    assert ledger.head() == LedgerHead(2, digests[1])
    assert [r.run_id for r in ledger.rows(limit=1, offset=1)] == ["run-1"]
    assert ledger.rows(kind="unlearn") == []
    assert len(ledger.rows(model="segmentation", kind="train")) == 2


def test_the_order_of_cases_does_not_matter(ledger: Ledger) -> None:
    cases = [(f"1.{i}", "1", "A", "train") for i in range(5)]
    ledger.append(ledger_entry(1, cases=cases))
    ledger.append(ledger_entry(2, cases=[*cases[::-1], cases[0]]))
    one, two = ledger.rows()
    assert one.cases_sha256 == two.cases_sha256
    assert two.cases_count == 5


def test_the_same_row_twice_is_one(ledger: Ledger) -> None:
    entry = ledger_entry(1, cases=[("1.1", "1", "A", "train")])
    assert ledger.append(entry) == ledger.append(entry)
    assert ledger.head().rows == 1
    with pytest.raises(ConflictError, match="says otherwise"):
        ledger.append(ledger_entry(1, cases=[("1.2", "1", "A", "train")]))
    assert ledger.head().rows == 1
    assert ledger.verify() == []


def test_runs_without_a_version_are_recorded_too(ledger: Ledger) -> None:
    for number, outcome in enumerate(("failed", "cancelled", "refused", "interrupted"), 1):
        cases = [(f"{number}.1", str(number), "A", "train")]
        ledger.append(ledger_entry(number, cases=cases, version=None, outcome=outcome))
    assert len(ledger.rows()) == 4
    assert ledger.versions_that_saw(study="1") == []
    assert ledger.cases_of("run-1")[0].study == "1"


def test_through_any_chain_of_parents(ledger: Ledger) -> None:
    ledger.append(ledger_entry(1, version="base", cases=[("1.1", "1", "A", "train")]))
    ledger.append(
        ledger_entry(2, version="tuned", parent="base", cases=[("2.1", "2", "B", "validation")])
    )
    ledger.append(
        ledger_entry(3, version="clean", parent="tuned", cases=[("1.1", "1", "A", "forget")])
    )
    ledger.append(ledger_entry(4, version="fresh", cases=[("2.1", "2", "B^^^X", "train")]))
    names = {digest(n): n for n in ("base", "tuned", "clean", "fresh")}

    def saw(**target: str) -> dict[str, bool]:
        return {names[v]: direct for v, direct in versions(ledger, **target).items()}

    assert saw(study="1") == {"base": True, "tuned": False, "clean": True}
    assert saw(series="2.1") == {"tuned": True, "clean": False, "fresh": True}
    assert saw(person="B") == {"tuned": True, "clean": False, "fresh": True}
    assert saw(person="B^^^Y") == {"tuned": True, "clean": False}
    assert saw(study="3") == {}
    assert ledger.studies_of(digest("clean")) == [
        ShapingStudy("1", "A", ("forget", "train")),
        ShapingStudy("2", "B", ("validation",)),
    ]
    assert [c.role for c in ledger.lineage_cases(digest("tuned"))] == ["train", "validation"]
    assert ledger.studies_of(digest("fresh")) == [ShapingStudy("2", "B^^^X", ("train",))]
    with pytest.raises(NotFoundError, match="no row of the ledger made"):
        ledger.studies_of(digest("elsewhere"))
    for wrong in ({}, {"study": "1", "series": "1.1"}):
        with pytest.raises(InvalidInputError, match="exactly one"):
            ledger.versions_that_saw(**wrong)
    with pytest.raises(NotFoundError):
        ledger.cases_of("nothing")


def test_a_restored_version_has_two_makers(ledger: Ledger) -> None:
    ledger.append(ledger_entry(1, version="old", cases=[("1.1", "1", "A", "train")]))
    ledger.append(ledger_entry(2, version="new", parent="old", cases=[("2.1", "2", "B", "retain")]))
    ledger.append(ledger_entry(3, version="old", parent="new", kind="restore"))
    ledger.append(ledger_entry(4, version="next", parent="old", cases=[("3.1", "3", "C", "train")]))
    assert set(versions(ledger, study="1")) == {digest("old"), digest("new"), digest("next")}
    assert [s.study for s in ledger.studies_of(digest("next"))] == ["1", "2", "3"]
    assert ledger.verify() == []


def test_a_parent_that_is_recorded_after_its_child(ledger: Ledger) -> None:
    ledger.append(
        ledger_entry(1, version="child", parent="base", cases=[("2.1", "2", "B", "train")])
    )
    ledger.append(ledger_entry(2, version="grandchild", parent="child"))
    assert versions(ledger, study="1") == {}
    ledger.append(ledger_entry(3, version="base", cases=[("1.1", "1", "A", "train")]))
    assert set(versions(ledger, study="1")) == {digest(n) for n in ("base", "child", "grandchild")}
    assert {s.study for s in ledger.studies_of(digest("grandchild"))} == {"1", "2"}
    assert ledger.verify() == []


def test_a_version_from_elsewhere_that_is_restored_is_not_its_own_ancestor(
    ledger: Ledger,
) -> None:
    ledger.append(
        ledger_entry(1, version="new", parent="outside", cases=[("2.1", "2", "B", "retain")])
    )
    ledger.append(ledger_entry(2, version="outside", parent="new", kind="restore"))
    assert [s.study for s in ledger.studies_of(digest("outside"))] == ["2"]
    assert [s.study for s in ledger.studies_of(digest("new"))] == ["2"]
    assert ledger.verify() == []


def build(ledger: Ledger, seed: int, runs: int) -> list[tuple[str | None, str | None, set[str]]]:
    """A random history: chains, branches, failures, restored versions."""
    rng = random.Random(seed)
    history: list[tuple[str | None, str | None, set[str]]] = []
    for number in range(1, runs + 1):
        made = [v for v, _, _ in history if v]
        parent = rng.choice(made[-3:]) if made and rng.random() < 0.85 else None
        version: str | None = f"v{number}"
        if rng.random() < 0.1:
            version = None
        elif made and rng.random() < 0.05:
            version = rng.choice(made)
        series = {f"{rng.randint(1, 12)}.{rng.randint(1, 2)}" for _ in range(rng.randint(0, 4))}
        cases = [(s, s.split(".")[0], f"P{int(s.split('.')[0]) // 2}", "train") for s in series]
        ledger.append(
            ledger_entry(
                number,
                version=version,
                parent=parent,
                cases=cases,
                outcome="done" if version else "failed",
            )
        )
        history.append((version, parent, series))
    return history


def shaped_by(history: list[tuple[str | None, str | None, set[str]]]) -> dict[str, set[str]]:
    """The slow and obvious answer: all series that shaped each version."""
    known: dict[str, set[str]] = {}
    for version, parent, series in history:
        if version:
            known[version] = known.get(version, set()) | series | known.get(parent or "", set())
    return known


@pytest.mark.parametrize("seed", range(4))
def test_queries_agree_with_the_obvious_ones(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(ledger_index, "BLOCK", 16)
    monkeypatch.setattr(ledger_index, "HOPS", 5)
    monkeypatch.setattr("segunlearn.records.ledger_verification.BLOCK", 16)
    history = build(ledger, seed, 70)
    expected = shaped_by(history)

    def check() -> None:
        for version, series in expected.items():
            found = {s.study for s in ledger.studies_of(digest(version))}
            assert found == {s.split(".")[0] for s in series}
            assert {c.series for c in ledger.lineage_cases(digest(version))} == series
        for number in range(1, 13):
            study = str(number)
            saw = {
                v for v, series in expected.items() if any(s.split(".")[0] == study for s in series)
            }
            assert set(versions(ledger, study=study)) == {digest(v) for v in saw}
            one = f"{number}.1"
            saw = {v for v, series in expected.items() if one in series}
            assert set(versions(ledger, series=one)) == {digest(v) for v in saw}
        assert ledger.verify() == []

    check()
    ledger.rebuild_index()
    check()


def test_another_process_sees_new_rows(store: Store, store_place: str) -> None:
    mine, other_store = Ledger(store), open_store(store_place)
    other = Ledger(other_store)
    for number in range(1, 4):
        writer = mine if number % 2 else other
        writer.append(ledger_entry(number, cases=[("1.1", "1", "A", "train")]))
        for reader in (mine, other):
            assert len(reader.versions_that_saw(study="1")) == number
    other_store.close()


WRONG: list[dict[str, Any]] = [
    {"kind": "Train!"},
    {"kind": ""},
    {"outcome": "great"},
    {"run_id": ""},
    {"run_id": "x\0"},
    {"model": " "},
    {"version_sha256": "abc"},
    {"version_sha256": "A" * 64},
    {"parent_sha256": "../" + "a" * 61},
    {"seed": 1.5},
    {"started": "yesterday"},
    {"ended": "2026-11-21 04:00:00"},
    {"parameters": {"rate": float("nan")}},
    {"parameters": {"net": {1}}},
    {"parameters": {"text": "\0"}},
    {"cases": [LedgerCase("1.1", "1", "A", "spectator")]},
    {"cases": [LedgerCase("", "1", "A", "train")]},
    {"cases": [LedgerCase("1.1", "1", "", "train")]},
    {"cases": [LedgerCase("1.1", "1", "A", "train", "short")]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_bad_entries_change_nothing(ledger: Ledger, wrong: dict[str, Any]) -> None:
    before = ledger.head()
    with pytest.raises(InvalidInputError):
        ledger.append(ledger_entry(1, **wrong))
    assert ledger.head() == before


def unguarded(store: Store, *statements: str, **values: Any) -> None:
    """Change the database as someone with all rights would."""
    with store.write() as connection:
        if store.dialect == "sqlite":
            triggers = connection.execute(
                text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            )
            for (name,) in triggers.all():
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            connection.execute(text(statement), values)


def rewrite_row(store: Store, seq: int, *, follow: bool, **changes: Any) -> None:
    """Change a row's body and digest; ``follow`` also all rows after it, and the head."""
    with store.read() as connection:
        rows = connection.execute(
            text("SELECT seq, body, digest FROM ledger_row WHERE seq >= :s ORDER BY seq"),
            {"s": seq},
        ).all()
    previous: str | None = None
    for row in rows:
        body = json.loads(row.body)
        if row.seq == seq:
            body |= changes
        elif not follow:
            break
        if previous is not None:
            body["previous"] = previous
        new = canonical_json(body)
        previous = row_digest(new)
        unguarded(
            store,
            "UPDATE ledger_row SET body = :b, digest = :d, model = :m WHERE seq = :s",
            b=new,
            d=previous,
            s=row.seq,
            m=body["model"],
        )
    if follow:
        unguarded(store, "UPDATE ledger_head SET digest = :d", d=previous)


TAMPERING: dict[str, tuple[Callable[[Store], None], set[tuple[str, int]]]] = {
    "a row's body": (
        lambda s: unguarded(
            s, "UPDATE ledger_row SET body = REPLACE(body, '0.001', '0.002') WHERE seq = 3"
        ),
        {("row-changed", 3)},
    ),
    "a column beside the body": (
        lambda s: unguarded(s, "UPDATE ledger_row SET outcome = 'failed' WHERE seq = 3"),
        {("row-changed", 3)},
    ),
    "a row with its digest": (
        lambda s: rewrite_row(s, 3, follow=False, model="other"),
        {("chain-broken", 4)},
    ),
    "the last row with its digest": (
        lambda s: rewrite_row(s, 6, follow=False, model="other"),
        {("rewritten", 6)},
    ),
    "a row's list of cases": (
        lambda s: unguarded(s, "UPDATE ledger_row SET set_id = 1 WHERE seq = 3"),
        {("row-changed", 3), ("index", 3)},
    ),
    "a removed row": (
        lambda s: unguarded(s, "DELETE FROM ledger_row WHERE seq = 3"),
        {("row-removed", 3), ("index", 3), ("index", 4)},
    ),
    "a removed row, the others moved up": (
        lambda s: unguarded(
            s,
            "DELETE FROM ledger_row WHERE seq = 3",
            "UPDATE ledger_row SET seq = 3 WHERE seq = 4",
            "UPDATE ledger_row SET seq = 4 WHERE seq = 5",
            "UPDATE ledger_row SET seq = 5 WHERE seq = 6",
        ),
        {("row-moved", n) for n in (3, 4, 5)}
        | {("truncated", 6)}
        | {("index", n) for n in (3, 4, 5, 6)},
    ),
    "two rows exchanged": (
        lambda s: unguarded(
            s,
            "UPDATE ledger_row SET seq = 99 WHERE seq = 2",
            "UPDATE ledger_row SET seq = 2 WHERE seq = 3",
            "UPDATE ledger_row SET seq = 3 WHERE seq = 99",
        ),
        {("row-moved", 2), ("row-moved", 3), ("chain-broken", 4)}
        | {("index", n) for n in (2, 3, 4)},
    ),
    "an added row": (
        lambda s: unguarded(
            s,
            "INSERT INTO ledger_row SELECT 7, 'run-7', kind, model, version_sha256, parent_sha256,"
            " set_id, started, ended, outcome, body, 'x' FROM ledger_row WHERE seq = 6",
        ),
        {("row-changed", 7), ("row-added", 7), ("index", 7)},
    ),
    "the end cut off": (
        lambda s: unguarded(
            s, "DELETE FROM ledger_row WHERE seq > 4", "DELETE FROM ledger_node WHERE seq > 4"
        ),
        {("truncated", 5)},
    ),
    "a case": (
        lambda s: unguarded(s, "UPDATE ledger_case SET study = '99' WHERE id = 2"),
        {("case-changed", 2)},
    ),
    "a case's role": (
        lambda s: unguarded(s, "UPDATE ledger_case SET role = 'retain' WHERE id = 2"),
        {("case-changed", 2)},
    ),
    "a removed case": (
        lambda s: unguarded(s, "DELETE FROM ledger_case WHERE id = 2"),
        {("case-removed", 2), ("list-changed", 2)},
    ),
    "a list of cases": (
        lambda s: unguarded(
            s, "UPDATE ledger_set SET members = :m WHERE id = 2", m=encode(np.array([1]))
        ),
        {("list-changed", 2)},
    ),
    "a damaged list": (
        lambda s: unguarded(s, "UPDATE ledger_set SET members = :m WHERE id = 2", m=b"\x09"),
        {("list-changed", 2)},
    ),
    "the index of parents": (
        lambda s: unguarded(s, "UPDATE ledger_node SET parent_seq = 0 WHERE seq = 4"),
        {("index", 4)},
    ),
    "the head": (
        lambda s: unguarded(s, "DELETE FROM ledger_head"),
        {("truncated", 0)},
    ),
}


def six_rows(ledger: Ledger) -> None:
    for i in range(1, 7):
        cases = [(f"{i}.1", str(i), f"P{i}", "train")]
        parent = f"v{i - 1}" if i > 1 else None
        ledger.append(ledger_entry(i, version=f"v{i}", parent=parent, cases=cases))


@pytest.mark.parametrize("what", TAMPERING)
def test_every_change_is_found_and_named(store: Store, what: str) -> None:
    tamper, expected = TAMPERING[what]
    ledger = Ledger(store, head_file=Path("/nonexistent/ledger.head"))
    ledger._head_file = None  # the database alone
    six_rows(ledger)
    assert ledger.verify() == []
    tamper(store)
    faults = ledger.verify()
    assert {(f.kind, f.number) for f in faults} == expected
    assert all(f.message.endswith(".") for f in faults)


def test_postings_and_lineage_are_verified(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_index, "BLOCK", 4)
    monkeypatch.setattr(ledger_index, "HOPS", 2)
    monkeypatch.setattr("segunlearn.records.ledger_verification.BLOCK", 4)
    ledger = Ledger(store)
    six_rows(ledger)
    assert ledger.verify() == []
    unguarded(store, "DELETE FROM ledger_posting WHERE case_id = 1")
    assert [f.kind for f in ledger.verify()] == ["index"]
    ledger.rebuild_index()
    assert ledger.verify() == []
    unguarded(
        store, "UPDATE ledger_lineage SET members = :m WHERE seq = 4", m=encode(np.array([1]))
    )
    assert {f.kind for f in ledger.verify()} == {"index"}
    ledger.rebuild_index()
    assert ledger.verify() == []


def test_a_rewritten_history_needs_a_witness(store: Store, tmp_path: Path) -> None:
    ledger = Ledger(store, head_file=tmp_path / "elsewhere.head")
    six_rows(ledger)
    witness = ledger.head()
    rewrite_row(store, 3, follow=True, model="other")
    assert {f.kind for f in ledger.verify()} == {"rewritten"}, "the file beside the store tells"
    (tmp_path / "elsewhere.head").unlink()
    assert ledger.verify() == [], "without any witness it cannot be found"
    assert [f.kind for f in ledger.verify(witness=witness)] == ["rewritten"]


def test_an_old_copy_of_the_database_needs_a_witness(store: Store, tmp_path: Path) -> None:
    ledger = Ledger(store, head_file=tmp_path / "elsewhere.head")
    six_rows(ledger)
    with store.read() as connection:
        old = connection.execute(text("SELECT digest FROM ledger_row WHERE seq = 4")).scalar_one()
    unguarded(
        store,
        "DELETE FROM ledger_row WHERE seq > 4",
        "DELETE FROM ledger_node WHERE seq > 4",
        "DELETE FROM ledger_set WHERE id > 4",
        "DELETE FROM ledger_case WHERE id > 4",
        "UPDATE ledger_head SET rows = 4, cases = 4, sets = 4, digest = :d",
        d=old,
    )
    assert [(f.kind, f.number) for f in ledger.verify()] == [("truncated", 5)]
    for number in range(7, 11):
        ledger.append(ledger_entry(number))
    assert ledger.head().rows == 8
    told = [(f.kind, f.number) for f in ledger.verify()]
    assert told == [("rewritten", 6)], "later runs leave the note of what is gone"
    (tmp_path / "elsewhere.head").unlink()  # by whoever put the old copy back knowingly
    ledger.append(ledger_entry(11))
    assert ledger.kept_head() == ledger.head()
    assert ledger.verify() == []


def test_the_database_itself_refuses_changes(ledger: Ledger, store: Store) -> None:
    six_rows(ledger)
    for table in ("ledger_row", "ledger_set", "ledger_case"):
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET digest = 'x'"):
            with pytest.raises(DatabaseIntegrityError), store.write() as connection:
                connection.execute(text(statement))
    assert ledger.verify() == []


def test_the_kept_head_never_goes_back(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db")
    ledger = Ledger(store)
    six_rows(ledger)
    assert ledger.kept_head() == ledger.head()
    assert (tmp_path / "ledger.head").is_file()
    ledger._keep_head(LedgerHead(2, digest("late")))
    assert ledger.kept_head() == ledger.head()
    store.close()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"rows": "x", "digest": "y"}'])
def test_a_damaged_note_of_the_head_is_told_and_stops_nothing(tmp_path: Path, content: str) -> None:
    store = open_store(tmp_path / "store.db")
    ledger = Ledger(store)
    six_rows(ledger)
    (tmp_path / "ledger.head").write_text(content)
    ledger.append(ledger_entry(7))
    assert ledger.head().rows == 7
    assert [f.kind for f in ledger.verify()] == ["witness"]
    store.close()


def test_a_note_of_the_head_that_cannot_be_written(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db")
    ledger = Ledger(store, head_file=tmp_path / "missing" / "ledger.head")
    with pytest.raises(UnavailableError, match="row 1 is recorded"):
        ledger.append(ledger_entry(1))
    (tmp_path / "missing").mkdir()
    ledger.append(ledger_entry(1))
    assert ledger.kept_head() == ledger.head() == LedgerHead(1, ledger.row("run-1").digest)
    store.close()


numbers = st.lists(st.integers(0, 2**32 - 1), unique=True).map(sorted)


@given(numbers)
def test_case_sets_survive_being_written(values: list[int]) -> None:
    assert decode(encode(np.array(values, np.int64))).tolist() == values


@given(st.lists(st.sets(st.integers(0, 30)).map(sorted), max_size=8))
def test_inverting_twice_gives_the_sets_again(sets: list[list[int]]) -> None:
    there = invert([(n, np.array(s, np.int64)) for n, s in enumerate(sets)])
    back = {n: s.tolist() for n, s in invert(there)}
    assert back == {n: s for n, s in enumerate(sets) if s}


@pytest.mark.parametrize("data", [b"", b"\x03abc", b"\x81notzlib", b"\x02a"])
def test_damaged_case_sets_are_an_error(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        decode(data)
