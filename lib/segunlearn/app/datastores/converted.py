"""NIfTI files made of what an archive holds, each with a note beside it that tells of what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segunlearn.errors import IntegrityError
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.volumes import Volume, write_volume


class Converted:
    """Files by SeriesInstanceUID; all of them may be deleted at any time.

    Parameters
    ----------
    folder
        Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, uid: str) -> Path:
        """File of a series, which need not exist yet."""
        return self._folder / f"{uid}.nii.gz"

    def note(self, uid: str) -> dict[str, Any]:
        """Note beside a file: written after it; empty where one of the two is not there."""
        path = self._note(uid)
        if not path.is_file() or not self.file(uid).is_file():
            return {}
        try:
            return dict(read_json(path))
        except (IntegrityError, ValueError, TypeError):
            return {}

    def is_whole(self, uid: str, made_of: Mapping[str, Any]) -> bool:
        """Whether a file is there as it was written, and made of this; None is not compared."""
        note = self.note(uid)
        try:
            size = self.file(uid).stat().st_size
        except FileNotFoundError:
            return False
        if not note or not 0 < size == note.get("size", size):  # older notes tell no size
            return False
        told = {name: value for name, value in made_of.items() if value is not None}
        return all(note.get(name) == value for name, value in told.items())

    def put(self, uid: str, volume: Volume, note: Mapping[str, Any]) -> Path:
        """Write a file, then its note."""
        path = self.file(uid)
        write_volume(volume, path)
        write_json_durably(self._note(uid), {**note, "size": path.stat().st_size})
        return path

    def drop_note(self, uid: str) -> None:
        """Take away what says that a file is whole."""
        self._note(uid).unlink(missing_ok=True)

    def _note(self, uid: str) -> Path:
        return self._folder / f"{uid}.json"
