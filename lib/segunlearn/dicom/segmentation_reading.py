"""DICOM SEG as label maps, on the full grid of the image (PS3.3 A.51, C.8.20).

Read are BINARY, LABELMAP and FRACTIONAL segmentations of any maker. Each frame is put at its own
place: it may be cropped, flipped, or cut along another axis than the image, as long as its pixels
fall on voxels of the image; otherwise it is refused, for resampling a mask silently changes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from segunlearn.dicom.dates import instant, iso_date_time
from segunlearn.dicom.segmentation_frames import (
    LABEL_MAP_STORAGE,
    Voxels,
    named,
    placed_frames,
    voxels_under,
)
from segunlearn.dicom.series import geometry_from_datasets
from segunlearn.errors import GeometryError, LabelError, SegUnlearnError, UnsupportedSeriesError
from segunlearn.volumes import Volume

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass(frozen=True)
class SegmentationRecord:
    """What a SEG is, from its header.

    Parameters
    ----------
    study_instance_uid, series_instance_uid, sop_instance_uid
        Of the SEG itself.
    created
        ISO 8601 date and time of the content, as the maker's clock showed it, in UTC where the
        header tells the offset; empty when there is no date.
    author
        ContentCreatorName (0070,0084) without trailing ``^``.
    label, description
        ContentLabel (0070,0080), ContentDescription or SeriesDescription.
    segments
        Segment number to SegmentLabel.
    automatic
        Segments that a machine made alone: SegmentAlgorithmType (0062,0008) is AUTOMATIC.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    created: str = ""
    author: str = ""
    label: str = ""
    description: str = ""
    segments: Mapping[int, str] = field(default_factory=dict)
    automatic: frozenset[int] = frozenset()

    @property
    def age(self) -> tuple[str, str]:
        """What sorts segmentations from the oldest to the newest, whoever made them."""
        return instant(self.created), self.sop_instance_uid


@dataclass(frozen=True)
class Segment:
    """One segment on the grid of the image.

    Parameters
    ----------
    number
        SegmentNumber (0062,0004), from 1.
    name
        SegmentLabel (0062,0005).
    mask
        bool ``(X, Y, Z)`` on the image's grid.
    """

    number: int
    name: str
    mask: npt.NDArray[np.bool_]


def is_segmentation(dataset: Dataset) -> bool:
    """Whether an instance is a SEG."""
    return str(dataset.get("SOPClassUID", "")) in (SEGMENTATION_STORAGE, LABEL_MAP_STORAGE)


def describe_segmentation(header: Dataset) -> SegmentationRecord:
    """Read what a SEG is from its header; pixels are not needed.

    Raises
    ------
    UnsupportedSeriesError
        Not a SEG, or without identifiers.
    """
    with _refusing(header):
        _check_segmentation(header)
        return SegmentationRecord(
            study_instance_uid=str(header.StudyInstanceUID),
            series_instance_uid=str(header.SeriesInstanceUID),
            sop_instance_uid=str(header.SOPInstanceUID),
            created=_created(header),
            author=str(header.get("ContentCreatorName") or "").rstrip("^"),
            label=str(header.get("ContentLabel") or ""),
            description=str(
                header.get("ContentDescription") or header.get("SeriesDescription") or ""
            ),
            segments=_segment_names(header),
            automatic=frozenset(
                int(item.SegmentNumber)
                for item in header.get("SegmentSequence") or []
                if str(item.get("SegmentAlgorithmType") or "").strip() == "AUTOMATIC"
            ),
        )


def references_series(header: Dataset) -> tuple[str, ...]:
    """SeriesInstanceUIDs of the images that a SEG was made from."""
    with _refusing(header):
        items = [
            *(header.get("ReferencedSeriesSequence") or []),
            *(
                series
                for study in header.get("StudiesContainingOtherReferencedInstancesSequence") or []
                for series in study.get("ReferencedSeriesSequence") or []
            ),
        ]
        found = dict.fromkeys(str(i.get("SeriesInstanceUID", "")) for i in items)
        return tuple(uid for uid in found if uid)


def read_segments(dataset: Dataset, source: Volume | Sequence[Dataset]) -> list[Segment]:
    """Read every segment as a mask of its own; segments may overlap.

    Parameters
    ----------
    dataset
        The SEG with its pixels.
    source
        The image: a volume, or the instances of its series (headers are enough).

    Returns
    -------
    list of Segment
        By segment number; a segment without frames has an empty mask.

    Raises
    ------
    GeometryError
        The SEG does not lie on voxels of the image, or reaches out of it.
    UnsupportedSeriesError
        Not a SEG, damaged, or fractional with values between none and all.
    """
    with _refusing(dataset):
        grid, names = _grid(dataset, source), _segment_names(dataset)
        masks = {segment: np.zeros(grid.shape, dtype=np.bool_) for segment in names}
        for segment, voxels in _frames_on(grid, dataset, names, masks):
            masks[segment][voxels] = True
        return [Segment(n, names[n], masks[n]) for n in sorted(masks)]


