"""Which versions know a study: those that it shaped, but not those an audit found without it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from segunlearn.app.audit_files import Audits, levels_found
from segunlearn.app.audit_targets import TAUGHT, cases_of, names_of, taught_cases
from segunlearn.app.records import Records
from segunlearn.app.structures import versions_that_know_structure
from segunlearn.errors import NotFoundError
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_states import LIVE, Level, at_least
from segunlearn.records.ledger import Ledger, LedgerCase
from segunlearn.records.versions import VersionInfo, VersionRegistry

_PAGE = 500


def versions_that_know(
    audits: Audits,
    records: Records,
    registry: VersionRegistry,
    series: Collection[str],
    level: Level = "unlearned",
    *,
    hides: bool = False,
) -> list[VersionInfo]:
    """Versions of a model, candidates aside, whose weights hold what some series taught.

    A version knows a series when its own run was taught by it, or when its parent knows it; but
    not when the newest audit of the version that was about this series found the level to be
    reached, and then its descendants do not, either. One that the ledger does not know is counted
    as knowing all: nobody can say.

    Parameters
    ----------
    audits, records, registry
        Of the installation.
    series
        As the ledger names them; without any nobody knows them.
    level
        ``"retrained"``: being measured as unlearned is not enough.
    hides
        Without those that an audit found to hide what they know.
    """
    wanted = frozenset(series)
    if not wanted:
        return []
    found, names = levels_found(audits, records.runs), {s: records.pseudonyms.of(s) for s in wanted}
    versions = [v for v in registry.versions() if v.state != "candidate"]
    by_digest = {v.sha256: v for v in versions}
    known: dict[str, frozenset[str]] = {}

    def without(sha256: str, least: Level) -> set[str]:
        levels = {s: found.get((sha256, name), "none") for s, name in names.items()}
        return {s for s, reached in levels.items() if at_least(reached, least)}

    def known_by(sha256: str) -> frozenset[str]:
        if sha256 not in known:
            known[sha256] = wanted  # also ends a circle, which a damaged manifest could make
            taught = _taught(records, by_digest.get(sha256), sha256, wanted, known_by)
            known[sha256] = taught - without(sha256, level)
        return known[sha256]

    hidden: Level = "hidden" if hides else level
    return [v for v in versions if known_by(v.sha256) - without(v.sha256, hidden)]


def show_what_was_forgotten(
    audits: Audits,
    records: Records,
    registry: VersionRegistry,
    versions: Sequence[VersionInfo],
    *,
    hidden: bool = False,
) -> Iterator[tuple[ForgetRequest, frozenset[str]]]:
    """Live requests that took something out of service which some versions would show again.

    Parameters
    ----------
    audits, records, registry
        Of the installation.
    versions
        That may be served, or put back.
    hidden
        Also those that hide it: what is made from them may show it again.

    Yields
    ------
    request, versions
        The names of those that know its studies or its structure; of a request that is only
        ``hidden``, by default without those that an audit found to hide them.
    """
    taught = _taught_any(records, versions)
    offset = 0
    while page := records.forget_set.list(states=tuple(sorted(LIVE)), limit=_PAGE, offset=offset):
        offset += len(page)
        for request in page:
            if request.reached == "none":
                continue
            if request.target.kind != "structure" and (
                taught is not None and not cases_of(names_of(request), taught)
            ):
                continue
            hides = request.reached == "hidden" and not hidden
            found_in = versions_that_know_target(audits, records, registry, request, hides=hides)
            know = {v.sha256 for v in found_in}
            if found := frozenset(v.version for v in versions if v.sha256 in know):
                yield request, found


def versions_that_know_target(
    audits: Audits,
    records: Records,
    registry: VersionRegistry,
    request: ForgetRequest,
    *,
    hides: bool = False,
) -> list[VersionInfo]:
    """Versions of a model, candidates aside, that know a request's studies or its structure.

    Parameters
    ----------
    audits, records, registry, request
        Of the installation.
    hides
        Without those that an audit found to hide the studies.
    """
    target = request.target
    if target.kind == "structure":
        if target.model not in ("", registry.root.name):
            return []
        return versions_that_know_structure(records, registry, target.id)
    series = {case.series for case in ledger_cases(records.ledger, request)}
    return versions_that_know(audits, records, registry, series, hides=hides)


def known_in(
    audits: Audits, records: Records, request: ForgetRequest, *, hides: bool = False
) -> Iterator[tuple[str, VersionInfo]]:
    """Versions of every model that know a request's studies or its structure, with their model.

    Parameters
    ----------
    audits, records, request
        Of the installation.
    hides
        As for :func:`versions_that_know_target`.
    """
    home = audits.home
    for model in home.models():
        registry = VersionRegistry(home.model(model))
        found = versions_that_know_target(audits, records, registry, request, hides=hides)
        yield from ((model, version) for version in found)


def models_that_know(audits: Audits, records: Records, request: ForgetRequest) -> list[str]:
    """Models with open weights that know more of a request's target than the request allows."""
    found = known_in(audits, records, request, hides=at_least("hidden", request.needed))
    return sorted({model for model, version in found if version.weights_state == "here"})


def ledger_cases(ledger: Ledger, request: ForgetRequest) -> list[LedgerCase]:
    """Cases of a request's target that taught a version of any model; each series once.

    There are none of a structure: the labels of a training taught it, not a case.
    """
    if request.target.kind == "structure":
        return []
    return taught_cases(ledger, names_of(request))


def _taught_any(records: Records, versions: Sequence[VersionInfo]) -> list[LedgerCase] | None:
    """Cases that shaped versions or their ancestors; None when the ledger does not know one."""
    try:
        found = [c for v in versions for c in records.ledger.lineage_cases(v.sha256)]
    except NotFoundError:
        return None
    return [case for case in found if case.role in TAUGHT]


def _taught(
    records: Records,
    info: VersionInfo | None,
    sha256: str,
    wanted: frozenset[str],
    known_by: Callable[[str], frozenset[str]],
) -> frozenset[str]:
    parents: frozenset[str] = frozenset()
    try:
        if info is None:  # a parent that is not in the registry any more
            cases = records.ledger.lineage_cases(sha256)
        else:
            row = records.ledger.row(info.run_id)
            cases = records.ledger.cases_of(row.run_id)
            if row.parent_sha256 is not None:
                parents = known_by(row.parent_sha256)
    except NotFoundError:
        return wanted
    return parents | wanted.intersection(c.series for c in cases if c.role in TAUGHT)
