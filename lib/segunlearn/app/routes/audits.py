"""``/audits``: what was audited, with which verdict, and the report for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import HTMLResponse
from monailabel.config import settings
from pydantic import BaseModel, Field

from segunlearn.app.audit_files import Audits
from segunlearn.app.routes.common import current_app
from segunlearn.app.routes.forget import Reader
from segunlearn.errors import ForbiddenError

router = APIRouter(prefix="/audits", tags=["Audits"])

#: The report asks the network for nothing, runs nothing, and is shown in no other page's frame.
REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "Not signed in"},
    403: {"description": "The role does not allow it"},
    404: {"description": "There is no such audit"},
    409: {"description": "The audit's files are not as they were signed"},
    422: {"description": "The request is not understood"},
}


def audits() -> Audits:
    """Return the audits of the app that serves now."""
    return Audits(current_app().home)


Services = Annotated[Audits, Depends(audits)]
AuditId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


class AuditOut(BaseModel):
    """One audit in the list; a damaged one says so in ``outcome`` and ``message``."""

    audit_id: str = Field(description="Also the id of its run")
    created: str
    model: str
    candidate: str
    original: str
    outcome: str = Field(description="passed, refused, inconclusive or damaged")
    reached: str
    needed: str
    reference: str
    studies: int
    persons: int
    message: str


class AuditPage(BaseModel):
    """Some audits, newest first, and how many there are."""

    total: int
    limit: int
    offset: int
    audits: list[AuditOut]


@router.get("", summary="List audits", responses=_REFUSALS)
def list_audits(
    user: Reader,
    services: Services,
    limit: Annotated[int, Query(ge=0, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> AuditPage:
    """Page through the audits, newest first."""
    ids = services.ids()
    found = services.summaries(ids[offset : offset + limit])
    return AuditPage(
        total=len(ids), limit=limit, offset=offset, audits=[AuditOut(**asdict(s)) for s in found]
    )


@router.get("/{audit_id}", summary="One audit", responses=_REFUSALS)
def get_audit(audit_id: AuditId, user: Reader, services: Services) -> dict[str, Any]:
    """Return verdict, findings and figures, after the signature was checked."""
    return services.get(audit_id)


@router.get(
    "/{audit_id}/report",
    summary="Report of an audit",
    response_class=HTMLResponse,
    responses={200: {"content": {"text/html": {}}}, **_REFUSALS},
)
def get_report(audit_id: AuditId, user: Reader, services: Services) -> HTMLResponse:
    """Send the HTML report; one with pictures of patients to administrators only."""
    result, page = services.report(audit_id)
    if (
        result["about"].get("pictures", False)
        and settings.MONAI_LABEL_AUTH_ROLE_ADMIN not in user.roles
    ):
        raise ForbiddenError(
            "this report shows images of patients; it is for administrators. Ask one for a report "
            "without pictures."
        )
    return HTMLResponse(page, headers=REPORT_HEADERS)
