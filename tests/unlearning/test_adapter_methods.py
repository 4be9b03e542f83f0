"""What each method with an adapter minimises, and where it brings a network."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from memorising_task import CALIBRATION, CONFIG, FORGET, RETAIN, SETS, SIDE, TEST, original, people
from segunlearn.errors import InvalidInputError
from segunlearn.networks import build_network
from segunlearn.unlearning import METHODS, Study, UnlearningSets, adversarial, checked, unlearn
from segunlearn.unlearning.adversarial import (
    AdversarialSettings,
    Attack,
    attacked,
    inner_loss,
    relearned,
)
from segunlearn.unlearning.calibrated import CalibratedSettings, share_at
from segunlearn.unlearning.calibration import (
    Heir,
    Retain,
    Terms,
    Weights,
    Without,
    logits_without,
    study_losses,
    unseen_levels,
    unseen_ranks,
    withdrawal_loss,
)
from segunlearn.unlearning.erase_to_retain import EraseToRetainSettings, contradiction
from segunlearn.unlearning.erase_to_retain_released import (
    EraseToRetainReleasedSettings,
    background_loss,
)
from segunlearn.unlearning.erosion import withdraw
from segunlearn.unlearning.loop import (
    dice_ce,
    distillation,
    log_probabilities,
    masks_of,
    mean_dice,
)
from segunlearn.unlearning.recoverable import (
    RecoverableSettings,
    attention_distance,
    deposited,
    near_border,
    recorded,
)
from segunlearn.unlearning.retrain import RetrainSettings
from segunlearn.unlearning.sets import Draw

WITH_ADAPTER = (
    "erode_and_repair_lora",
    "calibrated",
    "adversarial",
    "recoverable",
    "erase_to_retain",
    "erase_to_retain_released",
)
STRUCTURES = {
    "calibrated": "forget",
    "adversarial": "forget",
    "recoverable": "forget",
    "erode_and_repair": "retain",
    "erode_and_repair_lora": "retain",
}

TWO = replace(CONFIG, labels=("bright", "dark"))


def dice(network: nn.Module, studies: tuple[Study, ...]) -> float:
    return mean_dice(network, studies, CONFIG)


def loss(network: nn.Module, studies: tuple[Study, ...]) -> float:
    return float(study_losses(network, studies, CONFIG).mean())


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_discs(number: int) -> Study:
    """A bright disc (1) and a dark one (2) in noise."""
    rng = np.random.default_rng((7, number))
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    label = np.zeros((SIDE, SIDE), dtype=np.uint8)
    image = rng.normal(0, 0.4, (SIDE, SIDE))
    for value, sign, centre in ((1, 1.5, 9), (2, -1.5, 23)):
        inside = np.hypot(x - centre - rng.uniform(-2, 2), y - rng.uniform(10, 22)) < 6
        label[inside] = value
        image[inside] += sign
    return Study(
        f"two-{number}",
        f"two-{number}",
        f"two-{number}",
        torch.from_numpy(image.astype(np.float32))[None, :, :, None],
        torch.from_numpy(label)[:, :, None],
    )


@functools.cache
def two_sets() -> UnlearningSets:
    discs = [two_discs(n) for n in range(24)]
    return UnlearningSets(TWO, tuple(discs[:8]), tuple(discs[8:16]), tuple(discs[16:]))


@functools.cache
def two_original() -> nn.Module:
    """Knows both structures; never change it."""
    sets = UnlearningSets(TWO, retain=two_sets().forget + two_sets().retain)
    settings = RetrainSettings(12, 8e-3, 8, 0)
    return unlearn("retrain", build_network(TWO, 0), sets, settings).network


# --- calibrated ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "cost"),
    [
        (CalibratedSettings(), 0.03),
        (CalibratedSettings(layers="decoder", rank=8, retain="stored", calibration_weight=3), 0.02),
    ],
    ids=["the deepest layers", "an adapter of the decoder"],
)
def test_forgotten_losses_come_to_the_unseen_level_and_unseen_people_keep_theirs(
    how: CalibratedSettings, cost: float
) -> None:
    """Three quarters of the way at least, not past it, and T as it was."""
    settings = replace(how, steps=40, learning_rate=8e-3, batch_size=8, beyond=0.0, unseen=20)
    made = unlearn("calibrated", original(), SETS, settings)
    level = loss(original(), CALIBRATION)
    start = loss(original(), FORGET)
    assert level - start > 0.4
    reached = (loss(made.network, FORGET) - start) / (level - start)
    assert 0.75 < reached < 1.15
    assert dice(made.network, TEST) > dice(original(), TEST) - cost
    assert dice(made.network, FORGET) < dice(original(), FORGET) - 0.1


def test_hiding_changes_the_deepest_layers_alone() -> None:
    made = unlearn("calibrated", original(), SETS, CalibratedSettings(steps=2)).network
    changed = {
        name.split(".")[0]
        for name, weight in original().named_parameters()
        if not torch.equal(weight, made.get_parameter(name))
    }
    assert changed == {"down_4", "upcat_4", "upcat_3"}
    assert all(w.requires_grad for w in made.parameters())


def test_a_loop_that_goes_too_far_is_taken_back_to_the_level() -> None:
    """Aimed 0.5 beyond, forgotten people end among unseen ones, and not above all of them."""
    how = CalibratedSettings(steps=30, batch_size=8, unseen=20, beyond=0.5, calibration_weight=1)
    how = replace(how, retain="none")
    unseen = study_losses(original(), CALIBRATION, CONFIG)
    ranks = {}
    for furthest in (0.0, 1.25):
        settings = replace(how, furthest=furthest)
        made = unlearn("calibrated", original(), SETS, settings).network
        ranks[furthest] = float(unseen_ranks(study_losses(made, FORGET, CONFIG), unseen).mean())
    assert ranks[0.0] > how.standing + 0.1
    assert ranks[1.25] == pytest.approx(how.standing, abs=0.06)


def test_a_loop_that_falls_short_is_run_again_and_one_that_does_not_is_not() -> None:
    done: dict[float, list[str]] = {}
    for rate in (1e-5, 8e-3):
        reports: list[Any] = []
        how = CalibratedSettings(steps=30, batch_size=8, learning_rate=rate, unseen=20)
        how = replace(how, beyond=0.5, calibration_weight=1, standing=0.4)
        unlearn("calibrated", original(), SETS, how, reports.append)
        done[rate] = list(dict.fromkeys(r.phase for r in reports))
    assert done == {1e-5: ["calibrate", "calibrate, round 2"], 8e-3: ["calibrate"]}


@pytest.mark.parametrize(
    ("standing", "known", "share"),
    [
        (0.5, {1.0: [0.5, 0.5]}, 0.75),
        (0.5, {0.5: [0.5, 0.5], 1.0: [0.9, 0.9]}, 0.375),
        (0.5, {0.5: [0.2, 0.2], 1.0: [0.6, 0.6]}, 0.75),
        (0.5, {1.0: [0.35, 0.35]}, 1.2),  # beyond the loop's own end
        (0.5, {1.0: [0.2, 0.2]}, 1.5),  # and no further than allowed
        (0.5, {1.0: [0.1, 0.1]}, 1.5),  # the loop got nowhere
        (0.6, {1.0: [0.1, 9.1]}, 1.5),  # one far above does not stand for the other
        (0.25, {1.0: [0.5, 0.5]}, 0.25),
        (0.05, {1.0: [0.5, 0.5]}, 0.0),  # it was there already
    ],
)
def test_the_share_is_where_losses_stand_among_unseen_ones_as_they_should(
    standing: float, known: dict[float, list[float]], share: float
) -> None:
    unseen = torch.linspace(0.0, 0.8, 81)  # the rank is a little more than 1.25 times the loss
    losses = {s: torch.tensor(x) for s, x in {0.0: [0.1, 0.1], **known}.items()}
    assert share_at(standing, losses, unseen, 1.5) == pytest.approx(share, abs=0.03)


def test_ranks_undo_levels() -> None:
    unseen = torch.rand(30, generator=torch.Generator().manual_seed(0))
    levels = unseen_levels(torch.tensor([0.5, 0.1, 0.3]), unseen)
    ranks = unseen_ranks(levels, unseen)
    assert ranks.tolist() == pytest.approx([5 / 6, 1 / 6, 1 / 2], abs=0.02)


def test_levels_are_quantiles_of_the_unseen_by_rank() -> None:
    forget, unseen = torch.tensor([0.5, 0.1, 0.3, 0.2]), torch.arange(101.0)
    assert unseen_levels(forget, unseen).tolist() == pytest.approx([87.5, 12.5, 62.5, 37.5])


def test_the_forget_term_pulls_up_by_three_and_down_by_a_third() -> None:
    """Against the losses of each study computed one by one."""
    terms = Terms(original(), SETS, 0, Weights(3.0, 0.3, 1.0, 1.0), 8, 0)
    batch = terms.next_forget()
    with torch.no_grad():
        logits = original()(batch[0])
        pairs = zip(*batch, strict=True)
        each = [float(dice_ce(original(), (x[None], y[None]))) for x, y in pairs]
    for level in (0.0, 10.0):
        terms.levels = torch.full((8,), level)
        expected = np.mean([3 * max(0, level - x) + 0.3 * max(0, x - level) for x in each])
        assert float(terms.forget(logits, batch)) == pytest.approx(expected, rel=1e-4)
    by_study = study_losses(original(), FORGET, CONFIG)
    torch.testing.assert_close(terms.losses, by_study, rtol=1e-3, atol=1e-4)


def test_a_study_larger_than_a_patch_is_scored_too() -> None:
    wide = replace(
        FORGET[0],
        image=torch.cat([FORGET[0].image, FORGET[1].image], dim=2),
        label=torch.cat([FORGET[0].label, FORGET[1].label], dim=1),
    )
    scores = study_losses(original(), (wide, FORGET[2]), CONFIG)
    assert scores.shape == (2,)
    assert torch.isfinite(scores).all()


# --- a structure is withdrawn -------------------------------------------------------------------


def test_the_withdrawn_class_gets_nothing_and_the_others_their_share() -> None:
    logits = random_logits(2, 4, 5, 5)
    p = logits.softmax(1)
    target = logits_without(logits, 2, "others").softmax(1)
    assert not target[:, 2].any()
    for k in (0, 1, 3):
        torch.testing.assert_close(target[:, k], p[:, k] / (1 - p[:, 2]))
    assert float(withdrawal_loss(logits, logits, 2, "others")) > 0
    perfect = logits.clone()
    perfect[:, 2] = -50.0
    assert float(withdrawal_loss(perfect, logits, 2, "others")) == pytest.approx(0, abs=1e-6)


def test_the_withdrawn_class_becomes_background() -> None:
    logits = random_logits(2, 4, 5, 5)
    p = logits.softmax(1)
    target = logits_without(logits, 2, "background").softmax(1)
    assert not target[:, 2].any()
    torch.testing.assert_close(target[:, 0], p[:, 0] + p[:, 2])
    for k in (1, 3):
        torch.testing.assert_close(target[:, k], p[:, k])
    assert logits_without(logits, 0, "background") is logits


@pytest.mark.parametrize("heir", ["background", "others"])
def test_each_heir_is_the_best_answer_to_its_own_labels(heir: Heir) -> None:
    """Relabelled to background, or left out: the cross-entropy's minimum over all answers."""
    p = random_logits(6, 4, 1).softmax(1).double()
    best = logits_without(p.log(), 2, heir).softmax(1)

    def expected(answer: torch.Tensor) -> torch.Tensor:
        labels = p.clone()
        labels[:, 2] = 0
        if heir == "background":
            labels[:, 0] += p[:, 2]
        return -(labels * answer.clamp_min(1e-12).log()).sum()

    for seed in range(20):
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        other = (best.clamp_min(1e-9).log() + 0.1 * noise).softmax(1)
        assert float(expected(other)) > float(expected(best))


