"""Which adapter segments an image: by its header, by a name that a person gave, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from segunlearn.app.adapter_store import AdapterInfo, SiteAdapters, site_digest
from segunlearn.dicom.site import Rule, SiteKey, normalise
from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.durable import read_json
from segunlearn.records.version_info import VersionInfo

#: Words of the parameter ``site`` that are no site.
AUTO: Final = "auto"
BASE: Final = "base"

#: What headers of one maker say, normalised; ``aliases.json`` adds to it and overrides it.
_MAKERS: Final = {
    "siemens healthineers": "siemens",
    "siemens healthcare": "siemens",
    "ge medical systems": "ge",
    "ge healthcare": "ge",
    "philips medical systems": "philips",
    "philips healthcare": "philips",
    "toshiba_mec": "toshiba",
    "canon medical systems": "canon",
}
#: How a site is named: on the command line, and over REST.
_NAMED: Final = "(--site, or site in a request)"
_BASE_ASKED: Final = "Ask for the base (--site base, or site=base in a request)"
_PARTS: Final = ("institution", "manufacturer", "model", "station")


@dataclass(frozen=True)
class Aliases:
    """Other spellings of headers, and names for sites.

    Parameters
    ----------
    parts
        For each part of a site key: spelling to the one that counts, both normalised.
    sites
        Name that a person uses to the key it stands for.
    """

    parts: Mapping[str, Mapping[str, str]]
    sites: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> Aliases:
        """Read ``aliases.json`` of ``home/sites``; without it, only the known makers.

        Raises
        ------
        IntegrityError
            It is no such table: a wrong adapter would be worse than none.
        """
        path = folder / "aliases.json"
        data: Any = read_json(path) if path.is_file() else {}
        known = {*_PARTS, "sites"}
        if (
            not isinstance(data, dict)
            or not set(data) <= known
            or not all(
                isinstance(t, dict)
                and all(isinstance(v, str) and normalise(k) for k, v in t.items())
                for t in data.values()
            )
        ):
            raise IntegrityError(
                f"{path.name}: write an object with {', '.join(sorted(known))}, each an object of "
                "texts, as in docs/adaptation.md. Empty spellings, and words such as ANONYMIZED, "
                "are those of images of many hospitals, and cannot stand for one."
            )
        parts = {
            p: {normalise(k): normalise(v) for k, v in data.get(p, {}).items()} for p in _PARTS
        }
        parts["manufacturer"] = {**_MAKERS, **parts["manufacturer"]}
        return cls(parts, {normalise(k): v for k, v in data.get("sites", {}).items()})

    def of(self, key: SiteKey) -> SiteKey:
        """Return the key in the spelling that counts."""
        values = {p: str(getattr(key, p)) for p in _PARTS}
        return replace(key, **{p: self.parts[p].get(v, v) for p, v in values.items()})

    def site(self, name: str) -> SiteKey:
        """Key that a person means by a name, or by the key itself."""
        return self.of(SiteKey.parse(self.sites.get(normalise(name), name)))


@dataclass(frozen=True)
class SiteChoice:
    """What segments an image, and why.

    Parameters
    ----------
    adapter
        None: the base.
    site
        Key of the site that was hit; of the base, the narrowest that the header gives.
    rule
        What agreed; ``"override"``: a person chose; ``"none"``: nothing did.
    why
        One sentence.
    """

    adapter: AdapterInfo | None
    site: str
    rule: Rule | Literal["override", "none"]
    why: str

    def params(self) -> dict[str, str]:
        """Return what a reply says of it."""
        return {
            "adapter": self.adapter.name if self.adapter else BASE,
            "adapter_sha256": self.adapter.sha256 if self.adapter else "",
            "site": self.site,
            "site_rule": self.rule,
            "site_why": self.why,
        }


def choose_site(
    adapters: SiteAdapters,
    aliases: Aliases,
    header: SiteKey | None,
    asked: str,
    served: VersionInfo,
) -> SiteChoice:
    """Choose the adapter for an image.

    Parameters
    ----------
    adapters
        Of the model.
    aliases
        Of the home.
    header
        What the image's header says; None where it has none (NIfTI, NRRD).
    asked
        ``auto`` or empty, ``base`` or ``none``, or a site's name, key or folder.
    served
        What segments without an adapter.

    Raises
    ------
    NotFoundError
        A person asks for a site that has no adapter.
    InvalidInputError
        The name is that of several sites.
    ConflictError
        A person asks for one whose adapter was made for other weights or another meta model.
    IntegrityError
        A record is damaged.
    """
    if asked in (BASE, "none"):
        return SiteChoice(None, "", "override", "the base was asked for.")
    if asked not in ("", AUTO):
        return _asked_for(adapters, aliases, asked, served)
    if header is None:
        why = f"the image has no DICOM header; name a site {_NAMED}."
        return SiteChoice(None, "", "none", why)
    rungs = aliases.of(header).rungs()
    if not rungs:
        return SiteChoice(
            None, "", "none",
            "the header names no institution and no scanner (removed or de-identified): the base "
            f"serves. Name a site {_NAMED} if it is known.",
        )  # fmt: skip
    also = (
        ""
        if rungs[0][1].institution
        else (" The header names no institution (removed or de-identified).")
    )
    known = adapters.sites()
    for rule, key in rungs:
        site = kept_as(known, aliases, key)
        info = adapters.current(site)
        if info is not None and info.fits(served):
            said = {"scanner": "this scanner", "institution": "its institution and model",
                    "model": "its manufacturer and model"}  # fmt: skip
            return SiteChoice(info, site, rule, f"an adapter of {said[rule]} is in service.")
        if info is not None:
            also += f" Adapter {info.name} {info.misfit(served)}: adapt the site again."
    return SiteChoice(
        None,
        str(rungs[0][1]),
        "none",
        f"no adapter of this site is in service: the base serves.{also}",
    )


def _asked_for(
    adapters: SiteAdapters, aliases: Aliases, asked: str, served: VersionInfo
) -> SiteChoice:
    known = adapters.sites()
    site = find_site(known, aliases, asked, wider=True)
    info = adapters.current(site) if site else None
    if info is None:
        there = ", ".join(adapters.in_service(served)) or "none"
        raise NotFoundError(
            f"site {asked!r:.200} has no adapter in service; sites with one: {there}. "
            f"{_BASE_ASKED}, or adapt the site."
        )
    if misfit := info.misfit(served):
        raise ConflictError(
            f"site adapter {info.name} {misfit}. {_BASE_ASKED}, or adapt the site again."
        )
    return SiteChoice(info, site, "override", "this site was asked for.")


def kept_as(known: Sequence[str], aliases: Aliases, key: SiteKey) -> str:
    """Write a key as the store knows it: perhaps in a spelling that was joined to it later."""
    joined = (site for site in known if aliases.of(SiteKey.parse(site)) == key)
    return str(key) if str(key) in known else next(joined, str(key))


def find_site(known: Sequence[str], aliases: Aliases, asked: str, *, wider: bool = False) -> str:
    """Find the site that a person means: a key, a name, or a folder's name.

    Parameters
    ----------
    known
        Keys of the sites.
    aliases
        Of the home.
    asked
        A name or key that only one of the sites begins with means this one.
    wider
        Whether a wider key than the one that is asked for will do.

    Returns
    -------
    str
        Its key as text; empty when it is none of the known ones.

    Raises
    ------
    InvalidInputError
        It is the name of several.
    """
    key = aliases.site(asked)
    rungs = [rung for _, rung in key.rungs()]
    for wanted in [key, *(rungs if wider else rungs[:1])]:
        if (site := kept_as(known, aliases, wanted)) in known:
            return site
    folders = {site_digest(site): site for site in known}
    if asked in folders:
        return folders[asked]
    found = [s for s in known if key != SiteKey() and aliases.of(SiteKey.parse(s)).is_of(key)]
    if len(found) > 1:
        raise InvalidInputError(
            f"site {asked!r:.200} has adapters under several keys: {', '.join(found)}. Name one."
        )
    return found[0] if found else ""
