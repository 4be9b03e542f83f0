"""Lists that are read again after some seconds, behind the reader's back, and single answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

from segunlearn.app.pauses import pause_after
from segunlearn.errors import SegUnlearnError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Remembered(Generic[T]):
    """Answers to single questions by name; safe to use from several threads.

    Parameters
    ----------
    seconds
        Age at which an answer is forgotten.
    most
        Answers that are kept; the oldest go first.
    """

    def __init__(self, seconds: float, most: int = 4096) -> None:
        self._seconds, self._most = seconds, most
        self._answers: dict[str, tuple[float, T]] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> T | None:
        """Return the answer if one is remembered."""
        with self._lock:
            at, answer = self._answers.get(name, (-inf, None))
        return answer if time.monotonic() - at <= self._seconds else None

    def put(self, name: str, answer: T) -> None:
        """Remember an answer from now on."""
        with self._lock:
            self._answers.pop(name, None)
            self._answers[name] = (time.monotonic(), answer)
            while len(self._answers) > self._most:
                self._answers.pop(next(iter(self._answers)))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._answers.clear()


class CachedIndex(Generic[T]):
    """Keep what ``read`` returned; answer at once, and refresh in the background when it is old.

    Parameters
    ----------
    read
        Reads the list; may be slow and may raise ``SegUnlearnError``.
    seconds
        Age at which it is read again, or more where reading takes long, see ``pause_after``. The
        old list is served meanwhile, and also while the source cannot be reached.

    Notes
    -----
    ``invalidate`` is for changes made by this process: the next ``get`` then waits for a reading
    that began after the change, so nothing that was just saved is ever missing.
    """

    def __init__(self, read: Callable[[], T], seconds: float) -> None:
        self._read, self._seconds = read, seconds
        self._value: T | None = None
        self._due = 0.0
        self._changes = 0
        self._seen = -1
        self._lock = threading.Lock()
        self._refreshing = False
        self._thread: threading.Thread | None = None

    def get(self) -> T:
        """Return the list.

        Raises
        ------
        SegUnlearnError
            It was never read, or was invalidated, and reading it failed.
        """
        if self._value is None or self._seen < self._changes:
            return self._read_since(self._changes)
        if time.monotonic() > self._due and not self._refreshing:
            self._refresh_soon()
        return self._value

    def within(self, seconds: float) -> T | None:
        """Return the list, or after so many seconds what is known of it; None: nothing yet."""
        if self._value is not None and self._seen >= self._changes:
            return self.get()
        self._refresh_soon().join(seconds)
        return self._value

    def invalidate(self) -> None:
        """Say that this process changed the source."""
        self._changes += 1

    def _refresh_soon(self) -> threading.Thread:
        thread = self._thread
        if thread is None or not self._refreshing:
            self._refreshing = True
            self._thread = thread = threading.Thread(target=self._refresh_quietly, daemon=True)
            thread.start()
        return thread

    def _read_since(self, change: int) -> T:
        with self._lock:
            if self._value is None or self._seen < change:
                self._value = self._read_now()
            return self._value

    def _refresh_quietly(self) -> None:
        try:
            with self._lock:
                self._value = self._read_now()
        except SegUnlearnError as error:
            logger.warning("the list of studies stays as it was: %s", error)
        finally:
            self._refreshing = False

    def _read_now(self) -> T:
        changes, began = self._changes, time.monotonic()
        try:
            value = self._read()
            self._seen = changes
        finally:
            now = time.monotonic()
            self._due = now + pause_after(now - began, self._seconds)
        return value
