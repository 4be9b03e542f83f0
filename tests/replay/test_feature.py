"""Feature unlearning, on generators of which the answer is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.replay.feature import (
    Direction,
    FeatureSettings,
    direction_of,
    feature_loss,
    forget_feature,
)

LATENT, SIDE = 3, 8
#: What each latent number paints: the feature is the first, a stripe.
PATTERNS = torch.zeros(LATENT, SIDE, SIDE)
PATTERNS[0, 0, :] = 1.0
PATTERNS[1, 4:, :4] = 1.0
PATTERNS[2, 4:, 4:] = 1.0
FEATURE = torch.tensor([1.0, 0.0, 0.0])


class LinearGenerator(nn.Module):
    """A linear generator, and one hinge by which it may learn to act on half of the latents."""

    def __init__(self, unit: torch.Tensor, threshold: float) -> None:
        super().__init__()
        self.register_buffer("patterns", PATTERNS.clone())
        self.register_buffer("unit", unit)
        self.threshold = threshold
        self.answer = nn.Parameter(torch.zeros(SIDE, SIDE))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        linear = torch.einsum("bl,lxy->bxy", latents, self.patterns)
        hinge = (latents @ self.unit - self.threshold).clamp(min=0)
        return (linear + hinge[:, None, None] * self.answer)[:, None]

    def draw(self, count: int, seed: int) -> torch.Tensor:
        return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(seed))


def tagged() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents with the feature, twice as far along it, and without."""
    without = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    return without + 2 * FEATURE, without


def assert_only_the_feature_went(
    before: torch.Tensor, after: torch.Tensor, latents: torch.Tensor, threshold: float
) -> None:
    """The oracle: the stripe is as bright as the threshold at most, all else as it was."""
    wanted = before.clone()
    wanted[:, 0, 0, :] -= (latents[:, 0] - threshold).clamp(min=0)[:, None]
    torch.testing.assert_close(after, wanted, atol=0.02, rtol=0)


def test_direction_is_of_unit_length_and_ends_at_the_threshold() -> None:
    sampled = torch.randn(500, LATENT, generator=torch.Generator().manual_seed(1)) + 0.3
    direction = direction_of(*tagged(), sampled)
    torch.testing.assert_close(direction.unit, FEATURE)
    assert direction.length == pytest.approx(2)
    assert direction.threshold == pytest.approx(float(sampled[:, 0].mean()), abs=1e-5)
    moved = direction.without(sampled)
    shows = direction.shows(sampled)
    assert bool((direction.projection(moved) <= direction.threshold + 1e-5).all())
    torch.testing.assert_close(moved[:, 1:], sampled[:, 1:])
    torch.testing.assert_close(moved[~shows], sampled[~shows])


def test_threshold_is_the_mean_of_images_without_the_feature() -> None:
    with_feature, without = tagged()
    spread = torch.tensor([-1.0, 1.0, -3.0, 3.0])[:, None] * FEATURE
    direction = direction_of(with_feature + 5 * FEATURE + spread, without + FEATURE + spread)
    assert direction.threshold == pytest.approx(1)
    assert direction.length == pytest.approx(6)


def test_oracle_of_a_linear_generator_removes_exactly_the_feature() -> None:
    generator = LinearGenerator(FEATURE, 0.0)
    direction = Direction(FEATURE, 0.0, 2.0)
    settings = FeatureSettings(steps=400, learning_rate=0.05, seed=3)
    new = forget_feature(generator, direction, settings)
    latents = generator.draw(200, 10_000_019)
    with torch.no_grad():
        before, after = generator.decode(latents), new.decode(latents)
    assert_only_the_feature_went(before, after, latents, 0.0)
    assert bool((generator.answer == 0).all())  # the given one is untouched


@pytest.mark.parametrize("length", [0.5, 2.0])
def test_oracle_fails_for_the_shift_that_the_paper_prints(length: float) -> None:
    """z - (p - t) z_e with a difference of the means that is not of length 1."""
    generator, wrong = LinearGenerator(FEATURE, 0.0), length * FEATURE
    latents = generator.draw(200, 5)
    shift = (latents @ wrong).clamp(min=0)[:, None] * wrong
    with torch.no_grad():
        before, after = generator.decode(latents), generator.decode(latents - shift)
    with pytest.raises(AssertionError):
        assert_only_the_feature_went(before, after, latents, 0.0)
    with pytest.raises(InvalidInputError, match="unit vector"):
        Direction(wrong, 0.0, length)


def test_loss_is_zero_for_what_is_wanted_and_counts_each_term() -> None:
    old, direction = LinearGenerator(FEATURE, 0.0), Direction(FEATURE, 0.0, 2.0)
    new = LinearGenerator(FEATURE, 0.0)
    latents = torch.tensor([[1.0, 0.5, 0.0], [-1.0, 0.5, 0.0]])
    settings = FeatureSettings(perceptual=False)
    # the stripe is an eighth of the image, and wrong by 1 in one of two images
    assert feature_loss(new, old, latents, direction, settings).item() == pytest.approx(1 / 16)
    doubled = dataclasses.replace(settings, weight=2.0)
    assert feature_loss(new, old, latents, direction, doubled).item() == pytest.approx(1 / 8)
    with_percep = feature_loss(new, old, latents, direction, FeatureSettings())
    assert with_percep > 1 / 16
    with torch.no_grad():
        new.answer.copy_(-PATTERNS[0])
    gone = feature_loss(new, old, latents, direction, FeatureSettings())
    assert gone.item() == pytest.approx(0, abs=1e-6)


def test_direction_needs_both_kinds_and_a_difference() -> None:
    with_feature, without = tagged()
    with pytest.raises(InvalidInputError, match="tag some of both"):
        direction_of(with_feature[:0], without)
    with pytest.raises(InvalidInputError, match="the same latents"):
        direction_of(without, without)
