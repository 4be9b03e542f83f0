"""Dice on every person of the hippocampus data, each by a model that has never seen them.

``python tests/benchmarks/segmentation_folds.py --data DIR`` divides the people into five, trains on
four of them and evaluates on the fifth, five times; the fifth fold's people are those that
``segmentation_hippocampus.py`` keeps out, so its figure tells whether they are hard ones. ``DIR``
as there. ``--recipe long`` takes two hours of one core for each fold. ``--work`` keeps what is
done; ``--only K`` does one fold (1 to 5) and writes no result: folds can be made side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from report import ROOT, bar, commit, write
from segmentation_hippocampus import LABELS, bootstrap, run

from segunlearn.cases import Case, cases_from_folder, split_by_person

mpl.use("Agg")
from matplotlib import pyplot as plt

FOLDS: Final = 5


def link(folder: Path, cases: Sequence[Case]) -> Path:
    """Folder as the command line wants it, with links to these images and labels."""
    for case in cases:
        for kind, path in (("images", case.image), ("labels", case.label)):
            assert path is not None
            (folder / kind).mkdir(parents=True, exist_ok=True)
            there = folder / kind / path.name
            if not there.exists():
                there.symlink_to(path.resolve())
    return folder


def measure(
    number: int, folds: Sequence[Sequence[Case]], place: Path, recipe: Sequence[str]
) -> dict[str, Any]:
    """Train without one fold and evaluate on it; what was done before is read."""
    done = place / "measured.json"
    if not done.is_file():
        taught = [case for i, fold in enumerate(folds, 1) if i != number for case in fold]
        home = ["--home", str(place / "home")]
        data = ["--data", str(link(place / "taught", taught))]
        trained, wall, cpu = run("train", *data, *home, "--labels", LABELS, *recipe)
        data = ["--data", str(link(place / "unseen", folds[number - 1]))]
        measured, _, _ = run("evaluate", *data, *home)
        mirrored, _, _ = run("evaluate", *data, *home, "--mirror", "R")
        figures = {
            "people": measured["per_person"],
            "mirrored": mirrored["per_person"],
            "per_label": measured["per_label"],
            "train_images": trained["train_cases"],
            "validation_images": trained["val_cases"],
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "commit": commit(),
        }
        done.write_text(json.dumps(figures), encoding="utf-8")
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return found


def plot(folds: Sequence[dict[str, Any]], mean: float, path: Path) -> None:
    """Draw the Dice of every person by fold."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for number, fold in enumerate(folds, 1):
        values = sorted(p["dice"] for p in fold["people"].values())
        at = number + np.linspace(-0.3, 0.3, len(values))
        axes.plot(at, values, "o", markersize=3, color="tab:blue")
        axes.plot(at[[0, -1]], [np.mean(values)] * 2, color="black")
        axes.annotate(f"{np.mean(values):.3f}", (number, 0.965), ha="center")
    axes.axhline(mean, color="tab:green", label=f"mean of all people {mean:.4f}")
    axes.axhline(0.89, color="tab:red", linestyle="--", label="0.89")
    axes.set(
        xlabel="fold (the fifth is what the single split keeps out)",
        ylabel="mean Dice of both labels",
        title="Each person by a model that has never seen them; black: mean of the fold",
        xticks=range(1, FOLDS + 1),
    )
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Do one fold, or all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("SEGUNLEARN_DATA"))
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--epochs", type=int, default=30, help="of the default recipe")
    parser.add_argument("--only", type=int, choices=range(1, FOLDS + 1))
    parser.add_argument("--work", type=Path, help="kept: folds that are done are not done again")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data or set SEGUNLEARN_DATA")
    cases = cases_from_folder(options.data / "hippocampus")
    folds = split_by_person(cases, (1 / FOLDS,) * FOLDS, 0)
    recipe = ["--recipe", options.recipe, "--flip", "R", "--seed", "0"]
    if options.recipe == "default":
        recipe += ["--epochs", str(options.epochs)]
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)) / options.recipe
        done = [
            measure(number, folds, work / str(number), recipe)
            for number in ([options.only] if options.only else range(1, FOLDS + 1))
        ]
    for fold in done:
        mean = np.mean([p["dice"] for p in fold["people"].values()])
        sys.stdout.write(f"mean Dice {mean:.4f}, {len(fold['people'])} people\n")
    if options.only:
        return
    dice = np.array([p["dice"] for fold in done for p in fold["people"].values()])
    low, high = bootstrap(dice)
    mean, target = float(dice.mean()), 0.89 if options.recipe == "long" else 0.86
    figures = {
        "mean_dice": mean,
        "mean_dice_interval_95": [low, high],
        "standard_deviation_over_people": float(dice.std(ddof=1)),
        "people": len(dice),
        "mean_dice_by_fold": [
            float(np.mean([p["dice"] for p in fold["people"].values()])) for fold in done
        ],
        "mean_dice_over_mirror_images": float(
            np.mean([p["dice"] for fold in done for p in fold["mirrored"].values()])
        ),
        "folds": done,
    }
    name = "segmentation_folds" + ("_long" if options.recipe == "long" else "")
    write(
        name, figures,
        [bar(f"mean Dice of both labels, all people by {FOLDS} folds, {options.recipe} recipe",
             mean, f">= {target}", mean >= target)],
        seed=0, recipe=recipe, threads=os.environ.get("OMP_NUM_THREADS", "all"),
    )  # fmt: skip
    plot(done, mean, ROOT / "results" / f"{name}.png")


if __name__ == "__main__":
    main()
