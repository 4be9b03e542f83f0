"""SCRUB with rewind: disobey the original on S, obey it on R, and go back when it was too much."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    copy_of,
    descend,
    dice_ce,
    distil_step,
    frozen,
    mean_dice,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget", "retain", "calibration")


@dataclass(frozen=True)
class ScrubSettings:
    """Rounds of a max step part and a min step part.

    Parameters
    ----------
    rounds
        Rounds in all.
    max_rounds
        The first so many rounds have a max part too.
    max_steps, min_steps
        Steps on S and on R in a round.
    alpha, gamma
        Weights of the divergence and of the task loss on R.
    learning_rate, batch_size, temperature, seed
        Of the loop.
    rewind
        Return the weights, among those after each round, whose Dice on S is nearest to their Dice
        on C, instead of the last ones.
    """

    rounds: int = 6
    max_rounds: int = 4
    max_steps: int = 3
    min_steps: int = 8
    alpha: float = 0.5
    gamma: float = 1.0
    learning_rate: float = 5e-4
    batch_size: int = 4
    temperature: float = 2.0
    rewind: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.max_rounds <= self.rounds or min(self.alpha, self.gamma) < 0:
            raise InvalidInputError(
                "SCRUB needs 1 <= max_rounds <= rounds, and weights of at least 0."
            )


def scrub(
    network: nn.Module,
    sets: UnlearningSets,
    settings: ScrubSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Alternate two descents (Kurmanji et al., arXiv 2302.09880, equations 2 and 3).

    Max part: :math:`-KL(\theta_o \| \theta; S)`. Min part:
    :math:`\alpha KL(\theta_o \| \theta; R) + \gamma L(R)`. The rewind of section 3.3 goes back to
    the round whose error on S equals that on studies that were never seen (here C).
    """
    student, teacher = copy_of(network), frozen(network)
    forget = Draw(sets.forget, sets.config, settings.batch_size, settings.seed)
    retain = Draw(sets.retain, sets.config, settings.batch_size, settings.seed + 1)

    def disobey(_: int) -> torch.Tensor:
        return -distil_step(student, teacher, forget.next()[0], settings.temperature)

    def obey(_: int) -> torch.Tensor:
        batch = retain.next()
        kept = distil_step(student, teacher, batch[0], settings.temperature)
        return settings.alpha * kept + settings.gamma * dice_ce(student, batch)

    best, nearest = copy.deepcopy(student.state_dict()), float("inf")
    with seeded(settings.seed):
        for number in range(settings.rounds):
            if number < settings.max_rounds:
                part = Steps(settings.max_steps, settings.learning_rate, gradient_clip=1.0)
                descend(student, disobey, part, phase="scrub: max", report=report, cancel=cancel)
            part = Steps(settings.min_steps, settings.learning_rate)
            descend(student, obey, part, phase="scrub: min", report=report, cancel=cancel)
            if settings.rewind:
                s = mean_dice(student, sets.forget, sets.config)
                c = mean_dice(student, sets.calibration, sets.config)
                if abs(s - c) < nearest:
                    nearest, best = abs(s - c), copy.deepcopy(student.state_dict())
    if settings.rewind:
        student.load_state_dict(best)
    return student.eval()
