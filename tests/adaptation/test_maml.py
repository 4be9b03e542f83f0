"""The meta-gradient: equal to finite differences, and unlike what is commonly taken for it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import nn

from adaptation_sites import CONFIG, site
from segunlearn.adaptation.episodes import Episode, Task
from segunlearn.adaptation.inner import InnerSet, inner_steps, loss_with
from segunlearn.adaptation.maml import MamlLearner, MamlSettings, Order, step_weights
from segunlearn.adaptation.task_loss import Batch, task_loss
from segunlearn.errors import InvalidInputError, UnsupportedNetworkError
from segunlearn.networks import ModelConfig, build_network
from segunlearn.unlearning.sets import Study

SMALL = ModelConfig(
    labels=CONFIG.labels, spatial_dims=2, patch_size=(32, 32, 1), features=(4, 4, 4, 4, 4, 4)
)
RATE, STEPS = 0.5, 2


def batch_of(studies: Sequence[Study]) -> Batch:
    return (
        torch.stack([s.image[..., 0] for s in studies]).double(),
        torch.stack([s.label[None, ..., 0].long() for s in studies]),
    )


def episode(number: int) -> Episode:
    people = site(number, 4)
    task = Task(str(number), CONFIG.labels, (1,), tuple((p,) for p in people))
    support = batch_of(people[:2])
    return Episode(task, (support, support), batch_of(people[2:]), (), ())


EPISODES = [episode(1), episode(2)]


def settings(order: Order = "second", inner_set: InnerSet = "all", **more: float) -> MamlSettings:
    return MamlSettings(
        order, inner_set, STEPS, RATE, first_order_share=0.0, checkpointed=False, **more
    )


def learner(how: MamlSettings) -> MamlLearner:
    return MamlLearner(build_network(SMALL, 3), how).double()


def flat(tensors: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> torch.Tensor:
    pairs = zip(tensors, like, strict=True)
    return torch.cat([(torch.zeros_like(w) if t is None else t).flatten() for t, w in pairs])


def gradient(made: MamlLearner) -> torch.Tensor:
    for each in EPISODES:
        made.accumulate(each)
    weights = list(made.parameters())
    return flat([w.grad for w in weights], weights)


@contextmanager
def moved(made: MamlLearner, direction: torch.Tensor, by: float) -> Iterator[None]:
    weights, before = list(made.parameters()), copy.deepcopy(made.state_dict())
    parts = direction.split([w.numel() for w in weights])
    with torch.no_grad():
        for weight, part in zip(weights, parts, strict=True):
            weight += by * part.reshape(weight.shape)
    yield
    made.load_state_dict(before)


def meta_loss(made: MamlLearner) -> float:
    """Written out: copy, descend on the support, judge on the query."""
    total = 0.0
    for each in EPISODES:
        fast = copy.deepcopy(made.network)
        weights = [fast.get_parameter(name) for name in made.learned_rates.names]
        for step in range(STEPS):
            image, label = each.support[step]
            found = torch.autograd.grad(task_loss(fast(image), label, (1,)), weights)
            with torch.no_grad():
                for weight, log, slope in zip(weights, made.learned_rates.logs, found, strict=True):
                    weight -= log[step].exp() * slope
        with torch.no_grad():
            total += task_loss(fast(each.query[0]), each.query[1], (1,)).item()
        if made.settings.zero_shot:
            value = task_loss(made.network(each.query[0]), each.query[1], (1,)).item()
            total += made.settings.zero_shot * value
    return total


def slope_error(made: MamlLearner, found: torch.Tensor, h: float = 1e-6) -> float:
    """Relative error of a gradient along a random direction, against central differences."""
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(len(found), generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    with moved(made, direction, h):
        above = meta_loss(made)
    with moved(made, direction, -h):
        below = meta_loss(made)
    expected = (above - below) / (2 * h)
    return abs(float(found @ direction) - expected) / abs(expected)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


@pytest.mark.parametrize("inner_set", ["all", "decoder", "head"])
def test_the_second_order_gradient_is_the_central_difference(inner_set: InnerSet) -> None:
    made = learner(settings(inner_set=inner_set))
    assert slope_error(made, gradient(made)) < 1e-6


def test_the_zero_shot_term_has_its_gradient() -> None:
    made = learner(settings(inner_set="decoder", zero_shot=0.7))
    assert slope_error(made, gradient(made)) < 1e-6


def test_the_first_order_gradient_is_that_of_a_hand_made_copy_and_another() -> None:
    made = learner(settings("first"))
    found = gradient(made)
    names = [name for name, _ in made.network.named_parameters()]
    expected = {name: torch.zeros(()).double() for name in names}
    rate = made.learned_rates.logs[0][0].exp().item()
    for each in EPISODES:
        fast = copy.deepcopy(made.network)
        for step in range(STEPS):
            image, label = each.support[step]
            fast.zero_grad()
            task_loss(fast(image), label, (1,)).backward()
            torch.optim.SGD(fast.parameters(), lr=rate).step()
        fast.zero_grad()
        task_loss(fast(each.query[0]), each.query[1], (1,)).backward()
        for name, weight in fast.named_parameters():
            assert weight.grad is not None
            expected[name] = expected[name] + weight.grad

    for name, weight in made.network.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-9, atol=1e-12)
    second = learner(settings())
    right = gradient(second)
    assert cosine(found, right) < 0.95
    assert slope_error(second, found) > 1e-3, "the test tells the two apart"


def test_the_common_wrong_snippet_is_joint_training_and_fails_the_test() -> None:
    """No inner graph, no split: the loss of the weights themselves on the data they step on."""
    made = learner(settings())
    network = made.network
    weights = list(network.parameters())
    wrong = torch.zeros(()).double()
    for each in EPISODES:
        image, label = each.support[0]
        loss = task_loss(network(image), label, (1,))
        slopes = torch.autograd.grad(loss, weights, retain_graph=True)
        _fast = [w - RATE * s for w, s in zip(weights, slopes, strict=True)]
        wrong = wrong + loss
    joint = [*torch.autograd.grad(wrong, weights), *(None for _ in made.learned_rates.logs)]
    found = flat(joint, list(made.parameters()))

    assert slope_error(made, found) > 1e-4
    right = gradient(made)
    assert cosine(found, right) < 0.95
    assert (found - right).norm() > 0.5 * right.norm()


def test_checkpointed_steps_give_the_same_gradient() -> None:
    plain = gradient(learner(settings(inner_set="decoder")))
    how = MamlSettings("second", "decoder", STEPS, RATE, 0.0, checkpointed=True)
    torch.testing.assert_close(gradient(learner(how)), plain, rtol=1e-9, atol=1e-12)


def test_the_meta_gradient_of_a_3d_network_is_the_central_difference() -> None:
    config = ModelConfig(patch_size=(32, 16, 16), features=(2, 2, 2, 2, 2, 2))
    made = MamlLearner(build_network(config, 1), settings(inner_set="decoder")).double()
    generator = torch.Generator().manual_seed(1)
    image = torch.randn((1, 1, 32, 16, 16), generator=generator, dtype=torch.float64)
    label = (image > 0.5).long()
    task = Task("a", config.labels, (1,), ())
    each = Episode(task, ((image, label), (image, label)), (image.flip(2), label.flip(2)), (), ())
    global EPISODES
    before, EPISODES = EPISODES, [each]
    try:
        assert slope_error(made, gradient(made)) < 1e-6
    finally:
        EPISODES = before


def test_reptile_moves_to_where_the_steps_lead() -> None:
    made = learner(settings("reptile"))
    expected = []
    for name, weight in made.network.named_parameters():
        total = torch.zeros_like(weight)
        for each in EPISODES:
            start = {n: made.network.get_parameter(n) for n in made.learned_rates.names}
            loss = loss_with(made.network, (1,))
            after = inner_steps(loss, start, made.rates(), each.support, second_order=False)
            total += weight.detach() - after[-1][name].detach()
        expected.append(total)
    gradient(made)
    for weight, towards in zip(made.network.parameters(), expected, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, towards, rtol=1e-9, atol=1e-12)
    assert all(log.grad is None for log in made.learned_rates.logs)


def test_first_order_comes_before_second() -> None:
    how = MamlSettings("second", "all", STEPS, RATE, first_order_share=0.3, multi_step_share=0.0)
    early, late = learner(how), learner(how)
    for each in EPISODES:
        early.accumulate(each, progress=0.29)
        late.accumulate(each, progress=0.3)
    weights = list(early.parameters())
    found = [flat([w.grad for w in m.parameters()], weights) for m in (early, late)]
    torch.testing.assert_close(found[0], gradient(learner(settings("first"))))
    torch.testing.assert_close(found[1], gradient(learner(settings())))


def test_the_loss_of_early_steps_fades() -> None:
    how = MamlSettings(steps=4, multi_step_share=0.5)
    assert step_weights(how, 0.0) == [0.25] * 4
    assert step_weights(how, 0.5) == step_weights(how, 1.0) == [0.0, 0.0, 0.0, 1.0]
    assert all(math.isclose(sum(step_weights(how, p / 10)), 1.0) for p in range(11))


def test_batch_normalisation_is_refused() -> None:
    network = BasicUNet(2, 1, 2, (8, 8, 16, 16, 16, 8), norm="batch")
    with pytest.raises(UnsupportedNetworkError, match="carry one site into the next"):
        MamlLearner(network, MamlSettings())


def test_another_network_without_the_named_part_is_refused() -> None:
    with pytest.raises(UnsupportedNetworkError, match="needs BasicUNet"):
        MamlLearner(nn.Sequential(nn.Conv2d(1, 2, 1)), MamlSettings())


@pytest.mark.parametrize("values", [{"order": "third"}, {"steps": 0}, {"initial_rate": 0.0}])
def test_settings_that_mean_nothing_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        MamlSettings(**values)  # type: ignore[arg-type]
