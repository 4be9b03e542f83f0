"""A DICOM series as one volume: CT, MR and PET, single frame or enhanced multi-frame.

A series is read as a volume only when its frames lie on one regular grid. What does not is
refused by :class:`~segunlearn.errors.UnsupportedSeriesError`, which names the series, the reason
and a way out. Tolerances:

- direction cosines of all frames agree within ``ORIENTATION_TOLERANCE``;
- frames lie on a straight line along their normal, tilted by less than ``TILT_TOLERANCE_DEG``
  (more is a gantry tilt);
- each frame lies within 2 % of the slice step of its even place (the best even grid), or within
  0.06 mm (positions rounded to a tenth of a millimetre), and never by more than a fifth of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from segunlearn.dicom.frames import Frame, deep_value, frames_of, refuse, refusing
from segunlearn.dicom.series_checks import check_image_type, check_images, check_rescale, image_type
from segunlearn.errors import UnsupportedSeriesError
from segunlearn.volumes import Volume

#: Largest difference of a direction cosine between frames of one series.
ORIENTATION_TOLERANCE = 2e-3
#: Largest angle between the line of positions and the frames' normal, in degrees.
TILT_TOLERANCE_DEG = 0.2
#: Positions closer than this (mm along the normal) are one position.
SAME_POSITION_MM = 1e-2

#: Attributes that explain why a series shows one position several times.
_TEMPORAL = (
    ("EchoTime", "echo times"),
    ("EffectiveEchoTime", "echo times"),
    ("TemporalPositionIdentifier", "temporal positions"),
    ("TemporalPositionIndex", "temporal positions"),
    ("DiffusionBValue", "b-values"),
    ("TriggerTime", "trigger times"),
    ("NominalCardiacTriggerDelayTime", "trigger times"),
    ("InversionTime", "inversion times"),
    ("AcquisitionNumber", "acquisitions"),
    ("ContentTime", "content times"),
    ("ImageType", "image types"),
)


@dataclass(frozen=True)
class SeriesGeometry:
    """Regular grid of a series.

    Parameters
    ----------
    frames
        In the order of Z: ``frames[z]`` fills ``array[:, :, z]``. Copies are dropped.
    shape
        Voxels along X (columns), Y (rows), Z (frames).
    affine
        4x4, voxel index to mm in RAS.
    orientation
        ImageOrientationPatient of the grid: that of the frames where they agree, else their mean.
    """

    frames: tuple[Frame, ...]
    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]


def volume_from_datasets(datasets: Sequence[Dataset]) -> Volume:
    """Read all instances of one series as one volume.

    Parameters
    ----------
    datasets
        Instances with pixel data and file meta information, in any order. Copies of an instance
        (one SOPInstanceUID twice with the same content) are dropped.

    Returns
    -------
    Volume
        float32 ``(X, Y, Z)``: X along a row (columns), Y along a column (rows), Z along the normal
        by growing position. Values after Rescale Slope and Intercept; affine voxel to RAS mm.
        Source: PS3.3 C.7.6.2.1.1 (equation C.7.6.2.1-1) and C.7.6.16.2.

    Raises
    ------
    UnsupportedSeriesError
        The series is not one regular grey-value volume, or cannot be decoded.
    """
    with refusing(datasets):
        pixels = _Pixels(datasets)
        geometry = _geometry(datasets, pixels)
        array = np.empty(geometry.shape, dtype=np.float32)
        for z, frame in enumerate(geometry.frames):
            array[:, :, z] = pixels(frame).T
            if not np.isfinite(array[:, :, z]).all():
                raise refuse(datasets, "holds voxels that are not finite", "Export it again.")
        return Volume(array, geometry.affine, str(datasets[0].get("Modality", "") or "OT"))


def geometry_from_datasets(datasets: Sequence[Dataset]) -> SeriesGeometry:
    """Grid of a series from its headers; pixel data are not needed.

    Raises
    ------
    UnsupportedSeriesError
        As for :func:`volume_from_datasets`; without pixels positions that occur twice are refused,
        because copies cannot be told from different images then.
    """
    with refusing(datasets):
        complete = all("PixelData" in dataset for dataset in datasets)
        return _geometry(datasets, _Pixels(datasets) if complete else None)


class _Pixels:
    """Frames in output units, each instance decoded once and only when it is asked for."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets
        self._decoded: dict[int, npt.NDArray[Any]] = {}

    def __call__(self, frame: Frame) -> npt.NDArray[np.float32]:
        """``(rows, columns)``."""
        if frame.dataset not in self._decoded:
            self._decoded[frame.dataset] = _decode(self._datasets, frame.dataset)
        raw = self._decoded[frame.dataset][frame.index]
        slope = frame.slope if np.isfinite(frame.slope) else 1.0
        intercept = frame.intercept if np.isfinite(frame.intercept) else 0.0
        return np.asarray(raw * slope + intercept, dtype=np.float32)


