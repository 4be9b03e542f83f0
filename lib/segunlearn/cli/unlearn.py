"""``segunlearn unlearn``, ``restore`` and ``purge``: the life of an approved forget request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from segunlearn.cli.audit import LevelName
from segunlearn.cli.common import (
    DEFAULT,
    MOST_SEED,
    DeviceOption,
    HomeOption,
    JsonOption,
    LabelledOption,
    ModalityOption,
    ModelOption,
    PeopleOption,
    ReferencesOption,
    RegexOption,
    StoreOption,
    StudiesOption,
    actor,
    home_of,
    labelled_cases,
    print_json,
    progress_bar,
    records_of,
    references_of,
    stop_on_interrupt,
    warn,
)
from segunlearn.cli.method_settings import settings_of
from segunlearn.errors import InvalidInputError

if TYPE_CHECKING:  # they load torch
    from segunlearn.app.options import Home
    from segunlearn.app.records import Records
    from segunlearn.app.unlearn_order import UnlearnOrder
    from segunlearn.app.unlearn_restore import Restore
    from segunlearn.app.unlearn_undo import Undo
    from segunlearn.cases import Case
    from segunlearn.records.runs import Progress

#: What a level means, wherever it is printed.
LEVEL_WORDS: Final[Mapping[str, str]] = {
    "none": "none: nothing was shown",
    "hidden": "hidden: the outputs no longer show it; whoever has the weights can bring it back, "
    "so this is never called erasure",
    "unlearned": "unlearned: the attacks of the audit find no more of it than in a model that "
    "never saw it",
    "retrained": "retrained: the ledger shows a training without it",
}

RequestArgument = Annotated[str, typer.Argument(help="Id of the forget request, 32 digits.")]
WhyOption = Annotated[str, typer.Option(help="Text for the history of the request.")]


class RetainName(StrEnum):
    """What stands for the retain set."""

    STORED = "stored"
    REPLAY = "replay"
    NONE = "none"


MethodOption = Annotated[
    str, typer.Option(help="How; by default that of the level. The plan shows the ways.")
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method; may be repeated."),
]
RetainOption = Annotated[
    RetainName,
    typer.Option(
        help="replay: images of the model's generator stand for the retain set; none: the method "
        "may not read it."
    ),
]
ReplayedOption = Annotated[
    int, typer.Option(min=2, help="How many images are replayed with --retain replay.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Fewer and shorter attacks in the audit.")
]
WithReferenceOption = Annotated[
    bool, typer.Option("--with-reference", help="Audit against full references; takes longer.")
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=MOST_SEED, help="Of every random choice but the key.")
]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Only say what it would take; also without --run.")
]


def unlearn(
    data: LabelledOption = None,
    studies: StudiesOption = "",
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    request: Annotated[
        list[str] | None,
        typer.Option(
            help="Forget request; may be repeated. By default all that wait: approved, or in work."
        ),
    ] = None,
    level: Annotated[
        LevelName | None,
        typer.Option(
            help="Assurance level to reach; by default what the requests need. A lower one is "
            "served meanwhile, and fulfils nothing."
        ),
    ] = None,
    method: MethodOption = "",
    setting: SettingOption = None,
    retain: RetainOption = RetainName.STORED,
    replayed: ReplayedOption = 96,
    quick: QuickOption = False,
    with_reference: WithReferenceOption = False,
    references: ReferencesOption = None,
    seed: SeedOption = 0,
    run: Annotated[
        bool, typer.Option("--run", help="Do it: unlearn, audit, and publish what passes.")
    ] = False,
    plan: PlanOption = False,
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Take approved forget requests out of the served model; a dry run unless --run is given.

    With --run a candidate is made and audited. If it passes it is served, and the old version is
    sealed; if not, nothing changes for users. Exit code 3: the audit did not pass.
    """
    from segunlearn.app.unlearn_order import UnlearnOrder

    if run and plan:
        raise InvalidInputError("--plan changes nothing and --run does it: give one of them.")
    place = home_of(home)
    records = records_of(place, store)
    order = UnlearnOrder(
        model,
        requests=tuple(request or ()),
        level=level.value if level else "",
        method=method,
        settings=settings_of(method, setting or ()),
        retain=retain.value,
        replayed=replayed,
        quick=quick,
        references=references_of(with_reference, references),
        seed=seed,
        device=device,
    )
    cases = labelled_cases(data, studies, place, model, "", people, person_regex, modality)
    _plan_or_run(order, place, records, cases, run=run, as_json=as_json, how="add --run")


