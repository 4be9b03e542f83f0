"""MONAI Label's background tasks, with queued ones that can be stopped.

The platform runs each task as a child process that builds the app again, one at a time per kind
(``monailabel/utils/async_tasks``). Its state lives in the server's memory.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from monailabel.utils.async_tasks import utils as platform

#: States in which a task is not over.
_OPEN = ("SUBMITTED", "RUNNING")


def is_open(kind: str) -> bool:
    """Whether a task of this kind runs or waits."""
    return any(task["status"] in _OPEN for task in platform.tasks(kind))


def start(kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Queue a task; it runs as soon as no other of its kind does."""
    task = platform.run_background_task({**request}, kind)
    return _copy(task)


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
    executor = platform.background_executors.get(kind)
    if executor is not None:
        executor.shutdown(wait=False, cancel_futures=True)
        platform.background_executors[kind] = None
    stopped = _wait(kind, patience) if patience else None
    stopped = stopped or _kill(kind)
    for task in platform.tasks(kind):
        if task["status"] == "SUBMITTED":
            task["status"] = "STOPPED"
            task["end_ts"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
            stopped = stopped or task
    return _copy(stopped) if stopped else None


def _wait(kind: str, seconds: float) -> dict[str, Any] | None:
    """Give the running task time to end; None when it did not, or none runs."""
    running = next((t for t in platform.tasks(kind) if t["status"] == "RUNNING"), None)
    process = platform.processes(kind).get(running["id"]) if running else None
    if running is None or process is None:
        return None
    running["status"] = "STOPPED"  # whatever its process says at the end
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    running["end_ts"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    platform.background_processes[kind].pop(running["id"], None)
    return dict(running)


def _kill(kind: str) -> dict[str, Any] | None:
    """Kill the running task, and wait until its locks are free."""
    processes = list(platform.processes(kind).values())
    stopped: dict[str, Any] | None = platform.stop_background_task(kind)
    for process in processes:
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            continue  # it hangs in the kernel; what it holds is settled at the next start
    return stopped


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
