"""One fold: train on some sites, tune the baselines on another, adapt to those left out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from adaptation_kept import BASE, Kept
from adaptation_ways import Protocol, Scores, Way, adapted, baselines, gated, scores, stock
from torch import nn

from segunlearn.adaptation import AdaptSettings, MetaModel
from segunlearn.adaptation.adapt import AdaptMethod
from segunlearn.adaptation.episodes import PLACES, EpisodeSettings
from segunlearn.adaptation.maml import MamlSettings
from segunlearn.adaptation.meta_training import MetaSettings, meta_train
from segunlearn.adaptation.sampling import patches_of
from segunlearn.adaptation.virtual_sites import VirtualSettings, VirtualSite
from segunlearn.app.adapter_support import BEST, AdaptOrder
from segunlearn.networks import build_network
from segunlearn.unlearning import Study
from segunlearn.unlearning.loop import Steps, copy_of, descend, dice_ce

#: Of what ``--method best`` serves: those of the bars, and the command's own.
_BEST_STEPS = (3, 5)
Sites = Mapping[str, Sequence[Study]]
_OURS: tuple[AdaptMethod, ...] = ("generator+maml", "generator+steps", "maml")
#: The inner set was chosen on sites of another seed; pictures are small, so is the memory.
_MAML = MamlSettings(inner_set="all", checkpointed=False, initial_rate=0.02)


@dataclass(frozen=True)
class Training:
    """How long is trained.

    Parameters
    ----------
    joint_steps
        Of the model that meta-training starts from.
    longer
        More steps of it, for the one that is served and that adapters stand beside.
    iterations, generator_times
        Outer steps; see ``MetaSettings``.
    alone
        Outer steps of MAML without a generator, which is reported beside.
    batch
        Patches of a joint step; a virtual site changes four together.
    start_norm
        Of the generator's training; see ``MetaSettings``. Chosen on sites of another seed.
    virtual
        Sites that episodes are seen as; a joint step takes their looks without their labels.
    """

    joint_steps: int = 4500
    longer: int = 28_000
    iterations: int = 900
    generator_times: int = 5
    alone: int = 300
    batch: int = 16
    start_norm: float = 0.5
    maml: MamlSettings = _MAML
    virtual: VirtualSettings = field(default_factory=VirtualSettings)

    def meta(self, seed: int) -> MetaSettings:
        """Give the settings of the meta-training on virtual sites."""
        return MetaSettings(
            learn=("generator+maml",),
            iterations=self.iterations,
            generator_times=self.generator_times,
            stepped_learning_rate=3e-3,
            start_norm=self.start_norm,
            episodes=EpisodeSettings(virtual=self.virtual, seed=seed),
            maml=self.maml,
        )


@dataclass(frozen=True)
class Trained:
    """What a fold's trainings leave."""

    base: nn.Module
    meta: MetaModel
    ablation: MetaModel | None
    matched: nn.Module
    facts: dict[str, Any]


def joint(
    studies: Sequence[Study], protocol: Protocol, training: Training, seed: int,
    steps: int | None = None, start: nn.Module | None = None,
) -> nn.Module:  # fmt: skip
    """Train on all sites together, in the looks of virtual ones as meta-training does.

    Without their label conventions: nothing in an image says which one holds.

    Parameters
    ----------
    steps
        None: those of the settings.
    start
        Weights to go on from; None: fresh ones.
    """
    virtual = dataclasses.replace(training.virtual, border=0, part=0)
    rng = np.random.default_rng(seed)
    network = copy_of(start) if start is not None else build_network(protocol.config, seed)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        picked = [studies[i] for i in rng.choice(len(studies), training.batch)]
        images, labels = patches_of(picked, protocol.config, 1, rng, augmentation=PLACES)
        parts = list(zip(images.split(4), labels.split(4), strict=True))
        for number, (image, label) in enumerate(parts):
            if rng.random() < virtual.share:
                low, high = np.quantile(image.numpy(), [0.005, 0.995])
                site = VirtualSite.draw(float(low), float(high), virtual, rng)
                parts[number] = site.image(image, rng), site.label(label)
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    plan = Steps(steps or training.joint_steps, 3e-3, "one_cycle")
    descend(network, lambda _: dice_ce(network, batch()), plan)
    return network.eval()


def train(
    sources: Sites, seed: int, protocol: Protocol, training: Training, kept: Kept, *, ablate: bool
) -> Trained:
    """Joint and meta-training, and a joint one that takes as long as both."""
    config, longer = protocol.config, training.longer
    studies = [s for people in sources.values() for s in people]

    def further(name: str, seed: int, steps: int, start: nn.Module) -> nn.Module:
        make = partial(joint, studies, protocol, training, seed, steps, start)
        return cast(nn.Module, kept.network(name, config, make)[0])

    def learned(name: str, settings: MetaSettings) -> tuple[MetaModel, float]:
        make = partial(
            meta_train, base, sources, config, settings, base_sha256=BASE, start=early
        )  # fmt: skip
        return cast(tuple[MetaModel, float], kept.meta(name, make))

    early, joint_seconds = kept.network(
        "early", config, partial(joint, studies, protocol, training, seed)
    )
    base = further("base", seed + 2, longer, early) if longer else early
    both = training.meta(seed)
    meta, meta_seconds = learned("meta", both)
    alone = dataclasses.replace(both, learn=("maml",), iterations=training.alone)
    maml, _ = learned("maml", alone)
    meta = dataclasses.replace(meta, initial=maml.initial, rates=maml.rates)
    without = dataclasses.replace(both, episodes=EpisodeSettings(virtual=None, seed=seed))
    ablation = learned("ablation", without)[0] if ablate else None
    more = max(1, round(training.joint_steps * meta_seconds / max(joint_seconds, 1e-9)))
    matched = further("matched", seed + 1, more, base)
    facts = {
        "joint_seconds": joint_seconds, "meta_seconds": meta_seconds,
        "matched_steps": training.joint_steps + longer + more,
    }  # fmt: skip
    return Trained(base, meta, ablation, matched, facts)


