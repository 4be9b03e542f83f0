"""Membership and gap on models whose memory is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from segunlearn.audit.gap import gap
from segunlearn.audit.membership import (
    Scores,
    conformal_rank,
    conformal_share,
    difference_calibrated,
    membership,
    same_distribution,
)
from segunlearn.errors import InvalidInputError


def scores(prefix: str, values: np.ndarray) -> Scores:
    return Scores(tuple(map(float, values)), tuple(f"{prefix}{i}" for i in range(len(values))))


def test_never_trained_people_look_like_unseen_ones() -> None:
    rng = np.random.default_rng(0)
    held = [
        membership(scores("s", rng.normal(size=20)), scores("t", rng.normal(size=70))).area.holds(
            0.5
        )
        for _ in range(100)
    ]
    assert np.mean(held) > 0.9


def test_an_over_fitted_model_is_an_open_book() -> None:
    rng = np.random.default_rng(1)
    result = membership(scores("s", 5 + rng.normal(size=20)), scores("t", rng.normal(size=70)))
    assert result.area.low > 0.9
    assert result.tpr_at_1_percent > 0.9


def test_over_forgetting_is_found_on_the_other_side() -> None:
    rng = np.random.default_rng(2)
    result = membership(scores("s", rng.normal(size=20) - 5), scores("t", rng.normal(size=70)))
    assert result.area.high < 0.1


def test_calibration_finds_a_leak_that_the_raw_score_misses() -> None:
    """Hard people: difficulty hides a small memory from the raw score, not from the difference."""
    rng = np.random.default_rng(3)
    hard, usual = rng.normal(-1, 1, 20), rng.normal(0, 1, 70)
    memory = 0.3
    model = scores("s", hard + memory + rng.normal(0, 0.05, 20))
    unseen = scores("t", usual + rng.normal(0, 0.05, 70))
    reference_s = [scores("s", hard + rng.normal(0, 0.05, 20)) for _ in range(2)]
    reference_t = [scores("t", usual + rng.normal(0, 0.05, 70)) for _ in range(2)]

    assert membership(model, unseen).area.value < 0.5
    assert difference_calibrated(model, unseen, reference_s, reference_t).area.low > 0.9

    clean = scores("s", hard + rng.normal(0, 0.05, 20))
    calibrated = difference_calibrated(clean, unseen, reference_s, reference_t)
    assert calibrated.area.holds(0.5)


def test_studies_of_model_and_reference_must_agree() -> None:
    one, other = scores("s", np.arange(3.0)), scores("x", np.arange(3.0))
    with pytest.raises(InvalidInputError, match="different studies"):
        difference_calibrated(one, other, [other], [other])
    with pytest.raises(InvalidInputError, match="needs a reference"):
        difference_calibrated(one, other, [], [])


def test_conformal_ranks_of_a_like_study_are_uniform() -> None:
    rng = np.random.default_rng(4)
    ranks = [conformal_rank(rng.normal(), list(rng.normal(size=39))) for _ in range(2000)]
    assert np.mean(np.array(ranks) <= 0.1) == pytest.approx(0.1, abs=0.02)
    assert conformal_rank(10.0, [0.0] * 39) == pytest.approx(0.05)


def test_the_share_of_ordinary_ranks_is_nine_in_ten_for_like_studies() -> None:
    rng = np.random.default_rng(5)
    pairs = [(list(rng.normal(size=50)), list(rng.normal(size=99))) for _ in range(100)]
    assert np.mean([conformal_share(s, c) for s, c in pairs]) == pytest.approx(0.91, abs=0.02)
    known = list(np.linspace(0, 1, 39))
    assert conformal_share([-1.0, -1.0], known) == 0  # remembered: rank 1
    assert conformal_share([9.0, 0.5], known) == 0.5  # over-forgotten: rank 1 / 40
    assert conformal_share([9.0], known[:10]) == 1  # too few to show it
    with pytest.raises(InvalidInputError, match="need forgotten and calibration"):
        conformal_share([], known)


def test_losses_drawn_alike_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(6)
    pairs = [(list(rng.normal(size=12)), list(rng.normal(size=70))) for _ in range(200)]
    assert np.mean([same_distribution(*pair) <= 0.05 for pair in pairs]) <= 0.06
    assert same_distribution(list(rng.normal(size=12) - 3), list(rng.normal(size=70))) < 1e-6
    with pytest.raises(InvalidInputError, match="two persons"):
        same_distribution([1.0], [1.0, 2.0])


S, T = {"a": 0.80, "b": 0.70}, {"c": 0.85, "d": 0.83}


def test_the_gap_of_a_reference_to_itself_is_zero() -> None:
    result = gap(S, T, [S], [T])
    assert result.excess == 0
    assert result.tug_of_war == 1
    assert result.worst == 0


def test_memory_and_general_damage_are_told_apart() -> None:
    remembered = {p: v + 0.1 for p, v in S.items()} | {"b": S["b"] + 0.2}
    result = gap(remembered, T, [S], [T])
    assert result.excess == pytest.approx(0.15)
    assert (result.worst_person, result.worst) == ("b", pytest.approx(0.2))

    damaged = gap({p: v - 0.1 for p, v in S.items()}, {p: v - 0.1 for p, v in T.items()}, [S], [T])
    assert damaged.excess == pytest.approx(0)
    assert damaged.unseen.value == pytest.approx(-0.1)
    assert damaged.tug_of_war == pytest.approx(0.81)


def test_the_spread_between_persons_is_shown() -> None:
    result = gap({"a": 0.9, "b": 0.7}, T, [S], [T])
    assert result.forgotten.low < 0 < result.forgotten.value < result.forgotten.high
    assert gap({"a": 0.9}, T, [{"a": 0.8}], [T]).forgotten.high == np.inf


@pytest.mark.parametrize(
    ("forgotten", "unseen", "reference", "words"),
    [
        ({}, T, S, "empty"),
        (S, {"a": 0.1}, S, "forget set and in the test set"),
        (S, T, {"a": 0.5}, "same persons"),
    ],
)
def test_bad_sets_are_refused(forgotten: dict, unseen: dict, reference: dict, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        gap(forgotten, unseen, [reference], [unseen])
