"""Small images for the tests of the generator."""

from __future__ import annotations

import numpy as np
import torch

from segunlearn.networks import ModelConfig
from segunlearn.replay.generator import Generator, GeneratorConfig
from segunlearn.replay.training import GeneratorSettings, train_generator
from segunlearn.unlearning import Study

MODEL = ModelConfig(
    spatial_dims=2, patch_size=(16, 32, 1), features=(4, 4, 4, 4, 4, 4), normalisation="zscore"
)
SHAPE = GeneratorConfig.of(MODEL, latent=4, channels=(8, 8))
SETTINGS = GeneratorSettings(
    steps=60, batch_size=8, learning_rate=5e-3, augmentation=None, checkpoint_every=20
)


def blobs(count: int, seed: int = 0, *, first: int = 0) -> tuple[Study, ...]:
    """Studies of one slice with a bright ellipse, each of its own person; the ellipse is label."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(16), np.arange(32), indexing="ij")
    studies = []
    for i in range(count):
        a, b = rng.uniform(6, 10), rng.uniform(12, 20)
        inside = ((x - a) / rng.uniform(3, 5)) ** 2 + ((y - b) / rng.uniform(5, 9)) ** 2 < 1
        image = torch.from_numpy((2.0 * inside - 0.5).astype(np.float32))[None, :, :, None]
        label = torch.from_numpy(inside.astype(np.uint8))[:, :, None]
        name = f"study-{first + i}"
        studies.append(Study(name, name, name, image, label))
    return tuple(studies)


def trained(count: int = 12) -> Generator:
    """A generator that was trained for some seconds."""
    return train_generator(blobs(count), MODEL, SHAPE, SETTINGS)
