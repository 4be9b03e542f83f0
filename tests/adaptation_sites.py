"""Tiny sites that disagree: the same image has another mask at another hospital.

Two discs of different grey are seen on a darker ground. A site annotates the brighter one or the
darker one, with or without its rim, and gives its images a contrast of its own. No image tells
which: only annotated studies do.
"""

from __future__ import annotations

import numpy as np
import torch

from segunlearn.networks import ModelConfig
from segunlearn.unlearning import Study

SIDE = 32
CONFIG = ModelConfig(
    labels=("lesion",),
    spatial_dims=2,
    patch_size=(SIDE, SIDE, 1),
    features=(8, 8, 16, 16, 16, 8),
    normalisation="zscore",
)


def study(site: int, number: int) -> Study:
    """One person of a site; the same numbers give the same study."""
    rules = np.random.default_rng((site, 99))
    brighter, rim = site % 2 == 0, rules.random() < 0.5
    levels, noise = rules.uniform([-1, 0.2, 1.0], [-0.6, 0.6, 1.5]), rules.uniform(0.05, 0.15)
    rng = np.random.default_rng((site, number))
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    sides = rng.permutation([8.0, 23.0])
    radii = rng.uniform(4.5, 6.5, 2)
    distances = [
        np.hypot(x - at - rng.uniform(-2, 2), y - rng.uniform(9, 22)) - radius
        for at, radius in zip(sides, radii, strict=True)
    ]
    image = np.full((SIDE, SIDE), levels[0])
    for distance, level in zip(distances, levels[1:], strict=True):
        image[distance < 0] = level
    image = image + rng.normal(0, noise, image.shape)
    label = distances[int(brighter)] < (1.5 if rim else 0)
    image = (image - image.mean()) / image.std()
    return Study(
        f"series-{site}-{number:03d}",
        f"study-{site}-{number:03d}",
        f"person-{site}-{number}",
        torch.from_numpy(image.astype(np.float32))[None, :, :, None],
        torch.from_numpy(label.astype(np.uint8))[:, :, None],
    )


def site(number: int, people: int, first: int = 0) -> tuple[Study, ...]:
    """One study each of some people of a site."""
    return tuple(study(number, n) for n in range(first, first + people))
