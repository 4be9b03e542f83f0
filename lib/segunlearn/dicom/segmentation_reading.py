"""DICOM SEG as label maps, on the full grid of the image (PS3.3 A.51, C.8.20).

Read are BINARY, LABELMAP and FRACTIONAL segmentations of any maker. Each frame is put at its own
place: it may be cropped, flipped, or cut along another axis than the image, as long as its pixels
fall on voxels of the image; otherwise it is refused, for resampling a mask silently changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from segunlearn.dicom.dates import instant, iso_date_time
from segunlearn.dicom.frames import frames_of, number
from segunlearn.dicom.series import geometry_from_datasets
from segunlearn.errors import GeometryError, LabelError, SegUnlearnError, UnsupportedSeriesError
from segunlearn.volumes import Volume

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"

#: Transfer syntaxes whose single bits are packed from the lowest bit of each byte on.
_PACKED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)

#: How far a pixel of a SEG may lie beside a voxel of the image, in voxels: in the plane of the
#: image, and along its slices, where true positions may differ from the even grid (``series``).
IN_PLANE_TOLERANCE = 0.1
SLICE_TOLERANCE = 0.3


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
        if not is_segmentation(header):
            raise UnsupportedSeriesError(f"{_name(header)} is no segmentation.")
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
        grid = _grid(dataset, source)
        masks: dict[int, npt.NDArray[np.bool_]] = {
            segment: np.zeros(grid.shape, dtype=np.bool_) for segment in _segment_names(dataset)
        }
        for segment, pixels, to_voxel in _placed_frames(dataset, grid):
            if segment not in masks:
                raise UnsupportedSeriesError(
                    f"{_name(dataset)} has a frame of segment {segment}, which it does not "
                    "describe. Export it again."
                )
            _put(dataset, masks[segment], pixels, to_voxel)
        names = _segment_names(dataset)
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
    segments = read_segments(dataset, source)
    grid = _grid(dataset, source)
    values = _values_of(dataset, segments, label_names)
    array = np.zeros(grid.shape, dtype=np.int16)
    owner: dict[int, str] = {}
    for segment in segments:
        if segment.number not in values:
            continue
        value = values[segment.number]
        clash = array[segment.mask]
        if clash.any():
            other = int(clash[clash != 0][0])
            raise LabelError(
                f"{_name(dataset)}: segments {owner[other]!r} and {segment.name!r} overlap in "
                f"{int((clash != 0).sum())} voxels, and a label map holds one label a voxel. "
                "Ask for one of them, or read them apart with read_segments."
            )
        array[segment.mask] = value
        owner[value] = segment.name
    names = dict(label_names) if label_names is not None else owner
    return Volume(array, grid.affine, "SEG"), names


def _values_of(
    dataset: Dataset, segments: Sequence[Segment], label_names: Mapping[int, str] | None
) -> dict[int, int]:
    """Segment number to value in the label map."""
    if label_names is None:
        return {s.number: s.number for s in segments}
    wanted = {name.strip().casefold(): value for value, name in label_names.items()}
    values: dict[int, int] = {}
    for segment in segments:
        value = wanted.get(segment.name.strip().casefold())
        if value is None:
            continue
        if value in values.values():
            raise LabelError(
                f"{_name(dataset)} has two segments named {segment.name!r}. Rename one."
            )
        values[segment.number] = value
    if not values:
        raise LabelError(
            f"{_name(dataset)} holds none of the labels {sorted(label_names.values())}, but "
            f"{sorted({s.name for s in segments})}. Use the model's label names."
        )
    return values


def _grid(dataset: Dataset, source: Volume | Sequence[Dataset]) -> Volume:
    if isinstance(source, Volume):
        return Volume(np.empty((*source.shape,), dtype=np.uint8), source.affine)
    geometry = geometry_from_datasets(source)
    theirs = str(source[0].get("FrameOfReferenceUID", "") or "")
    mine = str(dataset.get("FrameOfReferenceUID", "") or "")
    series = str(source[0].get("SeriesInstanceUID", ""))
    if mine and theirs and mine != theirs and series not in references_series(dataset):
        raise GeometryError(
            f"{_name(dataset)} was made for another series and lies in another frame of reference "
            f"than series {series}. Choose the series it was drawn on."
        )
    return Volume(np.empty(geometry.shape, dtype=np.uint8), geometry.affine)


def _placed_frames(
    dataset: Dataset, grid: Volume
) -> Iterator[tuple[int, npt.NDArray[np.bool_], npt.NDArray[np.float64]]]:
    """Yield segment number, pixels ``(rows, columns)`` and the affine pixel -> voxel."""
    if not is_segmentation(dataset):
        raise UnsupportedSeriesError(f"{_name(dataset)} is no segmentation. Choose a SEG.")
    kind = str(dataset.get("SegmentationType", "") or "BINARY")
    label_map = str(dataset.SOPClassUID) == LABEL_MAP_STORAGE or kind == "LABELMAP"
    if "DimensionOrganizationType" in dataset and "TILED" in str(dataset.DimensionOrganizationType):
        raise UnsupportedSeriesError(
            f"{_name(dataset)} is a tiled microscopy segmentation. Choose one of a CT or MR image."
        )
    pixels = _decode(dataset)
    to_voxel = np.linalg.inv(grid.affine)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    for frame in frames_of([dataset], 0):
        row, column = frame.orientation[:3], frame.orientation[3:]
        place = np.eye(4)
        place[:3, 0] = row * frame.spacing[1]
        place[:3, 1] = column * frame.spacing[0]
        place[:3, 2] = np.cross(row, column)
        place[:3, 3] = frame.position
        affine = to_voxel @ lps_to_ras @ place
        image = pixels[frame.index]
        if label_map:
            for value in np.unique(image[image > 0]):
                if int(value) != number(dataset.get("PixelPaddingValue")):
                    yield int(value), image == value, affine
            continue
        yield _segment_of(dataset, frame.index), _as_mask(dataset, kind, image), affine


def _as_mask(dataset: Dataset, kind: str, image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if kind == "FRACTIONAL":
        top = int(dataset.get("MaximumFractionalValue", 255) or 255)
        if not np.isin(image, (0, top)).all():
            raise UnsupportedSeriesError(
                f"{_name(dataset)} is fractional "
                f"({dataset.get('SegmentationFractionalType', 'type unknown')}) with values "
                f"between 0 and {top}. Threshold it into a binary segmentation first."
            )
    return np.asarray(image != 0)


def _segment_of(dataset: Dataset, index: int) -> int:
    groups = [dataset.PerFrameFunctionalGroupsSequence[index]]
    groups += list(dataset.get("SharedFunctionalGroupsSequence") or [])
    for group in groups:
        if group.get("SegmentIdentificationSequence"):
            return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    raise UnsupportedSeriesError(f"{_name(dataset)}: frame {index + 1} names no segment.")


def _put(
    dataset: Dataset,
    mask: npt.NDArray[np.bool_],
    pixels: npt.NDArray[np.bool_],
    to_voxel: npt.NDArray[np.float64],
) -> None:
    """Set the voxels under the pixels of one frame."""
    rows, columns = np.nonzero(pixels)
    corners = np.array([[0, 0], [pixels.shape[1] - 1, pixels.shape[0] - 1]])
    every = np.concatenate([np.stack([columns, rows], axis=1), corners])
    exact = every @ to_voxel[:3, :2].T + to_voxel[:3, 3]
    voxels = np.rint(exact).astype(np.int64)
    off = np.abs(exact - voxels).max(axis=0)
    unit = np.abs(to_voxel[:3, :2])
    one_to_one = np.allclose(unit.max(axis=0), 1.0, atol=0.01) and np.allclose(
        unit.sum(axis=0), 1.0, atol=0.03
    )
    if not one_to_one or (off > (IN_PLANE_TOLERANCE, IN_PLANE_TOLERANCE, SLICE_TOLERANCE)).any():
        raise GeometryError(
            f"{_name(dataset)} does not lie on the voxels of the image: its pixels are up to "
            f"{float(off.max()):.2f} voxels beside them. Resample it to the image first."
        )
    x, y, z = voxels[: len(rows)].T
    inside = np.ones(len(rows), dtype=np.bool_)
    for axis, size in zip((x, y, z), mask.shape, strict=True):
        inside &= (axis >= 0) & (axis < size)
    if not inside.all():
        raise GeometryError(
            f"{_name(dataset)} reaches out of the image: {int((~inside).sum())} pixels lie outside "
            "its grid. Choose the series it was drawn on."
        )
    mask[x, y, z] = True


def _decode(dataset: Dataset) -> npt.NDArray[Any]:
    try:
        shape = (
            int(dataset.get("NumberOfFrames", 1) or 1),
            int(dataset.Rows),
            int(dataset.Columns),
        )
        syntax = dataset.file_meta.TransferSyntaxUID
        if int(dataset.BitsAllocated) == 1 and syntax in _PACKED:
            # pydicom 3.0 takes the padding of small frames for further frames
            packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
            bits = np.unpackbits(packed, count=int(np.prod(shape)), bitorder="little")
            return bits.reshape(shape)
        array = np.asarray(dataset.pixel_array).reshape(-1, *shape[1:])
        if len(array) < shape[0]:
            raise ValueError(f"{len(array)} of {shape[0]} frames")
        return array[: shape[0]]
    except MemoryError:
        raise
    except Exception as error:
        raise UnsupportedSeriesError(
            f"{_name(dataset)} cannot be decoded ({type(error).__name__}). Send it uncompressed."
        ) from error


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


def _name(dataset: Dataset) -> str:
    try:
        return f"segmentation {dataset.get('SOPInstanceUID', 'without SOPInstanceUID')}"
    except Exception:  # noqa: BLE001 - a damaged header must not hide the first error
        return "segmentation without SOPInstanceUID"


class _refusing:
    """Turn whatever a damaged header raises into an UnsupportedSeriesError."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (SegUnlearnError, MemoryError)):
            raise UnsupportedSeriesError(
                f"{_name(self._dataset)} has a header that cannot be read "
                f"({type(error).__name__}: {error}). Export it again."
            ) from error
