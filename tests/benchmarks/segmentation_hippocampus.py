"""Dice on held-out people of the hippocampus data, trained and measured by the command line.

``python tests/benchmarks/segmentation_hippocampus.py --data DIR`` trains on 80 % of the people
and evaluates on the others; ``DIR`` holds ``hippocampus/images`` and ``hippocampus/labels``
(Medical Segmentation Decathlon task 4, CC BY-SA 4.0; Simpson 2019, arXiv 1902.09063). ``--quick``
trains for a minute and writes nothing. ``--recipe long`` takes two hours of one core, and writes
``results/segmentation_hippocampus_long.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from report import ROOT, bar, commit, write

mpl.use("Agg")
from matplotlib import pyplot as plt

LABELS = "anterior,posterior"


def run(*words: str) -> tuple[dict[str, Any], float, float]:
    """Run the command line; gives its JSON, wall and CPU seconds."""
    wall, before = time.monotonic(), os.times()
    done = subprocess.run(
        [sys.executable, "-c", "from segunlearn.cli import main; main()", *words, "--json"],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return json.loads(done.stdout), time.monotonic() - wall, cpu


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over people."""
    draws = np.random.default_rng(seed).choice(values, (10_000, len(values))).mean(axis=1)
    return float(np.percentile(draws, 2.5)), float(np.percentile(draws, 97.5))


def plot(trained: dict[str, Any], people: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the curve of the training, and the Dice of every held-out person."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    curve = trained["curve"]
    left.plot([r["epoch"] for r in curve], [r["loss"] for r in curve], color="0.6", label="loss")
    left.set(xlabel="epoch", ylabel="training loss (Dice + cross-entropy)")
    seen = [r for r in curve if r.get("val_dice") is not None]
    twin = left.twinx() if seen else left  # the long recipe keeps nobody for validation
    for i, name in enumerate(LABELS.split(",")):
        twin.plot(
            [r["epoch"] for r in seen], [r["val_dice_per_label"][i] for r in seen], "o-", label=name
        )
    if seen:
        twin.set(ylabel="validation Dice")
        twin.legend(loc="center right")
    left.set_title("training")
    values = sorted(p["dice"] for p in people.values())
    right.bar(range(len(values)), values, color="tab:blue")
    right.axhline(0.86, color="tab:red", linestyle="--", label="bar 0.86")
    right.axhline(float(np.mean(values)), color="black", label=f"mean {np.mean(values):.3f}")
    right.set(xlabel="held-out person", ylabel="mean Dice of both labels", ylim=(0.5, 1.0))
    right.set_title("people the model has never seen")
    right.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, evaluate, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("SEGUNLEARN_DATA"))
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three epochs, nothing is written")
    parser.add_argument("--home", type=Path, help="kept: a stopped run goes on from it")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data or set SEGUNLEARN_DATA")
    data = str(options.data / "hippocampus")
    epochs = 3 if options.quick else options.epochs
    with tempfile.TemporaryDirectory() as temporary:
        home = str(options.home or temporary)
        recipe = ["--recipe", options.recipe, "--flip", "R", "--seed", str(options.seed)]
        if options.recipe == "default":
            recipe += ["--epochs", str(epochs)]
        place = ["--data", data, "--home", home]
        done = Path(home) / "trained.json"
        if not done.is_file():
            outcome = run("train", *place, "--labels", LABELS, "--holdout", "0.2", *recipe)
            done.write_text(json.dumps([*outcome, commit()]), encoding="utf-8")
        trained, wall, cpu, trained_at = json.loads(done.read_text(encoding="utf-8"))
        measured, eval_wall, _ = run("evaluate", *place, "--held-out")
        mirrored, _, _ = run("evaluate", *place, "--held-out", "--mirror", "R")
    dice = np.array([p["dice"] for p in measured["per_person"].values()])
    low, high = bootstrap(dice)
    if options.recipe == "long":
        bars = [
            bar("mean Dice of both labels, held-out people, long recipe", float(dice.mean()),
                ">= 0.89", dice.mean() >= 0.89),
        ]  # fmt: skip
    else:
        bars = [
            bar("mean Dice of both labels, held-out people", float(dice.mean()), ">= 0.86",
                dice.mean() >= 0.86),
            bar("training, minutes of wall time", wall / 60, "<= 40", wall <= 2400),
        ]  # fmt: skip
    for name, figures in measured["per_label"].items():
        sys.stdout.write(
            f"{name:10} Dice {figures['dice']:.3f}  HD95 {figures['hd95_mm']:.2f} mm  "
            f"surface Dice {figures['surface_dice']:.3f}\n"
        )
    sys.stdout.write(f"mean Dice {dice.mean():.4f} [{low:.4f}, {high:.4f}], {len(dice)} people\n")
    if options.quick:
        return
    figures = {
        "mean_dice": float(dice.mean()),
        "mean_dice_interval_95": [low, high],
        "standard_deviation_over_people": float(dice.std(ddof=1)),
        "people": len(dice),
        "images": len({c["series"] for c in measured["cases"]}),
        "mean_dice_over_mirror_images": float(
            np.mean([p["dice"] for p in mirrored["per_person"].values()])
        ),
        "per_label": measured["per_label"],
        "per_person": measured["per_person"],
        "train_images": trained["train_cases"],
        "validation_images": trained["val_cases"],
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "evaluation_wall_seconds": eval_wall,
        "curve": trained["curve"],
    }
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    name = "segmentation_hippocampus" + ("_long" if options.recipe == "long" else "")
    write(
        name, figures, bars,
        seed=options.seed, recipe=recipe, threads=threads, trained_at=trained_at,
    )  # fmt: skip
    plot(trained, measured["per_person"], ROOT / "results" / f"{name}.png")


if __name__ == "__main__":
    main()
