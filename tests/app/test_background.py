"""How a background task ends: what people read of it, and in which state it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from monailabel.utils.async_tasks import utils as platform

from app_sources import wait_until
from segunlearn.app import background

_CHILD = (
    "import sys, types; sys.argv = ['child', 'train']; "
    "platform = types.ModuleType('platform'); from segunlearn import errors\n"
    "def run_main():\n    raise {error}\n"
    "platform.run_main = run_main; sys.modules['monailabel.interfaces.utils.app'] = platform; "
    "from segunlearn.app import child; child.main()"
)


@pytest.mark.parametrize(
    ("error", "status", "last"),
    [
        ("errors.CancelledError('the run was stopped.')", "STOPPED", "the run was stopped."),
        ("errors.ConflictError('it was marked meanwhile.')", "ERROR", "it was marked meanwhile."),
        ("ValueError('a fault of ours')", "ERROR", "ValueError: a fault of ours"),
        (
            "OSError(28, 'No space left on device')",
            "ERROR",
            "the disk is full. Nothing that is served was changed. Make room, and start it again.",
        ),
        (
            "(os := __import__('os')).kill(os.getpid(), 9)",
            "ERROR",
            "its process was killed (signal 9), as happens where the machine's memory is short; "
            "nothing that it had not finished is served. Start it again.",
        ),
    ],
)
def test_an_ordinary_end_is_one_sentence(
    error: str, status: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People read it in GET /train/, where it was twenty lines of traceback."""

    def process(kind: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(error=error)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    monkeypatch.setattr(background, "_process", process)
    for name in ("background_tasks", "background_processes", "background_executors"):
        monkeypatch.setattr(platform, name, {})
    background.start("train", {})
    wait_until(lambda: not background.is_open("train"), 30, "the task ends")
    (task,) = background.tasks("train")
    assert task["status"] == status
    assert task["details"][-1] == last
    assert len(task["details"]) == 1 or "ValueError" in error
    background.stop("train")
