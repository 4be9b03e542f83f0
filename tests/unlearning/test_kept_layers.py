"""Layers that stay are run once, and nothing else differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from segunlearn.networks import ModelConfig, build_network
from segunlearn.unlearning import Study, kept_layers
from segunlearn.unlearning.kept_layers import KeptLayers
from segunlearn.unlearning.lora import Layers, LoraSettings, adapt, only

FLAT = ModelConfig(spatial_dims=2, patch_size=(32, 48, 1), features=(4, 4, 8, 8, 8, 4))
DEEP = ModelConfig(patch_size=(16, 32, 16), features=(4, 4, 8, 8, 8, 4))
#: The step up at full resolution gets one voxel less than its level has, and pads.
ODD = replace(DEEP, patch_size=(17, 32, 16))
DRAWS = ((0, 1), (2, 0), (1, 1), (2, 1))


def network(config: ModelConfig) -> nn.Module:
    return build_network(config, 0).double()


def images(config: ModelConfig, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((count, 1, *config.roi_size), generator=generator, dtype=torch.float64)


def studies(config: ModelConfig, count: int = 3, more: int = 0) -> tuple[Study, ...]:
    shape = tuple(n + more if n > 1 else n for n in config.patch_size)
    image, label = torch.zeros((1, *shape)), torch.zeros(shape, dtype=torch.uint8)
    return tuple(Study(f"s{i}", f"s{i}", f"p{i}", image, label) for i in range(count))


def answered(student: nn.Module, ask: Any, *given: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and the gradients of all weights that may change."""
    student.zero_grad()
    logits = ask(*given)
    logits.square().mean().backward()
    return logits.detach(), [w.grad.clone() for w in student.parameters() if w.grad is not None]


@pytest.mark.parametrize("config", [FLAT, DEEP, ODD], ids=["2D", "3D", "odd"])
@pytest.mark.parametrize("layers", ["bottleneck", "decoder+bottleneck", "decoder", "encoder"])
@pytest.mark.parametrize("rank", [0, 2])
def test_logits_and_gradients_are_those_of_the_network_however_far_it_went(
    config: ModelConfig, layers: Layers, rank: int
) -> None:
    whole = network(config)
    student = adapt(whole, LoraSettings(rank, layers=layers)).network if rank else None
    student = student or only(whole, layers)
    kept, every = KeptLayers(student, studies(config), config), images(config)
    for drawn in DRAWS:
        image = every[list(drawn)]
        expected = answered(student, student, image)
        found = answered(student, kept, image, drawn)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            for weight in student.parameters():
                if weight.requires_grad:
                    weight.sub_(0.3 * weight.grad if weight.grad is not None else 0.0)


def runs_of(network: nn.Module) -> list[int]:
    """Fills with the batch size of each run of the first step."""
    seen: list[int] = []
    network.get_submodule("conv_0").register_forward_hook(lambda m, i, o: seen.append(len(i[0])))
    return seen


def test_each_study_runs_once_through_what_stays() -> None:
    student = only(network(DEEP), "bottleneck")
    kept, seen = KeptLayers(student, studies(DEEP), DEEP), runs_of(student)
    for drawn in DRAWS:
        kept(images(DEEP)[list(drawn)], drawn)
    assert seen == [2, 1]


@pytest.mark.parametrize("why", ["larger than a patch", "dropout", "it may change", "no room"])
def test_where_nothing_can_be_kept_the_network_is_run(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(DEEP, dropout=0.5) if why == "dropout" else DEEP
    student = only(network(config), "all" if why == "it may change" else "bottleneck").eval()
    if why == "no room":
        monkeypatch.setattr(kept_layers, "_MOST", 1000)
    some = studies(DEEP, more=1 if why == "larger than a patch" else 0)
    kept, seen, image = KeptLayers(student, some, config), runs_of(student), images(DEEP)[:2]
    for _ in range(2):
        torch.testing.assert_close(kept(image, (0, 1)), student(image))
    assert seen == [2, 2, 2, 2]


def test_a_network_of_another_kind_is_run_as_it_is() -> None:
    other = nn.Conv3d(1, 2, 1).double()
    image = images(DEEP)[:2]
    torch.testing.assert_close(KeptLayers(other, studies(DEEP), DEEP)(image, (0, 1)), other(image))
