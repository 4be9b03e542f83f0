"""Adapting to simulated sites, leave-one-site-out, against tuned fine-tuning.

``python tests/benchmarks/adaptation.py --data DIR --work DIR`` divides the hippocampus people among
sites (``adaptation_people``). For each seed, regime and left-out site it trains a joint model and
meta models on the others but one, on which every baseline's rate is tuned for each k and number of
steps, and adapts to the left-out site. Each of these is one file in ``--work``, so a stopped run
goes on; ``--quick`` is one fold of tiny trainings and writes nothing to ``results/``.

Not in it yet: LoRA, MONAI Label's stock recipe, the gate.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from adaptation_people import CONFIG, Regime, Slices
from report import write
from torch import nn

from segunlearn.adaptation import AdaptSettings, MetaModel, adapt
from segunlearn.adaptation.episodes import EpisodeSettings
from segunlearn.adaptation.gate import dice_by_person
from segunlearn.adaptation.meta_training import MetaSettings, meta_train
from segunlearn.adaptation.virtual_sites import VirtualSettings
from segunlearn.networks import build_network
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.unlearning import Study
from segunlearn.unlearning.loop import Steps, descend, dice_ce
from segunlearn.unlearning.sets import Draw

REGIMES: tuple[Regime, ...] = ("disagree", "appearance")
BASE = "0" * 64


@dataclass(frozen=True)
class Size:
    """How much is done."""

    people: int | None = None
    sites: int = 10
    folds: int = 10
    seeds: int = 3
    joint_steps: int = 2400
    iterations: int = 800
    ks: tuple[int, ...] = (1, 3, 5)
    steps: tuple[int, ...] = (0, 1, 3, 5, 10, 50)
    draws: int = 5
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


QUICK = Size(16, 4, 1, 1, 20, 2, (1,), (0, 3), 1, (1e-3, 1e-2))

#: Name, inner set, augmentation.
TUNED = (("all", "all", False), ("decoder", "decoder", False), ("augmented", "all", True))


def joint(studies: Sequence[Study], steps: int, seed: int) -> tuple[nn.Module, float]:
    """Train on all sites together; gives the network and CPU seconds."""
    started, network = time.process_time(), build_network(CONFIG, seed)
    draw = Draw(studies, CONFIG, 16, seed)
    descend(network, lambda _: dice_ce(network, draw.next()), Steps(steps, 3e-3, "one_cycle"))
    return network.eval(), time.process_time() - started


def scores(
    network: nn.Module,
    meta: MetaModel | None,
    people: Sequence[Study],
    k: int,
    settings: AdaptSettings,
    draws: int,
) -> dict[str, float]:
    """Dice of each query person, a mean over support draws; the queries are never support."""
    pool, query = people[: len(people) // 2], people[len(people) // 2 :]
    found: dict[str, list[float]] = {}
    for draw in range(draws):
        chosen = np.random.default_rng((draw, k)).permutation(len(pool))[:k]
        support = [pool[i] for i in chosen]
        adapted = adapt(network, meta, support, CONFIG, settings).network
        for person, dice in dice_by_person(adapted, query, CONFIG, (1,)).items():
            found.setdefault(person, []).append(dice)
    return {person: float(np.mean(values)) for person, values in found.items()}


def fold(
    sites: Mapping[str, Sequence[Study]], number: int, seed: int, size: Size
) -> dict[str, Any]:
    """Leave one site out, tune on the next one, train on the others; Dice by method."""
    names = sorted(sites)
    out, tuning = names[number], names[(number + 1) % len(names)]
    sources = {name: sites[name] for name in names if name not in (out, tuning)}
    studies = [s for people in sources.values() for s in people]
    base, seconds = joint(studies, size.joint_steps, seed)
    started = time.process_time()
    plain = EpisodeSettings(virtual=None, seed=seed)
    episodes = dataclasses.replace(plain, virtual=VirtualSettings())
    settings = MetaSettings(iterations=size.iterations, episodes=episodes)
    meta = meta_train(base, sources, CONFIG, settings, base_sha256=BASE)
    meta_seconds = time.process_time() - started
    without = dataclasses.replace(settings, learn=("maml",), episodes=plain)
    ablation = meta_train(base, sources, CONFIG, without, base_sha256=BASE)
    # the baselines' joint model is trained for as long as joint and meta-training together
    longer = round(size.joint_steps * (1 + meta_seconds / max(seconds, 1e-9)))
    matched, _ = joint(studies, longer, seed)
    rows: dict[str, dict[str, float]] = {}
    chosen: dict[str, float] = {}
    for k, steps in itertools.product(size.ks, size.steps):
        key = f"k={k} steps={steps}"
        for name, inner, augment in TUNED:
            for start, network in (("", matched), ("scratch ", build_network(CONFIG, seed))):
                if start and name != "all":
                    continue
                way = AdaptSettings("fine_tune", steps, inner, augment=augment)  # type: ignore[arg-type]
                ways = [dataclasses.replace(way, learning_rate=r) for r in size.rates]
                tried = [scores(network, None, sites[tuning], k, w, size.draws) for w in ways]
                best = int(np.argmax([np.mean(list(t.values())) for t in tried]))
                method = f"{start}fine_tune {name} {key}"
                chosen[method] = size.rates[best]
                rows[method] = scores(network, None, sites[out], k, ways[best], size.draws)
        for name, made, kind in (
            ("maml", meta, "maml"),
            ("maml without virtual sites", ablation, "maml"),
            ("generator", meta, "generator+steps"),
        ):
            how = AdaptSettings(kind, steps)  # type: ignore[arg-type]
            rows[f"{name} {key}"] = scores(base, made, sites[out], k, how, size.draws)
    return {
        "site": out, "tuned_on": tuning, "seed": seed, "dice": rows, "rates": chosen,
        "joint_seconds": seconds, "meta_seconds": meta_seconds, "matched_steps": longer,
    }  # fmt: skip


def paired(
    folds: Sequence[Mapping[str, Any]], one: str, other: str, seed: int = 0
) -> dict[str, float]:
    """Mean difference in Dice points, its 95 % interval over sites and people, sites won."""
    rng = np.random.default_rng(seed)
    sites = [
        np.array([f["dice"][one][p] - f["dice"][other][p] for p in sorted(f["dice"][one])])
        for f in folds
    ]
    means = [
        np.mean([rng.choice(sites[i], len(sites[i])).mean() for i in picks])
        for picks in rng.integers(len(sites), size=(10_000, len(sites)))
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    mean = np.mean([s.mean() for s in sites])
    return {
        "difference": 100 * float(mean), "low": 100 * float(low), "high": 100 * float(high),
        "sites_won": sum(bool(s.mean() > 0) for s in sites), "sites": len(sites),
    }  # fmt: skip


def done_folds(slices: Slices, size: Size, work: Path) -> Iterator[tuple[Regime, dict[str, Any]]]:
    """Read the folds that are there, make the others."""
    for seed, regime in itertools.product(range(size.seeds), REGIMES):
        sites = slices.sites(regime, size.sites, seed)
        for number in range(size.folds):
            path = work / f"{regime}-{seed}-{number:02d}.json"
            if not path.is_file():
                write_json_durably(path, fold(sites, number, seed, size))
            yield regime, read_json(path)


def main() -> None:
    """Run every fold; write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="hippocampus, with images/")
    parser.add_argument("--work", type=Path, required=True, help="files of finished folds")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    options.work.mkdir(parents=True, exist_ok=True)
    slices = Slices.load(options.data, size.people)
    folds: dict[str, list[dict[str, Any]]] = {regime: [] for regime in REGIMES}
    for regime, found in done_folds(slices, size, options.work):
        folds[regime].append(found)
    figures: dict[str, Any] = {}
    for regime, all_of in folds.items():
        table = {
            method: 100
            * float(np.mean([np.mean(list(f["dice"][method].values())) for f in all_of]))
            for method in all_of[0]["dice"]
        }
        tuned = [m for m in table if m.startswith("fine_tune")]
        against = {}
        for method in table:
            if method.startswith(("maml", "generator")):
                at = method[method.index("k=") :]
                best = max((m for m in tuned if m.endswith(f" {at}")), key=lambda m: table[m])
                against[method] = {"best": best, **paired(all_of, method, best)}
        figures[regime] = {"dice": table, "against_best_tuned": against, "folds": all_of}
        for method, value in table.items():
            sys.stdout.write(f"{regime:10} {method:45} {value:6.2f}\n")
    if not options.quick:
        write("adaptation_simulated", figures, [])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
