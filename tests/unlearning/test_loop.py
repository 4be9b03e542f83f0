"""Pieces of the loop that methods share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from memorising_task import CONFIG, FORGET, original
from segunlearn.networks import build_network
from segunlearn.unlearning.loop import Targets, frozen, part_of


def test_kept_targets_are_the_teachers_logits() -> None:
    """Studies of one patch: computed once each, whatever the order; larger ones: every time."""
    network = original()
    targets = Targets(frozen(network), FORGET, CONFIG)
    images = torch.stack([s.image[..., 0] for s in FORGET])
    calls = []
    targets._teacher.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        wanted = network.eval()(images)
    for drawn in ([2, 0], [0, 1], [1, 2, 0]):
        found = targets.of(images[drawn], drawn)
        assert torch.allclose(found, wanted[drawn], atol=1e-5)
        assert not found.requires_grad
    assert len(calls) == 2
    large = Targets(frozen(network), FORGET, replace(CONFIG, patch_size=(64, 64, 1)))
    assert torch.allclose(large.of(images[[1]] * 2, [1]), network(images[[1]] * 2), atol=1e-5)
    assert torch.allclose(large.of(images[[1]], [1]), wanted[[1]], atol=1e-5)


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        ((32, 48, 32), (16, 32, 32)),
        ((96, 96, 64), (48, 48, 64)),
        ((256, 256), (128, 128)),
        ((160, 160, 16), (80, 80, 16)),
        ((16, 32, 16), (16, 32, 16)),  # one value would be left to normalise
        ((20, 40), (16, 32)),
    ],
)
def test_parts_are_a_third_and_lie_anywhere(whole: tuple[int, ...], part: tuple[int, ...]) -> None:
    """Of the sides that are said, inside the patch, and every place comes up."""
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(2000):
        found = part_of((2, 1, *whole), rng)[2:]
        assert tuple(s.stop - s.start for s in found) == part
        assert all(s.start >= 0 and s.stop <= n for s, n in zip(found, whole, strict=True))
        starts.add(found[0].start)
    assert {0, whole[0] - part[0]} <= starts
    config = replace(CONFIG, spatial_dims=len(whole), patch_size=(*whole, 1)[:3])
    network = build_network(config, 0).train()
    if np.prod(part) < 10_000:
        assert network(torch.zeros(1, 1, *part)).shape[2:] == part  # it can be trained on


def test_targets_of_a_part_are_those_of_the_whole_patch_there() -> None:
    """What is kept is cut; what is not kept is computed for the part alone."""
    network = original()
    images = torch.stack([s.image[..., 0] for s in FORGET])
    part = part_of(images.shape, np.random.default_rng(1))
    with torch.no_grad():
        wanted = network.eval()(images)
    targets = Targets(frozen(network), FORGET, CONFIG)
    assert torch.allclose(targets.of(images, range(len(FORGET)), part), wanted[part], atol=1e-5)
    large = Targets(frozen(network), FORGET, replace(CONFIG, patch_size=(64, 64, 1)))
    with torch.no_grad():
        assert torch.allclose(
            large.of(images, range(len(FORGET)), part), network(images[part]), atol=1e-5
        )
