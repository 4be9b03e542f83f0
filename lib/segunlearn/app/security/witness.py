"""What of the requests stands in the trail, beside the steps of forget requests.

Those are recorded with the change itself (:meth:`segunlearn.records.trail.Trail.on_change`),
whoever makes it; here is what only the server sees: who was turned away, and who took what out.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from segunlearn.app.security.failures import Failures
from segunlearn.app.security.identity import Identity
from segunlearn.app.security.metrics import Metrics
from segunlearn.errors import SegUnlearnError
from segunlearn.records.trail import Outcome, Trail, TrailEntry

logger = logging.getLogger(__name__)

#: Method, path, action, kind of what it is about; the first group of the path is its id. Paths
#: that hold identifiers of patients have no group; their route gives a pseudonym, see ``about``.
_SEEN: Final = tuple(
    (method, re.compile(path), action, kind)
    for method, path, action, kind in (
        ("GET", r"/audits/([0-9a-f]{32})(?:/report)?", "read_report", "audit"),
        ("GET", r"/model/([A-Za-z0-9_-]+)", "read_images", "weights"),
        ("GET", r"/datastore/dataset", "read_images", "dataset"),
        ("GET", r"/logs/", "read_log", "log"),
        ("DELETE", r"/datastore/(?:image)?", "delete", "image"),
        ("DELETE", r"/datastore/label", "delete", "label"),
        ("POST", r"/models/(v\d+)/activate", "publish", "version"),
        ("POST", r"/adapters/([0-9a-f]{16}/v\d+)/activate", "publish", "adapter"),
        ("POST", r"/adapters/([0-9a-f]{16})/rollback", "publish", "adapter"),
        ("POST", r"/train/([A-Za-z0-9_-]*)", "train", "trainer"),
        ("DELETE", r"/train/", "train", "trainer"),
        ("POST", r"/runs/([0-9a-f]{32})/cancel", "train", "run"),
    )
)

#: Kinds whose id is a name; the caller may put any there, a patient's too, until it was found.
_NAMED: Final = ("weights", "trainer")
#: Actions that have changed something by the time at which they are recorded.
_CHANGES: Final = ("delete", "publish", "train")
#: What routes tell of a request, in its state.
_ABOUT, _BEGAN = "segunlearn_about", "segunlearn_began"
#: Failures that are recorded one by one in a minute; more are counted in the next row.
_MOST_FAILURES: Final = 60


class Witness:
    """Writes what the gate sees into the trail, and counts who guesses."""

    def __init__(self, trail: Callable[[], Trail] | None, metrics: Metrics) -> None:
        self._trail, self._metrics = trail, metrics
        self.failures, self._genuine = Failures(), Failures(limit=1)
        self._minute, self._written, self._left_out = -1, 0, 0

    async def saw(self, scope: Scope, path: str, status: int) -> Response | None:
        """Record an answer before it is sent; returns what to send instead where that failed."""
        state, method = scope["state"], scope["method"]
        identity: Identity | None = state.get("segunlearn_identity")
        worked = state.get(_BEGAN, False)
        for wanted, pattern, action, kind in _SEEN:
            found = pattern.fullmatch(path) if method == wanted else None
            if found is None or (status >= 400 and status != 403 and not worked):
                continue
            what = found[1] if found.groups() else state.get(_ABOUT, "")
            if status >= 400 and not worked and kind in _NAMED:
                what = ""
            outcome: Outcome = "done" if status < 400 else "refused" if status == 403 else "failed"
            return await self._must(_entry(scope, action, identity, outcome, kind, what))
        if status == 403 and identity is not None:
            await self.failed(scope, "forbidden", identity, f"{method} {_route(scope)}")
        return None

    async def login(self, scope: Scope, identity: Identity) -> None:
        """Record that somebody signed in."""
        await self._must(_entry(scope, "login", identity, "done", "", ""))

    async def turned_away(self, scope: Scope, why: str, *, guessed: bool) -> int:
        """Record a token or sign-in that was not accepted; returns the seconds to wait before.

        Parameters
        ----------
        scope, why
            Of the request; a sentence.
        guessed
            A wrong secret was shown: it counts against the address. Whatever else was not accepted
            does not, and is written once a minute and address.
        """
        address, counts = address_of(scope), self.failures if guessed else self._genuine
        self._metrics.login_failures += guessed
        wait = counts.wait(address)
        if not wait:
            counts.add(address)
            await self.failed(scope, "login_failure", None, why)
        return wait if guessed else 0

    async def failed(self, scope: Scope, action: str, identity: Identity | None, note: str) -> None:
        """Record somebody who was turned away; a flood of them is counted, not written."""
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._written = minute, 0
        self._written += 1
        if self._written > _MOST_FAILURES:
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        note += f" ({left_out} more were not written)" if left_out else ""
        await self._must(_entry(scope, action, identity, "refused", "", "", note))

    async def _must(self, entry: TrailEntry) -> Response | None:
        trail = self._trail
        if trail is None:
            return None
        try:
            await run_in_threadpool(lambda: trail().append(entry))
        except SegUnlearnError as error:
            logger.error("the trail cannot be written: %s", error)
            why = "this cannot be recorded now, so it is not handed out. Try later."
            if entry.outcome == "done" and entry.action in _CHANGES:
                why = "this was done, but cannot be recorded now. Look before you try it again."
            return JSONResponse({"detail": why}, 503)
        return None


def about(request: Request, pseudonym: str) -> None:
    """Tell the trail what a request is about, where its path does not."""
    setattr(request.state, _ABOUT, pseudonym)


def began(request: Request) -> None:
    """Tell the trail that a request has begun its work, so that a failure stands there, too."""
    setattr(request.state, _BEGAN, True)


def _entry(
    scope: Scope,
    action: str,
    identity: Identity | None,
    outcome: Outcome,
    kind: str,
    what: str,
    note: str = "",
) -> TrailEntry:
    return TrailEntry(
        action,
        identity.name if identity else "",
        identity.role if identity else "",
        address_of(scope),
        kind,
        what,
        outcome,
        note,
    )


def address_of(scope: Scope) -> str:
    """Address of the caller; empty when it is not known."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _route(scope: Scope) -> str:
    """Path of the route, without what the caller put into it: that may name a patient."""
    return str(getattr(scope.get("route"), "path", "a path without route"))
