"""Adapting to simulated sites that were left out, against tuned fine-tuning.

``python tests/benchmarks/adaptation.py --data DIR`` divides the hippocampus people among sites
(``adaptation_people``). A fold leaves two sites out, tunes every baseline's rate on a third, for
each k and number of steps, and trains a joint model and meta models on the rest. The baselines
start from a joint model that was trained as long as joint and meta-training together. At a left-out
site every draw takes k people as support, the same for all methods, and scores all others.

Each fold is one file in ``--work``, so a stopped run goes on; the result says which are there.
``--quick`` is one fold of tiny trainings and writes nothing to ``results/``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptation_people import CONFIG, Regime, Slices
from report import ROOT, bar, write
from torch import nn

from segunlearn.adaptation import AdaptSettings, MetaModel, gate, leave_one_out
from segunlearn.adaptation.adapt import adapt_along
from segunlearn.adaptation.episodes import EpisodeSettings
from segunlearn.adaptation.gate import dice_by_person
from segunlearn.adaptation.maml import MamlSettings
from segunlearn.adaptation.meta_training import MetaSettings, meta_train
from segunlearn.adaptation.virtual_sites import VirtualSettings
from segunlearn.networks import build_network
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.unlearning import Study, lora
from segunlearn.unlearning.loop import Steps, copy_of, descend, dice_ce
from segunlearn.unlearning.sets import Draw

REGIMES: tuple[Regime, ...] = ("disagree", "appearance")
BASE = "0" * 64


@dataclass(frozen=True)
class Size:
    """How much is done."""

    people: int | None = None
    sites: int = 12
    left_out: int = 2
    folds: int = 6
    seeds: int = 3
    joint_steps: int = 2000
    iterations: int = 400
    generator_iterations: int = 800
    ks: tuple[int, ...] = (1, 3, 5)
    steps: tuple[int, ...] = (0, 1, 3, 5, 10, 50)
    draws: int = 5
    tuning_draws: int = 2
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    stock_epochs: int = 50


QUICK = Size(16, 4, 1, 1, 1, 20, 2, 2, (1, 2), (0, 3), 2, 1, (1e-3, 1e-2), 2)

Way = Callable[[Sequence[Study], Sequence[int]], Iterator[tuple[int, nn.Module]]]


def joint(studies: Sequence[Study], steps: int, seed: int) -> tuple[nn.Module, float]:
    """Train on all sites together; gives the network and CPU seconds."""
    started, network = time.process_time(), build_network(CONFIG, seed)
    draw = Draw(studies, CONFIG, 16, seed)
    descend(network, lambda _: dice_ce(network, draw.next()), Steps(steps, 3e-3, "one_cycle"))
    return network.eval(), time.process_time() - started


def adapted(network: nn.Module, meta: MetaModel | None, settings: AdaptSettings) -> Way:
    """Adapt as the product does."""

    def way(support: Sequence[Study], steps: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        for step, found in adapt_along(network, meta, support, CONFIG, settings, steps):
            yield step, found.network

    return way


def low_rank(network: nn.Module, rate: float) -> Way:
    """Fine-tune an adapter of rank 4 on all convolutions, by Adam."""

    def way(support: Sequence[Study], steps: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        made = lora.adapt(network, lora.LoraSettings(4, 8.0, "all", norms=False, biases=False), 0)
        weights = [p for p in made.network.parameters() if p.requires_grad]
        yield from descended(
            made.network, torch.optim.Adam(weights, rate), support, steps, made.merged
        )

    return way


def stock(network: nn.Module, epochs: int) -> Way:
    """Follow MONAI Label 0.8.5's recipe: AdamW at 1e-4, one image a step, so many epochs.

    Whatever the number of steps asked for; without its pre-processing, which here is done already.
    """

    def way(support: Sequence[Study], steps: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        mine = copy_of(network)
        optimiser = torch.optim.AdamW(mine.parameters(), 1e-4, weight_decay=1e-5)
        end = epochs * len(support)
        for _, found in descended(mine, optimiser, support, [end], lambda: mine, batch=1):
            yield from ((step, found) for step in steps)

    return way


def descended(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    support: Sequence[Study],
    steps: Sequence[int],
    result: Callable[[], nn.Module],
    batch: int | None = None,
) -> Iterator[tuple[int, nn.Module]]:
    """Descend on the support; give the result after each number of steps."""
    draw = Draw(support, CONFIG, batch or len(support), 0)
    for step in range(max(steps) + 1):
        if step in steps:
            yield step, result()
        loss = dice_ce(network.train(), draw.next())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def supports(
    people: Sequence[Study], k: int, draws: int
) -> Iterator[tuple[list[Study], list[Study]]]:
    """Support and query of each draw; the same for all methods."""
    for draw in range(draws):
        order = np.random.default_rng((draw, k)).permutation(len(people))
        chosen = [people[i] for i in order]
        yield chosen[:k], chosen[k:]


Scores = dict[int, dict[str, float]]


def scores(way: Way, people: Sequence[Study], k: int, steps: Sequence[int], draws: int) -> Scores:
    """Dice of each person after each number of steps, a mean over the draws that query them."""
    found: dict[int, dict[str, list[float]]] = {step: {} for step in steps}
    for support, query in supports(people, k, draws):
        for step, network in way(support, steps):
            for person, dice in dice_by_person(network.eval(), query, CONFIG, (1,)).items():
                found[step].setdefault(person, []).append(dice)
    return {
        step: {person: float(np.mean(values)) for person, values in sorted(of.items())}
        for step, of in found.items()
    }


def gated(
    network: nn.Module, meta: MetaModel, settings: AdaptSettings,
    people: Sequence[Study], k: int, draws: int,
) -> Scores:  # fmt: skip
    """What is served: the adapter where leaving one out is no worse, else the base."""
    found: dict[str, list[float]] = {}
    for support, query in supports(people, k, draws):
        adopted = k > 1 and gate(leave_one_out(network, meta, support, CONFIG, settings))[0]
        chosen = network
        if adopted:
            _, chosen = next(adapted(network, meta, settings)(support, [settings.steps]))
        for person, dice in dice_by_person(chosen, query, CONFIG, (1,)).items():
            found.setdefault(person, []).append(dice)
    return {settings.steps: {p: float(np.mean(v)) for p, v in sorted(found.items())}}


@dataclass(frozen=True)
class Trained:
    """What a fold's trainings leave."""

    base: nn.Module
    meta: MetaModel
    ablation: MetaModel | None
    matched: nn.Module
    facts: dict[str, Any]


