"""The artefact sweep: every place in a home folder that may still hold a forgotten study.

Each place is *absent* (it is not there, or holds nothing of the study), *replaced* (a version made
without the study stands there), *sealed* (there, encrypted), or *open* (there for whoever can read
the folder). Only names, sizes and records are looked at: a file whose content cannot be told from
its name is open until somebody says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from segunlearn.audit.home_files import (
    EXPORT_ENDINGS,
    SEALED_ENDINGS,
    WEIGHTS_ENDINGS,
    HomeFiles,
    ShownNames,
)
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import IntegrityError, InvalidInputError
from segunlearn.records.durable import read_json
from segunlearn.records.numbered import NUMBERED
from segunlearn.records.version_info import META_MODEL, WEIGHTS, read_info
from segunlearn.records.versions import VersionInfo, VersionRegistry, file_sha256
from segunlearn.volumes import SUFFIXES

State = Literal["absent", "replaced", "sealed", "open"]

_NUMBERED: Final = re.compile(r"\d+(-\w+)?")
#: Weights of a version, in its folder; any others there are nobody's.
_OWN: Final = (WEIGHTS, META_MODEL)


@dataclass(frozen=True)
class Place:
    """One place that was looked at.

    Parameters
    ----------
    kind
        What it is, e.g. ``"version"``, ``"image cache"``.
    where
        Path below the home folder; names that are not this program's are pseudonyms.
    state
        See the module.
    words
        Why, and what to do where it is open.
    """

    kind: str
    where: str
    state: State
    words: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def sweep(
    home: Path,
    identifiers: Collection[str],
    saw: Collection[str],
    pseudonyms: Pseudonyms,
    *,
    without: Collection[str] = (),
    index_holds: Callable[[Path, Collection[str]], bool] | None = None,
) -> list[Place]:
    """Look at every place of a home folder.

    Parameters
    ----------
    home
        The home folder of the installation.
    identifiers
        Of the forgotten studies, series and persons: what a file name may hold.
    saw
        SHA-256 of all weights that the ledger says were shaped by them.
    pseudonyms
        Of the site: no identifier is printed.
    without
        SHA-256 of weights that an audit found to be without them.
    index_holds
        Whether the index of a DICOM folder names one of the identifiers; None counts it as open.

    Returns
    -------
    list of Place
        At least one for each kind of place, and one for whatever could not be looked at; the open
        ones first.

    Raises
    ------
    InvalidInputError
        The home folder is not there, or nothing is to be looked for.
    """
    if not home.is_dir():
        raise InvalidInputError(f"{home.name}: there is no such home folder to sweep.")
    if not identifiers or not all(identifiers):
        raise InvalidInputError("the sweep needs the identifiers of the forgotten studies.")
    found = HomeFiles(home)
    look = _Look(
        home, found, ShownNames(found, pseudonyms), frozenset(identifiers), frozenset(saw),
        frozenset(without), pseudonyms,
    )  # fmt: skip
    places = [
        *look.closed(),
        *look.versions(),
        *look.adapters(),
        *look.generators(),
        *look.loose_weights(),
        *look.named("image cache", home / "cache"),
        *look.named("image", home / "images"),
        *look.named("label", home / "labels"),
        *look.named("note", home / "infos", "says something of the study. Remove the file."),
        *look.training_caches(),
        *look.uploads(),
        *look.pictures(),
        *look.index(home / "archive-index", index_holds),
        *look.logs(),
        *look.exports(),
    ]
    order: tuple[State, ...] = ("open", "sealed", "replaced", "absent")
    return sorted(places, key=lambda p: (order.index(p.state), p.kind, p.where))


@dataclass(frozen=True)
class _Look:
    home: Path
    found: HomeFiles
    names: ShownNames
    identifiers: frozenset[str]
    saw: frozenset[str]
    without: frozenset[str]
    pseudonyms: Pseudonyms

    def closed(self) -> list[Place]:
        """Nobody can say what lies there."""
        advice = "Give the account that audits the right to read it, and look again."
        return [
            self._place("folder", path, "open", f"could not be looked at ({why}). {advice}")
            for path, why in self.found.closed.items()
        ]

    def versions(self) -> list[Place]:
        """Look at the published versions of all models."""
        places = []
        for root in self.found.inside(self.home / "models"):
            for info in VersionRegistry(root).versions():
                places.append(self._version(root.name, info))
        return places or [Place("version", "models", "absent", "no version was published.")]

    def _version(self, model: str, info: VersionInfo) -> Place:
        where = f"models/{model}/versions/{info.version}"
        digest = _digest(info.weights)
        if digest is None and info.weights_state == "sealed":
            return Place("version", where, "sealed", "a deposit holds it; its keys decide over it.")
        if digest is None:
            return Place("version", where, "absent", "its weights were destroyed.")
        if digest in self.without:
            return Place("version", where, "replaced", "audited: made without the studies.")
        if digest in self.saw or info.sha256 in self.saw:
            words = "its training used the studies"
            words += "; it is being served" if info.state == "active" else f" ({info.state})"
            return Place("version", where, "open", f"{words}. Purge it, or seal it.")
        if digest != info.sha256:
            return Place("version", where, "open", "its weights are not those it was published as.")
        return Place("version", where, "absent", "the ledger names no use of the studies.")

    def generators(self) -> list[Place]:
        """Look at the generators of replayed images: they remember who they were trained on."""
        places = [
            self._generator(folder)
            for root in self.found.inside(self.home / "replay")
            for folder in self.found.inside(root / "versions")
            if NUMBERED.fullmatch(folder.name)
        ]
        return places or [Place("generator", "replay", "absent", "there is none.")]

    def _generator(self, folder: Path) -> Place:
        def place(state: State, words: str) -> Place:
            return self._place("generator", folder, state, words)

        digest = _digest(folder / WEIGHTS)
        if digest is None and any(folder.glob("*report.html*")):
            return place("open", "its weights were destroyed; its pictures are there. Remove them.")
        if digest is None:
            return place("absent", "its weights and pictures were destroyed.")
        try:
            published = read_info(folder).sha256
        except IntegrityError:
            words = "nobody can say whom it knows: its record is damaged. Remove its folder, or"
            return place("open", f"{words} restore the record from a backup.")
        if digest in self.saw or digest != published:
            words = "it was trained on the studies, or changed since. Train it again"
            return place("open", f"{words} (segunlearn replay train).")
        return place("absent", "the ledger names no use of the studies.")

    def adapters(self) -> list[Place]:
        """Adapters of sites: what their support taught them, and what their base knew."""
        places = []
        for path in self.found.below(self.home / "sites"):
            if path.suffix not in WEIGHTS_ENDINGS or (digest := _digest(path)) is None:
                continue
            try:
                record = read_json(path.with_name("about.json"))
                base, support = str(record["base"]), set(record["about"]["support"])
            except (IntegrityError, KeyError, TypeError):
                words = "a site adapter without a record. Remove the file."
                places.append(self._place("site adapter", path, "open", words))
                continue
            own = support & {self.pseudonyms.of(i) for i in self.identifiers}
            if not own and base in self.without:
                words = "made for a version that was audited as made without the studies."
                places.append(self._place("site adapter", path, "replaced", words))
            elif own or digest in self.saw or base in self.saw:
                words = "a site adapter that saw the studies, or whose base did. Mark them: it goes"
                words += " at a mark, and when its base is sealed."
                places.append(self._place("site adapter", path, "open", words))
        nothing = Place("site adapter", "sites", "absent", "no site adapter saw the studies.")
        return places or [nothing]

    def loose_weights(self) -> list[Place]:
        """Checkpoints, optimiser states and deposits outside versions and sites."""
        places = []
        for path in self.found.below(self.home):
            inside = path.relative_to(self.home).parts
            if inside[0] == "sites" or _is_versions_own(inside):
                continue
            if path.name.endswith(SEALED_ENDINGS):
                places.append(self._place("deposit", path, "sealed", "its key decides over it."))
            elif path.suffix in WEIGHTS_ENDINGS:
                digest = _digest(path)
                if digest is None:
                    continue
                if digest in self.without:
                    places.append(self._place("weights", path, "replaced", "audited as without."))
                    continue
                words = "weights outside the published versions"
                words += " that saw the studies" if digest in self.saw else " of unknown origin"
                places.append(self._place("weights", path, "open", f"{words}. Remove the file."))
        return places or [Place("weights", "runs", "absent", "no checkpoint or optimiser state.")]

    def named(
        self, kind: str, folder: Path, words: str = "holds the study's voxels. Remove the file."
    ) -> list[Place]:
        """Files that carry an identifier, or its pseudonym, in their path."""
        wanted = self.identifiers | {self.pseudonyms.of(i) for i in self.identifiers}
        found = [
            self._place(kind, path, "open", words)
            for path in self.found.below(folder)
            if any(w in str(path.relative_to(self.home)) for w in wanted)
        ]
        nothing = Place(kind, folder.name, "absent", "no file of the studies.")
        return found or [nothing]

    def training_caches(self) -> list[Place]:
        """Tensors that a training keeps are numbered: nobody can say whose they are."""
        places = [
            self._place("training cache", path, "open", "voxels of an unnamed study. Remove it.")
            for path in self.found.below(self.home)
            if path.suffix in (".npy", ".npz") and _NUMBERED.fullmatch(path.stem)
        ]
        return places or [Place("training cache", "runs", "absent", "there is none.")]

    def uploads(self) -> list[Place]:
        """Look for volumes that were sent, by names that say nothing."""
        places = [
            self._place("upload", path, "open", "voxels of an unnamed study. Remove it.")
            for folder in ("sessions", "tmp")
            for path in self.found.below(self.home / folder)
            if path.name.endswith((*SUFFIXES, ".dcm", ".zip"))
        ]
        return places or [Place("upload", "sessions", "absent", "no volume that was sent.")]

    def pictures(self) -> list[Place]:
        """Look for reports of audits with pictures of the forgotten."""
        places = []
        for folder in self.found.inside(self.home / "audits"):
            report = folder / "report.html"
            if not report.is_file():
                continue
            try:
                shown = read_json(folder / "audit.json")["about"]["pictures"]
                words = "shows slices of forgotten studies. Remove the audit's folder."
            except (IntegrityError, KeyError, TypeError):
                shown, words = True, "may show slices of studies: its audit is damaged."
            if shown:
                places.append(self._place("audit report", report, "open", words))
        nothing = Place("audit report", "audits", "absent", "none shows pictures.")
        return places or [nothing]

    def index(
        self, folder: Path, holds: Callable[[Path, Collection[str]], bool] | None
    ) -> list[Place]:
        """Look at the index of a DICOM folder: identifiers and header values, no pixels."""
        files = self.found.below(folder)
        if not files:
            return [Place("archive index", folder.name, "absent", "there is no index.")]
        places = []
        for path in files:
            if holds is not None and not holds(path, self.identifiers):
                places.append(self._place("archive index", path, "absent", "names none of them."))
            else:
                words = "may name the studies; no pixels. It is rebuilt when it is removed."
                places.append(self._place("archive index", path, "open", words))
        return places

    def logs(self) -> list[Place]:
        """Event files of TensorBoard and folders of MLflow, which may hold pictures."""
        places = [
            self._place("training log", path, "open", "may hold pictures of cases. Remove it.")
            for path in self.found.below(self.home)
            if path.name.startswith("events.out.tfevents") or "mlruns" in path.parts
        ]
        return places or [Place("training log", ".", "absent", "no TensorBoard or MLflow files.")]

    def exports(self) -> list[Place]:
        """Look for exported models, which stay behind when a version is replaced."""
        places = [
            self._place("export", path, "open", "an exported model of unknown origin. Remove it.")
            for path in self.found.below(self.home)
            if path.suffix in EXPORT_ENDINGS
        ]
        return places or [Place("export", ".", "absent", "no exported model.")]

    def _place(self, kind: str, path: Path, state: State, words: str) -> Place:
        return Place(kind, self.names.of(path), state, words)


def _is_versions_own(inside: tuple[str, ...]) -> bool:
    """Whether weights are those of a version or generator; what a killed publish left is not."""
    return (
        len(inside) == 5
        and inside[0] in ("models", "replay")
        and inside[2] == "versions"
        and NUMBERED.fullmatch(inside[3]) is not None
        and inside[4] in _OWN
    )


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None where it is not there, or not any more, empty where it is closed."""
    try:
        return file_sha256(path)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
