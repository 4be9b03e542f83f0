"""Places of a home that may still hold some cases, by the ledger and the audits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from segunlearn.app.audit_files import Audits, levels_found
from segunlearn.app.records import Records
from segunlearn.audit.sweep import Place, sweep
from segunlearn.records.forget_states import at_least
from segunlearn.records.ledger import LedgerCase
from segunlearn.records.targets import split_person


def places_of(
    records: Records,
    cases: Sequence[LedgerCase],
    *,
    measured: Mapping[tuple[str, str], str] | None = None,
    without: Collection[str] = (),
) -> list[Place]:
    """Sweep the home for some cases.

    Weights that saw some of them are open, unless the newest audits found them without each.

    Parameters
    ----------
    records
        Of the installation.
    cases
        At least one.
    measured
        What an audit found that is not signed yet, as ``levels_found`` gives it.
    without
        SHA-256 of other weights that were made without the cases.
    """
    names = {c.series: records.pseudonyms.of(c.series) for c in cases}
    found = levels_found(Audits(records.home), records.runs) | dict(measured or {})
    clean = {key for key, reached in found.items() if at_least(reached, "unlearned")}
    saw: set[str] = set()
    know: set[str] = set()
    for series, name in names.items():
        sightings = records.ledger.versions_that_saw(series=series)
        saw |= {s.version_sha256 for s in sightings}
        know |= {s.version_sha256 for s in sightings if (s.version_sha256, name) not in clean}
    audited = {sha256 for sha256, name in clean if name in names.values()} - know
    return sweep(
        records.home.root, identifiers_of(cases), saw, records.pseudonyms,
        without=audited.union(without),
    )  # fmt: skip


def identifiers_of(cases: Sequence[LedgerCase]) -> frozenset[str]:
    """Collect what file names may hold; a PatientID of few digits would be found in all."""
    found = {c.series for c in cases} | {c.study for c in cases}
    people = {split_person(c.person)[0] for c in cases}
    return frozenset(found | {p for p in people if len(p) > 3})
