"""The store, opened when it is first needed, and what the app asks of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

from segunlearn.app import checkpoints, generator_store
from segunlearn.app.forgetting import in_turn, reporting
from segunlearn.app.home_store import note_store, refuse_other_store
from segunlearn.app.options import Home
from segunlearn.cases import Case
from segunlearn.dicom.identifiers import Pseudonyms, load_or_create_key
from segunlearn.errors import ConflictError, SegUnlearnError
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger
from segunlearn.records.outbox import Outbox
from segunlearn.records.runs import RunRecord, Runs
from segunlearn.records.store import Store, open_store
from segunlearn.records.trail import Trail

logger = logging.getLogger(__name__)

#: State of a run in the words of MONAI Label's tasks.
_TASK_STATES = {
    "running": "RUNNING",
    "done": "DONE",
    "failed": "ERROR",
    "refused": "ERROR",
    "interrupted": "ERROR",
    "cancelled": "STOPPED",
}


class Records:
    """Runs, ledger and forget set of one home.

    Parameters
    ----------
    home
        Where the store and the site's key lie.
    url
        Of the store; empty: SQLite in ``home``.
    reports
        There is a PACS, which is told of each change of a forget request.
    """

    def __init__(self, home: Home, url: str = "", *, reports: bool = False) -> None:
        self._home, self._url, self._reports = home, url, reports
        self._store: Store | None = None
        self._lock = threading.Lock()

    @property
    def home(self) -> Home:
        """Where they lie."""
        return self._home

    @property
    def store(self) -> Store:
        """The store.

        Raises
        ------
        UnavailableError
            The database cannot be reached.
        ConflictError
            The home's records are in another store.
        """
        with self._lock:
            if self._store is None:
                refuse_other_store(self._home, self._url)
                if not self._url:
                    self._home.root.mkdir(parents=True, exist_ok=True)
                self._store = open_store(self._url or self._home.database)
                note_store(self._home, self._url)
            return self._store

    @property
    def runs(self) -> Runs:
        """Runs; those whose process died are marked as interrupted."""
        return Runs(self.store)

    @property
    def runs_unchecked(self) -> Runs:
        """Runs, without looking for dead processes: for what is asked at every step."""
        return Runs(self.store, check_dead=False)

    @property
    def ledger(self) -> Ledger:
        """The training ledger."""
        return Ledger(self.store)

    @property
    def forget_set(self) -> ForgetSet:
        """Forget requests; where there is a PACS, every change waits to be told to it.

        A mark deletes the checkpoints that saw its target, see ``segunlearn.app.checkpoints``;
        generators that know it go when it is forgotten, see ``segunlearn.app.generator_store``.
        Every change stands in the trail.
        """
        store = self.store
        home = self._home
        hooks = [checkpoints.dropping(home), generator_store.forgetting(home), self.trail.on_change]
        hooks += [reporting(Outbox(store))] if self._reports else []
        return ForgetSet(store, on_change=in_turn(*hooks))

    @property
    def trail(self) -> Trail:
        """Who did what."""
        return Trail(self.store)

    @property
    def pseudonyms(self) -> Pseudonyms:
        """Names of studies in logs."""
        return Pseudonyms(load_or_create_key(self._home.site_key))

    def without_forgotten(
        self, cases: Sequence[Case], *, besides: Collection[str] = ()
    ) -> list[Case]:
        """Cases that no live forget request names, ``besides`` those that are being restored."""
        return list(self.forget_set.exclude(list(cases), besides=besides)[0]) if cases else []

    def drop_marked_checkpoints(self) -> None:
        """Delete checkpoints that saw what was marked while nobody was there to delete them."""
        if not checkpoints.left_behind(self._home):
            return
        try:
            targets = self.forget_set.live_targets()
            with self.store.read() as connection:
                checkpoints.drop(self._home, connection, targets)
        except (SegUnlearnError, OSError) as error:
            logger.error("checkpoints that saw marked studies could not be deleted: %s", error)

    def last_run_as_task(self, *kinds: str) -> dict[str, Any] | None:
        """Show the running, else latest, run of some kinds as the platform shows tasks."""
        runs = self.runs
        found = [run for kind in kinds if (run := runs.latest(kind=kind)) is not None]
        run = max(found, key=lambda r: (r.is_running, r.started), default=None)
        if run is None:
            return None
        trainer = {"train": run.model, "plan": "unlearn"}.get(run.kind, run.kind)
        return {
            "id": run.run_id,
            "status": _TASK_STATES.get(run.state, "ERROR"),
            "request": {"model": trainer},
            "start_ts": run.started,
            "end_ts": run.ended,
            "details": [run.message] if run.message else [],
        }

    def cancel(self, *kinds: str) -> list[RunRecord]:
        """Ask the running runs of some kinds to stop; returns them."""
        runs = self.runs
        asked = [r for kind in kinds for r in runs.list(100, kind=kind, state="running")]
        for run in asked:
            try:
                runs.cancel(run.run_id)
            except ConflictError:
                continue  # it has ended meanwhile
        return asked

    def finish_cancelled(self, asked: Sequence[RunRecord], seconds: float = 5.0) -> None:
        """Record runs as cancelled whose process was killed after they were asked to stop.

        Runs that live on (those of this process) end by themselves at their next step.
        """
        runs, until = self.runs, time.monotonic() + seconds
        waiting = [run.run_id for run in asked]
        while waiting and time.monotonic() < until:
            runs.mark_dead()
            for run_id in list(waiting):
                state = runs.get(run_id).state
                if state == "interrupted":
                    runs.finish(run_id, "cancelled", "stopped by a person")
                if state != "running":
                    waiting.remove(run_id)
            time.sleep(0.05)
        self.drop_marked_checkpoints()  # a killed one could not look whether it saw a marked study
