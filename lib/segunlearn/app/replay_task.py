"""The task behind ``/train/replay``: a plan by default, a generator when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from segunlearn.app import train_options
from segunlearn.app.child import starter_gone
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.from_active import keep_out
from segunlearn.app.generator_store import Generators, knows
from segunlearn.app.locks import training_lock
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.replay_run import REPLAY, ReplayRun
from segunlearn.app.studies_task import (
    LOCK_SECONDS,
    StudiesTask,
    labelled_cases,
)
from segunlearn.app.train_options import Option
from segunlearn.cases import Case, number_of
from segunlearn.errors import CancelledError, InvalidInputError
from segunlearn.records.runs import Progress
from segunlearn.replay.training import GeneratorSettings

logger = logging.getLogger(__name__)

_DEFAULTS: Final = GeneratorSettings()

#: Options by name; none that decides anything is shared with another trainer.
OPTIONS: Final[dict[str, Option]] = {
    "replay_now": Option("", False),
    "replay_steps": Option("steps", _DEFAULTS.steps, 1, 1_000_000),
    "replay_batch": Option("batch_size", _DEFAULTS.batch_size, 1, 1024),
    "replay_latent": Option("", 64, 1, 4096),
    "seed": Option("seed", 0, 0, 2**31 - 1),
}


class ReplayTask(StudiesTask):
    """Train a generator whose images stand for stored patients; see ``StudiesTask``."""

    about = (
        "Train a generator of images like the site's, so that unlearning can keep what the model "
        "does without stored patients. Only says what it would do, unless replay_now is switched on"
    )
    offers = OPTIONS
    kind = REPLAY

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked options of a request, fit for JSON.

        Raises
        ------
        InvalidInputError
            A value is wrong, or there are too few people: told before a process is started.
        ConflictError
            Nothing was trained yet, so that nobody knows what a patch is.
        """
        checked = super().check(request)
        self.plan()
        return checked

    def plan(self) -> tuple[dict[str, Any], list[str]]:
        """Say what would be done: as JSON and as lines. Nothing is fetched or changed.

        Raises
        ------
        InvalidInputError
            There are too few people.
        ConflictError
            Nothing was trained yet.
        """
        version = self._model.version()
        cases = labelled_cases(self._every_study())
        free, told = self._records.without_forgotten(cases), list[str]()
        kept, held_out = keep_out(free, version, self._records.pseudonyms, told.append)
        people = len({number_of(c.person) for c in kept})
        if people < 2:
            raise InvalidInputError(
                f"{people} people are labelled, not marked for forgetting and not kept out to "
                "judge the model: a generator of one person would be that person. Annotate studies "
                "of more."
            )
        plan = {"studies": len(kept), "people": people, "marked": len(cases) - len(free),
                "held_out": held_out, "version": version.version}  # fmt: skip
        lines = [
            f"{len(kept)} labelled studies of {people} people train a generator of patches for "
            f"{version.version}"
            + (f"; left out: {plan['marked']} marked for forgetting" if plan["marked"] else ""),
            *told,
            "it takes the place of earlier generators, whose weights are destroyed",
        ]
        return plan, lines

    def __call__(self, request: Mapping[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """Plan, or train a generator and put it in use; as ``segunlearn replay train``.

        Parameters
        ----------
        request
            See ``OPTIONS``.
        datastore
            The studies, without those that are marked.

        Returns
        -------
        dict
            Of a plan ``planned``, ``run_id``, ``plan`` and ``lines``; else ``run_id``,
            ``generator``, ``sha256``, ``memory`` and the number of ``studies``.

        Raises
        ------
        SegUnlearnError
            See ``GeneratorRun.execute``.
        """
        options = train_options.check(request, OPTIONS)
        by = str(request.get("client_id") or "")
        if not options["replay_now"]:
            return self.record_plan({"options": options}, *self.plan(), by)
        base = self._model.version()
        settings = replace(
            _DEFAULTS, **{o.setting: options[k] for k, o in OPTIONS.items() if o.setting}
        )
        gone = starter_gone()
        run = ReplayRun(
            base, self._model.name, self._home, self._records, by, self._options.device,
            orphan=gone, settings=settings, shape={"latent": options["replay_latent"]},
        )  # fmt: skip
        with training_lock(self._home, self._model.name, "server", LOCK_SECONDS, gone):
            info = run.execute(lambda: self._select(run, datastore))
        return {
            "run_id": run.run_id, "generator": info.version, "sha256": info.sha256,
            "memory": info.details["memory"], "studies": len(run.cases),
        }  # fmt: skip

    def _select(self, run: ReplayRun, datastore: StudiesDatastore) -> list[Case]:
        def fetched(done: int, total: int) -> None:
            run.tell(Progress("fetch", done, total, {}))
            if run.should_stop():
                raise CancelledError("the training was stopped while it fetched images.")

        values = {name: i + 1 for i, name in enumerate(run.base.config["labels"])}
        selection = datastore.trainable(values=values, progress=fetched)
        for reason in selection.skipped.values():
            logger.warning("an image is left out: %s", reason)
        return keep_out(selection.cases, run.base, self._records.pseudonyms, logger.info)[0]


def to_fit_again(home: Home, model: str, records: Records) -> dict[str, Any] | None:
    """Request that trains the generator again with its options, where it knows a marked study.

    A generator that has forgotten a feature is left alone: trained again it would show it.

    Returns
    -------
    dict or None
        None where there is none, or it knows nothing that is marked.
    """
    info = Generators(home, model).newest()
    if info is None or not knows(info, records.forget_set.live_targets(), records.pseudonyms):
        return None
    if info.details.get("feature"):
        logger.warning(
            "the generator %s knows what was marked, and replays no more. It has forgotten a "
            "feature: train it again (segunlearn replay train) and take the feature out again",
            info.version,
        )
        return None
    made = records.runs.get(info.run_id).parameters
    settings, shape = made.get("settings", {}), made.get("shape", {})
    return {
        "model": REPLAY, "replay_now": True, "replay_steps": settings.get("steps"),
        "replay_batch": settings.get("batch_size"), "replay_latent": shape.get("latent"),
        "seed": settings.get("seed"),
    }  # fmt: skip