def _geometry(
    datasets: Sequence[Dataset], pixels: Callable[[Frame], npt.NDArray[np.float32]] | None
) -> SeriesGeometry:
    if not datasets:
        raise UnsupportedSeriesError("the series has no instances. Send it to the archive again.")
    check_images(datasets)
    kept = _without_copies(datasets)
    frames = [f for i in kept for f in frames_of(datasets, i)]
    check_image_type(datasets, len(frames))
    check_rescale(datasets, frames)
    orientation = _orientation(datasets, frames)
    row, column = _axes(datasets, orientation)
    normal = np.cross(row, column)
    if any(not np.allclose(f.spacing, frames[0].spacing, rtol=0.0, atol=1e-4) for f in frames):
        raise refuse(
            datasets, "has frames of different PixelSpacing", "Send one resolution as one series."
        )
    frames.sort(key=lambda f: float(f.position @ normal))
    frames = _without_repeats(datasets, frames, normal, pixels)
    step = _step(datasets, frames, normal)
    first = frames[0]  # in the order of Z, whatever order the archive sent them in
    lps = np.eye(4)
    lps[:3, 0] = row * first.spacing[1]
    lps[:3, 1] = column * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = first.position
    head = datasets[kept[0]]
    return SeriesGeometry(
        frames=tuple(frames),
        shape=(int(head.Columns), int(head.Rows), len(frames)),
        affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps,
        orientation=orientation,
    )