def train(
    sources: Mapping[str, Sequence[Study]], seed: int, size: Size, *, ablate: bool
) -> Trained:
    """Joint and meta-training, and a joint one that takes as long as both."""
    studies = [s for people in sources.values() for s in people]
    base, seconds = joint(studies, size.joint_steps, seed)
    plain = EpisodeSettings(virtual=None, seed=seed)
    episodes = dataclasses.replace(plain, virtual=VirtualSettings())
    maml = MetaSettings(
        learn=("maml",),
        iterations=size.iterations,
        episodes=episodes,
        maml=MamlSettings(checkpointed=False),  # small pictures: the memory is there
    )
    started = time.process_time()
    learned = meta_train(base, sources, CONFIG, maml, base_sha256=BASE)
    maml_seconds = time.process_time() - started
    film = dataclasses.replace(maml, learn=("generator",), iterations=size.generator_iterations)
    made = meta_train(base, sources, CONFIG, film, base_sha256=BASE)
    meta_seconds = time.process_time() - started
    meta = dataclasses.replace(learned, generator=made.generator, film_network=made.film_network)
    without = dataclasses.replace(maml, episodes=plain)
    ablation = meta_train(base, sources, CONFIG, without, base_sha256=BASE) if ablate else None
    longer = round(size.joint_steps * (1 + meta_seconds / max(seconds, 1e-9)))
    matched, _ = joint(studies, longer, seed)
    facts = {
        "joint_seconds": seconds, "maml_seconds": maml_seconds, "meta_seconds": meta_seconds,
        "matched_steps": longer,
    }  # fmt: skip
    return Trained(base, meta, ablation, matched, facts)


