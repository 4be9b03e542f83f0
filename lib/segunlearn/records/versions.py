"""Versions of a model: folders that never change, and a pointer to the active one.

::

    <root>/versions/v0001/weights.safetensors   the weights
    <root>/versions/v0001/config.json           the network's configuration
    <root>/versions/v0001/manifest.json         digest, parent, run, time, state
    <root>/active                               {"version", "sha256"}

A version appears by one rename of a finished folder and the pointer changes by one rename, so a
process that is killed at any line leaves the old version active and whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.durable import read_json, sync_file, sync_folder, write_json_durably

State = Literal["active", "available", "retired"]

_VERSION = re.compile(r"v\d{4,}")
_STAGING = ".staging-"


@dataclass(frozen=True)
class VersionInfo:
    """One published version.

    Parameters
    ----------
    version
        Name, ``v0001`` and on.
    sha256
        Of ``weights.safetensors``, hexadecimal.
    created
        UTC, ISO 8601.
    parent_sha256
        Weights that training started from; None when it started from random ones.
    run_id
        The run that made it.
    config
        The network's configuration as JSON.
    path
        The version's folder.
    state
        ``"active"``, ``"available"``, or ``"retired"``: kept, and never activated again.
    details
        What else the publisher wrote down (held-out persons' pseudonyms, scores).
    """

    version: str
    sha256: str
    created: str
    parent_sha256: str | None
    run_id: str
    config: dict[str, Any]
    path: Path
    state: State
    details: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The weights' file."""
        return self.path / "weights.safetensors"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class VersionRegistry:
    """The versions of one model in a folder.

    Parameters
    ----------
    root
        ``home/models/<model>``; made at the first ``publish``.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._versions = self.root / "versions"
        self._pointer = self.root / "active"

    def versions(self) -> list[VersionInfo]:
        """All versions, oldest first.

        Raises
        ------
        IntegrityError
            A manifest or the pointer is damaged.
        """
        return self._all(self._read_pointer())

    def get(self, version: str) -> VersionInfo:
        """One version by its name (``v0001``) or by its weights' SHA-256.

        Where weights were retired and restored, the digest means the restored version.

        Raises
        ------
        NotFoundError
            There is no such version.
        """
        return self._find(version, self._read_pointer())

    def active(self) -> VersionInfo | None:
        """Read which version is served; None before the first one.

        Raises
        ------
        IntegrityError
            The pointer names a version that is not there or has another digest.
        """
        pointer = self._read_pointer()
        if pointer is None:
            return None
        version, sha256 = pointer
        if not (self._versions / version).is_dir():
            raise IntegrityError(
                f"model {self.root.name!r}: active version {version} is not on the disk. Activate "
                "another one, or restore the folder from a backup."
            )
        info = self._info(version, pointer)
        if info.sha256 != sha256:
            raise IntegrityError(
                f"model {self.root.name!r}: {version} has digest {info.sha256[:12]}…, the pointer "
                f"says {sha256[:12]}…. Someone changed the folder; activate a version again."
            )
        return info

    def publish(
        self,
        weights: Path,
        config: Mapping[str, Any],
        *,
        parent_sha256: str | None,
        run_id: str,
        activate: bool = True,
        details: Mapping[str, Any] | None = None,
        allow_retired: bool = False,
    ) -> VersionInfo:
        """Copy weights into a new version and, by default, make it the active one.

        Publishing the same weights of the same run again returns the version that is there: a run
        that was killed after publishing can be repeated.

        Parameters
        ----------
        weights
            A safetensors file, or a folder that holds ``weights.safetensors``.
        config
            The network's configuration as JSON.
        parent_sha256, run_id, details
            See ``VersionInfo``.
        activate
            Serve it from now on.
        allow_retired
            A restore: a person wants weights back that were retired.

        Raises
        ------
        NotFoundError
            There are no weights.
        ConflictError
            These weights are retired, see ``refuse_retired``.
        """
        weights = Path(weights)
        if weights.is_dir():
            weights = weights / "weights.safetensors"
        if not weights.is_file():
            raise NotFoundError(f"{weights.name}: no weights to publish. The run did not finish.")
        with self._lock():
            digest = file_sha256(weights)
            same = (
                v
                for v in self._all(None)
                if (v.sha256, v.run_id) == (digest, run_id) and v.state != "retired"
            )
            info = next(same, None)
            if info is None:
                if not allow_retired:
                    self.refuse_retired(digest)
                info = self._add(weights, dict(config), parent_sha256, run_id, dict(details or {}))
            if activate:
                self._point_to(info)
            return self._info(info.version, self._read_pointer())

    def activate(self, version: str) -> VersionInfo:
        """Serve another version; its weights' digest is checked first.

        A damaged pointer is no obstacle: it is replaced.

        Raises
        ------
        NotFoundError
            There is no such version.
        ConflictError
            It is retired.
        IntegrityError
            Its weights were changed.
        """
        with self._lock():
            info = self._find(version, None)
            if info.state == "retired":
                raise ConflictError(
                    f"{info.version} is retired and is not served again; publish a new version."
                )
            if not info.weights.is_file() or file_sha256(info.weights) != info.sha256:
                raise IntegrityError(
                    f"{info.version}: weights are missing or changed since they were published. "
                    "Restore them from a backup."
                )
            self._point_to(info)
            return self._info(info.version, self._read_pointer())

    def retire(self, version: str) -> VersionInfo:
        """Take a version out of service for good; its files stay.

        Raises
        ------
        NotFoundError
            There is no such version.
        ConflictError
            It is the active one.
        """
        with self._lock():
            info = self.get(version)
            if info.state == "active":
                raise ConflictError(
                    f"{info.version} is active; activate another version before retiring it."
                )
            manifest = read_json(info.path / "manifest.json")
            write_json_durably(info.path / "manifest.json", {**manifest, "state": "retired"})
            return self._info(info.version, self._read_pointer())

    def refuse_retired(self, sha256: str) -> None:
        """Raise when weights were retired and not restored since, whatever run brings them.

        Raises
        ------
        ConflictError
            They are retired.
        """
        same = [v for v in self._all(None) if v.sha256 == sha256]
        if same and all(v.state == "retired" for v in same):
            raise ConflictError(
                f"{same[0].version} has these weights ({sha256[:12]}…) and is retired, so they are "
                "not published again. Train with other images or another seed; if the old model "
                "is wanted back, restore it."
            )

    def _all(self, active: tuple[str, str] | None) -> list[VersionInfo]:
        return [self._info(name, active) for name in self._names()]

    def _find(self, version: str, active: tuple[str, str] | None) -> VersionInfo:
        found = [i for i in self._all(active) if version in (i.version, i.sha256)]
        if found:  # of two with one digest, the one that was restored
            return next((i for i in found if i.state != "retired"), found[0])
        raise NotFoundError(
            f"model {self.root.name!r} has no version {version!r}; there are "
            f"{', '.join(self._names()) or 'none'}."
        )

    def _names(self) -> list[str]:
        if not self._versions.is_dir():
            return []
        found = (p.name for p in self._versions.iterdir() if p.is_dir())
        return sorted((n for n in found if _VERSION.fullmatch(n)), key=lambda n: int(n[1:]))

    def _read_pointer(self) -> tuple[str, str] | None:
        if not self._pointer.exists():
            return None
        damaged = IntegrityError(
            f"model {self.root.name!r}: the file 'active' is damaged. Activate a version again."
        )
        try:
            data = read_json(self._pointer)
        except IntegrityError as error:
            raise damaged from error
        if (
            not isinstance(data, dict)
            or set(data) != {"version", "sha256"}
            or not all(isinstance(v, str) for v in data.values())
            or not _VERSION.fullmatch(data["version"])
        ):
            raise damaged
        return data["version"], data["sha256"]

    def _info(self, name: str, active: tuple[str, str] | None) -> VersionInfo:
        folder = self._versions / name
        manifest = read_json(folder / "manifest.json")
        try:
            state: State = manifest["state"]
            if active is not None and active[0] == name:
                state = "active"
            return VersionInfo(
                version=name,
                sha256=manifest["sha256"],
                created=manifest["created"],
                parent_sha256=manifest["parent_sha256"],
                run_id=manifest["run_id"],
                config=read_json(folder / "config.json"),
                path=folder,
                state=state,
                details=manifest["details"],
            )
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"{name}: the manifest lacks {error}; restore it.") from error

    def _add(
        self,
        weights: Path,
        config: dict[str, Any],
        parent_sha256: str | None,
        run_id: str,
        details: dict[str, Any],
    ) -> VersionInfo:
        self._versions.mkdir(parents=True, exist_ok=True)
        for stale in self._versions.glob(f"{_STAGING}*"):
            shutil.rmtree(stale)
        staging = self._versions / f"{_STAGING}{uuid.uuid4().hex}"
        staging.mkdir()
        shutil.copyfile(weights, staging / "weights.safetensors")
        sync_file(staging / "weights.safetensors")
        write_json_durably(staging / "config.json", config)
        manifest = {
            "sha256": file_sha256(staging / "weights.safetensors"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "parent_sha256": parent_sha256,
            "run_id": run_id,
            "state": "available",
            "details": details,
        }
        write_json_durably(staging / "manifest.json", manifest)
        names = self._names()
        name = f"v{int(names[-1][1:]) + 1 if names else 1:04d}"
        os.replace(staging, self._versions / name)  # noqa: PTH105 - see records.durable
        sync_folder(self._versions)
        return self._info(name, None)

    def _point_to(self, info: VersionInfo) -> None:
        write_json_durably(self._pointer, {"version": info.version, "sha256": info.sha256})

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        if self.root.exists() and not self.root.is_dir():
            raise InvalidInputError(f"{self.root}: is no folder; choose another --home.")
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
