"""Files that are replaced whole: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segunlearn.errors import IntegrityError
from segunlearn.replacing import is_being_written, replacing, sync_file, sync_folder

__all__ = [
    "clear_parts",
    "is_being_written",
    "read_json",
    "sync_file",
    "sync_folder",
    "write_durably",
    "write_json_durably",
]


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file by one rename: at every moment it holds the old or the new content, whole."""
    with replacing(Path(path)) as part:
        part.write_bytes(data)


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
