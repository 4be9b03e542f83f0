"""Failed sign-ins of each address: whoever guesses is told to wait."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

#: Failures of one address in a minute; then it waits for the next one.
LIMIT: Final = 30
WINDOW: Final = 60.0
#: Addresses that are remembered; the oldest is forgotten first.
_MOST: Final = 10_000


class Failures:
    """Counts of one server, in memory.

    Parameters
    ----------
    clock
        Seconds that never go back.
    limit
        Failures of one address in a minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, limit: int = LIMIT) -> None:
        self._clock, self._limit, self._lock = clock, limit, threading.Lock()
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()  # begin, count

    def add(self, address: str) -> None:
        """Count a failure."""
        with self._lock:
            began, count = self._of(address)
            self._seen[address] = (began, count + 1)
            self._seen.move_to_end(address)
            while len(self._seen) > _MOST:
                self._seen.popitem(last=False)

    def wait(self, address: str) -> int:
        """Seconds that the address has to wait; 0: none."""
        with self._lock:
            began, count = self._of(address)
            return 0 if count < self._limit else max(1, math.ceil(began + WINDOW - self._clock()))

    def _of(self, address: str) -> tuple[float, int]:
        now = self._clock()
        began, count = self._seen.get(address, (now, 0))
        return (began, count) if now - began < WINDOW else (now, 0)
