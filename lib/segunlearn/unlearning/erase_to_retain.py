"""Erase to Retain as its abstract describes it: contradict the teacher, then restore the head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    descend,
    device_of,
    dice_ce,
    frozen,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.lora import HEAD, LoraSettings, adapt, adapted_layers
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget", "retain")


@dataclass(frozen=True)
class EraseToRetainSettings:
    """The two stages.

    Parameters
    ----------
    steps, learning_rate
        Of stage 1. The abstract names none, and no published code does it.
    head_steps, head_learning_rate
        Of stage 2.
    confidence
        tau: stage 1 contradicts the teacher where its largest probability is above this.
    rank, alpha
        Of the adapter on the decoder's 3x3(x3) convolutions.
    batch_size, seed
        Of both.
    """

    steps: int = 10
    learning_rate: float = 1e-3
    head_steps: int = 20
    head_learning_rate: float = 2e-3
    confidence: float = 0.6
    rank: int = 8
    alpha: float = 32.0
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InvalidInputError(f"confidence is {self.confidence}, must be in (0, 1).")
        if self.head_steps < 1 or not 0 < self.head_learning_rate < math.inf:
            raise InvalidInputError("stage 2 needs steps >= 1 and a rate > 0.")


def erase_to_retain(
    network: nn.Module,
    sets: UnlearningSets,
    settings: EraseToRetainSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Contradict the teacher on S by a decoder adapter, then fit the head to R.

    Stage 1, strong unlearning: only the decoder's adapter learns
    :math:`-\log(1 - p_s(\hat y_t))` on voxels of S where :math:`\max p_t > \tau`, foreground and
    background weighing the same (:func:`contradiction`). Stage 2, gentle restoration: adapter and
    backbone frozen, the last 1x1 convolution learns :math:`L(R)`. Then the adapter is merged.

    After the abstract of Erase to Retain, arXiv 2511.16574; the released code does something else
    (``erase_to_retain_released``). Written from the formulas.
    """
    teacher = frozen(network)
    adapter = LoraSettings(settings.rank, settings.alpha, "decoder")
    adapted = adapt(network, adapter, settings.seed)
    student = adapted.network
    forget = Draw(sets.forget, sets.config, settings.batch_size, settings.seed)
    retain = Draw(sets.retain, sets.config, settings.batch_size, settings.seed + 1)

    def contradict(_: int) -> torch.Tensor:
        image = forget.next()[0].to(device_of(student))
        with torch.no_grad():
            target = teacher(image)
        return contradiction(student(image), target, settings.confidence)

    with seeded(settings.seed):
        _may_learn(student, head=False)
        steps = Steps(settings.steps, settings.learning_rate)
        descend(student, contradict, steps, phase="erase", report=report, cancel=cancel)
        _may_learn(student, head=True)
        steps = Steps(settings.head_steps, settings.head_learning_rate)
        descend(
            student,
            lambda _: dice_ce(student, retain.next()),
            steps,
            phase="retain",
            report=report,
            cancel=cancel,
        )
    return adapted.merged()


def contradiction(student: torch.Tensor, teacher: torch.Tensor, confidence: float) -> torch.Tensor:
    r"""Mean of :math:`-\log(1 - p_s(\hat y_t))` where the teacher is confident.

    Foreground and background, as the teacher sees them, each give half; of what the teacher is
    nowhere confident about, nothing is asked.

    Parameters
    ----------
    student, teacher
        Logits ``(B, K, ...)``.
    confidence
        tau.
    """
    probability, said = functional.softmax(teacher, dim=1).max(dim=1, keepdim=True)
    others = student.scatter(1, said, -math.inf)  # log(1 - p) without ever forming 1 - p
    loss = (student.logsumexp(dim=1) - others.logsumexp(dim=1)).unsqueeze(1)
    sure = probability > confidence
    parts = [loss[sure & where] for where in (said > 0, said == 0)]
    means = [part.mean() for part in parts if part.numel()]
    return torch.stack(means).mean() if means else 0.0 * student.sum()


def _may_learn(student: nn.Module, *, head: bool) -> None:
    for weight in student.get_submodule(HEAD).parameters():
        weight.requires_grad_(head)
    for _, layer in adapted_layers(student):
        for weight in layer.parametrizations.weight[0].parameters():  # type: ignore[union-attr,index]
            weight.requires_grad_(not head)
