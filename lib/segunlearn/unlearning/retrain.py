"""Exact unlearning: train again from random weights, without the forget set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from segunlearn.networks import build_network
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    descend,
    device_of,
    dice_ce,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("retain",)


@dataclass(frozen=True)
class RetrainSettings:
    """How to train from scratch.

    Parameters
    ----------
    epochs
        Passes over R. A *short* never-seen reference of the audit is the same with fewer.
    learning_rate
        Peak of a one-cycle schedule.
    batch_size
        Patches of a step.
    seed
        Of the weights and of the batches.
    """

    epochs: int = 80
    learning_rate: float = 3e-3
    batch_size: int = 3
    seed: int = 0


def retrain(
    network: nn.Module,
    sets: UnlearningSets,
    settings: RetrainSettings,
    report: Report = no_report,
    cancel: Cancel = never,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train a new network on R alone; of the given network only the device is used.

    Minimises foreground soft Dice + cross-entropy with Adam. It is exact: no weight of the result
    depends on the forget set. ``watch`` is shown the network after every step.
    """
    fresh = build_network(sets.config, settings.seed).to(device_of(network))
    draw = Draw(sets.retain, sets.config, settings.batch_size, settings.seed)
    count = max(2, -(-settings.epochs * len(sets.retain) // settings.batch_size))

    def objective(_: int) -> torch.Tensor:
        return dice_ce(fresh, draw.next())

    def after_step(step: int) -> bool:
        if watch is not None:
            watch(step, fresh)
        return False

    with seeded(settings.seed):
        steps = Steps(count, settings.learning_rate, "one_cycle")
        descend(
            fresh, objective, steps,
            phase="retrain", after_step=after_step, report=report, cancel=cancel,
        )  # fmt: skip
    return fresh.eval()
