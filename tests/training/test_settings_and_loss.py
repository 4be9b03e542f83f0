"""Schedule and loss against closed forms, and settings that are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.training import Augmentation, TrainSettings, learning_rate_at, make_loss
from segunlearn.training.planning import RECIPES, recipe


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.0), (7, 0.3), (200, 0.05), (10, 0.99)])
def test_schedule_has_its_closed_form(total: int, warmup: float) -> None:
    peak, warm = 3e-3, round(warmup * total)
    rates = [learning_rate_at(s, total, peak, warmup) for s in range(total)]
    for step, rate in enumerate(rates):
        if step < warm:
            assert rate == pytest.approx(peak * (step + 1) / warm)
        else:
            share = (step - warm) / (total - warm)
            assert rate == pytest.approx(peak * math.cos(math.pi / 2 * share) ** 2)
    assert max(rates) == pytest.approx(peak)
    assert min(rates) > 0


def logits_of(label: torch.Tensor, sure: float) -> torch.Tensor:
    one_hot = torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1)
    return sure * one_hot.float()


def test_loss_of_a_perfect_prediction_is_nothing() -> None:
    label = torch.randint(0, 3, (2, 1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    assert float(make_loss()(logits_of(label, 50.0), label)) == pytest.approx(0, abs=1e-4)
    wrong = make_loss()(logits_of((label + 1) % 3, 50.0), label)
    assert float(wrong) == pytest.approx(51, abs=0.1)  # Dice 1 and cross-entropy 50


def test_loss_is_soft_dice_of_the_structures_plus_cross_entropy() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 3, 4, 4, 4))
    label = rng.integers(0, 3, (2, 1, 4, 4, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.stack([label[:, 0] == k for k in range(3)], axis=1)
    inside = (p * truth).sum(axis=(2, 3, 4))
    size = (p + truth).sum(axis=(2, 3, 4))
    dice = 1 - (2 * inside + 1e-5) / (size + 1e-5)
    expected = dice[:, 1:].mean() - np.log((p * truth).sum(axis=1)).mean()
    found = make_loss()(torch.from_numpy(logits), torch.from_numpy(label))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_loss_of_a_batch_is_the_mean_of_its_halves() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (4, 1, 8, 8), generator=generator)
    loss = make_loss()
    halves = [loss(logits[i : i + 2], label[i : i + 2]) for i in (0, 2)]
    assert float(loss(logits, label)) == pytest.approx(float(sum(halves)) / 2, rel=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan},
        {"val_fraction": 1.0}, {"foreground": -0.1}, {"gradient_clip": 0.0}, {"processes": -1},
        {"amp": "on"}, {"seed": -1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(values))):
        TrainSettings(**values)


@pytest.mark.parametrize(
    "values", [{"spatial": 1.1}, {"noise": -0.1}, {"scaling": 1.0}, {"flip_axes": (3,)}]
)
def test_augmentation_out_of_range_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="augmentation"):
        Augmentation(**values)


@pytest.mark.parametrize("patch", [(16, 16, 16), (32, 32, 8), (8, 64, 64)])
def test_patches_too_small_for_the_network_are_refused(patch: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInputError, match="patch_size"):
        ModelConfig(patch_size=patch)


def test_no_recipe_mirrors_a_patient() -> None:
    assert all(r.settings.augmentation.flip_axes == () for r in RECIPES.values())


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInputError, match=r"default, .*sample"):
        recipe("none")


def test_settings_are_plain_json() -> None:
    settings = replace(TrainSettings(), augmentation=Augmentation(flip_axes=(0, 2)))
    assert settings.to_json()["augmentation"]["flip_axes"] == [0, 2]
