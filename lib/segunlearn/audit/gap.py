"""The gap to a model that was never trained on the forget set.

``S - T`` is how much better a model is on forgotten people than on unseen ones. Some of it is
the people themselves, and a reference that never saw either has that part too; the **gap excess**
is what is left. It needs no full retrain: a short one has the same S - T (see the documentation
of the audit), and neither under-training nor general damage moves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segunlearn.audit.statistics import Interval, mean_interval
from segunlearn.errors import InvalidInputError

PersonScores = Mapping[str, float]


@dataclass(frozen=True)
class Gap:
    """Differences of mean Dice between a model and its never-seen references.

    Parameters
    ----------
    forgotten
        dS: on forgotten persons, with an interval over persons when there are two or more.
    unseen
        dT: on test persons.
    excess
        dS - dT.
    worst_person, worst
        The forgotten person who is remembered best, and by how much.
    tug_of_war
        ``(1 - |dS|)(1 - |dT|)`` (after Zhao et al., arXiv 2406.01257; R is left out because a
        high Dice on R is memory itself).
    """

    forgotten: Interval
    unseen: Interval
    excess: float
    worst_person: str
    worst: float
    tug_of_war: float


def gap(
    forgotten: PersonScores,
    unseen: PersonScores,
    reference_forgotten: Sequence[PersonScores],
    reference_unseen: Sequence[PersonScores],
) -> Gap:
    """Compare a model with references on forgotten (S) and test (T) persons.

    Parameters
    ----------
    forgotten, unseen
        Mean Dice of each person under the audited model.
    reference_forgotten, reference_unseen
        The same persons under each reference.

    Raises
    ------
    InvalidInputError
        An empty set, no reference, a person in S and T, or references on other persons.
    """
    if set(forgotten) & set(unseen):
        raise InvalidInputError("a person is in the forget set and in the test set; divide anew.")
    d_s = _differences(forgotten, reference_forgotten, "forget")
    d_t = _differences(unseen, reference_unseen, "test")
    s, t = float(np.mean(list(d_s.values()))), float(np.mean(list(d_t.values())))
    worst_person = max(d_s, key=lambda person: d_s[person])
    return Gap(
        forgotten=_interval(d_s),
        unseen=_interval(d_t),
        excess=s - t,
        worst_person=worst_person,
        worst=d_s[worst_person],
        tug_of_war=(1 - abs(s)) * (1 - abs(t)),
    )


def _differences(
    model: PersonScores, references: Sequence[PersonScores], name: str
) -> dict[str, float]:
    if not model:
        raise InvalidInputError(f"the {name} set is empty.")
    if not references or any(set(r) != set(model) for r in references):
        raise InvalidInputError(
            f"the {name} set needs at least one reference, scored on exactly the same persons."
        )
    return {p: model[p] - float(np.mean([r[p] for r in references])) for p in sorted(model)}


def _interval(differences: Mapping[str, float]) -> Interval:
    values = list(differences.values())
    if len(values) == 1:
        return Interval(values[0], -np.inf, np.inf)
    return mean_interval(values)
