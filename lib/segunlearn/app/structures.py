"""Which versions know a structure: those whose training, or whose ancestors', was taught it."""

from __future__ import annotations

from collections.abc import Iterable

from segunlearn.app.records import Records
from segunlearn.errors import NotFoundError
from segunlearn.records.ledger import LedgerRow
from segunlearn.records.versions import VersionInfo, VersionRegistry


def withdrawn(records: Records, model: str, labels: Iterable[str]) -> tuple[str, ...]:
    """Structures of a network that a live request names: background to every training."""
    marked = records.forget_set.structures(model)
    return tuple(name for name in labels if name in marked)


def untaught(records: Records, version: VersionInfo) -> frozenset[str]:
    """Structures of a version's network that no training behind its weights was taught.

    From its mark on a structure is background to every training; whether weights never saw it the
    ledger tells, along all parents. What the ledger does not tell counts as taught.

    Parameters
    ----------
    records
        Of the installation.
    version
        Of the registry.
    """
    left = frozenset(version.config["labels"])
    try:
        rows = list(records.ledger.with_parents(records.ledger.row(version.run_id)))
    except NotFoundError:
        return frozenset()
    if rows[-1].parent_sha256 is not None:
        return frozenset()
    return left.intersection(*(_without(row) for row in rows))


def versions_that_know_structure(
    records: Records, registry: VersionRegistry, structure: str
) -> list[VersionInfo]:
    """Versions of a model, candidates aside, that were taught a structure.

    Parameters
    ----------
    records, registry
        Of the installation.
    structure
        A label of the model; versions whose network has none of this name do not know it.
    """
    return [
        v
        for v in registry.versions()
        if v.state != "candidate"
        and structure in v.config["labels"]
        and structure not in untaught(records, v)
    ]


def _without(row: LedgerRow) -> frozenset[str]:
    """Structures that a run took for background."""
    settings = row.parameters.get("settings")
    found = row.parameters.get("without")  # an unlearning's, beside the settings of its method
    if found is None and isinstance(settings, dict):
        found = settings.get("without")
    return frozenset(found or ())
