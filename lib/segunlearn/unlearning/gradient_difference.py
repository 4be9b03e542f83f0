"""Climb the loss of the forget set while descending on the retain set."""

from __future__ import annotations

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
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget", "retain")


@dataclass(frozen=True)
class GradientDifferenceSettings:
    """Weights of the terms, and the loop.

    Parameters
    ----------
    forget_weight
        g, at least 0. With 0.3 nothing was forgotten in the pilot, with 1 unseen people suffered.
    distillation_weight
        Of a divergence to the original on R, at least 0.
    steps, learning_rate, batch_size, seed
        Of the loop.
    """

    forget_weight: float = 1.0
    distillation_weight: float = 1.0
    steps: int = 40
    learning_rate: float = 1e-3
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.forget_weight < 0 or self.distillation_weight < 0:
            raise InvalidInputError("the weights of gradient difference must be at least 0.")


def gradient_difference(
    network: nn.Module,
    sets: UnlearningSets,
    settings: GradientDifferenceSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Minimise :math:`-g L(S) + L(R) + w \, KL(\theta_o \| \theta; R)`.

    Liu, Liu and Stone, arXiv 2203.12817; "NegGrad+" in Kurmanji et al., arXiv 2302.09880.
    """
    student, teacher = copy_of(network), frozen(network)
    forget = Draw(sets.forget, sets.config, settings.batch_size, settings.seed)
    retain = Draw(sets.retain, sets.config, settings.batch_size, settings.seed + 1)

    def objective(_: int) -> torch.Tensor:
        batch = retain.next()
        loss = dice_ce(student, batch) - settings.forget_weight * dice_ce(student, forget.next())
        if settings.distillation_weight > 0:
            loss = loss + settings.distillation_weight * distil_step(student, teacher, batch[0])
        return loss

    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate)
        descend(
            student, objective, steps, phase="gradient difference", report=report, cancel=cancel
        )
    return student.eval()
