"""A database that is not there yet when the server starts: what is waited for, and how long."""

from __future__ import annotations

import logging
import math
import time

from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.errors import UnavailableError

logger = logging.getLogger(__name__)

#: Seconds until the server gives up, between two attempts, and between two words about it.
SECONDS = 60.0
PAUSE_SECONDS = 1.0
SAY_SECONDS = 10.0


def wait_for_store(home: Home, url: str) -> None:
    """Return once the database of a home answers; a file is not waited for.

    Parameters
    ----------
    home, url
        As for ``Records``.

    Raises
    ------
    UnavailableError
        It did not answer for ``SECONDS``.
    SegUnlearnError
        See ``records.store.open_store`` and ``home_store.refuse_other_store``.
    """
    if not url.startswith("postgres"):
        return
    began, said = time.monotonic(), -math.inf
    while True:
        try:
            Records(home, url).store.close()
        except UnavailableError as error:
            now = time.monotonic()
            if now - began >= SECONDS:
                raise
            if now - said >= SAY_SECONDS:
                said, left = now, math.ceil(SECONDS - (now - began))
                logger.warning("waiting up to %d seconds: %s", left, error)
            time.sleep(PAUSE_SECONDS)
        else:
            if said > began:
                logger.warning("the store answers now")
            return