def _without_copies(datasets: Sequence[Dataset]) -> list[int]:
    """Return the indices of the instances, each SOPInstanceUID once."""
    seen: dict[str, int] = {}
    for i, dataset in enumerate(datasets):
        uid = str(dataset.get("SOPInstanceUID", "") or f"#{i}")
        if uid not in seen:
            seen[uid] = i
            continue
        other = datasets[seen[uid]]
        keys = ("PixelData", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope")
        if any(dataset.get(k) != other.get(k) for k in keys):
            raise refuse(
                datasets,
                f"holds two different images with the same SOPInstanceUID {uid}",
                "Remove the one that is not the original.",
            )
    return list(seen.values())


def _orientation(datasets: Sequence[Dataset], frames: Sequence[Frame]) -> npt.NDArray[np.float64]:
    """Return one orientation for all frames; which frame came first does not matter."""
    first = frames[0].orientation
    different = [
        f for f in frames if not np.allclose(f.orientation, first, atol=ORIENTATION_TOLERANCE)
    ]
    if different:
        planes = len({tuple(np.round(f.orientation, 2)) for f in frames})
        localizer = "LOCALIZER" in image_type(datasets[frames[0].dataset])
        kind = "is a localizer and " if localizer else ""
        raise refuse(
            datasets,
            f"{kind}mixes {max(planes, 2)} orientations",
            "Choose the series of one plane.",
        )
    if all(np.array_equal(f.orientation, first) for f in frames):
        return first
    return np.asarray(np.mean([f.orientation for f in frames], axis=0))


def _axes(
    datasets: Sequence[Dataset], orientation: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the unit directions of a row and of a column."""
    row, column = orientation[:3], orientation[3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.abs(lengths - 1).max() > 1e-2 or abs(row @ column) > 1e-2:
        raise refuse(
            datasets,
            "has an ImageOrientationPatient whose directions are not perpendicular unit vectors",
            "Export it again.",
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _without_repeats(
    datasets: Sequence[Dataset],
    frames: Sequence[Frame],
    normal: npt.NDArray[np.float64],
    pixels: Callable[[Frame], npt.NDArray[np.float32]] | None,
) -> list[Frame]:
    """Frames with one position each; copies of equal content are dropped."""
    kept: list[Frame] = []
    for frame in frames:
        if not kept or float((frame.position - kept[-1].position) @ normal) > SAME_POSITION_MM:
            kept.append(frame)
            continue
        offset = np.abs(frame.position - kept[-1].position).max()
        same = pixels is not None and offset <= SAME_POSITION_MM
        if not (same and pixels and np.array_equal(pixels(frame), pixels(kept[-1]))):
            positions = len({round(float(f.position @ normal), 1) for f in frames})
            raise refuse(
                datasets,
                f"shows one position several times: {len(frames)} images at {positions} "
                f"positions{_what_varies(datasets, frames)}",
                "Send each time point, echo or contrast as a series of its own.",
            )
    return kept


def _what_varies(datasets: Sequence[Dataset], frames: Sequence[Frame]) -> str:
    for keyword, words in _TEMPORAL:
        values = {str(deep_value(datasets[f.dataset], f.index, keyword)) for f in frames}
        if 1 < len(values) < len(frames) or (len(values) == 2 and len(frames) == 2):
            return f", {len(values)} {words}"
    return ""


def _step(
    datasets: Sequence[Dataset], frames: Sequence[Frame], normal: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Vector from one frame to the next, mm, LPS."""
    if len(frames) == 1:
        if not np.isfinite(frames[0].thickness):
            raise refuse(
                datasets,
                "is a single slice without SliceThickness and SpacingBetweenSlices",
                "Its third dimension is not known; choose a volume.",
            )
        return normal * frames[0].thickness
    positions = np.stack([f.position for f in frames])
    along = (positions - positions[0]) @ normal
    steps = np.diff(along)
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    length = float(step @ normal)
    tolerance = min(max(0.02 * length, 0.06), 0.2 * length)
    tilt = float(np.degrees(np.arccos(np.clip(length / np.linalg.norm(step), -1.0, 1.0))))
    if tilt > TILT_TOLERANCE_DEG and np.linalg.norm(step - length * normal) * len(frames) > 0.05:
        raise refuse(
            datasets,
            f"is sheared by {tilt:.1f} degrees (gantry tilt): its slices do not lie above each "
            "other",
            "Resample it to an upright grid first.",
        )
    index = np.arange(len(frames))
    even = np.polynomial.Polynomial.fit(index, along, 1)(index)
    if float(np.abs(along - even).max()) > tolerance:
        median = float(np.median(steps))
        gaps = [i for i, s in enumerate(steps) if s > 1.5 * median]
        if gaps and all(abs(s / median - round(s / median)) < 0.1 for s in steps):
            missing = sum(round(steps[i] / median) - 1 for i in gaps)
            reason = f"misses {missing} of {len(frames) + missing} slices"
        else:
            reason = f"has uneven slice gaps from {steps.min():.2f} to {steps.max():.2f} mm"
        raise refuse(datasets, reason, "Send the complete series, or one stack of even gaps.")
    drift = positions - positions[0] - np.outer(np.arange(len(frames)), step)
    drift -= np.outer(drift @ normal, normal)
    if float(np.linalg.norm(drift, axis=1).max()) > max(
        0.06, 0.05 * float(frames[0].spacing.min())
    ):
        raise refuse(
            datasets, "has slices that are shifted sideways", "Resample it to one grid first."
        )
    return np.asarray(step, dtype=np.float64)


def _decode(datasets: Sequence[Dataset], i: int) -> npt.NDArray[Any]:
    """Decode the stored pixel values of one instance, ``(frames, rows, columns)``."""
    dataset = datasets[i]
    try:
        array = dataset.pixel_array
    except MemoryError:
        raise
    except Exception as error:
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        raise refuse(
            datasets,
            f"cannot be decoded (transfer syntax {getattr(syntax, 'name', 'unknown')}; "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            "Send it uncompressed or in a lossless standard syntax.",
        ) from error
    return np.asarray(array).reshape(-1, int(dataset.Rows), int(dataset.Columns))
