"""Climb the loss of the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    copy_of,
    descend,
    dice_ce,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget",)


@dataclass(frozen=True)
class GradientAscentSettings:
    """Few, small steps: the objective has no lower bound, and the model is soon ruined.

    Parameters
    ----------
    steps, learning_rate, batch_size, seed
        Of the loop.
    gradient_clip
        Largest norm of the gradient.
    """

    steps: int = 15
    learning_rate: float = 5e-4
    batch_size: int = 4
    gradient_clip: float = 1.0
    seed: int = 0


def gradient_ascent(
    network: nn.Module,
    sets: UnlearningSets,
    settings: GradientAscentSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Minimise :math:`-L(S)` (Thudi et al., arXiv 2109.13398; "NegGrad" elsewhere)."""
    student = copy_of(network)
    draw = Draw(sets.forget, sets.config, settings.batch_size, settings.seed)

    def objective(_: int) -> torch.Tensor:
        return -dice_ce(student, draw.next())

    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate, gradient_clip=settings.gradient_clip)
        descend(student, objective, steps, phase="gradient ascent", report=report, cancel=cancel)
    return student.eval()
