"""The store: opening, migrating, several processes, damage, and what messages tell."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Text, insert, inspect, literal_column, select, text
from sqlalchemy.exc import IntegrityError as DatabaseIntegrityError

from segunlearn.errors import IntegrityError, InvalidInputError, UnavailableError
from segunlearn.records import store as store_module
from segunlearn.records.migrations import MIGRATIONS, schema_version
from segunlearn.records.runs import Runs
from segunlearn.records.store import Store, canonical_json, open_store, utc_now
from segunlearn.records.tables import METADATA, PACS_SEEN


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Place of a store that was never opened."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return str(tmp_path / "segunlearn.db")


def test_the_tables_are_those_that_queries_see(new_place: str) -> None:
    store = open_store(new_place)
    with store.read() as connection:
        assert schema_version(connection) == len(MIGRATIONS)
        found = inspect(connection)
        tables = set(found.get_table_names()) - {"schema_version", "sqlite_sequence"}
        assert tables == set(METADATA.tables)
        for name, table in METADATA.tables.items():
            columns = {c["name"]: c["type"] for c in found.get_columns(name)}
            assert list(columns) == [c.name for c in table.columns]
            for column in table.columns:
                kind = columns[column.name].python_type
                assert kind is column.type.python_type, (name, column.name)
    store.close()


OPEN = """
import sys
from segunlearn.records.runs import Runs
from segunlearn.records.store import open_store
sys.stdin.readline()
store = open_store(sys.argv[1])
Runs(store).start("train", "segmentation", {})
"""


def test_many_processes_open_a_new_store_at_once(new_place: str) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", OPEN, new_place], stdin=subprocess.PIPE)
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    for child in children:
        assert child.wait(120) == 0
        assert child.stdin is not None
        child.stdin.close()
    store = open_store(new_place)
    with store.read() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM run")).scalar() == 4
        versions = connection.execute(text("SELECT version FROM schema_version ORDER BY 1"))
        assert list(versions.scalars()) == list(range(1, len(MIGRATIONS) + 1))
    store.close()


def test_a_newer_schema_is_refused(new_place: str) -> None:
    store = open_store(new_place)
    with store.write() as connection:
        connection.execute(text("INSERT INTO schema_version VALUES (99, 'later', 'then')"))
    store.close()
    with pytest.raises(IntegrityError, match="newer SegUnlearn wrote it"):
        open_store(new_place)


def test_a_migration_that_fails_leaves_nothing(
    new_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = ("CREATE TABLE half (a INTEGER)", "CREATE TABLE half (a INTEGER)")
    open_store(new_place).close()
    both = (*MIGRATIONS, SimpleNamespace(NAME="broken", STATEMENTS={"all": twice}))
    with monkeypatch.context() as patch:
        patch.setattr("segunlearn.records.migrations.MIGRATIONS", both)
        patch.setattr(store_module, "MIGRATIONS", both)
        with pytest.raises(Exception, match="half"):
            open_store(new_place)
    store = open_store(new_place)
    with store.read() as connection:
        assert schema_version(connection) == len(MIGRATIONS)
        assert "half" not in inspect(connection).get_table_names()
    store.close()


def test_a_write_that_raises_is_undone(store: Store) -> None:
    row = {"kind": "study", "uid": "1", "note": "", "time": utc_now()}
    with pytest.raises(DatabaseIntegrityError), store.write() as connection:
        connection.execute(PACS_SEEN.insert(), [row, row])
    for durable in (True, False):
        with store.write(durable=durable) as connection:
            assert connection.execute(select(PACS_SEEN.c.uid)).all() == []
    with store.write() as connection:
        connection.execute(PACS_SEEN.insert().values(row))
    with store.read() as connection:
        assert connection.execute(select(PACS_SEEN.c.uid)).scalar() == "1"


def test_among_takes_any_number_of_values(store: Store) -> None:
    texts = ["a", "it's", '"', "ü", "\\", "%", *map(str, range(70_000))]
    with store.read() as connection:

        def matches(value: str) -> bool:
            column = literal_column(f"'{value}'", Text)
            found = connection.execute(
                select(literal_column("1")).where(store.among(column, texts))
            )
            return found.first() is not None

        assert matches("it''s")
        assert matches("69999")
        assert not matches("70000")
    with store.read() as connection:
        empty = select(literal_column("1")).where(store.among(PACS_SEEN.c.uid, []))
        assert connection.execute(empty).all() == []


def test_sqlite_is_durable_private_and_in_wal_mode(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    path = tmp_path / "segunlearn.db"
    assert store.path == path
    assert path.stat().st_mode & 0o777 == 0o600
    with store.write() as connection:
        connection.execute(PACS_SEEN.insert().values(kind="a", uid="1", note="", time=""))
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        wal = path.with_name("segunlearn.db-wal")
        assert wal.stat().st_mode & 0o777 == 0o600
    assert pragmas == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 60_000,
    }  # fmt: skip
    with store.write(durable=False) as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
    with store.write() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2, "and back again"
    store.close()


@pytest.mark.postgresql
def test_postgresql_waits_for_the_disk_except_for_progress(postgresql_shared: str) -> None:
    store = open_store(postgresql_shared)
    show = text("SHOW synchronous_commit")
    with store.write() as connection:
        assert connection.execute(show).scalar() == "on"
    with store.write(durable=False) as connection:
        assert connection.execute(show).scalar() == "off"
    with store.write() as connection:
        assert connection.execute(show).scalar() == "on"
    store.close()


def test_writers_wait_for_each_other(store: Store) -> None:
    with store.write() as connection:
        connection.execute(PACS_SEEN.insert().values(kind="n", uid="0", note="0", time=""))

    def add() -> None:
        for _ in range(10):
            with store.write() as connection:
                query = select(PACS_SEEN.c.note)
                if store.dialect == "postgresql":
                    query = query.with_for_update()
                note = int(connection.execute(query).scalar_one())
                connection.execute(PACS_SEEN.update().values(note=str(note + 1)))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    with store.read() as connection:
        assert connection.execute(select(PACS_SEEN.c.note)).scalar() == "40"


def test_a_forked_child_has_connections_of_its_own(store: Store) -> None:
    with store.read() as connection:
        connection.execute(text("SELECT 1"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with store.write() as connection:
                connection.execute(
                    PACS_SEEN.insert().values(kind="child", uid="1", note="", time="")
                )
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with store.read() as connection:
        assert connection.execute(select(PACS_SEEN.c.kind)).scalar() == "child"


def test_places_that_are_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("sqlite://", "mysql://u:secret@h/d", "oracle://x", "://", "nothing://"):
        with pytest.raises(InvalidInputError) as caught:
            open_store(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(UnavailableError, match="cannot be used now") as unreachable:
        open_store("postgresql://user:secret@127.0.0.1:1/segunlearn")
    assert "secret" not in str(unreachable.value)
    file = tmp_path / "notes.txt"
    file.write_text("These are my notes, and they are no database at all. " * 40)
    with pytest.raises(IntegrityError, match="damaged or not a database"):
        open_store(file)
    assert file.read_text().startswith("These are my notes")
    with pytest.raises(UnavailableError, match="cannot be opened or made"):
        open_store(file / "segunlearn.db")


def test_a_store_that_is_held_too_long_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.1)
    store = open_store(tmp_path)
    holder = sqlite3.connect(tmp_path / "segunlearn.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="nothing was changed"), store.write():
        pass
    with store.read() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM run")).scalar() == 0, "readers go on"
    holder.execute("ROLLBACK")
    holder.close()
    with store.write():
        pass
    store.close()


def test_a_read_sees_one_state(store: Store) -> None:
    if store.dialect != "sqlite":
        return
    with store.read() as connection:
        count = text("SELECT COUNT(*) FROM pacs_seen")
        assert connection.execute(count).scalar() == 0
        with store.write() as other:
            other.execute(PACS_SEEN.insert().values(kind="a", uid="1", note="", time=""))
        assert connection.execute(count).scalar() == 0


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert (
        canonical_json({"b": [1, 2.5, None, True], "a": "ü"}) == '{"a":"ü","b":[1,2.5,null,true]}'
    )
    for wrong in (float("nan"), float("inf"), object(), {1, 2}):
        with pytest.raises(InvalidInputError, match="JSON"):
            canonical_json({"x": wrong})


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_a_text_that_no_database_keeps_is_an_error_of_who_gave_it(store: Store, text: str) -> None:
    runs = Runs(store)
    if text == "a\0b" and store.dialect == "sqlite":  # which keeps it
        assert runs.list(model=text) == []
        return
    with pytest.raises(InvalidInputError, match="Leave it out") as found:
        runs.list(model=text)
    assert "a" * 2 not in str(found.value)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_a_run_ends_whatever_its_words_hold(store: Store, text: str) -> None:
    """Else it would be running until its process ends, and nobody could tell why."""
    runs = Runs(store)
    run_id = runs.start("train", "segmentation", {}, requested_by=text)
    runs.finish(run_id, "failed", text)
    run = runs.get(run_id)
    assert (run.state, len(run.message), len(run.requested_by)) == ("failed", 3, 3)


def test_what_a_driver_says_holds_no_values(store: Store) -> None:
    """Its words reach logs; the values are identifiers of patients."""
    row = {"kind": "k", "uid": "1.2", "note": "DOE^JANE", "time": "t"}
    with pytest.raises(DatabaseIntegrityError) as found, store.write() as connection:
        connection.execute(insert(PACS_SEEN), [row, row])
    assert "DOE" not in str(found.value)


def test_times_sort_as_texts() -> None:
    first, second = utc_now(), utc_now()
    assert first <= second
    assert len(first) == 27
    assert first.endswith("Z")
