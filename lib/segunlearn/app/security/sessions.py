"""Sessions of browsers: a page cannot send a token by itself, but it sends a cookie.

The cookie is a random number; the token stays in the server's memory and is checked at every
request, so that a revoked or expired one ends the session. A restart ends all of them.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

COOKIE: Final = "segunlearn_session"
#: Longest life of a session, in seconds, and most sessions at once.
LIFE: Final = 12 * 3600.0
_MOST: Final = 10_000


class Sessions:
    """Sessions of one server."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, token: str) -> str:
        """Keep a token; returns the cookie's value."""
        number = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            while self._kept and (
                len(self._kept) >= _MOST or next(iter(self._kept.values()))[1] < now
            ):
                self._kept.popitem(last=False)  # the oldest
            self._kept[_digest(number)] = (token, now + LIFE)
        return number

    def token(self, number: str) -> str | None:
        """Token of a session, None when there is no such session."""
        token, ends = self._kept.get(_digest(number), ("", 0.0)) if number else ("", 0.0)
        return token if token and time.monotonic() < ends else None

    def end(self, number: str) -> None:
        """Forget a session."""
        with self._lock:
            self._kept.pop(_digest(number), None)


def set_cookie(response: Response, request: Request, name: str, value: str, seconds: float) -> None:
    """Set a cookie that no script reads, and that no page of others sends along with a form."""
    response.set_cookie(
        name, value, max_age=int(seconds), path=request.scope.get("root_path") or "/",
        secure=request.url.scheme == "https", httponly=True, samesite="lax",
    )  # fmt: skip


def _digest(number: str) -> str:
    return hashlib.sha256(number.encode()).hexdigest()
