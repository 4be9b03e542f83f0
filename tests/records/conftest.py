"""A store of each kind: SQLite in a folder, and PostgreSQL started for the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from segunlearn.records.store import Store, open_store


def _postgresql_programs() -> Path | None:
    """Folder of ``initdb`` and ``postgres``: Debian keeps them out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).parent if on_path else None


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL, without a database, of a PostgreSQL server that ends with the tests."""
    programs = _postgresql_programs()
    if programs is None:
        if os.environ.get("SEGUNLEARN_REQUIRE") == "all":
            pytest.fail("PostgreSQL is required and not installed (apt-get install postgresql)")
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="segunlearn-postgresql-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    initdb = [programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8"]
    subprocess.run([*as_user, *map(str, initdb)], check=True, **quiet)  # type: ignore[call-overload]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}"]
    settings += ["fsync=off", "full_page_writes=off"]  # clients are killed here, not the server
    command = [*as_user, str(programs / "postgres"), "-D", str(data)]
    for setting in settings:
        command += ["-c", setting]
    server = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    url = f"postgresql+psycopg://postgres@127.0.0.1:{port}"
    try:
        _wait_for(port, server)
        yield url
    finally:
        _stop(server, data)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres").close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, "PostgreSQL ended at start"
            assert time.monotonic() < deadline, "PostgreSQL did not answer in 30 s"
            time.sleep(0.1)


def _stop(server: subprocess.Popen[bytes], data: Path) -> None:
    """Stop the server itself: with ``runuser`` in between, its number is in its pid file."""
    import signal

    pid_file = data / "postmaster.pid"
    pid = int(pid_file.read_text().splitlines()[0]) if pid_file.exists() else server.pid
    os.kill(pid, signal.SIGQUIT)  # at once: the data is thrown away
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        server.wait(15)


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