def fold(
    sources: Sites,
    tuning: Sequence[Study],
    out: Sites,
    seed: int,
    protocol: Protocol,
    training: Training,
    *,
    ablate: bool,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Train, tune, adapt; Dice by left-out site, method and person.

    Parameters
    ----------
    sources
        Sites that are trained on.
    tuning
        People of another site: every baseline's rate is the best there for each k and number of
        steps.
    out
        Sites that are adapted to.
    ablate
        Meta-train once more without virtual sites.
    folder
        Where what is made on the way is kept; a fold that was stopped goes on.
    """
    kept = Kept(folder)
    trained = train(sources, seed, protocol, training, kept, ablate=ablate)
    dice: dict[str, dict[str, dict[str, float]]] = {name: {} for name in out}
    rates: dict[str, float] = {}
    adopted: dict[str, float] = {}
    for k in protocol.ks:
        found = kept.figures(f"k-{k}", partial(at, k, trained, tuning, out, seed, protocol))
        for site, of in found["dice"].items():
            dice[site] |= of
        rates |= found["rates"]
        adopted |= found["adopted"]
        found = kept.figures(f"best-{k}", partial(best_at, k, trained, out, protocol))
        for site, of in found["dice"].items():
            dice[site] |= of
        adopted |= found["adopted"]
    return {
        "out": list(out), "seed": seed, "dice": dice, "rates": rates, "adopted": adopted,
        **trained.facts,
    }  # fmt: skip


def at(
    k: int, trained: Trained, tuning: Sequence[Study], out: Sites, seed: int, protocol: Protocol
) -> dict[str, Any]:
    """Dice, tuned rates and shares of adopted adapters with so many people; see ``fold``."""
    config, both = protocol.config, AdaptSettings("generator+maml")
    ours: dict[str, Way] = {
        method: adapted(trained.base, trained.meta, config, AdaptSettings(method))
        for method in _OURS
    } | {
        "stock": stock(trained.matched, config, protocol.stock_epochs),
    }
    if trained.ablation is not None:
        ours[f"{both.method} without virtual sites"] = adapted(
            trained.base, trained.ablation, config, both
        )
    dice: dict[str, dict[str, dict[str, float]]] = {name: {} for name in out}
    rates: dict[str, float] = {}
    adopted: dict[str, float] = {}

    def keep(site: str, name: str, found: Scores) -> None:
        for step, of in found.items():
            dice[site][f"{name} k={k} steps={step}"] = of

    for name, way_at in baselines(trained.matched, trained.base, protocol, seed).items():
        for rate, steps in tuned(way_at, tuning, k, protocol).items():
            rates |= {f"{name} k={k} steps={step}": rate for step in steps}
            for site, people in out.items():
                keep(site, name, scores(way_at(rate), people, k, steps, protocol.draws, protocol))
    for (site, people), (name, way) in itertools.product(out.items(), ours.items()):
        keep(site, name, scores(way, people, k, protocol.steps, protocol.draws, protocol))
    for site, people in out.items():
        of, share = gated(trained.base, trained.meta, (both,), people, k, protocol)
        keep(site, f"{both.method} gated", {both.steps: of})
        adopted[f"{site} k={k}"] = share
    return {"dice": dice, "rates": rates, "adopted": adopted}


def best_at(k: int, trained: Trained, out: Sites, protocol: Protocol) -> dict[str, Any]:
    """Dice, and shares of adopted adapters, of what ``segunlearn adapt --method best`` serves."""
    dice: dict[str, dict[str, dict[str, float]]] = {name: {} for name in out}
    adopted: dict[str, float] = {}
    for (site, people), steps in itertools.product(out.items(), _BEST_STEPS):
        order = AdaptOrder("", method=BEST, settings={"steps": steps})
        tried = order.settings_for(trained.meta.methods)
        of, share = gated(trained.base, trained.meta, tried, people, k, protocol)
        dice[site][f"best gated k={k} steps={steps}"] = of
        adopted[f"{site} best k={k} steps={steps}"] = share
    return {"dice": dice, "adopted": adopted}


def tuned(
    way_at: Any, people: Sequence[Study], k: int, protocol: Protocol
) -> dict[float, list[int]]:
    """Numbers of steps by the rate that is best for them; somebody must be left to judge by."""
    k = min(k, len({s.person for s in people}) - 1)
    tried = {
        rate: scores(way_at(rate), people, k, protocol.steps, protocol.tuning_draws, protocol)
        for rate in protocol.rates
    }
    best: dict[float, list[int]] = {}
    for step in protocol.steps:
        rate = max(tried, key=lambda r: float(np.mean(list(tried[r][step].values()))))
        best.setdefault(rate, []).append(step)
    return best
