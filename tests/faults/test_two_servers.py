"""Two servers on one home by mistake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segunlearn.app.locks import server_lock
from segunlearn.app.options import Home
from segunlearn.errors import ConflictError

HOLD = """
import sys, time
from pathlib import Path
from segunlearn.app.locks import server_lock
from segunlearn.app.options import Home
with server_lock(Home(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""

#: Dies at the first thing done to keep a file over a power cut, or at the block's first line.
DIE = """
import os, sys
from pathlib import Path
from segunlearn.app.locks import server_lock
from segunlearn.app.options import Home
os.fsync = os.replace = lambda *_: os._exit(9)
with server_lock(Home(Path(sys.argv[1]))):
    os._exit(9)
"""


def test_the_second_is_refused_and_a_killed_one_stands_in_nobodys_way(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(ConflictError, match=f"process {first.pid} on"),
            server_lock(Home(tmp_path)),
        ):
            pass
        (tmp_path / "studies").mkdir()
        program = "from segunlearn.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program, "serve", "--studies", str(tmp_path / "studies"),
             "--home", str(tmp_path)],
            capture_output=True, text=True, timeout=120, check=False, env={**os.environ},
        )  # fmt: skip
        assert done.returncode == 2
        assert "another server works on" in done.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=10)
    with server_lock(Home(tmp_path)):
        pass
    assert not list((tmp_path / "locks").glob("server.json"))


def test_one_killed_while_it_noted_itself_leaves_nothing_half_made(tmp_path: Path) -> None:
    """The next holder overwrites the note; files with names of their own would stay for ever."""
    done = subprocess.run([sys.executable, "-c", DIE, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 9
    assert {p.name for p in (tmp_path / "locks").iterdir()} <= {"server.lock", "server.json"}
