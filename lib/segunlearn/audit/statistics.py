"""Statistics over persons: averages, intervals, areas under the curve, and what they can show.

Crops of one person are not independent, so nothing here counts them as if they were: every
function takes the person of each score and works on persons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from segunlearn.errors import InvalidInputError

Floats = npt.NDArray[np.float64]
#: Share of never-seen models that one way of asking for membership may refuse by chance (there are
#: three, and each could refuse), and that a shift between trainings may.
REFUSED: Final = 0.01
#: Share of a normal distribution below two standard deviations.
_TWO: Final = float(stats.norm.cdf(2))
#: Distance from 0 and 1 at which the bounds of an area are looked for.
_EDGE: Final = 1e-12


@dataclass(frozen=True)
class Interval:
    """A figure with its two-sided confidence interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the interval contains the value."""
        return self.low <= value <= self.high


def by_person(scores: Sequence[float], persons: Sequence[str]) -> dict[str, float]:
    """Mean score of each person, sorted by person.

    Raises
    ------
    InvalidInputError
        No scores, lengths differ, or a score is not finite.
    """
    if len(scores) == 0 or len(scores) != len(persons):
        raise InvalidInputError(
            f"{len(scores)} scores and {len(persons)} persons: give one person for each score."
        )
    if not np.isfinite(np.asarray(scores, dtype=float)).all():
        raise InvalidInputError("a score is not finite; a study without a score must be left out.")
    values = np.asarray(scores, dtype=float)
    names = np.asarray(persons)
    return {name: float(values[names == name].mean()) for name in sorted(set(persons))}


def noise_among(figures: Sequence[Sequence[float]]) -> float:
    """Two standard deviations of the difference of one more model to the mean of these.

    Parameters
    ----------
    figures
        For each model, the same figures; their variances are pooled.

    Returns
    -------
    float
        0 with a single model, whose spread is not known.
    """
    k = len(figures)
    if k < 2:
        return 0.0
    return float(2 * np.sqrt(np.var(figures, axis=0, ddof=1).mean() * (1 + 1 / k)))


class PersonChance:
    """Chance between trainings, from people whom neither model saw.

    One model's Dice minus the others' varies from person to person; the mean over few people
    varies accordingly. Where it is known from few people, what two standard deviations are among
    many is further out: Student's t.

    Parameters
    ----------
    mine
        Dice of each unseen person by one model.
    others
        The same by the others, at least one.

    Notes
    -----
    0 with fewer than two unseen people: then nothing is known of it.
    """

    def __init__(self, mine: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> None:
        differences = [mine[p] - float(np.mean([o[p] for o in others])) for p in mine]
        self.unseen = len(differences)
        self.spread = float(np.std(differences, ddof=1)) if self.unseen > 1 else 0.0

    def _deviations(self, below: float) -> float:
        """Spreads under which a share ``below`` of differences lies."""
        return float(stats.t.ppf(below, self.unseen - 1)) if self.unseen > 1 else 0.0

    def level(self, people: int) -> float:
        """Two standard deviations of the mean difference on so many people."""
        return self._deviations(_TWO) * self.spread / float(np.sqrt(max(1, people)))

    def gap(self, people: int) -> float:
        """As ``level``, of the lead of so many people over all unseen ones."""
        both = float(np.sqrt(1 / max(1, people) + 1 / max(1, self.unseen)))
        return self._deviations(_TWO) * self.spread * both

    def worst(self, people: int) -> float:
        """Bound under which the largest of so many people's differences lies by 97.5 %."""
        quantile = self._deviations(0.975 ** (1 / max(1, people)))
        return quantile * self.spread * float(np.sqrt(1 + 1 / max(1, self.unseen)))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over persons with Student's t interval.

    Parameters
    ----------
    values
        One value a person, at least two.
    confidence
        Nominal coverage.

    Raises
    ------
    InvalidInputError
        Fewer than two values: one person has no spread.
    """
    array = np.asarray(values, dtype=float)
    if array.size < 2:
        raise InvalidInputError("an interval over persons needs at least two persons.")
    half = stats.t.ppf((1 + confidence) / 2, array.size - 1) * array.std(ddof=1)
    mean, half = float(array.mean()), float(half / np.sqrt(array.size))
    return Interval(mean, mean - half, mean + half)


def auc(
    forgotten: Sequence[float],
    forgotten_persons: Sequence[str],
    unseen: Sequence[float],
    unseen_persons: Sequence[str],
    confidence: float = 0.95,
) -> Interval:
    """Area under the ROC curve of "forgotten" against "unseen", over persons.

    The area is the mean, over pairs of persons, of the share of pairs of their studies in which
    the forgotten one scores higher (ties count one half).

    Parameters
    ----------
    forgotten, unseen
        Score of each study; higher means "looks trained on".
    forgotten_persons, unseen_persons
        Person of each study.
    confidence
        Nominal coverage.

    Returns
    -------
    Interval
        Newcombe's pseudo-score interval (2006, Stat Med 25:559, method 5), with the numbers of
        persons: all areas A with ``(area - A)^2 <= z^2 V(A)``. With six persons against seventy it
        covers 0.94 to 0.98 in simulation, where a percentile bootstrap over persons covers 0.78
        to 0.89 (``tests/audit/test_statistics.py`` measures both).

    Raises
    ------
    InvalidInputError
        Fewer than two persons on a side, or not one person for each score.
    """
    placement = _placements(forgotten, forgotten_persons, unseen, unseen_persons)
    n, m = placement.shape
    if min(n, m) < 2:
        raise InvalidInputError(
            f"{n} forgotten and {m} unseen persons: an area with an interval needs two on each "
            "side. For a single person use its rank among unseen persons."
        )
    value = float(placement.mean())
    z = float(stats.norm.ppf((1 + confidence) / 2))
    half = (n + m) / 2 - 1

    def outside(area: float) -> float:
        variance = area * (1 - area) / (n * m)
        variance *= 1 + half * (1 - area) / (2 - area) + half * area / (1 + area)
        return float((value - area) ** 2 - z * z * variance)

    # V(0) = V(1) = 0: an area of 0 or 1 would be taken for a root, and leave no interval at all
    inside = min(max(value, _EDGE), 1 - _EDGE)
    low = optimize.brentq(outside, 0.0, inside) if outside(0.0) > 0 else 0.0
    high = optimize.brentq(outside, inside, 1.0) if outside(1.0) > 0 else 1.0
    return Interval(value, min(float(low), value), max(float(high), value))


def _placements(
    forgotten: Sequence[float],
    forgotten_persons: Sequence[str],
    unseen: Sequence[float],
    unseen_persons: Sequence[str],
) -> Floats:
    """(persons of S, persons of T): share of study pairs in which the forgotten one is higher."""
    by_person(forgotten, forgotten_persons), by_person(unseen, unseen_persons)  # checks both
    if overlap := set(forgotten_persons) & set(unseen_persons):
        raise InvalidInputError(
            f"{len(overlap)} persons are both forgotten and unseen; sets are divided by person."
        )
    s, u = np.asarray(forgotten, dtype=float), np.asarray(unseen, dtype=float)
    higher = (s[:, None] > u[None, :]) + 0.5 * (s[:, None] == u[None, :])
    return _group_rows(_group_rows(higher, forgotten_persons).T, unseen_persons).T


def _group_rows(array: Floats, persons: Sequence[str]) -> Floats:
    names = np.asarray(persons)
    return np.stack([array[names == name].mean(axis=0) for name in sorted(set(persons))])


def detectable_auc(forgotten: int, unseen: int, power: float = 0.8, level: float = 0.05) -> float:
    """Smallest area above one half that so many persons would show as different from it.

    Normal approximation of the Wilcoxon-Mann-Whitney test under the null, variance
    ``(n + m + 1) / (12 n m)``.

    Parameters
    ----------
    forgotten, unseen
        Number of persons on each side.
    power
        Probability of finding the leak.
    level
        Two-sided level of the test.

    Returns
    -------
    float
        In (0.5, 1]. 1 means that no leak at all could have been shown.
    """
    error = np.sqrt((forgotten + unseen + 1) / (12 * forgotten * unseen))
    shift = (stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)) * error
    return float(min(1.0, 0.5 + shift))


def tpr_at_fpr(
    forgotten: Sequence[float], unseen: Sequence[float], fpr: float = 0.01
) -> tuple[float, float]:
    """True-positive rate of the attack at a fixed false-positive rate (Carlini et al. 2022).

    Returns
    -------
    rate
        Share of forgotten studies above the threshold.
    smallest_fpr
        ``1 / len(unseen)``: when it is larger than ``fpr``, the threshold is the highest unseen
        score and the true rate is known only to that resolution.
    """
    u = np.sort(np.asarray(unseen, dtype=float))[::-1]
    threshold = u[min(int(np.floor(fpr * u.size)), u.size - 1)]
    rate = float((np.asarray(forgotten, dtype=float) > threshold).mean())
    return rate, 1.0 / u.size
