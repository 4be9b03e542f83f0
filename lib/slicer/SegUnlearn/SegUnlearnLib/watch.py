"""Everything that the server runs, whoever started it, beside the run that is followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from SegUnlearnLib.api import Api
from SegUnlearnLib.idioms import once
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.run_view import RunView, view_of
from SegUnlearnLib.runs import Runs
from SegUnlearnLib.signals import Signal

#: Runs that are told of, and the most seconds between two looks while the server is away.
_MOST, _LONGEST = 50, 60.0


class Watch:
    """Looks now and then at what runs; where nothing is followed, it has what runs followed.

    Signals: ``changed()``: other runs, or they are further; ``began()``: one that is not followed
    is at work now; ``ended()``: one that was not followed is over.

    Parameters
    ----------
    api
        Of the server.
    runs
        Follow one run.
    seconds
        Between two looks.
    """

    def __init__(self, api: Api, runs: Runs, seconds: float) -> None:
        self._api, self._runs, self._seconds = api, runs, seconds
        self.changed, self.began, self.ended = Signal(), Signal(), Signal()
        self._found: tuple[RunView, ...] = ()
        self._over: set[str] = set()  # what the run itself told of is newer than a list
        self._turn, self._failures, self._timer = 0, 0, None
        self._first = True
        runs.ended.connect(self._followed_to_its_end)

    @property
    def beside(self) -> list[RunView]:
        """What runs beside the run that is followed; an unlearning's own audit is part of it."""
        view = self._runs.view
        followed = view.run_id if view is not None else ""
        unlearned = {run.model for run in self._found if run.kind == "unlearn"}
        return [
            run for run in self._found
            if run.run_id != followed and not (run.kind == "audit" and run.model in unlearned)
        ]  # fmt: skip

    @property
    def unlearned(self) -> frozenset[str]:
        """Requests that any run is unlearning now."""
        return self._runs.unlearned.union(*(run.unlearned for run in self.beside))

    def start(self) -> None:
        """Look now, and every few seconds from now on."""
        self.stop()
        self._failures, self._first = 0, True
        self._look(self._turn)

    def stop(self) -> None:
        """Look no more; what is known is kept."""
        self._turn += 1
        if self._timer is not None:
            self._timer.stop()

    def clear(self) -> None:
        """Look no more, and forget what another server said."""
        self.stop()
        self._found = ()
        self.changed.emit()

    def _look(self, mine: int) -> None:
        def found(runs: Any) -> None:
            if mine == self._turn:
                running = [view_of(run) for run in runs if run["state"] == "running"]
                self._failures = 0
                self._later(mine, self._seconds)
                self._take(tuple(run for run in running if run.run_id not in self._over))

        def failed(problem: Problem) -> None:
            """Ask more seldom; a login that is over is not tried again until somebody signs in."""
            if mine == self._turn and problem.kind not in ("login", "forbidden", "cancelled"):
                self._failures += 1
                self._later(mine, min(_LONGEST, self._seconds * 2**self._failures))

        self._api.runs(_MOST, found, failed, state="running")

    def _later(self, mine: int, seconds: float) -> None:
        call: Callable[[], Any] = lambda: self._look(mine) if mine == self._turn else None  # noqa: E731
        self._timer = once(int(1000 * seconds), call)

    def _take(self, found: tuple[RunView, ...]) -> None:
        before, self._found = self._found, found
        first, self._first = self._first, False
        view = self._runs.view
        if view is None and found:
            self._runs.follow_running()
        followed = view.run_id if view is not None else ""
        if found != before:
            self.changed.emit()
        if view is not None and not first and _at_work(found) - _at_work(before) - {followed}:
            self.began.emit()
        if {run.run_id for run in before} - {run.run_id for run in found} - {followed}:
            self.ended.emit()

    def _followed_to_its_end(self, view: RunView) -> None:
        self._over.add(view.run_id)
        self._found = tuple(run for run in self._found if run.run_id != view.run_id)


def _at_work(found: tuple[RunView, ...]) -> set[str]:
    """Ids of the runs that said what they do: their requests are in another state by then."""
    return {run.run_id for run in found if run.phase}
