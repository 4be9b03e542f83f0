"""Membership inference: telling from its scores that a study was trained on.

Two-sided, because a forgotten study that scores *below* unseen ones is recognisable too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from segunlearn.audit.statistics import REFUSED, Interval, auc, detectable_auc, tpr_at_fpr
from segunlearn.errors import InvalidInputError


@dataclass(frozen=True)
class Scores:
    """One score for each study (higher: looks more like a training study), and its person."""

    values: tuple[float, ...]
    persons: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, float], person_of: Mapping[str, str]) -> Scores:
        """From series → score and series → person, in the order of the series."""
        series = sorted(values)
        return cls(tuple(values[s] for s in series), tuple(person_of[s] for s in series))


@dataclass(frozen=True)
class Membership:
    """Result of one membership attack.

    Parameters
    ----------
    area
        Area under the curve, forgotten against unseen persons, with its interval.
    tpr_at_1_percent
        True-positive rate at 1 % false positives.
    smallest_fpr
        Resolution of that rate: one over the number of unseen studies.
    detectable
        Smallest area that would have been refused for this many persons with 80 % power.
    """

    area: Interval
    tpr_at_1_percent: float
    smallest_fpr: float
    detectable: float


def membership(forgotten: Scores, unseen: Scores, confidence: float = 0.95) -> Membership:
    """Attack a model by its scores on forgotten and never-seen studies.

    Parameters
    ----------
    forgotten, unseen
        Scores of the *same* model: minus the loss, Dice, or a structure score.
    confidence
        Of the interval.

    Raises
    ------
    InvalidInputError
        Fewer than two persons on a side, or a person on both.
    """
    sides = (forgotten.values, forgotten.persons, unseen.values, unseen.persons)
    area = auc(*sides, confidence)
    rate, smallest = tpr_at_fpr(forgotten.values, unseen.values)
    people = len(set(forgotten.persons)), len(set(unseen.persons))
    detectable = detectable_auc(*people, level=REFUSED)
    return Membership(area, rate, smallest, detectable)


def difference_calibrated(
    model_forgotten: Scores,
    model_unseen: Scores,
    reference_forgotten: Sequence[Scores],
    reference_unseen: Sequence[Scores],
    confidence: float = 0.95,
) -> Membership:
    """Attack with the difficulty of each study taken out.

    The score of a study is the model's minus the mean of references that never saw it (Watson
    et al., arXiv 2111.08440): a hard study scores low in both, so what remains is memory.

    Parameters
    ----------
    model_forgotten, model_unseen
        Scores of the audited model.
    reference_forgotten, reference_unseen
        Scores of each never-seen reference on the same studies, in the same order.
    confidence
        Of the interval.

    Raises
    ------
    InvalidInputError
        No reference, or the studies do not agree.
    """
    return membership(
        _minus_mean(model_forgotten, reference_forgotten),
        _minus_mean(model_unseen, reference_unseen),
        confidence,
    )


def _minus_mean(model: Scores, references: Sequence[Scores]) -> Scores:
    if not references:
        raise InvalidInputError("the calibrated attack needs a reference that never saw S.")
    if any(r.persons != model.persons for r in references):
        raise InvalidInputError("model and reference were scored on different studies.")
    mean = np.mean([r.values for r in references], axis=0)
    return Scores(tuple(float(v) for v in np.asarray(model.values) - mean), model.persons)


def conformal_share(losses: Sequence[float], calibration: Sequence[float]) -> float:
    """Share of forgotten studies whose rank among never-trained ones is in [0.05, 0.95].

    The rank of a loss is ``(1 + #{c: l(c) >= l(s)}) / (n_C + 1)``: near 1 the study is
    remembered, near 0 over-forgotten. With fewer than 19 studies in C nothing can fall out at
    the lower end.

    Raises
    ------
    InvalidInputError
        A set is empty.
    """
    if not losses or not calibration:
        raise InvalidInputError("conformal ranks need forgotten and calibration studies.")
    known = np.asarray(calibration)
    ranks = np.asarray([(1 + float((known >= v).sum())) / (known.size + 1) for v in losses])
    return float(((ranks >= 0.05) & (ranks <= 0.95)).mean())


def same_distribution(forgotten: Sequence[float], unseen: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test; give one value a person.

    The forget quality of TOFU (arXiv 2401.06121) adapted: small means that the forgotten people
    can be told from unseen ones. A large one with few people says little.

    Raises
    ------
    InvalidInputError
        Fewer than two values on a side.
    """
    if min(len(forgotten), len(unseen)) < 2:
        raise InvalidInputError("the Kolmogorov-Smirnov test needs two persons on each side.")
    return float(stats.ks_2samp(forgotten, unseen).pvalue)


def conformal_rank(score: float, calibration: Sequence[float]) -> float:
    """Two-sided conformal p-value of one study among never-trained ones, in (0, 1].

    Uniform for a study drawn as the calibration studies are. In practice forgotten studies are
    not an average draw, so it is read only beside the retrained model's own rank.
    """
    below = sum(c <= score for c in calibration) + 1
    above = sum(c >= score for c in calibration) + 1
    return float(min(1.0, 2.0 * min(below, above) / (len(calibration) + 1)))
