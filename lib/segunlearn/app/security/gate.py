"""The gate before every route: whose request this is, and whether it may come in at all.

Everything is closed unless it is named here as open, so that a route that forgets its own check is
closed too. The routes' checks say which role each needs; this one says who calls.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segunlearn.app.security.addresses import is_loopback
from segunlearn.app.security.identity import (
    NO_ROLE,
    GenuineTokenError,
    Identity,
    NotSignedInError,
)
from segunlearn.app.security.metrics import Metrics
from segunlearn.app.security.sessions import COOKIE, Sessions
from segunlearn.app.security.witness import Witness, address_of
from segunlearn.errors import SegUnlearnError

logger = logging.getLogger(__name__)

#: What anybody may ask for while login is on: the viewer's own files, which hold no data, the way
#: to sign in, and whether the server lives.
OPEN: Final = (
    ("GET", re.compile(r"/ohif(?:/.*)?|/segunlearn/extension\.js|/favicon\.ico")),
    ("GET", re.compile(r"/auth/|/login(?:/oidc|/callback)?|/health/(?:live|ready)")),
    ("POST", re.compile(r"/auth/token|/login|/logout")),
)
#: Where tokens and passwords are tried.
_SIGN_IN: Final = re.compile(r"/login|/auth/token")
#: Pages to which a browser without a session is led to sign in first.
_PAGES: Final = re.compile(r"/(?:ohif(?:/[^.]*)?)?|/audits/[0-9a-f]{32}/report")

#: Largest body that is no upload, and of a sign-in, which strangers may send: bytes.
_LARGEST_FORM: Final = 16 << 20
_LARGEST_SIGN_IN: Final = 16 << 10
_UPLOADS: Final = ("multipart/", "application/dicom", "application/octet-stream")

#: Sent with every answer.
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Rules:
    """What the gate lets in.

    Parameters
    ----------
    identify
        Turns a token into who it is about; None while login is off.
    let_everyone_in
        Other machines are served although login is off.
    max_upload
        Largest body of an upload, in bytes.
    """

    identify: Callable[[str], Identity] | None
    let_everyone_in: bool
    max_upload: int


class Gate:
    """Refuses who may not come in; records failures; counts."""

    def __init__(
        self, app: ASGIApp, rules: Rules, sessions: Sessions, witness: Witness, metrics: Metrics
    ) -> None:
        self.app, self.rules = app, rules
        self.sessions, self.witness, self.metrics = sessions, witness, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400 to 413, or pass the request on with its caller."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no WebSocket routes
            await send({"type": "websocket.close", "code": 1008})
            return
        visit = _Visit(self, scope, receive, send)
        with self.metrics.counting() as counted:
            try:
                refusal = await self._refusal(scope)
                if refusal is not None:
                    await refusal(scope, receive, visit.send)
                else:
                    await self.app(scope, visit.receive, visit.send)
            except Exception:  # whoever answers it stands before the gate
                if not visit.answered:
                    await self.witness.saw(scope, path_of(scope), 500)
                raise
            finally:
                counted(scope["method"], visit.status)

    async def _refusal(self, scope: Scope) -> Response | None:
        """Find who calls; returns the answer where they may not come in."""
        scope.setdefault("state", {})
        path = path_of(scope)
        if self.rules.identify is None:
            return None if self.rules.let_everyone_in else _not_from_here(scope)
        wait = self.witness.failures.wait(address_of(scope))
        if wait and _signs_in(scope, path):
            return self._too_many(wait)
        identify = partial(self._identify, scope, self.rules.identify)
        try:
            identity = await identify()
        except NotSignedInError as error:
            return await self._turned_away(scope, path, _bearer(scope), error)
        except SegUnlearnError as error:  # issuer or store is away: that is nobody's failure
            return None if is_open(scope["method"], path) else _cannot_tell(error)
        scope["state"]["segunlearn_identity"] = identity
        scope["state"]["segunlearn_identify"] = identify  # streams ask again
        if not identity.role and not is_open(scope["method"], path):
            await self.witness.failed(scope, "forbidden", identity, "no role of this server")
            return JSONResponse({"detail": NO_ROLE.format(name=identity.name)}, 403)
        return None

    async def _identify(self, scope: Scope, identify: Callable[[str], Identity]) -> Identity:
        """Find who calls, by the token that is shown, else by the session's."""
        shown = _bearer(scope)
        token = self.sessions.token(cookie(scope, COOKIE)) if shown is None else shown
        if token is None:
            raise NotSignedInError("sign in, or send a token: Authorization: Bearer …")
        return await run_in_threadpool(identify, token)

    async def _turned_away(
        self, scope: Scope, path: str, shown: str | None, error: NotSignedInError
    ) -> Response | None:
        """Answer who is not signed in; a session's token was once good, and is no guess."""
        query = scope.get("query_string", b"").decode("latin-1")
        brings_its_own = re.search(r"(?:^|&)token=", query) is not None  # OHIF reads it there
        if _is_page(scope, path) and not (brings_its_own and is_open("GET", path)):
            here = path + (f"?{query}" if query else "")
            root = scope.get("root_path") or ""
            return RedirectResponse(f"{root}/login?next={quote(here, safe='')}", 303)
        if is_open(scope["method"], path):
            return None
        if shown is not None:
            guessed = not isinstance(error, GenuineTokenError)
            wait = await self.witness.turned_away(scope, str(error), guessed=guessed)
            if wait:
                return self._too_many(wait)
        return JSONResponse(
            {"detail": str(error)},
            error.http_status,
            headers={"WWW-Authenticate": 'Bearer realm="SegUnlearn"'},
        )

    @staticmethod
    def _too_many(wait: int) -> Response:
        return JSONResponse(
            {"detail": f"too many failed sign-ins from this address. Wait {wait} seconds."},
            429,
            headers={"Retry-After": str(wait)},
        )


