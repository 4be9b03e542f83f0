"""``/whoami`` and ``/changes``: what a viewer must know of the caller, and when to look again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from pydantic import BaseModel, Field

from segunlearn.app.forgetting import Forgetting
from segunlearn.app.routes.common import caller
from segunlearn.app.routes.forget import ANNOTATORS, Reader, Services
from segunlearn.app.routes.runs import RunOut, end_killed, run_out
from segunlearn.app.routes.streams import ALIVE_SECONDS, Guest, event_stream

router = APIRouter(tags=["Viewer"])

#: Seconds between two looks, and of one stream: a stopping server waits for streams, and a caller
#: whose session has expired is told so when it asks for the next one.
LOOK_SECONDS = 1.0
LONGEST_SECONDS = 60.0
#: Runs that are told of, newest first.
RUNS = 5

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "Not signed in"},
    403: {"description": "The role does not allow it"},
    503: {"description": "The store cannot be reached now"},
}


class Me(BaseModel):
    """Who calls, and what they may do."""

    name: str = Field(description="Empty while authentication is off")
    signed_in: bool
    roles: list[str]
    may_mark: bool
    may_decide: bool = Field(description="Approve, unlearn, restore, purge, adapt")
    pacs: bool = Field(description="Documents on marks are sent to a PACS")


@router.get("/whoami", summary="Who calls, and what they may do", responses=_REFUSALS)
def whoami(user: Reader, services: Services) -> Me:
    """Let a viewer say beforehand why an action is not open to its user."""
    return Me(
        name=caller(user) or "",
        signed_in=settings.MONAI_LABEL_AUTH_ENABLE,
        roles=sorted(user.roles),
        may_mark=any(role in user.roles for role in ANNOTATORS),
        may_decide=settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles,
        pacs=services.outbox is not None,
    )


@router.get(
    "/changes",
    summary="Tell when the forget set or a run changes",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}, **_REFUSALS},
)
async def changes(request: Request, user: Reader, services: Services) -> StreamingResponse:
    """Stream server-sent events for a minute: one at once, then one at each change.

    ``forget`` is a number that grows with every step of any request; ``runs`` holds the newest runs
    of which something changed, as in ``/runs``. The event ``signed-out`` ends it seconds after the
    caller's token was revoked or has expired. One stream serves a whole viewer, because browsers
    open few connections to one server.
    """
    await run_in_threadpool(end_killed, services.runs)
    first = await run_in_threadpool(_look, services)  # a store that is away is told as 503
    return event_stream(_stream(services, first, Guest(request)))


def _look(services: Forgetting) -> tuple[int, dict[str, RunOut]]:
    runs = services.runs.list(RUNS)
    return services.forget_set.last_change(), {r.run_id: run_out(r) for r in runs}


async def _stream(
    services: Forgetting, first: tuple[int, dict[str, RunOut]], guest: Guest
) -> AsyncIterator[str]:
    began = said = time.monotonic()
    forget, runs = first
    yield _event(forget, list(runs.values()))
    while time.monotonic() - began < LONGEST_SECONDS:
        await asyncio.sleep(LOOK_SECONDS)
        if await guest.is_gone():
            return
        if last := await guest.last_event():
            yield last
            return
        now, found = await run_in_threadpool(_look, services)
        changed = [run for key, run in found.items() if runs.get(key) != run]
        if now != forget or changed:
            said = time.monotonic()
            yield _event(now, changed)
        elif time.monotonic() - said > ALIVE_SECONDS:
            said = time.monotonic()
            await run_in_threadpool(end_killed, services.runs)
            yield ": alive\n\n"
        forget, runs = now, found


def _event(forget: int, runs: list[RunOut]) -> str:
    data = {"forget": forget, "runs": [run.model_dump() for run in runs]}
    return f"event: change\ndata: {json.dumps(data)}\n\n"
