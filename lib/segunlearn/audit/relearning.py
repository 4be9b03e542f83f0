"""The relearning attack: fine-tune on a few forgotten people, and see whether others come back.

The sharpest measure there is. In the pilot every model that started at the intact weights,
whatever its loss, gave 69 to 88 % of the memory back within 20 steps, while its outputs looked
clean. A retrained model gives back nothing, so figures are read as an excess over it under the
same attack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from segunlearn.audit.statistics import noise_among
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import (
    Steps,
    copy_of,
    descend,
    dice_ce,
    mean_dice,
    never,
    seeded,
)
from segunlearn.unlearning.sets import Draw, Study

Unit = Literal["people", "studies"]


@dataclass(frozen=True)
class RelearningSettings:
    """The attacks: each number of people at each rate.

    Parameters
    ----------
    people
        How many forgotten people the attacker has; numbers that leave no other one are left out.
        With a single forgotten person, how many of the person's studies.
    rates
        Learning rates of Adam over all weights.
    steps, least
        Most steps of an attack, and fewest: people who were hardly learned by heart are back at
        once, and an attack that ends there has not tried to bring back the others.
    every
        Dice is measured after every so many steps.
    tolerance
        The attack may end when the attacker's own people are within this of the original's Dice.
    batch_size, seed
        Of the loop; the seed also chooses the attacker's people, the same for every model.
    """

    people: tuple[int, ...] = (1, 2, 3, 5)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    steps: int = 60
    least: int = 10
    every: int = 1
    tolerance: float = 0.01
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.people or not self.rates or min(self.people) < 1 or min(self.rates) <= 0:
            raise InvalidInputError("a relearning attack needs people >= 1 and rates > 0.")
        if min(self.steps, self.least, self.every, self.batch_size) < 1:
            raise InvalidInputError("steps, least, every and batch_size must be at least 1.")


@dataclass(frozen=True)
class Attack:
    """One attack on one model.

    Parameters
    ----------
    people, rate
        What the attacker had.
    curve
        (step, Dice of the attacker's people, Dice of the other forgotten people), from step 0 on.
        With a single forgotten study there are no others, and the last entry is None.
    best_others
        Largest Dice of the others on the way: the attacker's choice.
    steps_to_level
        Steps until the attacker's own people were back at the original's Dice, None if never.
    others_after, unseen_after
        Dice of the others and of unseen people when the attack ended.
    unit
        What ``people`` counts: with a single forgotten person, ``"studies"`` of that person, and
        "the others" are the person's other studies.
    """

    people: int
    rate: float
    curve: tuple[tuple[int, float, float | None], ...]
    best_others: float | None
    steps_to_level: int | None
    others_after: float | None
    unseen_after: float
    unit: Unit = "people"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Attack:
        """Read what ``to_json`` wrote."""
        curve = tuple((int(s), float(a), b) for s, a, b in data["curve"])
        return cls(**{**data, "curve": curve})


def relearn(
    network: nn.Module,
    forget: Sequence[Study],
    unseen: Sequence[Study],
    level: Mapping[str, float],
    config: ModelConfig,
    settings: RelearningSettings,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
    cancel: Callable[[], bool] = never,
) -> tuple[Attack, ...]:
    """Attack a copy of a network in every way of the settings.

    The attacker has some of the forgotten people and the others are looked at. A single person's
    studies are divided in the same way; a single study can only be timed.

    Parameters
    ----------
    network
        Left untouched.
    forget, unseen
        S and (some of) T.
    level
        The original's mean Dice of each forgotten person: how far the attacker goes. Where a
        single person has several studies, also of each series; else the person's stands for it.
    report
        Called with attacks done and in all.

    Raises
    ------
    InvalidInputError
        A set is empty, or ``level`` lacks a forgotten person.
    CancelledError
        ``cancel`` said so.
    """
    persons = sorted({s.person for s in forget})
    if not forget or not unseen:
        raise InvalidInputError("the relearning attack needs forgotten and unseen studies.")
    if missing := set(persons) - set(level):
        raise InvalidInputError(f"the original's level is missing for {len(missing)} person(s).")
    unit: Unit = "people" if len(persons) > 1 else "studies"

    def part(study: Study) -> str:
        return study.person if unit == "people" else study.series

    names = sorted({part(s) for s in forget})
    order = [names[i] for i in np.random.default_rng(settings.seed).permutation(len(names))]
    levels = {part(s): level.get(part(s), level[s.person]) for s in forget}
    numbers = [k for k in sorted(set(settings.people)) if k < len(names)] or [len(names)]
    plans = [(k, rate) for k in numbers for rate in settings.rates]
    attacks = []
    for done, (k, rate) in enumerate(plans):
        own = [s for s in forget if part(s) in order[:k]]
        others = [s for s in forget if part(s) not in order[:k]]
        target = float(np.mean([levels[p] for p in order[:k]])) - settings.tolerance
        attack = _attack(network, own, others, unseen, target, rate, config, settings, cancel)
        attacks.append(replace(attack, people=k, unit=unit))
        report(done + 1, len(plans))
    return tuple(attacks)


def _attack(
    network: nn.Module,
    own: Sequence[Study],
    others: Sequence[Study],
    unseen: Sequence[Study],
    target: float,
    rate: float,
    config: ModelConfig,
    settings: RelearningSettings,
    cancel: Callable[[], bool],
) -> Attack:
    attacker = copy_of(network)
    draw = Draw(own, config, settings.batch_size, settings.seed)
    curve: list[tuple[int, float, float | None]] = []

    def measure(step: int) -> bool:
        if step % settings.every and step != settings.steps:
            return False
        dice = mean_dice(attacker, own, config)
        curve.append((step, dice, mean_dice(attacker, others, config) if others else None))
        return dice >= target and step >= settings.least

    def objective(_: int) -> torch.Tensor:
        return dice_ce(attacker, draw.next())

    measure(0)
    with seeded(settings.seed):
        descend(
            attacker,
            objective,
            Steps(settings.steps, rate),
            phase="relearn",
            after_step=measure,
            cancel=cancel,
        )
    seen = [c for _, _, c in curve if c is not None]
    return Attack(
        people=len({s.person for s in own}),
        rate=rate,
        curve=tuple(curve),
        best_others=max(seen) if seen else None,
        steps_to_level=next((step for step, dice, _ in curve if dice >= target), None),
        others_after=curve[-1][2],
        unseen_after=mean_dice(attacker, unseen, config),
    )


@dataclass(frozen=True)
class RelearningExcess:
    """How much more an attack brings back than from never-seen references.

    Parameters
    ----------
    best_others
        Largest, over the attacks, of the best Dice of the others minus the references' mean.
    gap_after
        (Others - unseen at the end) minus the references' mean, mean over the rates; largest over
        the numbers of people. The end of one attack is a single moment: at the highest rate it
        moved by 0.035 between two retrained models, where nothing was to be brought back.
    noise, gap_noise
        Two standard deviations of the difference of one more reference in these two figures, the
        variances pooled over the attacks; 0 with a single reference, whose spread is not known.
    people, rate, unit
        The attack in which ``best_others`` was largest.
    people_after
        Number of people with which ``gap_after`` was.
    fewer_steps
        Smallest of steps to the original's level, divided by the references' mean; None when it
        was not reached. The only figure for a single forgotten study.
    """

    best_others: float | None
    gap_after: float | None
    noise: float
    gap_noise: float
    people: int
    rate: float
    fewer_steps: float | None
    unit: Unit = "people"
    people_after: int = 0


def relearning_excess(
    attacks: Sequence[Attack], references: Sequence[Sequence[Attack]], most_steps: int
) -> RelearningExcess:
    """Compare the same attacks on a model and on its references; of a reference to itself 0.

    Parameters
    ----------
    attacks, references
        Of ``relearn`` with the same settings.
    most_steps
        Counted where the level was not reached.

    Raises
    ------
    InvalidInputError
        No reference, or other attacks.
    """
    plans = [(a.people, a.rate, a.unit) for a in attacks]
    if not references or any([(a.people, a.rate, a.unit) for a in r] != plans for r in references):
        raise InvalidInputError("model and references must be attacked in the same ways.")
    best = _differences([a.best_others for a in attacks], references, "best_others")
    after = _after(attacks)
    theirs = [_after(r) for r in references]
    leads = {k: after[k] - float(np.mean([t[k] for t in theirs])) for k in after}
    furthest = max(leads, key=lambda k: leads[k], default=0)
    worst = int(np.argmax(best)) if best else 0
    ratios = []
    for i, attack in enumerate(attacks):
        if attack.steps_to_level is not None:
            steps = [_steps(r[i], most_steps) for r in references]
            ratios.append(attack.steps_to_level / max(1.0, float(np.mean(steps))))
    return RelearningExcess(
        best_others=max(best) if best else None,
        gap_after=leads.get(furthest),
        noise=noise_among([[a.best_others or 0.0 for a in r] for r in references]),
        gap_noise=noise_among([list(t.values()) for t in theirs]) if leads else 0.0,
        people=plans[worst][0],
        rate=plans[worst][1],
        fewer_steps=min(ratios) if ratios else None,
        unit=plans[worst][2],
        people_after=furthest,
    )


def _differences(
    values: Sequence[float | None], references: Sequence[Sequence[Attack]], name: str
) -> list[float]:
    return [
        value - float(np.mean([getattr(r[i], name) for r in references]))
        for i, value in enumerate(values)
        if value is not None
    ]


def _after(attacks: Sequence[Attack]) -> dict[int, float]:
    """Lead of the others over unseen people at the end: number of people to mean over rates."""
    leads: dict[int, list[float]] = {}
    for attack in attacks:
        if attack.others_after is not None:
            leads.setdefault(attack.people, []).append(attack.others_after - attack.unseen_after)
    return {people: float(np.mean(values)) for people, values in leads.items()}


def _steps(attack: Attack, most: int) -> int:
    return most if attack.steps_to_level is None else attack.steps_to_level