class _Visit:
    """One request on its way: its body is counted, its answer is witnessed."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self._gate, self._scope, self._receive, self._send = gate, scope, receive, send
        headers = dict(scope["headers"])
        media = headers.get(b"content-type", b"").decode("latin-1").strip().lower()
        self._largest = gate.rules.max_upload if media.startswith(_UPLOADS) else _LARGEST_FORM
        if _signs_in(scope, path_of(scope)):
            self._largest = _LARGEST_SIGN_IN
        length = headers.get(b"content-length", b"0")
        self._announced = int(length) if length.isdigit() else 0
        self._read = 0
        self.status = 500
        self.answered = self._replaced = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if max(self._read, self._announced) > self._largest:
                taken = f"{self._largest >> 20} MiB"
                if self._largest < 1 << 20:
                    taken = f"{self._largest >> 10} KiB"
                raise HTTPException(
                    413,
                    f"the body is larger than {taken}, which is what is taken here (--conf "
                    "max_upload for uploads).",
                    headers={"Connection": "close"},
                )
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.answered = int(message["status"]), True
            failure = await self._gate.witness.saw(self._scope, path_of(self._scope), self.status)
            if failure is not None:  # what cannot be recorded is not handed out
                self.status, self._replaced = failure.status_code, True
                await failure(self._scope, self._receive, self._send)
                return
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        if not self._replaced:
            await self._send(message)


def is_open(method: str, path: str) -> bool:
    """Whether anybody may ask for this while login is on."""
    asked = "GET" if method == "HEAD" else method
    return any(asked == m and pattern.fullmatch(path) for m, pattern in OPEN)


def path_of(scope: Scope) -> str:
    """Path below the root path, as the routes see it."""
    path, root = str(scope["path"]), str(scope.get("root_path") or "")
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :]
    return path


def cookie(scope: Scope, name: str) -> str:
    """Value of a cookie; empty when it was not sent."""
    for key, value in scope["headers"]:
        if key == b"cookie":
            for part in value.decode("latin-1").split(";"):
                found, _, text = part.strip().partition("=")
                if found == name:
                    return str(text)
    return ""


def _signs_in(scope: Scope, path: str) -> bool:
    return scope["method"] == "POST" and _SIGN_IN.fullmatch(path) is not None


def _cannot_tell(error: SegUnlearnError) -> Response:
    """Answer while nobody can say who calls."""
    logger.error("nobody can say who calls: %s", error)
    wait = getattr(error, "retry_after", None)
    headers = {"Retry-After": str(wait)} if wait is not None else None
    return JSONResponse({"detail": str(error)}, error.http_status, headers)


def _bearer(scope: Scope) -> str | None:
    """Token that was shown; another scheme is for a proxy on the way, and never checked here."""
    for key, value in scope["headers"]:
        if key == b"authorization":
            scheme, _, token = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() == "bearer":
                return str(token.strip())
    return None


def _is_page(scope: Scope, path: str) -> bool:
    """Whether a person waits for this, and not a program."""
    page = any(k == b"accept" and b"text/html" in v for k, v in scope["headers"])
    return page and scope["method"] == "GET" and _PAGES.fullmatch(path) is not None


def _not_from_here(scope: Scope) -> Response | None:
    """Refuse other machines, and pages whose name was bent to this one (DNS rebinding)."""
    client = scope.get("client")
    if client is None or not is_loopback(str(client[0])):
        return JSONResponse(
            {
                "detail": "login is off, so only this machine itself is served. The administrator "
                "can switch it on: --conf login tokens, or oidc."
            },
            403,
        )
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    if is_loopback(re.sub(r":\d*$", "", host)):
        return None
    return JSONResponse(
        {
            "detail": f"this server does not answer to the name {host!r:.100} while login is off. "
            "Ask for 127.0.0.1 or localhost."
        },
        421,
    )
