"""The frames of an image and their places in the patient, single frame or enhanced multi-frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from segunlearn.errors import SegUnlearnError, UnsupportedSeriesError


@dataclass(frozen=True)
class Frame:
    """One frame of a series and its place in the patient.

    Parameters
    ----------
    dataset, index
        Number of the dataset in the sequence given, and of the frame in it (from 0).
    position
        ImagePositionPatient, centre of the first voxel, mm, LPS.
    orientation
        ImageOrientationPatient: direction of a row, then of a column, LPS.
    spacing
        PixelSpacing: distance of rows, distance of columns, mm.
    thickness
        SliceThickness or SpacingBetweenSlices in mm, NaN when neither is given.
    slope, intercept
        Rescale to the output units (HU for CT), NaN when not given.
    """

    dataset: int
    index: int
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: npt.NDArray[np.float64]
    thickness: float
    slope: float
    intercept: float


def name_series(datasets: Sequence[Dataset]) -> str:
    """Name for messages: ``series 1.2.3 (CT)``; never a patient's name."""
    for dataset in datasets:
        try:
            uid, modality = str(dataset.SeriesInstanceUID), str(dataset.get("Modality", ""))
        except Exception:  # noqa: BLE001 - a damaged header must not hide the first error
            continue
        return f"series {uid}" + (f" ({modality})" if modality else "")
    return "series without SeriesInstanceUID"


def refuse(datasets: Sequence[Dataset], reason: str, remedy: str) -> UnsupportedSeriesError:
    """Make the error that names a series, the reason and a way out."""
    return UnsupportedSeriesError(f"{name_series(datasets)} {reason}. {remedy}")


class refusing:
    """Turn whatever a damaged header raises into an UnsupportedSeriesError."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (SegUnlearnError, MemoryError)):
            raise refuse(
                self._datasets,
                f"has a header that cannot be read ({type(error).__name__}: {error})",
                "Check the file with a DICOM validator and export it again.",
            ) from error


def frames_of(datasets: Sequence[Dataset], i: int) -> Iterator[Frame]:
    """Yield the frames of one instance in stored order.

    Raises
    ------
    UnsupportedSeriesError
        A frame has no position, orientation or spacing.
    """
    dataset = datasets[i]
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    if (per_frame or shared) and len(per_frame) != count:
        raise refuse(
            datasets,
            f"has {count} frames and {len(per_frame)} frame descriptions",
            "Export it again.",
        )
    if count > 1 and not per_frame:
        raise refuse(
            datasets,
            f"has an image of {count} frames without positions",
            "Export it as single frames or as an enhanced multi-frame image.",
        )
    for index in range(count):
        groups = [per_frame[index], *shared] if per_frame else []

        def find(sequence: str, keyword: str, groups: list[Dataset] = groups) -> Any:
            for group in groups:
                if group.get(sequence):
                    return group[sequence].value[0].get(keyword)
            return dataset.get(keyword)

        thickness = [
            number(find("PixelMeasuresSequence", k))
            for k in ("SliceThickness", "SpacingBetweenSlices")
        ]
        slope = number(find("PixelValueTransformationSequence", "RescaleSlope"))
        intercept = number(find("PixelValueTransformationSequence", "RescaleIntercept"))
        yield Frame(
            dataset=i,
            index=index,
            position=_vector(
                datasets,
                "ImagePositionPatient",
                find("PlanePositionSequence", "ImagePositionPatient"),
                3,
            ),
            orientation=_vector(
                datasets,
                "ImageOrientationPatient",
                find("PlaneOrientationSequence", "ImageOrientationPatient"),
                6,
            ),
            spacing=_vector(
                datasets, "PixelSpacing", find("PixelMeasuresSequence", "PixelSpacing"), 2
            ),
            thickness=next((t for t in thickness if np.isfinite(t) and t > 0), float("nan")),
            slope=slope if slope != 0 else float("nan"),
            intercept=intercept,
        )


def number(value: Any) -> float:
    """Return a header value as float, NaN when it is missing or no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _vector(
    datasets: Sequence[Dataset], keyword: str, value: Any, length: int
) -> npt.NDArray[np.float64]:
    if value is None or isinstance(value, (str, float, int)) or len(value) != length:
        raise refuse(
            datasets,
            f"has no usable {keyword}",
            "Without it the image has no place in the patient; choose a CT or MR volume.",
        )
    vector = np.array([number(v) for v in value], dtype=np.float64)
    if not np.isfinite(vector).all() or (keyword == "PixelSpacing" and vector.min() <= 0):
        raise refuse(datasets, f"has an invalid {keyword}", "Export it again.")
    return vector


def deep_value(dataset: Dataset, index: int, keyword: str) -> Any:
    """Value of a keyword in the dataset or in the functional groups of one frame."""
    if keyword in dataset:
        return dataset.get(keyword)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if index < len(per_frame):
        for element in per_frame[index]:
            if element.VR == "SQ" and element.value and keyword in element.value[0]:
                return element.value[0].get(keyword)
    return None
