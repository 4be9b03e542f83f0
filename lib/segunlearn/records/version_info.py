"""What is known of one version of a model, from its folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from segunlearn.errors import IntegrityError
from segunlearn.records.durable import read_json

State = Literal["active", "available", "candidate", "retired"]
WeightsState = Literal["here", "sealed", "destroyed"]

#: The weights, in a version's folder.
WEIGHTS = "weights.safetensors"
#: What meta-training leaves beside the weights, see ``segunlearn.adaptation.meta_model``. It knows
#: the studies that it was trained on, so it goes with the weights.
META_MODEL = "meta.safetensors"


def is_model_name(text: str) -> bool:
    """Whether a model may be called so: letters, digits, ``-`` and ``_``, as folders are."""
    return text.replace("_", "").replace("-", "").isalnum()


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
        ``"active"``, ``"available"``, ``"candidate"``: made by unlearning, and no audit has passed
        it, or ``"retired"``: kept, and never activated again.
    details
        What else the publisher wrote down (held-out persons' pseudonyms, scores).
    weights_state
        ``"here"``, ``"sealed"``: only a deposit holds them, or ``"destroyed"``.
    unpromoted
        Made as a candidate and never promoted: it waits for an audit, or was discarded.
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
    weights_state: WeightsState = "here"
    unpromoted: bool = False

    @property
    def weights(self) -> Path:
        """The weights' file."""
        return self.path / WEIGHTS

    @property
    def meta_sha256(self) -> str:
        """Digest of the meta model that was published with it; empty without one."""
        return str(dict(self.details.get("meta_model") or {}).get("sha256", ""))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_info(folder: Path, *, active: bool = False) -> VersionInfo:
    """Read a version's folder.

    Parameters
    ----------
    folder
        ``versions/v0001``.
    active
        The pointer names it.

    Raises
    ------
    IntegrityError
        A file is damaged, or was written by another program.
    """
    name = folder.name
    manifest = read_json(folder / "manifest.json")
    try:
        state: State = manifest["state"]
        weights_state: WeightsState = manifest.get("weights", "here")  # not in older ones
        if state not in get_args(State) or weights_state not in get_args(WeightsState):
            raise IntegrityError(
                f"{name}: the manifest says {state!r} and weights {weights_state!r}, which "
                "this program does not know; restore it, or use the program that wrote it."
            )
        if active:
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
            weights_state=weights_state,
            unpromoted=bool(manifest.get("candidate")) and "promoted" not in manifest,
        )
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{name}: the manifest lacks {error}; restore it.") from error
