"""The norm of a convolution before a normalisation: it says nothing, and slows learning down."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from adaptation_sites import CONFIG
from adaptation_sites import site as unet_site
from segunlearn.adaptation.episodes import EpisodeSettings
from segunlearn.adaptation.meta_training import MetaSettings, meta_train
from segunlearn.adaptation.plasticity import rescaled
from segunlearn.errors import InvalidInputError
from segunlearn.networks import build_network
from segunlearn.unlearning.loop import copy_of

SITES = {name: unet_site(number, 4) for number, name in enumerate("ab")}
SETTINGS = MetaSettings(
    learn=("generator",), iterations=3, generator_times=1, tasks=1, start_norm=1.0,
    episodes=EpisodeSettings(virtual=None),
)  # fmt: skip


def convolutions(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights that a normalisation follows; those of the UNet, by their names."""
    return {
        name: weight
        for name, weight in network.named_parameters()
        if name.endswith(".conv.weight") and not name.startswith("final_conv")
    }


def grown(network: nn.Module, factor: float) -> nn.Module:
    """Give the same network as if a long training had let its norms grow."""
    made = copy_of(network)
    with torch.no_grad():
        for name, weight in convolutions(made).items():
            weight.mul_(factor)
            made.get_parameter(name.replace(".weight", ".bias")).mul_(factor)
    return made


def test_a_new_network_has_the_norms_of_a_new_one() -> None:
    network = build_network(CONFIG, 0)
    assert len(convolutions(network)) == 18
    for weight in convolutions(network).values():
        assert float(weight.detach().norm()) == pytest.approx(math.sqrt(len(weight) / 3), rel=0.15)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_it_gives_norms_and_changes_nothing_that_the_network_says(share: float) -> None:
    network = grown(build_network(CONFIG, 0), 7.0).eval()
    before = {name: w.clone() for name, w in network.state_dict().items()}
    made = rescaled(network, share).eval()
    image = torch.randn(2, 1, *CONFIG.patch_size[: CONFIG.spatial_dims])
    with torch.no_grad():
        said = [n(image).softmax(dim=1) for n in (made, network)]
        torch.testing.assert_close(*said, rtol=0, atol=5e-3)
    for weight in convolutions(made).values():
        assert float(weight.detach().norm()) == pytest.approx(share * math.sqrt(len(weight) / 3))
    mine = {*convolutions(made)} | {n.replace("weight", "bias") for n in convolutions(made)}
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in mine), name
    assert all(torch.equal(w, before[n]) for n, w in network.state_dict().items()), "a copy"


def test_a_convolution_without_a_normalisation_keeps_its_norm() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1))
    made = rescaled(network, 0.1)
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), network.parameters(), strict=True)
    )


def test_how_far_the_norms_have_grown_no_longer_matters() -> None:
    """Without it the same network, at grown norms, hardly learns."""
    network = build_network(CONFIG, 0)

    def moved(start: nn.Module, settings: MetaSettings) -> float:
        made = meta_train(network, SITES, CONFIG, settings, base_sha256="ab" * 32, start=start)
        name = "down_1.convs.conv_0.conv.weight"
        ends = made.film_network[name].flatten()
        begins = start.get_parameter(name).detach().flatten()
        return 1 - float(torch.cosine_similarity(ends, begins, dim=0))

    free = dataclasses.replace(SETTINGS, start_norm=None)
    turned = [moved(grown(network, f), SETTINGS) for f in (1.0, 7.0)]
    assert turned[1] == pytest.approx(turned[0], rel=0.1)
    assert moved(grown(network, 7.0), free) < 0.1 * turned[0]


@pytest.mark.parametrize("norm", [0.0, -1.0, math.inf])
def test_norms_that_mean_nothing_are_refused(norm: float) -> None:
    with pytest.raises(InvalidInputError, match="start_norm must be > 0"):
        dataclasses.replace(SETTINGS, start_norm=norm)


def test_a_network_that_stays_as_it_is_gets_no_other_norms() -> None:
    with pytest.raises(InvalidInputError, match="train_network=False"):
        dataclasses.replace(SETTINGS, train_network=False)
