"""Compare labels of two tags."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.scoring import ScoringMethod

from segunlearn.app.datastores import StudiesDatastore
from segunlearn.errors import SegUnlearnError
from segunlearn.volumes import Volume, read_volume

logger = logging.getLogger(__name__)


class DiceScoring(ScoringMethod):
    """Dice of two labels of each image, per structure and their mean."""

    def __init__(self, label_values: Callable[[], Mapping[str, int]]) -> None:
        super().__init__("Dice of the model's masks (original) against finished labels (final)")
        self._label_values = label_values

    def __call__(
        self, request: Mapping[str, Any], datastore: StudiesDatastore
    ) -> dict[str, dict[str, Any]]:
        """Compare ``request["y"]`` with ``request["y_pred"]``; note the result on the images.

        Returns
        -------
        dict
            By image id: ``dice`` (mean over structures that either label shows, 1 when neither
            shows any) and ``dice_per_label``.
        """
        truth, predicted = request.get("y", "final"), request.get("y_pred", "original")
        both = set(datastore.get_labeled_images(truth)) & set(
            datastore.get_labeled_images(predicted)
        )
        result = {}
        for image_id in datastore.without_forgotten(both):
            try:
                y = read_volume(Path(datastore.get_label_uri(image_id, truth)), label=True)
                p = read_volume(Path(datastore.get_label_uri(image_id, predicted)), label=True)
            except SegUnlearnError as error:
                logger.warning("an image is not scored: %s", error)
                continue
            if not y.same_grid(p):
                logger.warning(
                    "an image is not scored: its labels, of %s and %s voxels, do not lie on one "
                    "grid. It has changed since one of them was made, or the finished one was not "
                    "exported on its grid; segment it again, or export it again.", y.shape, p.shape,
                )  # fmt: skip
                continue
            score = dice_of(y, p, self._label_values())
            datastore.update_image_info(image_id, score)
            result[image_id] = score
        if result:
            mean = np.mean([score["dice"] for score in result.values()])
            logger.info("scored %d images, mean Dice %.3f", len(result), mean)
        elif both:
            logger.warning(
                "no image is scored, of %d with both labels, %s and %s",
                len(both), truth, predicted,
            )  # fmt: skip
        else:
            logger.warning("no image is scored: none has both labels, %s and %s", truth, predicted)
        return result


def dice_of(truth: Volume, predicted: Volume, values: Mapping[str, int]) -> dict[str, Any]:
    """Dice per structure, ``2 |A and B| / (|A| + |B|)``, and their mean.

    Parameters
    ----------
    truth, predicted
        Label maps on one grid.
    values
        Structures by name; empty: every value that occurs is a structure.
    """
    present = np.union1d(np.unique(truth.array), np.unique(predicted.array))
    named = dict(values) or {str(int(v)): int(v) for v in present if v != 0}
    per_label: dict[str, float | None] = {}
    for name, value in named.items():
        a, b = truth.array == value, predicted.array == value
        total = int(a.sum()) + int(b.sum())
        per_label[name] = 2 * int((a & b).sum()) / total if total else None
    found = [d for d in per_label.values() if d is not None]
    return {"dice": float(np.mean(found)) if found else 1.0, "dice_per_label": per_label}
