"""``segunlearn adapt``: fit the served model to one site, from a few of its labelled studies."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from segunlearn.cli.common import (
    DEFAULT,
    MOST_SEED,
    DeviceOption,
    HomeOption,
    JsonOption,
    ModelOption,
    PeopleOption,
    RegexOption,
    StoreOption,
    actor,
    given,
    home_of,
    print_json,
    progress_bar,
    stop_on_interrupt,
    version_of,
)
from segunlearn.errors import InvalidInputError

if TYPE_CHECKING:  # they load torch
    from segunlearn.app.datastores import StudiesDatastore
    from segunlearn.app.options import Home


class MethodName(StrEnum):
    """How a site is adapted."""

    BEST = "best"
    GENERATOR_MAML = "generator+maml"
    MAML = "maml"
    GENERATOR = "generator"
    GENERATOR_STEPS = "generator+steps"
    FINE_TUNE = "fine_tune"


class WidthName(StrEnum):
    """How wide the key of an adapter is."""

    SCANNER = "scanner"
    INSTITUTION = "institution"
    MODEL = "model"


class InnerName(StrEnum):
    """What fine_tune changes."""

    DECODER = "decoder"
    HEAD = "head"
    ALL = "all"


#: Options about one new adapter: one that is made again is as it was.
_NOT_AGAIN: Final = (
    "site", "support", "most", "width", "steps", "rate", "inner_set", "seed", "plan"
)  # fmt: skip


def adapt(
    ctx: typer.Context,
    studies: Annotated[str, typer.Option(help="DICOMweb URL or folder, as for 'serve'.")],
    site: Annotated[
        str, typer.Option(help="Name or key of the site; auto: that of the support's headers.")
    ] = "auto",
    support: Annotated[
        list[str] | None,
        typer.Option(
            help="Series or study with a finished label; may be repeated. By default the site's."
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=50, help="Studies, where none are named.")] = 5,
    width: Annotated[
        WidthName | None,
        typer.Option(help="Width of the key; by default the narrowest that the support shares."),
    ] = None,
    method: Annotated[
        MethodName | None,
        typer.Option(
            help="By default what meta-training left, else fine_tune. best: this or fine_tune of "
            "all weights, whichever does better on the people held out."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, max=200, help="Gradient steps.")] = 5,
    rate: Annotated[
        float | None, typer.Option(help="Learning rate of fine_tune and of the generator's steps.")
    ] = None,
    inner_set: Annotated[InnerName, typer.Option(help="What fine_tune changes.")] = (
        InnerName.DECODER
    ),
    confirm_one: Annotated[
        bool,
        typer.Option("--confirm-one", help="Adopt one person's adapter: nobody can be held out."),
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would do.")] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Adapt again every site whose adapter was forgotten or is of old weights.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the patches.")] = 0,
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    model: ModelOption = "segmentation",
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Fit the served model to a site; the adapter serves if it does not harm held-out people.

    Each person of the support is held out once. Where Dice falls against the base, the base stays
    and the reason is shown (exit code 3). Studies marked for forgetting are never taken. With
    --refit each adapter is made as it was; exit code 3 says that one was not made again.
    """
    from segunlearn.app.adapter_run import AdaptRun
    from segunlearn.app.adapter_store import SiteAdapters
    from segunlearn.app.adapter_support import AdaptOrder
    from segunlearn.app.adapter_task import fetching, plan_of, to_refit
    from segunlearn.app.adapter_task import refit as fit_again
    from segunlearn.app.models import ActiveModel
    from segunlearn.app.records import Records
    from segunlearn.app.studies_task import header_of, labelled_cases
    from segunlearn.records.versions import VersionRegistry

    if refit:
        words = [option for name, option in given(ctx).items() if name in _NOT_AGAIN]
        if words:
            raise InvalidInputError(
                f"{', '.join(words)}: no meaning with --refit, which makes the adapters of all "
                "sites as they were; of these options only --method and --confirm-one go with it. "
                "Leave it out."
            )
    place = home_of(home)
    info = version_of(place, model, None)
    records = Records(place, store)
    opened = _opened(studies, place, model, info.config["labels"], people, person_regex)
    adapters = SiteAdapters(place.sites / model)
    served = ActiveModel(VersionRegistry(place.model(model)), sites=adapters.root)

    def work(order: AdaptOrder) -> AdaptRun:
        return AdaptRun(order, place, records, actor())

    def done(order: AdaptOrder) -> dict[str, Any]:
        run = work(order)
        run.prepare(labelled_cases(opened), header_of(opened))  # mistakes are told before the bar
        with stop_on_interrupt() as interrupted, progress_bar(as_json) as bar:
            run.stopped = interrupted
            run.on_progress = lambda p: bar(p.phase, p.step, p.total)
            fetch = fetching(opened, served, run)
            return run.execute(labelled_cases(opened), header_of(opened), fetch)

    order = AdaptOrder(
        model, site=site, support=tuple(support or ()), most=most,
        width=width.value if width else "", method=method.value if method else "",
        settings={"steps": steps, "inner_set": inner_set.value, "learning_rate": rate,
                  "seed": seed},
        confirm_one=confirm_one, device=device,
    )  # fmt: skip
    if refit:
        taken = to_refit(adapters, info, outdated=True)
        results = [fit_again(i, info, records, opened, order, done) for i in taken]
        if as_json:
            print_json({"sites": results})
        else:
            for result in results:
                _print_result(result)
            typer.echo(f"{len(results)} sites were to be adapted again.")
        if any(result["outcome"] != "adopted" for result in results):
            raise typer.Exit(3)
        return
    if plan:
        _, chosen, tried = work(order).prepare(labelled_cases(opened), header_of(opened))
        lines = plan_of(chosen, tried, adapters)
        if as_json:
            print_json({"site": chosen.site, "studies": len(chosen.cases), "lines": lines})
            return
        for line in [*lines, "nothing was changed"]:
            typer.echo(line)
        return
    result = done(order)
    if as_json:
        print_json(result)
    else:
        _print_result(result)
    if result["outcome"] == "base kept":
        raise typer.Exit(3)


def _opened(
    studies: str, place: Home, model: str, labels: list[str], people: Path | None, regex: str | None
) -> StudiesDatastore:
    from segunlearn.app.datastores import open_datastore
    from segunlearn.app.options import AppOptions

    values = {name: i + 1 for i, name in enumerate(labels)}
    options = AppOptions(
        home=place.root, model=model, people=str(people or ""), person_regex=regex or ""
    )
    return open_datastore(studies, options, place, label_values=lambda: values, keep=list)


def _print_result(result: Mapping[str, Any]) -> None:
    method = f", by {result['method']}" if result.get("adapter") else ""
    typer.echo(f"{result['outcome']}: site {result['site']}{method}. {result['why']}")
    if result.get("unlabelled"):
        typer.echo(f"left out: {result['unlabelled']} studies without a finished label any more")
    if result.get("adapter"):
        typer.echo(f"adapter {result['adapter']} is in service; roll back: segunlearn adapters")
