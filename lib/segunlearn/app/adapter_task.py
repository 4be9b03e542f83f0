"""The task behind ``/train/site_adapt``: a plan by default, an adapter when it is asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, get_args

from segunlearn.adaptation import AdaptSettings, read_meta_model
from segunlearn.adaptation.adapt import READS, AdaptMethod
from segunlearn.app import train_options
from segunlearn.app.adapter_run import SITE_ADAPT, AdaptRun
from segunlearn.app.adapter_store import AdapterInfo, SiteAdapters
from segunlearn.app.adapter_support import (
    BEST,
    DEFAULTS,
    WIDTHS,
    AdaptOrder,
    Support,
    methods_of,
)
from segunlearn.app.checkpoints import MARKED, SEALED
from segunlearn.app.child import starter_gone
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.models import ActiveModel
from segunlearn.app.records import Records
from segunlearn.app.studies_task import (
    LOCK_SECONDS,
    StudiesTask,
    header_of,
    labelled_cases,
)
from segunlearn.app.train_options import Option
from segunlearn.cases import Case
from segunlearn.errors import (
    CancelledError,
    ConflictError,
    LabelError,
    SegUnlearnError,
    UnavailableError,
)
from segunlearn.records.runs import Progress
from segunlearn.records.version_info import VersionInfo

logger = logging.getLogger(__name__)

_AUTO: Final = "auto"
_INNER: Final = ("decoder", "head", "all")

#: Options by name. Stock clients send those of other trainers along, so no name that decides
#: anything is shared: a ``dry_run`` that was switched off for an unlearning adapts nothing.
OPTIONS: Final[dict[str, Option]] = {
    "adapt_now": Option("", False),
    "site": Option("", _AUTO),
    "support": Option("", ""),
    "most": Option("", 5, 1, 50),
    "width": Option("", _AUTO, choices=(_AUTO, *WIDTHS)),
    "adapt_method": Option("", _AUTO, choices=(_AUTO, BEST, *get_args(AdaptMethod))),
    "adapt_steps": Option("steps", DEFAULTS["steps"], 0, 200),
    "adapt_rate": Option("learning_rate", 0.0, 0.0, 10.0),
    "inner_set": Option("inner_set", DEFAULTS["inner_set"], choices=_INNER),
    "seed": Option("seed", 0, 0, 2**31 - 1),
    "confirm_one": Option("", False),
    "refit": Option("", "no", choices=("no", "forgotten", "all")),
}


class SiteAdaptTask(StudiesTask):
    """Adapt the served model to one site, from a few of its studies; see ``StudiesTask``."""

    about = (
        "Adapt the served model to one site, from a few of its labelled studies. Only says "
        "what it would do, unless adapt_now is switched on"
    )
    offers = OPTIONS
    kind = SITE_ADAPT

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked options of a request, fit for JSON.

        Raises
        ------
        SegUnlearnError
            A value is wrong, or the support cannot be used: told before a process is started.
        """
        checked = super().check(request)
        if checked["refit"] == "no":
            studies = self._every_study()
            self._run(self.order(checked)).prepare(labelled_cases(studies), header_of(studies))
        return checked

    def order(self, options: Mapping[str, Any]) -> AdaptOrder:
        """Make the order of checked options."""
        settings = {o.setting: options[k] for k, o in OPTIONS.items() if o.setting}
        settings["learning_rate"] = settings["learning_rate"] or None
        return AdaptOrder(
            self._model.name,
            site=options["site"],
            support=tuple(t.strip() for t in options["support"].split(",") if t.strip()),
            most=options["most"],
            width="" if options["width"] == _AUTO else options["width"],
            method="" if options["adapt_method"] == _AUTO else options["adapt_method"],
            settings=settings,
            confirm_one=options["confirm_one"],
            device=self._options.device,
        )

    def __call__(self, request: Mapping[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """Plan, adapt, or adapt again what forgetting took.

        Parameters
        ----------
        request
            See ``OPTIONS``.
        datastore
            Not used: it leaves out what is marked, and how many these are is told.

        Returns
        -------
        dict
            Of a plan, also of a refit, ``plan`` and ``lines``; of a refit ``sites``, one result
            each, see ``refit``; else see
            ``AdaptRun.execute``.

        Raises
        ------
        SegUnlearnError
            See ``AdaptRun.execute``.
        """
        options = train_options.check(request, OPTIONS)
        by, studies = str(request.get("client_id") or ""), self._every_study()
        order = self.order(options)
        if options["refit"] != "no":
            return self._refit(order, by, studies, options)
        if not options["adapt_now"]:
            return self._plan(order, by, studies)
        return self._adapt(self._run(order, by), studies)

    def _run(self, order: AdaptOrder, by: str = "") -> AdaptRun:
        return AdaptRun(
            order, self._home, self._records, by,
            orphan=starter_gone(), lock_seconds=LOCK_SECONDS,
        )  # fmt: skip

    def _adapt(self, run: AdaptRun, studies: StudiesDatastore) -> dict[str, Any]:
        return run.execute(
            labelled_cases(studies), header_of(studies), fetching(studies, self._model, run)
        )

    def _plan(self, order: AdaptOrder, by: str, studies: StudiesDatastore) -> dict[str, Any]:
        _, support, tried = self._run(order).prepare(labelled_cases(studies), header_of(studies))
        lines = plan_of(support, tried, self._model.adapters)
        plan = {"site": support.site, "width": support.width, "studies": len(support.cases),
                "people": support.people, "method": methods_of(tried)}  # fmt: skip
        return self.record_plan(order.to_json(), plan, lines, by)

    def _refit(
        self, order: AdaptOrder, by: str, studies: StudiesDatastore, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        def adapt(order: AdaptOrder) -> dict[str, Any]:
            return self._adapt(self._run(order, by), studies)

        served, adapters = self._model.version(), self._model.adapters
        taken = to_refit(adapters, served, outdated=options["refit"] == "all")
        if not options["adapt_now"]:
            lines = [f"site {i.site}: {i.name} {i.why or i.misfit(served)}" for i in taken]
            lines.append(f"{len(taken)} sites would be adapted again")
            plan = {"refit": options["refit"], "sites": [i.site for i in taken]}
            return self.record_plan(order.to_json(), plan, lines, by)
        again = [refit(i, served, self._records, studies, order, adapt) for i in taken]
        return {"sites": again}


def to_refit(adapters: SiteAdapters, served: VersionInfo, *, outdated: bool) -> list[AdapterInfo]:
    """Find the adapter of each site that forgetting took out of service.

    A site that a person rolled back to the base is left alone; so is one with a damaged record.

    Parameters
    ----------
    adapters
        Of the model.
    served
        The version that is.
    outdated
        Also those that could not be made again, and those in service that do not fit what is
        served, and so serve nobody.
    """
    found = []
    for taken, now in adapters.each(lambda site: (adapters.taken(site), adapters.current(site))):
        why = taken.why if taken is not None else ""
        tried = outdated and why.startswith((MARKED, SEALED))
        if taken is not None and (tried or why in (MARKED, SEALED)):
            found.append(taken)
        elif outdated and now is not None and not now.fits(served):
            found.append(now)
    return found


def refit(
    info: AdapterInfo,
    served: VersionInfo,
    records: Records,
    studies: StudiesDatastore,
    order: AdaptOrder,
    adapt: Callable[[AdaptOrder], dict[str, Any]],
) -> dict[str, Any]:
    """Adapt a site again as it was, without what is marked now; a failure is told, not raised.

    What passes (a training under way, another mark meanwhile, an archive that does not answer) is
    tried again at the next change of a request. Anything else is noted, and only ``outdated`` of
    ``to_refit`` finds the site again.

    Parameters
    ----------
    info
        The adapter that was taken, or does not fit what is served.
    served
        The version that is: where it has not the adapter's method, one is chosen anew.
    records
        The ledger knows its support.
    studies
        Tell which of these have a finished label still; the others are left out.
    order
        Device, confirmation, and a method where it shall be another one.
    adapt
        Does it.

    Returns
    -------
    dict
        ``site``, ``replaces``, ``unlabelled``: how many studies have no finished label any more,
        and what ``adapt`` gives; else ``outcome`` (``"not made again"``) and ``why``, which names
        studies by their pseudonyms.

    Raises
    ------
    CancelledError
        A person stopped it.
    """
    told = {"site": info.site, "replaces": info.name, "unlabelled": 0}
    rows: list[Case] = []
    try:
        cases = records.ledger.cases_of(info.run_id)
        rows = [Case(c.series, c.study, c.person, info.path) for c in cases]
        labelled = {c.series for c in labelled_cases(studies)}
        kept = records.without_forgotten(rows)
        support = tuple(c.series for c in kept if c.series in labelled)
        told["unlabelled"] = len(kept) - len(support)
        if not support:
            raise LabelError(
                "no study of its support is left that is labelled and not marked: the base serves."
            )
        result = adapt(_as_before(info, served, order, support))
    except CancelledError:
        raise
    except SegUnlearnError as error:
        why = _without_ids(str(error), rows, records)
        logger.warning("site adapter %s is not made again: %s", info.name, why)
        result = {"outcome": "not made again", "why": why}
        if isinstance(error, ConflictError | UnavailableError):
            return {**told, **result}
    why = ""
    if result["outcome"] == "adopted" and result["site"] != info.site:  # their names were joined
        why = f"made again as {result['adapter']}"
    elif result["outcome"] != "adopted" and info.state == "retired":  # or each mark would try again
        why = f"{info.why.split('; not made again')[0]}; not made again: {result['why']}"
    if why:
        SiteAdapters(info.path.parents[1]).retire([info], why[:1000])
    return {**told, **result}


def _as_before(
    info: AdapterInfo, served: VersionInfo, order: AdaptOrder, support: tuple[str, ...]
) -> AdaptOrder:
    """Order what an adapter was; another method takes the settings of its own."""
    about, meta = info.about, read_meta_model(served)
    there = ("fine_tune", *(meta.methods if meta else ()))
    method = order.method or (about["method"] if about["method"] in there else "")
    settings = {"steps": DEFAULTS["steps"], "seed": about["seed"]}
    if method == about["method"]:  # older records also tell what the method did not read
        settings = {k: about[k] for k in (*READS[method], "seed")}
    return replace(
        order, site=info.site, support=support, width=about["width"], method=method,
        settings=settings,
    )  # fmt: skip


def _without_ids(text: str, cases: Sequence[Case], records: Records) -> str:
    """Put pseudonyms in the place of series and studies: the id of a file may be a name."""
    names = {i for c in cases for i in (c.series, c.study)}
    for name in sorted(names, key=len, reverse=True):  # a series' UID may begin with its study's
        pseudonym = records.pseudonyms.of(name)
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", pseudonym, text)
    return text


def fetching(
    studies: StudiesDatastore, model: ActiveModel, run: AdaptRun
) -> Callable[[Sequence[Case]], Sequence[Case]]:
    """Make the function that gives cases their files.

    It raises a ``LabelError`` where an image or label cannot be read, and a ``ConflictError`` where
    one was marked or its label went meanwhile: a support that is smaller than it was told is
    another support.
    """

    def fetch(cases: Sequence[Case]) -> Sequence[Case]:
        def fetched(done: int, total: int) -> None:
            run.tell(Progress("fetch", done, total, {}))
            if run.should_stop():
                raise CancelledError("the adapting was stopped while it fetched images.")

        labels = model.version().config["labels"]
        values = {name: i + 1 for i, name in enumerate(labels)}
        wanted = [c.series for c in cases]
        found = studies.trainable(values=values, progress=fetched, only=wanted)
        if found.skipped:
            why = next(iter(found.skipped.values()))
            raise LabelError(f"{len(found.skipped)} studies of the support cannot be read: {why}")
        gone = len(set(wanted)) - len(found.cases)
        if gone:
            raise ConflictError(
                f"{gone} studies of the support have no finished label any more, or were marked "
                "for forgetting, since the adapting began, so nothing is changed. Start it again."
            )
        order = {series: number for number, series in enumerate(wanted)}
        return [
            replace(c, person=cases[order[c.series]].person)
            for c in sorted(found.cases, key=lambda c: order[c.series])
        ]

    return fetch


def plan_of(support: Support, tried: Sequence[AdaptSettings], adapters: SiteAdapters) -> list[str]:
    """Say in lines what an adaptation would do."""
    now = adapters.current(support.site)
    steps = 0 if tried[0].method == "generator" else tried[0].steps
    method = methods_of(tried if support.people > 1 else tried[:1])
    held_out = (
        "each person is held out once; where Dice falls, the base stays"
        if support.people > 1
        else "one person: nobody can be held out, and it is adopted on your confirmation"
    )
    left_out = [
        f"{count} {why}"
        for count, why in ((support.marked, "marked for forgetting"), (support.others, "more"))
        if count
    ]
    return [
        f"site {support.site} (key of its {support.width}): {len(support.cases)} studies of "
        f"{support.people} people" + (f"; left out: {', '.join(left_out)}" if left_out else ""),
        f"method {method}, {steps} steps; {held_out}",
        f"in service now: {now.name if now else 'the base'}",
    ]
