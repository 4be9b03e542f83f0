"""Files that are written beside, flushed to the disk and renamed, whoever writes them."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

#: What the system says of a disk, or of an account's share of it, without room.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def full_disk(error: BaseException) -> str:
    """Say of an error that the disk is full, and what to do; empty of any other."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return ""
    return "the disk is full. Nothing that is served was changed. Make room, and start it again."


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Give an empty file beside ``path`` to write into; it takes the place of ``path`` at the end.

    At every moment ``path`` holds the old or the new content, whole. When the block fails, nothing
    is left beside it.

    Parameters
    ----------
    path
        What is replaced; its folder is made.
    suffix
        Ending of the file beside, for libraries that go by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name.removesuffix(suffix)}.{uuid.uuid4().hex}.part{suffix}")
    try:
        with part.open("xb") as file:
            with suppress(OSError):  # shares without locks hold studies, and nobody tidies them
                fcntl.flock(file, fcntl.LOCK_EX)  # see ``is_being_written``
            yield part
            os.fsync(file.fileno())
            os.replace(part, path)  # noqa: PTH105 - one name for tests that stop at every call
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_being_written(part: Path) -> bool:
    """Whether ``replacing`` holds this file now, in any process of this machine."""
    with part.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what some network shares say of every folder
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
