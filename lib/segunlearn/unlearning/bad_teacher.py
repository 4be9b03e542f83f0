"""Imitate an incompetent teacher on the forget set, and the original elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from segunlearn.networks import build_network
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    copy_of,
    descend,
    device_of,
    distil_step,
    frozen,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget", "retain")


@dataclass(frozen=True)
class BadTeacherSettings:
    """The loop, and the temperature of both divergences; the seed also makes the bad teacher."""

    steps: int = 40
    learning_rate: float = 1e-3
    batch_size: int = 4
    temperature: float = 1.0
    seed: int = 0


def bad_teacher(
    network: nn.Module,
    sets: UnlearningSets,
    settings: BadTeacherSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Minimise :math:`KL(T_s \| \theta; R) + KL(T_d \| \theta; S)`.

    :math:`T_s` is the original, :math:`T_d` a network with random weights (Chundawat et al.,
    arXiv 2205.08096, equation 1 with a batch of each set).
    """
    student, good = copy_of(network), frozen(network)
    bad = frozen(build_network(sets.config, settings.seed).to(device_of(network)))
    forget = Draw(sets.forget, sets.config, settings.batch_size, settings.seed)
    retain = Draw(sets.retain, sets.config, settings.batch_size, settings.seed + 1)

    def objective(_: int) -> torch.Tensor:
        kept = distil_step(student, good, retain.next()[0], settings.temperature)
        return kept + distil_step(student, bad, forget.next()[0], settings.temperature)

    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate)
        descend(student, objective, steps, phase="bad teacher", report=report, cancel=cancel)
    return student.eval()
