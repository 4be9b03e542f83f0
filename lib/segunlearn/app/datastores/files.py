"""Images and labels that lie in folders as they are."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from segunlearn.app.datastores.studies import LabelRecord
from segunlearn.volumes import SUFFIXES, strip_suffix


def volumes_in(folder: Path) -> list[Path]:
    """Volumes of a folder by name; none that is half-written or hidden."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_file()]
    return [folder / n for n in sorted(names) if n.endswith(SUFFIXES) and not n.startswith(".")]


def labels_in(folder: Path, tag: str) -> dict[str, LabelRecord]:
    """Labels of a folder by image; one that is removed meanwhile is left out."""
    found = {}
    for path in volumes_in(folder):
        with suppress(FileNotFoundError):
            stat = path.stat()
            version = f"{stat.st_mtime_ns}-{stat.st_size}"
            info = {"name": path.name, "path": str(path)}
            found[strip_suffix(path)] = LabelRecord(strip_suffix(path), tag, version, info)
    return found
