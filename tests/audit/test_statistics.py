"""Intervals cover at their nominal rate; areas agree with an independent library."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segunlearn.audit.statistics import auc, by_person, detectable_auc, mean_interval, tpr_at_fpr
from segunlearn.errors import InvalidInputError


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=12),
    st.lists(st.integers(0, 5), min_size=2, max_size=12),
)
def test_area_is_the_rank_sum_of_scipy_when_each_study_is_a_person(
    s: list[int], u: list[int]
) -> None:
    ours = auc(s, names("s", len(s)), u, names("u", len(u)))
    theirs = stats.mannwhitneyu(s, u).statistic / (len(s) * len(u))
    assert ours.value == pytest.approx(theirs)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_many_studies_of_one_person_count_once() -> None:
    """Nine copies of one low person must not outvote one high person."""
    area = auc([0.0] * 9 + [1.0], ["a"] * 9 + ["b"], [0.5, 0.5], ["c", "d"])
    assert area.value == 0.5


def coverage(forgotten: int, shift: float, repeats: int = 400) -> tuple[float, float]:
    """Share of intervals that hold the true area: ours, and a percentile bootstrap's."""
    rng = np.random.default_rng(7)
    truth = stats.norm.cdf(shift / np.sqrt(2))
    ours = bootstrap = 0
    for _ in range(repeats):
        s, u = rng.normal(shift, 1, forgotten), rng.normal(0, 1, 70)
        ours += auc(list(s), names("s", forgotten), list(u), names("u", 70)).holds(truth)
        higher = s[:, None] > u[None, :]
        ws = rng.multinomial(forgotten, np.ones(forgotten) / forgotten, 300) / forgotten
        wu = rng.multinomial(70, np.ones(70) / 70, 300) / 70
        low, high = np.percentile(np.einsum("bn,nm,bm->b", ws, higher, wu), [2.5, 97.5])
        bootstrap += low <= truth <= high
    return ours / repeats, bootstrap / repeats


@pytest.mark.parametrize("forgotten", [6, 30])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_covers_at_its_nominal_rate(forgotten: int, shift: float) -> None:
    ours, _ = coverage(forgotten, shift)
    assert ours >= 0.93


@pytest.mark.parametrize(
    ("forgotten", "unseen", "low"), [(2, 2, 0.27), (3, 5, 0.43), (6, 21, 0.68)]
)
def test_a_perfect_separation_of_few_has_a_wide_interval(
    forgotten: int, unseen: int, low: float
) -> None:
    s, u = names("s", forgotten), names("u", unseen)
    above = auc([1.0] * forgotten, s, [0.0] * unseen, u, 0.99)
    assert (above.value, above.high) == (1.0, 1.0)
    assert above.low == pytest.approx(low, abs=0.005)
    below = auc([0.0] * forgotten, s, [1.0] * unseen, u, 0.99)
    assert (below.low, below.value) == (0.0, 0.0)
    assert below.high == pytest.approx(1 - above.low)


@pytest.mark.parametrize(("forgotten", "unseen"), [(2, 2), (2, 5), (3, 5), (6, 21)])
def test_few_people_who_are_alike_are_rarely_told_apart(forgotten: int, unseen: int) -> None:
    """At 99 %: this is what refuses a model by membership with the difficulty taken out."""
    rng = np.random.default_rng(11)
    s, u = names("s", forgotten), names("u", unseen)
    wrong = 0
    for _ in range(1000):
        scores = rng.normal(size=forgotten + unseen).tolist()
        wrong += not auc(scores[:forgotten], s, scores[forgotten:], u, 0.99).holds(0.5)
    assert wrong / 1000 <= 0.015


def test_a_percentile_bootstrap_over_six_persons_does_not() -> None:
    """Why the interval is not a bootstrap; this is also the proof that the check above can fail."""
    _, bootstrap = coverage(6, 1.0)
    assert bootstrap < 0.90


def test_the_mean_interval_covers() -> None:
    rng = np.random.default_rng(3)
    held = sum(mean_interval(list(rng.normal(0.1, 1, 6))).holds(0.1) for _ in range(2000))
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_power_agrees_with_simulation() -> None:
    """At the detectable area the rank test finds the leak about four times in five."""
    rng = np.random.default_rng(5)
    area = detectable_auc(20, 70)
    shift = stats.norm.ppf(area) * np.sqrt(2)
    found = sum(
        stats.mannwhitneyu(rng.normal(shift, 1, 20), rng.normal(0, 1, 70)).pvalue < 0.05
        for _ in range(600)
    )
    assert found / 600 == pytest.approx(0.8, abs=0.06)
    assert detectable_auc(2, 3) == 1.0
    assert detectable_auc(6, 70) > 0.8


def test_rate_at_one_percent() -> None:
    assert tpr_at_fpr([0.95, 0.5], list(np.linspace(0, 0.9, 200))) == (0.5, 0.005)
    rate, smallest = tpr_at_fpr([2.0, 0.0], [1.0, 0.5])
    assert (rate, smallest) == (0.5, 0.5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="one person for each"):
        by_person([1.0], [])
    with pytest.raises(InvalidInputError, match="not finite"):
        by_person([float("nan")], ["a"])
    with pytest.raises(InvalidInputError, match="two on each side"):
        auc([1.0], ["a"], [0.0, 1.0], ["b", "c"])
    with pytest.raises(InvalidInputError, match="both forgotten and unseen"):
        auc([1.0, 0.0], ["a", "b"], [0.0, 1.0], ["b", "c"])
    with pytest.raises(InvalidInputError, match="at least two persons"):
        mean_interval([1.0])
