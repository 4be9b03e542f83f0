"""Locks between threads and processes; the end of the process releases them, whatever ends it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from segunlearn.app.options import Home
from segunlearn.errors import CancelledError, ConflictError, IntegrityError, UnavailableError
from segunlearn.records.durable import read_json


@contextmanager
def exclusive(
    locks: Path, name: str, seconds: float = 600.0, gone: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Hold a lock that threads and processes respect; a killed holder releases it.

    Raises
    ------
    UnavailableError
        Another process did not let go in time.
    CancelledError
        ``gone`` said that nobody waits for this any more.
    """
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{name}.lock", timeout=seconds)
    try:
        lock.acquire(cancel_check=gone)
    except Timeout as error:
        if gone is not None and gone():
            raise CancelledError(
                f"{name}: the server is gone that wanted it; nothing began."
            ) from error
        raise UnavailableError(
            f"{name}: another process of SegUnlearn has worked on it for {seconds:.0f} s. Try "
            "again, or look which process hangs."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def training_lock(
    home: Home, model: str, by: str, seconds: float, gone: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Hold the lock of a model's trainings, whoever starts them: the server or the command line.

    Parameters
    ----------
    home
        Where the models lie.
    model
        Its name.
    by
        What trains, for the message of the one that comes second.
    seconds
        To wait for another training.
    gone
        Tells that whoever wanted this is gone, so that waiting has no sense.

    Raises
    ------
    ConflictError
        Another training holds it; the message says which one, and what to do.
    CancelledError
        ``gone`` said so.
    """
    advice = (
        "Wait until it has ended, or stop it: in the viewer or by DELETE /train/ where the server "
        "runs it, else with Ctrl-C where it was started; the next one goes on from its last epoch."
    )
    works = f"training of {model!r} runs"
    with _noted(home.locks, f"train-{model}", by, seconds, works, advice, gone):
        yield


@contextmanager
def server_lock(home: Home) -> Iterator[None]:
    """Hold the lock of a home's server; a killed one releases it.

    Raises
    ------
    ConflictError
        Another server works on this home.
    """
    advice = (
        "Stop it first, or give this one a home of its own; commands such as 'segunlearn unlearn' "
        "may run beside a server."
    )
    with _noted(home.locks, "server", "serve", 0.0, f"server works on {home.root}", advice):
        yield


@contextmanager
def audit_lock(home: Home, key: str) -> Iterator[None]:
    """Hold the lock of an audit, so that two do not write one set of measures.

    Raises
    ------
    ConflictError
        The same audit runs already.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(home.locks, f"audit-{key}", 0.0))
        except UnavailableError as error:
            raise ConflictError(
                "the same audit runs already. Wait for it, or stop it: its measures are used again."
            ) from error
        yield


@contextmanager
def _noted(
    locks: Path,
    name: str,
    by: str,
    seconds: float,
    works: str,
    advice: str,
    gone: Callable[[], bool] | None = None,
) -> Iterator[None]:
    """Hold a lock, with a note beside it from which whoever comes second is told who holds it."""
    holder = locks / f"{name}.json"
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(locks, name, seconds, gone))
        except UnavailableError as error:
            raise ConflictError(f"another {works} ({_told_by(holder)}). {advice}") from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "by": by}
        holder.write_text(json.dumps(note))  # nobody minds half a note: a .part would be left
        stack.callback(holder.unlink, missing_ok=True)
        yield


def _told_by(holder: Path) -> str:
    try:
        note = read_json(holder)
        return f"process {note['pid']} on {note['host']}, {note['by']}, since {note['since']}"
    except (IntegrityError, KeyError, TypeError):
        return "it has just begun"
