"""The training task: finished labels in, a new version in service, one ledger row."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from segunlearn.app import train_options
from segunlearn.app.child import starter_gone
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.from_active import held_out_details, held_out_of, keep_out, with_fitted
from segunlearn.app.locks import training_lock
from segunlearn.app.studies_task import LOCK_SECONDS, StudiesTask
from segunlearn.app.train_stats import training_stats_of
from segunlearn.app.training_run import TrainingRun
from segunlearn.cases import Case, number_of
from segunlearn.errors import (
    CancelledError,
    InvalidInputError,
)
from segunlearn.networks import ModelConfig
from segunlearn.records.runs import Progress, RunRecord
from segunlearn.records.versions import VersionInfo
from segunlearn.training.planning import plan, recipe

logger = logging.getLogger(__name__)


class SegmentationTrainTask(StudiesTask):
    """Train the next version of a model on all finished labels; see ``StudiesTask``."""

    ordinary = True
    about = "Train a new version on all finished labels, and serve it"
    offers = train_options.OPTIONS
    kind = "train"

    @staticmethod
    def shown(run: RunRecord) -> dict[str, Any]:
        """Statistics with the epochs of the training."""
        return training_stats_of(run)

    def __call__(self, request: Mapping[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """Train, write the ledger row, publish.

        Parameters
        ----------
        request
            See ``train_options.OPTIONS``.
        datastore
            The studies.

        Returns
        -------
        dict
            ``run_id``, ``version``, ``sha256``, ``best_dice``, numbers of cases and of people whom
            the version keeps out.

        Raises
        ------
        ConflictError
            Another training of this model runs, or a study was marked for forgetting meanwhile.
        CancelledError
            A person stopped it.
        InvalidInputError
            An option is wrong, or there is nothing to train on.
        """
        options = self.check(request)
        gone = starter_gone()
        with training_lock(self._home, self._model.name, "server", LOCK_SECONDS, gone):
            return self._train(options, datastore)

    def _train(self, options: Mapping[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        active = self._model.registry.active()
        run, recipe_name = self._run(options, active)
        version, result = run.execute(lambda run: self._select(run, active, recipe_name, datastore))
        return {
            "run_id": run.run_id,
            "version": version.version,
            "sha256": version.sha256,
            "best_dice": result.best_dice,
            "train_cases": len(result.train_cases),
            "val_cases": len(result.val_cases),
            "held_out_people": len(run.details["held_out_pseudonyms"]),
        }

    def _run(
        self, options: Mapping[str, Any], active: VersionInfo | None
    ) -> tuple[TrainingRun, str]:
        """Make the run, and name the recipe of a first network."""
        run = TrainingRun(
            model=self._model.name,
            home=self._home,
            records=self._records,
            settings=train_options.settings_of(options, self._options.device),
            parent=active if options["pretrained"] else None,
            requested_by=str(options.get("client_id", "")),
            orphan=starter_gone(),
        )
        return run, str(options["recipe"])

    def _select(
        self,
        run: TrainingRun,
        active: VersionInfo | None,
        recipe_name: str,
        datastore: StudiesDatastore,
    ) -> tuple[Sequence[Case], ModelConfig]:
        labels = tuple(active.config["labels"]) if active else datastore.structures()
        if not labels:
            raise InvalidInputError(
                "nothing names the structures yet. Start the server with --conf labels a,b,…"
            )

        def fetched(done: int, total: int) -> None:
            run.report(Progress("fetch", done, total, {}))
            if run.should_stop():
                raise CancelledError("the training was stopped while it fetched images.")

        values = {name: i + 1 for i, name in enumerate(labels)}
        selection = datastore.trainable(values=values, progress=fetched)
        for reason in selection.skipped.values():
            logger.warning("a labelled image is left out: %s", reason)
        if not selection.cases:
            raise InvalidInputError(
                f"there is nothing to train on: {len(selection.skipped)} labelled images cannot "
                f"be read, the others are none. {next(iter(selection.skipped.values()), '')}"
            )
        pseudonyms, total = self._records.pseudonyms, len(selection.cases)
        # also from random weights, as 'train --again': versions stay comparable
        cases, left_out = keep_out(selection.cases, active, pseudonyms, logger.info)
        cases = with_fitted(cases, run.parent, self._records.ledger, logger.warning)
        run.details = held_out_details(held_out_of(active, pseudonyms), pseudonyms)
        if left_out:
            run.report(Progress("fetch", total, total, {"held_out": float(left_out)}))
        if len({number_of(c.person) for c in cases}) == 1 and run.settings.val_fraction > 0:
            logger.warning("one person only: nothing is held out for validation")
            run.settings = replace(run.settings, val_fraction=0.0)
        if active is not None:
            return cases, ModelConfig.from_json(active.config)
        network = plan(cases, labels, name=self._model.name, recipe=recipe(recipe_name))
        return cases, network