def _plan_or_run(
    order: UnlearnOrder,
    place: Home,
    records: Records,
    cases: Sequence[Case],
    *,
    run: bool,
    as_json: bool,
    how: str,
) -> None:
    """Print the plan of an order, or follow it; exit code 3 where the audit did not pass."""
    from segunlearn.app.unlearn_check import check
    from segunlearn.app.unlearn_plan import plan_of
    from segunlearn.app.unlearn_run import UnlearnRun

    work = UnlearnRun(order, place, records, actor())
    choice = work.prepare(cases)
    if run or order.method:  # again under the lock; here a mistake is told before there is a bar
        check(order, choice)
    left = work.left_in_others()
    if not run:
        found = plan_of(choice, records, order, left)
        if as_json:
            print_json({**found.to_json(), "dry_run": True})
            return
        for line in found.lines():
            typer.echo(line)
        typer.echo(f"nothing was changed; {how}")
        return
    warn([one.what for one in left if not one.possible])
    with stop_on_interrupt() as interrupted, progress_bar(as_json) as bar:
        work.stopped = interrupted
        work.on_progress = lambda p: bar(_phase(p), p.step, p.total)
        result = work.execute(cases)
    audit_id = result["audit_id"]
    report = str(place.audits / audit_id / "report.html") if audit_id else None
    if as_json:
        print_json({**result, "report": report})
    else:
        _print_result(result, report)
    if result["outcome"] == "refused":
        raise typer.Exit(3)


