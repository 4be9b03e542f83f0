"""``/runs``: what runs and ran, and its progress as server-sent events; ``/pacs/outbox``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from segunlearn.app.routes.forget import Decider, Reader, Services
from segunlearn.app.routes.streams import ALIVE_SECONDS, Guest, event_stream
from segunlearn.errors import NotFoundError, UnavailableError
from segunlearn.records.runs import RunEvent, RunRecord, Runs, State

router = APIRouter(tags=["Runs"])

RunId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]

#: Seconds between two looks for new events, and of one stream; a client that is cut off asks again
#: with Last-Event-ID and misses nothing.
POLL_SECONDS = 0.5
LONGEST_SECONDS = 3600.0
_END = "event: end\ndata: {}\n\n"

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "Not signed in"},
    403: {"description": "The role does not allow it"},
    404: {"description": "There is no such run, or no PACS"},
    409: {"description": "The run has ended"},
    422: {"description": "The request is not understood"},
    503: {"description": "The store cannot be reached now"},
}


class ProgressOut(BaseModel):
    """How far a run is."""

    phase: str
    step: int
    total: int
    fraction: float
    metrics: dict[str, float]
    eta_seconds: float | None


class RunOut(BaseModel):
    """One run as it stands."""

    run_id: str
    kind: str
    model: str
    parameters: dict[str, Any]
    requested_by: str
    state: State
    message: str
    progress: ProgressOut | None
    started: str
    updated: str
    ended: str | None
    cancel_requested: bool


class DocumentOut(BaseModel):
    """One document for the PACS; ``sent`` is None while it waits."""

    document_uid: str
    request_id: str
    state: str
    created: str
    attempts: int
    due: str
    last_error: str
    sent: str | None


class OutboxOut(BaseModel):
    """Whether the PACS has been told everything."""

    waiting: int
    retrying: int
    sent: int
    oldest: str | None
    next_due: str | None
    last_error: str
    documents: list[DocumentOut]


def end_killed(runs: Runs) -> None:
    """End runs whose process was killed, which say nothing themselves; a full disk can be read."""
    with suppress(UnavailableError):
        runs.mark_dead()


@router.get("/runs", summary="List runs", responses=_REFUSALS)
def list_runs(
    user: Reader,
    services: Services,
    model: Annotated[str | None, Query(max_length=128)] = None,
    kind: Annotated[str | None, Query(max_length=64)] = None,
    state: State | None = None,
    limit: Annotated[int, Query(ge=0, le=1000)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[RunOut]:
    """Page through runs of every kind, newest first."""
    end_killed(services.runs)
    found = services.runs.list(limit, offset, model=model, kind=kind, state=state)
    return [run_out(record) for record in found]


@router.get("/runs/{run_id}", summary="One run", responses=_REFUSALS)
def get_run(run_id: RunId, user: Reader, services: Services) -> RunOut:
    """Return one run with its newest progress."""
    end_killed(services.runs)
    return run_out(services.runs.get(run_id))


@router.post("/runs/{run_id}/cancel", summary="Stop a run", responses=_REFUSALS)
def cancel_run(run_id: RunId, user: Decider, services: Services) -> RunOut:
    """Ask a run to stop; it does so at its next step."""
    end_killed(services.runs)
    services.runs.cancel(run_id, by=user.username)
    return run_out(services.runs.get(run_id))


@router.get(
    "/runs/{run_id}/events",
    summary="Progress of a run",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}, **_REFUSALS},
)
async def run_events(
    run_id: RunId,
    request: Request,
    user: Reader,
    services: Services,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    last_event_id: Annotated[str | None, Header(max_length=32)] = None,
) -> StreamingResponse:
    """Stream the events of a run as server-sent events, until it ends.

    Each event is named by the run's state, has its number as id, and JSON as data. A client that
    sends ``Last-Event-ID`` (browsers do so by themselves) or ``after`` gets the newer ones only.
    The event ``signed-out`` ends the stream, too, seconds after the caller's token was revoked or
    has expired.
    """
    if last_event_id and last_event_id.isascii() and last_event_id.isdigit():
        after = max(after, min(int(last_event_id), 2**53))
    await run_in_threadpool(end_killed, services.runs)
    record = await run_in_threadpool(services.runs.get, run_id)
    after = min(after, record.last_event)
    return event_stream(_stream(services.runs, run_id, after, Guest(request)))


@router.get("/pacs/outbox", summary="Documents for the PACS", responses=_REFUSALS, tags=["PACS"])
def outbox(
    user: Reader,
    services: Services,
    waiting: bool | None = None,
    limit: Annotated[int, Query(ge=0, le=1000)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> OutboxOut:
    """Tell which documents wait for the PACS, since when, and why."""
    return _outbox(services, waiting, limit, offset)


@router.post("/pacs/outbox/retry", summary="Try again now", responses=_REFUSALS, tags=["PACS"])
def retry(user: Decider, services: Services) -> OutboxOut:
    """Send all waiting documents now, after a fault of the PACS was repaired."""
    if services.outbox is not None:
        services.outbox.retry_now()
        services.wake()
    return _outbox(services, True, 50, 0)


def _outbox(services: Services, waiting: bool | None, limit: int, offset: int) -> OutboxOut:
    if services.outbox is None:
        raise NotFoundError("the studies are files: there is no PACS to send documents to.")
    items = services.outbox.list(waiting=waiting, limit=limit, offset=offset)
    return OutboxOut(
        **asdict(services.outbox.status()),
        documents=[
            DocumentOut(
                document_uid=item.document_uid,
                request_id=item.request_id,
                state=str(item.payload.get("state", "")),
                created=item.created,
                attempts=item.attempts,
                due=item.due,
                last_error=item.last_error,
                sent=item.sent,
            )
            for item in items
        ],
    )


async def _stream(runs: Runs, run_id: str, after: int, guest: Guest) -> AsyncIterator[str]:
    began = said = time.monotonic()
    first = True
    yield "retry: 2000\n\n"
    while time.monotonic() - began < LONGEST_SECONDS:
        events = await run_in_threadpool(runs.events, run_id, after=after)
        if not events and first and not (await run_in_threadpool(runs.get, run_id)).is_running:
            yield _END
            return
        first = False
        for event in events:
            after, said = event.seq, time.monotonic()
            yield _event(event)
            if event.state != "running":
                # an interrupted run may report again: a client that cares asks again
                yield _END
                return
        if await guest.is_gone():
            return
        if last := await guest.last_event():
            yield last
            return
        if time.monotonic() - said > ALIVE_SECONDS:
            said = time.monotonic()
            await run_in_threadpool(end_killed, runs)
            yield ": alive\n\n"
        await asyncio.sleep(POLL_SECONDS)


def _event(event: RunEvent) -> str:
    data = {
        "run_id": event.run_id,
        "time": event.time,
        "state": event.state,
        "message": event.message,
        "progress": None if event.progress is None else _progress(event.progress).model_dump(),
    }
    return f"id: {event.seq}\nevent: {event.state}\ndata: {json.dumps(data)}\n\n"


def _progress(progress: Any) -> ProgressOut:
    return ProgressOut(**asdict(progress), fraction=progress.fraction)


def run_out(record: RunRecord) -> RunOut:
    """Show a run as it stands."""
    values = {name: getattr(record, name) for name in RunOut.model_fields if name != "progress"}
    progress = None if record.progress is None else _progress(record.progress)
    return RunOut(**values, progress=progress)
