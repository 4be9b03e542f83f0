"""``segunlearn trail``: who did what, whether the record is whole, and its export."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Final

import typer

from segunlearn.cli.common import (
    DEFAULT,
    HomeOption,
    JsonOption,
    StoreOption,
    console,
    home_of,
    print_json,
    records_of,
)
from segunlearn.cli.tables import print_table
from segunlearn.errors import InvalidInputError
from segunlearn.records.chain import ChainHead
from segunlearn.records.trail import ACTIONS, TrailRow

#: Characters of the longest id, which stands in one piece.
_ID_LENGTH: Final = 32

trail = typer.Typer(no_args_is_help=True, help="Who did what: list, verify, export.")


@trail.command("list")
def list_rows(
    action: Annotated[str, typer.Option(help=f"One of {', '.join(ACTIONS)}.")] = "",
    actor: Annotated[str, typer.Option(help="Who did it.")] = "",
    since: Annotated[str, typer.Option(help="UTC time, as 2026-01-31 or longer.")] = "",
    limit: Annotated[int, typer.Option(min=0, max=1000, help="Rows at most.")] = 50,
    home: HomeOption = DEFAULT,
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the newest rows."""
    if action and action not in ACTIONS:
        raise InvalidInputError(f"--action {action}: use one of {', '.join(ACTIONS)}.")
    found = records_of(home_of(home), store).trail.rows(
        action=action or None, actor=actor or None, since=since or None, limit=limit
    )
    if as_json:
        print_json([asdict(row) for row in found])
        return
    print_table(("row", "time", "who", "did", "to what"), [_cells(row) for row in found])


def _cells(row: TrailRow) -> tuple[object, ...]:
    """Write a row in few columns of several lines: an id leaves little room beside it."""
    did = row.action if row.outcome == "done" else f"{row.action}\n{row.outcome}"
    target = f"{row.kind} {row.what}".strip()
    return (
        row.seq,
        f"{row.time[:10]}\n{row.time[11:19]}",
        _lines(row.actor, ", ".join(t for t in dict.fromkeys((row.role, row.source)) if t)),
        _lines(did, *wrap(row.note, _ID_LENGTH)),
        target if len(target) <= _ID_LENGTH else _lines(row.kind, *wrap(row.what, _ID_LENGTH)),
    )


def _lines(*texts: str) -> str:
    return "\n".join(text for text in texts if text)


@trail.command()
def verify(
    witness: Annotated[
        str, typer.Option(help="ROWS:DIGEST that was written down elsewhere; must still hold.")
    ] = "",
    home: HomeOption = DEFAULT,
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Recompute every digest; exit code 1 where something was changed."""
    rows, sign, digest = witness.partition(":")
    if witness and not (sign and rows.isascii() and rows.isdigit() and len(digest) == 64):
        raise InvalidInputError("--witness: write ROWS:DIGEST, as 'trail verify' shows it.")
    found = records_of(home_of(home), store).trail
    faults = found.verify(witness=ChainHead(int(rows), digest) if witness else None)
    head = found.head()
    if as_json:
        print_json({**head._asdict(), "faults": [asdict(fault) for fault in faults]})
    else:
        typer.echo(f"{head.rows} rows, the last {head.rows}:{head.digest}")
        for fault in faults:
            typer.echo(f"{fault.kind}: {fault.message}")
        typer.echo(f"{len(faults)} faults" if faults else "No row was changed.")
    if faults:
        raise typer.Exit(1)


@trail.command()
def export(
    out: Annotated[
        Path | None, typer.Argument(help="File to write; without it, standard output.")
    ] = None,
    since: Annotated[str, typer.Option(help="UTC time, as 2026-01-31 or longer.")] = "",
    home: HomeOption = DEFAULT,
    store: StoreOption = "",
) -> None:
    """Export as FHIR R4 AuditEvent, one a line (NDJSON), the oldest first."""
    from segunlearn.app.security.fhir import audit_event

    rows = records_of(home_of(home), store).trail.every()
    lines = (json.dumps(audit_event(row), ensure_ascii=False) for row in rows if row.time >= since)
    if out is None:
        for line in lines:
            typer.echo(line)
        return
    with out.open("x", encoding="utf-8") as file:
        try:
            count = sum(1 for line in lines if file.write(line + "\n"))
            file.flush()
        except BaseException:  # half of it would pass for all there is
            out.unlink(missing_ok=True)
            raise
    console.print(f"{out}: {count} events")
