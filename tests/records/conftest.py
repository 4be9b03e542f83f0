"""A store of each kind: SQLite in a folder, and PostgreSQL started for the tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgresql_server import programs as postgresql_programs
from postgresql_server import running_server
from segunlearn.records.store import Store, open_store


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL, without a database, of a PostgreSQL server that ends with the tests."""
    programs = postgresql_programs()
    if programs is None:
        if os.environ.get("SEGUNLEARN_REQUIRE") == "all":
            pytest.fail("PostgreSQL is required and not installed (apt-get install postgresql)")
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg")
    with running_server(programs, durable=False) as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """URL of an empty schema of its own."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(f"{_plain(postgresql_server)}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"')  # type: ignore[call-overload]
    return f"{postgresql_server}/postgres?options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def postgresql_shared(postgresql_server: str) -> str:
    """URL of one schema that tests share one after another."""
    import psycopg

    with psycopg.connect(f"{_plain(postgresql_server)}/postgres", autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shared")
    url = f"{postgresql_server}/postgres?options=-csearch_path%3Dshared"
    open_store(url).close()
    return url


def _emptied(url: str) -> str:
    """Delete all rows of a store, past the guards: far faster than making a new schema."""
    import psycopg

    with psycopg.connect(_plain(url)) as connection:
        connection.execute("SET session_replication_role = replica")
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        ).fetchall()
        for (table,) in tables:
            if table != "schema_version":
                connection.execute(f'DELETE FROM "{table}"')  # type: ignore[call-overload]
        connection.execute("INSERT INTO ledger_head VALUES (1, 0, repeat('0', 64), 0, 0, 0)")
        connection.execute("INSERT INTO trail_head VALUES (1, 0, repeat('0', 64))")
    return url


def _plain(url: str) -> str:
    return url.replace("+psycopg", "")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def store_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Place of an empty store, once of each kind."""
    if request.param == "postgresql":
        return _emptied(str(request.getfixturevalue("postgresql_shared")))
    return str(tmp_path / "home" / "segunlearn.db")


@pytest.fixture
def store(store_place: str) -> Iterator[Store]:
    """Open store, once of each kind."""
    opened = open_store(store_place)
    yield opened
    opened.close()
