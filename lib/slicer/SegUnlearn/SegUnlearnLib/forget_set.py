"""The forget requests of the server, fetched page by page, and what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from SegUnlearnLib import texts
from SegUnlearnLib.api import Api, Done, Failed
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.signals import Signal

#: Requests fetched at once; many small answers leave the panel free between them.
PAGE = 250


class ForgetSet:
    """All requests that the server has, by id.

    Signals: ``started()``: a new list begins; ``arrived(requests)``: some of it; ``ended()``;
    ``failed(Problem)``; ``done(text)``: what was decided; ``run_needed(request)``: a restore that
    is more than bringing back what was sealed; ``working()``: ``busy`` is another one;
    ``broken_off(text)``: the answer to a decision is not awaited any more.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self.started, self.arrived, self.ended = Signal(), Signal(), Signal()
        self.failed, self.done, self.run_needed = Signal(), Signal(), Signal()
        self.working, self.broken_off = Signal(), Signal()
        self.busy = ""  # what the server does for a decision now; nothing else is decided then
        self._call: Any = None
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
        if self.busy:
            self._call.silence()
            self._break_off()
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
        self._each(ids, self._api.approve, "Approving", "approved")

    def withdraw(self, ids: Sequence[str], why: str) -> None:
        """Take requests back."""
        self._each(
            ids, lambda i, done, failed: self._api.withdraw(i, why, done, failed),
            "Withdrawing", "withdrawn",
        )  # fmt: skip

    def dismiss(self, ids: Sequence[str], why: str) -> None:
        """Close proposals."""
        self._each(
            ids, lambda i, done, failed: self._api.dismiss(i, why, done, failed),
            "Dismissing", "dismissed",
        )  # fmt: skip

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

        self._ask(
            f"Restoring {self._name(request)}: the server opens what was sealed and puts the "
            "version that knew it into service. It may take minutes …",
            lambda done, failed: self._api.restore(request, why, done, failed), done, refused,
        )  # fmt: skip

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

        self._ask(
            f"Purging {self._name(request)}: the server destroys the key, and the old versions "
            "that knew it with their copies. It may take minutes …",
            lambda done, failed: self._api.purge(request, why, done, failed), done, self._refused,
        )  # fmt: skip

    def _each(self, ids: Sequence[str], ask: Callable[..., Any], doing: str, what: str) -> None:
        waiting = list(ids)

        def next_one(_: Any = None) -> None:
            if not waiting:
                self._told(f"{texts.count(len(ids), 'request', 'requests')} {what}.")
                return
            request = waiting.pop(0)
            self._ask(
                f"{doing} {len(ids) - len(waiting)} of {len(ids)} …",
                lambda done, failed: ask(request, done, failed), next_one, self._refused,
            )  # fmt: skip

        if not self.busy:
            next_one()

    def _ask(
        self, doing: str, call: Callable[[Done, Failed], Any], done: Done, failed: Failed
    ) -> None:
        """Have the server do one thing, unless it does another; say what until it has answered."""
        if self.busy:
            return

        def ended(tell: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def told(answer: Any) -> None:
                self._busy("")
                tell(answer)

            return told

        self._call = call(ended(done), ended(failed))
        self._busy(doing)

    def _busy(self, text: str) -> None:
        self.busy = text
        self.working.emit()

    def _break_off(self) -> None:
        self._busy("")
        self.broken_off.emit(
            "The answer to the last decision is not awaited any more; whether it was done, the "
            "list tells, which is asked for anew."
        )

    def _name(self, request: str) -> str:
        found = self.requests.get(request)
        return texts.target(found["target"]) if found else request

    def _told(self, text: str) -> None:
        self.done.emit(text)
        self.load()

    def _refused(self, problem: Problem) -> None:
        if problem.kind == "cancelled":  # the server is connected to anew, or the panel closes
            self._break_off()
            return
        self.failed.emit(problem)
        self.load()


def in_state(requests: Iterable[dict[str, Any]], *states: str) -> list[str]:
    """Ids of those requests that are in one of some states."""
    return [r["request_id"] for r in requests if r["state"] in states]
