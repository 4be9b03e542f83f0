"""``/ledger``: which studies shaped which version, and whether the record is intact."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from segunlearn.app.routes.forget import Reader, Services
from segunlearn.errors import InvalidInputError, UnavailableError
from segunlearn.records.ledger import Ledger
from segunlearn.records.targets import instance_id

router = APIRouter(prefix="/ledger", tags=["Ledger"])

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "An identifier or a value is wrong"},
    401: {"description": "Not signed in"},
    403: {"description": "The role does not allow it"},
    404: {"description": "There is no such version or run"},
    422: {"description": "The request is not understood"},
    503: {"description": "The store cannot be reached now, or a verification is under way"},
}
_verifying = threading.Lock()


class RowOut(BaseModel):
    """One row of the ledger; ``cases_count`` series stand behind ``cases_sha256``."""

    seq: int
    digest: str
    previous: str
    recorded: str
    run_id: str
    kind: str
    model: str
    version_sha256: str | None
    parent_sha256: str | None
    cases_sha256: str
    cases_count: int
    parameters: dict[str, Any]
    seed: int | None
    versions: dict[str, str]
    machine: dict[str, Any]
    started: str
    ended: str
    outcome: str


class RowPage(BaseModel):
    """Some rows, newest first, and how many there are."""

    total: int = Field(description="Rows of the whole ledger, of every model and kind")
    limit: int
    offset: int
    rows: list[RowOut]


class Verification(BaseModel):
    """Outcome of a verification; no faults: the record is as it was written."""

    rows: int
    digest: str
    faults: list[dict[str, Any]]


class VersionOut(BaseModel):
    """A version that saw what was asked for; ``direct``: its own run read it."""

    version_sha256: str
    seq: int
    direct: bool


class StudyOut(BaseModel):
    """A study that shaped a version, and what it was used for."""

    study: str
    person: str
    roles: list[str]


class CaseOut(BaseModel):
    """One series that a run read, with the digests of what it read."""

    series: str
    study: str
    person: str
    role: str
    image_digest: str
    label_digest: str


@router.get("", summary="Rows of the ledger", responses=_REFUSALS)
def rows(
    user: Reader,
    services: Services,
    model: Annotated[str | None, Query(max_length=128)] = None,
    kind: Annotated[str | None, Query(max_length=40)] = None,
    limit: Annotated[int, Query(ge=0, le=1000)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> RowPage:
    """Page through the rows, newest first."""
    found = services.ledger.rows(model=model, kind=kind, limit=limit, offset=offset)
    return RowPage(
        total=services.ledger.head().rows,
        limit=limit,
        offset=offset,
        rows=[RowOut(**asdict(row)) for row in found],
    )


@router.get("/verify", summary="Verify the chain", responses=_REFUSALS)
def verify(user: Reader, services: Services) -> Verification:
    """Recompute every digest; takes seconds on a large ledger, and one runs at a time."""
    if not _verifying.acquire(blocking=False):
        raise UnavailableError("a verification is under way already. Try again in a minute.")
    try:
        head = services.ledger.head()
        faults = services.ledger.verify()
    finally:
        _verifying.release()
    return Verification(
        rows=head.rows, digest=head.digest, faults=[asdict(fault) for fault in faults]
    )


@router.get("/versions", summary="Versions that saw a study", responses=_REFUSALS)
def versions(
    user: Reader,
    services: Services,
    study: Annotated[str | None, Query(min_length=1, max_length=400)] = None,
    series: Annotated[str | None, Query(min_length=1, max_length=400)] = None,
    person: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
) -> list[VersionOut]:
    """Find the versions that a study, series or person shaped, through any chain of parents."""
    asked = {"study": study, "series": series, "person": person}
    given = {kind: value for kind, value in asked.items() if value is not None}
    if len(given) != 1:
        raise InvalidInputError("ask for exactly one of study, series and person.")
    for kind in {"study", "series"} & set(given):
        given[kind] = instance_id(kind, given[kind], opaque=services.opaque)
    return [VersionOut(**found) for found in versions_out(services.ledger, **given)]


@router.get("/studies", summary="Studies that shaped a version", responses=_REFUSALS)
def studies(
    user: Reader,
    services: Services,
    version: Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="SHA-256 of the weights")],
) -> list[StudyOut]:
    """List every study that shaped a version, its own run's and those of all its ancestors."""
    return [StudyOut(**found._asdict()) for found in services.ledger.studies_of(version)]


@router.get("/runs/{run_id}/cases", summary="Cases of a run", responses=_REFUSALS)
def cases(
    run_id: Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,128}$")], user: Reader, services: Services
) -> list[CaseOut]:
    """List every series that one run read, with the digests of what it read."""
    return [CaseOut(**asdict(case)) for case in services.ledger.cases_of(run_id)]


def versions_out(ledger: Ledger, **target: Any) -> list[dict[str, Any]]:
    """Return the versions that saw a study, series or person as plain values."""
    return [found._asdict() for found in ledger.versions_that_saw(**target)]
