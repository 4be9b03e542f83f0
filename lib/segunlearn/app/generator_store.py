"""The generators of replayed images of a home: one folder a model, one generator in use.

::

    <home>/replay/<model>/versions/v0001/…    as ``records.versions``: weights, config, manifest
    <home>/replay/<model>/versions/v0001/cases.json    whose images shaped it, by pseudonym
    <home>/replay/<model>/versions/v0001/report.html   pictures of it

A generator remembers whoever it was trained on. From the moment of a mark, one that saw the target
replays nothing; when the request is fulfilled its weights and pictures are destroyed, wherever it
was not fitted again before. A new generator takes the place of all earlier ones, which go at once:
an earlier one would know what the new one was to forget.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from segunlearn.app import checkpoints
from segunlearn.app.options import Home
from segunlearn.cases import Case
from segunlearn.dicom.identifiers import Pseudonyms, load_or_create_key
from segunlearn.errors import ConflictError, NotFoundError, SegUnlearnError
from segunlearn.records.durable import clear_parts, write_durably
from segunlearn.records.forget_set import ForgetRequest, HistoryEntry, OnChange
from segunlearn.records.numbered import clear_staging, locked, names_in
from segunlearn.records.targets import Target
from segunlearn.records.version_files import read_pointer
from segunlearn.records.version_info import WEIGHTS
from segunlearn.records.versions import VersionInfo, VersionRegistry

logger = logging.getLogger(__name__)

#: Pictures of a generator, beside its weights: they show patients.
REPORT: Final = "report.html"


class Generators:
    """Generators for one model.

    Parameters
    ----------
    home
        Of the installation.
    model
        Name of the segmentation model whose patches they make.
    """

    def __init__(self, home: Home, model: str) -> None:
        self.model = model
        self.registry = VersionRegistry(home.replay / model)

    def versions(self) -> list[VersionInfo]:
        """All generators, oldest first; also those whose weights were destroyed."""
        return self.registry.versions()

    def folders(self) -> list[Path]:
        """Folder of every generator, whether its records can be read or not."""
        place = self.registry.root / "versions"
        return [place / name for name in names_in(place)]

    def newest(self) -> VersionInfo | None:
        """Read which generator was made last and is not destroyed; None without one."""
        info = self.registry.active()
        return info if info is not None and info.weights.is_file() else None

    def usable(self, targets: Iterable[Target], pseudonyms: Pseudonyms) -> VersionInfo:
        """Find the generator that may replay.

        Parameters
        ----------
        targets
            Of live forget requests.
        pseudonyms
            Of the site.

        Raises
        ------
        NotFoundError
            There is none.
        ConflictError
            It saw what is to be forgotten.
        """
        info = self.newest()
        if info is None:
            raise NotFoundError(
                f"the model {self.model!r} has no generator, so nothing can be replayed. Train one "
                "(segunlearn replay train), or read stored studies (retain=stored)."
            )
        if knows(info, targets, pseudonyms):
            raise ConflictError(
                f"the generator {info.version} was trained on what is to be forgotten; replaying "
                "it would teach it again. Train it again (segunlearn replay train): that leaves "
                "out what is marked."
            )
        return info

    def publish(
        self,
        weights: Path,
        config: Mapping[str, Any],
        *,
        cases: Sequence[Case],
        pseudonyms: Pseudonyms,
        run_id: str,
        details: Mapping[str, Any],
        report: str,
        parent_sha256: str | None = None,
    ) -> VersionInfo:
        """Put a generator in the place of all others, whose weights and pictures go.

        Parameters
        ----------
        weights
            Safetensors file.
        config
            Of the generator, with the name and digest of the network it was made for.
        cases
            Whose images shaped it or its parent.
        report
            HTML.
        """
        earlier = [v for v in self.versions() if v.weights.is_file()]
        info = self.registry.publish(
            weights, config, parent_sha256=parent_sha256, run_id=run_id, details=details,
            allow_retired=True,  # the same images again: who they show is checked at each use
        )  # fmt: skip
        checkpoints.note(info.path, cases, pseudonyms)  # killed before: it counts as knowing all
        write_durably(info.path / REPORT, report.encode())
        for old in earlier:
            if old.version != info.version:
                self.destroy(old.path)
        return info

    def destroy(self, folder: Path) -> None:
        """Remove weights and pictures for good; what the generator was stays recorded.

        Doing it again finishes or changes nothing.

        Parameters
        ----------
        folder
            Of the generator.

        Raises
        ------
        IntegrityError
            They are gone, but a damaged record of this model keeps its own from saying so.
        OSError
            A file cannot be deleted.
        """
        with locked(self.registry.root):
            for name in (REPORT, WEIGHTS):  # before any record is read: one may be damaged
                clear_parts(folder / name)
                (folder / name).unlink(missing_ok=True)
        pointer = read_pointer(self.registry.root / "active")
        if pointer is not None and pointer[0] == folder.name:
            (self.registry.root / "active").unlink()
        self.registry.retire(folder.name)
        self.registry.destroy_weights(folder.name)


def knows(info: VersionInfo, targets: Iterable[Target], pseudonyms: Pseudonyms) -> bool:
    """Whether a generator was shaped by one of the targets, or nobody can say."""
    return _knows(info.path, list(targets), pseudonyms)


def _knows(folder: Path, targets: Sequence[Target], pseudonyms: Pseudonyms) -> bool:
    wanted = [t for t in targets if t.kind != "structure"]
    named: Collection[tuple[str, str, str]] = checkpoints.named_by(wanted, pseudonyms)
    return bool(wanted) and checkpoints.saw(folder, named, pseudonyms)


def destroy_knowing(home: Home, targets: Iterable[Target], pseudonyms: Pseudonyms) -> list[str]:
    """Destroy every generator that knows one of the targets; gives their names.

    What killed processes left half made goes, too: nobody can say whom it knows. What fails at one
    generator is logged, and keeps no other alive.
    """
    found, targets = [], list(targets)
    for root in sorted(home.replay.glob("*/")):
        generators = Generators(home, root.name)
        with _logged(root.name), locked(root):  # nobody publishes now
            clear_staging(root / "versions")
        for folder in generators.folders():
            name = f"{root.name}/{folder.name}"
            if not (folder / WEIGHTS).is_file() or not _knows(folder, targets, pseudonyms):
                continue
            with _logged(name):
                generators.destroy(folder)
            if not (folder / WEIGHTS).exists():
                found.append(name)
    return found


@contextmanager
def _logged(name: str) -> Iterator[None]:
    try:
        yield
    except (SegUnlearnError, OSError) as error:
        logger.error("generator %s: %s", name, error)


def forgetting(home: Home) -> OnChange:
    """Make the hook that destroys generators which know what has just been forgotten.

    It never keeps a request from being fulfilled: what it cannot delete is logged, and the sweep
    of the next audit finds it.
    """

    def tidy(connection: Connection, request: ForgetRequest, entry: HistoryEntry) -> None:
        if entry.from_state == entry.to_state or entry.to_state not in ("fulfilled", "purged"):
            return
        try:
            if home.replay.is_dir():
                pseudonyms = Pseudonyms(load_or_create_key(home.site_key))
                for name in destroy_knowing(home, request.targets, pseudonyms):
                    logger.info("generator %s knew what was forgotten: destroyed", name)
        except (SegUnlearnError, OSError) as error:
            logger.error("generators could not be looked at: %s", error)

    return tidy
