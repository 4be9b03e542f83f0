"""``segunlearn forget`` and ``segunlearn ledger``: the records from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segunlearn.app.options import DEFAULT_HOME, Home
from segunlearn.cli.common import actor
from segunlearn.cli.tables import print_table
from segunlearn.errors import InvalidInputError, NotFoundError, SegUnlearnError
from segunlearn.records.forget_requests import KNOWN_ELSEWHERE
from segunlearn.records.forget_set import ForgetRequest
from segunlearn.records.forget_states import Reason
from segunlearn.records.numbered import NUMBERED
from segunlearn.records.targets import Target, check_issuer, make_target, person_name
from segunlearn.records.versions import VersionRegistry

if TYPE_CHECKING:
    from segunlearn.app.records import Records

forget = typer.Typer(no_args_is_help=True, help="Mark studies for forgetting, and follow them.")
ledger = typer.Typer(no_args_is_help=True, help="Which studies shaped which version.")

Needed = Literal["hidden", "unlearned", "retrained"]

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="SEGUNLEARN_HOME", help="Folder of the store.")
]
StoreOption = Annotated[
    str, typer.Option("--store", help="URL of the store; without it, SQLite in the home folder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
StudyOption = Annotated[str, typer.Option("--study", help="StudyInstanceUID.")]
SeriesOption = Annotated[str, typer.Option("--series", help="SeriesInstanceUID.")]
RequestArgument = Annotated[str, typer.Argument(help="Id of the request, 32 digits.")]


@contextmanager
def records(home: Path, url: str, *, files: bool = False) -> Iterator[Records]:
    """Open the records; our errors become one sentence on stderr and exit code 2.

    Every change is told to the PACS, but for those of ``files``, which none holds.
    """
    from segunlearn.app.records import Records

    store = None
    try:
        root = home.expanduser().resolve()
        if not url and not Home(root).database.is_file():
            raise InvalidInputError(
                f"{root}: no store is here. Name the home folder of the server with --home."
            )
        found = Records(Home(root), url, reports=not files)
        store = found.store
        yield found
    except SegUnlearnError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    finally:
        if store is not None:
            store.close()


@forget.command()
def mark(
    reason: Annotated[Reason, typer.Option(help="Why.")],
    study: StudyOption = "",
    series: SeriesOption = "",
    patient: Annotated[str, typer.Option(help="PatientID, or PatientID^^^Issuer.")] = "",
    structure: Annotated[str, typer.Option(help="Name of a label.")] = "",
    model: Annotated[str, typer.Option(help="Of a structure: this model only.")] = "",
    note: Annotated[str, typer.Option(help="Text; needed with --reason other.")] = "",
    needed: Annotated[Needed | None, typer.Option(help="Assurance level.")] = None,
    files: Annotated[bool, typer.Option("--files", help="Ids are file names, not UIDs.")] = False,
    even_if_unknown: Annotated[
        bool, typer.Option("--even-if-unknown", help="Also what no version was trained on.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    url: StoreOption = "",
    as_json: Json = False,
) -> None:
    """Mark a study, series, patient or structure; from now on it is left out of training.

    The studies themselves are not looked at; a server that follows the PACS lists a patient's soon.
    What no version was trained on is refused, as a typing error would be "forgotten" at once;
    --even-if-unknown marks it all the same.
    """
    kind, target = _one_target(study=study, series=series, patient=patient, structure=structure)
    with records(home, url, files=files) as found:
        made = make_target(kind, target, model=model, opaque=files)
        if not (even_if_unknown or _is_known(found, Home(home.expanduser().resolve()), made)):
            raise NotFoundError(
                f"no version was trained on this {kind}; nothing was marked. Check the identifier, "
                "or add --even-if-unknown to keep it out of every training to come."
            )
        if kind == "patient":
            check_issuer(made, found.ledger.issuers_of(target))
        request, created = found.forget_set.mark(
            kind,
            target,
            reason,
            note,
            actor(),
            role="command line",
            model=model,
            needed=needed,
            opaque=files,
        )
    said = "marked" if created else f"was marked before, now {request.state}"
    _say([request], as_json, f"{request.request_id}: {said}.")


def _is_known(records: Records, home: Home, target: Target) -> bool:
    """Whether a version was trained on a target, or it is marked already."""
    if target in records.forget_set.live_targets():
        return True
    if target.kind == "structure":
        models = [target.model] if target.model else home.models()
        versions = (v for m in models for v in VersionRegistry(home.model(m)).versions())
        return any(target.id in v.config["labels"] for v in versions)
    named = person_name(target.id, target.issuer) if target.kind == "patient" else target.id
    by = {"patient": "person"}.get(target.kind, target.kind)
    return bool(records.ledger.versions_that_saw(**{by: named}))


@forget.command("list")
def list_requests(
    state: Annotated[list[str] | None, typer.Option(help="Of a request; may be repeated.")] = None,
    reason: Annotated[Reason | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    home: HomeOption = DEFAULT_HOME,
    url: StoreOption = "",
    as_json: Json = False,
) -> None:
    """List requests, newest first."""
    states = state or []
    with records(home, url) as opened:
        forget_set = opened.forget_set
        found = forget_set.list(states=states, reason=reason, limit=limit, offset=offset)
        total = forget_set.count(states=states, reason=reason)
    _say(found, as_json, f"{len(found)} of {total} requests.")


@forget.command()
def show(
    request_id: RequestArgument,
    home: HomeOption = DEFAULT_HOME,
    url: StoreOption = "",
    as_json: Json = False,
) -> None:
    """Show a request with its history, and of a patient the studies that it covers."""
    with records(home, url) as opened:
        forget_set = opened.forget_set
        request, history = forget_set.get(request_id), forget_set.history(request_id)
    if as_json:
        _json({**_plain(request), "history": [asdict(step) for step in history]})
        return
    _say([request], False, "")
    rows = [(h.time, h.actor, h.from_state, h.to_state, h.reached, h.why) for h in history]
    print_table(("time", "who", "from", "to", "reached", "why"), rows)
    if request.target.kind == "patient":
        print_table(("study that stood under this number",), [(s,) for s in request.studies])


@forget.command()
def withdraw(
    request_id: RequestArgument,
    why: Annotated[str, typer.Option(help="Text for the history.")] = "",
    home: HomeOption = DEFAULT_HOME,
    url: StoreOption = "",
    as_json: Json = False,
) -> None:
    """Take a request back, before any unlearning."""
    with records(home, url) as opened:
        request = opened.forget_set.withdraw(
            request_id, actor=actor(), role="command line", why=why
        )
    _say([request], as_json, f"{request_id}: withdrawn.")


@forget.command()
def approve(
    request_id: RequestArgument,
    home: HomeOption = DEFAULT_HOME,
    url: StoreOption = "",
    as_json: Json = False,
) -> None:
    """Approve a request, so that it may be unlearned."""
    with records(home, url) as opened:
        forget_set = opened.forget_set
        who = {"actor": actor(), "role": "command line"}
        if forget_set.get(request_id).state == "proposed":
            forget_set.transition(request_id, "requested", **who)
        request = forget_set.approve(request_id, **who)
    _say([request], as_json, f"{request_id}: approved.")


def _one_target(**given: str) -> tuple[str, str]:
    named = [(kind, target) for kind, target in given.items() if target]
    if len(named) != 1:
        names = ", ".join(f"--{kind}" for kind in given)
        raise typer.BadParameter(f"name exactly one of {names}.")
    return named[0]


def _plain(request: ForgetRequest) -> dict[str, Any]:
    return {**asdict(request), "live": request.is_live}


def _say(requests: Sequence[ForgetRequest], as_json: bool, sentence: str) -> None:
    if as_json:
        plain = [_plain(request) for request in requests]
        _json(plain)
        return
    rows = [
        (
            r.request_id, r.target.kind, r.target.id, r.state, r.stated_reason,
            f"{r.reached}/{r.needed}",
        )
        for r in requests
    ]  # fmt: skip
    if rows:
        print_table(("request", "kind", "target", "state", "reason", "reached/needed"), rows)
    for request in requests:
        if request.is_known_elsewhere:
            typer.echo(f"{request.request_id}: {KNOWN_ELSEWHERE}")
    if sentence:
        typer.echo(sentence)


def _json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


@ledger.command("show")
def show_rows(
    run: Annotated[str, typer.Option(help="Show one run's row with its cases.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    home: HomeOption = DEFAULT_HOME,
    url: StoreOption = "",
    as_json: Json = False,
) -> None:
    """Show rows, newest first."""
    with records(home, url) as opened:
        book = opened.ledger
        rows = [book.row(run)] if run else book.rows(limit=limit, offset=offset)
        cases = [asdict(case) for case in book.cases_of(run)] if run else []
        total = book.head().rows
    if as_json:
        plain = [asdict(row) for row in rows]
        _json({**plain[0], "cases": cases} if run else plain)
        return
    print_table(
        ("row", "ended", "kind", "model", "outcome", "series", "version", "run"),
        [
            (r.seq, r.ended, r.kind, r.model, r.outcome, r.cases_count, r.version_sha256, r.run_id)
            for r in rows
        ],
    )
    if run:
        print_table(
            ("series", "study", "role"), [(c["series"], c["study"], c["role"]) for c in cases]
        )
    typer.echo(f"{len(rows)} of {total} rows.")


@ledger.command()
def verify(home: HomeOption = DEFAULT_HOME, url: StoreOption = "", as_json: Json = False) -> None:
    """Recompute every digest; exit code 1 when a row was changed, removed or inserted."""
    with records(home, url) as opened:
        book = opened.ledger
        head, faults = book.head(), book.verify()
    if as_json:
        _json({**head._asdict(), "faults": [asdict(fault) for fault in faults]})
    elif not faults:
        typer.echo(f"{head.rows} rows, no faults. Head {head.digest}.")
    else:
        for fault in faults:
            typer.echo(": ".join(str(part) for part in asdict(fault).values()), err=True)
    if faults:
        raise typer.Exit(1)


@ledger.command()
def studies(
    version: Annotated[
        str, typer.Argument(help="Name of the version, as v0001, or SHA-256 of its weights.")
    ],
    model: Annotated[str, typer.Option(help="Of a version that is named.")] = "segmentation",
    home: HomeOption = DEFAULT_HOME,
    url: StoreOption = "",
    as_json: Json = False,
) -> None:
    """List the studies that shaped a version, through all its ancestors."""
    with records(home, url) as opened:
        if NUMBERED.fullmatch(version):
            registry = VersionRegistry(Home(home.expanduser().resolve()).model(model))
            version = registry.get(version).sha256
        found = opened.ledger.studies_of(version)
    if as_json:
        _json([study._asdict() for study in found])
        return
    print_table(
        ("study", "person", "roles"), [(s.study, s.person, ", ".join(s.roles)) for s in found]
    )
    typer.echo(f"{len(found)} studies.")


@ledger.command()
def versions(
    study: StudyOption = "",
    series: SeriesOption = "",
    person: Annotated[str, typer.Option(help="PatientID, or PatientID^^^Issuer.")] = "",
    home: HomeOption = DEFAULT_HOME,
    url: StoreOption = "",
    as_json: Json = False,
) -> None:
    """List the versions that a study, series or person shaped."""
    kind, target = _one_target(study=study, series=series, person=person)
    with records(home, url) as opened:
        found = opened.ledger.versions_that_saw(**{kind: target})
    if as_json:
        _json([version._asdict() for version in found])
        return
    print_table(
        ("version", "row", "its own run read it"),
        [(v.version_sha256, v.seq, "yes" if v.direct else "no") for v in found],
    )
    typer.echo(f"{len(found)} versions.")
