"""What killed processes began: finished where it was decided, undone where it was not."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Final

from segunlearn.app.locks import training_lock
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_journal import journals
from segunlearn.errors import ConflictError, IntegrityError, SegUnlearnError

logger = logging.getLogger(__name__)

#: Seconds in which an unlearning that was asked to stop may undo what it did.
PATIENCE: Final = 15.0


def settle(home: Home, records: Records, model: str = "", *, locked: bool = False) -> list[str]:
    """Finish or undo every unlearning, restore and purge whose process is gone.

    The run of one that was decided is done: it was published, restored or purged after all.

    Parameters
    ----------
    home, records
        Of the installation.
    model
        Only of this one; empty: of all.
    locked
        The caller holds the lock of the model's trainings.

    Returns
    -------
    list of str
        Ids of the runs that were settled.

    Notes
    -----
    What cannot be settled now (a running one, a store that is away) is logged and tried again at
    the next start.
    """
    settled = []
    finisher = Finisher(home, records)
    try:
        left = list(journals(home))
    except IntegrityError as error:
        logger.error("%s", error)
        return []
    for journal in left:
        if model and journal.model != model:
            continue
        lock = nullcontext() if locked else training_lock(home, journal.model, "settling", 0.0)
        try:
            with lock:
                if journal.decided:
                    finisher.finish(journal)
                    records.runs.finish(journal.run_id, "done", "finished after a kill")
                else:
                    finisher.give_up(journal, "the process was interrupted; start it again")
        except ConflictError as error:
            logger.info("run %s is not settled now: %s", journal.run_id, error)
            continue
        except (SegUnlearnError, OSError) as error:
            logger.error("run %s could not be settled: %s", journal.run_id, error)
            continue
        finisher.deposits.clear()  # a purge that died while it removed one
        logger.warning("run %s was interrupted; it is settled now", journal.run_id)
        settled.append(journal.run_id)
    return settled
