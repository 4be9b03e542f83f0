"""``segunlearn adapters``: the site adapters of a model, and which of them serves each site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from segunlearn.cli.common import (
    DEFAULT,
    HomeOption,
    JsonOption,
    ModelOption,
    StoreOption,
    console,
    home_of,
    operator,
    print_json,
    records_of,
)
from segunlearn.cli.homes import existing_home
from segunlearn.cli.tables import print_table
from segunlearn.records.trail import TrailEntry

if TYPE_CHECKING:
    from segunlearn.app.adapter_list import AdapterLine

adapters = typer.Typer(
    no_args_is_help=True, help="List the site adapters of a model; serve another one, or the base."
)

SiteArgument = Annotated[
    str, typer.Argument(help="Name or key of the site, or its folder, as 'adapters list' shows.")
]


@adapters.command("list")
def list_adapters(
    home: HomeOption = DEFAULT, model: ModelOption = "segmentation", as_json: JsonOption = False
) -> None:
    """List the adapters of every site: state, how each was made, and what it was measured by."""
    from segunlearn.app.adapter_list import AdapterControl

    place = existing_home(home, model)
    control = AdapterControl(place, model)
    lines, damaged = control.lines(), control.damaged()
    if as_json:
        found = [line.to_json() for line in lines]
        print_json({"model": model, "adapters": found, "damaged": damaged})
        return
    for what in damaged:
        console.print(f"cannot be read: {what}")
    if not lines and not damaged:
        console.print(f"{place.root}: the model {model!r} has no site adapter. The base serves.")
        return
    rows = []
    for line in lines:
        about = line.about
        state = "serves" if line.serves else line.state if line.here else "destroyed"
        how = f"{about.get('method', '')}, {about.get('steps', '')} steps"
        k, base = about.get("k", ""), line.base[:12]
        rows.append((line.site, line.key, line.version, state, how, k, _dice(line), base))
    columns = ("site", "folder", "version", "state", "made by", "k", "Dice held out", "base")
    print_table(columns, rows)


@adapters.command()
def activate(
    site: SiteArgument,
    version: Annotated[str, typer.Argument(help="Name, as v0002.")],
    home: HomeOption = DEFAULT,
    model: ModelOption = "segmentation",
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Serve an adapter; one that was retired, or made for other weights, is refused."""
    from segunlearn.app.adapter_list import AdapterControl

    place = home_of(home)
    trail, control = records_of(place, store).trail, AdapterControl(place, model)
    line = control.activate(site, version)
    trail.append(_served(f"{line.key}/{line.version}"))
    _tell(site, line, as_json)


@adapters.command()
def rollback(
    site: SiteArgument,
    home: HomeOption = DEFAULT,
    model: ModelOption = "segmentation",
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Serve the adapter before the current one, or the base where there is none before."""
    from segunlearn.app.adapter_list import AdapterControl

    place = home_of(home)
    trail, control = records_of(place, store).trail, AdapterControl(place, model)
    key, line = control.key(site), control.roll_back(site)
    trail.append(_served(key))
    _tell(site, line, as_json)


def _served(what: str) -> TrailEntry:
    return TrailEntry("publish", operator(), "", "command line", "adapter", what)


def _tell(site: str, line: AdapterLine | None, as_json: bool) -> None:
    if as_json:
        print_json({"site": line.site if line else site, "version": line.version if line else None})
        return
    typer.echo(f"{line.site}: {line.version} is in service." if line else f"{site}: base serves.")


def _dice(line: AdapterLine) -> str:
    found = line.about.get("leave_one_out") or {}
    if found.get("adapted") is None:
        return "-"
    return f"{found['adapted']:.3f} (base {found['base']:.3f})"
