"""Every method leaves its input alone, reads what it says, and minimises what it says."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import pytest
import torch
from torch import nn

from memorising_task import CONFIG, FORGET, RETAIN, SETS, TEST, original, people, retrained
from segunlearn.errors import CancelledError, InvalidInputError, NotFoundError, SegUnlearnError
from segunlearn.inference import Segmenter
from segunlearn.networks import build_network
from segunlearn.records.runs import Progress
from segunlearn.transforms import Preprocessed
from segunlearn.unlearning import METHODS, UnlearningSets, unlearn
from segunlearn.unlearning.erode_and_repair import ErodeAndRepairSettings
from segunlearn.unlearning.erosion import eroded, keyed_weights
from segunlearn.unlearning.loop import (
    Steps,
    descend,
    dice_ce,
    distillation,
    frozen,
    log_probabilities,
    mean_dice,
)
from segunlearn.unlearning.random_label import other_labels
from segunlearn.unlearning.salun import SalunSettings, saliency_mask
from segunlearn.unlearning.scrub import ScrubSettings
from segunlearn.unlearning.sets import Draw

SHORT = {
    "retrain": {"epochs": 1},
    "erode_and_repair": {"epochs": 1},
    "erode_and_repair_lora": {"epochs": 1},
    "erase_to_retain": {"steps": 2, "head_steps": 1},
    "erase_to_retain_released": {"epochs": 1, "batch_size": 10},
    "scrub": {"rounds": 2, "max_rounds": 1, "max_steps": 1, "min_steps": 1},
}


def short(name: str) -> object:
    return METHODS[name].settings(**SHORT.get(name, {"steps": 2}))


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", METHODS)
def test_the_given_network_stays_and_the_seed_decides(name: str) -> None:
    network = build_network(CONFIG, 5)
    before = state(network)
    reports: list[Progress] = []
    first = unlearn(name, network, SETS, short(name), reports.append)
    torch.manual_seed(99)
    second = unlearn(name, network, SETS, short(name))
    assert same(before, network.state_dict())
    assert first.network is not network
    assert not same(before, first.network.state_dict())
    assert same(first.network.state_dict(), second.network.state_dict())
    assert reports
    assert set(first.read) == set(METHODS[name].reads_with(short(name)))
    assert not first.network.training


@pytest.mark.parametrize("name", METHODS)
def test_a_method_works_on_nothing_but_what_it_says_it_reads(name: str) -> None:
    read = METHODS[name].reads_with(short(name))
    unlearn(name, build_network(CONFIG, 5), SETS.only(read), short(name))
    for left_out in read:
        others = tuple(n for n in ("forget", "retain", "calibration") if n != left_out)
        with pytest.raises(InvalidInputError, match=f"{left_out} set is empty"):
            unlearn(name, build_network(CONFIG, 5), SETS.only(others), short(name))


def test_every_method_is_documented_and_frozen() -> None:
    for method in METHODS.values():
        assert "iv" in (inspect.getdoc(method.run) or "") or method.exact
        assert dataclasses.is_dataclass(method.settings)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.settings().seed = 1


def test_retraining_is_exact() -> None:
    """Neither the original's weights nor the forget set can be seen in the result."""
    settings = short("retrain")
    one = unlearn("retrain", build_network(CONFIG, 1), SETS, settings).network
    other_sets = UnlearningSets(CONFIG, people(900, 3), RETAIN)
    two = unlearn("retrain", build_network(CONFIG, 2), other_sets, settings).network
    assert same(one.state_dict(), two.state_dict())


def test_one_step_of_gradient_difference_is_the_difference_of_the_gradients() -> None:
    network = build_network(CONFIG, 3)
    forget, retain = Draw(FORGET, CONFIG, 4, 0).next(), Draw(RETAIN, CONFIG, 4, 1).next()
    gradients = []
    for batch in (forget, retain):
        twin = copy.deepcopy(network)
        dice_ce(twin, batch).backward()
        gradients.append([p.grad for p in twin.parameters()])
    moved = copy.deepcopy(network)
    descend(
        moved,
        lambda _: dice_ce(moved, retain) - 0.3 * dice_ce(moved, forget),
        Steps(1, 0.1, optimiser="sgd", gradient_clip=1e9),
    )
    for p, q, g_s, g_r in zip(network.parameters(), moved.parameters(), *gradients, strict=True):
        torch.testing.assert_close(q, p - 0.1 * (g_r - 0.3 * g_s), rtol=1e-4, atol=1e-6)


