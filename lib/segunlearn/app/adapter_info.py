"""What is known of one site adapter, from its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from safetensors import SafetensorError, safe_open

from segunlearn.errors import IntegrityError
from segunlearn.records.durable import read_json
from segunlearn.records.version_info import VersionInfo

if TYPE_CHECKING:  # they load torch
    from segunlearn.adapters.site import SiteAdapter
    from segunlearn.inference import Segmenter

AdapterState = Literal["current", "available", "retired"]

#: The tensors, in an adapter's folder.
FILE: Final = "adapter.safetensors"


@dataclass(frozen=True)
class AdapterInfo:
    """One adapter of a site.

    Parameters
    ----------
    model, site
        Name of the model; key of the site as text.
    version
        Name, ``v0001`` and on; counted for each site.
    sha256, base
        Digests of its file and of the weights it was made for.
    meta
        Digest of the meta model beside these weights that it goes on from; empty: of none.
    created, run_id
        UTC, ISO 8601; the run that made it.
    state
        ``"current"``: it is chosen for the site, ``"available"``, or ``"retired"``: never again.
    here
        Its tensors are on the disk; otherwise they were destroyed.
    why
        It was retired, or rolled back.
    about
        How it was made, see ``adapters.site.SiteAdapter``.
    path
        Its folder.
    """

    model: str
    site: str
    version: str
    sha256: str
    base: str
    meta: str
    created: str
    run_id: str
    state: AdapterState
    here: bool
    why: str
    about: Mapping[str, Any]
    path: Path

    @property
    def key(self) -> str:
        """Name of the site's folder."""
        return self.path.parent.name

    @property
    def name(self) -> str:
        """Short name, unique in a model: ``0a1b…/v0001``."""
        return f"{self.key}/{self.version}"

    @property
    def file(self) -> Path:
        """The tensors' file."""
        return self.path / FILE

    def misfit(self, served: VersionInfo) -> str:
        """Say why it does not serve with a version; empty where it does."""
        if self.base != served.sha256:
            return (
                f"was made for other weights ({self.base[:12]}…) than are served "
                f"({served.sha256[:12]}…)"
            )
        if self.meta not in ("", served.meta_sha256):
            return (
                f"goes on from another meta model ({self.meta[:12]}…) than is beside the weights "
                f"that are served ({served.meta_sha256[:12] or 'none'})"
            )
        return ""

    def fits(self, served: VersionInfo) -> bool:
        """Whether it was made for these weights, and for the meta model beside them."""
        return not self.misfit(served)

    def goes_with(self, other: AdapterInfo) -> bool:
        """Whether there can be a version that both fit."""
        return self.base == other.base and len({"", self.meta, other.meta}) < 3

    def load(self) -> SiteAdapter:
        """Read the tensors; digest and content come from one reading of the file.

        Raises
        ------
        IntegrityError
            They are missing or changed.
        """
        from segunlearn.adapters.site import SiteAdapter

        data = self.file.read_bytes() if self.file.is_file() else b""
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise IntegrityError(
                f"site adapter {self.name}: its file is missing or was changed after it was made. "
                "Restore it from a backup, activate another one, or adapt the site again."
            )
        return SiteAdapter.from_bytes(data)

    def segmenter(self, base: Segmenter, version: VersionInfo) -> Segmenter:
        """Make what segments the images of the site; the base's stays as it is.

        Raises
        ------
        IntegrityError
            The tensors, or the meta model that they go on from, are missing or changed, or were
            made for other weights.
        """
        from segunlearn.adaptation import start_of
        from segunlearn.inference import Segmenter

        adapter = self.load()
        start = start_of(version, adapter.start)
        network = adapter.applied_to(base.network, version.sha256, start)
        return Segmenter(network, base.config, base.device, mirror_axes=base.mirror_axes)


def read_adapter(folder: Path, site: str, *, current: bool) -> AdapterInfo:
    """Read an adapter's folder.

    Parameters
    ----------
    folder
        ``home/sites/<model>/<site>/v0001``.
    site
        Key of the site as text.
    current
        The site's pointer names it.

    Raises
    ------
    IntegrityError
        Its record is missing or damaged.
    """
    name = f"{folder.parent.name}/{folder.name}"
    try:
        data = read_json(folder / "about.json")
        state: AdapterState = data["state"]
        if state not in get_args(AdapterState):
            raise KeyError("state")
        if state == "available" and current:
            state = "current"
        return AdapterInfo(
            folder.parents[1].name, site, folder.name, data["sha256"], data["base"],
            data["meta"] if "meta" in data else _meta_in(folder), data["created"],
            data["run_id"], state, data["weights"] == "here", data["why"], data["about"], folder,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise IntegrityError(
            f"site adapter {name}: its record lacks {error}; restore it."
        ) from error
    except IntegrityError as error:
        raise IntegrityError(f"site adapter {name}: {error}") from error


def _meta_in(folder: Path) -> str:
    """Read from the tensors' file what the records of older programs do not say."""
    try:
        with safe_open(folder / FILE, "numpy") as file:
            start = json.loads(file.metadata()["segunlearn"])["about"]["start"]
            return str(start["meta_sha256"]) if start is not None else ""
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return ""  # destroyed, or damaged: loading it is an error
