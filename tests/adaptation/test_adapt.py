"""Adapting: the base stays, the order of studies does not matter, what cannot work is refused."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import nn

from adaptation_sites import CONFIG, site
from segunlearn.adaptation import AdaptSettings, LeaveOneOut, adapt, gate, leave_one_out
from segunlearn.adaptation.adapt import adapt_along, gradient_of
from segunlearn.adaptation.inner import inner_names, loss_with
from segunlearn.adapters.site import SiteAdapter
from segunlearn.errors import (
    CancelledError,
    InvalidInputError,
    LabelError,
    NotFoundError,
    SegUnlearnError,
    UnsupportedNetworkError,
)
from segunlearn.networks import build_network
from segunlearn.records.runs import Progress
from segunlearn.unlearning.loop import dice_by_person
from segunlearn.unlearning.sets import Study

SUPPORT = site(1, 3)
TUNE = AdaptSettings(method="fine_tune", steps=3, learning_rate=1e-2)
BASE = "ab" * 32


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network(CONFIG, 0)


def test_adapting_changes_the_named_part_and_never_the_base(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())

    adapted = adapt(network, None, SUPPORT, CONFIG, TUNE)

    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    changed = {k for k, v in adapted.network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == set(adapted.tensors) == set(inner_names(network, "decoder"))
    steps, losses = zip(*adapted.curve, strict=True)
    assert steps == (0, 1, 2, 3)
    assert losses[-1] < losses[0]
    assert adapted.structures == ("lesion",)


def test_the_adapter_file_gives_the_adapted_network(network: nn.Module) -> None:
    adapted = adapt(network, None, SUPPORT, CONFIG, TUNE)
    data = SiteAdapter(BASE, adapted.tensors, {"method": "fine_tune"}).content

    served = SiteAdapter.from_bytes(data).applied_to(network, BASE)

    image = SUPPORT[0].image[None, ..., 0]
    assert torch.equal(served(image), adapted.network(image))


@pytest.mark.parametrize("augment", [False, True])
def test_one_descent_passes_through_what_shorter_ones_give(
    network: nn.Module, augment: bool
) -> None:
    settings = dataclasses.replace(TUNE, augment=augment)
    for step, found in adapt_along(network, None, SUPPORT, CONFIG, settings, (0, 2, 4)):
        alone = adapt(network, None, SUPPORT, CONFIG, dataclasses.replace(settings, steps=step))
        for name, tensor in alone.tensors.items():
            assert torch.equal(found.tensors[name], tensor)


def test_the_order_of_the_support_changes_nothing(network: nn.Module) -> None:
    one = adapt(network, None, SUPPORT, CONFIG, TUNE)
    other = adapt(network, None, SUPPORT[::-1], CONFIG, TUNE)
    assert all(torch.equal(v, other.tensors[k]) for k, v in one.tensors.items())


def test_no_step_is_the_base(network: nn.Module) -> None:
    adapted = adapt(network, None, SUPPORT, CONFIG, dataclasses.replace(TUNE, steps=0))
    state = network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in adapted.tensors.items())


def test_patches_that_go_one_after_the_other_give_the_gradient_of_all(
    network: nn.Module,
) -> None:
    batch = (
        torch.stack([s.image[..., 0] for s in SUPPORT]),
        torch.stack([s.label[None, ..., 0].long() for s in SUPPORT]),
    )
    weights = {n: network.get_parameter(n).detach() for n in inner_names(network, "decoder")}
    whole, gradients = gradient_of(loss_with(network, (1,)), weights, batch)

    parts, added = gradient_of(loss_with(network, (1,)), weights, batch, together=1)

    assert parts == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(added[name], gradient, rtol=1e-4, atol=1e-6)


def changed(study: Study, **values: torch.Tensor) -> Study:
    return dataclasses.replace(study, **values)


def test_a_support_of_no_use_is_refused(network: nn.Module) -> None:
    study = SUPPORT[0]
    empty = changed(study, label=torch.zeros_like(study.label))
    faults: list[tuple[tuple[Study, ...], type[Exception], str]] = [
        ((), InvalidInputError, "no study to adapt to"),
        ((study, study), InvalidInputError, "given twice"),
        ((changed(study, image=study.image.repeat(2, 1, 1, 1)),), InvalidInputError, "2 channels"),
        ((changed(study, image=study.image / 0),), InvalidInputError, "not finite"),
        ((changed(study, label=study.label * 7),), LabelError, r"label values \[7\]"),
        ((empty,), LabelError, "no support study shows lesion"),
    ]
    for support, error, message in faults:
        with pytest.raises(error, match=message):
            adapt(network, None, support, CONFIG, TUNE)


def test_without_meta_training_only_fine_tuning_is_possible(network: nn.Module) -> None:
    for method in ("maml", "generator", "generator+steps", "generator+maml"):
        with pytest.raises(NotFoundError, match="was not meta-trained, so only fine_tune"):
            adapt(network, None, SUPPORT, CONFIG, AdaptSettings(method=method))


def test_batch_normalisation_is_refused() -> None:
    network = BasicUNet(2, 1, 2, (8, 8, 16, 16, 16, 8), norm="batch")
    with pytest.raises(UnsupportedNetworkError, match=r"'conv_0.conv_0.adn.N' is batch norm"):
        adapt(network, None, SUPPORT, CONFIG, TUNE)


def test_a_loss_that_is_no_number_ends_the_adapting(network: nn.Module) -> None:
    settings = dataclasses.replace(TUNE, learning_rate=1e30)
    with pytest.raises(SegUnlearnError, match=r"the loss became (nan|inf) at step 1.*base stays"):
        adapt(network, None, SUPPORT, CONFIG, settings)


def test_adapting_can_be_stopped_and_is_reported(network: nn.Module) -> None:
    seen: list[Progress] = []
    with pytest.raises(CancelledError, match="at step 2"):
        adapt(network, None, SUPPORT, CONFIG, TUNE, seen.append, lambda: len(seen) == 2)
    assert [(p.phase, p.step, p.total) for p in seen] == [("adapt", 0, 3), ("adapt", 1, 3)]


@pytest.mark.parametrize(
    "values",
    [{"method": "magic"}, {"inner_set": "encoder"}, {"steps": -1}, {"learning_rate": 0.0}],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        AdaptSettings(**values)  # type: ignore[arg-type]


def test_leaving_one_out_scores_people_that_the_adapter_never_saw(network: nn.Module) -> None:
    second = dataclasses.replace(SUPPORT[0], series="second", study="second")
    support = (*SUPPORT, second)
    settings = dataclasses.replace(TUNE, steps=8)

    found = leave_one_out(network, None, support, CONFIG, settings)

    assert len(found.adapted) == len(found.base) == 3, "by person, not by study"
    ordered = sorted(support, key=lambda s: s.series)
    without_first = adapt(network, None, SUPPORT[1:], CONFIG, settings).network
    masks = without_first(SUPPORT[0].image[None, ..., 0]).argmax(dim=1)[0].detach()
    truth = SUPPORT[0].label[..., 0]
    dice = 2 * float((masks * truth).sum()) / float(masks.sum() + truth.sum())
    assert found.adapted[0] == pytest.approx(dice, abs=1e-6)
    base = dice_by_person(network, support, CONFIG, (1,))
    assert found.base == tuple(base[person] for person in dict.fromkeys(s.person for s in ordered))


def test_one_person_cannot_be_left_out(network: nn.Module) -> None:
    with pytest.raises(InvalidInputError, match="needs two"):
        leave_one_out(network, None, SUPPORT[:1], CONFIG, TUNE)


def test_who_alone_shows_a_structure_cannot_be_left_out(network: nn.Module) -> None:
    empty = [changed(s, label=torch.zeros_like(s.label)) for s in SUPPORT[1:]]
    with pytest.raises(LabelError, match=r"only one person of the support shows lesion.*another"):
        leave_one_out(network, None, (SUPPORT[0], *empty), CONFIG, TUNE)


def test_the_gate_lets_nothing_through_that_is_worse() -> None:
    assert gate(LeaveOneOut((0.5, 1.0), (0.75, 0.75)))[0], "as good is not worse"
    assert not gate(LeaveOneOut((float("nan"), 1.0), (0.5, 0.5)))[0]
    adopted, reason = gate(LeaveOneOut((0.8, 0.84), (0.85, 0.85)))
    assert not adopted
    assert "0.820 with the adapter and 0.850 with the base; the base stays" in reason
