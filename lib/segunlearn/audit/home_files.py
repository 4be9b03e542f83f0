"""The files of a home folder, wherever its links lead, and how a report names them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.volumes import SUFFIXES

WEIGHTS_ENDINGS: Final = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
EXPORT_ENDINGS: Final = (".ts", ".onnx", ".torchscript", ".plan", ".tflite", ".mlmodel")
SEALED_ENDINGS: Final = (".sealed", ".enc")
_ENDINGS: Final = (
    *SUFFIXES, *WEIGHTS_ENDINGS, *EXPORT_ENDINGS, *SEALED_ENDINGS,
    ".npy", ".npz", ".dcm", ".zip", ".json", ".html", ".db",
)  # fmt: skip

#: What this program calls files and folders, without their endings.
_WORDS: Final = {
    "adapter", "adapter_model", "archive-index", "audits", "best", "cache", "candidate",
    "checkpoint", "deposits", "exports", "final", "generator", "image", "images", "index", "infos",
    "label", "labels", "lora", "meta", "mlruns", "model", "models", "of-folder", "optimiser",
    "original", "reference", "replay", "report", "results", "runs", "sessions", "sites", "state",
    "tmp", "training", "uncertainty", "unlearning", "versions", "weights", "work",
}  # fmt: skip
#: What it counts: tensors of a training, checkpoints, references of an audit, uploads.
_COUNTED: Final = re.compile(r"\d{5}-(image|label)|(state|best)-\d{6}|full-\d+")
#: What it names by a count, a digest or at random, and where.
_MADE: Final = re.compile(
    r"(runs|audits|deposits)/[0-9a-f]{32}|(audits/work|cache/labels)/[0-9a-f]{12}"
    r"|(models|replay)/[^/]+/versions/(v\d{4,}|\.staging-[0-9a-f]{32})"
    r"|sites/[^/]+/[0-9a-f]{16}(/v\d{4,})?|deposits/[0-9a-f]{32}/v\d{4,}"
)
#: Where models are, which somebody named who set the program up.
_OF_MODELS: Final = ("models", "replay", "sites")


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


@dataclass(frozen=True)
class ShownNames:
    """How files of a home are named in a report: by what this program itself calls them.

    Every other part of a path may name somebody, and is shown as its pseudonym and its ending.

    Parameters
    ----------
    home
        Where the files lie.
    pseudonyms
        Of the site: who has its key and the home finds the file again.
    """

    home: HomeFiles
    pseudonyms: Pseudonyms

    def of(self, path: Path) -> str:
        """Name a file or folder of the home."""
        parts = path.relative_to(self.home.root).parts
        return "/".join(self._part(n, parts[:i]) for i, n in enumerate(parts)) or "."

    def find(self, shown: str) -> list[Path]:
        """Files and folders that are named so."""
        found = [*self.home.folders, *self.home.closed, *self.home.files]
        return [path for path in found if self.of(path) == shown]

    def _part(self, name: str, above: tuple[str, ...]) -> str:
        ending = next((e for e in _ENDINGS if name.endswith(e) and name != e), "")
        stem = name.removesuffix(ending)
        if (
            stem in _WORDS
            or _COUNTED.fullmatch(stem)
            or _MADE.fullmatch("/".join((*above, stem)))
            or (len(above) == 1 and above[0] in _OF_MODELS and self._is_model(name))
        ):
            return name
        readable = stem.encode("utf-8", "replace").decode()  # a name may hold any bytes
        return self.pseudonyms.of(readable) + ending

    def _is_model(self, name: str) -> bool:
        roots = (self.home.root / kind / name / "versions" for kind in ("models", "replay"))
        return any(root in self.home.folders for root in roots)
