"""``segunlearn info``."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from segunlearn import __version__
from segunlearn.cli.common import (
    DEFAULT,
    HomeOption,
    JsonOption,
    console,
    print_found,
    print_json,
)
from segunlearn.cli.homes import existing_home
from segunlearn.records.versions import VersionRegistry


def info(home: HomeOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Show the models of a home, their versions, and what they segment."""
    place = existing_home(home)
    folder = place.root / "models"
    models: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []:
        models[path.name] = [
            {
                "version": v.version, "state": v.state, "created": v.created, "sha256": v.sha256,
                "labels": v.config.get("labels", []), "best_dice": v.details.get("best_dice"),
            }
            for v in VersionRegistry(path).versions()
        ]  # fmt: skip
    if as_json:
        print_json({"program": __version__, "home": str(place.root), "models": models})
        return
    if not models:
        console.print(
            f"{place.root}: no models yet. Train one: segunlearn train --data DIR --home DIR."
        )
        return
    table = Table(title=f"SegUnlearn {__version__}, {place.root}")
    for column in ("model", "version", "state", "created", "labels", "validation Dice", "SHA-256"):
        table.add_column(column)
    for name, versions in models.items():
        for v in versions:
            dice = "" if v["best_dice"] is None else f"{v['best_dice']:.3f}"
            table.add_row(
                name, v["version"], v["state"], v["created"], ", ".join(v["labels"]), dice,
                v["sha256"][:12],
            )  # fmt: skip
    print_found(table)
