"""Patches: where they are cut, that image and label stay together, that the same seed repeats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from segunlearn.networks import ModelConfig
from segunlearn.training import Augmentation
from segunlearn.training.augmentation import choose_centre, sample_patch
from tiny_training import PLAIN

SOLID = ModelConfig(patch_size=(32, 32, 16), spacing=(1.0, 1.5, 3.0))
FLAT = ModelConfig(patch_size=(32, 1, 32), spatial_dims=2)
BENDING = replace(PLAIN, spatial=1.0, rotation_degrees=30.0, scaling=0.3, elastic_mm=3.0)


def smooth_blobs(shape: tuple[int, int, int] = (48, 44, 30)) -> torch.Tensor:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    label = np.linalg.norm((grid - [20, 22, 14]) / [9, 11, 7], axis=-1) < 1
    label |= np.linalg.norm((grid - [34, 30, 20]) / [7, 6, 5], axis=-1) < 1
    return torch.from_numpy(label.astype(np.uint8))


@pytest.mark.parametrize("config", [SOLID, FLAT], ids=["3D", "2D"])
def test_image_and_label_stay_together(config: ModelConfig) -> None:
    label = smooth_blobs()
    image = label.float()[None]
    centre = [torch.argwhere(label == 1)]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x, y = sample_patch(image, label, centre, config, 1.0, BENDING, rng)
        # linear and nearest interpolation differ on the border only
        off = (x[0] > 0.5) != (y == 1)
        border = (x[0] > 0.02) & (x[0] < 0.98)
        assert y.any()
        assert not (off & ~border).any()
        assert float(off.float().sum()) < 0.05 * float(y.sum()) + 4


def test_a_shift_between_image_and_label_would_be_seen() -> None:
    label = smooth_blobs()
    x, y = sample_patch(
        label.roll(2, 0).float()[None], label, [], SOLID, 0.0, BENDING, np.random.default_rng(3)
    )
    off, border = (x[0] > 0.5) != (y == 1), (x[0] > 0.02) & (x[0] < 0.98)
    assert (off & ~border).any()


def test_without_shares_a_patch_is_a_plain_crop() -> None:
    shape = (48, 44, 30)
    image = torch.arange(np.prod(shape), dtype=torch.float32).reshape(1, *shape)
    label = smooth_blobs()
    for seed in range(5):
        plain = sample_patch(image, label, [], SOLID, 0.0, None, np.random.default_rng(seed))
        same = sample_patch(image, label, [], SOLID, 0.0, PLAIN, np.random.default_rng(seed))
        assert torch.equal(plain[0], same[0])
        assert torch.equal(plain[1], same[1])
        # each voxel's value tells where it was
        i, j, k = (int(v) for v in np.unravel_index(int(plain[0][0, 0, 0, 0]), shape))
        assert torch.equal(plain[0], image[:, i : i + 32, j : j + 32, k : k + 16])
        assert torch.equal(plain[1], label[i : i + 32, j : j + 32, k : k + 16].long())


def test_a_spatial_change_of_nothing_is_a_plain_crop() -> None:
    image, label = torch.randn(1, 48, 44, 30), smooth_blobs()
    still = replace(PLAIN, spatial=1.0, rotation_degrees=0.0, scaling=0.0, elastic_mm=0.0)
    plain = sample_patch(image, label, [], SOLID, 0.0, None, np.random.default_rng(4))
    same = sample_patch(image, label, [], SOLID, 0.0, still, np.random.default_rng(4))
    torch.testing.assert_close(plain[0], same[0], atol=1e-4, rtol=0)
    assert torch.equal(plain[1], same[1])


def test_rotation_is_in_millimetres() -> None:
    """A ball in mm stays a ball in mm on voxels of unequal sides."""
    config = ModelConfig(patch_size=(48, 32, 16), spacing=(1.0, 1.5, 3.0))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (48, 32, 16)), indexing="ij"), axis=-1)
    ball = np.linalg.norm((grid - [23.5, 15.5, 7.5]) * config.spacing, axis=-1) < 15
    label = torch.from_numpy(ball.astype(np.uint8))
    turning = replace(PLAIN, spatial=1.0, rotation_degrees=90.0, scaling=0.0, elastic_mm=0.0)
    for seed in range(5):
        _, y = sample_patch(
            label.float()[None], label, [], config, 0.0, turning, np.random.default_rng(seed)
        )
        both = float((y.bool() & label.bool()).sum())
        assert 2 * both / float(y.sum() + label.sum()) > 0.93


def test_the_same_generator_gives_the_same_patch() -> None:
    image, label = torch.randn(1, 48, 44, 30), smooth_blobs()
    every = Augmentation(spatial=1, noise=1, blur=1, brightness=1, contrast=1, gamma=1)
    draws = [
        sample_patch(image, label, [], SOLID, 0.0, every, np.random.default_rng(s))[0]
        for s in (7, 7, 8)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].isfinite().all()


def test_intensity_changes_leave_the_label_alone() -> None:
    image, label = torch.randn(1, 48, 44, 30), smooth_blobs()
    loud = replace(PLAIN, noise=1, blur=1, brightness=1, contrast=1, gamma=1)
    changed = sample_patch(image, label, [], SOLID, 0.0, loud, np.random.default_rng(0))
    plain = sample_patch(image, label, [], SOLID, 0.0, None, np.random.default_rng(0))
    assert torch.equal(changed[1], plain[1])
    assert not torch.equal(changed[0], plain[0])


def test_mirroring_moves_both() -> None:
    label = smooth_blobs((32, 32, 16))
    image = label.float()[None]
    mirror = replace(PLAIN, flip_axes=(0,))
    seen = set()
    for seed in range(12):
        x, y = sample_patch(image, label, [], SOLID, 0.0, mirror, np.random.default_rng(seed))
        assert torch.equal(x[0], y.float())
        seen.add(bool(torch.equal(y, label.long())))
        assert torch.equal(y, label.long()) or torch.equal(y, label.long().flip(0))
    assert seen == {True, False}


def test_a_small_structure_is_in_most_patches_that_ask_for_it() -> None:
    label = torch.zeros(100, 100, 60, dtype=torch.uint8)
    label[2:5, 90:94, 50:53] = 1
    voxels = [torch.argwhere(label == 1)]
    hits = [
        bool(
            sample_patch(
                label.float()[None], label, voxels, SOLID, share, None, np.random.default_rng(seed)
            )[1].any()
        )
        for share in (1.0, 0.0)
        for seed in range(15)
    ]
    assert all(hits[:15])
    assert sum(hits[15:]) < 7


def test_patches_stay_inside_and_short_axes_are_centred() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        centre = choose_centre((40, 33, 10), (32, 32, 16), [], 0.0, rng)
        starts = [c - (p - 1) / 2 for c, p in zip(centre, (32, 32, 16), strict=True)]
        assert all(s == int(s) for s in starts)
        assert 0 <= starts[0] <= 8
        assert 0 <= starts[1] <= 1
        assert starts[2] in (-3, -4, -2)


def test_outside_of_the_volume_is_background() -> None:
    image, label = torch.ones(1, 20, 20, 10), torch.ones(20, 20, 10, dtype=torch.uint8)
    x, y = sample_patch(image, label, [], SOLID, 0.0, None, np.random.default_rng(0))
    assert float(x.sum()) == float(y.sum()) == 20 * 20 * 10
