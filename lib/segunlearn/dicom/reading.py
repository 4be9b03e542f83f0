"""DICOM files of somebody else, read without believing their lengths."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from segunlearn.errors import InvalidInputError


def read_dicom(path: Path, *, force: bool = False, header_only: bool = False) -> Dataset:
    """Read a DICOM file.

    Parameters
    ----------
    path
        The file.
    force
        Also without the preamble of PS3.10.
    header_only
        Stop before the pixels.

    Raises
    ------
    InvalidInputError
        It is none, or damaged.
    OSError
        The disk does not give it.
    """
    with path.open("rb") as file:
        try:
            return dcmread(Clamped(file), force=force, stop_before_pixels=header_only)
        except Exception as error:  # pydicom raises a dozen kinds, OSError among them
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the file's
            raise InvalidInputError(
                f"{path.name}: no DICOM file, or a damaged one ({type(error).__name__})."
            ) from error


class Clamped:
    """A file that is never asked for more than it holds.

    An element may claim 4 GiB; pydicom asks for them, and Python sets them aside before it looks
    how much there is.

    Parameters
    ----------
    file
        Open for reading; it can seek.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        here = file.tell()
        self._size = file.seek(0, io.SEEK_END)
        file.seek(here)

    def read(self, size: int | None = -1) -> bytes:
        """Read ``size`` bytes, or what is left of the file."""
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size is None or size < 0 else min(size, left))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
