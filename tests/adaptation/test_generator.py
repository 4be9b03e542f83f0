"""The generator: untrained it is the joint model; order and number of studies do not matter."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from adaptation_sites import CONFIG, site
from segunlearn.adaptation import AdaptSettings, MetaModel, adapt
from segunlearn.adaptation.generator import Generator, film_layers, folded
from segunlearn.adaptation.sampling import patches_of
from segunlearn.errors import IntegrityError, NotFoundError, UnsupportedNetworkError
from segunlearn.networks import ModelConfig, build_network

SUPPORT = site(1, 3)
BASE = "ab" * 32


@pytest.fixture
def network() -> nn.Module:
    return build_network(CONFIG, 0).eval()


@pytest.fixture
def generator(network: nn.Module) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(CONFIG, film_layers(network)).eval()


def trained(generator: Generator) -> Generator:
    """One that does something."""
    other = copy.deepcopy(generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        nn.init.normal_(other.head[-1].weight, std=0.05)  # type: ignore[arg-type]
    return other


def meta(generator: Generator) -> MetaModel:
    return MetaModel(BASE, generator=generator.state_dict())


@pytest.mark.parametrize("method", ["generator", "generator+steps"])
def test_an_untrained_generator_gives_the_joint_model_to_the_bit(
    network: nn.Module, generator: Generator, method: str
) -> None:
    settings = AdaptSettings(method=method, steps=0)  # type: ignore[arg-type]
    adapted = adapt(network, meta(generator), SUPPORT, CONFIG, settings)
    state = network.state_dict()
    assert adapted.tensors.keys() == {n for n in state if ".adn.N." in n}
    assert all(torch.equal(v, state[k]) for k, v in adapted.tensors.items())


def test_a_folded_modulation_is_the_modulation_of_every_output(
    network: nn.Module, generator: Generator
) -> None:
    batch = patches_of(SUPPORT, CONFIG, 1, np.random.default_rng(0))
    film = {k: v.detach() for k, v in trained(generator)(network, batch, (1,)).items()}
    weights = folded(dict(network.named_parameters()), film)
    folded_in = torch.func.functional_call(network, weights, (batch[0],))

    for name in film_layers(network):
        gamma, beta = (film[f"{name}.{p}"].reshape(1, -1, 1, 1) for p in ("weight", "bias"))
        network.get_submodule(name).register_forward_hook(
            lambda _m, _x, out, gamma=gamma, beta=beta: out * (1 + gamma) + beta
        )
    torch.testing.assert_close(network(batch[0]), folded_in, rtol=1e-4, atol=1e-5)
    assert max(float(v.abs().max()) for v in film.values()) > 0.05, "it is no trifle"


def test_neither_order_nor_repetition_of_the_support_matters(
    network: nn.Module, generator: Generator
) -> None:
    made = trained(generator)
    image, label = patches_of(SUPPORT, CONFIG, 1, np.random.default_rng(0))
    film = made(network, (image, label), (1,))
    for order in ([2, 0, 1], [1, 2, 0], [0, 1, 2, 0, 1, 2]):
        other = made(network, (image[order], label[order]), (1,))
        for name, value in film.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
    fewer = made(network, (image[:1], label[:1]), (1,))
    assert not torch.allclose(fewer["conv_0.conv_0.adn.N.bias"], film["conv_0.conv_0.adn.N.bias"])


def test_masks_and_levels_of_the_support_count(network: nn.Module, generator: Generator) -> None:
    made = trained(generator)
    image, label = patches_of(SUPPORT, CONFIG, 1, np.random.default_rng(0))
    name = "conv_0.conv_0.adn.N.weight"
    film = made(network, (image, label), (1,))[name]
    assert not torch.allclose(made(network, (image, 1 - label), (1,))[name], film, atol=1e-4)
    assert not torch.allclose(made(network, (image + 1, label), (1,))[name], film, atol=1e-4)


def test_structures_outside_the_task_are_not_shown() -> None:
    config = ModelConfig(**{**vars(CONFIG), "labels": ("lesion", "cyst")})
    network = build_network(config, 0).eval()
    made = trained(Generator(config, film_layers(network)).eval())
    image = torch.randn((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    label = (image > 1).long() + 2 * (image < -1).long()
    hidden = torch.where(label == 2, 0, label)
    name = "conv_0.conv_0.adn.N.weight"
    assert torch.equal(
        made(network, (image, label), (1,))[name], made(network, (image, hidden), (1,))[name]
    )
    assert not torch.equal(
        made(network, (image, label), (1, 2))[name], made(network, (image, label), (1,))[name]
    )


def test_steps_go_on_from_the_modulation_and_change_it_alone(
    network: nn.Module, generator: Generator
) -> None:
    before = copy.deepcopy(network.state_dict())
    settings = AdaptSettings(method="generator+steps", steps=3, learning_rate=0.1)
    adapted = adapt(network, meta(trained(generator)), SUPPORT, CONFIG, settings)
    assert adapted.curve[-1][1] < adapted.curve[0][1]
    assert all(".adn.N." in name for name in adapted.tensors)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_3d_network_gets_its_modulation_too() -> None:
    config = ModelConfig(patch_size=(32, 16, 16), features=(2, 2, 2, 2, 2, 2))
    network = build_network(config, 1)
    made = trained(Generator(config, film_layers(network)))
    image = torch.randn((2, 1, 32, 16, 16), generator=torch.Generator().manual_seed(0))
    film = made(network, (image, (image > 1).long()), (1,))
    assert film.keys() == {n for n, _ in network.named_parameters() if ".adn.N." in n}


def test_a_network_without_affine_normalisation_is_refused() -> None:
    with pytest.raises(UnsupportedNetworkError, match="no affine normalisation"):
        film_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2)))


def test_the_meta_file_gives_back_the_same_model_and_no_other_base(generator: Generator) -> None:
    rates = {"final_conv.bias": torch.tensor([0.05, 0.02])}
    made = MetaModel(
        BASE,
        "head",
        {"final_conv.bias": torch.ones(2)},
        rates,
        {},
        generator.state_dict(),
        {"upcat_1.upsample.deconv.bias": torch.tensor([0.1])},
        {"k": 1},
    )
    data = made.to_bytes()

    read = MetaModel.from_bytes(data, BASE)

    assert read.methods == ("generator+maml", "maml", "generator", "generator+steps")
    assert (read.inner_set, read.about) == ("head", {"k": 1})
    assert torch.equal(read.rates["final_conv.bias"], rates["final_conv.bias"])
    assert read.generator.keys() == generator.state_dict().keys()
    with pytest.raises(IntegrityError, match="made for weights abababababab"):
        MetaModel.from_bytes(data, "cd" * 32)
    for damaged in (b"", data[:-5]):
        with pytest.raises(IntegrityError):
            MetaModel.from_bytes(damaged, BASE)


def test_a_method_that_was_not_trained_is_refused(network: nn.Module, generator: Generator) -> None:
    with pytest.raises(NotFoundError, match=r"maml: .* meta-trained for generator, generator\+st"):
        adapt(network, meta(generator), SUPPORT, CONFIG, AdaptSettings(method="maml"))
