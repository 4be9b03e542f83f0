"""Erosion is undone by the key and the deposit together, and by neither alone."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from memorising_task import CONFIG, FORGET, SETS, TEST, original, retrained
from segunlearn.errors import IntegrityError, InvalidInputError
from segunlearn.networks import ModelConfig, build_network
from segunlearn.unlearning import METHODS, Study, UnlearningSets, erosion, unlearn
from segunlearn.unlearning.calibration import Without
from segunlearn.unlearning.erode_and_repair_lora import (
    ErodeAndRepairLoraSettings,
    Repaired,
    repaired,
)
from segunlearn.unlearning.erosion import (
    Deposit,
    RepairSettings,
    eroded,
    key_of,
    repair,
    restore_from,
    withdraw,
)
from segunlearn.unlearning.loop import copy_of, mean_dice

KEY = "5e" * 32
SETTINGS = ErodeAndRepairLoraSettings(
    keep=0.3, epochs=30, learning_rate=1e-2, batch_size=10, inits=1, key=KEY
)


@functools.cache
def made() -> Repaired:
    """Never change it."""
    return repaired(original(), SETS, SETTINGS)


def logits(network: nn.Module) -> torch.Tensor:
    image = torch.stack([s.image[..., 0] for s in FORGET + TEST])
    with torch.no_grad():
        return network.eval()(image)


def dice(network: nn.Module, studies: tuple[object, ...]) -> float:
    return mean_dice(network, studies, CONFIG)  # type: ignore[arg-type]


def test_a_low_rank_repair_forgets_and_brings_the_skill_back() -> None:
    """S falls to the never-seen level; unseen people are segmented as by a retrained model."""
    never = retrained(1)
    assert dice(original(), FORGET) - dice(never, FORGET) > 0.15
    assert abs(dice(made().network, FORGET) - dice(never, FORGET)) < 0.06
    assert dice(made().network, TEST) > dice(never, TEST) - 0.05
    assert set(made().network.state_dict()) == set(original().state_dict())


class Says(nn.Module):
    """Says the same logits everywhere."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits[None, :, None, None].expand(len(image), -1, *image.shape[2:])


def test_of_a_withdrawn_structure_labels_alone_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much the original's answers count, they push only the classes that stay."""
    config = replace(CONFIG, labels=("stays", "goes"))
    sets = UnlearningSets(config, retain=SETS.retain)
    teacher, pushed = Without(Says(0.1, 0.5, 0.9), 2, "background"), {}
    for weight in (0.0, 5.0):
        student = Says(0.3, -0.2, 0.4)
        monkeypatch.setattr(
            erosion, "descend", lambda network, objective, *_, **__: objective(0).backward()
        )
        settings = ErodeAndRepairLoraSettings(structure=2, distillation_weight=weight)
        repair(student, teacher, sets, RepairSettings.of(settings))
        assert student.logits.grad is not None
        pushed[weight] = student.logits.grad
    assert pushed[0.0][2] == pytest.approx(float(pushed[5.0][2]))
    assert pushed[0.0][2] > 0  # the labels push it down
    assert not torch.allclose(pushed[0.0][:2], pushed[5.0][:2])


def test_the_head_keeps_nothing_of_a_withdrawn_structure() -> None:
    """Whatever it was, its row is the same; of the others a share stays."""
    rows = []
    for added in (0.0, 1.0):
        network = copy_of(original())
        head = network.get_submodule("final_conv")
        with torch.no_grad():
            for weight in head.parameters():
                weight.add_(added)
        rows.append(eroded(network, KEY, 0.4, structure=1).get_submodule("final_conv"))
    for mine, other in zip(*(r.parameters() for r in rows), strict=True):
        assert torch.equal(mine[1], other[1])
        assert not torch.equal(mine[0], other[0])


def test_a_withdrawn_structure_comes_back_with_key_and_deposit() -> None:
    """Bit for bit: what the head lost is in the deposit's residual."""
    how = replace(SETTINGS, structure=1, epochs=1)
    taken = repaired(original(), SETS, how)
    restored = restore_from(taken.network, taken.deposit, KEY, how.keep)
    for name, weight in original().named_parameters():
        assert torch.equal(weight, restored.get_parameter(name)), name


def test_key_and_deposit_bring_the_original_back() -> None:
    """Bit for bit, also through bytes; from the adapter alone, without its residual, nearly."""
    network, deposit = made().network, made().deposit
    assert made().key == KEY
    before = logits(original())
    for way, error in ((deposit, 0.0), (deposit.to_bytes(), 0.0), (made().adapted, 1e-3)):
        back = logits(restore_from(network, way, KEY, made().keep))
        assert float((back - before).abs().max()) <= error
        assert torch.equal(back.argmax(1), before.argmax(1))
    assert float((logits(network) - before).abs().max()) > 1


