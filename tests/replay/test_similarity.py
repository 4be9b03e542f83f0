"""Measures of likeness."""

from __future__ import annotations

import pytest
import torch
from monai.metrics.regression import compute_ms_ssim

from segunlearn.errors import InvalidInputError
from segunlearn.replay.similarity import DATA_RANGE, WEIGHTS, frechet_distance, ms_ssim


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ms_ssim_is_that_of_monai_where_monai_has_one() -> None:
    one = images(0, 3, 1, 192, 192)
    other = one + 0.3 * images(1, 3, 1, 192, 192)
    wanted = compute_ms_ssim(one, other, 2, DATA_RANGE, weights=[w / sum(WEIGHTS) for w in WEIGHTS])
    torch.testing.assert_close(ms_ssim(one, other), wanted[:, 0])


@pytest.mark.parametrize("shape", [(8, 8), (32, 48), (64, 64), (16, 24, 16)])
def test_ms_ssim_takes_small_images_and_is_one_for_equal_ones(shape: tuple[int, ...]) -> None:
    one = images(0, 2, 1, *shape)
    torch.testing.assert_close(ms_ssim(one, one), torch.ones(2))
    near, far = one + 0.2 * images(1, 2, 1, *shape), images(2, 2, 1, *shape)
    assert bool((ms_ssim(one, near) > ms_ssim(one, far)).all())


def test_gradient_exists_for_images_that_contradict_each_other() -> None:
    one = images(0, 2, 1, 32, 32)
    other = (-one).clone().requires_grad_()
    ms_ssim(one, other).sum().backward()  # type: ignore[no-untyped-call]
    assert other.grad is not None
    assert bool(torch.isfinite(other.grad).all())


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="too small"):
        ms_ssim(images(0, 1, 1, 5, 9), images(1, 1, 1, 5, 9))


def test_frechet_distance_of_known_normal_distributions() -> None:
    one = images(0, 60_000, 2)
    other = images(1, 60_000, 2) * torch.tensor([2.0, 1.0]) + torch.tensor([0.0, 3.0])
    # |m1 - m2|^2 = 9, and (1 - 2)^2 along the first axis
    assert frechet_distance(one, other) == pytest.approx(10, rel=0.02)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InvalidInputError):
        frechet_distance(one[:1], other)
