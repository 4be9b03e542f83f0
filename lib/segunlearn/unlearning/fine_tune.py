"""Fine-tune on the retain set, and hope that the rest is forgotten."""

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

READS: Final[tuple[SetName, ...]] = ("retain",)


@dataclass(frozen=True)
class FineTuneSettings:
    """Steps, peak rate, patches of a step, and the seed of the batches."""

    steps: int = 40
    learning_rate: float = 1e-3
    batch_size: int = 4
    seed: int = 0


def fine_tune(
    network: nn.Module,
    sets: UnlearningSets,
    settings: FineTuneSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Minimise :math:`L(R)` from the intact weights ("FT" of Golatkar, arXiv 1911.04933)."""
    student = copy_of(network)
    draw = Draw(sets.retain, sets.config, settings.batch_size, settings.seed)

    def objective(_: int) -> torch.Tensor:
        return dice_ce(student, draw.next())

    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate)
        descend(student, objective, steps, phase="fine-tune", report=report, cancel=cancel)
    return student.eval()
