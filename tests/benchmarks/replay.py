"""Replay without stored patients, and what its generator must forget.

``python tests/benchmarks/replay.py --data DIR --seeds 3`` with the folder that holds
``hippocampus`` (Medical Segmentation Decathlon task 4, CC BY-SA 4.0; Simpson 2019, arXiv
1902.09063) and ``fundus`` (CHASE_DB1, CC BY 4.0, Fraz 2012; DRIVE, Staal 2004) writes
``results/replay.json`` and its plot. What is done is kept under ``--work``, with pictures of
samples and their neighbours, which show patients; ``--part`` does one half and writes no result.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import replay_table as table
import torch
from replay_feature import SITES, measure_feature
from replay_retain import measure
from report import ROOT, write
from unlearning_task import load


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure what is not there yet; write the result when all is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "replay")
    parser.add_argument(
        "--originals",
        type=Path,
        default=ROOT / ".bench" / "unlearning_hippocampus",
        help="work folder of unlearning.py, whose originals are copied where they are there",
    )
    parser.add_argument("--images", choices=SITES, nargs="+", default=list(SITES))
    parser.add_argument("--part", choices=("retain", "feature"), default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    retained, features = {}, {}
    if options.part != "feature":
        task = load(options.data / "hippocampus")
        for seed in range(options.seeds):
            retained[seed] = measure(task, seed, options.work, options.originals, say)
    if options.part != "retain":
        for name in options.images:
            features[name] = measure_feature(name, SITES[name](options.data), options.work, say)
    if options.part:
        return
    figures, bars = table.figures_of(retained, features)
    write(
        "replay", figures, bars, seeds=list(retained),
        threads=os.environ.get("OMP_NUM_THREADS", "1"),
    )  # fmt: skip
    table.plot(figures, ROOT / "results" / "replay.png")


if __name__ == "__main__":
    main()
