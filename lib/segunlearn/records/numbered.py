"""Folders counted v0001, v0002, …, each of which appears by one rename and keeps its name.

Whoever adds one holds the lock of the place: what a killed process left half made is then nobody's
work and is removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from segunlearn.errors import InvalidInputError
from segunlearn.records.durable import sync_folder

#: Name of a folder.
NUMBERED: Final = re.compile(r"v\d{4,}")
_STAGING: Final = ".staging-"


def created_now() -> str:
    """Now, UTC, ISO 8601 with seconds: when a folder was made, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def names_in(place: Path) -> list[str]:
    """Names of the counted folders in a place, the oldest first; none where there is no place."""
    if not place.is_dir():
        return []
    found = (p.name for p in place.iterdir() if p.is_dir())
    return sorted((n for n in found if NUMBERED.fullmatch(n)), key=number_of)


def number_of(name: str) -> int:
    """Return the count of a folder: 12 of ``v0012``."""
    return int(name[1:])


def add_folder(place: Path, fill: Callable[[Path], None]) -> str:
    """Make the next folder of a place; it is there with all that ``fill`` wrote, or not at all.

    Parameters
    ----------
    place
        Made when it is missing. The caller holds its lock.
    fill
        Writes the content, flushed to the disk, into a folder that nobody lists.

    Returns
    -------
    str
        Name of the folder. A number is never used twice while the folders stay.
    """
    place.mkdir(parents=True, exist_ok=True)
    clear_staging(place)
    staging = place / f"{_STAGING}{uuid.uuid4().hex}"
    staging.mkdir()
    fill(staging)
    names = names_in(place)
    name = f"v{number_of(names[-1]) + 1 if names else 1:04d}"
    os.replace(staging, place / name)  # noqa: PTH105 - see records.durable
    sync_folder(place)
    return name


def clear_staging(place: Path) -> None:
    """Remove what killed processes left half made; the lock says that none is at work."""
    for stale in place.glob(f"{_STAGING}*"):
        shutil.rmtree(stale)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of a place between threads and processes; a killed holder releases it.

    Raises
    ------
    InvalidInputError
        A file is there instead.
    """
    if root.exists() and not root.is_dir():
        raise InvalidInputError(f"{root}: is no folder; choose another --home.")
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
