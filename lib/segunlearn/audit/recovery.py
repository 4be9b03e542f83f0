"""Adversarial recovery: look for a small change of the image that brings the old mask back.

Weak alone: it drives a model that never saw the study to the old mask as well (0.946 in the
pilot, original 0.989), so the figure is reported beside the reference's and judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from segunlearn.errors import CancelledError, InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import device_of, dice_of, log_probabilities, never
from segunlearn.unlearning.sets import Study, cut_to_patch


@dataclass(frozen=True)
class RecoverySettings:
    """Projected gradient descent on the image (Madry et al., arXiv 1706.06083).

    Parameters
    ----------
    epsilon
        Largest change of a voxel in normalised intensity (standard deviation about 1).
    steps
        Of size ``2.5 * epsilon / steps``.
    success
        Dice to the old mask from which a study counts as recovered.
    """

    epsilon: float = 0.1
    steps: int = 10
    success: float = 0.95

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.steps < 1:
            raise InvalidInputError("recovery needs epsilon > 0 and at least one step.")


@dataclass(frozen=True)
class Recovery:
    """Agreement with the original's masks of S, on clean and on attacked images.

    Parameters
    ----------
    clean, attacked
        Mean Dice to the original's mask.
    success_before, success_after
        Share of studies at or above the success level (pre- and post-ASR of AdvUnlearn,
        arXiv 2405.15234).
    """

    clean: float
    attacked: float
    success_before: float
    success_after: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def recover(
    network: nn.Module,
    original: nn.Module,
    forget: Sequence[Study],
    config: ModelConfig,
    settings: RecoverySettings,
    *,
    cancel: Callable[[], bool] = never,
) -> Recovery:
    """Attack each forgotten study, cut to one patch, towards the original's mask.

    Raises
    ------
    InvalidInputError
        No forgotten studies.
    CancelledError
        ``cancel`` said so.
    """
    if not forget:
        raise InvalidInputError("the forget set is empty; there is nothing to recover.")
    values, axis, device = (
        tuple(config.label_values.values()),
        config.slice_axis,
        device_of(network),
    )
    network.eval()
    clean, attacked = [], []
    for study in forget:
        if cancel():
            raise CancelledError("the audit was stopped during the recovery attack.")
        cut = cut_to_patch(study, config)
        target = next(iter(log_probabilities(original, [cut], config))).argmax(dim=0)
        image, goal = cut.image[None].to(device), target[None].to(device)
        if axis is not None:
            image, goal = image.squeeze(axis + 2), goal.squeeze(axis + 1)
        change = _pgd(network, image, goal, settings)
        with torch.no_grad():
            clean.append(dice_of(network(image).argmax(dim=1), goal, values))
            attacked.append(dice_of(network(image + change).argmax(dim=1), goal, values))
    return Recovery(
        clean=float(np.mean(clean)),
        attacked=float(np.mean(attacked)),
        success_before=float(np.mean(np.asarray(clean) >= settings.success)),
        success_after=float(np.mean(np.asarray(attacked) >= settings.success)),
    )


def _pgd(
    network: nn.Module, image: torch.Tensor, goal: torch.Tensor, settings: RecoverySettings
) -> torch.Tensor:
    """Change of the image, at most ``epsilon`` per voxel, that lowers the loss to the goal."""
    change = torch.zeros_like(image)
    step = 2.5 * settings.epsilon / settings.steps
    for _ in range(settings.steps):
        change.requires_grad_(True)
        loss = functional.cross_entropy(network(image + change), goal)
        (gradient,) = torch.autograd.grad(loss, change)
        change = (change - step * gradient.sign()).clamp(-settings.epsilon, settings.epsilon)
        change = change.detach()
    return change