@pytest.mark.parametrize(
    ("retain", "heir"), [("stored", "others"), ("none", "others"), ("none", "background")]
)
def test_voxels_of_a_withdrawn_structure_become_the_heirs(retain: Retain, heir: Heir) -> None:
    """Dice of the structure 0, the other's kept, and the filtered argmax on its voxels."""
    settings = CalibratedSettings(
        structure=2,
        heir=heir,
        layers="decoder",
        rank=8,
        steps=40,
        learning_rate=1e-2,
        batch_size=8,
        retain=retain,
    )
    sets, before = two_sets(), two_original()
    made = unlearn("calibrated", before, sets, settings)
    assert ("retain" in made.read) == (retain == "stored")
    unseen = [two_discs(n) for n in range(50, 62)]
    label = torch.stack([s.label for s in unseen])
    old, new = (masks_of(n, unseen, TWO) for n in (before, made.network))
    assert float((old == 2).float().mean()) > 0.05
    assert float((new == 2).float().mean()) < 0.002

    def one(masks: torch.Tensor) -> float:
        return float(
            2 * ((masks == 1) & (label == 1)).sum() / ((masks == 1).sum() + (label == 1).sum())
        )

    assert one(new) > one(old) - 0.03
    logs = torch.stack(list(log_probabilities(before, unseen, TWO)))
    expected = logits_without(logs, 2, heir).argmax(1)
    inside = old == 2
    assert float((new == expected)[inside].float().mean()) > 0.95


