"""What unlearning costs beside training again: CPU seconds of both, in turns in one process.

``python tests/benchmarks/unlearning_cost.py --data DIR`` with the hippocampus crops writes
``results/unlearning_cost.json``. Shared machines are noisy: each round trains again in full and
then runs every way in the settings of ``unlearning.py``, and the ratio is taken inside the round.
The curve over people retained trains again for two epochs and multiplies: an epoch costs the same
whatever the rate. The rounds unlearn from the originals of ``unlearning.py``, which it must have
left in ``--work``: how often the loop of ``calibrated`` runs depends on them. The curve is of a
network that was not trained.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from report import ROOT, bar, write
from torch import nn
from unlearning_task import Task, load, of
from unlearning_tuning import settings_of

from segunlearn.networks import build_network, load_weights
from segunlearn.records.durable import read_json
from segunlearn.unlearning import UnlearningSets, unlearn
from segunlearn.unlearning.retrain import RetrainSettings, retrain

mpl.use("Agg")
from matplotlib import pyplot as plt

#: Way, and how many times cheaper than training again it must be.
LEAST = {"erode_and_repair": 5.0, "erode_and_repair_lora": 5.0, "calibrated": 20.0}
#: People retained in the curve; the first is that of the benchmark's forget set of 20 %.
RETAINED = (24, 48, 96)
EPOCHS_TIMED = 2


def cost(make: Callable[[], Any]) -> float:
    """CPU seconds."""
    started = time.process_time()
    make()
    return time.process_time() - started


def untrained(task: Task, retained: int) -> tuple[nn.Module, UnlearningSets]:
    """A fresh network, and so many people retained."""
    persons = sorted({s.person for s in task.studies})
    order = [persons[i] for i in np.random.default_rng(0).permutation(len(persons))]
    ends = np.cumsum([0, task.forget["20 %"], retained, 10])
    chosen = [of(task.studies, order[a:b]) for a, b in itertools.pairwise(ends)]
    return build_network(task.config, 0).eval(), UnlearningSets(task.config, *chosen)


def trained(task: Task, seed: int, work: Path) -> tuple[nn.Module, UnlearningSets]:
    """The original of a seed of ``unlearning.py``, and its sets where 20 % are forgotten."""
    split = task.split(seed)
    order = list(dict.fromkeys(s.person for s in split["trained"]))
    count = task.forget["20 %"]
    parts = [of(split["trained"], some) for some in (order[:count], order[count:])]
    folder = work / f"seed-{seed}"
    digest = read_json(folder / "original.json")["sha256"]
    network = load_weights(folder / "original.safetensors", task.config, digest).eval()
    return network, UnlearningSets(task.config, *parts, split["calibration"])


def costs(
    task: Task, network: nn.Module, sets: UnlearningSets, seed: int, epochs: int
) -> dict[str, float]:
    """CPU seconds of a full training, from so many epochs of it, and of each way."""
    fresh, settings = build_network(task.config, 0), RetrainSettings(epochs=epochs, seed=seed)
    only = UnlearningSets(task.config, retain=sets.retain)
    found = {"retrain": cost(lambda: retrain(fresh, only, settings)) * task.epochs / epochs}
    for name in LEAST:
        found[name] = cost(partial(unlearn, name, network, sets, settings_of(name, task.steps)))
    return found


def plot(curve: dict[int, dict[str, float]], path: Path) -> None:
    """CPU seconds over people retained."""
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for name in ("retrain", *LEAST):
        axes.plot(list(curve), [row[name] for row in curve.values()], "o-", label=name)
    axes.set(xlabel="people retained", ylabel="CPU seconds", yscale="log", xticks=list(curve))
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.12))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure the rounds and the curve, write both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    work = ROOT / ".bench" / "unlearning_hippocampus"
    parser.add_argument("--work", type=Path, default=work, help="of unlearning.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, rounds = load(options.data), []
    for number in range(options.rounds):
        rounds.append(costs(task, *trained(task, number, options.work), number, task.epochs))
        told = ", ".join(f"{n} {s:.1f}" for n, s in rounds[-1].items())
        sys.stdout.write(f"round {number + 1} of {options.rounds}: CPU s {told}\n")
        sys.stdout.flush()
    curve = {n: costs(task, *untrained(task, n), 0, EPOCHS_TIMED) for n in RETAINED}
    ratios = {name: [r["retrain"] / r[name] for r in rounds] for name in LEAST}
    bars = [
        bar(
            f"{name}, times cheaper than training again",
            float(np.mean(ratios[name])),
            f">= {least:.0f}",
            float(np.mean(ratios[name])) >= least,
        )
        for name, least in LEAST.items()
    ]
    spread = {n: float(np.std(r, ddof=1)) if len(r) > 1 else None for n, r in ratios.items()}
    figures = {
        "rounds": rounds,
        "ratios": {n: {"mean": float(np.mean(r)), "sd": spread[n]} for n, r in ratios.items()},
        "people_retained": {str(n): row for n, row in curve.items()},
    }
    write("unlearning_cost", figures, bars, seeds=list(range(options.rounds)), threads="1")
    plot(curve, ROOT / "results" / "unlearning_cost.png")


if __name__ == "__main__":
    main()
