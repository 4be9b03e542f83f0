"""Write what the documentation says about routes, options and commands, from the code itself.

``docs/openapi.json`` is the contract the viewers rely on; ``docs/rest.md`` and ``docs/cli.md`` are
made for reading. ``--check`` changes nothing and fails when a file and the code differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

REST = """# REST

Made by `docs/generate.py` from the running code; the contract for programs is
[openapi.json](openapi.json). Routes that MONAI Label has too behave as its stock clients expect.
Errors are JSON, `{"detail": "a sentence"}`. Who may do what: [records.md](records.md).
What a request to `/train/segmentation` leaves at the defaults that `/info/` tells is the
`recipe`'s: stock clients send all of them along, so a value equal to the default counts as not
sent.

"""

OPTIONS = """
## Options of the app

Given as `--conf NAME VALUE`, to `segunlearn serve` or to MONAI Label's own launcher.

"""

CLI = """# Command line

Made by `docs/generate.py` from the running code. Every command has `--help`; an error is one
sentence on standard error and exit code 2, a stopped run ends with 130.

"""


def openapi() -> dict[str, Any]:
    """Return the OpenAPI description of the server as `segunlearn serve` wires it."""
    from segunlearn.app.server import prepare

    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder) / "studies"
        studies.mkdir()
        environment, _ = prepare(
            str(studies), {"home": str(Path(folder) / "home")}, host="127.0.0.1", port=8000
        )
        os.environ.update(environment)
        from monailabel.app import app

        from segunlearn.app.wiring import wire

        wire(app)
        description: dict[str, Any] = app.openapi()
    return description


def rest(description: dict[str, Any]) -> str:
    """Tables of routes, one for each tag, and of the app's options."""
    groups: dict[str, list[str]] = {}
    for path, operations in sorted(description["paths"].items()):
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["Others"])[0]
            summary = " ".join((operation.get("summary") or "").split()).replace("|", "\\|")
            groups.setdefault(tag, []).append(f"| `{method.upper()}` | `{path}` | {summary} |")
    parts = [REST]
    for tag in sorted(groups):
        parts += [f"## {tag}\n\n| method | path | what it does |\n|---|---|---|\n"]
        parts += ["\n".join(groups[tag]), "\n\n"]
    return "".join(parts).rstrip("\n") + "\n" + OPTIONS + options()


def options() -> str:
    """Table of the keys of `--conf`."""
    from segunlearn.app.options import AppOptions

    described = _described(AppOptions.__doc__ or "")
    lines = ["| name | what it is |", "|---|---|"]
    lines += [f"| `{f.name}` | {described[f.name]} |" for f in fields(AppOptions)]
    return "\n".join(lines) + "\n"


def _described(docstring: str) -> dict[str, str]:
    """Parameter → description of a NumPy docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in docstring.splitlines():
        text = line.strip()
        if text == "Parameters":
            inside = True
        elif inside and set(text) == {"-"} and names:
            break
        elif inside and text and set(text) != {"-"}:
            if len(line) - len(line.lstrip()) <= 4:
                names = [n.strip() for n in text.split(":")[0].split(",")]
                found |= dict.fromkeys(names, "")
            else:
                found |= {n: f"{found[n]} {text}".strip() for n in names}
    return found


def cli() -> str:
    """Return the commands with their arguments and options."""
    import typer.main

    from segunlearn.cli import app

    return CLI + "\n".join(_command(typer.main.get_command(app), "segunlearn", 2)) + "\n"


def _command(command: Any, name: str, level: int) -> Iterator[str]:
    subcommands = getattr(command, "commands", {})
    yield f"{'#' * min(level, 4)} `{name}`\n"
    if command.help:
        yield " ".join(command.help.split()) + "\n"
    rows = [
        p for p in command.params if p.name not in ("help", "install_completion", "show_completion")
    ]
    if rows:
        yield "| argument or option | what it does |\n|---|---|"
        for parameter in rows:
            shown = ", ".join(f"`{o}`" for o in [*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "argument":
                shown = f"`{(parameter.metavar or parameter.name).upper()}`"
            help_text = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
            yield f"| {shown} | {help_text} |"
        yield ""
    for sub in sorted(subcommands):
        yield from _command(subcommands[sub], f"{name} {sub}", level + 1)


def main() -> int:
    """Write or check the files; 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    check = parser.parse_args().check
    description = openapi()
    made = {
        "openapi.json": json.dumps(description, indent=1, sort_keys=True) + "\n",
        "rest.md": rest(description),
        "cli.md": cli(),
    }
    stale = [
        n
        for n, text in made.items()
        if not (HERE / n).is_file() or (HERE / n).read_text(encoding="utf-8") != text
    ]
    for name in stale:
        if not check:
            (HERE / name).write_text(made[name], encoding="utf-8")
    if check and stale:
        sys.stderr.write(
            f"run 'python docs/generate.py': {', '.join(stale)} differ from the code\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
