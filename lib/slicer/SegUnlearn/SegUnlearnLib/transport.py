"""Requests that never block: ``QNetworkAccessManager`` with timeouts, one answer each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import qt

from SegUnlearnLib import problems
from SegUnlearnLib.idioms import number, once
from SegUnlearnLib.problems import Problem

#: Seconds; an inference on a CPU takes minutes.
USUAL_TIMEOUT = 30.0
LONG_TIMEOUT = 1800.0


class Answer:
    """What came back.

    Parameters
    ----------
    status
        HTTP status, 0 without one.
    body
        All of it.
    content_type
        Of the body.
    problem
        What went wrong, None when nothing did.
    """

    def __init__(
        self, status: int, body: bytes, content_type: str, problem: Problem | None
    ) -> None:
        self.status, self.body, self.content_type = status, body, content_type
        self.problem = problem


class Call:
    """A request under way."""

    def __init__(self, reply: Any, done: Callable[[Answer], None], server: str) -> None:
        self._reply, self._done, self._server = reply, done, server
        self._timer: Any = None
        self.timed_out = False

    def cancel(self) -> None:
        """Break it off; ``done`` is called with a problem of the kind ``cancelled``."""
        if self._reply is not None:
            self._reply.abort()

    def silence(self) -> None:
        """Tell nobody how it ends."""
        self._done = lambda answer: None

    def give_up_after(self, seconds: float) -> None:
        """Break it off when it takes longer."""
        self._timer = once(int(1000 * seconds), self._late)

    def _late(self) -> None:
        self.timed_out = True
        self.cancel()

    def finish(self) -> None:
        """Read the answer and tell it, once."""
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if self._timer is not None:
            self._timer.stop()
        answer = self._answer(reply)
        reply.deleteLater()
        self._done(answer)

    def _answer(self, reply: Any) -> Answer:
        status = int(reply.attribute(qt.QNetworkRequest.HttpStatusCodeAttribute) or 0)
        body = bytes(reply.readAll().data()) if reply.isOpen() else b""
        kind = _header(reply, qt.QNetworkRequest.ContentTypeHeader)
        code = number(reply.error())
        if code and status < 300:  # broken off, before or in the middle of an answer
            problem: Problem | None = problems.of_network(
                code,
                str(reply.errorString()),
                self._server,
                timed_out=self.timed_out,
                begun=status > 0,
            )
        elif status >= 300:
            problem = problems.of_status(
                status, body, _header(reply, qt.QNetworkRequest.LocationHeader)
            )
        else:
            problem = None
        return Answer(status, body, kind, problem)


class Transport:
    """Sends requests to one server.

    Parameters
    ----------
    manager
        A ``QNetworkAccessManager``; TLS errors are never ignored, and redirects not followed,
        for they would carry the token elsewhere.
    """

    def __init__(self, manager: Any = None) -> None:
        self._manager = manager or qt.QNetworkAccessManager()
        self._calls: list[Call] = []
        self.server = ""
        self.token = ""

    def send(
        self,
        method: str,
        path: str,
        done: Callable[[Answer], None],
        *,
        query: Iterable[tuple[str, Any]] = (),
        body: bytes = b"",
        content_type: str = "",
        timeout: float = USUAL_TIMEOUT,
    ) -> Call:
        """Send a request; ``done`` is called from the event loop, exactly once.

        Parameters
        ----------
        method
            ``GET``, ``POST``, ``PUT`` or ``DELETE``.
        path
            Below the server's address, with a leading slash, quoted.
        done
            Is given the answer.
        query
            Pairs.
        body, content_type
            Of a POST or PUT.
        timeout
            Seconds.
        """
        server = self.server.rstrip("/")
        words = urlencode([(k, v) for k, v in query if v is not None and v != ""])
        request = qt.QNetworkRequest(qt.QUrl(f"{server}{path}{'?' if words else ''}{words}"))
        stay = number(qt.QNetworkRequest.ManualRedirectPolicy)
        request.setAttribute(qt.QNetworkRequest.RedirectPolicyAttribute, stay)
        request.setRawHeader(b"Accept", b"*/*")
        request.setRawHeader(b"User-Agent", b"SegUnlearn-Slicer")
        if method in ("POST", "PUT"):  # Qt would call it a form, which the server does not take
            kind = content_type or "application/json"
            request.setRawHeader(b"Content-Type", kind.encode())
        if self.token:
            request.setRawHeader(b"Authorization", f"Bearer {self.token}".encode())
        reply = self._reply(method, request, body)
        call = Call(reply, done, urlsplit(server).netloc or server)
        self._calls.append(call)
        reply.finished.connect(lambda *_: self._finished(call))
        call.give_up_after(timeout)
        return call

    def _reply(self, method: str, request: Any, body: bytes) -> Any:
        if method == "GET":
            return self._manager.get(request)
        if method == "DELETE":
            return self._manager.deleteResource(request)
        return (self._manager.post if method == "POST" else self._manager.put)(request, body)

    def _finished(self, call: Call) -> None:
        if call in self._calls:
            self._calls.remove(call)
        call.finish()

    def cancel_all(self) -> None:
        """Break off everything under way, without telling anybody: the panel goes away."""
        calls, self._calls = self._calls, []
        for call in calls:
            call.silence()
            call.cancel()


def segment(text: str, *, slashes: bool = False) -> str:
    """Quote one segment of a path; a PatientID may hold slashes, which servers take unquoted."""
    return quote(text, safe="/" if slashes else "")


def as_json(value: Any) -> tuple[bytes, str]:
    """Write a JSON body and its content type."""
    return json.dumps(value).encode(), "application/json"


def _header(reply: Any, which: Any) -> str:
    """Read a known header; ``rawHeader`` wants bytes of one binding and a text of the other."""
    value = reply.header(which)
    return str(value.toString() if hasattr(value, "toString") else value or "")
