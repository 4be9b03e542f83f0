"""The trail: what stands in it, and that changes behind its back are found."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import DatabaseError

from segunlearn.errors import ConflictError, InvalidInputError, NotFoundError, SegUnlearnError
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.chain import ChainHead
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.store import Store, open_store
from segunlearn.records.trail import Trail, TrailEntry


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[Store]:
    """SQLite alone, for what is done to its file."""
    store = open_store(tmp_path / "store.db")
    yield store
    store.close()


def filled(store: Store, rows: int = 5) -> Trail:
    trail = Trail(store)
    for n in range(rows):
        trail.append(TrailEntry("read_report", f"person {n}", "user", "::1", "audit", "a" * 32))
    return trail


def by_hand(store: Store, *statements: str) -> None:
    """Change the file as its owner can, without its guards."""
    assert store.path is not None
    with sqlite3.connect(store.path) as connection:
        for name in ("trail_no_update", "trail_no_delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_every_step_of_a_request_stands_in_it_with_who_did_it(store: Store) -> None:
    trail = Trail(store)
    forget = ForgetSet(store, on_change=trail.on_change)
    request, _ = forget.mark("study", "1.2.3", "consent_withdrawn", actor="ann", role="annotator")
    forget.approve(request.request_id, actor="bob", role="admin")
    rows = list(trail.every())
    assert [(r.action, r.actor, r.role, r.what) for r in rows] == [
        ("mark", "ann", "annotator", request.request_id),
        ("approve", "bob", "admin", request.request_id),
    ]
    assert "1.2.3" not in str(rows)
    assert trail.verify() == []


def test_a_change_that_fails_leaves_no_row(store: Store) -> None:
    trail = Trail(store)

    def fail(*_: object) -> None:
        raise ConflictError("the disk of the outbox is full")

    def both(*change: object) -> None:
        trail.on_change(*change)  # type: ignore[arg-type]
        fail()

    with pytest.raises(ConflictError):
        ForgetSet(store, on_change=both).mark("study", "1.2.3", "other", "because", actor="ann")
    assert list(trail.every()) == []
    assert trail.head().rows == 0


def cut_to(store: Store, rows: int) -> None:
    """Remove the end of the trail with what the database tells of it."""
    by_hand(
        store,
        f"DELETE FROM trail WHERE seq > {rows}",
        f"UPDATE trail_head SET rows={rows}, digest=(SELECT digest FROM trail WHERE seq={rows})",
    )


def test_a_step_of_a_request_that_was_cut_off_is_missed(file_store: Store) -> None:
    trail = filled(file_store, 1)
    forget = ForgetSet(file_store, on_change=trail.on_change)
    request, _ = forget.mark("study", "1.2.3", "consent_withdrawn", actor="ann")
    forget.approve(request.request_id, actor="bob")
    assert trail.verify() == []
    cut_to(file_store, 1)
    assert [(f.kind, f.number) for f in trail.verify()] == [("truncated", 2)]


def test_a_step_that_is_undone_is_not_missed(file_store: Store) -> None:
    trail = filled(file_store, 1)

    def broken(*change: object) -> None:
        trail.on_change(*change)  # type: ignore[arg-type]
        raise ConflictError("a hook failed")

    with pytest.raises(ConflictError):
        ForgetSet(file_store, on_change=broken).mark("study", "1.2.3", "quality", actor="ann")
    assert trail.verify() == []
    trail.append(TrailEntry("login", "ann"))
    assert trail.verify() == []
    cut_to(file_store, 1)
    assert [(f.kind, f.number) for f in trail.verify()] == [("truncated", 2)]


def test_a_step_stands_where_its_witness_cannot_be_written(
    file_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trail = Trail(file_store, head_file=tmp_path / "missing" / "trail.head")
    forget = ForgetSet(file_store, on_change=trail.on_change)
    request, created = forget.mark("study", "1.2.3", "quality", actor="ann")
    assert created
    assert "row 1 is recorded" in caplog.text
    (tmp_path / "missing").mkdir()
    forget.approve(request.request_id, actor="bob")
    cut_to(file_store, 1)
    assert [f.kind for f in trail.verify()] == ["truncated"]


def test_later_rows_leave_the_note_of_what_is_gone(file_store: Store) -> None:
    trail = filled(file_store)
    cut_to(file_store, 3)
    filled(file_store, 4)
    assert trail.head().rows == 7
    assert [(f.kind, f.number) for f in trail.verify()] == [("rewritten", 5)]


TAMPERING: list[tuple[str, tuple[str, ...], str]] = [
    ("another actor", ("UPDATE trail SET actor='eve' WHERE seq=3",), "row-changed"),
    ("body", ("UPDATE trail SET body=replace(body,'person 2','eve') WHERE seq=3",), "row-changed"),
    ("removed", ("DELETE FROM trail WHERE seq=3",), "row-removed"),
    ("cut off", ("DELETE FROM trail WHERE seq=5",), "truncated"),
    (
        "cut off, and the store's note with it",
        (
            "DELETE FROM trail WHERE seq=5",
            "UPDATE trail_head SET rows=4, digest=(SELECT digest FROM trail WHERE seq=4)",
        ),
        "truncated",
    ),
    ("no head", ("DELETE FROM trail_head",), "truncated"),
]


@pytest.mark.parametrize(("statements", "kind"), [t[1:] for t in TAMPERING], ids=[
    t[0] for t in TAMPERING
])  # fmt: skip
def test_changes_by_hand_are_found(
    file_store: Store, statements: tuple[str, ...], kind: str
) -> None:
    trail = filled(file_store)
    assert trail.verify() == []
    by_hand(file_store, *statements)
    assert kind in {fault.kind for fault in trail.verify()}


def test_a_trail_made_again_as_a_whole_is_found_by_a_witness(
    file_store: Store, tmp_path: Path
) -> None:
    head = filled(file_store).head()
    again = open_store(tmp_path / "again" / "store.db")
    other = filled(again)
    assert other.verify() == []
    faults = other.verify(witness=ChainHead(head.rows, head.digest))
    assert [fault.kind for fault in faults] == ["rewritten"]
    again.close()


def test_rows_are_only_added_to(store: Store) -> None:
    filled(store)
    for statement in ("UPDATE trail SET actor='x'", "DELETE FROM trail"):
        with pytest.raises(DatabaseError, match="only added to"), store.write() as connection:
            connection.exec_driver_sql(statement)


def test_many_writers_make_one_chain(store_place: str) -> None:
    def write(number: int) -> None:
        own = open_store(store_place)
        for _ in range(10):
            Trail(own).append(TrailEntry("login", f"person {number}"))
        own.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    opened = open_store(store_place)
    trail = Trail(opened)
    assert [row.seq for row in trail.every()] == list(range(1, 41))
    assert trail.verify() == []
    opened.close()


def test_rows_are_found_by_what_and_who(store: Store) -> None:
    trail = filled(store)
    trail.append(TrailEntry("backup", "person 1"))
    assert [r.action for r in trail.rows(actor="person 1")] == ["backup", "read_report"]
    assert [r.actor for r in trail.rows(action="read_report", limit=2)] == ["person 4", "person 3"]
    assert trail.rows(since="9999") == []


def test_a_caller_forges_no_line(store: Store) -> None:
    trail = Trail(store)
    trail.append(TrailEntry("login_failure", "x\n2026 admin", note="\x1b[2J" + "y" * 5000))
    (row,) = trail.every()
    assert row.actor.isprintable()
    assert row.note.isprintable()
    assert len(row.note) <= 500
    with pytest.raises(InvalidInputError):
        TrailEntry("invented", "x")


def test_a_token_is_good_until_it_is_revoked_or_old(
    file_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = AccessTokens(file_store)
    text, made = tokens.create("dr. smith", "annotator", 30)
    found = tokens.find(text)
    assert found is not None
    assert (found.name, found.role, found.state) == ("dr. smith", "annotator", "good")
    assert file_store.path is not None
    everything = b"".join(p.read_bytes() for p in file_store.path.parent.glob("store.db*"))
    assert text.split("_", 2)[2].encode() not in everything
    for wrong in (text[:-1] + ("A" if text[-1] != "A" else "B"), text + "A", text.upper(), "", "x"):
        assert tokens.find(wrong) is None
    with monkeypatch.context() as later:
        later.setattr("segunlearn.records.access_tokens.utc_now", lambda: "9998-01-01T00:00:00Z")
        lapsed = tokens.find(text)
        assert lapsed is not None
        assert lapsed.state == tokens.list()[0].state == "expired"
    tokens.revoke(made.token_id)
    lapsed = tokens.find(text)
    assert lapsed is not None
    assert lapsed.state == "revoked"
    with pytest.raises(ConflictError, match="was revoked"):
        tokens.revoke(made.token_id)
    with pytest.raises(NotFoundError):
        tokens.revoke("0" * 12)


@pytest.mark.parametrize(("name", "days"), [("", 1), ("a\nb", 1), ("x" * 101, 1), ("x", 0)])
def test_a_token_needs_a_holder_and_an_end(store: Store, name: str, days: int) -> None:
    with pytest.raises(SegUnlearnError):
        AccessTokens(store).create(name, "user", days)
