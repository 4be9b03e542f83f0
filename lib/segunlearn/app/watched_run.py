"""What every run does: tell how far it is, look whether it should stop, record its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from segunlearn.app.records import Records
from segunlearn.errors import SegUnlearnError, UnavailableError
from segunlearn.records.runs import Progress
from segunlearn.replacing import full_disk

logger = logging.getLogger(__name__)

#: How often a run looks whether it should stop.
WATCH_SECONDS = 2.0


def why_unexpected(error: Exception) -> str:
    """Say why a run ended that nobody foresaw: a text of its own may hold values of a header."""
    return full_disk(error) or f"unexpected error: {type(error).__name__}"


class WatchedRun:
    """Base of runs; their dataclasses declare the fields."""

    records: Records
    run_id: str
    on_progress: Callable[[Progress], None] | None
    stopped: Callable[[], bool] | None
    #: Tells that whoever started the run is gone; ``gone``: it was told so.
    orphan: Callable[[], bool] | None = None
    gone: bool = False
    _looked: float
    _stop: bool

    def tell(self, progress: Progress) -> None:
        """Write progress to the store; hours of work are worth more than a report."""
        try:
            self.records.runs_unchecked.update(self.run_id, progress)
        except UnavailableError as error:
            logger.warning("progress of run %s could not be stored: %s", self.run_id, error)
        if self.on_progress is not None:
            self.on_progress(progress)

    def should_stop(self) -> bool:
        """Whether a person stopped the run, or it is to stop for a reason of its own."""
        if self.stopped is not None and self.stopped():
            self._stop = True
        now = time.monotonic()
        if not self._stop and now - self._looked > WATCH_SECONDS:
            self._looked = now
            self._stop = self.forsaken() or self._cancelled()
        return self._stop

    def forsaken(self) -> bool:
        """Whether whoever started the run is gone."""
        self.gone = self.orphan is not None and self.orphan()
        return self.gone

    def record(self, *steps: Callable[[], object]) -> None:
        """Record an end, step by step; what fails here must not hide why the run ended.

        Each step is tried: a ledger that refuses the row must not leave the run as running.
        """
        for step in steps:
            try:
                step()
            except SegUnlearnError as error:
                logger.error("the end of run %s could not be recorded: %s", self.run_id, error)

    def _cancelled(self) -> bool:
        try:
            return self.records.runs_unchecked.cancelled(self.run_id)
        except UnavailableError as error:
            logger.warning("run %s cannot ask whether to stop: %s", self.run_id, error)
            return False
