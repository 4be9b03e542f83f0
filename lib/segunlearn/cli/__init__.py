"""``segunlearn``: the same capabilities without a server."""

from __future__ import annotations

import os
import sys

import typer

from segunlearn import __version__
from segunlearn.app.serve_command import serve
from segunlearn.cli.adapt import adapt
from segunlearn.cli.adapters import adapters
from segunlearn.cli.audit import audit
from segunlearn.cli.backup import backup, restore_home
from segunlearn.cli.demo import demo
from segunlearn.cli.evaluate import evaluate
from segunlearn.cli.forget_command import forget, ledger
from segunlearn.cli.infer import infer
from segunlearn.cli.info import info
from segunlearn.cli.meta_train import meta_train
from segunlearn.cli.models import models
from segunlearn.cli.replay import replay
from segunlearn.cli.token import token
from segunlearn.cli.trail import trail
from segunlearn.cli.train import train
from segunlearn.cli.unlearn import purge, restore, unlearn
from segunlearn.cli.viewer import viewer
from segunlearn.errors import CancelledError, SegUnlearnError

app = typer.Typer(
    name="segunlearn",
    help="Segmentation for hospitals that can take a study back out of the model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(meta_train)
app.command()(infer)
app.command()(evaluate)
app.command()(info)
app.command()(serve)
app.command()(unlearn)
app.command()(restore)
app.command()(purge)
app.command()(adapt)
app.command()(demo)
app.command()(viewer)
app.command()(backup)
app.command()(restore_home)
app.add_typer(forget, name="forget")
app.add_typer(ledger, name="ledger")
app.add_typer(audit, name="audit")
app.add_typer(models, name="models")
app.add_typer(adapters, name="adapters")
app.add_typer(replay, name="replay")
app.add_typer(token, name="token")
app.add_typer(trail, name="trail")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segunlearn {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command line; an error of ours is one sentence on stderr and exit code 2.

    A run stopped by Ctrl-C or by another process ends with 130. Files that a command writes are for
    the account that runs it: weights and reports can hold what patients gave.
    """
    others = os.umask(0o077)
    try:
        app(prog_name="segunlearn")
    except CancelledError as error:
        typer.echo(f"stopped: {error}", err=True)
        sys.exit(130)
    except SegUnlearnError as error:
        about = f"{error.about}: " if error.about else ""
        typer.echo(f"error: {about}{error}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # no permission, disk full, …
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {place}{error.strerror or error}.", err=True)
        sys.exit(2)
    finally:
        os.umask(others)
