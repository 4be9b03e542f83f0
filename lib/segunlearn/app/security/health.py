"""``/health`` for whoever restarts the server, ``/metrics`` for whoever watches it, and ``/``."""

from __future__ import annotations

import html
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field
from sqlalchemy import text

from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes.common import User, current_app
from segunlearn.app.security.protection import protection_of
from segunlearn.errors import SegUnlearnError, UnavailableError
from segunlearn.records.forget_states import LIVE

logger = logging.getLogger(__name__)

router = APIRouter(tags=["Health"])

#: Space that must be free in the home, in bytes: a version, its deposit and the database's log.
_FREE: Final = 512 << 20

Part = Literal["good", "fault"]


class Ready(BaseModel):
    """Whether the server can do its work; ``fault`` in a part: see the log."""

    ready: bool
    store: Part = Field(description="The database answers")
    home: Part = Field(description="The home can be written, and 512 MiB are free")
    model: Part = Field(description="The version in service is whole, or none was trained yet")


@router.get("/health/live", summary="Whether the server lives")
async def live() -> dict[str, str]:
    """Answer, without a thread; a server that does not is to be restarted."""
    return {"status": "live"}


@router.get(
    "/health/ready",
    summary="Whether the server can do its work",
    response_model=Ready,
    responses={503: {"description": "Not now", "model": Ready}},
)
def ready() -> JSONResponse:
    """Look at store, home and model; a PACS that is away is no reason to send people elsewhere."""
    app = current_app()
    parts = {
        "store": _part("store", lambda: _ask_store(app)),
        "home": _part("home", lambda: _ask_home(app)),
        "model": _part("model", app.model.check),
    }
    good = all(part == "good" for part in parts.values())
    return JSONResponse({"ready": good, **parts}, 200 if good else 503)


@router.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
def metrics(user: User, request: Request) -> Response:
    """Send counts of requests, runs and forget requests; none tells anything of a patient."""
    app = current_app()
    gauges: dict[str, tuple[str, float]] = {}
    usage = shutil.disk_usage(app.home.root)
    under_way, waiting = app.inferences.figures()
    gauges["inferences_running"] = ("Inferences under way", under_way)
    gauges["inferences_waiting"] = ("Inferences that wait for their turn", waiting)
    gauges["home_free_bytes"] = ("Free space where the home lies", usage.free)
    try:
        records = app.records
        live_requests = records.forget_set.count(states=tuple(LIVE))
        gauges["store_up"] = ("The database answers", 1)
        gauges["ledger_rows"] = ("Rows of the ledger", records.ledger.head().rows)
        gauges["trail_rows"] = ("Rows of the trail", records.trail.head().rows)
        gauges["forget_requests_live"] = ("Forget requests in force", live_requests)
        waiting = records.forget_set.count(states=("requested", "approved"))
        gauges["forget_requests_waiting"] = ("Requests that nobody has worked on", waiting)
        running = len(records.runs_unchecked.list(100, state="running"))
        gauges["runs_running"] = ("Trainings, audits and unlearnings under way", running)
    except SegUnlearnError:
        gauges["store_up"] = ("The database answers", 0)
    return Response(
        protection_of(request).metrics.text(gauges),
        media_type="text/plain; version=0.0.4; charset=utf-8",
    )


@router.get("/", include_in_schema=False)
def index(request: Request) -> HTMLResponse:
    """List the routes; MONAI Label's own page runs scripts of other hosts."""
    rows = []
    for path, operations in sorted(request.app.openapi()["paths"].items()):
        for method, operation in operations.items():
            cells = (method.upper(), path, operation.get("summary", ""))
            rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    return page(
        "SegUnlearn",
        '<p><a href="ohif/">Viewer</a> · <a href="openapi.json">OpenAPI description</a></p>'
        f"<table>{table}</table>",
    )


def page(title: str, body: str, status: int = 200) -> HTMLResponse:
    """Make a page that runs nothing and asks no other host for anything."""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        "</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:3rem auto;"
        "padding:0 1rem}td{padding:.1rem .8rem .1rem 0}input{width:100%;max-width:30rem}</style>"
        f"</head><body><h1>{html.escape(title)}</h1>{body}</body></html>",
        status,
        headers={
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            "Cache-Control": "no-store",
        },
    )


def _part(name: str, ask: Callable[[], Any]) -> Part:
    try:
        ask()
    except (SegUnlearnError, OSError) as error:
        logger.warning("not ready, %s: %s", name, error)
        return "fault"
    return "good"


def _ask_store(app: SegUnlearnApp) -> None:
    with app.records.store.read() as connection:
        connection.execute(text("SELECT 1"))


def _ask_home(app: SegUnlearnApp) -> None:
    root = app.home.root
    if not os.access(root, os.W_OK) or os.statvfs(root).f_flag & os.ST_RDONLY:
        raise UnavailableError("the home cannot be written. Check its rights and its disk.")
    if shutil.disk_usage(root).free < _FREE:
        raise UnavailableError(f"less than {_FREE >> 20} MiB are free in the home. Make room.")
