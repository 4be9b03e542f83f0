"""MONAI Label's background tasks, with queued ones that can be stopped.

The platform runs each task as a child process that builds the app again, one at a time per kind
(``monailabel/utils/async_tasks``). Its state lives in the server's memory. The process is ours: the
platform's shows the whole request, with its identifiers, in the list of processes and in the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import psutil
from monailabel.utils.async_tasks import utils as platform

from segunlearn.app.child import CANCELLED, STARTER

#: States in which a task is not over.
_OPEN = ("SUBMITTED", "RUNNING")

#: Held while a task is queued, becomes a process or is stopped: who stops it finds what it is.
_BEGINNING = threading.Lock()


def is_open(kind: str) -> bool:
    """Whether a task of this kind runs or waits."""
    return any(task["status"] in _OPEN for task in platform.tasks(kind))


def start(kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Queue a task; it runs as soon as no other of its kind does."""
    task = {
        "id": str(uuid.uuid4()), "status": "SUBMITTED", "request": {**request}, "start_ts": _now()
    }  # fmt: skip
    with _BEGINNING:  # two at once are one after the other, and none goes to one that was shut
        platform.background_tasks.setdefault(kind, []).append(task)
        platform.background_processes.setdefault(kind, {})
        if platform.background_executors.get(kind) is None:
            platform.background_executors[kind] = ThreadPoolExecutor(1, f"task_{kind}")
        platform.background_executors[kind].submit(_run, task, kind)
    return _copy(task)


def _run(task: dict[str, Any], kind: str) -> None:
    """Run a task's process to its end, and keep its last lines."""
    log = logging.getLogger(f"task_{kind}")
    with _BEGINNING:
        if task["status"] != "SUBMITTED":  # it was stopped before it began
            return
        try:
            process = _process(kind)
        except OSError as error:  # no memory, no more processes
            log.error("the process of the task cannot be started: %s", error)
            task.update(status="ERROR", end_ts=_now(), details=deque([str(error)]))
            return
        platform.background_processes[kind][task["id"]] = process
        task["details"] = deque(maxlen=20)
        task["status"] = "RUNNING"
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout as lines:
        with contextlib.suppress(BrokenPipeError), process.stdin as request:
            request.write(json.dumps(task["request"]))
        for line in map(str.rstrip, lines):
            if line:
                log.info(line)
                task["details"].append(line)
    code = process.wait()
    platform.background_processes[kind].pop(task["id"], None)
    task["end_ts"] = _now()
    if task["status"] == "RUNNING":
        stopped = "stopping" in task or code == CANCELLED
        if code < 0 and not stopped:
            task["details"].append(
                f"its process was killed (signal {-code}), as happens where the machine's memory "
                "is short; nothing that it had not finished is served. Start it again."
            )
        task["status"] = "STOPPED" if stopped else "ERROR" if code else "DONE"


def _process(kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # -P: modules are never those of the folder it is started in, the home
        [sys.executable, "-P", "-m", "segunlearn.app.child", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",  # libraries print what they like
        env={
            **os.environ,
            "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
            STARTER: str(os.getpid()),
        },
    )


def tasks(kind: str) -> list[dict[str, Any]]:
    """All tasks of this kind since the server started, oldest first."""
    return [_copy(task) for task in platform.tasks(kind)]


def current(kind: str) -> dict[str, Any] | None:
    """Return the task that runs, else the one that waits longest, else the last one."""
    found = tasks(kind)
    for status in _OPEN:
        for task in found:
            if task["status"] == status:
                return task
    return found[-1] if found else None


def stop(kind: str, patience: float = 0.0) -> dict[str, Any] | None:
    """Stop the running task and forget the waiting ones.

    Until its process is over the task runs, with ``stopping`` beside: another stop waits, too.

    Parameters
    ----------
    kind
        Of the tasks.
    patience
        Seconds in which the process may end by itself, as it was asked to; then it is killed.

    Returns
    -------
    dict or None
        The task that was stopped, None when there was none.
    """
    with _BEGINNING:
        executor = platform.background_executors.get(kind)
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
            platform.background_executors[kind] = None
        waiting = [task for task in platform.tasks(kind) if task["status"] == "SUBMITTED"]
        for task in waiting:
            task.update(status="STOPPED", end_ts=_now())
        running = next((t for t in platform.tasks(kind) if t["status"] == "RUNNING"), None)
        process = platform.processes(kind).get(running["id"]) if running else None
        if running is not None:
            running["stopping"] = True  # whatever its process says at the end
    if running is None or process is None:
        return _copy(waiting[0]) if waiting else None
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        _kill(process)
    platform.processes(kind).pop(running["id"], None)
    running.update(status="STOPPED", end_ts=_now())
    return _copy(running)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and those it started, and wait until its locks are free."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    # else it hangs in the kernel; what it holds is settled at the next start
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5.0)


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")  # as the platform writes it


def _copy(task: Mapping[str, Any]) -> dict[str, Any]:
    copied = dict(task)
    if "details" in copied:
        for _ in range(100):  # a reader thread appends meanwhile
            try:
                copied["details"] = list(copied["details"])
                break
            except RuntimeError:
                continue
        else:
            copied["details"] = []
    return copied
