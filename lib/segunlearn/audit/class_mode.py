"""Class mode: a structure is withdrawn, and its voxels become what a model without it would say.

Dice of the structure must go to 0, but that alone proves little: voxels must not blindly become
background. The confusion row of the structure is compared with a model trained without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from segunlearn.audit.statistics import by_person
from segunlearn.errors import InvalidInputError, LabelError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import dice_of, log_probabilities
from segunlearn.unlearning.sets import Study

Row = npt.NDArray[np.float64]


def confusion_row(
    network: nn.Module, studies: Sequence[Study], config: ModelConfig, label: str
) -> Row:
    """Mean predicted probability of each class on the structure's voxels, ``(K,)``.

    Mean over persons of the mean over their voxels, so that a large organ does not outvote.

    Raises
    ------
    LabelError
        The structure is unknown, or no study shows it.
    """
    return np.asarray(class_figures(network, studies, config, label).row)


def renormalised(row: Sequence[float] | Row, withdrawn: int) -> Row:
    """Target without a class, ``p'(k) = p(k) / (1 - p(c))`` and ``p'(c) = 0``.

    The cheap stand-in where no model was trained without the structure.

    Raises
    ------
    InvalidInputError
        The class is not in the row, or has all the probability.

    Examples
    --------
    >>> renormalised([0.2, 0.5, 0.3], 1).round(2).tolist()
    [0.4, 0.0, 0.6]
    """
    values = np.asarray(row, dtype=np.float64)
    if not 0 <= withdrawn < values.size or values[withdrawn] >= 1:
        raise InvalidInputError(
            f"class {withdrawn} cannot be taken out of a row of {values.size} probabilities."
        )
    target: Row = values / (1 - values[withdrawn])
    target[withdrawn] = 0.0
    return target


def row_divergence(reference: Sequence[float] | Row, row: Sequence[float] | Row) -> float:
    """KL divergence of a row from the reference's, in nats, with probabilities of at least 1e-6."""
    p = np.clip(np.asarray(reference, dtype=np.float64), 1e-6, None)
    q = np.clip(np.asarray(row, dtype=np.float64), 1e-6, None)
    if p.shape != q.shape:
        raise InvalidInputError(f"rows of {p.size} and {q.size} classes cannot be compared.")
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


@dataclass(frozen=True)
class ClassFigures:
    """A withdrawn structure under one model.

    Parameters
    ----------
    label
        The structure.
    dice, others
        Of the structure, and the mean of the other structures (None when there is no other):
        means over persons.
    row
        ``confusion_row`` of the structure, background first.
    said
        The same of the masks: share of its voxels that are given to each class. Empty in figures
        of older audits.
    """

    label: str
    dice: float
    others: float | None
    row: tuple[float, ...]
    said: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClassFigures:
        """Read what ``to_json`` wrote."""
        return cls(**{**data, **{k: tuple(data.get(k, ())) for k in ("row", "said")}})


@dataclass(frozen=True)
class ClassMode:
    """A withdrawn structure under a model, held against models trained without it.

    Parameters
    ----------
    label
        The structure.
    dice
        Of the structure; forgotten is 0.
    divergence
        Of its confusion row from the references' mean row, nats.
    noise
        Largest divergence of one reference from the mean of the others; None with one reference.
    others
        Mean Dice of the other structures minus the references'; None when there is no other.
    row, target
        The rows, background first.
    """

    label: str
    dice: float
    divergence: float
    noise: float | None
    others: float | None
    row: tuple[float, ...]
    target: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def class_figures(
    network: nn.Module, studies: Sequence[Study], config: ModelConfig, label: str
) -> ClassFigures:
    """Measure a withdrawn structure under one model.

    Parameters
    ----------
    studies
        Never-seen studies. Only those with the structure in their labels tell of it: where nothing
        is to be drawn, nothing drawn is a Dice of 1.

    Raises
    ------
    LabelError
        See ``confusion_row``.
    """
    value = _value(config, label)
    rest = tuple(v for v in config.label_values.values() if v != value)
    people = [s.person for s in studies]
    dices, others, shown, rows, said = [], [], [], [], []
    for study, logs in zip(studies, log_probabilities(network, studies, config), strict=True):
        mask, inside = logs.argmax(dim=0), study.label == value
        others.append(dice_of(mask, study.label, rest) if rest else 0.0)
        if inside.any():
            shown.append(study.person)
            dices.append(dice_of(mask, study.label, (value,)))
            rows.append(logs.exp()[:, inside].double().mean(dim=1).numpy())
            counts = torch.bincount(mask[inside], minlength=config.num_classes).double()
            said.append((counts / counts.sum()).numpy())
    if not rows:
        raise LabelError(f"no study shows {label!r}; class mode cannot be audited on these.")
    return ClassFigures(
        label,
        _over_people(dices, shown),
        _over_people(others, people) if rest else None,
        *(
            tuple(_over_people([row[k] for row in each], shown) for k in range(config.num_classes))
            for each in (rows, said)
        ),
    )


def compare_classes(model: ClassFigures, references: Sequence[ClassFigures]) -> ClassMode:
    """Hold a model against models trained without the structure.

    Raises
    ------
    InvalidInputError
        No reference, or figures of another structure.
    """
    if not references:
        raise InvalidInputError("class mode is read against a model trained without the structure.")
    if any(r.label != model.label for r in references):
        raise InvalidInputError(f"a reference was not measured for the structure {model.label!r}.")
    rows = [np.asarray(r.row) for r in references]
    target = np.mean(rows, axis=0)
    noise = None
    if len(rows) > 1:
        noise = max(
            row_divergence(np.mean(rows[:i] + rows[i + 1 :], axis=0), one)
            for i, one in enumerate(rows)
        )
    theirs = [r.others for r in references if r.others is not None]
    others = None if model.others is None else model.others - float(np.mean(theirs))
    return ClassMode(
        label=model.label,
        dice=model.dice,
        divergence=row_divergence(target, model.row),
        noise=noise,
        others=others,
        row=model.row,
        target=tuple(float(v) for v in target),
    )


def class_mode(
    network: nn.Module,
    references: Sequence[nn.Module],
    studies: Sequence[Study],
    config: ModelConfig,
    label: str,
) -> ClassMode:
    """Measure a withdrawn structure against models trained without it.

    Parameters
    ----------
    references
        Networks of the same classes whose training labels did not hold the structure.
    studies
        Never-seen studies. Only those with the structure in their labels tell of it: where nothing
        is to be drawn, nothing drawn is a Dice of 1.

    Raises
    ------
    InvalidInputError
        No reference.
    LabelError
        See ``confusion_row``.
    """
    return compare_classes(
        class_figures(network, studies, config, label),
        [class_figures(r, studies, config, label) for r in references],
    )


def without(studies: Sequence[Study], config: ModelConfig, label: str) -> tuple[Study, ...]:
    """Studies whose labels no longer hold a structure; its voxels become background."""
    value = _value(config, label)
    return tuple(s.without(value) for s in studies)


def _value(config: ModelConfig, label: str) -> int:
    if label not in config.label_values:
        raise LabelError(
            f"the model has no structure {label!r}; it has {', '.join(config.labels)}."
        )
    return config.label_values[label]


def _over_people(values: Sequence[float], people: Sequence[str]) -> float:
    return float(np.mean(list(by_person(values, people).values())))
