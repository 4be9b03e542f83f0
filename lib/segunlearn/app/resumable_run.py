"""What trainings share: a folder of checkpoints that the next run takes over, or a mark deletes."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from segunlearn.app import checkpoints
from segunlearn.app.options import Home
from segunlearn.app.watched_run import WatchedRun
from segunlearn.cases import Case
from segunlearn.errors import CancelledError, ConflictError, SegUnlearnError
from segunlearn.records.ledger import LedgerEntry
from segunlearn.replacing import full_disk

logger = logging.getLogger(__name__)


class ResumableRun(WatchedRun):
    """Base of trainings; their dataclasses declare the fields."""

    kind: ClassVar[str]

    model: str
    home: Home
    requested_by: str
    cases: list[Case]

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record the run and how it ends; nothing stays that saw what was marked meanwhile."""
        self.run_id = self.records.runs.start(
            self.kind, self.model, self._parameters(), requested_by=self.requested_by
        )
        try:
            yield
        except CancelledError:
            if self.gone:  # whoever looks next marks the run as interrupted
                logger.warning("the server is gone; the run stops and can be resumed")
                raise
            self._finish("cancelled", "stopped by a person")
            raise
        except SegUnlearnError as error:
            self._finish("refused" if isinstance(error, ConflictError) else "failed", str(error))
            raise
        except Exception as error:
            self._finish("failed", full_disk(error) or f"unexpected error: {error!r:.500}")
            raise
        finally:
            self._drop_if_marked()
        self.records.runs.finish(self.run_id, "done")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _parameters(self) -> dict[str, Any]:
        """Return what is recorded when it begins."""
        raise NotImplementedError

    def _entry(self, outcome: str) -> LedgerEntry:
        """Row of the ledger, of a run without a result."""
        raise NotImplementedError

    def _finish(self, outcome: Any, message: str) -> None:
        """Record an end without a result."""
        self.record(
            lambda: self.records.ledger.append(self._entry(outcome)),
            lambda: self.records.runs.finish(self.run_id, outcome, message),
        )

    @property
    def folder(self) -> Path:
        """Folder of checkpoints."""
        return self.home.runs / self.run_id

    def _adopt(self) -> Path:
        """Folder of the run; takes over the checkpoint of the last one that did not finish.

        ``train`` goes on from it only if cases, labels, configuration and settings are the same,
        and discards it otherwise. Folders of other runs that made the same are removed: they hold
        weights.
        """
        folder, pseudonyms = self.folder, self.records.pseudonyms
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.records.drop_marked_checkpoints()
        (family,) = (f for f in checkpoints.FAMILIES if self.kind in f)
        kinds = sorted(family, key=lambda kind: kind != self.kind)
        runs = self.records.runs
        for old in (r for k in kinds for r in runs.list(1000, model=self.model, kind=k)):
            left = self.home.runs / old.run_id
            if old.run_id == self.run_id or not left.is_dir():
                continue
            if old.is_running:
                continue
            same = old.state != "done" and checkpoints.is_of(left, self.cases, pseudonyms)
            if same and not folder.exists():
                logger.info("taking over the checkpoint of run %s", old.run_id)
                os.replace(left, folder)  # noqa: PTH105
            else:
                shutil.rmtree(left, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        checkpoints.note(folder, self.cases, pseudonyms)
        return folder

    def _drop_if_marked(self) -> None:
        """Leave no checkpoint that saw what was marked while the run went on."""
        try:
            if self.folder.is_dir() and len(self.records.without_forgotten(self.cases)) < len(
                self.cases
            ):
                shutil.rmtree(self.folder)
        except (SegUnlearnError, OSError) as error:
            logger.error("the checkpoint of run %s could not be looked at: %s", self.run_id, error)
