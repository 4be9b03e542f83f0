"""The task behind ``/train/unlearn``: a plan by default, an unlearning when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, cast, get_args

from segunlearn.app.child import starter_gone
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.studies_task import (
    LOCK_SECONDS,
    StudiesTask,
    labelled_cases,
)
from segunlearn.app.train_options import Option
from segunlearn.app.unlearn_check import check
from segunlearn.app.unlearn_choice import asked_for
from segunlearn.app.unlearn_order import REPLAYED, Retain, UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.cases import Case
from segunlearn.errors import CancelledError, SegUnlearnError
from segunlearn.records.forget_states import LEVELS
from segunlearn.records.runs import RunRecord
from segunlearn.unlearning import METHODS

logger = logging.getLogger(__name__)

#: Name of the trainer.
UNLEARN: Final = "unlearn"
#: Kinds of its runs: a plan changes nothing.
KINDS: Final = ("unlearn", "plan")
_AUTO: Final = "auto"

#: Options by name; stock clients send them as texts, and those of other trainers along.
OPTIONS: Final[dict[str, Option]] = {
    "dry_run": Option("", True),
    "requests": Option("", ""),
    "level": Option("", _AUTO, choices=(_AUTO, *LEVELS[1:])),
    "method": Option("", _AUTO, choices=(_AUTO, *METHODS)),
    "retain": Option("", "stored", choices=get_args(Retain)),
    "replayed": Option("", REPLAYED, 2, 100_000),
    "quick": Option("", False),
    "references": Option("", 0, 0, 20),
    "seed": Option("", 0, 0, 2**31 - 1),
    "restore": Option("", ""),
    "why": Option("", ""),
    "expected": Option("", ""),
}


class UnlearnTask(StudiesTask):
    """Take approved forget requests out of the served model; see ``StudiesTask``."""

    about = (
        "Take studies with an approved forget request out of the model. A dry run, which only "
        "plans, unless dry_run is switched off"
    )
    offers = OPTIONS
    kind = UNLEARN

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked options of a request, fit for JSON.

        Raises
        ------
        InvalidInputError
            A value is wrong.
        NotFoundError
            There is no such request.
        ConflictError
            Nothing is approved, a named request is in another state, or others than ``expected``
            would be treated.
        """
        checked = super().check(request)
        order = self.order(checked)
        if checked["restore"]:
            client = str(checked.get("client_id", ""))
            undo = Undo(self._home, self._records, self._model.name, client)
            undo.would_restore(str(checked["restore"]))
        else:
            asked_for(order.requests, self._records)
        if order.expected:
            self._prepared(order)
        return checked

    def newest(self) -> RunRecord | None:
        """Latest unlearning or plan: the running one, else the last; None without any."""
        runs, model = self._records.runs, self._model.name
        found = [r for kind in KINDS if (r := runs.latest(model=model, kind=kind)) is not None]
        return max(found, key=lambda r: (r.is_running, r.started), default=None)

    def __call__(self, request: Mapping[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """Plan, or unlearn, audit and publish.

        Parameters
        ----------
        request
            See ``OPTIONS``.
        datastore
            Not used: it leaves out what is marked.

        Returns
        -------
        dict
            Of a dry run ``run_id``, ``plan`` and ``lines``; else see ``UnlearnRun.execute``.

        Raises
        ------
        ConflictError
            A training or another unlearning of this model runs, or nothing is approved.
        CancelledError
            A person stopped it; the old version serves on.
        InvalidInputError
            An option is wrong, or the sets or the network do not allow it.
        """
        options = super().check(request)  # what may have changed since is looked at under the lock
        order = self.order(options)
        by = str(options.get("client_id", ""))
        if options["dry_run"]:
            return self._plan(order, by)
        run = UnlearnRun(
            order, self._home, self._records, by,
            orphan=starter_gone(), lock_seconds=LOCK_SECONDS,
        )  # fmt: skip
        try:
            cases = self._cases(run.forsaken)
            return run.execute(cases)
        except SegUnlearnError as error:
            if not run.run_id:  # what never began is told, too
                self._record("unlearn", order, by, {}, error)
            raise

    def order(self, options: Mapping[str, Any]) -> UnlearnOrder:
        """Make the order of checked options."""
        level, method = (
            "" if options[key] == _AUTO else str(options[key]) for key in ("level", "method")
        )
        return UnlearnOrder(
            self._model.name,
            requests=_ids(options["requests"]),
            level=level,
            method=method,
            retain=cast(Retain, options["retain"]),
            replayed=options["replayed"],
            quick=options["quick"],
            references=options["references"],
            seed=options["seed"],
            device=self._options.device,
            restore=str(options["restore"]),
            why=str(options["why"]),
            expected=_ids(options["expected"]),
        )

    def plan(self, order: UnlearnOrder) -> tuple[dict[str, Any], list[str]]:
        """Plan an order: as JSON and as lines for people. Nothing is changed or downloaded.

        Raises
        ------
        SegUnlearnError
            See ``UnlearnRun.prepare`` and ``unlearn_check.check``.
        """
        run = self._prepared(order)
        if order.method:
            check(order, run.choice)
        plan = plan_of(run.choice, self._records, order, run.left_in_others())
        return plan.to_json(), plan.lines()

    def _prepared(self, order: UnlearnOrder) -> UnlearnRun:
        run = UnlearnRun(order, self._home, self._records)
        run.prepare(labelled_cases(self._every_study()))
        return run

    def _plan(self, order: UnlearnOrder, by: str) -> dict[str, Any]:
        try:
            plan, lines = self.plan(order)
        except SegUnlearnError as error:
            self._record("plan", order, by, {}, error)
            raise
        run_id = self._record("plan", order, by, {"plan": plan, "lines": lines})
        for line in lines:  # the platform shows the last lines of the task
            logger.info("%s", line)
        return {"dry_run": True, "run_id": run_id, "plan": plan, "lines": lines}

    def _record(
        self,
        kind: str,
        order: UnlearnOrder,
        by: str,
        found: Mapping[str, Any],
        error: SegUnlearnError | None = None,
    ) -> str:
        """Record a plan, or what did not begin, as a run that has ended."""
        runs = self._records.runs
        asked = {"method": order.method, "level": order.level, "requests": list(order.requests)}
        asked |= {"restore": order.restore} if order.restore else {}
        run_id = runs.start(kind, order.model, {**asked, **found}, requested_by=by)
        if error is None:
            runs.finish(run_id, "done", "a plan; nothing was changed")
        elif isinstance(error, CancelledError):
            runs.finish(run_id, "cancelled", str(error)[:1900])
        else:
            runs.finish(run_id, "refused", str(error)[:1900])
        return run_id

    def _cases(self, forsaken: Callable[[], bool]) -> list[Case]:
        """Every labelled case with its files, those marked for forgetting too."""

        def fetched(done: int, total: int) -> None:
            if forsaken():
                raise CancelledError("the server is gone; the unlearning did not begin.")

        if self._model.registry.active() is None:
            return []  # no version knows anything: nothing is unlearned
        labels = self._model.version().config["labels"]
        values = {name: i + 1 for i, name in enumerate(labels)}
        found = self._every_study().trainable(values=values, progress=fetched)
        for reason in found.skipped.values():
            logger.warning("a labelled image is left out: %s", reason)
        return list(found.cases)


def _ids(text: Any) -> tuple[str, ...]:
    parts = (part.strip() for part in str(text).split(","))
    return tuple(dict.fromkeys(part for part in parts if part))
