"""Teach wrong labels on the forget set."""

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

READS: Final[tuple[SetName, ...]] = ("forget", "retain")


@dataclass(frozen=True)
class RandomLabelSettings:
    """Steps, rate, patches of a step from each set, and the seed of batches and labels."""

    steps: int = 40
    learning_rate: float = 1e-3
    batch_size: int = 4
    seed: int = 0


def random_label(
    network: nn.Module,
    sets: UnlearningSets,
    settings: RandomLabelSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Minimise :math:`L(R) + L(S, \tilde y)` with labels drawn anew for each voxel and step.

    :math:`\tilde y` is uniform over the classes other than the true one (Golatkar et al.,
    arXiv 1911.04933; noisy labels on a subject's images won the comparison of arXiv 2606.16180,
    whose abstract alone was read).
    """
    student = copy_of(network)
    loss = RandomLabelLoss(student, sets, settings)
    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate)
        descend(
            student,
            lambda _: loss.next(),
            steps,
            phase="random label",
            report=report,
            cancel=cancel,
        )
    return student.eval()


class RandomLabelLoss:
    """Successive losses ``L(R) + L(S, random labels)``; SalUn minimises the same."""

    def __init__(
        self, student: nn.Module, sets: UnlearningSets, settings: RandomLabelSettings
    ) -> None:
        self._student, self._classes = student, sets.config.num_classes
        self._forget = Draw(sets.forget, sets.config, settings.batch_size, settings.seed)
        self._retain = Draw(sets.retain, sets.config, settings.batch_size, settings.seed + 1)
        self._generator = torch.Generator().manual_seed(settings.seed)

    def next(self) -> torch.Tensor:
        """Loss of the next batches."""
        image, label = self._forget.next()
        wrong = other_labels(label, self._classes, self._generator)
        return dice_ce(self._student, self._retain.next()) + dice_ce(self._student, (image, wrong))


def other_labels(
    label: torch.Tensor, classes: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Labels drawn uniformly from the classes that are not the true one, for each voxel."""
    shift = torch.randint(1, classes, label.shape, generator=generator, dtype=label.dtype)
    return (label + shift) % classes
