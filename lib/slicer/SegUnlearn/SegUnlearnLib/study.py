"""The study of the loaded image: who it is, whether it is marked, and marking it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from SegUnlearnLib import texts
from SegUnlearnLib.api import Api
from SegUnlearnLib.identity import Identity, Unknown
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.signals import Signal


class Study:
    """One study at a time, chosen by the panel.

    Signals: ``changed()``; ``marked(request)``; ``failed(Problem)``.

    Parameters
    ----------
    api
        Of the server.
    unlearned
        Gives the requests that a run works on now.
    """

    def __init__(self, api: Api, unlearned: Callable[[], Collection[str]]) -> None:
        self._api, self._unlearned = api, unlearned
        self.changed, self.marked, self.failed = Signal(), Signal(), Signal()
        self.identity: Identity | Unknown = Unknown("No image is loaded.")
        self._turn = 0
        self._clear()

    def _clear(self) -> None:
        self.covers: list[dict[str, Any]] = []
        self.known_by = -1
        self.counted: dict[str, int] = {}
        self.series_marked = 0
        self.state = ""  # of the strongest mark, empty: unknown yet; "free": none
        self.words = self.meaning = ""
        self._strongest: dict[str, Any] | None = None

    def show(self, identity: Identity | Unknown) -> None:
        """Show another study, and ask the server about it."""
        if identity == self.identity:
            return
        self.identity = identity
        self.refresh()

    def refresh(self) -> None:
        """Ask the server again."""
        self._turn += 1
        self._clear()
        self.changed.emit()
        if not self._api.transport.server or not isinstance(self.identity, Identity):
            return
        mine, one = self._turn, self.identity

        def if_mine(take: Any) -> Any:
            def taken(answer: Any) -> None:
                if mine == self._turn:
                    take(answer)
                    self.changed.emit()

            return taken

        def nothing(problem: Problem) -> None:
            """Tell nothing of what cannot be counted."""

        if one.study or one.series:
            self._api.status(
                [one.study] if one.study else [], [one.series] if one.series else [],
                if_mine(self._status), self._ask_failed,
            )  # fmt: skip
        if one.study:
            self._api.series_of(one.study, if_mine(lambda a: self._count("study", a)), nothing)
            self._api.versions_that_saw(one.study, if_mine(self._versions), nothing)
        if one.patient:
            self._api.studies_of(one.patient, if_mine(lambda a: self._count("patient", a)), nothing)

    def tell(self) -> None:
        """Say anew what its state means: a run began or ended."""
        before = self.meaning
        if self.state:
            self._say()
        if self.meaning != before:
            self.changed.emit()

    def mark(self, one: Identity, kind: str, reason: str, note: str) -> None:
        """Mark the study, series or patient that was confirmed, whatever is shown by now.

        ``marked`` or ``failed`` tells how it went.
        """
        target = one.target(kind)

        def done(request: Any) -> None:
            request["target"]["kind"], request["state"]
            self.refresh()
            self.marked.emit(request)

        self._api.mark(kind, target, reason, note, done, self.failed.emit)

    def size(self, kind: str) -> str:
        """Say how much a mark would cover, by the server's count."""
        count = self.counted.get(kind)
        if kind == "series":
            return "this series"
        if count is None:
            return {"study": "the study with all its series", "patient": "all studies"}[kind]
        if kind == "study":
            return texts.count(count, "series", "series") + " on the server"
        return texts.count(count, "study", "studies") + " on the server, and those to come"

    def _status(self, answer: Any) -> None:
        covers = [cover for found in answer.values() for cover in found["covers"]]
        self.covers = list({cover["request_id"]: cover for cover in covers}.values())
        self.series_marked = max([int(f.get("series_marked") or 0) for f in answer.values()] or [0])
        proposals = [one for found in answer.values() for one in found.get("proposals") or ()]
        self._strongest = max(
            self.covers or proposals, key=lambda c: texts.RANK.get(c["state"], 0), default=None
        )
        self.state = self._strongest["state"] if self._strongest else "free"
        self.words = texts.state_of(self._strongest) if self._strongest else ""
        self._say()

    def _say(self) -> None:
        self.meaning = texts.meaning_of(self._strongest or {"state": "free"}, self._unlearned())
        if not self.covers and self.series_marked:
            are = "is" if self.series_marked == 1 else "are"
            self.meaning += f" {self.series_marked} of its series {are} marked."

    def _versions(self, answer: Any) -> None:
        self.known_by = len([found["version_sha256"] for found in answer])

    def _count(self, kind: str, answer: Any) -> None:
        if isinstance(answer, list):
            self.counted[kind] = len(answer)

    def _ask_failed(self, problem: Problem) -> None:
        if problem.kind != "cancelled":
            self.failed.emit(problem)
