"""Starting a task of the server and following its run, through restarts and lost connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from SegUnlearnLib import texts
from SegUnlearnLib.api import Api
from SegUnlearnLib.idioms import once
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.run_view import RunView, view_of
from SegUnlearnLib.signals import Signal

#: Kinds of runs that a task may become, where it is not the trainer's own name.
_KINDS = {"unlearn": ("unlearn", "plan")}
#: Seconds between two looks, at first and after failures.
_POLL, _LONGEST = 1.0, 30.0
#: How many runs are looked through for the one that a task became.
_LOOKED_AT = 20


@dataclass(frozen=True)
class _Task:
    """What the server was asked for; ``before`` are the runs that it had by then."""

    trainer: str
    task_id: str
    before: frozenset[str]


class Runs:
    """Starts tasks, and follows one run at a time.

    Signals: ``changed(RunView)``; ``ended(RunView)``; ``gone()``: nothing is shown any more;
    ``failed(Problem)``: it did not start; ``trouble(text)``: no answer for now, or empty.
    """

    def __init__(self, api: Api, poll: float = _POLL) -> None:
        self._api, self._poll = api, poll
        self.changed, self.ended, self.gone = Signal(), Signal(), Signal()
        self.failed, self.trouble = Signal(), Signal()
        self.view: RunView | None = None
        self._turn, self._failures, self._timer = 0, 0, None
        self._looks = False
        self._order = 0  # of the newest start: answers to older ones are late
        self._task: _Task | None = None  # that has no run yet

    @property
    def unlearned(self) -> frozenset[str]:
        """Requests that the run is unlearning now."""
        return self.view.unlearned if self.view is not None else frozenset()

    # -- starting ------------------------------------------------------------------------------

    def start(self, trainer: str, options: Mapping[str, Any]) -> None:
        """Start a task and follow the run that it becomes."""
        self._order += 1
        self._task = None
        self._begin(RunView("", trainer, "waiting", text="Asking the server …"))
        mine = self._order

        def known(runs: Any) -> None:
            before = frozenset(run["run_id"] for run in runs)
            self._api.start(trainer, options, lambda task: started(task, before), refused)

        def started(task: Any, before: frozenset[str]) -> None:
            if mine == self._order:
                self._task = _Task(trainer, str(task["id"]), before)
                self._show(RunView("", trainer, "waiting", text="The server prepares it …"))
                if self._looks:
                    self._find(self._turn, self._task)

        def refused(problem: Problem) -> None:
            if mine == self._order:
                self.forget()
                self.failed.emit(problem)

        self._api.runs(_LOOKED_AT, known, refused)

    def follow_running(self) -> None:
        """Follow what the server runs now, if anything: it may have been started elsewhere."""
        if self.view is not None and not self.view.is_over:
            return
        mine = self._turn

        def found(runs: Any) -> None:
            running = min((r for r in runs if r["state"] == "running"), key=_rank, default=None)
            if running is not None and mine == self._turn:
                turn = self._begin(view_of(running))
                self._later(turn, lambda: self._ask(turn, running["run_id"]))

        self._api.runs(_LOOKED_AT, found, lambda problem: None, state="running")

    def cancel(self) -> None:
        """Ask the run to stop; that it did, it tells itself."""
        if self.view is None or not self.view.can_stop:
            return
        self._api.cancel(self.view.run_id, lambda run: None, self.failed.emit)

    def stop(self) -> None:
        """Look no more; the run goes on."""
        self._turn += 1
        self._looks = False
        if self._timer is not None:
            self._timer.stop()

    def hide(self) -> None:
        """Look no more, show nothing, and expect no answer: the server is connected to anew."""
        self.stop()
        self._order += 1
        view = self.view
        if view is not None and (view.is_over or (self._task is None and not view.run_id)):
            self.view = None  # it is seen no more; or whether it was started, nobody tells any more
        self.gone.emit()

    def forget(self) -> None:
        """Look no more, and show nothing: another server."""
        self.view = self._task = None
        self.hide()

    def resume(self) -> None:
        """Go on looking after ``stop`` or ``hide``, also for what was started elsewhere."""
        view = self.view
        if view is None or view.is_over:
            self.follow_running()
        elif self._task is not None:
            self._find(self._begin(view), self._task)
        elif view.run_id:
            self._ask(self._begin(view), view.run_id)
        else:
            self._begin(view)  # the server is about to answer whether it starts it

    # -- following -----------------------------------------------------------------------------

    def _begin(self, view: RunView) -> int:
        self.stop()
        self._looks = True
        self._failures = 0
        self.trouble.emit("")
        self._show(view)
        return self._turn

    def _find(self, mine: int, task: _Task) -> None:
        """Look for the new run; a task that ends without one says why in its last lines."""
        trainer = task.trainer

        def again() -> None:
            self._later(mine, lambda: self._find(mine, task))

        def runs(found: Any) -> None:
            kinds = _KINDS.get(trainer, (trainer,))
            new = [r for r in found if r["run_id"] not in task.before and r["kind"] in kinds]
            if mine != self._turn:
                return
            self._well()
            if new:
                self._take(mine, new[-1])
            else:
                self._api.tasks(tasks, no_tasks)

        def no_tasks(problem: Problem) -> None:
            if problem.kind == "missing":  # a server that was started anew
                tasks([])
            else:
                self._trouble(mine, again)(problem)

        def tasks(found: Any) -> None:
            if mine != self._turn:
                return
            own = next((t for t in found if str(t.get("id")) == task.task_id), None)
            state = own["status"] if own else ""
            if own is None:
                text = "The server was started anew and does not know it. Start it again."
                self._end(RunView("", trainer, "lost", text=text))
            elif state in ("SUBMITTED", "RUNNING"):
                if state == "SUBMITTED":
                    self._show(RunView("", trainer, "waiting", text="It waits for its turn."))
                again()
            elif state == "DONE":
                self._end(RunView("", trainer, "done", text="There was nothing to do."))
            else:
                last = [str(line) for line in own.get("details") or ()][-1:]
                text = f"The server's task ended: {''.join(last) or state}"
                self._end(RunView("", trainer, "failed", text=text))

        self._api.runs(_LOOKED_AT, runs, self._trouble(mine, again))

    def _ask(self, mine: int, run_id: str) -> None:
        if mine != self._turn:
            return

        def failed(problem: Problem) -> None:
            if problem.kind == "missing" and mine == self._turn:
                kind = self.view.kind if self.view else ""
                self._end(RunView(run_id, kind, "lost", text="The server knows no such run."))
            else:
                self._trouble(mine, lambda: self._ask(mine, run_id))(problem)

        def answered(run: Any) -> None:
            if mine == self._turn:
                self._well()
                self._take(mine, run)

        self._api.run(run_id, answered, failed)

    def _take(self, mine: int, run: Any) -> None:
        self._task = None
        view = view_of(run)
        if view.is_over:
            self._end(view)
            return
        self._show(view)
        self._later(mine, lambda: self._ask(mine, view.run_id))

    def _show(self, view: RunView) -> None:
        self.view = view
        self.changed.emit(view)

    def _end(self, view: RunView) -> None:
        self.stop()
        self._task = None
        self._show(view)
        self.ended.emit(view)

    def _well(self) -> None:
        if self._failures:
            self._failures = 0
            self.trouble.emit("")

    def _trouble(self, mine: int, again: Callable[[], None]) -> Callable[[Problem], None]:
        def failed(problem: Problem) -> None:
            if mine != self._turn or problem.kind == "cancelled":
                return
            self._failures += 1
            wait = min(_LONGEST, self._poll * 2**self._failures)
            self.trouble.emit(
                f"{problem.text} The run goes on if the server does; next look in "
                f"{texts.duration(max(1.0, wait))}."
            )
            self._timer = once(int(1000 * wait), again)

        return failed

    def _later(self, mine: int, call: Callable[[], None]) -> None:
        if mine == self._turn:
            self._timer = once(int(1000 * self._poll), call)


def _rank(run: Mapping[str, Any]) -> int:
    """Tell which run is followed first: an unlearning rather than the audit that it has made."""
    return {"unlearn": 0, "audit": 2}.get(str(run["kind"]), 1)
