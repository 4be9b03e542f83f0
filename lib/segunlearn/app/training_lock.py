"""One training of a model at a time, whoever starts it: the server or the command line."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from segunlearn.app.options import Home
from segunlearn.errors import ConflictError, IntegrityError
from segunlearn.records.durable import read_json, write_json_durably


@contextmanager
def training_lock(home: Home, model: str, by: str, seconds: float) -> Iterator[None]:
    """Hold the lock of a model's trainings; the end of the process releases it, whatever ends it.

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

    Raises
    ------
    ConflictError
        Another training holds it; the message says which one, and what to do.
    """
    holder = home.locks / f"train-{model}.json"
    home.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.locks / f"train-{model}.lock")
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise ConflictError(
            f"another training of {model!r} runs ({_told_by(holder)}). Wait until it has "
            "ended, or stop it: in the viewer or by DELETE /train/ where the server runs it, "
            "else with Ctrl-C where it was started; the next one goes on from its last epoch."
        ) from error
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "by": by}
        write_json_durably(holder, note)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _told_by(holder: Path) -> str:
    try:
        note = read_json(holder)
        return f"process {note['pid']} on {note['host']}, {note['by']}, since {note['since']}"
    except (IntegrityError, KeyError, TypeError):
        return "it has just begun"
