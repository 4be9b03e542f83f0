"""After a stop or a crash: unlearnings are finished or undone, and their runs say so."""

from __future__ import annotations

import logging
from typing import Final

from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_journal import journals
from segunlearn.app.unlearn_settle import settle
from segunlearn.errors import SegUnlearnError

logger = logging.getLogger(__name__)

#: Seconds in which an unlearning that was asked to stop may undo what it did.
PATIENCE: Final = 15.0


def settle_runs(home: Home, records: Records) -> list[str]:
    """Settle what killed processes began; what cannot be settled now is logged, never raised.

    Returns
    -------
    list of str
        Ids of the runs that were settled. One that was already decided is done: it was published,
        restored or purged after all.
    """
    if not home.unlearning.is_dir():
        return []
    try:
        decided = {j.run_id for j in journals(home) if j.decided}
        settled = settle(home, records)
        for run_id in settled:
            if run_id in decided:
                records.runs.finish(run_id, "done", "finished after its process had ended")
    except (SegUnlearnError, OSError) as error:
        logger.error("what a killed run began could not be settled: %s", error)
        return []
    return settled
