"""The list of an archive's series, read page by page in the background: nobody waits for all of it.

A hospital's PACS holds a hundred thousand series and more. Whoever names one series is answered by
one question to the PACS; whoever wants a list gets as much of it as has been read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from segunlearn.app.pauses import QUICK_SECONDS, pause_after
from segunlearn.dicom.search import SeriesRecord
from segunlearn.errors import SegUnlearnError, UnavailableError

logger = logging.getLogger(__name__)

#: Series kept in the list at most, about 0.5 KiB each; others are still found by their UID.
MOST_LISTED: Final = 250_000


class Reading:
    """One pass over the archive, and what it has found so far."""

    def __init__(self, change: int) -> None:
        self.change = change
        self.began = time.monotonic()
        self.took = 0.0
        self.rows: dict[str, SeriesRecord] = {}
        self.series_of: dict[str, str] = {}
        self.error: SegUnlearnError | None = None
        self.cut = False

    def add(self, record: SeriesRecord) -> None:
        """Put one series into the list."""
        self.rows[record.series_instance_uid] = record
        self.series_of.setdefault(record.study_instance_uid, record.series_instance_uid)


class SeriesList:
    """Series of an archive by UID, in the archive's order.

    Parameters
    ----------
    read
        Yields the series page by page; may raise ``SegUnlearnError`` at any page.
    seconds
        Age at which the list is read again, or more where reading takes long, see ``pause_after``.

    Notes
    -----
    As ``CachedIndex``: the old list is served while a new one is read and while the archive is
    away, and after ``invalidate`` the next ``get`` waits for a reading that began afterwards.
    """

    def __init__(self, read: Callable[[], Iterable[SeriesRecord]], seconds: float) -> None:
        self._read, self._seconds = read, seconds
        self._whole: Reading | None = None
        self._current: Reading | None = None
        self._changes = 0
        self._due = 0.0
        self._news = threading.Condition()

    @property
    def quick(self) -> bool:
        """Whether the whole list is known, and reading it again costs next to nothing."""
        whole = self._whole
        return whole is not None and whole.took <= QUICK_SECONDS

    @property
    def cut(self) -> bool:
        """Whether the archive holds more series than are listed."""
        return self._whole is not None and self._whole.cut

    def get(self) -> dict[str, SeriesRecord]:
        """Return the whole list; waits for it.

        Raises
        ------
        SegUnlearnError
            It was never read, or was invalidated, and reading it failed.
        """
        return self._wait(lambda reading: False, None).rows

    def so_far(self, seconds: float) -> tuple[dict[str, SeriesRecord], bool]:
        """Return what is known when the reading is ``seconds`` old, and whether it is the whole.

        Raises
        ------
        SegUnlearnError
            Nothing is known, and reading failed.
        """
        found = self._wait(lambda reading: False, seconds)
        return (found.rows, True) if found is self._whole else (dict(found.rows), False)

    def first(self, count: int) -> dict[str, SeriesRecord]:
        """Return the list as soon as ``count`` series are in it, or all there are.

        Raises
        ------
        SegUnlearnError
            Reading failed before.
        """
        found = self._wait(lambda reading: len(reading.rows) >= count, None)
        return found.rows if found is self._whole else dict(found.rows)

    def peek(self, uid: str, age: float | None = None) -> SeriesRecord | None:
        """Return a series if it is known, read ``age`` seconds ago at most; asks nobody."""
        for reading in (self._current, self._whole):
            if reading is None or uid not in reading.rows:
                continue
            if age is None or time.monotonic() - reading.began <= age:
                return reading.rows[uid]
        return None

    def of_study(self, study: str) -> SeriesRecord | None:
        """Return a series of a study if one is known; asks nobody."""
        for reading in (self._current, self._whole):
            if reading is not None and study in reading.series_of:
                return reading.rows[reading.series_of[study]]
        return None

    def invalidate(self) -> None:
        """Say that this process changed the archive."""
        with self._news:
            self._changes += 1

    # -- reading ---------------------------------------------------------------------------------

    def _wait(self, enough: Callable[[Reading], bool], seconds: float | None) -> Reading:
        with self._news:
            wanted = self._changes
            while True:
                whole = self._whole
                if whole is not None and whole.change >= wanted:
                    if self._current is None and time.monotonic() > self._due:
                        self._begin()
                    return whole
                current = self._current or self._begin()
                while self._current is current and not enough(current):
                    left = None if seconds is None else current.began + seconds - time.monotonic()
                    if left is not None and left <= 0:
                        return whole or current
                    self._news.wait(left)
                if self._current is current:
                    return current
                if current.error is not None and current.change >= wanted:
                    raise current.error

    def _begin(self) -> Reading:
        self._current = reading = Reading(self._changes)
        threading.Thread(target=self._run, args=(reading,), daemon=True).start()
        return reading

    def _run(self, reading: Reading) -> None:
        reading.error = UnavailableError("the list of studies could not be read; see the log.")
        try:
            for number, record in enumerate(self._read(), start=1):
                reading.add(record)
                if number % 100 == 0:
                    with self._news:
                        self._news.notify_all()
                if len(reading.rows) >= MOST_LISTED:
                    reading.cut = True
                    logger.warning(
                        "the archive holds more than %d series; the others are not listed, but "
                        "found by their UID. Narrow the list with --conf filter.", MOST_LISTED,
                    )  # fmt: skip
                    break
            reading.error = None
        except SegUnlearnError as error:
            reading.error = error
            logger.warning("the list of studies stays as it was: %s", error)
        finally:
            with self._news:
                reading.took = time.monotonic() - reading.began
                if reading.error is None:
                    self._whole = reading
                self._due = time.monotonic() + pause_after(reading.took, self._seconds)
                self._current = None
                self._news.notify_all()
