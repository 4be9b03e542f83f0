"""``segunlearn viewer``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from segunlearn.app.viewer_package import CURRENT, fetch, unpack, version_in


def viewer(
    out: Annotated[Path, typer.Argument(help="Folder to make; name it with --conf viewer.")],
    package: Annotated[
        Path | None,
        typer.Option(help="File of @ohif/app; without it npm is asked for the release."),
    ] = None,
) -> None:
    """Make a current OHIF ready to be served, from its npm package with a known digest."""
    out = out.expanduser().resolve()
    if version_in(out) == CURRENT.version:
        typer.echo(f"{out} holds OHIF {CURRENT.version} already")
        return
    with tempfile.TemporaryDirectory() as folder:
        size = unpack(package or fetch(Path(folder)), out)
    typer.echo(f"OHIF {CURRENT.version} is ready in {out} ({size / 1e6:.0f} MB)")
