"""Reversibility: a restored model must be the original again (M10 of the audit's definitions).

A deposit that is sealed while a request is appealed is worth nothing if the model that comes back
is another one than the hospital had approved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import device_of, log_probabilities
from segunlearn.unlearning.sets import Study, cut_to_patch

#: Largest difference of a logit, in float32.
LOGIT_BAR: Final = 1e-5


@dataclass(frozen=True)
class Reversibility:
    """How far a restored model is from the original.

    Parameters
    ----------
    largest_difference
        Largest difference of any logit, over all studies cut to one patch.
    equal_voxels
        Share of voxels of the whole studies that are given the same structure.
    same_weights
        Every weight is equal to the bit.
    studies
        Number compared.
    """

    largest_difference: float
    equal_voxels: float
    same_weights: bool
    studies: int

    @property
    def holds(self) -> bool:
        """Whether both bars hold: 1e-5 of a logit, and every voxel."""
        return self.largest_difference <= LOGIT_BAR and self.equal_voxels == 1

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite difference becomes null."""
        difference = self.largest_difference if math.isfinite(self.largest_difference) else None
        return asdict(self) | {"largest_difference": difference, "holds": self.holds}


def reversibility(
    restored: nn.Module, original: nn.Module, studies: Sequence[Study], config: ModelConfig
) -> Reversibility:
    """Compare a restored model with the original on studies of S and T.

    Raises
    ------
    InvalidInputError
        No studies.
    """
    if not studies:
        raise InvalidInputError("a restored model is compared on studies; give at least one.")
    largest, equal, voxels = 0.0, 0, 0
    pairs = zip(
        log_probabilities(restored, studies, config),
        log_probabilities(original, studies, config),
        strict=True,
    )
    for study, (ours, theirs) in zip(studies, pairs, strict=True):
        same = ours.argmax(dim=0) == theirs.argmax(dim=0)
        equal, voxels = equal + int(same.sum()), voxels + same.numel()
        cut = cut_to_patch(study, config)
        difference = _logits(restored, cut, config) - _logits(original, cut, config)
        # a number that is none would be lost in max()
        largest = max(largest, float(difference.abs().nan_to_num(nan=math.inf).max()))
    mine, before = restored.state_dict(), original.state_dict()
    return Reversibility(
        largest_difference=largest,
        equal_voxels=equal / voxels,
        same_weights=set(mine) == set(before)
        and all(torch.equal(mine[k].cpu(), before[k].cpu()) for k in mine),
        studies=len(studies),
    )


def _logits(network: nn.Module, study: Study, config: ModelConfig) -> torch.Tensor:
    image, axis, was_training = study.image[None], config.slice_axis, network.training
    image = image if axis is None else image.squeeze(axis + 2)
    network.eval()
    try:
        with torch.no_grad():
            logits: torch.Tensor = network(image.to(device_of(network))).float().cpu()
    finally:
        network.train(was_training)
    return logits
