"""Models with a known fault, on the memorising task: the audit must find each one's own fault."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn.utils import parametrize

from memorising_task import CALIBRATION, CONFIG, FORGET, RETAIN
from segunlearn.audit.scores import score
from segunlearn.unlearning import Study
from segunlearn.unlearning.loop import (
    Steps,
    copy_of,
    descend,
    dice_ce,
    distil_step,
    frozen,
    seeded,
)
from segunlearn.unlearning.sets import Draw


class LowRank(nn.Module):
    """W + B A, with B 0 at the start."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight[0].numel()) * 0.05)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + 2 * (self.b @ self.a).view_as(weight)


def suppressed_by_lora(original: nn.Module, *, merged: bool = True) -> nn.Module:
    """Low-rank updates on intact weights push S to the never-seen loss; the rest is kept."""
    student = copy_of(original)
    for weight in student.parameters():
        weight.requires_grad_(False)
    layers = [m for m in student.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    with seeded(0):
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, 4))
    _suppress(student, original, Steps(60, 2e-3), keep=1.0)
    if merged:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight")
    return student.eval()


def suppressed_in_the_last_layer(original: nn.Module) -> nn.Module:
    """Only the last 1x1 convolution changes: the loss on S rises, the features know it still."""
    student = copy_of(original)
    for name, weight in student.named_parameters():
        weight.requires_grad_("final_conv" in name)
    _suppress(student, original, Steps(60, 1e-2), keep=0.1)
    return student.eval()


def _suppress(student: nn.Module, original: nn.Module, steps: Steps, keep: float) -> None:
    teacher = frozen(original)
    level = sum(s.loss for s in score(original, CALIBRATION, CONFIG)) / len(CALIBRATION)
    draws = [Draw(x, CONFIG, 4, i) for i, x in enumerate((FORGET, RETAIN, CALIBRATION))]

    def objective(_: int) -> torch.Tensor:
        forget, retain, calibration = (d.next() for d in draws)
        loss = dice_ce(student, forget)
        pull = 3 * torch.relu(level - loss) + 0.3 * torch.relu(loss - level)
        kept = distil_step(student, teacher, retain[0]) + distil_step(
            student, teacher, calibration[0]
        )
        return pull + keep * (dice_ce(student, retain) + kept)

    with seeded(1):
        descend(student, objective, steps)


def over_forgotten(retrained: nn.Module) -> nn.Module:
    """Never saw S, and was then taught to segment it wrongly: S falls below unseen people."""
    return _taught(retrained, (_shifted(FORGET, 6), RETAIN, CALIBRATION), 80)


def damaged(retrained: nn.Module) -> nn.Module:
    """Never saw S, and was then taught wrong masks of others: everybody is segmented worse."""
    return _taught(retrained, (_shifted(RETAIN + CALIBRATION, 4),), 40)


def _shifted(studies: tuple[Study, ...], voxels: int) -> tuple[Study, ...]:
    return tuple(
        dataclasses.replace(s, label=torch.roll(s.label, (voxels, voxels), (0, 1))) for s in studies
    )


def _taught(network: nn.Module, sets: tuple[tuple[Study, ...], ...], count: int) -> nn.Module:
    student = copy_of(network)
    draws = [Draw(studies, CONFIG, 4, i) for i, studies in enumerate(sets)]

    def objective(_: int) -> torch.Tensor:
        return torch.stack([dice_ce(student, d.next()) for d in draws]).sum()

    with seeded(0):
        descend(student, objective, Steps(count, 2e-3))
    return student.eval()
