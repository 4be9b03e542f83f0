"""Figures of the running server for Prometheus, in its text format 0.0.4; none about patients."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Upper bounds of the classes of durations, in seconds.
_BOUNDS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """Counts of one server, since it started."""

    def __init__(self) -> None:
        self.started = time.time()
        self.login_failures = 0
        self._requests: Counter[tuple[str, str]] = Counter()
        self._durations: Counter[float] = Counter()
        self._seconds = 0.0
        self._open = 0
        self._lock = threading.Lock()

    @contextmanager
    def counting(self) -> Iterator[Callable[[str, int], None]]:
        """Count one request; gives a function of (method, status) to call at its end."""
        began = time.monotonic()
        with self._lock:
            self._open += 1

        def end(method: str, status: int) -> None:
            known = method if method in _METHODS else "other"
            taken = time.monotonic() - began
            with self._lock:
                self._open -= 1
                self._requests[known, f"{status // 100}xx"] += 1
                self._seconds += taken
                self._durations[next((b for b in _BOUNDS if taken <= b), float("inf"))] += 1

        yield end

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return everything as text.

        Parameters
        ----------
        gauges
            Name -> (what it is, value), of what others know.
        """
        with self._lock:
            requests, durations = dict(self._requests), dict(self._durations)
            seconds, still = self._seconds, self._open
        lines = _head("requests_total", "counter", "Requests that were answered")
        lines += [
            f'segunlearn_requests_total{{method="{m}",status="{s}"}} {n}'
            for (m, s), n in sorted(requests.items())
        ]
        lines += _head("request_seconds", "histogram", "Time from request to the answer's end")
        total = 0
        for bound in (*_BOUNDS, float("inf")):
            total += durations.get(bound, 0)
            name = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'segunlearn_request_seconds_bucket{{le="{name}"}} {total}')
        lines += [
            f"segunlearn_request_seconds_sum {seconds:.6f}",
            f"segunlearn_request_seconds_count {total}",
        ]
        lines += _head("login_failures_total", "counter", "Wrong tokens and passwords")
        lines.append(f"segunlearn_login_failures_total {self.login_failures}")
        own = {
            "requests_open": ("Requests under way", float(still)),
            "start_time_seconds": ("When the server started, Unix time", self.started),
        }
        for name, (what, value) in {**own, **gauges}.items():
            lines += [*_head(name, "gauge", what), f"segunlearn_{name} {value:.17g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP segunlearn_{name} {what}.", f"# TYPE segunlearn_{name} {kind}"]