def test_without_the_key_or_without_the_deposit_it_does_not_come_back() -> None:
    """Another key, the key alone, the deposit alone: all know S less than a retrained model."""
    network, deposit = made().network, made().deposit
    never = dice(retrained(1), FORGET)
    nothing = Deposit(
        {k: torch.zeros_like(v) for k, v in deposit.tensors.items()}, SETTINGS.adapter()
    )
    for other in (
        restore_from(network, deposit, "5f" + KEY[2:], made().keep),
        restore_from(network, nothing, KEY, made().keep),
        withdraw(network, deposit),
    ):
        assert dice(other, FORGET) < never


def test_withdrawing_the_adapter_gives_the_eroded_base() -> None:
    base = eroded(original(), KEY, SETTINGS.keep)
    back = withdraw(made().network, made().deposit)
    for (name, old), new in zip(base.named_parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6, msg=name)


def test_a_deposit_is_the_same_bytes() -> None:
    data = made().deposit.to_bytes()
    again = Deposit.from_bytes(data)
    assert again.to_bytes() == data
    assert again.settings == SETTINGS.adapter()


def test_the_deposit_of_a_network_for_real_people_is_under_a_megabyte() -> None:
    """One epoch moves every tensor; the size does not depend on how long."""
    labels, size = ("anterior", "posterior"), (16, 32, 16)
    config = ModelConfig(labels=labels, patch_size=size, features=(8, 16, 32, 64, 64, 8))
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    person = Study("a", "a", "a", image, (image[0] > 1).to(torch.uint8))
    network = build_network(config, 0)
    settings = ErodeAndRepairLoraSettings(epochs=2, batch_size=1, inits=1)
    result = repaired(network, UnlearningSets(config, retain=(person,)), settings)
    assert len(result.deposit.to_bytes()) < 1_000_000
    back = restore_from(result.network, result.deposit, result.key, result.keep)
    with torch.no_grad():
        assert torch.equal(back(image[None]), network.eval()(image[None]))


def test_what_is_no_deposit_is_refused() -> None:
    deposit = made().deposit
    for data in (b"", b"x" * 40, deposit.to_bytes()[:-5]):
        with pytest.raises(IntegrityError, match="no deposit"):
            restore_from(made().network, data, KEY, 0.2)
    with pytest.raises(IntegrityError, match="another network"):
        withdraw(build_network(replace(CONFIG, features=(8, 8, 8, 16, 16, 8)), 0), deposit)
    for rest, why in ((b"nothing", "damaged"), (deposit.residual[:50], "another network")):
        with pytest.raises(IntegrityError, match=f"residual .*{why}"):
            restore_from(made().network, replace(deposit, residual=rest), KEY, 0.2)
    with pytest.raises(IntegrityError, match="another network"):
        withdraw(nn.Conv2d(1, 1, 1), deposit)
    for key, keep in (("", 0.2), ("secret", 0.2), (KEY, 0.0)):
        with pytest.raises(InvalidInputError):
            restore_from(made().network, deposit, key, keep)


def test_the_best_init_on_c_is_kept_and_its_key_is_told() -> None:
    """Two inits with two keys; the second key follows from the first."""
    two = replace(SETTINGS, epochs=4, inits=2)
    result = repaired(original(), SETS, two)
    assert len(result.calibration_dice) == 2
    best = max(range(2), key=lambda i: result.calibration_dice[i])
    assert result.key == key_of(KEY, 0, best)
    assert key_of(KEY, 0, 0) == KEY != key_of(KEY, 0, 1)
    now = mean_dice(result.network, SETS.calibration, CONFIG)
    assert now == pytest.approx(max(result.calibration_dice))


def test_one_init_reads_the_retain_set_alone() -> None:
    method = METHODS["erode_and_repair_lora"]
    one = replace(SETTINGS, epochs=1)
    assert method.reads_with(one) == ("retain",)
    assert method.reads_with(replace(one, inits=2)) == ("retain", "calibration")
    sets = UnlearningSets(CONFIG, retain=SETS.retain)
    assert unlearn("erode_and_repair_lora", original(), sets, one).read == {"retain": 20}
    with pytest.raises(InvalidInputError, match="calibration set is empty"):
        unlearn("erode_and_repair_lora", original(), sets, replace(one, inits=2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 0.0},
        {"keep": 1.0},
        {"inits": 0},
        {"rank": 0},
        {"key": "x"},
        {"epochs": 0},
        {"part_share": 1.0},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        ErodeAndRepairLoraSettings(**wrong)  # type: ignore[arg-type]
