"""Files of one version, and the pointer to the active one; ``versions`` says when they change."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segunlearn.errors import IntegrityError
from segunlearn.records.durable import (
    clear_parts,
    read_json,
    sync_file,
    sync_folder,
    write_json_durably,
)
from segunlearn.records.numbered import NUMBERED, clear_staging, created_now
from segunlearn.records.version_info import META_MODEL, VersionInfo, file_sha256


def fill_folder(
    folder: Path, weights: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """Write what a version holds: weights, a meta model that lies beside them, and two records."""
    shutil.copyfile(weights, folder / "weights.safetensors")
    sync_file(folder / "weights.safetensors")
    if (beside := weights.parent / META_MODEL).is_file():
        shutil.copyfile(beside, folder / META_MODEL)
        sync_file(folder / META_MODEL)
    write_json_durably(folder / "config.json", dict(config))
    digest = file_sha256(folder / "weights.safetensors")
    made = {**manifest, "sha256": digest, "created": created_now(), "weights": "here"}
    write_json_durably(folder / "manifest.json", made)


def change_manifest(info: VersionInfo, **changes: str) -> None:
    """Change entries of a manifest, by one rename."""
    manifest = read_json(info.path / "manifest.json")
    if any(manifest.get(key) != value for key, value in changes.items()):
        write_json_durably(info.path / "manifest.json", {**manifest, **changes})


def check_weights(info: VersionInfo) -> None:
    """Refuse weights that are not those that were published.

    Raises
    ------
    IntegrityError
        They are missing or changed.
    """
    if not info.weights.is_file() or file_sha256(info.weights) != info.sha256:
        raise IntegrityError(
            f"{info.version}: weights are missing or changed since they were published. "
            "Restore them from a backup."
        )


def clear_leftovers(info: VersionInfo) -> None:
    """Remove copies of weights that killed calls left; they would outlive a purge."""
    clear_staging(info.path.parent)
    clear_parts(info.weights)


def remove_weights(info: VersionInfo) -> None:
    """Remove the weights, every copy that a kill left, and the meta model."""
    clear_leftovers(info)
    if (beside := info.path / META_MODEL).exists():  # never sealed: it is made again
        beside.unlink()
    info.weights.unlink(missing_ok=True)
    sync_folder(info.path)


def read_pointer(path: Path) -> tuple[str, str] | None:
    """Name and digest of the active version; None before the first one.

    Raises
    ------
    IntegrityError
        The file is damaged.
    """
    if not path.exists():
        return None
    damaged = IntegrityError(
        f"model {path.parent.name!r}: the file {path.name!r} is damaged. Activate a version again."
    )
    try:
        data = read_json(path)
    except IntegrityError as error:
        raise damaged from error
    if (
        not isinstance(data, dict)
        or set(data) != {"version", "sha256"}
        or not all(isinstance(v, str) for v in data.values())
        or not NUMBERED.fullmatch(data["version"])
    ):
        raise damaged
    return data["version"], data["sha256"]
