"""Learning rate of each published method, chosen on a split that the benchmark never reports.

``python tests/benchmarks/unlearning_tuning.py --data DIR`` with the hippocampus crops: a coarse
grid, two splits of their own, the forget set of 20 %. The rate whose model is nearest to a
retrained one on forgotten and on unseen people (tug-of-war, after Zhao et al., arXiv 2406.01257)
goes into ``results/unlearning_tuning.json``, and the benchmark takes it from there.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import ROOT, write
from unlearning_task import load, of

from segunlearn.networks import build_network
from segunlearn.records.durable import read_json
from segunlearn.unlearning import METHODS, UnlearningSets, unlearn
from segunlearn.unlearning.loop import mean_dice
from segunlearn.unlearning.retrain import RetrainSettings, retrain

SEEDS = (1000, 1001)
FACTORS = (0.1, 0.3, 1.0, 3.0)
RESULT = ROOT / "results" / "unlearning_tuning.json"


def defaults_of(name: str, steps: int) -> Any:
    """Default settings of a method, with no more steps than the benchmark allows."""
    settings = METHODS[name].settings()
    if hasattr(settings, "steps"):
        settings = replace(settings, steps=min(settings.steps, steps))
    return settings


def settings_of(name: str, steps: int) -> Any:
    """Settings of a method in the benchmark: the tuned rate where there is one."""
    settings = defaults_of(name, steps)
    if not RESULT.is_file():
        return settings
    tuned = read_json(RESULT)["figures"].get(name)
    return settings if tuned is None else replace(settings, learning_rate=tuned["learning_rate"])


def main() -> None:
    """Try every rate on every split, keep the best mean."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = replace(load(options.data, quick=True), steps=25)
    names = [n for n, m in METHODS.items() if not m.exact and "erode_and_repair" not in n]
    scores: dict[str, dict[float, list[float]]] = {n: {f: [] for f in FACTORS} for n in names}
    for seed in SEEDS:
        split = task.split(seed)
        persons = list(dict.fromkeys(s.person for s in split["trained"]))
        count = task.forget["20 %"]
        forget, retain = (
            of(split["trained"], persons[:count]),
            of(split["trained"], persons[count:]),
        )
        start = build_network(task.config, 0)
        settings = RetrainSettings(epochs=task.epochs, seed=seed)
        original = retrain(start, UnlearningSets(task.config, retain=split["trained"]), settings)
        never = retrain(start, UnlearningSets(task.config, retain=retain), settings)
        sets = UnlearningSets(task.config, forget, retain, split["calibration"])
        level = [mean_dice(never, s, task.config) for s in (forget, split["test"])]
        for name in names:
            for factor in FACTORS:
                settings = defaults_of(name, task.steps)
                settings = replace(settings, learning_rate=settings.learning_rate * factor)
                made = unlearn(name, original, sets, settings).network
                now = [mean_dice(made, s, task.config) for s in (forget, split["test"])]
                near = float(np.prod([1 - abs(a - b) for a, b in zip(now, level, strict=True)]))
                scores[name][factor].append(near)
            sys.stdout.write(f"seed {seed} · {name}\n")
            sys.stdout.flush()
    figures = {}
    for name, tried in scores.items():
        best = max(tried, key=lambda f: float(np.mean(tried[f])))
        rate = METHODS[name].settings().learning_rate
        figures[name] = {
            "learning_rate": rate * best,
            "tug_of_war": {f"{rate * f:.2g}": float(np.mean(v)) for f, v in tried.items()},
        }
        sys.stdout.write(f"{name:20} {rate * best:.2g} {figures[name]['tug_of_war']}\n")
    write("unlearning_tuning", figures, [], seeds=list(SEEDS), threads="1")


if __name__ == "__main__":
    main()
