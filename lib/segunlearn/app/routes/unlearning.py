"""``/unlearning/plan``, and the two ends of a fulfilled request: restore and purge."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.forgetting import UNKNOWN_ACTOR
from segunlearn.app.routes.common import caller, current_app
from segunlearn.app.routes.forget import Decider, RequestId, Why
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_task import UNLEARN, UnlearnTask
from segunlearn.app.unlearn_undo import Undo
from segunlearn.errors import InvalidInputError
from segunlearn.records.forget_states import Level, State

router = APIRouter(tags=["Unlearning"])

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A value is wrong, or the sets do not allow it; nothing was changed"},
    401: {"description": "Not signed in"},
    403: {"description": "The role does not allow it"},
    404: {"description": "There is no such request, version, method or deposit"},
    409: {"description": "The state of a request or of the model forbids it"},
    422: {"description": "The request is not understood, or the network cannot be treated"},
    503: {"description": "The store or the PACS cannot be reached now"},
}

App = Annotated[SegUnlearnApp, Depends(current_app)]


class Purge(Why):
    """Why everything that leads back shall be destroyed, and that this is meant."""

    confirm: bool = Field(False, description="Must be true: a purge cannot be undone")


class PlannedRequest(BaseModel):
    """A request of a plan, and what would happen to it."""

    id: str
    state: State
    needed: Level
    what: str


class WayOut(BaseModel):
    """One way of forgetting; only an audit decides the level."""

    method: str
    level: Level
    seconds: float | None = Field(description="Without the audit; null when nothing tells")
    memory_bytes: int
    reads: list[str]
    words: str
    measured: bool = Field(description="From an earlier run of this method here")


class LeftOut(BaseModel):
    """Requests that stay open until another model has forgotten what they name."""

    model: str
    requests: list[str]
    possible: bool = Field(description="An unlearning there could begin now")
    what: str = Field(description="What is left to do, or why it cannot be done, and the way out")


class PlanOut(BaseModel):
    """What an unlearning would do; nothing is changed by asking."""

    requests: list[PlannedRequest]
    original: str = Field(description="Version that is unlearned from; empty: none needs it")
    studies: int
    people: int
    retained: int
    unseen_people: int
    level: Level
    ways: list[WayOut]
    recommended: str
    why: str
    others: list[LeftOut] = Field(description="What other models have to forget besides")
    lines: list[str] = Field(description="The same for people")


class Restored(BaseModel):
    """What serves again."""

    version: str
    requests: list[str] = Field(description="Restored together: they were unlearned together")
    lost: list[str] = Field(description="Versions made since, which are not served any more")


class PlaceOut(BaseModel):
    """A place that may still hold the study, such as a label that the hospital keeps."""

    kind: str
    where: str = Field(description="Below the home folder, by pseudonyms")
    state: str
    words: str = Field(description="Why, and what to do")


class WouldPurge(BaseModel):
    """What a purge would destroy."""

    destroyed: list[str] = Field(description="Versions whose weights would be gone for good")
    requests: list[str] = Field(description="Others that could not be restored any more")


class Purged(BaseModel):
    """What was destroyed."""

    destroyed: list[str] = Field(description="Versions whose weights are gone for good")
    requests: list[str] = Field(description="Others that cannot be restored any more")
    places: list[PlaceOut]


@router.get("/unlearning/plan", summary="Plan an unlearning", responses=_REFUSALS)
def get_plan(
    user: Decider,
    app: App,
    request: Annotated[list[str] | None, Query(max_length=1000)] = None,
    level: Literal["hidden", "unlearned", "retrained"] | None = None,
    method: Annotated[str, Query(max_length=100)] = "",
    restore: Annotated[str, Query(max_length=100)] = "",
) -> PlanOut:
    """Say which requests an unlearning would treat, and what each way would take.

    Without ``request`` it is about all that wait: approved, or in work. ``POST /train/unlearn``
    runs it. With ``restore``, a fulfilled request, it says what has to be forgotten again for
    restoring that.
    """
    order = UnlearnOrder(
        app.model.name, requests=tuple(request or ()), level=level or "", method=method,
        device=app.options.device, restore=restore,
    )  # fmt: skip
    task: UnlearnTask = app.trainer(UNLEARN)
    plan, lines = task.plan(order)
    return PlanOut.model_validate({**plan, "lines": lines})


@router.post(
    "/forget/requests/{request_id}/restore", summary="Restore what was forgotten",
    responses=_REFUSALS,
)  # fmt: skip
def restore(request_id: RequestId, body: Why, user: Decider, app: App) -> Restored:
    """Open the deposit and serve the version that knew the studies; they may be trained on again.

    Requests that were unlearned together come back together. Refused (409) where that version also
    knows what is still forgotten: ``POST /train/unlearn`` with the request as ``restore``, and
    ``dry_run`` off, forgets that again and audits it first.
    """
    found = _undo(app, user).restore(request_id, body.why)
    app.forgetting.wake()
    return Restored.model_validate(found)


@router.get(
    "/forget/requests/{request_id}/purge", summary="What a purge would destroy",
    responses=_REFUSALS,
)  # fmt: skip
def would_purge(request_id: RequestId, user: Decider, app: App) -> WouldPurge:
    """Say what would be gone, and which other requests would lose their way back.

    Refused as the purge itself would be; nothing is changed.
    """
    return WouldPurge.model_validate(_undo(app, user).would_purge(request_id))


@router.post("/forget/requests/{request_id}/purge", summary="Make it final", responses=_REFUSALS)
def purge(request_id: RequestId, body: Purge, user: Decider, app: App) -> Purged:
    """Destroy the key, the old weights, checkpoints and caches: the only state called erasure.

    It needs ``confirm: true``. Requests that were unlearned together lose their way back, too.
    """
    if not body.confirm:
        raise InvalidInputError(
            "a purge is final: the key and every old version that knows the studies are destroyed, "
            "and nobody can restore them. Send confirm: true if this is meant."
        )
    found = _undo(app, user).purge(request_id, body.why)
    app.forgetting.wake()
    return Purged.model_validate(found)


def _undo(app: SegUnlearnApp, user: Decider) -> Undo:
    return Undo(app.home, app.records, app.model.name, caller(user) or UNKNOWN_ACTOR)