def read_segmentation(
    dataset: Dataset,
    source: Volume | Sequence[Dataset],
    *,
    label_names: Mapping[int, str] | None = None,
) -> tuple[Volume, dict[int, str]]:
    """Read a SEG as one label map.

    Parameters
    ----------
    dataset, source
        As for :func:`read_segments`.
    label_names
        Value wanted for each segment name (compared without case); segments of other names are
        left out. Without it the values are the segment numbers.

    Returns
    -------
    Volume, dict
        int16 ``(X, Y, Z)`` on the full grid of the image, and value to name of all labels asked
        for, with those that have no voxel.

    Raises
    ------
    LabelError
        Two wanted segments overlap (a voxel has one label), two segments have one name, or none of
        the names is there.
    GeometryError, UnsupportedSeriesError
        As for :func:`read_segments`.
    """
    with _refusing(dataset):
        grid, names = _grid(dataset, source), _segment_names(dataset)
        values = _values_of(dataset, names, label_names)
        segment_of = {value: segment for segment, value in values.items()}
        array = np.zeros(grid.shape, dtype=np.int16)
        clashes: Counter[tuple[int, int]] = Counter()
        for segment, voxels in _frames_on(grid, dataset, names, values):
            before = array[voxels]
            other = before[(before != 0) & (before != values[segment])]
            for value, count in zip(*np.unique(other, return_counts=True), strict=True):
                first = segment_of[int(value)]
                clashes[min(first, segment), max(first, segment)] += int(count)
            array[voxels] = values[segment]
        for (one, two), count in sorted(clashes.items())[:1]:
            raise LabelError(
                f"{named(dataset)}: segments {names[one]!r} and {names[two]!r} overlap in "
                f"{count} voxels, and a label map holds one label a voxel. Ask for one of them, or "
                "read them apart with read_segments."
            )
        told = {values[n]: names[n] for n in values} if label_names is None else dict(label_names)
        return Volume(array, grid.affine, "SEG"), told


def _frames_on(
    grid: Volume, dataset: Dataset, names: Mapping[int, str], wanted: Collection[int]
) -> Iterator[tuple[int, Voxels]]:
    """Yield the voxels under each frame of the wanted segments, one frame in memory at a time."""
    for segment, pixels, to_voxel in placed_frames(dataset, grid.affine):
        if segment not in names:
            raise UnsupportedSeriesError(
                f"{named(dataset)} has a frame of segment {segment}, which it does not describe. "
                "Export it again."
            )
        if segment in wanted:
            yield segment, voxels_under(dataset, grid.shape, pixels, to_voxel)


def _values_of(
    dataset: Dataset, names: Mapping[int, str], label_names: Mapping[int, str] | None
) -> dict[int, int]:
    """Segment number to value in the label map."""
    if label_names is None:
        return {segment: segment for segment in sorted(names)}
    wanted = {name.strip().casefold(): value for value, name in label_names.items()}
    values: dict[int, int] = {}
    for segment, name in sorted(names.items()):
        value = wanted.get(name.strip().casefold())
        if value is None:
            continue
        if value in values.values():
            raise LabelError(f"{named(dataset)} has two segments named {name!r}. Rename one.")
        values[segment] = value
    if not values:
        raise LabelError(
            f"{named(dataset)} holds none of the labels {sorted(label_names.values())}, but "
            f"{sorted(set(names.values()))}. Use the model's label names."
        )
    return values


def _check_segmentation(dataset: Dataset) -> None:
    if not is_segmentation(dataset):
        raise UnsupportedSeriesError(f"{named(dataset)} is no segmentation. Choose a SEG.")


def _grid(dataset: Dataset, source: Volume | Sequence[Dataset]) -> Volume:
    _check_segmentation(dataset)
    if isinstance(source, Volume):
        return Volume(np.empty((*source.shape,), dtype=np.uint8), source.affine)
    geometry = geometry_from_datasets(source)
    theirs = str(source[0].get("FrameOfReferenceUID", "") or "")
    mine = str(dataset.get("FrameOfReferenceUID", "") or "")
    series = str(source[0].get("SeriesInstanceUID", ""))
    if mine and theirs and mine != theirs and series not in references_series(dataset):
        raise GeometryError(
            f"{named(dataset)} was made for another series and lies in another frame of reference "
            f"than series {series}. Choose the series it was drawn on."
        )
    return Volume(np.empty(geometry.shape, dtype=np.uint8), geometry.affine)


def _segment_names(header: Dataset) -> dict[int, str]:
    """Segment number to label; number 0 of a label map is its background."""
    label_map = str(header.get("SOPClassUID", "")) == LABEL_MAP_STORAGE
    names: dict[int, str] = {}
    for item in header.get("SegmentSequence") or []:
        segment = int(item.SegmentNumber)
        if segment == 0 and label_map:
            continue
        names[segment] = str(item.get("SegmentLabel") or f"segment {segment}")
    return names


def _created(header: Dataset) -> str:
    for kind in ("Content", "Series", "InstanceCreation"):
        found = iso_date_time(
            header.get(f"{kind}Date"),
            header.get(f"{kind}Time"),
            header.get("TimezoneOffsetFromUTC"),
        )
        if found:
            return found
    return ""


class _refusing:
    """Turn whatever a damaged header raises into an UnsupportedSeriesError."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (SegUnlearnError, MemoryError)):
            raise UnsupportedSeriesError(
                f"{named(self._dataset)} has a header that cannot be read "
                f"({type(error).__name__}: {error}). Export it again."
            ) from error