def baselines(start: nn.Module, scratch: nn.Module) -> dict[str, Callable[[float], Way]]:
    """Every tuned baseline, from its rate."""

    def tuned(network: nn.Module, inner: Any, *, augment: bool = False) -> Callable[[float], Way]:
        way = AdaptSettings("fine_tune", inner_set=inner, augment=augment)
        return lambda rate: adapted(network, None, dataclasses.replace(way, learning_rate=rate))

    return {
        "fine_tune all": tuned(start, "all"),
        "fine_tune decoder": tuned(start, "decoder"),
        "fine_tune augmented": tuned(start, "all", augment=True),
        "fine_tune lora": lambda rate: low_rank(start, rate),
        "scratch": tuned(scratch, "all"),
    }


def fold(
    sites: Mapping[str, Sequence[Study]], number: int, seed: int, size: Size, *, ablate: bool
) -> dict[str, Any]:
    """Leave sites out, tune on the next one, train on the others; Dice by site and method."""
    names = sorted(sites)
    names = names[number * size.left_out :] + names[: number * size.left_out]
    out, tuning = names[: size.left_out], names[size.left_out]
    sources = {name: sites[name] for name in names[size.left_out + 1 :]}
    trained = train(sources, seed, size, ablate=ablate)
    ours: dict[str, Way] = {
        "maml": adapted(trained.base, trained.meta, AdaptSettings("maml")),
        "generator": adapted(trained.base, trained.meta, AdaptSettings("generator+steps")),
        "stock": stock(trained.matched, size.stock_epochs),
    }
    if trained.ablation is not None:
        maml = adapted(trained.base, trained.ablation, AdaptSettings("maml"))
        ours["maml without virtual sites"] = maml
    dice: dict[str, dict[str, dict[str, float]]] = {name: {} for name in out}
    rates: dict[str, float] = {}

    def keep(site: str, name: str, k: int, found: Scores) -> None:
        for step, of in found.items():
            dice[site][f"{name} k={k} steps={step}"] = of

    for k in size.ks:
        for name, way_at in baselines(trained.matched, build_network(CONFIG, seed)).items():
            tried = {
                rate: scores(way_at(rate), sites[tuning], k, size.steps, size.tuning_draws)
                for rate in size.rates
            }
            best: dict[float, list[int]] = {}
            for step in size.steps:
                rate = max(tried, key=lambda r: float(np.mean(list(tried[r][step].values()))))
                rates[f"{name} k={k} steps={step}"] = rate
                best.setdefault(rate, []).append(step)
            for site, (rate, steps) in itertools.product(out, best.items()):
                keep(site, name, k, scores(way_at(rate), sites[site], k, steps, size.draws))
        for site, (name, way) in itertools.product(out, ours.items()):
            keep(site, name, k, scores(way, sites[site], k, size.steps, size.draws))
        for site, kind in itertools.product(out, ("maml", "generator+steps")):
            settings = AdaptSettings(kind, steps=3)  # type: ignore[arg-type]
            found = gated(trained.base, trained.meta, settings, sites[site], k, size.draws)
            keep(site, f"{kind.split('+')[0]} gated", k, found)
    return {
        "out": out, "tuned_on": tuning, "seed": seed, "fold": number, "dice": dice,
        "rates": rates, **trained.facts,
    }  # fmt: skip


