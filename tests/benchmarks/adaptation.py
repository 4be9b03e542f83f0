"""Adapting to simulated sites that were left out, against tuned fine-tuning.

``python tests/benchmarks/adaptation.py --data DIR`` divides the hippocampus people among sites
(``adaptation_people``). A fold leaves sites out, tunes every baseline's rate on another one, for
each k and number of steps, and trains a joint model and meta models on the rest. The baselines
start from a joint model that was trained as long as joint and meta-training together, two of them
from the shorter one that ours start from, on the same
virtual sites. At a left-out site every draw takes k people as support, the same for all methods,
and scores all others.

Each fold is one file in ``--work``, in the folder of the settings that made it, so a stopped run
goes on; the result holds those that are there, and a later run with the same settings takes them
from it.
``--folds`` takes that many of each seed; every seed makes sites of its own.
``--quick`` is one fold of tiny trainings and writes nothing to ``results/``.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from adaptation_fold import Sites, Training, fold
from adaptation_people import CONFIG, People, Regime, largest_of
from adaptation_table import better_than, curves, gate_bars, summary
from adaptation_ways import Protocol
from report import ROOT, commit, write

from segunlearn.adaptation import AdaptSettings
from segunlearn.records.durable import read_json, write_json_durably

REGIMES: tuple[Regime, ...] = ("disagree", "appearance")


@dataclass(frozen=True)
class Size:
    """How much is done; seeds below ``seeds`` are never used for tuning."""

    people: int | None = None
    sites: int = 12
    left_out: int = 3
    folds: int = 4
    seeds: int = 3
    protocol: Protocol = field(default_factory=lambda: Protocol(CONFIG))
    training: Training = field(default_factory=Training)


QUICK = Size(
    16, 4, 1, 1, 1,
    Protocol(CONFIG, (1, 2), (0, 3), 2, 1, (1e-3, 1e-2), 2), Training(20, 5, 2, 1, 2, batch=8),
)  # fmt: skip


def one_fold(
    sites: Sites, number: int, seed: int, size: Size, folder: Path, *, ablate: bool
) -> dict[str, Any]:
    """Leave sites out, tune on the next one, train on the others."""
    names = sorted(sites)
    names = names[number * size.left_out :] + names[: number * size.left_out]
    out, tuning = names[: size.left_out], names[size.left_out]
    found = fold(
        {name: sites[name] for name in names[size.left_out + 1 :]},
        largest_of(sites[tuning]),
        {name: largest_of(sites[name]) for name in out},
        seed,
        size.protocol,
        size.training,
        ablate=ablate,
        folder=folder,
    )
    return {"fold": number, "tuned_on": tuning, "commit": commit(), **found}


def done_folds(
    slices: People, size: Size, work: Path, only: Sequence[str], *, make: bool
) -> Iterator[tuple[Regime, dict[str, Any]]]:
    """Read the folds that are there, make the others; the first of every seed comes first."""
    for number, regime, seed in itertools.product(range(size.folds), REGIMES, range(size.seeds)):
        path = work / f"{regime}-{seed}-{number:02d}.json"
        if not path.is_file():
            if not make or (path.stem not in only and only):
                continue
            started, sites = time.monotonic(), slices.sites(regime, size.sites, seed)
            ablate = regime == "disagree" and seed == number == 0
            made = one_fold(sites, number, seed, size, path.with_suffix(""), ablate=ablate)
            write_json_durably(path, made)
            minutes = (time.monotonic() - started) / 60
            sys.stdout.write(f"{path.stem}: {minutes:.0f} min\n")
            sys.stdout.flush()
        yield regime, read_json(path)


def settings_sha256(size: Size) -> str:
    """Digest of all that a fold's figures depend on, but the code."""
    facts = {
        "size": dataclasses.asdict(size) | {"folds": None, "seeds": None},
        "meta": size.training.meta(0).to_json(),
        "adapt": dataclasses.asdict(AdaptSettings()),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recover(size: Size, work: Path) -> None:
    """Take the folds that the last result holds, where they were made with these settings."""
    path = ROOT / "results" / "adaptation_simulated.json"
    last = read_json(path) if path.is_file() else {}
    if last.get("settings_sha256") != settings_sha256(size):
        return
    for regime, figures in last["figures"].items():
        for found in figures["folds"]:
            fold_path = work / f"{regime}-{found['seed']}-{found['fold']:02d}.json"
            if not fold_path.is_file():
                write_json_durably(fold_path, found)


def bars_of(figures: Mapping[str, Any], ks: Sequence[int]) -> list[dict[str, Any]]:
    """Acceptance figures."""
    found = []
    if "disagree" in figures:
        of, name = figures["disagree"], "sites disagree"
        for k, least in ((1, 5.0), (5, 3.0)):
            method = f"generator+maml k={k} steps=3"
            found += [
                better_than(of, name, method, "same steps", least, sure=True),
                better_than(of, name, method, "50 steps", -1.0),
            ]
        found.append(better_than(of, name, "generator+maml k=1 steps=0", "any steps", 0.0))
    if "appearance" in figures:
        found += gate_bars(figures["appearance"], "only appearance differs", ks)
    return found


def main() -> None:
    """Run every fold; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="hippocampus, with images/")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "adaptation_simulated")
    parser.add_argument("--folds", type=int, default=Size.folds, help="of each seed and regime")
    parser.add_argument("--only", nargs="+", default=[], metavar="REGIME-SEED-FOLD")
    parser.add_argument("--summary", action="store_true", help="only from what is there")
    parser.add_argument("--quick", action="store_true", help="tiny, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else dataclasses.replace(Size(), folds=options.folds)
    work = options.work / settings_sha256(size)[:12]
    work.mkdir(parents=True, exist_ok=True)
    recover(size, work)
    slices = People.slices(options.data, size.people)
    folds: dict[str, list[dict[str, Any]]] = {}
    make = not options.summary
    for regime, found in done_folds(slices, size, work, options.only, make=make):
        folds.setdefault(regime, []).append(found)
    figures = {regime: summary(of) for regime, of in folds.items()}
    for name, of in figures.items():
        for method, value in of["dice"].items():
            sys.stdout.write(f"{name:10} {method:45} {value:6.2f}\n")
    if not (options.quick or options.only):
        done = {regime: sorted((f["seed"], f["fold"]) for f in of) for regime, of in folds.items()}
        curves(figures, ROOT / "results" / "adaptation_simulated.png")
        write(
            "adaptation_simulated", figures, bars_of(figures, size.protocol.ks),
            seeds=sorted({f["seed"] for of in folds.values() for f in of}),
            size=dataclasses.asdict(size), settings_sha256=settings_sha256(size), folds_done=done,
            threads="1",
        )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
