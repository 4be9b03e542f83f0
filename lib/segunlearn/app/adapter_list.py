"""Site adapters as people are shown them, and the two changes that people make by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from segunlearn.app.adapter_store import AdapterInfo, AdapterState, SiteAdapters, site_digest
from segunlearn.app.options import Home
from segunlearn.app.site_choice import Aliases, find_site
from segunlearn.errors import ConflictError, NotFoundError
from segunlearn.records.versions import VersionInfo, VersionRegistry


@dataclass(frozen=True)
class AdapterLine:
    """One adapter.

    Parameters
    ----------
    site, key
        Key of the site as text; name of its folder, as in URLs.
    version, state, sha256, base, created, run_id, here, why, about
        See ``AdapterInfo``.
    serves
        It segments the images of its site now.
    """

    site: str
    key: str
    version: str
    state: AdapterState
    serves: bool
    sha256: str
    base: str
    created: str
    run_id: str
    here: bool
    why: str
    about: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "about": dict(self.about)}


@dataclass(frozen=True)
class AdapterControl:
    """Lists, activates and rolls back.

    Parameters
    ----------
    home, model
        Of the installation.
    """

    home: Home
    model: str

    @property
    def store(self) -> SiteAdapters:
        """Adapters of the model."""
        return SiteAdapters(self.home.sites / self.model)

    def lines(self) -> list[AdapterLine]:
        """All adapters whose records can be read, by site, the oldest first."""
        active = VersionRegistry(self.home.model(self.model)).active()
        return [line_of(info, active) for info in self.store.all()]

    def damaged(self) -> list[str]:
        """Say which sites have a record that cannot be read, and what to do."""
        return self.store.damaged()

    def activate(self, site: str, version: str) -> AdapterLine:
        """Let an adapter serve its site.

        Raises
        ------
        NotFoundError
            There is no such site or adapter.
        ConflictError
            It is retired, or made for other weights or another meta model than are served.
        IntegrityError
            Its file was changed.
        """
        served = self._served()
        return line_of(self.store.activate(self._site(site), version, served), served)

    def roll_back(self, site: str) -> AdapterLine | None:
        """Let the adapter before serve; None: the base.

        Raises
        ------
        NotFoundError
            There is no such site.
        ConflictError
            The base serves already.
        """
        served = self._served()
        info = self.store.roll_back(self._site(site), served)
        return line_of(info, served) if info is not None else None

    def key(self, site: str) -> str:
        """Name of a site's folder.

        Raises
        ------
        NotFoundError
            There is no such site.
        """
        return site_digest(self._site(site))

    def _site(self, asked: str) -> str:
        known = self.store.sites()
        site = find_site(known, Aliases.read(self.home.sites), asked)
        if not site:
            raise NotFoundError(
                f"there is no site {asked!r:.200} with adapters; sites with some: "
                f"{', '.join(known) or 'none'}."
            )
        return site

    def _served(self) -> VersionInfo:
        active = VersionRegistry(self.home.model(self.model)).active()
        if active is None:
            raise ConflictError(f"model {self.model!r} has no trained version. Train it first.")
        return active


def line_of(info: AdapterInfo, served: VersionInfo | None) -> AdapterLine:
    """Show one adapter."""
    return AdapterLine(
        info.site, info.key, info.version, info.state,
        info.state == "current" and info.here and served is not None and info.fits(served),
        info.sha256, info.base, info.created, info.run_id, info.here, info.why, info.about,
    )  # fmt: skip
