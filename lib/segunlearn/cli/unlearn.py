"""``segunlearn unlearn``, ``restore`` and ``purge``: the life of an approved forget request."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from segunlearn.cases import cases_from_folder
from segunlearn.cli.audit import LevelName
from segunlearn.cli.common import (
    DEFAULT,
    DeviceOption,
    HomeOption,
    JsonOption,
    ModalityOption,
    ModelOption,
    PeopleOption,
    RegexOption,
    StoreOption,
    cases_of_studies,
    home_of,
    modality_of,
    people_of,
    print_json,
    progress_bar,
    stop_on_interrupt,
    version_of,
)
from segunlearn.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:  # they load torch
    from segunlearn.app.options import Home
    from segunlearn.app.unlearn_undo import Undo
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
    """Whether a method may read the retain set."""

    STORED = "stored"
    NONE = "none"


def unlearn(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with images/ and labels/, as for 'segunlearn train'."),
    ] = None,
    studies: Annotated[
        str, typer.Option(help="Instead of --data: DICOMweb URL or folder, as for 'serve'.")
    ] = "",
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    request: Annotated[
        list[str] | None,
        typer.Option(help="Forget request; may be repeated. By default every approved one."),
    ] = None,
    level: Annotated[
        LevelName | None,
        typer.Option(
            help="Assurance level to reach; by default what the requests need. A lower one is "
            "served meanwhile, and fulfils nothing."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="How; by default that of the level. The plan shows the ways.")
    ] = "",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method; may be repeated."),
    ] = None,
    retain: Annotated[
        RetainName, typer.Option(help="none: the method may not read the retain set.")
    ] = RetainName.STORED,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and shorter attacks in the audit.")
    ] = False,
    with_reference: Annotated[
        bool, typer.Option("--with-reference", help="Audit against full references; takes longer.")
    ] = False,
    references: Annotated[int, typer.Option(min=1, max=20, help="How many full references.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice but the key.")] = 0,
    run: Annotated[
        bool, typer.Option("--run", help="Do it: unlearn, audit, and publish what passes.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it would take; also without --run.")
    ] = False,
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Take approved forget requests out of the served model; a dry run unless --run is given.

    With --run a candidate is made and audited. If it passes it is served, and the old version is
    sealed; if not, nothing changes for users. Exit code 3: the audit did not pass.
    """
    from segunlearn.app.records import Records
    from segunlearn.app.unlearn_check import check
    from segunlearn.app.unlearn_order import UnlearnOrder
    from segunlearn.app.unlearn_plan import plan_of
    from segunlearn.app.unlearn_run import UnlearnRun

    if run and plan:
        raise InvalidInputError("--plan changes nothing and --run does it: give one of them.")
    place = home_of(home)
    _check_store(place, store)
    order = UnlearnOrder(
        model,
        requests=tuple(request or ()),
        level=level.value if level else "",
        method=method,
        settings=_settings_of(method, setting or ()),
        retain=retain.value,
        quick=quick,
        references=references if with_reference else 0,
        seed=seed,
        device=device,
    )
    records = Records(place, store)
    work = UnlearnRun(order, place, records, _actor())
    if data is not None and not studies:
        rule = people_of(people, person_regex)
        cases = cases_from_folder(data, rule, modality=modality_of(modality))
    elif studies and data is None:
        info = version_of(place, model, None)
        cases = list(cases_of_studies(studies, place, model, info, people, person_regex))
    else:
        raise InvalidInputError("give either --data or --studies: where the labelled cases lie.")
    choice = work.prepare(cases)
    if run or method:  # again under the lock; here a mistake is told before there is a bar
        check(order, choice)
    if not run:
        found = plan_of(choice, records, order)
        if as_json:
            print_json({**found.to_json(), "dry_run": True})
            return
        for line in found.lines():
            typer.echo(line)
        typer.echo("nothing was changed; add --run")
        return
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
    home: HomeOption = DEFAULT,
    model: ModelOption = "segmentation",
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Bring back the version that knew what was forgotten, from its sealed deposit.

    Requests that were unlearned together come back together; their studies may be trained on again.
    """
    found = _undo(home, model, store).restore(request, why)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['version']} is in service again, with the bytes it had.")
    typer.echo(f"restored: {', '.join(found['requests'])}")
    if found["lost"]:
        typer.echo(f"made since, and not served any more: {', '.join(found['lost'])}")


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

    Without --yes it says what would be destroyed. Exit code 2: nothing was changed.
    """
    undo = _undo(home, model, store)
    if not yes:
        for line in _would_be_destroyed(undo, request):
            typer.echo(line, err=True)
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
    from segunlearn.app.records import Records
    from segunlearn.app.unlearn_undo import Undo

    place = home_of(home)
    _check_store(place, store)
    return Undo(place, Records(place, store), model, _actor())


