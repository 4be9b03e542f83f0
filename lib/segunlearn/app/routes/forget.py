"""``/forget``: mark studies for forgetting, and see what became of it."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC
from monailabel.endpoints.user.auth import User as PlatformUser
from pydantic import BaseModel, ConfigDict, Field

from segunlearn.app.forgetting import UNKNOWN_ACTOR, Forgetting, revocation_of, subjects
from segunlearn.app.routes.common import caller, current_app
from segunlearn.errors import InvalidInputError, NotFoundError
from segunlearn.records.forget_requests import KNOWN_ELSEWHERE
from segunlearn.records.forget_set import NOTE_LENGTH, ForgetRequest
from segunlearn.records.forget_states import LIVE, Level, Reason, State
from segunlearn.records.targets import (
    TargetKind,
    check_issuer,
    instance_id,
    make_target,
    person_name,
)

router = APIRouter(prefix="/forget", tags=["Forget"])

#: Roles that may mark.
ANNOTATORS = [
    settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
    settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
    settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
]
Reader = Annotated[PlatformUser, Depends(RBAC("*"))]
Marker = Annotated[PlatformUser, Depends(RBAC(ANNOTATORS))]
Decider = Annotated[PlatformUser, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]

#: Studies and series that one status request may ask for.
STATUS_LIMIT = 1000

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "An identifier or a value is wrong; nothing was changed"},
    401: {"description": "Not signed in"},
    403: {"description": "The role does not allow it"},
    404: {"description": "There is no such study or request"},
    409: {"description": "The state of the request forbids it"},
    422: {"description": "The request is not understood"},
    503: {"description": "The store cannot be reached now"},
}


def forgetting() -> Forgetting:
    """Return the records of the app that serves now."""
    found: Forgetting = current_app().forgetting
    return found


Services = Annotated[Forgetting, Depends(forgetting)]
Identifier = Annotated[str, Path(min_length=1, max_length=400)]
RequestId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


class Mark(BaseModel):
    """Why something shall be forgotten."""

    model_config = ConfigDict(extra="forbid")

    reason: Reason
    note: str = Field("", max_length=NOTE_LENGTH, description="Needed where the reason is 'other'")
    needed: Literal["hidden", "unlearned", "retrained"] | None = Field(
        None, description="Assurance level; without it, the one of the reason"
    )
    even_if_unknown: bool = Field(
        False, description="Mark it although the studies do not hold it (yet)"
    )


class PatientMark(Mark):
    """Why a patient shall be forgotten."""

    issuer: str = Field("", max_length=64, description="IssuerOfPatientID")


class StructureMark(Mark):
    """Why a structure shall be forgotten."""

    model: str = Field("", max_length=128, description="Of this model only; without it, of all")


class Why(BaseModel):
    """Free text on a decision."""

    model_config = ConfigDict(extra="forbid")

    why: str = Field("", max_length=NOTE_LENGTH)


class TargetOut(BaseModel):
    """What shall be forgotten."""

    kind: TargetKind
    id: str
    issuer: str
    model: str


class RequestOut(BaseModel):
    """A forget request as it stands."""

    request_id: str
    target: TargetOut
    study: str
    reason: Reason
    note: str
    state: State
    needed: Level
    reached: Level
    live: bool = Field(description="It keeps the target out of training")
    source: str
    marked_by: str
    agreed_by: str = Field(description="Who agreed, where another system proposed it; else empty")
    agreed_reason: str = Field(
        description="The reason they gave; `reason` stays that of the proposal"
    )
    created: str
    updated: str
    covered_by: list[str] = Field(description="Requests on its study or patient")
    message: str = ""


class StepOut(BaseModel):
    """One step of a request."""

    time: str
    actor: str
    role: str
    from_state: str
    to_state: str
    needed: Level
    reached: Level
    why: str


class RequestDetail(RequestOut):
    """A forget request with its history, and the versions that it concerns."""

    next_states: list[State]
    history: list[StepOut]
    versions: list[dict[str, Any]] = Field(description="Model versions that saw the target")
    studies: list[str] = Field(
        description="Of a patient: studies that stood under this number since the mark. They stay "
        "covered, whatever number the archive gives them"
    )
    revocation: dict[str, Any] | None = Field(
        description="What another system took back about this study"
    )


class RequestPage(BaseModel):
    """Some requests, newest first, and how many there are."""

    total: int
    limit: int
    offset: int
    requests: list[RequestOut]


class CoverOut(BaseModel):
    """A request that covers a study or series."""

    request_id: str
    target_kind: TargetKind
    state: State
    reason: Reason
    needed: Level
    reached: Level


class StatusOut(BaseModel):
    """Whether a study or series is marked."""

    marked: bool
    covers: list[CoverOut]
    proposals: list[CoverOut]
    series_marked: int


_PUT: dict[str, Any] = {
    "status_code": 200,
    "response_model": RequestOut,
    "responses": {201: {"description": "Marked", "model": RequestOut}, **_REFUSALS},
}


@router.put("/studies/{uid}", summary="Mark a study", **_PUT)
def mark_study(
    uid: Identifier, body: Mark, response: Response, user: Marker, services: Services
) -> RequestOut:
    """Keep a study out of training from now on, and ask for it to be unlearned.

    Marking it again makes no second request and returns the first with 200; the history says who
    did, and why. A level or reason that asks for more raises the request's level, or is refused
    where it was fulfilled at less (409).
    """
    return _mark(services, response, user, "study", uid, body)


@router.put("/series/{uid}", summary="Mark a series", **_PUT)
def mark_series(
    uid: Identifier, body: Mark, response: Response, user: Marker, services: Services
) -> RequestOut:
    """Mark one series; ``covered_by`` says when its study or patient is marked already."""
    return _mark(services, response, user, "series", uid, body)


@router.put("/patients/{patient_id:path}", summary="Mark a patient", **_PUT)
def mark_patient(
    patient_id: Identifier, body: PatientMark, response: Response, user: Marker, services: Services
) -> RequestOut:
    """Mark a patient: all studies, and those that arrive later."""
    return _mark(services, response, user, "patient", patient_id, body, issuer=body.issuer)


@router.put("/structures/{label}", summary="Mark a structure", **_PUT)
def mark_structure(
    label: Identifier, body: StructureMark, response: Response, user: Marker, services: Services
) -> RequestOut:
    """Mark a structure (class) that models shall forget."""
    return _mark(services, response, user, "structure", label, body, model=body.model)


@router.get("/requests", summary="List forget requests", responses=_REFUSALS)
def list_requests(
    user: Reader,
    services: Services,
    state: Annotated[list[State] | None, Query(max_length=20)] = None,
    target: TargetKind | None = None,
    target_id: Annotated[str | None, Query(max_length=400)] = None,
    reason: Reason | None = None,
    marked_by: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=0, le=1000)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> RequestPage:
    """Page through requests, newest first; all filters given must agree."""
    filters: dict[str, Any] = {
        "states": tuple(state or ()),
        "target_kind": target,
        "target_id": target_id,
        "reason": reason,
        "marked_by": marked_by,
    }
    found = services.forget_set.list(**filters, limit=limit, offset=offset)
    total = services.forget_set.count(**filters)
    return RequestPage(
        total=total, limit=limit, offset=offset, requests=[_out(request) for request in found]
    )


@router.get("/requests/{request_id}", summary="One forget request", responses=_REFUSALS)
def get_request(request_id: RequestId, user: Reader, services: Services) -> RequestDetail:
    """Return a request with its history and the model versions that saw its target."""
    request = services.forget_set.get(request_id)
    return RequestDetail.model_validate(
        {
            **_out(request).model_dump(),
            "next_states": sorted(request.next_states),
            "history": [asdict(step) for step in services.forget_set.history(request_id)],
            "versions": _versions(services, request),
            "studies": list(request.studies),
            "revocation": revocation_of(services.seen, request),
        }
    )


@router.delete("/requests/{request_id}", summary="Withdraw a forget request", responses=_REFUSALS)
def withdraw(
    request_id: RequestId,
    user: Marker,
    services: Services,
    why: Annotated[str, Query(max_length=NOTE_LENGTH)] = "",
) -> RequestOut:
    """Take a request back before any unlearning; annotators only their own, admins any."""
    request = services.forget_set.withdraw(
        request_id, actor=_actor(user), role=_role(user), why=why, own_only=not _is_admin(user)
    )
    services.wake()
    return _out(request)


@router.post("/requests/{request_id}/approve", summary="Approve", responses=_REFUSALS)
def approve(request_id: RequestId, user: Decider, services: Services) -> RequestOut:
    """Approve a request; a proposal becomes a request first."""
    actor, role = _actor(user), _role(user)
    if services.forget_set.get(request_id).state == "proposed":
        services.forget_set.transition(request_id, "requested", actor=actor, role=role)
    request = services.forget_set.approve(request_id, actor=actor, role=role)
    services.wake()
    return _out(request)


@router.post("/requests/{request_id}/dismiss", summary="Dismiss a proposal", responses=_REFUSALS)
def dismiss(request_id: RequestId, body: Why, user: Decider, services: Services) -> RequestOut:
    """Close a proposal without forgetting anything."""
    return _out(
        services.forget_set.transition(
            request_id, "dismissed", actor=_actor(user), role=_role(user), why=body.why
        )
    )


@router.get("/status", summary="Marks of many studies and series", responses=_REFUSALS)
def status(
    user: Reader,
    services: Services,
    study: Annotated[list[str] | None, Query(max_length=STATUS_LIMIT)] = None,
    series: Annotated[list[str] | None, Query(max_length=STATUS_LIMIT)] = None,
) -> dict[str, StatusOut]:
    """Tell for each study and series whether it is marked: one call for a whole list."""
    studies = [instance_id("study", uid, opaque=services.opaque) for uid in study or ()]
    single = [instance_id("series", uid, opaque=services.opaque) for uid in series or ()]
    if len(studies) + len(single) > STATUS_LIMIT:
        raise InvalidInputError(f"ask for at most {STATUS_LIMIT} studies and series at once.")
    whole, parts = subjects(services.catalogue, studies, single)
    found = services.forget_set.status(studies=whole, series=parts)
    return {uid: StatusOut.model_validate(asdict(marks)) for uid, marks in found.items()}


def _mark(
    services: Forgetting,
    response: Response,
    user: PlatformUser,
    kind: TargetKind,
    target_id: str,
    body: Mark,
    **extra: str,
) -> RequestOut:
    target = make_target(kind, target_id, opaque=services.opaque, **extra)  # before any question
    target_id = person_name(target.id, target.issuer) if kind == "patient" else target.id
    catalogue = services.catalogue
    if kind == "patient" and not target.issuer:
        issuers = services.ledger.issuers_of(target.id)
        check_issuer(target, issuers | (catalogue.issuers(target.id) if catalogue else set()))
    known, listed = None, None
    if catalogue is not None and kind in ("study", "series"):
        known = catalogue.subject(kind, target_id)
    # where nobody needs the answer, no mark waits for an archive: it is asked in the background
    if catalogue is not None and kind == "patient" and not (body.even_if_unknown and services.sync):
        listed = catalogue.studies(target.id, target.issuer)
    if (
        catalogue is not None
        and known is None
        and not body.even_if_unknown
        and (listed == [] if kind == "patient" else catalogue.holds(kind, target_id) is False)
        and not services.ledger.versions_that_saw(**_seen_as(kind, target_id))
    ):
        raise NotFoundError(
            f"there is no such {kind} among the studies, and no model was trained on it; nothing "
            "was marked. Check the identifier, or set even_if_unknown to mark it all the same."
        )
    if known is not None:
        extra = {**extra, "study": known.study if kind == "series" else "", "person": known.person}
    request, created = services.forget_set.mark(
        kind,
        target_id,
        body.reason,
        body.note,
        _actor(user),
        role=_role(user),
        needed=body.needed,
        opaque=services.opaque,
        studies=listed or (),
        **extra,
    )
    response.status_code = 201 if created else 200
    services.wake()
    return _out(request)


def _seen_as(kind: str, target_id: str) -> dict[str, str]:
    return {"person" if kind == "patient" else kind: target_id}


def _versions(services: Forgetting, request: ForgetRequest) -> list[dict[str, Any]]:
    if request.target.kind == "structure":
        return []
    from segunlearn.app.routes.ledger import versions_out

    target = request.target
    person = person_name(target.id, target.issuer)
    target_id = person if target.kind == "patient" else target.id
    return versions_out(
        services.ledger, **_seen_as(target.kind, target_id), studies=request.studies
    )


_SAME = frozenset(f.name for f in fields(ForgetRequest))


def _out(request: ForgetRequest) -> RequestOut:
    said = [KNOWN_ELSEWHERE] if request.is_known_elsewhere else []
    if request.covered_by:
        said += ["Its study or patient is marked as well; it stays marked when that is withdrawn."]
    return RequestOut.model_validate(
        {
            **{name: getattr(request, name) for name in RequestOut.model_fields if name in _SAME},
            "target": asdict(request.target),
            "agreed_reason": request.stated_reason if request.agreed_by else "",
            "live": request.state in LIVE,
            "covered_by": list(request.covered_by),
            "message": " ".join(said),
        }
    )


def _actor(user: PlatformUser) -> str:
    return caller(user) or UNKNOWN_ACTOR


def _is_admin(user: PlatformUser) -> bool:
    return settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles


def _role(user: PlatformUser) -> str:
    return next((role for role in reversed(ANNOTATORS) if role in user.roles), "")
