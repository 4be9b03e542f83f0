"""``segunlearn models``: the versions of a model, and which of them is served."""

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
    given,
    home_of,
    operator,
    print_json,
    records_of,
)
from segunlearn.cli.homes import existing_home
from segunlearn.cli.tables import print_table
from segunlearn.errors import InvalidInputError
from segunlearn.records.trail import TrailEntry
from segunlearn.records.versions import VersionRegistry

if TYPE_CHECKING:  # they load torch
    from segunlearn.app.options import Home
    from segunlearn.app.records import Records

models = typer.Typer(
    invoke_without_command=True, help="List the versions of a model; serve another one."
)


@models.callback()
def list_versions(
    context: typer.Context,
    home: HomeOption = DEFAULT,
    model: ModelOption = "segmentation",
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the versions of a model: state, where the weights are, how each was made."""
    if context.invoked_subcommand is not None:
        if words := ", ".join(given(context).values()):
            raise InvalidInputError(
                f"{words}: an option of '{context.invoked_subcommand}' stands behind that word."
            )
        return
    from segunlearn.app.version_list import lines_of

    place = existing_home(home, model)
    lines = lines_of(VersionRegistry(place.model(model)), _records(place, store))
    if as_json:
        active = next((line.version for line in lines if line.state == "active"), None)
        versions = [line.to_json() for line in lines]
        print_json({"model": model, "active": active, "versions": versions})
        return
    if not lines:
        console.print(f"{place.root}: the model {model!r} has no version yet. Train one.")
        return
    rows = [
        (
            line.version, line.state, line.weights_state, line.created[:16], line.parent,
            f"{line.method}, for {line.level}" if line.method else "training", line.sha256[:12],
        )
        for line in lines
    ]  # fmt: skip
    print_table(("version", "state", "weights", "created", "parent", "made by", "SHA-256"), rows)


@models.command()
def activate(
    version: Annotated[str, typer.Argument(help="Name, as v0002.")],
    home: HomeOption = DEFAULT,
    model: ModelOption = "segmentation",
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Serve another version; one that knows what was forgotten is refused."""
    from segunlearn.app.activation import activate as serve

    place = home_of(home)
    records = records_of(place, store)
    info = serve(place, records, model, version)
    records.trail.append(
        TrailEntry("publish", operator(), "", "command line", "version", info.version)
    )
    if as_json:
        print_json({"model": model, "version": info.version, "sha256": info.sha256})
        return
    typer.echo(f"{info.version} is in service.")


def _records(place: Home, store: str) -> Records | None:
    """Open the records of a home; None where none were ever written."""
    from segunlearn.app.records import Records

    there = store or place.database.is_file()
    return Records(place, store, reports=True) if there else None  # it may finish an unlearning