def test_distillation_is_the_divergence_of_tempered_softmaxes() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = nn.functional.kl_div(
        (student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="sum"
    )
    torch.testing.assert_close(distillation(student, teacher, 2.0), 4 * expected / (2 * 16))
    assert distillation(teacher, teacher).abs() < 1e-6


def test_random_labels_are_never_the_true_ones_and_else_uniform() -> None:
    label = torch.randint(0, 4, (20_000,))
    drawn = other_labels(label, 4, torch.Generator().manual_seed(0))
    assert not (drawn == label).any()
    assert drawn.min() == 0
    shares = torch.bincount((drawn - label) % 4, minlength=4)[1:] / len(label)
    assert (shares - 1 / 3).abs().max() < 0.02


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_salun_moves_only_the_share_of_weights_in_its_mask(share: float) -> None:
    network = build_network(CONFIG, 4)
    settings = SalunSettings(share=share, steps=2)
    mask = saliency_mask(network, SETS, settings)
    total = sum(m.numel() for m in mask.values())
    # weights without gradient tie at 0, which matters only when all are kept
    assert sum(float(m.sum()) for m in mask.values()) / total == pytest.approx(share, abs=0.01)
    moved = unlearn("salun", network, SETS, settings).network
    for (name, before), after in zip(network.named_parameters(), moved.parameters(), strict=True):
        assert torch.equal(before[mask[name] == 0], after[mask[name] == 0])


def test_scrub_rewinds_to_the_round_where_forgotten_equals_never_seen() -> None:
    """With rewind the gap between S and C is never larger than without."""
    network = build_network(CONFIG, 6)
    settings = ScrubSettings(rounds=3, max_rounds=3, max_steps=4, min_steps=2, learning_rate=3e-3)
    gaps = []
    for rewind in (True, False):
        chosen = dataclasses.replace(settings, rewind=rewind)
        result = unlearn("scrub", network, SETS, chosen).network
        s, c = (mean_dice(result, x, CONFIG) for x in (SETS.forget, SETS.calibration))
        gaps.append(abs(s - c))
    assert gaps[0] <= gaps[1]


def test_wrong_names_settings_and_stops() -> None:
    network = build_network(CONFIG, 0)
    with pytest.raises(NotFoundError, match="there are retrain"):
        unlearn("amnesia", network, SETS)
    with pytest.raises(InvalidInputError, match="takes FineTuneSettings"):
        unlearn("fine_tune", network, SETS, SalunSettings())
    with pytest.raises(CancelledError):
        unlearn("fine_tune", network, SETS, cancel=lambda: True)
    with pytest.raises(SegUnlearnError, match="loss became"):
        descend(network, lambda _: next(network.parameters()).sum() * torch.nan, Steps(1, 0.1))
    with pytest.raises(InvalidInputError, match="no weight"):
        descend(frozen(network), lambda _: torch.zeros(()), Steps(1, 0.1))


def test_one_pass_and_sliding_window_score_alike() -> None:
    """A study of one patch and the same study through the sliding window."""
    network = build_network(CONFIG, 7)
    small = people(0, 2)
    batched = list(log_probabilities(network, small, CONFIG))
    wide = dataclasses.replace(
        small[0],
        series="wide",
        image=torch.cat([small[0].image, small[0].image], dim=3),
        label=torch.cat([small[0].label, small[0].label], dim=2),
    )
    slid = next(iter(log_probabilities(network, [wide], CONFIG)))
    for number in range(2):
        torch.testing.assert_close(slid[..., number], batched[0][..., 0], rtol=1e-3, atol=1e-4)


def test_whole_volumes_are_scored_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen of them at once would need gigabytes; crops still go through together."""
    scored: list[int] = []
    real = Segmenter.probabilities_of

    def counted(self: Segmenter, image: Preprocessed) -> torch.Tensor:
        scored.append(1)
        return real(self, image)

    monkeypatch.setattr(Segmenter, "probabilities_of", counted)
    network, small = build_network(CONFIG, 7).train(), people(0, 3)
    wide = dataclasses.replace(
        small[0], image=small[0].image.repeat(1, 1, 1, 2), label=small[0].label.repeat(1, 1, 2)
    )
    found = []
    for logs in log_probabilities(network, [wide, small[1], wide], CONFIG):
        found.append(logs)
        assert (len(scored), network.training) == (len(found), True)
    assert torch.equal(found[0], found[2])
    list(log_probabilities(network, small, CONFIG))
    assert len(scored) == 3


def test_keyed_weights_are_distributed_as_torch_draws_them() -> None:
    """Same spread layer by layer, decided by the key alone; another key, another draw."""
    network = build_network(CONFIG, 0)
    first, again = (
        keyed_weights(network, bytes(32)),
        keyed_weights(build_network(CONFIG, 9), bytes(32)),
    )
    other = keyed_weights(network, bytes(31) + b"1")
    assert same(first, again)
    weights = network.state_dict()
    assert set(first) == {n for n, w in weights.items() if w.ndim > 1}  # the convolutions
    for name, drawn in first.items():
        weight = weights[name]
        assert drawn.shape == weight.shape
        assert not torch.equal(drawn, other[name])
        if weight.numel() >= 500:
            assert float(drawn.abs().max()) == pytest.approx(float(weight.abs().max()), rel=0.05)
            assert float(drawn.std()) == pytest.approx(float(weight.std()), rel=0.1)
            assert abs(float(drawn.mean())) < 0.15 * float(drawn.std())


def test_biases_and_normalisations_are_not_eroded() -> None:
    """They stay to the bit; every convolution is mixed with fresh weights."""
    before = original()
    after, fresh = eroded(before, "5e" * 32, 0.25), keyed_weights(before, b"\x5e" * 32)
    for name, weight in before.named_parameters():
        wanted = 0.25 * weight + 0.75 * fresh[name] if weight.ndim > 1 else weight
        assert torch.allclose(after.get_parameter(name), wanted, atol=1e-7)


def test_erosion_takes_the_memory_and_repair_brings_the_skill_back() -> None:
    """S falls to the never-seen level and stays there; unseen people are segmented as before."""
    settings = ErodeAndRepairSettings(keep=0.2, epochs=30, learning_rate=8e-3, batch_size=10)
    made = unlearn("erode_and_repair", original(), SETS, settings)
    assert made.read == {"retain": len(RETAIN)}

    def dice(network: nn.Module, studies: tuple[object, ...]) -> float:
        return mean_dice(network, studies, CONFIG)  # type: ignore[arg-type]

    never = retrained(1)
    assert dice(original(), FORGET) - dice(never, FORGET) > 0.15
    assert abs(dice(made.network, FORGET) - dice(never, FORGET)) < 0.06
    assert dice(made.network, TEST) > dice(never, TEST) - 0.05


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="64 hexadecimal digits"):
        ErodeAndRepairSettings(key="secret")
