"""The versions of a model as people are shown them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from segunlearn.app.records import Records
from segunlearn.errors import NotFoundError
from segunlearn.records.versions import State, VersionRegistry, WeightsState

#: Details of a manifest that stay inside, and go on to what is made from a version: who was kept
#: out of the training.
HELD_OUT: Final = ("held_out", "held_out_pseudonyms", "held_out_key")


@dataclass(frozen=True)
class VersionLine:
    """One version.

    Parameters
    ----------
    version, state, weights_state, sha256, parent_sha256, created, run_id
        See ``VersionInfo``.
    parent
        Name of the parent; empty where it started from random weights, or is not here.
    method, level
        Of the unlearning that made it; empty for trainings.
    details
        Of the manifest, without who was kept out.
    """

    version: str
    state: State
    weights_state: WeightsState
    sha256: str
    parent_sha256: str | None
    parent: str
    created: str
    run_id: str
    method: str
    level: str
    details: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "details": dict(self.details)}


def lines_of(registry: VersionRegistry, records: Records | None) -> list[VersionLine]:
    """All versions of a model, oldest first.

    Parameters
    ----------
    registry
        Of the model.
    records
        Whose ledger tells how a version was made; None where there is no store.

    Raises
    ------
    IntegrityError
        A manifest is damaged.
    UnavailableError
        The store cannot be reached.
    """
    versions = registry.versions()
    names = {v.sha256: v.version for v in reversed(versions)}
    return [
        VersionLine(
            v.version, v.state, v.weights_state, v.sha256, v.parent_sha256,
            names.get(v.parent_sha256 or "", ""), v.created, v.run_id,
            str(v.details.get("method", "")), _level(records, v.run_id, v.details),
            {k: value for k, value in v.details.items() if k not in HELD_OUT},
        )
        for v in versions
    ]  # fmt: skip


def _level(records: Records | None, run_id: str, details: Mapping[str, Any]) -> str:
    if records is None or not details.get("method"):
        return ""
    try:
        return str(records.ledger.row(run_id).parameters.get("level", ""))
    except NotFoundError:
        return ""
