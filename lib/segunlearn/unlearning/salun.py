"""SalUn: random labels, moving only the weights that matter for the forget set."""

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
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.random_label import RandomLabelLoss, RandomLabelSettings
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget", "retain")


@dataclass(frozen=True)
class SalunSettings:
    """The loop of random label, and the share of weights that may move.

    Parameters
    ----------
    share
        Of the weights with the largest gradient of the forget loss; in (0, 1].
    steps, learning_rate, batch_size, seed
        Of the loop.
    """

    share: float = 0.5
    steps: int = 40
    learning_rate: float = 1e-3
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InvalidInputError(f"SalUn's share is {self.share}, must be in (0, 1].")


def salun(
    network: nn.Module,
    sets: UnlearningSets,
    settings: SalunSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Minimise the random label loss over :math:`m \odot \theta`.

    The mask is :math:`m = 1[|\nabla_\theta L(S)| \ge q]` at the original weights, with q the
    quantile that keeps ``share`` of the weights (Fan et al., arXiv 2310.12508, equations 3, 4).
    """
    student = copy_of(network)
    mask = saliency_mask(student, sets, settings)
    loss_settings = RandomLabelSettings(
        settings.steps, settings.learning_rate, settings.batch_size, settings.seed
    )
    loss = RandomLabelLoss(student, sets, loss_settings)
    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate)
        descend(
            student,
            lambda _: loss.next(),
            steps,
            phase="salun",
            mask=mask,
            report=report,
            cancel=cancel,
        )
    return student.eval()


def saliency_mask(
    network: nn.Module, sets: UnlearningSets, settings: SalunSettings
) -> dict[str, torch.Tensor]:
    """Parameter name to 0/1 tensor: 1 where the forget loss has its largest gradients."""
    draw = Draw(sets.forget, sets.config, settings.batch_size, settings.seed)
    network.zero_grad(set_to_none=True)
    for _ in range(-(-len(sets.forget) // settings.batch_size)):
        dice_ce(network, draw.next()).backward()  # type: ignore[no-untyped-call]
    sizes = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.abs()
        for name, p in network.named_parameters()
    }
    network.zero_grad(set_to_none=True)
    everything = torch.cat([s.flatten() for s in sizes.values()])
    kept = max(1, round(settings.share * everything.numel()))
    threshold = everything.kthvalue(everything.numel() - kept + 1).values
    return {name: (s >= threshold).to(s.dtype) for name, s in sizes.items()}
