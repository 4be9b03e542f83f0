"""Patches of a few studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch

from segunlearn.adaptation.task_loss import Batch
from segunlearn.networks import ModelConfig
from segunlearn.training.augmentation import sample_patch
from segunlearn.training.settings import Augmentation
from segunlearn.unlearning.sets import Study

#: Voxels that go through a network together.
VOXELS_TOGETHER: Final = 2**18


def parts_of(batch: Batch, together: int = VOXELS_TOGETHER) -> Iterator[Batch]:
    """Divide a batch into groups of so many voxels; one patch is never divided."""
    patches = max(1, together // batch[0][0, 0].numel())
    for first in range(0, len(batch[0]), patches):
        yield batch[0][first : first + patches], batch[1][first : first + patches]


def patches_of(
    studies: Sequence[Study],
    config: ModelConfig,
    per_study: int,
    rng: np.random.Generator,
    *,
    foreground: float = 0.67,
    augmentation: Augmentation | None = None,
) -> Batch:
    """Draw the same number of patches of every study.

    Parameters
    ----------
    studies
        In any order: it changes nothing.
    per_study
        Patches of each.
    foreground
        Share of patches on a structure, where a study is larger than a patch.
    """
    images, labels = [], []
    for study in sorted(studies, key=lambda s: s.series):
        for _ in range(per_study):
            image, label = sample_patch(
                study.image, study.label, study.foreground, config, foreground, augmentation, rng
            )
            images.append(image)
            labels.append(label[None])
    return torch.stack(images), torch.stack(labels)