def paired(
    sites: Sequence[Mapping[str, Mapping[str, float]]], one: str, other: str, seed: int = 0
) -> dict[str, float]:
    """Mean difference in Dice points, its 95 % interval over sites and people, sites won."""
    rng = np.random.default_rng(seed)
    gains = [np.array([s[one][p] - s[other][p] for p in sorted(s[one])]) for s in sites]
    means = [
        np.mean([rng.choice(gains[i], len(gains[i])).mean() for i in picks])
        for picks in rng.integers(len(gains), size=(10_000, len(gains)))
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    mean = np.mean([g.mean() for g in gains])
    return {
        "difference": 100 * float(mean), "low": 100 * float(low), "high": 100 * float(high),
        "sites_won": sum(bool(g.mean() > 0) for g in gains), "sites": len(gains),
    }  # fmt: skip


def done_folds(
    slices: Slices, size: Size, work: Path, only: Sequence[str], *, make: bool
) -> Iterator[tuple[Regime, dict[str, Any]]]:
    """Read the folds that are there, make the others; the first of every seed comes first."""
    for number, regime, seed in itertools.product(range(size.folds), REGIMES, range(size.seeds)):
        path = work / f"{regime}-{seed}-{number:02d}.json"
        if not path.is_file():
            if not make or (f"{regime}-{seed}-{number:02d}" not in only and only):
                continue
            started, sites = time.monotonic(), slices.sites(regime, size.sites, seed)
            ablate = regime == "disagree"
            write_json_durably(path, fold(sites, number, seed, size, ablate=ablate))
            minutes = (time.monotonic() - started) / 60
            sys.stdout.write(f"{path.stem}: {minutes:.0f} min\n")
            sys.stdout.flush()
        yield regime, read_json(path)


def summary(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean Dice of every method over the left-out sites, and ours beside the best baseline."""
    sites = [dice for fold in folds for dice in fold["dice"].values()]
    table = {
        method: 100 * float(np.mean([np.mean(list(s[method].values())) for s in sites]))
        for method in sites[0]
    }
    against = {}
    for method in table:
        if not method.startswith(("maml", "generator")):
            continue
        at, steps = method[method.index(" k=") :], int(method.split("=")[-1])
        k = at.split(" steps")[0]
        tuned = [m for m in table if m.startswith("fine_tune") and k + " " in m]
        rivals = {
            "same steps": [m for m in tuned if m.endswith(at)],
            "any steps up to these": [m for m in tuned if int(m.split("=")[-1]) <= steps],
            "50 steps": [m for m in tuned if m.endswith("steps=50")],
            "any steps": tuned,
            "zero shot": [f"fine_tune all{k} steps=0"],
        }
        against[method] = {
            name: {"rival": best, **paired(sites, method, best)}
            for name, found in rivals.items()
            if (best := max(found, key=lambda m: table[m], default="")) and best in table
        }
    return {"dice": table, "against": against, "folds": list(folds)}


def bars_of(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Acceptance figures."""
    found = []
    for regime, of in figures.items():
        against = of["against"]

        def add(method: str, rival: str, least: float, *, sure: bool = False) -> None:
            row = against[method][rival]  # noqa: B023
            holds = row["difference"] >= least and (not sure or row["low"] > 0)
            target = f">= {least}" + (", interval above 0" if sure else "")
            name = f"{regime}: {method} over {rival} ({row['rival']}), Dice points"  # noqa: B023
            found.append(bar(name, row["difference"], target, holds))

        if regime == "disagree":
            for k, least in ((1, 5.0), (5, 3.0)):
                add(f"maml k={k} steps=3", "same steps", least, sure=True)
                add(f"maml k={k} steps=3", "50 steps", -1.0)
            add("generator k=1 steps=0", "any steps", 0.0)
        else:
            for kind, k in itertools.product(("maml gated", "generator gated"), (1, 3, 5)):
                add(f"{kind} k={k} steps=3", "zero shot", -0.5)
                add(f"{kind} k={k} steps=3", "same steps", -0.5)
    return found


def main() -> None:
    """Run every fold; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="hippocampus, with images/")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "adaptation_simulated")
    parser.add_argument("--only", nargs="+", default=[], metavar="REGIME-SEED-FOLD")
    parser.add_argument("--summary", action="store_true", help="only from what is there")
    parser.add_argument("--quick", action="store_true", help="tiny, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else Size()
    options.work.mkdir(parents=True, exist_ok=True)
    slices = Slices.load(options.data, size.people)
    folds: dict[str, list[dict[str, Any]]] = {}
    make = not options.summary
    for regime, found in done_folds(slices, size, options.work, options.only, make=make):
        folds.setdefault(regime, []).append(found)
    figures = {regime: summary(of) for regime, of in folds.items()}
    for name, of in figures.items():
        for method, value in of["dice"].items():
            sys.stdout.write(f"{name:10} {method:45} {value:6.2f}\n")
    if not (options.quick or options.only):
        done = {regime: sorted((f["seed"], f["fold"]) for f in of) for regime, of in folds.items()}
        write(
            "adaptation_simulated", figures, bars_of(figures),
            size=dataclasses.asdict(size), folds_done=done, threads="1",
        )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
