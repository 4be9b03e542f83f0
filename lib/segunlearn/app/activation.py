"""Which version is served: a person may choose, but not one that knows what was forgotten."""

from __future__ import annotations

from collections.abc import Collection

from segunlearn.app.audit_files import Audits
from segunlearn.app.audit_targets import TAUGHT
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_choice import is_of, ledger_cases
from segunlearn.app.unlearn_journal import journals
from segunlearn.app.unlearn_reach import versions_that_know
from segunlearn.app.unlearn_settle import settle
from segunlearn.errors import ConflictError, IntegrityError, NotFoundError
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_states import LIVE, at_least
from segunlearn.records.ledger import LedgerCase
from segunlearn.records.versions import VersionInfo, VersionRegistry

_PAGE = 500


def activate(home: Home, records: Records, model: str, version: str) -> VersionInfo:
    """Serve another version.

    Parameters
    ----------
    home, records
        Of the installation.
    model
        Name in the registry.
    version
        Name or digest.

    Raises
    ------
    NotFoundError
        There is no such version.
    ConflictError
        It is retired or a candidate; it knows what a live forget request took out of service; or
        an unlearning is being published now.
    IntegrityError
        Its weights were changed.
    """
    registry = VersionRegistry(home.model(model))
    info = registry.get(version)
    if info.state == "available":
        settle(home, records)
        if any(j.model == model and j.decided for j in journals(home)):
            raise ConflictError(
                f"a version of {model!r} is being published, restored or purged. Try again in a "
                "moment."
            )
        _refuse_what_was_forgotten(home, records, registry, info)
    return registry.activate(info.version)


def _refuse_what_was_forgotten(
    home: Home, records: Records, registry: VersionRegistry, info: VersionInfo
) -> None:
    taught = _taught(records, info)
    offset = 0
    while page := records.forget_set.list(states=tuple(sorted(LIVE)), limit=_PAGE, offset=offset):
        offset += len(page)
        for request in page:
            if request.reached == "none" or request.target.kind == "structure":
                continue
            if taught is not None and not any(is_of(request, case) for case in taught):
                continue
            if _shows(home, records, registry, info, request):
                raise ConflictError(
                    f"{info.version} knows what forget request {request.request_id} is about, "
                    f"which is {request.state} (reached: {request.reached}). It is not served "
                    "again: restore the request first, or activate another version."
                )


def _taught(records: Records, info: VersionInfo) -> list[LedgerCase] | None:
    """Cases that shaped a version or an ancestor; None when the ledger does not know it."""
    try:
        cases = records.ledger.lineage_cases(info.sha256)
    except NotFoundError:
        return None
    return [case for case in cases if case.role in TAUGHT]


def _shows(
    home: Home,
    records: Records,
    registry: VersionRegistry,
    info: VersionInfo,
    request: ForgetRequest,
) -> bool:
    """Whether a version knows a request's studies, and no audit found that it hides them."""
    series = {case.series for case in ledger_cases(records.ledger, request)}
    if not series:
        return False
    know = versions_that_know(home, records, registry, series)
    if info.version not in {v.version for v in know}:
        return False
    wanted = {records.pseudonyms.of(s) for s in series}
    return request.reached != "hidden" or not _hides(Audits(home), info.sha256, wanted)


def _hides(audits: Audits, sha256: str, series: Collection[str]) -> bool:
    """Whether an audit of these series (pseudonyms) found at least ``hidden`` for a version."""
    for audit_id in audits.ids():
        try:
            content = audits.statement(audit_id)
        except (IntegrityError, NotFoundError):
            continue
        predicate = content["predicate"]
        if not at_least(predicate["verdict"]["reached"], "hidden"):
            continue
        found = {s["digest"]["sha256"] for s in content["subject"] if s["name"] == "candidate"}
        if sha256 in found and set(series) <= set(predicate["forgotten"]):
            return True
    return False
