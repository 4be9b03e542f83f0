"""The task behind ``/train/meta_train``: a plan by default, a meta-training when asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from segunlearn.adaptation.meta_training import MetaSettings
from segunlearn.app import train_options
from segunlearn.app.child import starter_gone
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.from_active import keep_out, with_fitted
from segunlearn.app.meta_run import (
    META_TRAIN,
    MetaTrainingRun,
    check_sites,
    meta_settings,
    with_sites,
)
from segunlearn.app.site_choice import Aliases
from segunlearn.app.studies_task import StudiesTask, header_of, labelled_cases
from segunlearn.app.train import SegmentationTrainTask
from segunlearn.app.train_options import Option
from segunlearn.app.training_run import TrainingRun
from segunlearn.cases import Case
from segunlearn.networks import ModelConfig
from segunlearn.records.versions import VersionInfo
from segunlearn.training import TrainSettings
from segunlearn.training.planning import RECIPES, recipe

logger = logging.getLogger(__name__)

_DEFAULTS: Final = MetaSettings()

#: Options by name. Stock clients send those of other trainers along, so none that decides anything
#: is shared: epochs and recipe of an ordinary training change nothing here.
OPTIONS: Final[dict[str, Option]] = {
    "meta_train_now": Option("", False),
    "learn": Option("learn", "both", choices=("both", "maml", "generator")),
    "iterations": Option("iterations", _DEFAULTS.iterations, 1, 100_000),
    "maml_order": Option("order", "second", choices=("second", "first", "reptile")),
    "maml_inner_set": Option("inner_set", "decoder", choices=("decoder", "head", "all")),
    "maml_steps": Option("inner_steps", _DEFAULTS.maml.steps, 1, 20),
    "virtual_sites": Option("virtual_sites", True),
    "from_active": Option("", True),
    "joint_recipe": Option("", "default", choices=tuple(RECIPES)),
    "joint_epochs": Option("", 0, 0, 100_000),  # 0: the recipe's
    "seed": Option("seed", 0, 0, 2**31 - 1),
}


class MetaTrainTask(SegmentationTrainTask):
    """Train the next version on several sites, so that it adapts to another in a few steps."""

    ordinary = False
    about = (
        "Train a version on several sites, so that site_adapt fits it to another in a few steps. "
        "Only says what it would do, unless meta_train_now is switched on"
    )
    offers = OPTIONS
    kind = META_TRAIN
    shown = staticmethod(StudiesTask.shown)

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked options of a request, fit for JSON.

        Raises
        ------
        InvalidInputError
            A value is wrong, or no site has people enough: told before a process is started.
        """
        checked = super().check(request)
        self.plan(checked)
        return checked

    def plan(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Say what checked options would do: as JSON and as lines. Nothing is fetched or changed.

        Raises
        ------
        InvalidInputError
            As ``check_sites``.
        """
        studies, meta = self._every_study(), _meta(options)
        cases = labelled_cases(studies)
        free, told = self._records.without_forgotten(cases), list[str]()
        marked = len(cases) - len(free)
        active = self._model.registry.active()
        free, held_out = keep_out(free, active, self._records.pseudonyms, told.append)
        parent = active if options["from_active"] else None
        free = with_fitted(free, parent, self._records.ledger, told.append)
        kept = self._sited(free, studies)
        sites = check_sites(kept, self._joint(options), meta)
        plan = {
            "sites": sites, "studies": len(kept), "marked": marked, "held_out": held_out,
            "learn": list(meta.learn), "iterations": meta.iterations,
            "virtual_sites": meta.episodes.virtual is not None,
        }  # fmt: skip
        counts = ", ".join(f"{site} ({people} people)" for site, people in sites.items())
        without = sum(not c.site for c in kept)
        lines = [
            f"{len(kept)} labelled studies; beside who validates the joint training there are to "
            f"learn from, of {len(sites)} sites: {counts}"
            + (f"; {without} of no known site, which only shape the joint model" if without else "")
            + (f"; left out: {marked} marked for forgetting" if marked else ""),
            *told,
            "first a joint training, whose version serves every site without an adapter; then "
            "outer steps: " + ", ".join(f"{meta.iterations_of(p)} of {p}" for p in meta.phases),
        ]
        return plan, lines

    def __call__(self, request: Mapping[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """Plan, or train, write the ledger row and publish; as ``segunlearn meta-train``.

        Parameters
        ----------
        request
            See ``OPTIONS``.
        datastore
            The studies, without those that are marked.

        Returns
        -------
        dict
            Of a plan ``planned``, ``run_id``, ``plan`` and ``lines``; else as an ordinary training.

        Raises
        ------
        SegUnlearnError
            As an ordinary training; or no site has people enough.
        """
        options = train_options.check(request, OPTIONS)
        if options["meta_train_now"]:
            return super().__call__(request, datastore)
        plan, lines = self.plan(options)
        by = str(request.get("client_id") or "")
        return self.record_plan({"options": options}, plan, lines, by)

    def _run(
        self, options: Mapping[str, Any], active: VersionInfo | None
    ) -> tuple[TrainingRun, str]:
        run = MetaTrainingRun(
            model=self._model.name,
            home=self._home,
            records=self._records,
            settings=self._joint(options),
            parent=active if options["from_active"] else None,
            requested_by=str(options.get("client_id", "")),
            orphan=starter_gone(),
            meta=_meta(options),
        )
        return run, str(options["joint_recipe"])

    def _joint(self, options: Mapping[str, Any]) -> TrainSettings:
        chosen, epochs = recipe(str(options["joint_recipe"])).settings, options["joint_epochs"]
        settings = replace(chosen, seed=options["seed"], device=self._options.device)
        return replace(settings, epochs=epochs) if epochs else settings

    def _select(
        self,
        run: TrainingRun,
        active: VersionInfo | None,
        recipe_name: str,
        datastore: StudiesDatastore,
    ) -> tuple[Sequence[Case], ModelConfig]:
        cases, config = super()._select(run, active, recipe_name, datastore)
        sited = self._sited(cases, datastore)
        if isinstance(run, MetaTrainingRun):
            check_sites(sited, run.settings, run.meta)
        return sited, config

    def _sited(self, cases: Sequence[Case], studies: StudiesDatastore) -> list[Case]:
        return with_sites(cases, header_of(studies), Aliases.read(self._home.sites))


def _meta(options: Mapping[str, Any]) -> MetaSettings:
    return meta_settings(**{o.setting: options[k] for k, o in OPTIONS.items() if o.setting})
