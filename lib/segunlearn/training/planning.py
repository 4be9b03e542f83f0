"""The network's configuration and the training's settings, from the cases themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np

from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.training.settings import Augmentation, TrainSettings
from segunlearn.volumes import read_volume

#: Cases that are looked at, at least; the medians of more would hardly differ.
_SAMPLE = 40
#: BasicUNet halves a patch four times.
_STRIDE = 16


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Parameters
    ----------
    text
        What it is for.
    settings
        Of the training.
    features
        Channels of the network.
    voxels
        Largest number of voxels of a patch.
    coarseness
        The model's voxels are along no axis smaller than this times the finest spacing.
    """

    text: str
    settings: TrainSettings
    features: tuple[int, int, int, int, int, int] = (16, 32, 64, 128, 128, 16)
    voxels: int = 96**3
    coarseness: float = 1.0


#: Recipes by name.
RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        "a model for use; minutes for small crops on a CPU, hours for whole volumes",
        TrainSettings(),
    ),
    "long": Recipe(
        "the same for 240 epochs, with stronger augmentation and every person trained on: for a"
        " GPU or a night",
        TrainSettings(
            epochs=240, val_fraction=0.0, augmentation=Augmentation(spatial=0.8, elastic_mm=1.5)
        ),
        voxels=128**3,
    ),
    "sample": Recipe(
        "a small, coarse network on the synthetic studies: about two minutes of one core",
        TrainSettings(
            epochs=10, batch_size=2, samples_per_case=12, learning_rate=4e-3, val_interval=5
        ),
        features=(8, 16, 32, 64, 64, 8),
        voxels=50_000,
        coarseness=2.9,
    ),
}


@dataclass(frozen=True)
class Fingerprint:
    """Size of the cases on RAS axes.

    Parameters
    ----------
    spacing
        Median mm per voxel along R, A, S.
    extent
        Median mm along R, A, S.
    channels
        Of the images.
    modalities
        That occur.
    """

    spacing: tuple[float, float, float]
    extent: tuple[float, float, float]
    channels: int
    modalities: tuple[str, ...] = field(default=())


def recipe(name: str) -> Recipe:
    """Recipe by its name.

    Raises
    ------
    InvalidInputError
        There is no such recipe.
    """
    if name not in RECIPES:
        raise InvalidInputError(f"no recipe {name!r}. Choose one of: {', '.join(RECIPES)}.")
    return RECIPES[name]


def plan(
    cases: Sequence[Case],
    labels: tuple[str, ...],
    *,
    name: str = "segmentation",
    recipe: Recipe = RECIPES["default"],
    **changes: Any,
) -> ModelConfig:
    """Choose spacing and patch by the medians of the cases.

    Spacing is the median of each RAS axis; the patch is the median extent in voxels, cut to
    multiples of 16 and, longest side first, to the recipe's number of voxels.

    Parameters
    ----------
    cases
        To be trained on; of more than 80, at least 40 are looked at.
    labels
        Names of the structures; the value of ``labels[i]`` is ``i + 1``.
    name
        Of the model.
    recipe
        Features, patch size and coarseness.
    **changes
        Further fields of ``ModelConfig``.

    Raises
    ------
    InvalidInputError
        There are no cases, they have different numbers of channels, or two names differ in case
        at most.
    """
    if len({label.strip().casefold() for label in labels}) < len(labels):
        raise InvalidInputError(
            f"two of the structures {', '.join(labels)} have one name: names are compared without "
            "case. Rename one, or give both one value."
        )
    found = fingerprint(cases)
    finest = recipe.coarseness * min(found.spacing)
    spacing = tuple(max(s, finest) for s in found.spacing)
    patch = [
        max(_STRIDE, round(e / s / _STRIDE) * _STRIDE)
        for e, s in zip(found.extent, spacing, strict=True)
    ]
    while math.prod(patch) > recipe.voxels:
        longest = int(np.argmax(patch))
        patch[longest] -= _STRIDE
    if math.prod(p // _STRIDE for p in patch) < 2:
        patch[0] = 2 * _STRIDE
    settled: dict[str, Any] = {
        "name": name,
        "labels": labels,
        "in_channels": found.channels,
        "spacing": tuple(round(s, 3) for s in spacing),
        "patch_size": tuple(patch),
        "features": recipe.features,
        "modalities": found.modalities,
    }
    return ModelConfig(**{**settled, **changes})


def fingerprint(cases: Sequence[Case]) -> Fingerprint:
    """Look at the headers of the cases.

    Raises
    ------
    InvalidInputError
        There are no cases, or they have different numbers of channels.
    """
    if not cases:
        raise InvalidInputError("no cases to plan a network for. Annotate studies first.")
    chosen = sorted(cases, key=lambda c: c.series)[:: max(1, len(cases) // _SAMPLE)]
    spacings, extents, channels = [], [], set()
    for case in chosen:
        volume = read_volume(case.image)
        axes = nib.orientations.io_orientation(volume.affine)  # type: ignore[no-untyped-call]
        order = np.argsort(axes[:, 0])
        spacing = np.asarray(volume.spacing)[order]
        spacings.append(spacing)
        extents.append(spacing * np.asarray(volume.shape)[order])
        channels.add(volume.array.shape[3] if volume.array.ndim == 4 else 1)
    if len(channels) > 1:
        raise InvalidInputError(
            f"images have {', '.join(map(str, sorted(channels)))} channels; train on one kind."
        )
    r, a, s = (float(v) for v in np.median(spacings, axis=0))
    er, ea, es = (float(v) for v in np.median(extents, axis=0))
    return Fingerprint(
        (r, a, s), (er, ea, es), channels.pop(), tuple(sorted({c.modality for c in cases}))
    )
