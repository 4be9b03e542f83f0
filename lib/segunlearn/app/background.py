"""MONAI Label's background tasks, with queued ones that can be stopped.

The platform runs each task as a child process that builds the app again, one at a time per kind
(``monailabel/utils/async_tasks``). Its state lives in the server's memory.
"""

from __future__ import annotations

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


def stop(kind: str) -> dict[str, Any] | None:
    """Kill the running task and forget the waiting ones.

    Returns
    -------
    dict or None
        The task that was stopped, None when there was none.
    """
    executor = platform.background_executors.get(kind)
    if executor is not None:
        executor.shutdown(wait=False, cancel_futures=True)
        platform.background_executors[kind] = None
    stopped = platform.stop_background_task(kind)
    for task in platform.tasks(kind):
        if task["status"] == "SUBMITTED":
            task["status"] = "STOPPED"
            task["end_ts"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
            stopped = stopped or task
    return _copy(stopped) if stopped else None


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
