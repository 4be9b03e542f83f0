"""``segunlearn audit``: measure whether studies are really gone, read the reports, verify them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segunlearn.cli.common import (
    DEFAULT,
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
    console,
    home_of,
    labelled_cases,
    print_json,
    progress_bar,
    records_of,
    references_of,
    stop_on_interrupt,
)
from segunlearn.cli.tables import print_table
from segunlearn.errors import ForbiddenError, IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.versions import VersionRegistry

if TYPE_CHECKING:  # they load torch
    from segunlearn.app.audit_files import AuditSummary
    from segunlearn.app.options import Home

audit = typer.Typer(
    no_args_is_help=True, help="Measure whether studies are gone from a model; reports, signed."
)


class LevelName(StrEnum):
    """Assurance levels that can be asked for."""

    HIDDEN = "hidden"
    UNLEARNED = "unlearned"
    RETRAINED = "retrained"


@audit.command()
def run(
    data: LabelledOption = None,
    studies: StudiesOption = "",
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    candidate: Annotated[
        str, typer.Option(help="Version to be audited; by default the active one.")
    ] = "",
    original: Annotated[
        str,
        typer.Option(
            help="Version before; by default the candidate's parent, else the newest one that saw "
            "the studies."
        ),
    ] = "",
    request: Annotated[
        list[str] | None,
        typer.Option(
            help="Forget request; may be repeated. By default every approved one whose studies the "
            "original saw."
        ),
    ] = None,
    study: Annotated[list[str] | None, typer.Option(help="Instead: a study.")] = None,
    series: Annotated[list[str] | None, typer.Option(help="Instead: a series.")] = None,
    patient: Annotated[list[str] | None, typer.Option(help="Instead: a patient.")] = None,
    level: Annotated[
        LevelName | None, typer.Option(help="Assurance level; by default the requests'.")
    ] = None,
    attacks: Annotated[
        str,
        typer.Option(
            help="Instead of the policy's: relearning, distillation, recovery, artefacts, "
            "separated by commas."
        ),
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and shorter attacks: minutes on two cores.")
    ] = False,
    with_reference: Annotated[
        bool,
        typer.Option(
            "--with-reference",
            help="Train full references without the studies first; how long that takes is said.",
        ),
    ] = False,
    references: ReferencesOption = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Score whole volumes, not one window a study; slow.")
    ] = False,
    include_images: Annotated[
        bool,
        typer.Option(
            "--include-images",
            help="Put images of the forgotten patients into the report. Only for administrators: "
            "the owner of the home folder, or root. Everybody else is refused, and no route of the "
            "server does it.",
        ),
    ] = False,
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Audit a version; a stopped audit goes on when it is started again.

    Writes audit.json, report.html and a signed attestation into HOME/audits. Exit code 3: the
    verdict is not 'passed'.
    """
    from segunlearn.app.audit_order import Order, attacks_of
    from segunlearn.app.audit_run import AuditRun
    from segunlearn.app.audit_targets import Targets

    place = home_of(home)
    if include_images:
        _check_administrator(place)
    order = Order(
        model=model, candidate=candidate, original=original,
        targets=Targets(
            tuple(request or ()), tuple(study or ()), tuple(series or ()), tuple(patient or ())
        ),
        level=level.value if level else None,
        attacks=attacks_of(attacks),
        quick=quick, references=references_of(with_reference, references),
        whole=whole, pictures=include_images, device=device,
    )  # fmt: skip
    work = AuditRun(order, place, records_of(place, store), actor())
    choice = work.prepare(
        labelled_cases(data, studies, place, model, candidate, people, person_regex, modality)
    )
    if order.references:
        console.print(
            f"{order.references} full reference(s): about {_duration(work.reference_seconds())}, "
            f"by the time {choice.original.version} took. Ctrl-C stops; the next start goes on."
        )
    with stop_on_interrupt() as interrupted, progress_bar(as_json) as bar:
        work.stopped = interrupted
        work.on_progress = lambda p: bar(p.phase, p.step, p.total)
        result = work.execute()
    if as_json:
        print_json(result)
    else:
        _print_audit(result)
        console.print(f"report: {place.audits / work.run_id / 'report.html'}")
    if result["verdict"]["outcome"] != "passed":
        raise typer.Exit(3)


