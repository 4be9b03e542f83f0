"""Puts our routes, error replies and guards into MONAI Label's server."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    info,
    login,
    logs,
    model,
    ohif,
    scoring,
    train,
    wsi_infer,
)
from monailabel.endpoints import datastore as stock_datastore
from monailabel.endpoints import infer as stock_infer
from monailabel.endpoints import proxy as stock_proxy
from monailabel.endpoints import session as stock_session
from monailabel.interfaces.exception import MONAILabelException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from segunlearn.app import dicomweb, proxy, viewer
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes import (
    adapters,
    audits,
    changes,
    datastore,
    forget,
    infer,
    ledger,
    models,
    platform,
    runs,
    session,
    tasks,
    unlearning,
)
from segunlearn.app.security import protection
from segunlearn.app.security.protection import protect
from segunlearn.errors import SegUnlearnError

logger = logging.getLogger(__name__)

#: Stock modules whose every route we replace.
_REPLACED = (
    activelearning, batch_infer, info, login, logs, model, ohif, scoring, train, wsi_infer,
    stock_datastore, stock_infer, stock_proxy, stock_session,
)  # fmt: skip

#: Stock routes that are not in a router of their own.
_REPLACED_PATHS = frozenset({"/reload", "/", "/docs"})

_SUSPICIOUS = re.compile(rb"%2f|%5c|%00|\\|(?:^|/)(?:\.|%2e){2}(?:/|$)", re.IGNORECASE)
_UNSAFE_METHODS = frozenset({"POST", "PUT", "DELETE", "PATCH"})

#: Routes that decide or change something by JSON. A web page of another server can make a browser
#: send a form there without asking, but not JSON.
_JSON_ONLY = re.compile(r"/(?:forget|models|adapters|runs|pacs|train|unlearning)(?:/|$)")


def wire(server: FastAPI, app: SegUnlearnApp | None = None) -> None:
    """Replace the stock routes by ours; called once, when the server starts.

    Parameters
    ----------
    server
        ``monailabel.app.app``. Its middleware was built when it began to start, so it is built
        anew with our guard and our replies to errors.
    app
        Whose options say who may come in; None describes the routes only.
    """
    if getattr(server.state, "segunlearn", False):
        return
    server.state.segunlearn = True
    routes = server.router.routes
    routes[:] = [r for r in routes if not _is_replaced(r)]
    before = len(routes)
    for router in (
        infer.router, datastore.router, session.router, tasks.router, platform.router,
        *_further_routers(),
    ):  # fmt: skip
        server.include_router(router)
    routes[:] = [*routes[before:], *routes[:before]]  # the first match answers
    server.openapi_schema = None
    server.add_exception_handler(SegUnlearnError, _our_error)
    server.add_exception_handler(MONAILabelException, _platform_error)
    server.add_exception_handler(RequestValidationError, _validation_error)
    server.add_exception_handler(Exception, _unexpected_error)
    # the stock default lets every web site in, and a list of its own never matches ("…/")
    stock: Any = CORSMiddleware
    others = [m for m in server.user_middleware if m.cls is not stock]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=sorted(_allowed_origins()),
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    server.user_middleware = [Middleware(Guard), *([cors] if _allowed_origins() else []), *others]
    protect(server, app)
    server.middleware_stack = None


def _is_replaced(route: BaseRoute) -> bool:
    router = getattr(route, "original_router", None)
    if router is not None:
        return any(router is module.router for module in _REPLACED)
    return getattr(route, "path", None) in _REPLACED_PATHS


def _further_routers() -> Iterable[Any]:
    """Routers of the records, the DICOMweb service, the proxy and the viewer."""
    records = (
        forget.router, ledger.router, runs.router, audits.router, models.router, unlearning.router,
        adapters.router, changes.router,
    )  # fmt: skip
    return [
        *records,
        *dicomweb.routers(),
        *proxy.routers(),
        *viewer.routers(),
        *protection.routers(),
    ]


def _allowed_origins() -> frozenset[str]:
    return frozenset(str(o).rstrip("/") for o in settings.MONAI_LABEL_CORS_ORIGINS)


class Guard:
    """Refuses paths that reach around the routes, and writes from foreign web pages."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400 or 403, or pass the request on."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    @staticmethod
    def _refusal(scope: Scope) -> JSONResponse | None:
        if _SUSPICIOUS.search(scope.get("raw_path") or scope["path"].encode()):
            return JSONResponse(
                {"detail": "the path holds '..', an encoded slash or a backslash; write it out."},
                400,
            )
        if scope["method"] not in _UNSAFE_METHODS:
            return None
        headers = {k: v.decode("latin-1") for k, v in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path") or "")
        media = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if media not in ("", "application/json") and _JSON_ONLY.match(path):
            return JSONResponse(
                {"detail": f"{media:.80} is not taken here; send application/json."}, 415
            )
        origin, host = headers.get(b"origin"), headers.get(b"host", "")
        if origin is None or origin in _allowed_origins() or urlsplit(origin).netloc == host:
            return None
        return JSONResponse(
            {
                "detail": "a web page of another server may not change anything here. If it is "
                "yours, name it in MONAI_LABEL_CORS_ORIGINS."
            },
            403,
        )


def _route(request: Request) -> str:
    """Path of the route, without what a request put into it."""
    return str(getattr(request.scope.get("route"), "path", "a path without route"))


async def _our_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SegUnlearnError)
    if error.http_status >= 500:
        logger.error("%s %s: %s", request.method, _route(request), error)
    wait = getattr(error, "retry_after", None)
    headers = {"Retry-After": str(wait)} if wait is not None else None
    return JSONResponse({"detail": str(error)}, error.http_status, headers)


async def _platform_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MONAILabelException)
    return JSONResponse({"detail": str(error.msg)}, 400)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [f"{' '.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:5]]
    return JSONResponse({"detail": f"the request is not valid. {'; '.join(faults)}."}, 422)


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    number = uuid.uuid4().hex[:12]
    logger.error("%s %s: unexpected error %s", request.method, _route(request), number)
    return JSONResponse(
        {
            "detail": "the server met an error it does not know and changed nothing that it knows "
            f"of. Look for {number} in its log and report what stands there."
        },
        500,
    )
