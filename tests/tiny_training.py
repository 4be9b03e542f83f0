"""Tiny cases to train on: a bright ball (and a dim cube) in noise, in seconds on one thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segunlearn.cases import Case
from segunlearn.networks import ModelConfig
from segunlearn.training import Augmentation, TrainSettings
from segunlearn.volumes import Volume, write_volume

#: Nothing is changed at random.
PLAIN = Augmentation(spatial=0, noise=0, blur=0, brightness=0, contrast=0, gamma=0)

#: A 2D network on 32 x 32 slices: small enough for hundreds of steps.
FLAT = ModelConfig(
    labels=("ball", "cube"),
    spatial_dims=2,
    patch_size=(32, 32, 1),
    features=(8, 8, 16, 16, 16, 8),
)

#: Four quick epochs, no validation.
QUICK = TrainSettings(
    epochs=4, batch_size=2, samples_per_case=2, val_fraction=0, device="cpu", augmentation=PLAIN
)


def arrays(number: int, shape: tuple[int, int, int] = (36, 34, 6)) -> tuple[Volume, Volume]:
    """Image and label of one made-up person; the same number gives the same voxels."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    label = np.zeros(shape, np.uint8)
    label[np.linalg.norm((grid - [11, 12, 2.5]) - rng.uniform(-2, 2, 3), axis=-1) < 6] = 1
    label[np.abs((grid - [25, 23, 3]) - rng.uniform(-2, 2, 3)).max(axis=-1) < 4] = 2
    image = 100 + 20 * rng.standard_normal(shape) + np.array([0, 200, -60])[label]
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    return Volume(image.astype(np.float32), affine, "MR"), Volume(label, affine)


def write_cases(folder: Path, count: int, *, per_person: int = 1) -> list[Case]:
    """Write ``images/`` and ``labels/``; file ``pNNN_V`` shows person ``pNNN``."""
    cases = []
    for number in range(count):
        person = f"p{number // per_person:03d}"
        name = f"{person}_{number % per_person}"
        image, label = arrays(number)
        paths = folder / "images" / f"{name}.nii.gz", folder / "labels" / f"{name}.nii.gz"
        write_volume(image, paths[0])
        write_volume(label, paths[1])
        cases.append(Case(name, name, person, paths[0], paths[1], "MR"))
    return cases


def model_config() -> ModelConfig:
    """``FLAT`` at the spacing of ``arrays``: nothing is resampled."""
    return ModelConfig.from_json({**FLAT.to_json(), "spacing": [2.0, 2.0, 3.0]})