@pytest.mark.parametrize("name", ["erode_and_repair", "erode_and_repair_lora"])
def test_repair_withdraws_a_structure(name: str) -> None:
    """It is not drawn any more, its voxels are background, and the other structure is kept."""
    sets = two_sets()
    trained = replace(sets, forget=(), retain=(*sets.forget, *sets.retain))
    before = two_original()
    settings = METHODS[name].settings(structure=2, epochs=60, learning_rate=1e-2, batch_size=8)
    made = unlearn(name, before, trained, settings)
    unseen = [two_discs(n) for n in range(50, 62)]
    label = torch.stack([s.label for s in unseen])
    filtered = masks_of(Without(before, 2, "background"), unseen, TWO)
    new = masks_of(made.network, unseen, TWO)
    assert int((filtered == 2).sum()) == 0
    assert float((new == 2).float().mean()) < 0.002
    inside = label == 2
    assert float((new == 0)[inside].float().mean()) > 0.9
    kept = 2 * ((new == 1) & (label == 1)).sum() / ((new == 1).sum() + (label == 1).sum())
    assert float(kept) > 0.8


def test_recoverable_withdraws_a_structure_by_its_filters() -> None:
    settings = RecoverableSettings(structure=2, steps=40, learning_rate=1e-2, batch_size=8)
    made = unlearn("recoverable", two_original(), two_sets(), settings)
    assert made.read == {"forget": 8}
    unseen = [two_discs(n) for n in range(50, 62)]
    label = torch.stack([s.label for s in unseen])
    new = masks_of(made.network, unseen, TWO)
    found = 2 * ((new == 2) & (label == 2)).sum() / ((new == 2).sum() + (label == 2).sum())
    kept = 2 * ((new == 1) & (label == 1)).sum() / ((new == 1).sum() + (label == 1).sum())
    assert float(found) < 0.2
    assert float(kept) > 0.8


