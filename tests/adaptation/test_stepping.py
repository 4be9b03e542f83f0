"""Steps that start at a generator's weights: their gradient, and what they leave."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from adaptation_sites import CONFIG, site
from segunlearn.adaptation import AdaptSettings, MetaModel, adapt
from segunlearn.adaptation.episodes import Episode, Task
from segunlearn.adaptation.generator import folded
from segunlearn.adaptation.maml import MamlSettings
from segunlearn.adaptation.meta_training import GeneratorLearner, MetaSettings, SteppingLearner
from segunlearn.adaptation.task_loss import task_loss
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig, build_network

SMALL = ModelConfig(
    labels=CONFIG.labels, spatial_dims=2, patch_size=(32, 32, 1), features=(4, 4, 4, 4, 4, 4)
)
STEPS = MamlSettings("second", "all", 2, 0.5, 0.0, 0.0, checkpointed=False)
UNSTEPPED = 0.7


def episode() -> Episode:
    people = site(1, 4)
    image = torch.stack([s.image[..., 0] for s in people]).double()
    label = torch.stack([s.label[None, ..., 0].long() for s in people])
    support, query = (image[:2], label[:2]), (image[2:], label[2:])
    task = Task("1", SMALL.labels, (1,), tuple((p,) for p in people))
    return Episode(task, (support, support), query, (), ())


def learner() -> SteppingLearner:
    """With a generator that does something, and a network that says the same everywhere.

    What the network finds tells the generator where to look, and no gradient goes that way; at
    zero it stays where it is, so that a difference sees what the gradient sees.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(SMALL, 3)
        made = GeneratorLearner(network, SMALL, train_network=True)
        nn.init.normal_(made.generator.head[-1].weight, std=0.05)  # type: ignore[arg-type]
    nn.init.zeros_(network.get_parameter("final_conv.weight"))
    return SteppingLearner(made, STEPS, UNSTEPPED).double()


def by_hand(made: SteppingLearner, each: Episode) -> float:
    image, label = each.query
    network = copy.deepcopy(made.network)
    with torch.no_grad():
        film = made.generator(network, each.support[0], (1,))
        weights = folded(dict(network.named_parameters()), film)
        network.load_state_dict({**network.state_dict(), **weights})
        total = UNSTEPPED * task_loss(network(image), label, (1,)).item()
    names = [name for name, _ in network.named_parameters()]
    for step in range(STEPS.steps):
        parameters = dict(network.named_parameters())
        logits = functional_call(network, parameters, (each.support[step][0],))
        loss = task_loss(logits, each.support[step][1], (1,))
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for name, slope in zip(names, slopes, strict=True):
                parameters[name] -= made.rates()[name][step] * slope
    with torch.no_grad():
        return total + task_loss(network(image), label, (1,)).item()


def test_the_gradient_is_the_central_difference() -> None:
    """Of generator, rates and network together, along a random direction."""
    made, each, h = learner(), episode(), 1e-6
    made.accumulate(each)
    moved = {n: w for n, w in made.named_parameters() if "final_conv" not in n}
    random = torch.Generator().manual_seed(5)
    way = {n: torch.randn(w.shape, generator=random, dtype=w.dtype) for n, w in moved.items()}
    found = sum(float((w.grad * way[n]).sum()) for n, w in moved.items() if w.grad is not None)
    sides = []
    for sign in (1, -1):
        other = copy.deepcopy(made)
        with torch.no_grad():
            for name, direction in way.items():
                other.get_parameter(name).add_(sign * h * direction)
        sides.append(by_hand(other, each))
    expected = (sides[0] - sides[1]) / (2 * h)
    assert abs(found - expected) < 1e-6 * abs(expected)
    of_generator = [w.grad for n, w in made.named_parameters() if n.startswith("generator")]
    assert all(g is not None and g.abs().max() > 0 for g in of_generator[-2:])


def test_without_a_step_it_is_the_generator_and_steps_lower_the_loss() -> None:
    made = learner().float()
    network = build_network(CONFIG, 3)
    generator = GeneratorLearner(network, CONFIG, train_network=True).generator
    rates = {n: torch.full((2,), 0.05) for n, _ in network.named_parameters()}
    meta = MetaModel("0" * 64, generator=generator.state_dict(), film_rates=rates)
    support = site(1, 3)

    def adapted(method: str, steps: int) -> dict[str, torch.Tensor]:
        how = AdaptSettings(method, steps)  # type: ignore[arg-type]
        return adapt(network, meta, support, CONFIG, how).network.state_dict()

    plain, before = adapted("generator", 0), adapted("generator+maml", 0)
    assert all(torch.equal(before[name], value) for name, value in plain.items())
    curve = adapt(network, meta, support, CONFIG, AdaptSettings("generator+maml", 3)).curve
    assert curve[3][1] < curve[0][1]
    assert made.rates().keys() == dict(made.network.named_parameters()).keys()


def test_reptile_cannot_step_from_a_generator() -> None:
    with pytest.raises(InvalidInputError, match="Reptile learns no rates"):
        MetaSettings(learn=("generator+maml",), maml=MamlSettings("reptile"))


def test_steps_from_a_generator_need_a_network_that_learns() -> None:
    """Where the network is fixed there is nothing to step on, which only showed after hours."""
    with pytest.raises(InvalidInputError, match="train_network"):
        MetaSettings(learn=("generator+maml",), train_network=False)
