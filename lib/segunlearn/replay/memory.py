"""What a generator remembers of its training images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segunlearn.networks import ModelConfig
from segunlearn.replay.generator import Generator
from segunlearn.replay.training import patches
from segunlearn.unlearning.sets import Study


def reconstruction_errors(
    generator: Generator, studies: Sequence[Study], model: ModelConfig
) -> dict[str, float]:
    """Mean squared error of each study rebuilt from its mean latent, by series.

    An image that was trained on is rebuilt better than one that was not: minus the error is the
    score of a membership attack.
    """
    found = {}
    images = images_of(generator, studies, model)
    with torch.no_grad():
        for study, image in zip(studies, torch.split(images, 1), strict=True):
            made = generator.decode(generator.encode(image)[0])
            found[study.series] = float((made - image).square().mean())
    return found


@dataclass(frozen=True)
class Neighbour:
    """A generated image and the training image that it is nearest to.

    Parameters
    ----------
    image
        ``(C, *shape)``.
    nearest
        The training image's number in the set.
    error
        Mean squared difference.
    """

    image: torch.Tensor
    nearest: int
    error: float


def nearest_neighbours(images: torch.Tensor, trained: torch.Tensor) -> list[Neighbour]:
    """Find for each image ``(B, C, *shape)`` the nearest of a set, by mean squared difference."""
    flat, found = trained.flatten(1), []
    for image in images:
        errors = (flat - image.flatten()).square().mean(1)
        nearest = int(errors.argmin())
        found.append(Neighbour(image, nearest, float(errors[nearest])))
    return found


def images_of(
    generator: Generator, studies: Sequence[Study], model: ModelConfig, seed: int = 0
) -> torch.Tensor:
    """One patch of each study at the generator's size, ``(N, C, *shape)``, as it is.

    Where it is cut depends on the study alone: a list of tags is about what its page showed,
    whichever studies stand beside it.
    """
    found = []
    for study in studies:
        own = int.from_bytes(hashlib.sha256(study.series.encode()).digest()[:8])
        rng = np.random.default_rng((seed, own))
        found.append(patches([study], model, generator, 1, rng, None, [0]))
    return torch.cat(found)
