"""How much Dice rises where a person's other side is trained on, as in folds made by image.

Two crops of the hippocampus data are the left and the right of one person. Our folds keep both out
together; folds made by image, as published figures may have them, train on one and evaluate on the
other. ``python tests/benchmarks/segmentation_sides.py --data DIR --work DIR``
takes the models of ``segmentation_folds.py --work`` (fold by fold, which must be done), trains for
each a second one that saw the first crop of each held-out person too, and evaluates both on the
second crops. ``--folds`` names the folds; ``--only K`` does one and writes no result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import commit, write
from segmentation_folds import FOLDS, link
from segmentation_hippocampus import LABELS, bootstrap, run

from segunlearn.cases import Case, cases_from_folder, split_by_person


def measure(
    number: int, folds: Sequence[Sequence[Case]], place: Path, recipe: Sequence[str]
) -> dict[str, Any]:
    """Evaluate the fold's model, and one that saw the other sides; what was done is read."""
    done = place / "sides" / "measured.json"
    if not (place / "measured.json").is_file():
        raise SystemExit(f"fold {number} is not done: run segmentation_folds.py --only {number}.")
    if not done.is_file():
        people: dict[str, list[Case]] = defaultdict(list)
        for case in folds[number - 1]:
            people[case.person].append(case)
        pairs = [sorted(p, key=lambda c: c.series) for p in people.values() if len(p) == 2]
        taught = [case for i, fold in enumerate(folds, 1) if i != number for case in fold]
        seen = link(place / "sides" / "taught", [*taught, *(first for first, _ in pairs)])
        unseen = link(place / "sides" / "unseen", [second for _, second in pairs])
        home = str(place / "sides" / "home")
        trained, _, cpu = run(
            "train", "--data", str(seen), "--home", home, "--labels", LABELS, *recipe
        )
        figures: dict[str, Any] = {
            "cpu_seconds": cpu, "commit": commit(), "train_images": trained["train_cases"],
        }  # fmt: skip
        for name, model in (("kept out", str(place / "home")), ("other side trained on", home)):
            found, _, _ = run("evaluate", "--data", str(unseen), "--home", model)
            figures[name] = {p: v["dice"] for p, v in found["per_person"].items()}
        done.write_text(json.dumps(figures), encoding="utf-8")
    read: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return read


def main() -> None:
    """Do one fold, or some, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("SEGUNLEARN_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="of segmentation_folds.py")
    parser.add_argument("--epochs", type=int, default=30, help="as of the folds")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(1, FOLDS + 1)))
    parser.add_argument("--only", type=int, choices=range(1, FOLDS + 1))
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data or set SEGUNLEARN_DATA")
    cases = cases_from_folder(options.data / "hippocampus")
    folds = split_by_person(cases, (1 / FOLDS,) * FOLDS, 0)
    recipe = ["--flip", "R", "--seed", "0", "--epochs", str(options.epochs)]
    chosen = [options.only] if options.only else options.folds
    done = {n: measure(n, folds, options.work / "default" / str(n), recipe) for n in chosen}
    kept, told = (
        np.array([v for fold in done.values() for v in fold[name].values()])
        for name in ("kept out", "other side trained on")
    )
    low, high = bootstrap(told - kept)
    sys.stdout.write(
        f"{len(kept)} people: {kept.mean():.4f} kept out, {told.mean():.4f} where the other side "
        f"was trained on: {told.mean() - kept.mean():+.4f} [{low:+.4f}, {high:+.4f}]\n"
    )
    if options.only:
        return
    write(
        "segmentation_sides",
        {
            "people": len(kept),
            "mean_dice_kept_out": float(kept.mean()),
            "mean_dice_other_side_trained_on": float(told.mean()),
            "difference": float((told - kept).mean()),
            "difference_interval_95": [low, high],
            "folds": done,
        },
        [],  # it explains a figure; nothing is demanded of it
        seed=0, recipe=["--recipe", "default", *recipe],
        threads=os.environ.get("OMP_NUM_THREADS", "all"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
