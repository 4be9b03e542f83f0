"""The process of a background task: it does not outlive its server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app_sources import wait_until

_CHILD = (
    "import sys, time, types; sys.argv = ['child', sys.argv[1]]; "
    "platform = types.ModuleType('platform'); "
    "platform.run_main = lambda: (print('runs', flush=True), time.sleep(60)); "
    "sys.modules['monailabel.interfaces.utils.app'] = platform; "
    "from segunlearn.app import child; child.main()"
)
_SERVER = (
    "import os, subprocess, sys, time; from segunlearn.app.child import STARTER; "
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[1]], "
    "stdin=subprocess.PIPE, stdout=subprocess.PIPE, "
    "env={**os.environ, STARTER: str(os.getpid())}); "
    "child.stdin.close(); child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(
    ("kind", "ends"), [("batch_infer", True), ("scoring", True), ("train", False)]
)
def test_a_task_ends_with_its_server(kind: str, ends: bool) -> None:
    """A batch would load the archive for hours; a training sees to it, and undoes what it did."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, kind, _CHILD], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    try:
        server.kill()
        server.wait()
        server.stdout.close()
        if ends:
            wait_until(lambda: not _runs(pid), 20, "the child ends")
        else:
            with pytest.raises(AssertionError):
                wait_until(lambda: not _runs(pid), 3, "the child ends")
    finally:
        if _runs(pid):
            os.kill(pid, 9)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
