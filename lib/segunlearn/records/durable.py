"""Files that are replaced whole: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from pathlib import Path
from typing import Any

from segunlearn.errors import IntegrityError


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file by one rename: at every moment it holds the old or the new content, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # see ``is_being_written``
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)  # noqa: PTH105 - one name for tests that stop at every call
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_being_written(part: Path) -> bool:
    """Whether ``write_durably`` is at work on this file now, in any process of this machine."""
    with part.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def clear_parts(path: Path) -> None:
    """Remove what killed writers of a file left beside it; nobody may be writing it."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink()


def write_json_durably(path: Path, data: Any) -> None:
    """``write_durably`` of sorted, indented JSON."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_durably(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    IntegrityError
        The file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{path.parent.name}/{path.name}: cannot be read ({error}). The file was damaged or "
            "removed by hand; restore it from a backup."
        ) from error
