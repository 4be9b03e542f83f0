"""Versions of a model: folders that never change, and a pointer to the active one.

::

    <root>/versions/v0001/weights.safetensors   the weights
    <root>/versions/v0001/meta.safetensors      what its meta-training left, where it had one
    <root>/versions/v0001/config.json           the network's configuration
    <root>/versions/v0001/manifest.json         digest, parent, run, time, state, where weights are
    <root>/active                               {"version", "sha256"}

A version appears by one rename of a finished folder and the pointer changes by one rename, so a
process that is killed at any line leaves the old version active and whole.

What an unlearning run makes is a **candidate**: it is there to be audited and cannot be served.
An audit that passes promotes it; one that refuses discards it, with its weights. Weights of a
retired version can be destroyed, and put back when they were sealed (``adapters.deposit``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.durable import read_json, write_durably, write_json_durably
from segunlearn.records.numbered import add_folder, created_now, locked, names_in
from segunlearn.records.version_files import (
    change_manifest,
    check_weights,
    clear_leftovers,
    fill_folder,
    read_pointer,
    remove_weights,
)
from segunlearn.records.version_info import (
    State,
    VersionInfo,
    WeightsState,
    file_sha256,
    read_info,
)

__all__ = ["State", "VersionInfo", "VersionRegistry", "WeightsState", "file_sha256"]

#: Which of several versions with one digest is meant by it, lowest first.
_MEANT: dict[State, int] = {"active": 0, "available": 0, "candidate": 1, "retired": 2}


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

        Where weights were retired and restored, the digest means the restored version; and it
        means a candidate only where no other version has it.

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
        candidate: bool = False,
    ) -> VersionInfo:
        """Copy weights into a new version and, by default, make it the active one.

        Publishing the same weights of the same run again returns the version that is there: a run
        that was killed after publishing can be repeated.

        Parameters
        ----------
        weights
            A safetensors file, or a folder that holds ``weights.safetensors``. A meta model that
            lies beside it is published with it.
        config
            The network's configuration as JSON.
        parent_sha256, run_id, details
            See ``VersionInfo``.
        activate
            Serve it from now on.
        allow_retired
            A restore: a person wants weights back that were retired.
        candidate
            Unlearning made it: it is not activated, whatever ``activate`` says, until an audit
            passes it and it is promoted. Weights of a discarded candidate may come again.

        Raises
        ------
        NotFoundError
            There are no weights.
        ConflictError
            These weights are retired, see ``refuse_retired``, or this run's candidate has them
            and ``candidate`` was not said.
        """
        weights = Path(weights)
        if weights.is_dir():
            weights = weights / "weights.safetensors"
        if not weights.is_file():
            raise NotFoundError(f"{weights.name}: no weights to publish. The run did not finish.")
        with locked(self.root):
            digest = file_sha256(weights)
            same = (
                v
                for v in self._all(None)
                if (v.sha256, v.run_id) == (digest, run_id) and v.state != "retired"
            )
            info = next(same, None)
            if info is not None and info.state == "candidate" and not candidate:
                raise self._is_candidate(info)
            if info is None:
                if not allow_retired:
                    self._refuse_retired(digest, discarded=not candidate)
                manifest = {
                    "parent_sha256": parent_sha256,
                    "run_id": run_id,
                    "state": "candidate" if candidate else "available",
                    "details": dict(details or {}),
                    **({"candidate": True} if candidate else {}),
                }
                info = self._add(weights, dict(config), manifest)
            if activate and not candidate:
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
            It is retired, or a candidate that no audit has passed.
        IntegrityError
            Its weights were changed.
        """
        with locked(self.root):
            info = self._find(version, None)
            if info.state == "retired":
                raise ConflictError(
                    f"{info.version} is retired and is not served again; publish a new version."
                )
            if info.state == "candidate":
                raise self._is_candidate(info)
            check_weights(info)
            self._point_to(info)
            return self._info(info.version, self._read_pointer())

    def promote(self, version: str) -> VersionInfo:
        """Serve a candidate that an audit has passed.

        First the manifest says that it may be served, then the pointer names it: killed between
        the two, the old version serves on. Promoting again finishes it, or points to it again.

        Raises
        ------
        NotFoundError
            There is no such version.
        ConflictError
            It was never a candidate, or it is retired.
        IntegrityError
            Its weights were changed.
        """
        with locked(self.root):
            info = self._find(version, None)
            manifest = read_json(info.path / "manifest.json")
            if not manifest.get("candidate"):
                raise ConflictError(
                    f"{info.version} is no candidate of an unlearning run; activate it instead."
                )
            if info.state == "retired":
                raise ConflictError(
                    f"{info.version} was discarded or retired and is not served; unlearn again."
                )
            check_weights(info)
            if info.state == "candidate":
                self._rewrite(info, state="available", promoted=created_now())
            self._point_to(info)
            return self._info(info.version, self._read_pointer())

    def discard(self, version: str) -> VersionInfo:
        """Retire a candidate and destroy its weights; doing it again finishes or changes nothing.

        Raises
        ------
        NotFoundError
            There is no such version.
        ConflictError
            It is no candidate: it was promoted, or published by a training.
        """
        with locked(self.root):
            info = self.get(version)
            if not info.unpromoted or info.state == "active":
                raise ConflictError(
                    f"{info.version} is {info.state} and no candidate; retire it, and destroy its "
                    "weights then, if it is to go."
                )
            return self._destroy(self._rewrite(info, state="retired"), "destroyed")

    def destroy_weights(self, version: str, *, sealed: bool = False) -> VersionInfo:
        """Remove the weights of a retired version; its manifest stays and says so.

        The file goes first and the manifest follows, so that a manifest never says of weights
        that are here that they are not. Doing it again finishes or changes nothing.

        Parameters
        ----------
        version
            Name or digest.
        sealed
            A deposit holds them and they can be put back; False: they are gone for good. What was
            sealed can be destroyed later (its key was), never the other way round.

        Raises
        ------
        NotFoundError
            There is no such version.
        ConflictError
            It is not retired, or ``sealed`` is said of weights that were destroyed.
        IntegrityError
            The pointer is damaged: this may be the version that is served.
        """
        with locked(self.root):
            info = self.get(version)
            if info.state != "retired":
                raise ConflictError(
                    f"{info.version} is {info.state}; only the weights of a retired version are "
                    "destroyed. Retire it first."
                )
            if sealed and info.weights_state == "destroyed":
                raise ConflictError(
                    f"{info.version}: its weights were destroyed, so no deposit can stand for them."
                )
            return self._destroy(info, "sealed" if sealed else "destroyed")

    def put_back(
        self, version: str, payload: bytes, state: Literal["available", "retired"] = "available"
    ) -> VersionInfo:
        """Bring sealed weights back: a restore. Doing it again finishes or changes nothing.

        Parameters
        ----------
        version
            Name or digest.
        payload
            Content of ``weights.safetensors``.
        state
            What the version is from now on; it is not activated here.

        Raises
        ------
        NotFoundError
            There is no such version.
        IntegrityError
            ``payload`` is not what was published as this version.
        ConflictError
            Its weights were destroyed, which is final; it is a candidate or a discarded one; or it
            is active and would be retired.
        InvalidInputError
            There is no such state.
        """
        if state not in ("available", "retired"):
            raise InvalidInputError(f"{state!r}: weights come back as 'available' or 'retired'.")
        with locked(self.root):
            info = self.get(version)
            if info.unpromoted:
                raise ConflictError(
                    f"{info.version} was never served; there is nothing to restore."
                )
            if info.weights_state == "destroyed":
                raise ConflictError(
                    f"{info.version}: its weights were destroyed for good and do not come back. "
                    "Train a new version."
                )
            if info.state == "active" and state == "retired":
                raise ConflictError(
                    f"{info.version} is active; activate another version before retiring it."
                )
            if hashlib.sha256(payload).hexdigest() != info.sha256:
                raise IntegrityError(
                    f"{info.version}: the bytes are not those that were published. Open the "
                    "deposit that was sealed for this version."
                )
            clear_leftovers(info)
            if not info.weights.is_file() or file_sha256(info.weights) != info.sha256:
                write_durably(info.weights, payload)
            return self._rewrite(info, state=state, weights="here")

    def retire(self, version: str) -> VersionInfo:
        """Take a version, or a candidate, out of service for good; its files stay.

        Raises
        ------
        NotFoundError
            There is no such version.
        ConflictError
            It is the active one.
        """
        with locked(self.root):
            info = self.get(version)
            if info.state == "active":
                raise ConflictError(
                    f"{info.version} is active; activate another version before retiring it."
                )
            return self._rewrite(info, state="retired")

    def refuse_retired(self, sha256: str) -> None:
        """Raise when weights were retired and not restored since, whatever run brings them.

        Raises
        ------
        ConflictError
            They are retired.
        """
        self._refuse_retired(sha256, discarded=True)

    def _refuse_retired(self, sha256: str, *, discarded: bool) -> None:
        """``refuse_retired``; without ``discarded`` a discarded candidate's weights may come."""
        found = (v for v in self._all(None) if v.sha256 == sha256)
        same = [v for v in found if discarded or not v.unpromoted]
        if same and all(v.state == "retired" for v in same):
            raise ConflictError(
                f"{same[0].version} has these weights ({sha256[:12]}…) and is retired, so they are "
                "not published again. Train with other images or another seed; if the old model "
                "is wanted back, restore it."
            )

    def _all(self, active: tuple[str, str] | None) -> list[VersionInfo]:
        return [self._info(name, active) for name in names_in(self._versions)]

    def _find(self, version: str, active: tuple[str, str] | None) -> VersionInfo:
        found = [i for i in self._all(active) if version in (i.version, i.sha256)]
        if found:
            return min(found, key=lambda i: _MEANT[i.state])
        raise NotFoundError(
            f"model {self.root.name!r} has no version {version!r}; there are "
            f"{', '.join(names_in(self._versions)) or 'none'}."
        )

    def _read_pointer(self) -> tuple[str, str] | None:
        return read_pointer(self._pointer)

    def _info(self, name: str, active: tuple[str, str] | None) -> VersionInfo:
        return read_info(self._versions / name, active=active is not None and active[0] == name)

    def _add(
        self, weights: Path, config: dict[str, Any], manifest: Mapping[str, Any]
    ) -> VersionInfo:
        def fill(folder: Path) -> None:
            fill_folder(folder, weights, config, manifest)

        return self._info(add_folder(self._versions, fill), None)

    def _destroy(self, info: VersionInfo, weights_state: WeightsState) -> VersionInfo:
        remove_weights(info)
        return self._rewrite(info, weights=weights_state)

    def _rewrite(self, info: VersionInfo, **changes: str) -> VersionInfo:
        change_manifest(info, **changes)
        return self._info(info.version, self._read_pointer())

    def _is_candidate(self, info: VersionInfo) -> ConflictError:
        return ConflictError(
            f"{info.version} is a candidate that no audit has passed, so it is not served. Audit "
            "it: it is promoted when it passes; or discard it and unlearn again."
        )

    def _point_to(self, info: VersionInfo) -> None:
        write_json_durably(self._pointer, {"version": info.version, "sha256": info.sha256})
