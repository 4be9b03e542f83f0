"""A PostgreSQL server for tests and benchmarks, started and stopped by its number."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """Folder of ``initdb`` and ``postgres``: Debian keeps them out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def running_server(folder_of_programs: Path, *, durable: bool) -> Iterator[str]:
    """Run a server; gives its URL without a database. ``durable``: commits reach the disk."""
    folder = Path(tempfile.mkdtemp(prefix="segunlearn-postgresql-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    initdb = [folder_of_programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-N"]
    subprocess.run([*as_user, *map(str, initdb), "-E", "UTF8"], check=True, **quiet)  # type: ignore[call-overload]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}"]
    if not durable:
        settings += ["fsync=off", "full_page_writes=off"]
    command = [*as_user, str(folder_of_programs / "postgres"), "-D", str(data)]
    for setting in settings:
        command += ["-c", setting]
    server = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    try:
        _wait_for(port, server)
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
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
    pid_file = data / "postmaster.pid"
    pid = int(pid_file.read_text().splitlines()[0]) if pid_file.exists() else server.pid
    os.kill(pid, signal.SIGQUIT)  # at once: the data is thrown away
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        server.wait(15)
