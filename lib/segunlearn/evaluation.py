"""How well masks agree with reference labels: Dice, HD95 and surface Dice, in millimetres."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice

from segunlearn.cases import Case
from segunlearn.errors import CancelledError, GeometryError, InvalidInputError, LabelError
from segunlearn.inference import Segmenter
from segunlearn.volumes import Volume, read_volume

Mask = npt.NDArray[np.bool_]

#: The measures, in the order of tables.
MEASURES = ("dice", "hd95_mm", "surface_dice")


def dice(predicted: Mask, reference: Mask) -> float:
    """Dice coefficient, 2 |A and B| / (|A| + |B|).

    Returns
    -------
    float
        In [0, 1]; 1 when both masks are empty, 0 when one is.
    """
    _check(predicted, reference)
    if not predicted.any() or not reference.any():
        return float(predicted.any() == reference.any())
    return float(compute_dice(_batch(predicted), _batch(reference), include_background=True))


def hd95(predicted: Mask, reference: Mask, spacing: Sequence[float]) -> float:
    """95th percentile of the Hausdorff distance of the surfaces, the larger of both directions.

    Parameters
    ----------
    predicted, reference
        ``(X, Y, Z)``.
    spacing
        mm per voxel along each axis.

    Returns
    -------
    float
        mm; 0 when both masks are empty, infinite when one is. The surface of one slice is its
        outline.
    """
    _check(predicted, reference)
    if not predicted.any() or not reference.any():
        return 0.0 if predicted.any() == reference.any() else math.inf
    predicted, reference, spacing = _crop_to_both(predicted, reference, spacing)
    with _quiet():
        distance = compute_hausdorff_distance(
            _batch(predicted),
            _batch(reference),
            include_background=True,
            percentile=95,
            spacing=list(spacing),
        )
    return float(distance)


def surface_dice(
    predicted: Mask, reference: Mask, spacing: Sequence[float], tolerance_mm: float = 1.0
) -> float:
    """Share of both surfaces that lies within a tolerance of the other (Nikolov 2021).

    Returns
    -------
    float
        In [0, 1]; 1 when both masks are empty, 0 when one is. The surface of one slice is its
        outline.
    """
    _check(predicted, reference)
    if not predicted.any() or not reference.any():
        return float(predicted.any() == reference.any())
    predicted, reference, spacing = _crop_to_both(predicted, reference, spacing)
    with _quiet():
        share = compute_surface_dice(
            _batch(predicted),
            _batch(reference),
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=list(spacing),
            use_subvoxels=True,
        )
    return float(share)


@dataclass(frozen=True)
class CaseScore:
    """One label of one case.

    Parameters
    ----------
    series, person
        Whose.
    label
        Name of the structure.
    dice, hd95_mm, surface_dice
        See the functions of these names.
    reference_ml, predicted_ml
        Volumes in millilitres.
    """

    series: str
    person: str
    label: str
    dice: float
    hd95_mm: float
    surface_dice: float
    reference_ml: float
    predicted_ml: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on cases.

    Parameters
    ----------
    scores
        One for each case and label.
    tolerance_mm
        Of surface Dice.
    seconds
        Sum of what the segmenter reported, by part.
    assumed
        For how many images each modality was assumed from their voxels.
    """

    scores: list[CaseScore]
    tolerance_mm: float
    seconds: Mapping[str, float]
    assumed: Mapping[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Structures, in the model's order."""
        return list(dict.fromkeys(s.label for s in self.scores))

    def per_label(self) -> dict[str, dict[str, float]]:
        """Mean of each measure over the persons, for each label."""
        return {
            label: self._mean([s for s in self.scores if s.label == label]) for label in self.labels
        }

    def per_person(self) -> dict[str, dict[str, float]]:
        """Mean of each measure over labels and cases, for each person."""
        persons = sorted({s.person for s in self.scores})
        return {p: self._mean([s for s in self.scores if s.person == p]) for p in persons}

    def mean(self) -> dict[str, float]:
        """Mean over persons: everyone counts once, with however many images."""
        return self._mean(self.scores)

    def _mean(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Mean over cases of a person, then over persons; infinite HD95 stays infinite."""
        persons: dict[str, list[CaseScore]] = {}
        for score in scores:
            persons.setdefault(score.person, []).append(score)
        return {
            measure: float(
                np.mean([np.mean([getattr(s, measure) for s in g]) for g in persons.values()])
            )
            for measure in MEASURES
        }

    def missed(self) -> dict[str, int]:
        """For each label, cases whose HD95 is infinite: one of the masks is empty."""
        return {
            label: sum(math.isinf(s.hd95_mm) for s in self.scores if s.label == label)
            for label in self.labels
        }

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings; an infinite HD95 becomes null and is counted in ``missed``."""
        return {
            "mean": _finite(self.mean()),
            "per_label": {k: _finite(v) for k, v in self.per_label().items()},
            "per_person": {k: _finite(v) for k, v in self.per_person().items()},
            "missed": self.missed(),
            "tolerance_mm": self.tolerance_mm,
            "seconds": dict(self.seconds),
            "cases": [_finite(vars(s)) for s in self.scores],
        }


def score_case(
    predicted: Volume,
    reference: Volume,
    label_values: Mapping[str, int],
    *,
    series: str = "",
    person: str = "",
    tolerance_mm: float = 1.0,
) -> list[CaseScore]:
    """Compare two label maps.

    Raises
    ------
    GeometryError
        They do not lie on the same grid.
    """
    if not predicted.same_grid(reference):
        raise GeometryError(
            f"mask {predicted.shape} and reference {reference.shape} do not lie on the same voxel "
            "grid. Resample the mask onto the grid of the reference."
        )
    millilitres = abs(float(np.linalg.det(reference.affine[:3, :3]))) / 1000
    scores = []
    for name, value in label_values.items():
        found, truth = predicted.array == value, reference.array == value
        scores.append(
            CaseScore(
                series=series,
                person=person,
                label=name,
                dice=dice(found, truth),
                hd95_mm=hd95(found, truth, reference.spacing),
                surface_dice=surface_dice(found, truth, reference.spacing, tolerance_mm),
                reference_ml=float(truth.sum()) * millilitres,
                predicted_ml=float(found.sum()) * millilitres,
            )
        )
    return scores


def evaluate(
    cases: Sequence[Case],
    segmenter: Segmenter,
    *,
    tolerance_mm: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Evaluation:
    """Segment cases and compare with their labels, on the images' own grids.

    Parameters
    ----------
    cases
        With labels; persons the model has not seen.
    segmenter
        The model.
    tolerance_mm
        Of surface Dice.
    progress
        Called with (cases done, cases in total).
    cancel
        Asked before each case.

    Raises
    ------
    LabelError
        There are no cases, one has no label, or a label map holds a value the model does not know.
    InvalidInputError, GeometryError
        An image cannot be segmented, or a label does not lie on its grid; the message names it.
    CancelledError
        ``cancel`` said so.
    """
    if not cases:
        raise LabelError("no cases to evaluate on. Give images with label maps.")
    scores: list[CaseScore] = []
    seconds = dict.fromkeys(("pre", "network", "post"), 0.0)
    assumed: Counter[str] = Counter()
    values = segmenter.config.label_values
    for number, case in enumerate(cases):
        if cancel is not None and cancel():
            raise CancelledError("the evaluation was stopped before it was complete.")
        if case.label is None:
            raise LabelError(f"{case.image.name}: has no label map to compare with.")
        image = read_volume(case.image, modality=case.modality)
        reference = read_volume(case.label, label=True)
        if not reference.same_grid(image):
            raise GeometryError(
                f"{case.label.name}: label {reference.array.shape} and image {image.array.shape} "
                "do not lie on the same voxel grid. Export the label on the grid of its image."
            )
        unknown = sorted(set(np.unique(reference.array).tolist()) - {0, *values.values()})
        if unknown:
            raise LabelError(
                f"{case.label.name}: holds values {unknown}, the model knows "
                f"{', '.join(f'{v} {k}' for k, v in values.items())}."
            )
        try:
            prediction = segmenter.predict(image, cancel=cancel)
        except InvalidInputError as error:
            raise type(error)(f"{case.image.name}: {error}") from error
        for part, span in prediction.seconds.items():
            seconds[part] += span
        if prediction.assumed is not None:
            assumed[prediction.assumed.modality] += 1
        scores += score_case(
            prediction,
            reference,
            values,
            series=case.series,
            person=case.person,
            tolerance_mm=tolerance_mm,
        )
        if progress is not None:
            progress(number + 1, len(cases))
    return Evaluation(scores=scores, tolerance_mm=tolerance_mm, seconds=seconds, assumed=assumed)


def _check(predicted: Mask, reference: Mask) -> None:
    if predicted.shape != reference.shape:
        raise GeometryError(
            f"masks of {predicted.shape} and {reference.shape} voxels cannot be compared."
        )


def _crop_to_both(
    predicted: Mask, reference: Mask, spacing: Sequence[float]
) -> tuple[Mask, Mask, Sequence[float]]:
    """Cut to the box around both masks and one voxel more: surfaces stay, memory goes.

    An image of one slice becomes 2D: beside it lies nothing that its inner voxels could border on.
    """
    if 1 in predicted.shape:
        axis = predicted.shape.index(1)
        predicted, reference = predicted.squeeze(axis), reference.squeeze(axis)
        spacing = np.delete(np.asarray(spacing, float), axis).tolist()
    both = np.argwhere(predicted | reference)
    low, high = both.min(axis=0), both.max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return np.pad(predicted[box], 1), np.pad(reference[box], 1), spacing


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence MONAI 1.6's warning about an argument that it passes to itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy.*", FutureWarning)
        yield


def _batch(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(np.array(mask, dtype=np.float32, order="C"))[None, None]


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}
