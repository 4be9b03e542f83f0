"""Ways of adapting to a site, ours and the baselines, and how well each does there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from segunlearn.adaptation import AdaptSettings, MetaModel, choose, gate, leave_one_out
from segunlearn.adaptation.adapt import adapt_along
from segunlearn.networks import ModelConfig, build_network
from segunlearn.unlearning import Study, lora
from segunlearn.unlearning.loop import copy_of, dice_by_person, dice_ce
from segunlearn.unlearning.sets import Draw

#: Gives the adapted network after each of the numbers of steps.
Walk = Iterator[tuple[int, nn.Module]]
Way = Callable[[Sequence[Study], Sequence[int]], Walk]
#: Dice of each person after each number of steps.
Scores = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Protocol:
    """How adapting is measured.

    Parameters
    ----------
    config
        Of the network.
    ks
        Numbers of support people.
    steps
        Numbers of gradient steps that are looked at.
    draws, tuning_draws
        Supports of each k at a left-out site and at the site that rates are tuned on.
    rates
        That are tried for every baseline.
    stock_epochs
        Of MONAI Label's recipe.
    query
        Most people that a draw is judged on; None: all but its support.
    """

    config: ModelConfig
    ks: tuple[int, ...] = (1, 3, 5)
    steps: tuple[int, ...] = (0, 1, 3, 5, 10, 50)
    draws: int = 5
    tuning_draws: int = 2
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    stock_epochs: int = 50
    query: int | None = None


def adapted(
    network: nn.Module, meta: MetaModel | None, config: ModelConfig, settings: AdaptSettings
) -> Way:
    """Adapt as the product does."""

    def way(support: Sequence[Study], steps: Sequence[int]) -> Walk:
        for step, found in adapt_along(network, meta, support, config, settings, steps):
            yield step, found.network

    return way


def low_rank(network: nn.Module, config: ModelConfig, rate: float) -> Way:
    """Fine-tune an adapter of rank 4 on all convolutions, by Adam."""

    def way(support: Sequence[Study], steps: Sequence[int]) -> Walk:
        made = lora.adapt(network, lora.LoraSettings(4, 8.0, "all", norms=False, biases=False), 0)
        weights = [p for p in made.network.parameters() if p.requires_grad]
        draw = Draw(support, config, len(support), 0)
        adam = torch.optim.Adam(weights, rate, fused=True)
        yield from descended(made.network, adam, draw, steps, made.merged)

    return way


def stock(network: nn.Module, config: ModelConfig, epochs: int) -> Way:
    """Follow MONAI Label 0.8.5's recipe: AdamW at 1e-4, one image a step, so many epochs.

    Whatever the number of steps asked for; without its pre-processing, which here is done already.
    """

    def way(support: Sequence[Study], steps: Sequence[int]) -> Walk:
        mine, draw = copy_of(network), Draw(support, config, 1, 0)
        optimiser = torch.optim.AdamW(mine.parameters(), 1e-4, weight_decay=1e-5, fused=True)
        end = epochs * len(support)
        for _, found in descended(mine, optimiser, draw, [end], lambda: mine):
            yield from ((step, found) for step in steps)

    return way


def descended(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    draw: Draw,
    steps: Sequence[int],
    result: Callable[[], nn.Module],
) -> Walk:
    """Descend on the support; give the result after each number of steps."""
    for step in range(max(steps) + 1):
        if step in steps:
            yield step, result()
        loss = dice_ce(network.train(), draw.next())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def baselines(
    start: nn.Module, base: nn.Module, protocol: Protocol, seed: int
) -> dict[str, Callable[[float], Way]]:
    """Every tuned baseline, from its rate.

    Parameters
    ----------
    start
        Of most: the joint model that was trained as long as ours.
    base
        The joint model that ours start from: with few sites a shorter training can be the better.
    seed
        Of the fresh network of ``scratch``.
    """
    config = protocol.config

    def tuned(network: nn.Module, inner: Any, *, augment: bool = False) -> Callable[[float], Way]:
        way = AdaptSettings("fine_tune", inner_set=inner, augment=augment)
        return lambda rate: adapted(
            network, None, config, dataclasses.replace(way, learning_rate=rate)
        )

    return {
        "fine_tune all": tuned(start, "all"),
        "fine_tune decoder": tuned(start, "decoder"),
        "fine_tune all, base": tuned(base, "all"),
        "fine_tune decoder, base": tuned(base, "decoder"),
        "fine_tune augmented": tuned(start, "all", augment=True),
        "fine_tune lora": lambda rate: low_rank(start, config, rate),
        "scratch": tuned(build_network(config, seed), "all"),
    }


def supports(
    studies: Sequence[Study], k: int, draws: int, query: int | None
) -> Iterator[tuple[list[Study], list[Study]]]:
    """Support and query of each draw, by person; the same for all methods.

    The support has one study of each of its people, the query every study of the others.
    """
    people: dict[str, list[Study]] = {}
    for study in studies:
        people.setdefault(study.person, []).append(study)
    mine = list(people.values())
    for draw in range(draws):
        order = np.random.default_rng((draw, k)).permutation(len(mine))
        others = order[k:] if query is None else order[k : k + query]
        yield [mine[i][0] for i in order[:k]], [s for i in others for s in mine[i]]


def scores(
    way: Way, people: Sequence[Study], k: int, steps: Sequence[int], draws: int, protocol: Protocol
) -> Scores:
    """Dice of each person after each number of steps, a mean over the draws that query them."""
    found: dict[int, dict[str, list[float]]] = {step: {} for step in steps}
    for support, query in supports(people, k, draws, protocol.query):
        for step, network in way(support, steps):
            _note(found[step], network, query, protocol)
    return {step: _means(of) for step, of in found.items()}


def gated(
    network: nn.Module,
    meta: MetaModel,
    tried: Sequence[AdaptSettings],
    people: Sequence[Study],
    k: int,
    protocol: Protocol,
) -> tuple[dict[str, float], float]:
    """Dice of what is served: the adapter where leaving one out is no worse, else the base.

    Of several ways that are tried it is that which does best on who is left out.

    Returns
    -------
    tuple
        Dice by person, and the share of draws whose adapter was adopted.
    """
    found: dict[str, list[float]] = {}
    adopted = []
    config = protocol.config
    for support, query in supports(people, k, protocol.draws, protocol.query):
        passed, chosen = False, network
        if k > 1:
            loo = [leave_one_out(network, meta, support, config, s) for s in tried]
            best = choose(loo)
            passed, settings = gate(loo[best])[0], tried[best]
        if passed:
            _, chosen = next(adapted(network, meta, config, settings)(support, [settings.steps]))
        _note(found, chosen, query, protocol)
        adopted.append(passed)
    return _means(found), float(np.mean(adopted))


def _note(
    found: dict[str, list[float]], network: nn.Module, query: Sequence[Study], protocol: Protocol
) -> None:
    for person, dice in dice_by_person(network.eval(), query, protocol.config, (1,)).items():
        found.setdefault(person, []).append(dice)


def _means(found: dict[str, list[float]]) -> dict[str, float]:
    return {person: round(float(np.mean(values)), 5) for person, values in sorted(found.items())}
