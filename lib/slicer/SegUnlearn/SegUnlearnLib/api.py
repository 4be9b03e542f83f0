"""The server's routes that the panel uses, one method each; see ``docs/openapi.json``.

Every method returns at once. ``done`` is given what the route answers, ``failed`` the problem; one
of them is called, later, from the event loop.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from SegUnlearnLib import multipart, problems
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.transport import LONG_TIMEOUT, USUAL_TIMEOUT, Answer, Transport, as_json, segment

logger = logging.getLogger(__name__)

Done = Callable[[Any], Any]
Failed = Callable[[Problem], Any]

#: A mark's target, and its folder in the path.
TARGETS = {"study": "studies", "series": "series", "patient": "patients"}


class Api:
    """The routes of one server."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    # -- the server and who asks ---------------------------------------------------------------

    def info(self, done: Done, failed: Failed) -> Any:
        """Name, version, models, labels, trainers."""
        return self._json("GET", "/info/", done, failed)

    def authentication(self, done: Done, failed: Failed) -> Any:
        """Whether a login is needed."""
        return self._json("GET", "/auth/", done, failed)

    def token(self, user: str, password: str, done: Done, failed: Failed) -> Any:
        """Sign in; gives ``access_token``."""
        form = urlencode({"username": user, "password": password, "grant_type": "password"})
        body = (form.encode(), "application/x-www-form-urlencoded")
        return self._json("POST", "/auth/token", done, failed, body=body)

    def caller(self, done: Done, failed: Failed) -> Any:
        """Name and rights of who is signed in."""
        return self._json("GET", "/whoami", done, failed)

    # -- marks ---------------------------------------------------------------------------------

    def status(
        self, studies: Iterable[str], series: Iterable[str], done: Done, failed: Failed
    ) -> Any:
        """Tell the marks of many studies and series."""
        query = [*(("study", uid) for uid in studies), *(("series", uid) for uid in series)]
        return self._json("GET", "/forget/status", done, failed, query=query)

    def series_of(self, study: str, done: Done, failed: Failed) -> Any:
        """Series of a study as the server's archive has them (QIDO-RS)."""
        return self._json("GET", f"/dicomweb/studies/{segment(study)}/series", done, failed)

    def studies_of(self, patient: str, done: Done, failed: Failed) -> Any:
        """Studies of a patient as the server's archive has them (QIDO-RS)."""
        return self._json("GET", "/dicomweb/studies", done, failed, query=[("PatientID", patient)])

    def versions_that_saw(self, study: str, done: Done, failed: Failed) -> Any:
        """Model versions that a study shaped."""
        return self._json("GET", "/ledger/versions", done, failed, query=[("study", study)])

    def mark(
        self, kind: str, target: str, reason: str, note: str, done: Done, failed: Failed
    ) -> Any:
        """Mark a study, series or patient."""
        path = f"/forget/{TARGETS[kind]}/{segment(target, slashes=kind == 'patient')}"
        body = as_json({"reason": reason, "note": note})
        return self._json("PUT", path, done, failed, body=body)

    def requests(
        self, states: Iterable[str], limit: int, offset: int, done: Done, failed: Failed
    ) -> Any:
        """One page of the forget requests, newest first."""
        query = [*(("state", s) for s in states), ("limit", limit), ("offset", offset)]
        return self._json("GET", "/forget/requests", done, failed, query=query)

    def withdraw(self, request: str, why: str, done: Done, failed: Failed) -> Any:
        """Take a request back."""
        path = f"/forget/requests/{segment(request)}"
        return self._json("DELETE", path, done, failed, query=[("why", why)])

    def approve(self, request: str, done: Done, failed: Failed) -> Any:
        """Approve a request."""
        return self._json("POST", f"/forget/requests/{segment(request)}/approve", done, failed)

    def dismiss(self, request: str, why: str, done: Done, failed: Failed) -> Any:
        """Close a proposal."""
        path = f"/forget/requests/{segment(request)}/dismiss"
        return self._json("POST", path, done, failed, body=as_json({"why": why}))

    def restore(self, request: str, why: str, done: Done, failed: Failed) -> Any:
        """Serve again what knew the study."""
        path = f"/forget/requests/{segment(request)}/restore"
        return self._json(
            "POST", path, done, failed, body=as_json({"why": why}), timeout=LONG_TIMEOUT
        )

    def would_purge(self, request: str, done: Done, failed: Failed) -> Any:
        """Say what a purge would destroy; nothing is changed."""
        path = f"/forget/requests/{segment(request)}/purge"
        return self._json("GET", path, done, failed, timeout=LONG_TIMEOUT)

    def purge(self, request: str, why: str, done: Done, failed: Failed) -> Any:
        """Destroy what leads back."""
        path = f"/forget/requests/{segment(request)}/purge"
        body = as_json({"why": why, "confirm": True})
        return self._json("POST", path, done, failed, body=body, timeout=LONG_TIMEOUT)

    # -- runs ----------------------------------------------------------------------------------

    def plan(self, requests: Iterable[str], level: str, done: Done, failed: Failed) -> Any:
        """Say what an unlearning to a level would do; nothing is changed."""
        query = [*(("request", request) for request in requests), ("level", level)]
        return self._json(
            "GET", "/unlearning/plan", done, failed, query=query, timeout=LONG_TIMEOUT
        )

    def start(self, trainer: str, options: Mapping[str, Any], done: Done, failed: Failed) -> Any:
        """Start a task, or queue it behind the one that runs."""
        query = [("enqueue", "true")]
        body = as_json(dict(options))
        return self._json(
            "POST", f"/train/{segment(trainer)}", done, failed, query=query, body=body
        )

    def tasks(self, done: Done, failed: Failed) -> Any:
        """List all tasks since the server started."""
        return self._json("GET", "/train/", done, failed, query=[("all", "true")])

    def runs(self, limit: int, done: Done, failed: Failed, *, state: str = "") -> Any:
        """List runs, newest first, of all states or of one."""
        query = [("limit", limit), ("state", state)]
        return self._json("GET", "/runs", done, failed, query=query)

    def run(self, run: str, done: Done, failed: Failed) -> Any:
        """One run with its progress."""
        return self._json("GET", f"/runs/{segment(run)}", done, failed)

    def cancel(self, run: str, done: Done, failed: Failed) -> Any:
        """Ask a run to stop."""
        return self._json("POST", f"/runs/{segment(run)}/cancel", done, failed)

    # -- audits, adapters, versions ------------------------------------------------------------

    def audits(self, limit: int, done: Done, failed: Failed) -> Any:
        """List audits, newest first."""
        return self._json("GET", "/audits", done, failed, query=[("limit", limit)])

    def report(self, audit: str, done: Done, failed: Failed) -> Any:
        """HTML report of an audit, as bytes."""
        return self._send("GET", f"/audits/{segment(audit)}/report", _bytes(done), failed)

    def adapters(self, done: Done, failed: Failed) -> Any:
        """Site adapters."""
        return self._json("GET", "/adapters", done, failed)

    def roll_back(self, key: str, done: Done, failed: Failed) -> Any:
        """Serve the adapter before."""
        return self._json("POST", f"/adapters/{segment(key)}/rollback", done, failed)

    def images(self, done: Done, failed: Failed) -> Any:
        """All images with their labels."""
        return self._json("GET", "/datastore/", done, failed, query=[("output", "all")])

    # -- masks ---------------------------------------------------------------------------------

    def infer(
        self, model: str, image: str, options: Mapping[str, Any], done: Done, failed: Failed
    ) -> Any:
        """Segment an image; gives ``(params, file name, mask as bytes)``."""

        def read(answer: Answer) -> Any:
            parts = multipart.decode(answer.body, answer.content_type)
            name, content = parts["image"]
            return done((json.loads(parts["params"][1].decode("utf-8")), name, content))

        body = multipart.encode({"params": json.dumps(dict(options))})
        return self._send(
            "POST", f"/infer/{segment(model)}", read, failed,
            query=[("image", image)], body=body, timeout=LONG_TIMEOUT,
        )  # fmt: skip

    def save_label(
        self, image: str, file_name: str, content: bytes, info: Mapping[str, Any],
        done: Done, failed: Failed,
    ) -> Any:  # fmt: skip
        """Submit a finished label map."""
        body = multipart.encode({"params": json.dumps(dict(info))}, {"label": (file_name, content)})
        return self._json(
            "PUT", "/datastore/label", done, failed,
            query=[("image", image), ("tag", "final")], body=body, timeout=LONG_TIMEOUT,
        )  # fmt: skip

    # -- how -----------------------------------------------------------------------------------

    def _json(self, method: str, path: str, done: Done, failed: Failed, **options: Any) -> Any:
        def read(answer: Answer) -> Any:
            value = json.loads(answer.body.decode("utf-8")) if answer.body else None
            return done(value)

        return self._send(method, path, read, failed, **options)

    def _send(
        self,
        method: str,
        path: str,
        read: Callable[[Answer], Any],
        failed: Failed,
        *,
        query: Iterable[tuple[str, Any]] = (),
        body: tuple[bytes, str] = (b"", ""),
        timeout: float = USUAL_TIMEOUT,
    ) -> Any:
        server = self.transport.server

        def told(answer: Answer) -> None:
            if answer.problem is not None:
                failed(answer.problem)
                return
            try:
                read(answer)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                # no JSON, or another shape than this route has: not our server, or another age
                logger.warning(
                    "%s %s: not the answer that was expected", method, path, exc_info=True
                )
                failed(problems.of_nonsense(server))

        return self.transport.send(
            method, path, told, query=query, body=body[0], content_type=body[1], timeout=timeout
        )


def _bytes(done: Done) -> Callable[[Answer], Any]:
    return lambda answer: done(answer.body)
