"""Pieces of the loop that methods share."""

from __future__ import annotations

from dataclasses import replace

import torch

from memorising_task import CONFIG, FORGET, original
from segunlearn.unlearning.loop import Targets, frozen


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
