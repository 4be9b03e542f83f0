"""Which versions know a study: those that it shaped, but not those an audit found without it."""

from __future__ import annotations

from collections.abc import Collection

from segunlearn.app.audit_files import Audits, passed_without
from segunlearn.app.audit_targets import TAUGHT
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.errors import NotFoundError
from segunlearn.records.versions import VersionInfo, VersionRegistry


def versions_that_know(
    home: Home, records: Records, registry: VersionRegistry, series: Collection[str]
) -> list[VersionInfo]:
    """Versions of a model, candidates aside, whose weights hold what some series taught.

    A version knows a series when its own run was taught by it, or when its parent knows it. A
    version that an audit of these very series found to be ``unlearned`` or ``retrained`` knows
    none of them, and so do its descendants. One that the ledger does not know is counted as
    knowing all: nobody can say.

    Parameters
    ----------
    home, records, registry
        Of the installation.
    series
        As the ledger names them.
    """
    wanted = frozenset(series)
    pseudonyms = records.pseudonyms
    clean = passed_without(Audits(home), frozenset(pseudonyms.of(s) for s in wanted))
    versions = [v for v in registry.versions() if v.state != "candidate"]
    by_digest = {v.sha256: v for v in versions}
    known: dict[str, bool] = {}

    def knows(sha256: str) -> bool:
        if sha256 in clean:
            return False
        if sha256 not in known:
            known[sha256] = True  # also ends a circle, which a damaged manifest could make
            known[sha256] = _taught(records, by_digest.get(sha256), sha256, wanted, knows)
        return known[sha256]

    return [v for v in versions if knows(v.sha256)]


def _taught(
    records: Records,
    info: VersionInfo | None,
    sha256: str,
    wanted: frozenset[str],
    knows: object,
) -> bool:
    try:
        if info is None:  # a parent that is not in the registry any more
            cases = records.ledger.lineage_cases(sha256)
            return any(c.series in wanted for c in cases if c.role in TAUGHT)
        row = records.ledger.row(info.run_id)
    except NotFoundError:
        return True
    if any(c.series in wanted for c in records.ledger.cases_of(row.run_id) if c.role in TAUGHT):
        return True
    assert callable(knows)
    return row.parent_sha256 is not None and bool(knows(row.parent_sha256))
