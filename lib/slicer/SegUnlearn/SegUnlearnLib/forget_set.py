"""The forget requests of the server, fetched page by page, and what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from SegUnlearnLib import texts
from SegUnlearnLib.api import Api
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.signals import Signal

#: Requests fetched at once; many small answers leave the panel free between them.
PAGE = 250


class ForgetSet:
    """All requests that the server has, by id.

    Signals: ``started()``: a new list begins; ``arrived(requests)``: some of it; ``ended()``;
    ``failed(Problem)``; ``done(text)``: what was decided; ``run_needed(request)``: a restore that
    is more than bringing back what was sealed.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self.started, self.arrived, self.ended = Signal(), Signal(), Signal()
        self.failed, self.done, self.run_needed = Signal(), Signal(), Signal()
        self.requests: dict[str, dict[str, Any]] = {}
        self.total = 0
        self.loading = False
        self._turn = 0
        self._seen: set[str] = set()

    def load(self) -> None:
        """Fetch all of them again, newest first."""
        self._turn += 1
        self._seen = set()
        self.loading = True
        self.started.emit()
        self._next(self._turn, 0)

    def clear(self) -> None:
        """Forget what another server said."""
        self._turn += 1
        self.requests, self.total, self.loading = {}, 0, False
        self.started.emit()
        self.ended.emit()

    def _next(self, mine: int, offset: int) -> None:
        def page(answer: Any) -> None:
            if mine != self._turn:
                return
            found = list(answer["requests"])
            self.total = int(answer["total"])
            for request in found:
                request["target"]["id"], request["state"]
            self.requests.update({r["request_id"]: r for r in found})
            self._seen.update(r["request_id"] for r in found)
            self.arrived.emit(found)
            if found and offset + len(found) < self.total:
                self._next(mine, offset + len(found))
                return
            for gone in set(self.requests) - self._seen:
                del self.requests[gone]
            self.loading = False
            self.ended.emit()

        def failed(problem: Problem) -> None:
            if mine == self._turn:
                self.loading = False
                self.ended.emit()
                self.failed.emit(problem)

        self._api.requests((), PAGE, offset, page, failed)

    # -- decisions -----------------------------------------------------------------------------

    def approve(self, ids: Sequence[str]) -> None:
        """Approve requests, one after the other."""
        self._each(ids, self._api.approve, "approved")

    def withdraw(self, ids: Sequence[str], why: str) -> None:
        """Take requests back."""
        self._each(
            ids, lambda i, done, failed: self._api.withdraw(i, why, done, failed), "withdrawn"
        )

    def dismiss(self, ids: Sequence[str], why: str) -> None:
        """Close proposals."""
        self._each(
            ids, lambda i, done, failed: self._api.dismiss(i, why, done, failed), "dismissed"
        )

    def restore(self, request: str, why: str) -> None:
        """Serve again the version that knew a request's study."""

        def done(answer: Any) -> None:
            back = texts.count(len(answer["requests"]), "request is", "requests are")
            text = f"Version {answer['version']} is in service; {back} restored."
            if answer["lost"]:
                text += f" Made since, and not served any more: {', '.join(answer['lost'])}."
            self._told(text)

        def refused(problem: Problem) -> None:
            if "/train/unlearn" in problem.text:  # that version knows what is still forgotten
                self.run_needed.emit(request)
            else:
                self._refused(problem)

        self._api.restore(request, why, done, refused)

    def purge(self, request: str, why: str) -> None:
        """Destroy what leads back to a request's study."""

        def done(answer: Any) -> None:
            gone = ", ".join(answer["destroyed"]) or "no older version"
            text = f"Erased for good; destroyed: {gone}."
            if others := answer["requests"]:
                text += f" {texts.count(len(others), 'other request', 'other requests')} cannot be "
                text += "restored any more."
            if answer["places"]:
                left = texts.count(len(answer["places"]), "place", "places")
                text += f" {left} may still hold it: {answer['places'][0]['words']}"
            self._told(text)

        self._api.purge(request, why, done, self._refused)

    def _each(self, ids: Sequence[str], ask: Callable[..., Any], what: str) -> None:
        waiting = list(ids)

        def next_one(_: Any = None) -> None:
            if not waiting:
                self._told(f"{texts.count(len(ids), 'request', 'requests')} {what}.")
                return
            ask(waiting.pop(0), next_one, self._refused)

        next_one()

    def _told(self, text: str) -> None:
        self.done.emit(text)
        self.load()

    def _refused(self, problem: Problem) -> None:
        self.failed.emit(problem)
        self.load()


def in_state(requests: Iterable[dict[str, Any]], *states: str) -> list[str]:
    """Ids of those requests that are in one of some states."""
    return [r["request_id"] for r in requests if r["state"] in states]
