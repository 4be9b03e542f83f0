"""What keeps a server from starting is one sentence and exit code 2."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app_sources import make_study, write_files

_PROGRAM = "from segunlearn.cli import main; main()"


def start(
    root: Path, *options: str, port: int = 0, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """Start a server on a folder of one file; it is ended after a minute."""
    write_files(root / "studies", [make_study(1)])
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    where = ["--studies", str(root / "studies"), "--home", str(root / "home"), "--port", str(port)]
    return subprocess.run(
        [sys.executable, "-c", first + _PROGRAM, "serve", *where, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("silent", [False, True])
def test_a_database_that_does_not_answer_is_named_and_not_waited_for_in_vain(
    tmp_path: Path, silent: bool
) -> None:
    """The server started without a word; nobody listens there, or nobody who says anything."""
    with socket.socket() as database:
        database.bind(("127.0.0.1", 0))
        if silent:
            database.listen()
        host = f"127.0.0.1:{database.getsockname()[1]}"
        first = "from segunlearn.app import store_wait; store_wait.SECONDS = 3; "
        ended = start(tmp_path, "--conf", "store", f"postgresql://u:secret@{host}/d", first=first)
    assert ended.returncode == 2, ended.stderr
    told = ended.stderr.splitlines()
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr
    assert told[-1].startswith("error: the store postgresql+psycopg://u:***@127.0.0.1")
    assert silent or any(line.startswith("waiting up to 3 seconds: the store") for line in told)


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        (("people", "nope.csv"), "nope.csv: no such people file."),
        (("people", "series.csv"), "leave the column 'series' out."),
        (("person_regex", "x"), "has no group"),
        (("model", "unlearn"), "this is the name of a task. Choose another."),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    tmp_path: Path, conf: tuple[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a page of traceback, as the app was built within the server."""
    monkeypatch.chdir(tmp_path)
    Path("series.csv").write_text("file,person,series\nperson0,anna,2.25.1\n")
    ended = start(tmp_path, "--conf", *conf)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]  # after what libraries say of a new home
    assert line.startswith("error: ")
    assert sentence in line


def test_a_port_in_use_is_said_before_anything_is_begun(tmp_path: Path) -> None:
    """The server built the app, began with the studies, and ended amid its usual lines."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = start(tmp_path, port=port)
    assert ended.returncode == 2, ended.stderr
    assert f"--port {port}: another program listens there" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "home" / "segunlearn.db").exists()
