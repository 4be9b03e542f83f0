"""Inferences wait here for a thread: bounded, each caller in turn, stopped when unwanted."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Generic, TypeVar

from segunlearn.errors import UnavailableError

T = TypeVar("T")

#: Two: one reads its image while another has the device.
_THREADS: Final = 2
#: Least and most seconds that somebody is told to wait.
_SOONEST, _LATEST = 1, 120


class Job(Generic[T]):
    """An inference that was asked for.

    Parameters
    ----------
    work
        Is given a function that tells whether to stop.
    caller
        Who asked.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], T], caller: str) -> None:
        self.caller = caller
        self.future: Future[T] = Future()
        self._work, self._unwanted = work, threading.Event()

    def cancel(self) -> None:
        """Stop it where it is; one that waits never begins."""
        self._unwanted.set()
        self.future.cancel()

    def run(self) -> None:
        """Do the work; called by a thread of the queue."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._work(self._unwanted.is_set))
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            self.future.set_exception(error)


class InferenceQueue:
    """Threads for inferences, apart from those that answer everything else.

    Callers take turns, whatever each of them has asked for. When it is full, whoever has most
    waiting gives way to somebody who has less.

    Parameters
    ----------
    bound
        Inferences that may be under way or wait.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._waiting: OrderedDict[str, deque[Job[Any]]] = OrderedDict()
        self._running = 0
        self._usual = 1.0  # seconds of one, a running mean
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[Callable[[], bool]], T], caller: str = "") -> Job[T]:
        """Let a caller wait for a thread.

        Raises
        ------
        UnavailableError
            Too many wait already; ``retry_after`` says when to come back.
        """
        job = Job(work, caller)
        with self._changed:
            self._drop_cancelled()
            if self._running + self._count() >= self._bound:
                self._make_room_for(caller)
            self._waiting.setdefault(caller, deque()).append(job)
            if len(self._threads) < _THREADS:
                thread = threading.Thread(
                    target=self._serve, name=f"infer_{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        return job

    def figures(self) -> tuple[int, int]:
        """Return how many are under way, and how many wait."""
        with self._changed:
            self._drop_cancelled()
            return self._running, self._count()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while (job := self._next()) is None:
                    self._changed.wait()
                self._running += 1
            began = time.monotonic()
            try:
                job.run()
            finally:
                with self._changed:
                    self._running -= 1
                    self._usual += 0.2 * (time.monotonic() - began - self._usual)

    def _next(self) -> Job[Any] | None:
        """Take the job of the caller whose turn it is; the caller goes to the end of the row."""
        while self._waiting:
            caller, jobs = self._waiting.popitem(last=False)
            while jobs and jobs[0].future.cancelled():
                jobs.popleft()
            if jobs:
                job = jobs.popleft()
                if jobs:
                    self._waiting[caller] = jobs
                return job
        return None

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _drop_cancelled(self) -> None:
        for caller, jobs in list(self._waiting.items()):
            kept = deque(j for j in jobs if not j.future.cancelled())
            if kept:
                self._waiting[caller] = kept
            else:
                del self._waiting[caller]

    def _make_room_for(self, caller: str) -> None:
        """Turn away the newest of whoever has most waiting, else the newcomer."""
        own = len(self._waiting.get(caller, ()))
        greedy = max(self._waiting, key=lambda c: len(self._waiting[c]), default=caller)
        if len(self._waiting.get(greedy, ())) > own + 1:
            job = self._waiting[greedy].pop()
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(self._full())
            return
        raise self._full()

    def _full(self) -> UnavailableError:
        count = self._running + self._count()
        error = UnavailableError(
            f"{count} inferences are under way or wait already. Try again in a moment, or raise "
            "--conf queue."
        )
        seconds = math.ceil(self._usual * count / _THREADS)
        error.retry_after = min(_LATEST, max(_SOONEST, seconds))
        return error
