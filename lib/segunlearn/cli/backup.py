"""``segunlearn backup`` and ``segunlearn restore-home``: a copy of everything, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from segunlearn.app.options import Home
from segunlearn.cli.common import (
    DEFAULT,
    HomeOption,
    JsonOption,
    home_of,
    operator,
    print_json,
    warn,
)
from segunlearn.records.trail import TrailEntry


def backup(
    target: Annotated[Path, typer.Argument(help="New folder for the copy.")],
    home: HomeOption = DEFAULT,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a training or unlearning to end.")
    ] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Copy a home, also while its server runs; keys of deposits are left out.

    The copy holds identifiers of patients and the weights of every version: guard it as the home.
    A copy made before a purge, or before an unlearning, still holds what was destroyed since. Exit
    code 3: it is made, but a model's files were missing or changed in the home already.
    """
    from segunlearn.app.home_copy import copy_home, faults_of
    from segunlearn.app.records import Records

    place, folder = home_of(home), target.expanduser().absolute()
    copied = copy_home(place, folder, wait=wait)
    Records(place).trail.append(
        TrailEntry(
            "backup", operator(), "", "command line", "copy", folder.name,
            note=f"manifest {copied.manifest_sha256}",
        )
    )  # fmt: skip
    faults = faults_of(Home(folder / "home"))
    if as_json:
        print_json({"folder": str(folder), **vars(copied), "faults": faults})
    else:
        typer.echo(
            f"{folder}: {copied.files} files, {copied.size / 2**20:.1f} MiB. Its manifest has "
            f"SHA-256 {copied.manifest_sha256}."
        )
    _end_with(faults)


def restore_home(
    source: Annotated[Path, typer.Argument(help="Folder that 'segunlearn backup' made.")],
    home: HomeOption = DEFAULT,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the copy with its manifest, and do no more.")
    ] = False,
) -> None:
    """Make a home from a copy, after every byte was checked; not to be confused with 'restore'.

    The home must not exist yet. All access tokens are revoked: one that was revoked after the copy
    was made would be good again. Marks and purges made since the copy are not in it. Exit code 3:
    the copy is whole, but a model's files were missing or changed before it was made.
    """
    from segunlearn.app.home_copy import check_copy, faults_of
    from segunlearn.app.home_copy import restore_home as make
    from segunlearn.app.records import Records

    folder, place = source.expanduser().absolute(), home_of(home)
    if check:
        manifest = check_copy(folder)
        typer.echo(f"{folder}: {len(manifest['files'])} files of {manifest['created']} are whole.")
        _end_with(faults_of(Home(folder / "home")))
        return
    manifest = make(folder, place.root)
    Records(place).trail.append(
        TrailEntry(
            "restore_home", operator(), "", "command line", "copy", folder.name,
            note=f"of {manifest['created']}",
        )
    )  # fmt: skip
    typer.echo(
        f"{place.root}: made from the copy of {manifest['created']}. Forget requests, purges and "
        "tokens since then are not in it: repeat them before it serves."
    )
    _end_with(faults_of(place))


def _end_with(faults: Sequence[str]) -> None:
    """Tell what a copy cannot bring back, and end so that a nightly job notices."""
    if faults:
        warn([f"{fault} It was so before it was copied: keep an older copy." for fault in faults])
        raise typer.Exit(3)