@audit.command()
def show(
    audit_id: Annotated[str, typer.Argument(help="Without it: the list of audits.")] = "",
    home: HomeOption = DEFAULT,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Of the list.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="Of the list.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show verdict and findings of an audit, or the list of audits, newest first."""
    from dataclasses import asdict

    from segunlearn.app.audit_files import Audits

    audits = Audits(home_of(home))
    if audit_id:
        result = audits.get(audit_id)
        if as_json:
            print_json(result)
        else:
            _print_audit(result)
        return
    ids = audits.ids()
    found = audits.summaries(ids[offset : offset + limit])
    if as_json:
        print_json({"total": len(ids), "audits": [asdict(s) for s in found]})
        return
    _print_list(found)
    typer.echo(f"{len(found)} of {len(ids)} audits.")


@audit.command()
def verify(
    target: Annotated[str, typer.Argument(help="Id of an audit of the home, or its folder.")],
    home: HomeOption = DEFAULT,
    public_key: Annotated[
        Path | None,
        typer.Option(
            help="Key of whom you believe. By default the home's, or for a folder the one in it, "
            "which only proves that nothing changed since it was signed."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A model too: candidate=…, original=…, reference-1=…; for an id, those of the "
            "home are checked.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify an audit, offline: exit code 2 when a byte of its files or models was changed."""
    from segunlearn.app.audit_files import REPORT, RESULT, Audits, verify_folder

    place = home_of(home)
    artefacts: dict[str, Path] = {}
    if Path(target).is_dir():
        folder = Path(target)
    else:
        audits = Audits(place)
        folder, public_key = audits.folder(target), public_key or audits.public_key
        artefacts |= _weights_of(place, audits.get(target))
    artefacts |= {RESULT: folder / RESULT, REPORT: folder / REPORT, **_pairs(weights or ())}
    content = verify_folder(folder, public_key=public_key, artefacts=artefacts)
    subjects = [s["name"] for s in content["subject"]]
    unchecked = [name for name in subjects if name not in artefacts]
    verdict = content["predicate"]["verdict"]
    if as_json:
        print_json({"verified": sorted(artefacts), "not_checked": unchecked, "verdict": verdict})
        return
    typer.echo(f"verified: attestation.json, {', '.join(sorted(artefacts))}")
    if unchecked:
        typer.echo(f"not given, so not checked: {', '.join(unchecked)}")
    typer.echo(f"verdict: {verdict['outcome']}, reached {verdict['reached']}")


@audit.command()
def where(
    paths: Annotated[list[str], typer.Argument(help="Of a report, or of what a purge left.")],
    home: HomeOption = DEFAULT,
) -> None:
    """Tell which file of the home a report means: what may name a patient is a pseudonym there."""
    from segunlearn.audit.home_files import HomeFiles, ShownNames
    from segunlearn.dicom.identifiers import Pseudonyms, load_or_create_key

    place = home_of(home)
    if not place.site_key.is_file():
        raise InvalidInputError(f"{place.root}: has no site.key. Name the home of the report.")
    names = ShownNames(HomeFiles(place.root), Pseudonyms(load_or_create_key(place.site_key)))
    for path in paths:
        found = names.find(path)
        if not found:
            raise NotFoundError(f"{path}: no file or folder of {place.root} is shown so any more.")
        for real in found:
            typer.echo(os.fsencode(real))  # as it is: a name may hold any bytes


def _check_administrator(home: Home) -> None:
    owner = home.root.stat().st_uid if home.root.is_dir() else -1
    if os.getuid() not in (0, owner):
        raise ForbiddenError(
            "--include-images puts images of patients into the report; only an administrator, the "
            "owner of the home folder or root, may ask for it. Leave it out."
        )


def _weights_of(home: Home, result: Mapping[str, Any]) -> dict[str, Path]:
    """Weights of the audited versions, where they are not destroyed."""
    about = result["about"]
    registry = VersionRegistry(home.model(about["model"]))
    found = {}
    for name in ("candidate", "original"):
        try:
            path = registry.get(about[name]).weights
        except (NotFoundError, IntegrityError):
            continue
        if path.is_file():
            found[name] = path
    return found


def _pairs(texts: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign or not name or not path:
            raise InvalidInputError(f"--weights {text!r}: write NAME=FILE, as candidate=w.bin.")
        found[name] = Path(path)
    return found


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _print_list(found: Sequence[AuditSummary]) -> None:
    rows = [
        (
            s.audit_id, s.created[:16], s.model, s.original, s.candidate, s.outcome,
            f"{s.reached}/{s.needed}",
        )
        for s in found
    ]  # fmt: skip
    columns = ("audit", "created", "model", "before", "audited", "verdict", "reached/needed")
    print_table(columns, rows)


def _print_audit(result: Mapping[str, Any]) -> None:
    verdict, about = result["verdict"], result["about"]
    forget = result["sets"]["forget"]
    typer.echo(
        f"{about['model']} {about['candidate']} against {about['original']}, "
        f"{forget['studies']} studies of {forget['persons']} person(s) to forget"
    )
    typer.echo(
        f"verdict: {verdict['outcome']}; reached {verdict['reached']}, needed {verdict['needed']}; "
        f"reference: {verdict['reference']}"
    )
    for reason in [*result["void"], *verdict["reasons"]]:
        typer.echo(f"  {reason}")
    rows = []
    for f in result["findings"]:
        figures = ("–" if f[k] is None else f"{f[k]:.3f}" for k in ("value", "bar"))
        rows.append((f["name"], f["level"], f["outcome"], *figures, f["words"]))
    print_table(("measure", "level", "outcome", "figure", "bar", "in words"), rows)
    for place in result.get("places") or ():
        if place["state"] == "open":
            typer.echo(f"open: {place['kind']} {place['where']}: {place['words']}")
