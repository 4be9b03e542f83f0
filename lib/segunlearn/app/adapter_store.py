"""Site adapters of a model: folders that never change but in their state, and a pointer a site.

::

    home/sites/<model>/<site>/site.json                  {"site"}: the key it stands for
    home/sites/<model>/<site>/v0001/adapter.safetensors  changed tensors, see adapters.site
    home/sites/<model>/<site>/v0001/about.json           digest, base, meta model, run, state, about
    home/sites/<model>/<site>/v0001/cases.json           pseudonyms of what it saw: checkpoints
    home/sites/<model>/<site>/current                    {"version", "sha256", "taken"}

An empty ``version``: the base. ``taken``: what served until forgetting took it, as long as nobody
has chosen since.

``<site>`` is the beginning of the key's SHA-256. As with versions, an adapter appears by one rename
and the pointer changes by one rename. Nothing is deleted but the tensors of an adapter that must be
forgotten; what is known of it stays.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from segunlearn.app.adapter_info import FILE, AdapterInfo, AdapterState, read_adapter
from segunlearn.errors import ConflictError, IntegrityError, NotFoundError
from segunlearn.records.durable import (
    read_json,
    sync_folder,
    write_durably,
    write_json_durably,
)
from segunlearn.records.numbered import add_folder, created_now, locked, names_in, number_of
from segunlearn.records.version_info import VersionInfo

if TYPE_CHECKING:  # it loads torch
    from segunlearn.adapters.site import SiteAdapter

__all__ = ["AdapterInfo", "AdapterState", "SiteAdapters", "site_digest"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Why an adapter that may serve is not fallen back to.
ROLLED_BACK: Final = "it was rolled back"
_SITE: Final = re.compile(r"[0-9a-f]{16}")


def site_digest(site: str) -> str:
    """Name of a site's folder: the first 16 digits of its key's SHA-256."""
    return hashlib.sha256(site.encode()).hexdigest()[:16]


class SiteAdapters:
    """The site adapters of one model in a folder.

    Parameters
    ----------
    root
        ``home/sites/<model>``; made at the first ``put``.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.root.name

    def each(self, read: Callable[[str], T]) -> list[T]:
        """Read something of every site that ever had an adapter, in the order of their keys.

        A site with a damaged record is passed over, which the log tells: it serves nobody, and is
        no reason to stop at the others.
        """
        found, damaged = self._each(read)
        for error in damaged:
            logger.error("passed over: %s", error)
        return found

    def damaged(self) -> list[str]:
        """Say of each site that ``each`` may pass over what is wrong, one sentence a site."""
        return self._each(lambda site: (self.versions(site), self.current(site)))[1]

    def sites(self) -> list[str]:
        """Keys of all sites that ever had an adapter, sorted; what cannot be read is left out."""
        return self.each(lambda site: site)

    def in_service(self, served: VersionInfo | None) -> list[str]:
        """Keys of the sites whose adapter serves with a version; a damaged one serves nobody."""
        chosen = self.each(self.current)
        return [i.site for i in chosen if i is not None and served is not None and i.fits(served)]

    def site_of(self, key: str) -> str:
        """Site whose folder is named so.

        Raises
        ------
        NotFoundError
            There is none.
        IntegrityError
            It does not say what it stands for.
        """
        if not _SITE.fullmatch(key) or not (self.root / key / "site.json").is_file():
            raise NotFoundError(f"model {self.model!r} has no site {key!r:.40}.")
        try:
            return str(read_json(self.root / key / "site.json")["site"])
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"{key}/site.json: lacks {error}; restore it.") from error

    def all(self) -> list[AdapterInfo]:
        """Every adapter of every site that can be read, each site's oldest first."""
        return [info for site in self.each(self.versions) for info in site]

    def folders(self) -> list[Path]:
        """Folder of every adapter, whether its records can be read or not."""
        return [folder / name for folder in self._folders() for name in names_in(folder)]

    def at(self, folder: Path) -> AdapterInfo:
        """Adapter of a folder, whatever its site's pointer says.

        Raises
        ------
        IntegrityError, NotFoundError
            Its record, or its site's, is damaged or gone.
        """
        return self._info(self.site_of(folder.parent.name), folder.name, None)

    def versions(self, site: str) -> list[AdapterInfo]:
        """Adapters of a site, oldest first; empty for an unknown site.

        Raises
        ------
        IntegrityError
            A file is damaged.
        """
        pointer = self._pointer(site)
        return [self._info(site, name, pointer) for name in self._names(site)]

    def get(self, site: str, version: str) -> AdapterInfo:
        """One adapter.

        Raises
        ------
        NotFoundError
            There is none.
        """
        if version not in self._names(site):
            known = ", ".join(self._names(site)) or "none"
            raise NotFoundError(
                f"site {site!r:.200} has no adapter {version!r:.20}; there are {known}."
            )
        return self._info(site, version, self._pointer(site))

    def current(self, site: str) -> AdapterInfo | None:
        """Return the adapter that is chosen for a site; None when the base serves.

        Raises
        ------
        IntegrityError
            The pointer or the adapter's record is damaged.
        """
        pointer = self._pointer(site)
        if pointer is None:
            return None
        version, sha256 = pointer
        if version not in self._names(site):
            raise IntegrityError(
                f"site {site!r:.200}: its adapter {version} is not on the disk. Roll back or "
                "activate another one."
            )
        info = self._info(site, version, pointer)
        if info.sha256 != sha256:
            raise IntegrityError(
                f"site adapter {info.name}: its record was changed. Activate an adapter again."
            )
        return info if info.state == "current" and info.here else None

    def taken(self, site: str) -> AdapterInfo | None:
        """Return what served a site until it was retired; None where a person chose since.

        Raises
        ------
        IntegrityError
            The pointer or the adapter's record is damaged.
        """
        names, path = self._names(site), self._folder(site) / "current"
        data = read_json(path) if path.exists() else {}
        older = names[-1] if names else ""  # what older programs wrote does not say it
        version = data.get("taken", older) or data.get("version")
        info = self._info(site, version, None) if version in names else None
        return info if info is not None and info.state == "retired" else None

    def put(
        self,
        site: str,
        adapter: SiteAdapter,
        *,
        run_id: str,
        note: Callable[[Path], None],
        activate: bool = True,
    ) -> AdapterInfo:
        """Keep an adapter, and by default choose it for its site.

        Parameters
        ----------
        site
            Its key as text.
        adapter
            Of the base that is served; ``activate`` later checks it again.
        run_id
            The run that made it.
        note
            Writes down in a folder whose studies it saw (``checkpoints.note``).
        activate
            Choose it from now on.
        """
        manifest = {
            "sha256": adapter.sha256,
            "base": adapter.base,
            "meta": adapter.start.meta_sha256 if adapter.start is not None else "",
            "created": created_now(),
            "run_id": run_id,
            "state": "available",
            "weights": "here",
            "why": "",
            "about": dict(adapter.about),
        }

        def fill(staging: Path) -> None:
            write_durably(staging / FILE, adapter.content)
            write_json_durably(staging / "about.json", manifest)
            note(staging)

        with locked(self.root):
            folder = self._folder(site)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "site.json").is_file():
                write_json_durably(folder / "site.json", {"site": site})
            name = add_folder(folder, fill)
            info = self._info(site, name, None)
            if activate:
                self._point_to(site, info)
            return self._info(site, name, self._pointer(site))

    def activate(self, site: str, version: str, served: VersionInfo) -> AdapterInfo:
        """Choose an adapter for its site; its digest is checked first.

        Raises
        ------
        NotFoundError
            There is none.
        ConflictError
            It is retired, or made for other weights or another meta model than are served.
        IntegrityError
            Its file was changed.
        """
        with locked(self.root):
            info = self.get(site, version)
            if info.state == "retired":
                raise ConflictError(
                    f"site adapter {info.name} is retired ({info.why}) and does not serve again. "
                    "Adapt the site again."
                )
            if misfit := info.misfit(served):
                raise ConflictError(
                    f"site adapter {info.name} {misfit}. Adapt the site again, or activate that "
                    "version first."
                )
            info.load()
            self._rewrite(info, why="")
            self._point_to(site, info)
            return self._info(site, version, self._pointer(site))

    def roll_back(self, site: str, served: VersionInfo) -> AdapterInfo | None:
        """Choose the adapter before the current one; the base where there is none before.

        Adapters that are retired, or do not fit the version that is served, are passed over; so
        are those that were rolled back before and not activated since, here and in ``retire``.

        Returns
        -------
        AdapterInfo or None
            What serves the site now; None: the base.

        Raises
        ------
        ConflictError
            The base serves already.
        """
        with locked(self.root):
            pointer = self._pointer(site)
            if pointer is None:
                raise ConflictError(
                    f"site {site!r:.200} is served by the base already; there is nothing to roll "
                    "back."
                )
            if pointer[0] in self._names(site):
                rolled = self.get(site, pointer[0])
                self._rewrite(rolled, why=rolled.why or ROLLED_BACK)
            return self._fall_back(site, pointer[0], lambda info: info.fits(served))

    def retire(self, infos: list[AdapterInfo], why: str) -> None:
        """Take adapters out of service for good; an earlier one that goes with it serves, or none.

        Their tensors stay until ``destroy``. First the records say it, and what they say is served
        to nobody; then the pointers move.
        """
        if not infos:
            return
        with locked(self.root):
            for info in infos:
                self._rewrite(info, state="retired", why=why)
            for info in infos:
                pointer = self._pointer(info.site)
                if pointer is not None and pointer[0] == info.version:
                    taken = read_json(self._folder(info.site) / "current").get("taken")
                    self._fall_back(info.site, pointer[0], info.goes_with, taken or pointer[0])

    def destroy(self, infos: list[AdapterInfo], why: str) -> None:
        """Retire adapters and remove their tensors; doing it again finishes or changes nothing."""
        self.retire([i for i in infos if i.state != "retired"], why)
        with locked(self.root):
            for info in infos:
                info.file.unlink(missing_ok=True)
                sync_folder(info.path)
                self._rewrite(info, weights="destroyed")

    def _fall_back(
        self, site: str, version: str, may_serve: Callable[[AdapterInfo], bool], taken: str = ""
    ) -> AdapterInfo | None:
        earlier = [
            i
            for i in self.versions(site)
            if number_of(i.version) < number_of(version)
            and i.state != "retired"
            and i.why != ROLLED_BACK
            and i.here
            and may_serve(i)
        ]
        self._point_to(site, earlier[-1] if earlier else None, taken)
        return self.current(site)

    def _each(self, read: Callable[[str], T]) -> tuple[list[T], list[str]]:
        """Return what is read of each site, and what is said of those where that fails."""
        found, damaged = {}, []
        for folder in self._folders():
            try:
                site = self.site_of(folder.name)
                found[site] = read(site)
            except (IntegrityError, NotFoundError) as error:
                damaged.append(f"site {folder.name}: {error}")
        return [found[site] for site in sorted(found)], sorted(damaged)

    def _folder(self, site: str) -> Path:
        return self.root / site_digest(site)

    def _folders(self) -> list[Path]:
        found = self.root.iterdir() if self.root.is_dir() else ()
        return [f for f in found if _SITE.fullmatch(f.name)]

    def _names(self, site: str) -> list[str]:
        return names_in(self._folder(site))

    def _pointer(self, site: str) -> tuple[str, str] | None:
        path = self._folder(site) / "current"
        if not path.exists():
            return None
        data = read_json(path)
        try:
            version, sha256 = str(data["version"]), str(data["sha256"])
        except (KeyError, TypeError) as error:
            raise IntegrityError(
                f"site {site!r:.200}: the file 'current' is damaged. Activate an adapter again."
            ) from error
        return (version, sha256) if version else None

    def _point_to(self, site: str, info: AdapterInfo | None, taken: str = "") -> None:
        chosen = {"version": info.version, "sha256": info.sha256} if info else {}
        empty = {"version": "", "sha256": "", "taken": taken}
        write_json_durably(self._folder(site) / "current", {**empty, **chosen})

    def _info(self, site: str, name: str, pointer: tuple[str, str] | None) -> AdapterInfo:
        folder = self._folder(site) / name
        return read_adapter(folder, site, current=pointer is not None and pointer[0] == name)

    def _rewrite(self, info: AdapterInfo, **changes: str) -> None:
        path = info.path / "about.json"
        write_json_durably(path, {**read_json(path), **changes})