# --- adversarial --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("structure", [0, 1])
def test_the_attack_on_the_input_solves_the_inner_problem(steps: int, structure: int) -> None:
    """It brings a network that never saw S nearer to the original's answer than noise does."""
    student = build_network(CONFIG, 3).eval()
    terms = Terms(original(), SETS, structure, Weights(3.0, 0.3, 1.0, 1.0), 8, 0)
    batch = terms.next_forget()
    inner = inner_loss(student, terms, batch)
    image, epsilon = batch[0], 0.1
    worst = attacked(image, inner, epsilon, steps, torch.Generator().manual_seed(0))
    noise = (2 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) - 1) * epsilon
    with torch.no_grad():
        assert float(inner(worst)) < float(inner(image + noise))
        assert float(inner(worst)) < float(inner(image))
    assert float((worst - image).abs().max()) <= epsilon + 1e-6
    assert bool((worst.amax((1, 2, 3)) <= image.amax((1, 2, 3))).all())


def test_the_relearner_takes_sgd_steps() -> None:
    """The same weights as torch's SGD makes on a copy, and the gradient goes through unchanged."""
    network, batch = build_network(CONFIG, 2), Draw(FORGET, CONFIG, 4, 0).next()
    twin = build_network(CONFIG, 2)
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        dice_ce(twin, batch).backward()
        optimiser.step()
    moved = relearned(network, batch, 3, 0.05)
    start = dict(network.named_parameters())
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(moved[name], weight, rtol=1e-4, atol=1e-6, msg=name)
        assert "norm" in name or weight.ndim == 1 or not torch.equal(start[name], weight)
    # first order: d loss / d phi is the gradient at the moved weights
    image, label = Draw(RETAIN, CONFIG, 4, 0).next()
    logits = torch.func.functional_call(network, moved, (image,))
    functional.cross_entropy(logits, label[:, 0]).backward()
    twin.zero_grad()
    functional.cross_entropy(twin(image), label[:, 0]).backward()
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(start[name].grad, weight.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_there_is_no_attack_before_the_warm_up_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = adversarial.attacked

    def counted(*args: Any) -> torch.Tensor:
        calls.append(args[3])
        return real(*args)

    monkeypatch.setattr(adversarial, "attacked", counted)
    wanted: dict[Attack, list[int]] = {"fgsm": [1] * 4, "pgd": [3] * 4, "relearn": []}
    for attack, expected in wanted.items():
        calls.clear()
        settings = AdversarialSettings(steps=5, batch_size=2, attack=attack)
        unlearn("adversarial", original(), SETS, settings)
        assert calls == expected


@pytest.mark.parametrize("attack", ["fgsm", "relearn"])
def test_what_was_forgotten_under_attack_stays_further_away_under_it(attack: Attack) -> None:
    """Forgotten under an attack, S is less well known after it than without that training."""
    settings = AdversarialSettings(
        attack=attack,
        steps=20,
        learning_rate=5e-3,
        batch_size=8,
        epsilon=0.3,
        relearn_rate=0.1,
    )
    hardened = unlearn("adversarial", original(), SETS, settings).network
    plain = unlearn("adversarial", original(), SETS, replace(settings, warm_up=1.0)).network
    batch = Draw(FORGET, CONFIG, 8, 5).next()
    known = []
    for network in (plain, hardened):
        if attack == "fgsm":
            terms = Terms(original(), SETS, 0, Weights(3.0, 0.3, 1.0, 1.0), 8, 0)
            inner = inner_loss(network, terms, batch)
            worst = attacked(batch[0], inner, 0.3, 1, torch.Generator().manual_seed(1))
            known.append(float(dice_ce(network, (worst, batch[1])).detach()))
        else:
            weights = relearned(network, (batch[0][:4], batch[1][:4]), 2, 0.1)
            logits = torch.func.functional_call(network, weights, (batch[0][4:],))
            known.append(float(functional.cross_entropy(logits, batch[1][4:, 0]).detach()))
    assert known[1] > known[0]


# --- recoverable --------------------------------------------------------------------------------


def test_the_deposit_brings_the_original_back() -> None:
    """Masks identical on every study; what was forgotten is known again."""
    settings = RecoverableSettings(batch_size=8)
    made, adapted, deposit = deposited(original(), SETS, settings)
    assert dice(made, FORGET) < dice(original(), FORGET) - 0.05
    back = withdraw(made, deposit)
    studies = FORGET + RETAIN + TEST
    image = torch.stack([s.image[..., 0] for s in studies])
    with torch.no_grad():
        assert float((back(image) - original()(image)).abs().max()) <= 1e-4
    assert torch.equal(masks_of(back, studies, CONFIG), masks_of(original(), studies, CONFIG))
    moved = {
        n.split(".")[0]
        for n, w in made.named_parameters()
        if not torch.equal(w, original().get_parameter(n))
    }
    assert moved == {"conv_0", "down_1", "down_2", "down_3"}
    assert torch.equal(adapted.disabled()(image), original()(image))


def test_attention_is_pushed_away() -> None:
    """More weight on the repulsion, more distance of the attention maps on S."""
    distances = []
    image = Draw(FORGET, CONFIG, 8, 0).next()[0]
    for weight in (0.0, 20.0):
        settings = RecoverableSettings(attention_weight=weight, steps=10, batch_size=8)
        made = unlearn("recoverable", original(), SETS, settings).network
        with recorded(made) as now, recorded(original()) as before, torch.no_grad():
            made(image)
            original()(image)
        distances.append(float(attention_distance(now, before)))
    assert 0 < distances[0] < distances[1] <= 2


def test_attention_maps_are_compared_by_shape_not_by_size() -> None:
    activation = random_logits(2, 3, 4, 4)
    assert float(attention_distance([activation], [5 * activation])) == pytest.approx(0, abs=1e-6)
    one, other = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    one[..., 0, 0], other[..., 1, 1] = 1, 1
    assert float(attention_distance([one], [other])) == pytest.approx(2)


@pytest.mark.parametrize("dims", [2, 3])
def test_near_a_border_is_within_the_margin(dims: int) -> None:
    label = torch.zeros(1, 1, *[9] * dims, dtype=torch.int64)
    label[(0, 0, slice(5, None))] = 1
    near = near_border(label, 2)
    planes = near.reshape(9, -1)
    assert [bool(p.all()) for p in planes] == [False] * 3 + [True] * 4 + [False] * 2
    assert not planes[[0, 1, 2, 7, 8]].any()


# --- Erase to Retain ----------------------------------------------------------------------------


def test_contradiction_is_the_log_of_what_is_left_where_the_teacher_is_sure() -> None:
    student, teacher = random_logits(2, 3, 6, 6, seed=1), 2 * random_logits(2, 3, 6, 6, seed=2)
    p_t, p_s = teacher.softmax(1), student.softmax(1)
    parts: dict[bool, list[float]] = {True: [], False: []}
    for b, x, y in np.ndindex(2, 6, 6):
        said = int(p_t[b, :, x, y].argmax())
        if float(p_t[b, said, x, y]) > 0.7:
            parts[said > 0].append(float(-torch.log(1 - p_s[b, said, x, y])))
    expected = np.mean([np.mean(parts[True]), np.mean(parts[False])])
    assert float(contradiction(student, teacher, 0.7)) == pytest.approx(expected, rel=1e-5)
    assert float(contradiction(student, torch.zeros_like(teacher), 0.7)) == 0


def test_background_loss_is_binary_cross_entropy_to_zero_with_one_structure() -> None:
    logits = random_logits(2, 2, 5, 5)
    single = logits[:, 1] - logits[:, 0]
    expected = functional.binary_cross_entropy_with_logits(single, torch.zeros_like(single))
    torch.testing.assert_close(background_loss(logits), expected)


def test_the_first_stage_contradicts_and_the_second_moves_the_head_alone() -> None:
    """Stage 1 moves decoder convolutions, stage 2 the head; S falls, R is fitted again."""
    settings = EraseToRetainSettings(steps=20, head_steps=1, head_learning_rate=1e-9)
    erased = unlearn("erase_to_retain", original(), SETS, settings).network
    restored = unlearn(
        "erase_to_retain",
        original(),
        SETS,
        replace(settings, head_steps=30, head_learning_rate=2e-2, batch_size=4),
    ).network
    for name, before in original().named_parameters():
        decoder = name.startswith("upcat_") and "convs" in name and name.endswith("conv.weight")
        now, after = erased.get_parameter(name), restored.get_parameter(name)
        if name.startswith("final_conv"):
            assert torch.allclose(before.detach(), now.detach(), rtol=0, atol=1e-6)
            assert not torch.equal(now, after)
        else:
            assert torch.equal(before, now) != decoder, name
            assert torch.equal(now, after), name
    assert dice(erased, FORGET) < dice(original(), FORGET) - 0.05
    assert loss(restored, RETAIN) < loss(erased, RETAIN)


def test_the_released_code_over_forgets() -> None:
    """Background on S: forgotten people end below unseen ones when nothing is retained."""
    settings = EraseToRetainReleasedSettings(epochs=8)
    made = unlearn("erase_to_retain_released", original(), SETS, settings)
    assert made.read == {"forget": 8, "retain": 20}
    assert dice(made.network, FORGET) < dice(original(), FORGET) - 0.08
    assert dice(made.network, RETAIN) > 0.95
    alone = unlearn("erase_to_retain_released", original(), SETS, replace(settings, retain="none"))
    assert alone.read == {"forget": 8}
    assert dice(alone.network, RETAIN) < dice(made.network, RETAIN) - 0.1


# --- what is refused before any work ------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_ADAPTER)
def test_batch_normalisation_is_refused(name: str) -> None:
    network = build_network(CONFIG, 0)
    network.get_submodule("upcat_1.convs.conv_0.adn").N = nn.BatchNorm2d(8)
    with pytest.raises(InvalidInputError, match="batch normalisation"):
        unlearn(name, network, SETS)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_that_is_not_there_is_refused(name: str) -> None:
    by_adapter: dict[str, Any] = {"layers": "decoder", "rank": 8} if name == "calibrated" else {}
    made = functools.partial(METHODS[name].settings, **by_adapter)
    shown_by = STRUCTURES[name]
    empty = tuple(s.without(2) for s in getattr(two_sets(), shown_by))
    sets = replace(two_sets(), **{shown_by: empty})
    network = build_network(TWO, 0)
    with pytest.raises(InvalidInputError, match=f"no study of the {shown_by} set shows"):
        checked(name, network, sets, made(structure=2))
    with pytest.raises(InvalidInputError, match=r"no structure 3; it has 1 \(bright\), 2 \(dark\)"):
        checked(name, network, sets, made(structure=3))
    with pytest.raises(InvalidInputError, match="structure is -1"):
        made(structure=-1)
    checked(name, network, sets, made(structure=1))


@pytest.mark.parametrize("name", ["calibrated", "adversarial"])
def test_too_few_unseen_people_are_refused_in_study_mode(name: str) -> None:
    few = replace(SETS, calibration=people(200, 4))
    with pytest.raises(InvalidInputError, match="holds 4 people; 5 are needed"):
        checked(name, original(), few)
    decoder = {"layers": "decoder", "rank": 8}
    checked(name, original(), few, METHODS[name].settings(structure=1, **decoder))
    checked(name, original(), replace(SETS, calibration=people(200, 5)))


@pytest.mark.parametrize("name", ["calibrated", "adversarial", "erase_to_retain_released"])
def test_without_a_retain_set_none_is_given_or_read(name: str) -> None:
    settings = METHODS[name].settings(retain="none")
    assert "retain" not in METHODS[name].reads_with(settings)
    _, _, given = checked(name, original(), SETS, settings)
    assert given.retain == ()
    checked(name, original(), replace(SETS, retain=()), settings)
    stored = METHODS[name].settings(retain="stored")
    with pytest.raises(InvalidInputError, match="retain set is empty"):
        checked(name, original(), replace(SETS, retain=()), stored)
    with pytest.raises(InvalidInputError, match="retain is 'some'"):
        METHODS[name].settings(retain="some")


def test_an_unknown_attack_and_a_margin_of_nothing_are_refused() -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("adversarial", {"attack": "gossip"}),
        ("adversarial", {"epsilon": 0.0}),
        ("adversarial", {"warm_up": 2.0}),
        ("adversarial", {"relearn_rate": 0.0}),
        ("recoverable", {"margin": 0}),
        ("erase_to_retain", {"confidence": 1.0}),
        ("erase_to_retain", {"head_steps": 0}),
        ("erase_to_retain_released", {"epochs": 0}),
    ]
    for name, settings in wrong:
        with pytest.raises(InvalidInputError):
            METHODS[name].settings(**settings)


def test_distillation_of_an_equal_answer_costs_nothing() -> None:
    """The kept terms are 0 at the original but for the task loss of R."""
    terms = Terms(original(), SETS, 0, Weights(3.0, 0.3, 1.0, 1.0), 4, 0)
    expected = dice_ce(original(), Draw(RETAIN, CONFIG, 4, 1).next())
    torch.testing.assert_close(terms.kept(original()), expected, rtol=1e-4, atol=1e-5)
    logits = random_logits(1, 2, 4, 4)
    assert float(distillation(logits, logits)) == pytest.approx(0, abs=1e-6)
