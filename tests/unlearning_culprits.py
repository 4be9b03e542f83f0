"""Models with a known fault: the audit must find each one's own fault.

On the memorising task unless other sets are given; the benchmark makes them of real people.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn.utils import parametrize

from memorising_task import SETS
from segunlearn.audit.scores import score
from segunlearn.unlearning import Study, UnlearningSets
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


def with_adapter(network: nn.Module) -> nn.Module:
    """Low-rank updates, 0 at first, beside frozen weights of all 3x3 convolutions."""
    student = copy_of(network)
    for weight in student.parameters():
        weight.requires_grad_(False)
    with seeded(0):
        for layer in _layers(student):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, 4))
    return student


def suppressed_by_lora(original: nn.Module, sets: UnlearningSets = SETS) -> nn.Module:
    """Low-rank updates on intact weights push S to the never-seen loss, and are merged."""
    student = with_adapter(original)
    _suppress(student, original, sets, Steps(50, 2e-3), keep=1.0)
    for layer in _layers(student):
        parametrize.remove_parametrizations(layer, "weight")
    return student.eval()


def _layers(network: nn.Module) -> list[nn.Conv2d | nn.Conv3d]:
    return [
        m
        for m in network.modules()
        if isinstance(m, nn.Conv2d | nn.Conv3d) and set(m.kernel_size) == {3}
    ]


def suppressed_in_the_last_layer(original: nn.Module, sets: UnlearningSets = SETS) -> nn.Module:
    """Only the last 1x1 convolution changes: the loss on S rises, the features know it still."""
    student = copy_of(original)
    for name, weight in student.named_parameters():
        weight.requires_grad_("final_conv" in name)
    _suppress(student, original, sets, Steps(40, 1e-2), keep=0.1)
    return student.eval()


def _suppress(
    student: nn.Module, original: nn.Module, sets: UnlearningSets, steps: Steps, keep: float
) -> None:
    teacher = frozen(original)
    unseen = score(original, sets.calibration, sets.config)
    level = sum(s.loss for s in unseen) / len(unseen)
    draws = [
        Draw(x, sets.config, 4, i)
        for i, x in enumerate((sets.forget, sets.retain, sets.calibration))
    ]

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


def over_forgotten(retrained: nn.Module, sets: UnlearningSets = SETS) -> nn.Module:
    """Never saw S, and was then taught to segment it wrongly: S falls below unseen people."""
    # each person another way, so that nothing of it carries over to others
    ways = ((6, 6), (-6, 6), (6, -6), (-6, -6))
    wrong = tuple(_shifted(s, ways[i % 4]) for i, s in enumerate(sets.forget))
    return _taught(retrained, sets, (wrong, sets.retain, sets.calibration))


def damaged(retrained: nn.Module, sets: UnlearningSets = SETS) -> nn.Module:
    """Never saw S, and was then taught wrong masks of others: everybody is segmented worse."""
    wrong = tuple(_shifted(s, (4, 4)) for s in sets.retain + sets.calibration)
    return _taught(retrained, sets, (wrong,))


def _shifted(study: Study, way: tuple[int, int]) -> Study:
    return dataclasses.replace(study, label=torch.roll(study.label, way, (0, 1)))


def _taught(
    network: nn.Module, sets: UnlearningSets, lessons: tuple[tuple[Study, ...], ...]
) -> nn.Module:
    student = copy_of(network)
    draws = [Draw(studies, sets.config, 4, i) for i, studies in enumerate(lessons)]

    def objective(_: int) -> torch.Tensor:
        return torch.stack([dice_ce(student, d.next()) for d in draws]).sum()

    with seeded(0):
        descend(student, objective, Steps(60, 1e-3))
    return student.eval()
