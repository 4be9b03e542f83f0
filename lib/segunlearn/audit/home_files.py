"""The files of a home folder, wherever its links lead."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class HomeFiles:
    """What lies below a folder, as it was when it was looked at.

    Parameters
    ----------
    root
        The folder; links in it are followed, once round where they lead in a circle.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    closed: dict[Path, str] = field(default_factory=dict)
    """What could not be looked at, and why."""

    def __post_init__(self) -> None:
        self._walk(self.root, frozenset())
        self.files.sort()
        self.folders.sort()

    def inside(self, folder: Path) -> list[Path]:
        """Folders in a folder, sorted."""
        return [p for p in self.folders if p.parent == folder]

    def below(self, folder: Path) -> list[Path]:
        """Files at any depth below a folder, sorted."""
        return [p for p in self.files if p.is_relative_to(folder)]

    def _walk(self, folder: Path, above: frozenset[tuple[int, int]]) -> None:
        try:
            status = folder.stat()
            with os.scandir(folder) as found:
                entries = list(found)
        except FileNotFoundError:
            return  # gone meanwhile, as a training's
        except OSError as error:
            self.closed[folder] = str(error.strerror)
            return
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        self.folders.append(folder)
        for entry in entries:
            path = Path(entry.path)
            try:
                if entry.is_dir():
                    self._walk(path, above | {here})
                elif entry.is_file():
                    self.files.append(path)
            except OSError as error:
                self.closed[path] = str(error.strerror)
