"""Scores of a model on studies: what every output measure starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from segunlearn.audit.membership import Scores
from segunlearn.audit.statistics import by_person
from segunlearn.errors import CancelledError, InvalidInputError
from segunlearn.evaluation import hd95, surface_dice
from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import dice_of, log_probabilities, never
from segunlearn.unlearning.sets import Study

Measure = Literal["dice", "loss", "surface_dice", "hd95_mm"]


@dataclass(frozen=True)
class StudyScore:
    """How a model does on one study.

    Parameters
    ----------
    series, person
        Whose.
    dice
        Hard Dice, mean over the structures.
    loss
        Soft Dice loss of the structures plus cross-entropy, of this study alone.
    surface_dice, hd95_mm
        Mean over the structures on the model's grid; None when they were not asked for, or, for
        HD95, when a mask is empty and it is infinite.
    """

    series: str
    person: str
    dice: float
    loss: float
    surface_dice: float | None = None
    hd95_mm: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def score(
    network: nn.Module,
    studies: Sequence[Study],
    config: ModelConfig,
    *,
    surfaces: bool = False,
    cancel: Callable[[], bool] = never,
) -> tuple[StudyScore, ...]:
    """Score a network on studies, in their order.

    Parameters
    ----------
    surfaces
        Also HD95 and surface Dice (tolerance 1 mm), which take longer.

    Raises
    ------
    InvalidInputError
        Surfaces are asked for, and a study has no spacing.
    CancelledError
        ``cancel`` said so.
    """
    values = tuple(config.label_values.values())
    scores = []
    for study, logs in zip(studies, log_probabilities(network, studies, config), strict=True):
        if cancel():
            raise CancelledError("the audit was stopped while studies were scored.")
        mask = logs.argmax(dim=0)
        surface = distance = None
        if surfaces:
            pairs = [((mask == v).numpy(), (study.label == v).numpy()) for v in values]
            surface = float(np.mean([surface_dice(a, b, _spacing(study)) for a, b in pairs]))
            distance = float(np.mean([hd95(a, b, _spacing(study)) for a, b in pairs]))
            distance = distance if math.isfinite(distance) else None
        scores.append(
            StudyScore(
                study.series,
                study.person,
                dice_of(mask, study.label, values),
                study_loss(logs, study.label),
                surface,
                distance,
            )
        )
    return tuple(scores)


def _spacing(study: Study) -> tuple[float, float, float]:
    if study.spacing is None:
        raise InvalidInputError(
            "a study does not tell the spacing of its grid, so surfaces cannot be compared in mm. "
            "Give it one, or leave the surfaces out."
        )
    return study.spacing


def study_loss(logs: torch.Tensor, label: torch.Tensor) -> float:
    """Soft Dice loss of the structures plus cross-entropy of one study.

    Parameters
    ----------
    logs
        ``(K, X, Y, Z)`` logarithms of probabilities.
    label
        ``(X, Y, Z)``.
    """
    truth = torch.nn.functional.one_hot(label.long(), logs.shape[0]).movedim(-1, 0).to(logs.dtype)
    axes = tuple(range(1, logs.ndim))
    probabilities = logs.exp()
    both = (probabilities * truth).sum(axes)[1:]
    sizes = (probabilities.sum(axes) + truth.sum(axes))[1:]
    soft_dice = (2 * both + 1e-5) / (sizes + 1e-5)
    cross_entropy = -(truth * logs).sum(0).mean()
    return float(1 - soft_dice.mean() + cross_entropy)


def person_means(scores: Sequence[StudyScore], measure: Measure = "dice") -> dict[str, float]:
    """Mean of a measure over the studies of each person.

    Raises
    ------
    InvalidInputError
        The measure was not taken.
    """
    values = [getattr(s, measure) for s in scores]
    if any(v is None for v in values):
        raise InvalidInputError(f"{measure} was not measured on every study.")
    return by_person(values, [s.person for s in scores])


def people_in(scores: Sequence[StudyScore]) -> int:
    """Count the persons."""
    return len({s.person for s in scores})


def set_mean(scores: Sequence[StudyScore], measure: Measure = "dice") -> float:
    """Mean over persons."""
    return float(np.mean(list(person_means(scores, measure).values())))


def attack_scores(scores: Sequence[StudyScore], measure: Measure = "dice") -> Scores:
    """Scores for a membership attack: higher looks more like a training study."""
    sign = -1.0 if measure in ("loss", "hd95_mm") else 1.0
    return Scores.of(
        {s.series: sign * getattr(s, measure) for s in scores},
        {s.series: s.person for s in scores},
    )


def scores_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[StudyScore, ...]:
    """Read what ``to_json`` wrote."""
    return tuple(StudyScore(**row) for row in rows)
