"""Meta-training in 3D, as ``segunlearn meta-train`` does it, from two norms of the start weights.

``python tests/benchmarks/adaptation_volumes.py --data DIR`` divides the hippocampus people among
twelve sites that disagree (``adaptation_people``), as volumes at 2 mm. Four sites are left out, the
baselines' rates are tuned on a fifth, the others are trained on: a joint model, from it the
command's ``--learn both`` once at the joint weights as they are and once with ``start_norm`` 0.5,
and a joint model that is trained on for as long as the longer of both. One seed; about three
core-hours. ``--only PART`` makes one part, so that two cores share the work; ``--quick`` is tiny
and writes nothing to ``results/``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptation_fold import Sites, Training, joint, tuned
from adaptation_kept import BASE, Kept
from adaptation_people import CONFIG, People
from adaptation_ways import Protocol, Scores, adapted, baselines, scores
from report import ROOT, write

from segunlearn.adaptation import AdaptSettings
from segunlearn.adaptation.meta_training import MetaSettings, meta_train
from segunlearn.app.meta_run import meta_settings
from segunlearn.unlearning import Study

VOLUMES = dataclasses.replace(
    CONFIG, spatial_dims=3, spacing=(2.0, 2.0, 2.0), patch_size=(16, 32, 16)
)
NAME = "adaptation_volumes"
#: By what the start is called; see ``MetaSettings.start_norm``.
NORMS: Mapping[str, float | None] = {"as trained": None, "norm 0.5": 0.5}
_PROTOCOL = Protocol(VOLUMES, steps=(0, 3, 10), draws=3, rates=(1e-3, 3e-3, 1e-2))
_TUNED = ("fine_tune all", "fine_tune decoder")


@dataclass(frozen=True)
class Size:
    """How much is done."""

    people: int | None = None
    sites: int = 12
    left_out: int = 4
    seed: int = 11
    joint_steps: int = 2000
    iterations: int = 300
    generator_times: int = 5
    protocol: Protocol = _PROTOCOL


QUICK = Size(16, 4, 1, 0, 6, 2, 2, Protocol(VOLUMES, (1, 2), (0, 3), 1, 1, (1e-3,)))


@dataclass(frozen=True)
class Trainings:
    """What is trained, each part once and then kept."""

    sources: Sites
    size: Size
    kept: Kept

    @property
    def studies(self) -> list[Study]:
        """Of all sites that are trained on."""
        return [s for people in self.sources.values() for s in people]

    def base(self) -> tuple[Any, float]:
        """Joint model, and the CPU seconds that it took."""
        steps, seed = self.size.joint_steps, self.size.seed
        made = partial(joint, self.studies, self.size.protocol, Training(batch=8), seed, steps)
        return self.kept.network("base", VOLUMES, made)  # type: ignore[no-any-return]

    def meta(self, start: str) -> tuple[Any, float]:
        """Meta model of this start, and its CPU seconds."""
        base, settings = self.base()[0], self.settings(start)
        made = partial(meta_train, base, self.sources, VOLUMES, settings, base_sha256=BASE)
        return self.kept.meta(start.replace(" ", "-"), made)  # type: ignore[no-any-return]

    def settings(self, start: str) -> MetaSettings:
        """Those of the command, but for how long and for the norm."""
        of_command = meta_settings(
            learn="both", iterations=self.size.iterations, order="second", inner_set="decoder",
            inner_steps=3, virtual_sites=True, seed=self.size.seed,
        )  # fmt: skip
        return dataclasses.replace(
            of_command, generator_times=self.size.generator_times, start_norm=NORMS[start]
        )

    def matched(self) -> tuple[Any, float]:
        """Joint model that went on for as long as the longer meta-training."""
        base, seconds = self.base()
        more = max(self.meta(start)[1] for start in NORMS)
        steps = max(1, round(self.size.joint_steps * more / seconds))
        made = partial(
            joint, self.studies, self.size.protocol, Training(batch=8), self.size.seed + 1, steps,
            base,
        )  # fmt: skip
        return self.kept.network("matched", VOLUMES, made)  # type: ignore[no-any-return]


def measure(trainings: Trainings, tuning: Sequence[Study], out: Sites) -> dict[str, Any]:
    """Dice by left-out site, method and person; rates of the baselines."""
    size, protocol = trainings.size, trainings.size.protocol
    base, matched = trainings.base()[0], trainings.matched()[0]
    ways = baselines(matched, base, protocol, size.seed)
    dice: dict[str, dict[str, dict[str, float]]] = {site: {} for site in out}
    rates: dict[str, float] = {}

    def keep(site: str, name: str, k: int, found: Scores) -> None:
        for step, of in found.items():
            dice[site][f"{name} k={k} steps={step}"] = of

    def ours(k: int, start: str) -> None:
        way = adapted(base, trainings.meta(start)[0], VOLUMES, AdaptSettings("generator+maml"))
        for site, people in out.items():
            found = scores(way, people, k, protocol.steps, protocol.draws, protocol)
            keep(site, f"generator+maml {start}", k, found)

    for k in protocol.ks:
        for start in NORMS:
            ours(k, start)
        for name in _TUNED:
            for rate, steps in tuned(ways[name], tuning, k, protocol).items():
                rates |= {f"{name} k={k} steps={step}": rate for step in steps}
                for site, people in out.items():
                    found = scores(ways[name](rate), people, k, steps, protocol.draws, protocol)
                    keep(site, name, k, found)
    return {"dice": dice, "rates": rates}


def differences(dice: Mapping[str, Mapping[str, Mapping[str, float]]], ks: Sequence[int]) -> Any:
    """Points of Dice between ways, with 95 % intervals over sites and people, paired."""
    new, old = (f"generator+maml {start}" for start in ("norm 0.5", "as trained"))
    found = {}
    for k, steps in itertools.product(ks, (0, 3)):
        best = max(_TUNED, key=lambda name: _mean(dice, f"{name} k={k} steps={steps}"))
        for a, b in ((new, old), (new, best), (old, best)):
            pair = [f"{way} k={k} steps={steps}" for way in (a, b)]
            found[f"{a} over {b}, k={k} steps={steps}"] = _paired(dice, *pair)
    return found


def _mean(dice: Mapping[str, Mapping[str, Mapping[str, float]]], method: str) -> float:
    return float(np.mean([np.mean(list(of[method].values())) for of in dice.values()]))


def _paired(
    dice: Mapping[str, Mapping[str, Mapping[str, float]]], a: str, b: str
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    sites = [np.array([of[a][p] - of[b][p] for p in sorted(of[a])]) for of in dice.values()]
    drawn = [
        np.mean([rng.choice(sites[i], len(sites[i])).mean() for i in chosen])
        for chosen in rng.integers(len(sites), size=(2000, len(sites)))
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    mean = float(np.mean([s.mean() for s in sites]))
    return {"mean": 100 * mean, "low": 100 * float(low), "high": 100 * float(high)}


def main() -> None:
    """Train, adapt, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="hippocampus, with images/")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / NAME)
    parser.add_argument("--only", choices=("base", *NORMS, "matched"), help="make this part alone")
    parser.add_argument("--quick", action="store_true", help="tiny, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else Size()
    sites = People.volumes(options.data, VOLUMES, size.people).sites(
        "disagree", size.sites, size.seed
    )
    names = sorted(sites)
    out, tuning, sources = names[: size.left_out], names[size.left_out], names[size.left_out + 1 :]
    kept = Kept(None if options.quick else options.work)
    trainings = Trainings({name: sites[name] for name in sources}, size, kept)
    if options.only:
        make = {"base": trainings.base, "matched": trainings.matched}
        made = make.get(options.only, partial(trainings.meta, options.only))()
        sys.stdout.write(f"{options.only}: {made[1]:.0f} s of CPU\n")
        return
    found = measure(trainings, sites[tuning], {name: sites[name] for name in out})
    ks = size.protocol.ks
    figures = {
        "mean_dice": {way: _mean(found["dice"], way) for way in found["dice"][out[0]]},
        "differences_in_points": differences(found["dice"], ks),
        "cpu_seconds": {
            "base": trainings.base()[1],
            **{start: trainings.meta(start)[1] for start in NORMS},
            "matched": trainings.matched()[1],
        },
        "left_out": out, "tuned_on": tuning, **found,
    }  # fmt: skip
    for way, value in figures["mean_dice"].items():
        sys.stdout.write(f"{way:45} {100 * value:6.2f}\n")
    for pair, of in figures["differences_in_points"].items():
        sys.stdout.write(f"{pair:90} {of['mean']:+.1f} [{of['low']:+.1f}, {of['high']:+.1f}]\n")
    if not options.quick:
        write(
            NAME, figures, [], seeds=[size.seed], size=dataclasses.asdict(size), threads="1",
            meta={start: trainings.settings(start).to_json() for start in NORMS},
        )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