def _would_be_destroyed(undo: Undo, request_id: str) -> list[str]:
    request = undo.records.forget_set.get(request_id)
    versions, together = undo.would_destroy(request)
    lines = [
        f"forget request {request_id} is {request.state}, reached {request.reached}.",
        f"would be destroyed: its key, {', '.join(versions) or 'no version'}, "
        "checkpoints, measures of audits, and cached images of the home.",
    ]
    if together:
        lines.append(f"would lose their way back, too: {', '.join(together)}.")
    return [*lines, "this is final: nobody can restore it. Nothing was changed; add --yes."]


def _check_store(place: Home, store: str) -> None:
    if not place.database.is_file() and not store:
        raise InvalidInputError(f"{place.root}: no store is here. Name the home of the server.")


def _settings_of(method: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings of a method from NAME=VALUE, each of its field's type.

    Raises
    ------
    NotFoundError
        There is no such method.
    InvalidInputError
        A setting is unknown, or its value has the wrong type.
    """
    from segunlearn.unlearning import METHODS

    if not pairs:
        return {}
    if not method:
        raise InvalidInputError("--set is about a method; name it by --method.")
    if method not in METHODS:
        raise NotFoundError(
            f"there is no unlearning method {method!r:.60}; there are {', '.join(METHODS)}."
        )
    fields = {
        name: field
        for name, field in METHODS[method].settings.__dataclass_fields__.items()
        if name != "key"
    }
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or name not in fields:
            raise InvalidInputError(
                f"--set {pair!r:.60}: write NAME=VALUE; {method} has {', '.join(sorted(fields))}."
            )
        found[name] = _typed(pair, text, fields[name].default)
    return found


def _typed(pair: str, text: str, example: Any) -> Any:
    """Read a text as the type of a setting's default."""
    if isinstance(example, bool):
        if text.lower() not in ("true", "false"):
            raise InvalidInputError(f"--set {pair!r:.60}: must be true or false.")
        return text.lower() == "true"
    if isinstance(example, tuple):
        return (
            tuple(_typed(pair, t.strip(), example[0]) for t in text.split(",")) if example else ()
        )
    if example is None:
        raise InvalidInputError(f"--set {pair!r:.60}: this setting cannot be given as text.")
    try:
        return type(example)(text)
    except (TypeError, ValueError) as error:
        kind = {int: "whole number", float: "number"}.get(type(example), type(example).__name__)
        raise InvalidInputError(f"--set {pair!r:.60}: must be a {kind}.") from error


def _phase(progress: Progress) -> str:
    figures = (f"{name} {value:.3g}" for name, value in progress.metrics.items())
    return " ".join([progress.phase, *figures])[:60]


def _print_result(result: Mapping[str, Any], report: str | None) -> None:
    said = {
        "published": f"{result['version']} is in service; what it replaced is sealed.",
        "hidden": f"{result['version']} is in service meanwhile; the requests are not fulfilled.",
        "refused": "the audit did not pass: nothing changed for users.",
        "not needed": "no model in service was taught by it: there was nothing to unlearn.",
    }
    typer.echo(f"{result['outcome']}: {said[result['outcome']]}")
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
    if report:
        typer.echo(f"report: {report}")


def _actor() -> str:
    return f"{getpass.getuser()} (command line)"