def restore(
    request: RequestArgument,
    why: WhyOption = "",
    data: LabelledOption = None,
    studies: StudiesOption = "",
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    method: MethodOption = "",
    setting: SettingOption = None,
    retain: RetainOption = RetainName.STORED,
    replayed: ReplayedOption = 96,
    quick: QuickOption = False,
    with_reference: WithReferenceOption = False,
    references: ReferencesOption = None,
    seed: SeedOption = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would take.")] = False,
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Bring back the version that knew what was forgotten, from its sealed deposit.

    Requests that were unlearned together come back together; their studies may be trained on again.
    Where that version also knows what is still forgotten, this is unlearned from it again and
    audited first: that takes --data or --studies, and the other options are about it. Exit code 3:
    the audit did not pass, and nothing was changed.
    """
    from segunlearn.app.unlearn_order import UnlearnOrder
    from segunlearn.app.unlearn_settle import settle

    full_references = references_of(with_reference, references)
    place, undo = home_of(home), _undo(home, model, store)
    if not plan:
        settle(place, undo.records, model)
    asked = undo.would_restore(request)
    if asked.again and (data is not None or studies):
        order = UnlearnOrder(
            model,
            method=method,
            settings=settings_of(method, setting or ()),
            retain=retain.value,
            replayed=replayed,
            quick=quick,
            references=full_references,
            seed=seed,
            device=device,
            restore=request,
            why=why,
        )
        cases = labelled_cases(data, studies, place, model, "", people, person_regex, modality)
        _plan_or_run(
            order, place, undo.records, cases, run=not plan, as_json=as_json, how="leave --plan out"
        )
        return
    if plan:
        _print_restore(asked, as_json)
        return
    found = undo.restore(request, why)
    if as_json:
        print_json(found)
        return
    if asked.original is None:
        typer.echo("what is in service goes on; the studies may be trained on again.")
    else:
        typer.echo(f"{found['version']} is in service again, with the bytes it had.")
    _print_restored(found["requests"], found["lost"])


def purge(
    request: RequestArgument,
    yes: Annotated[
        bool, typer.Option("--yes", help="Destroy it; without this nothing is changed.")
    ] = False,
    why: WhyOption = "",
    home: HomeOption = DEFAULT,
    model: ModelOption = "segmentation",
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Destroy key, old weights, checkpoints and caches: final, and the only state called erasure.

    Without --yes it says what would be destroyed, or why it would be refused. Exit code 2: nothing
    was changed.
    """
    undo = _undo(home, model, store)
    if not yes:
        plan = undo.would_purge(request)
        if as_json:
            print_json({**plan, "dry_run": True})
        else:
            _say_what_a_purge_takes(request, plan)
        raise typer.Exit(2)
    found = undo.purge(request, why)
    if as_json:
        print_json(found)
        return
    versions = ", ".join(found["destroyed"]) or "no version knew it"
    typer.echo(f"purged: the key of {request} and the weights of {versions} are gone for good.")
    if found["requests"]:
        typer.echo(
            "unlearned together with it, so that they cannot be restored any more: "
            f"{', '.join(found['requests'])}"
        )
    for place in found["places"]:
        typer.echo(f"still open: {place['where']} ({place['kind']}). {place['words']}")


def _undo(home: Path, model: str, store: str) -> Undo:
    from segunlearn.app.unlearn_undo import Undo

    place = home_of(home)
    return Undo(place, records_of(place, store), model, actor())


def _print_restore(asked: Restore, as_json: bool) -> None:
    """Say what a restore would do."""
    version = asked.original.version if asked.original is not None else None
    again = [r.request_id for r in asked.again]
    if as_json:
        found = {"version": version, "requests": list(asked.requests), "again": again}
        print_json({**found, "dry_run": True})
        return
    older = "older versions" if asked.replaced_by else "nothing, as nothing was sealed"
    typer.echo(f"would come back: {version or older + '; what is in service goes on'}")
    typer.echo(f"would be restored: {', '.join(asked.requests)}")
    if again:
        typer.echo(
            f"stay forgotten, so that they would be unlearned from it again and audited: "
            f"{', '.join(again)}. Give --data or --studies"
        )
    typer.echo("nothing was changed; leave --plan out")


def _print_restored(requests: Sequence[str], lost: Sequence[str]) -> None:
    typer.echo(f"restored: {', '.join(requests)}")
    if lost:
        typer.echo(f"made since, and not served any more: {', '.join(lost)}")


def _say_what_a_purge_takes(request_id: str, found: dict[str, Any]) -> None:
    lines = [
        f"would be destroyed: the key of {request_id}, "
        f"{', '.join(found['destroyed']) or 'no version'}, checkpoints, measures of audits, and "
        "cached images of the home.",
    ]
    if found["requests"]:
        lines.append(f"would lose their way back, too: {', '.join(found['requests'])}.")
    lines.append("this is final: nobody can restore it. Nothing was changed; add --yes.")
    for line in lines:
        typer.echo(line, err=True)


def _phase(progress: Progress) -> str:
    """Text beside the bar: the Dice of the sets where they are known, else every figure."""
    dice = {k.removesuffix("_dice"): v for k, v in progress.metrics.items() if k.endswith("_dice")}
    if "forget" in dice:
        return " ".join([f"{progress.phase}: Dice", *(f"{k} {v:.2f}" for k, v in dice.items())])
    figures = (f"{name} {value:.3g}" for name, value in progress.metrics.items())
    return " ".join([progress.phase, *figures])[:60]


def _print_result(result: Mapping[str, Any], report: str | None) -> None:
    said = {
        "published": f"{result['version']} is in service; what it replaced is sealed.",
        "hidden": f"{result['version']} is in service meanwhile; the requests are not fulfilled.",
        "restored": f"{result['version']} is in service: the version that was taken out, without "
        "what is still forgotten.",
        "refused": "the audit did not pass: nothing changed for users.",
        "not needed": "the version in service was not taught by it: there was nothing to unlearn.",
    }
    typer.echo(f"{result['outcome']}: {said[result['outcome']]}")
    if "restored" in result:
        _print_restored(result["restored"], result["lost"])
    verdict = result["verdict"]
    if verdict:
        typer.echo(f"reached {LEVEL_WORDS[verdict['reached']]}")
        for reason in verdict["reasons"]:
            typer.echo(f"  {reason}")
    for request_id, state in result["requests"].items():
        typer.echo(
            f"request {request_id}: {state['state']}, reached {state['reached']}, "
            f"needed {state['needed']}"
        )
        if "next" in state:
            typer.echo(f"  not fulfilled before {', '.join(state['next'])} forgets it, too")
        if "left" in state:
            typer.echo(f"  left as it is: {state['left']}")
    for other in result["others"]:
        typer.echo(other["what"])
    if report:
        typer.echo(f"report: {report}")
