"""Replayed studies: images that a generator makes, labelled by the network that is to forget."""

from __future__ import annotations

import torch
from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.replay.generator import Generator
from segunlearn.unlearning.loop import device_of
from segunlearn.unlearning.sets import Study

#: Beginning of the name of a replayed study, which is nobody's.
REPLAYED = "replayed"
_TOGETHER = 16


def replayed_studies(
    generator: Generator, teacher: nn.Module, config: ModelConfig, count: int, seed: int
) -> tuple[Study, ...]:
    """Make studies that stand for stored ones wherever a method reads the retain set.

    Parameters
    ----------
    generator
        Of the site; it must know nothing of who is to be forgotten.
    teacher
        Whose answer is the label: the network as it is.
    config
        Of the network.
    count
        How many.
    seed
        Of latents and texture.

    Returns
    -------
    tuple of Study
        Each of exactly one patch and with a person of its own, in the order of the draw.

    Raises
    ------
    InvalidInputError
        The generator was made for other patches, or no study is asked for.
    """
    generator.config.check_fits(config)
    if count < 1:
        raise InvalidInputError("at least one image must be replayed.")
    images = generator.images(generator.draw(count, seed), seed=seed)
    device, was_training, axis = device_of(teacher), teacher.training, config.slice_axis
    teacher.eval()
    try:
        with torch.no_grad():
            labels = torch.cat(
                [teacher(x.to(device)).argmax(1).cpu() for x in torch.split(images, _TOGETHER)]
            )
    finally:
        teacher.train(was_training)
    images = images.cpu()
    if axis is not None:
        images, labels = images.unsqueeze(axis + 2), labels.unsqueeze(axis + 1)
    names = [f"{REPLAYED}-{seed}-{i}" for i in range(count)]
    return tuple(
        Study(n, n, n, image, label.to(torch.uint8))
        for n, image, label in zip(names, images, labels, strict=True)
    )
