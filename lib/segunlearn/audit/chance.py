"""How far models differ on people none of them saw: what a figure may be without any memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Final

import numpy as np
from scipy import stats

from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.policy import ReferenceKind
from segunlearn.audit.scores import Measure, person_means, set_mean
from segunlearn.audit.statistics import REFUSED, PersonChance, noise_among

_DRAWS: Final = 400


def noise_of(references: Sequence[ModelFigures], figure: Callable[[ModelFigures], float]) -> float:
    """Two standard deviations of the difference of one more model to the references' mean.

    0 with a single reference, whose spread is not known.
    """
    return noise_among([[figure(r)] for r in references])


def shift_among(
    original: ModelFigures,
    references: Sequence[ModelFigures],
    figure: Callable[[ModelFigures], float],
) -> float:
    """By how much one more training turns out better or worse than the references do on the whole.

    People do not tell, however many there are; trainings do, and they are few: Student's t. In all
    but a share of ``REFUSED`` the figure of one more model lies less than this below the
    references' mean.

    Parameters
    ----------
    original, references
        Of the audit. The original is one more training, as far as the figure is about what it was
        not asked to forget.
    figure
        A mean over unseen people.

    Returns
    -------
    float
        0 with a single reference: two trainings are too few to tell.
    """
    k = len(references)
    if k < 2:
        return 0.0
    spread = np.std([figure(m) for m in (original, *references)], ddof=1)
    return float(stats.t.ppf(1 - REFUSED, k) * spread * np.sqrt(1 + 1 / k))


def person_noise(references: Sequence[ModelFigures]) -> float:
    """As ``noise_of``, for a single forgotten person: variances pooled over the persons."""
    tables = [person_means(r.forget) for r in references]
    return noise_among([[table[p] for p in tables[0]] for table in tables])


class Chance(PersonChance):
    """The same of an original and its references, and by ranks.

    The candidate has no part in it, and so cannot widen it.

    Parameters
    ----------
    original
        Of the audit.
    references
        At least one.
    kind
        Of the references. Short ones are worse than the original, which tells nothing of chance.
    """

    def __init__(
        self,
        original: ModelFigures,
        references: Sequence[ModelFigures],
        kind: ReferenceKind = "full",
    ) -> None:
        super().__init__(person_means(original.test), [person_means(r.test) for r in references])
        self._models = (original, *references)
        self.shift = 0.0
        if kind == "full" and original.withdrawn is None:  # else the original draws one more
            self.shift = shift_among(original, references, lambda m: set_mean(m.test))

    def level(self, people: int) -> float:
        """As for persons, and by how much a training is better or worse for all of them."""
        return float(np.hypot(super().level(people), self.shift))

    def quality(self) -> float:
        """Of the level of all unseen people, whose chances ``shift`` holds already."""
        return self.shift or super().level(self.unseen)

    def area(self, people: int, measure: Measure) -> float:
        """By how much areas under the curve of two models differ for so many people neither saw.

        Unseen people are drawn in place of the forgotten ones, again and again; the original's
        area minus the references' mean stays within this bound in all but a share of ``REFUSED``.
        1, the largest there can be, where too few ways to draw them are left to know what is as
        rare as that: five unseen people give ten pairs, and a never-seen model is beyond all ten
        one time in eleven.
        """
        people = min(people, self.unseen // 2)
        if people < 1:
            return 0.0
        if comb(self.unseen, people) < 1 / REFUSED:
            return 1.0
        rng = np.random.default_rng(0)
        drawn = np.argsort(rng.random((_DRAWS, self.unseen)), axis=1)[:, :people]
        areas = []
        for model in self._models:
            ranks = stats.rankdata(list(person_means(model.test, measure).values()))
            above = ranks[drawn].sum(axis=1) - people * (people + 1) / 2
            areas.append(above / (people * (self.unseen - people)))
        found = np.abs(areas[0] - np.mean(areas[1:], axis=0))
        return float(np.quantile(found, 1 - REFUSED))
