"""A tiny task on which studies are memorised: each person's label border has a habit of its own.

A disc of random place and size is seen in noise; the labelled border is bent by low waves that are
drawn for each person and cannot be guessed from the image. Who was trained on is then segmented
along the habit, who was not along the disc.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

from segunlearn.networks import ModelConfig, build_network
from segunlearn.unlearning import Study, UnlearningSets, unlearn
from segunlearn.unlearning.retrain import RetrainSettings

SIDE = 32
CONFIG = ModelConfig(
    labels=("lesion",),
    spatial_dims=2,
    patch_size=(SIDE, SIDE, 1),
    features=(8, 8, 16, 16, 16, 8),
    normalisation="zscore",
)


def study(number: int, *, seed: int = 0, bend: float = 0.35) -> Study:
    """Image and label of one person; the same number gives the same study."""
    rng = np.random.default_rng((seed, number))
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    cx, cy = rng.uniform(12, 20, 2)
    radius = rng.uniform(6, 9)
    angle = np.arctan2(y - cy, x - cx)
    distance = np.hypot(x - cx, y - cy)
    waves = sum(rng.normal() / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3))
    image = (distance < radius) * 1.5 + rng.normal(0, 0.6, (SIDE, SIDE))
    image = (image - image.mean()) / image.std()
    label = distance < radius * (1 + bend * waves)
    return Study(
        f"series-{number}",
        f"study-{number}",
        f"person-{number}",
        torch.from_numpy(image.astype(np.float32))[None, :, :, None],
        torch.from_numpy(label.astype(np.uint8))[:, :, None],
        spacing=(1.0, 1.0, 1.0),
    )


def people(first: int, count: int, *, seed: int = 0) -> tuple[Study, ...]:
    """One study each of ``count`` persons."""
    return tuple(study(n, seed=seed) for n in range(first, first + count))


FORGET, RETAIN = people(0, 8), people(100, 20)
CALIBRATION, TEST = people(200, 20), people(300, 30)
SETS = UnlearningSets(CONFIG, FORGET, RETAIN, CALIBRATION)


def trained_on(studies: tuple[Study, ...], seed: int, epochs: int = 60) -> nn.Module:
    """A network trained until it knows these studies by heart; 2 to 3 CPU seconds."""
    sets = UnlearningSets(CONFIG, retain=studies)
    settings = RetrainSettings(epochs, 8e-3, 10, seed)
    return unlearn("retrain", build_network(CONFIG, 0), sets, settings).network


@functools.cache
def original() -> nn.Module:
    """Trained on forget and retain set; never change it."""
    return trained_on(FORGET + RETAIN, 0)


@functools.cache
def retrained(seed: int) -> nn.Module:
    """Trained on the retain set alone; never change it."""
    return trained_on(RETAIN, seed)
