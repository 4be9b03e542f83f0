"""A list that is read again after some seconds, behind the reader's back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from segunlearn.errors import SegUnlearnError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class CachedIndex(Generic[T]):
    """Keep what ``read`` returned; answer at once, and refresh in the background when it is old.

    Parameters
    ----------
    read
        Reads the list; may be slow and may raise ``SegUnlearnError``.
    seconds
        Age at which it is read again. The old list is served meanwhile, and also while the source
        cannot be reached.

    Notes
    -----
    ``invalidate`` is for changes made by this process: the next ``get`` then waits for a reading
    that began after the change, so nothing that was just saved is ever missing.
    """

    def __init__(self, read: Callable[[], T], seconds: float) -> None:
        self._read, self._seconds = read, seconds
        self._value: T | None = None
        self._read_at = 0.0
        self._changes = 0
        self._seen = -1
        self._lock = threading.Lock()
        self._refreshing = False

    def get(self) -> T:
        """Return the list.

        Raises
        ------
        SegUnlearnError
            It was never read, or was invalidated, and reading it failed.
        """
        if self._value is None or self._seen < self._changes:
            return self._read_since(self._changes)
        if time.monotonic() - self._read_at > self._seconds and not self._refreshing:
            self._refreshing = True
            threading.Thread(target=self._refresh_quietly, daemon=True).start()
        return self._value

    def invalidate(self) -> None:
        """Say that this process changed the source."""
        self._changes += 1

    def _read_since(self, change: int) -> T:
        with self._lock:
            if self._value is None or self._seen < change:
                changes = self._changes
                self._value = self._read()
                self._seen, self._read_at = changes, time.monotonic()
            return self._value

    def _refresh_quietly(self) -> None:
        try:
            with self._lock:
                changes = self._changes
                value = self._read()
                self._value, self._seen = value, changes
        except SegUnlearnError as error:
            logger.warning("the list of studies stays as it was: %s", error)
        finally:
            self._read_at = time.monotonic()
            self._refreshing = False
