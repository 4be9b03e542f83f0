"""The frames of a DICOM SEG, decoded one at a time and put on the voxels of an image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from segunlearn.dicom.frames import frames_of, number
from segunlearn.errors import GeometryError, SegUnlearnError, UnsupportedSeriesError
from segunlearn.volume_bounds import MAX_VOXELS

LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"

#: Transfer syntaxes whose single bits are packed from the lowest bit of each byte on.
_PACKED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)

#: How far a pixel of a SEG may lie beside a voxel of the image, in voxels: in the plane of the
#: image, and along its slices, where true positions may differ from the even grid (``series``).
IN_PLANE_TOLERANCE = 0.1
SLICE_TOLERANCE = 0.3

#: Indices of voxels along each axis of an image.
Voxels = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def named(dataset: Dataset) -> str:
    """Name of a SEG for messages."""
    try:
        return f"segmentation {dataset.get('SOPInstanceUID', 'without SOPInstanceUID')}"
    except Exception:  # noqa: BLE001 - a damaged header must not hide the first error
        return "segmentation without SOPInstanceUID"


def placed_frames(
    dataset: Dataset, affine: npt.NDArray[np.float64]
) -> Iterator[tuple[int, npt.NDArray[np.bool_], npt.NDArray[np.float64]]]:
    """Yield the frames of a SEG; those of a label map once for each of its values.

    Parameters
    ----------
    dataset
        The SEG with its pixels.
    affine
        Of the image: voxel index to mm in RAS.

    Yields
    ------
    int, array, array
        Segment number, its pixels ``(rows, columns)``, and the affine from ``(column, row, 0)`` to
        a voxel index of the image.

    Raises
    ------
    UnsupportedSeriesError
        It was cut off, is fractional, tiled or damaged, or tells of other frames than it holds.
    """
    kind = str(dataset.get("SegmentationType", "") or "BINARY")
    label_map = str(dataset.SOPClassUID) == LABEL_MAP_STORAGE or kind == "LABELMAP"
    if "DimensionOrganizationType" in dataset and "TILED" in str(dataset.DimensionOrganizationType):
        raise UnsupportedSeriesError(
            f"{named(dataset)} is a tiled microscopy segmentation. Choose one of a CT or MR image."
        )
    to_voxel = np.linalg.inv(affine)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    # the descriptions of the frames come first: they say whether there are so many
    for frame, image in zip(frames_of([dataset], 0), _decoded(dataset), strict=True):
        row, column = frame.orientation[:3], frame.orientation[3:]
        place = np.eye(4)
        place[:3, 0] = row * frame.spacing[1]
        place[:3, 1] = column * frame.spacing[0]
        place[:3, 2] = np.cross(row, column)
        place[:3, 3] = frame.position
        placed = to_voxel @ lps_to_ras @ place
        if label_map:
            for value in np.unique(image[image > 0]):
                if int(value) != number(dataset.get("PixelPaddingValue")):
                    yield int(value), image == value, placed
            continue
        yield _segment_of(dataset, frame.index), _as_mask(dataset, kind, image), placed


def _as_mask(dataset: Dataset, kind: str, image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if kind == "FRACTIONAL":
        top = int(dataset.get("MaximumFractionalValue", 255) or 255)
        if not np.isin(image, (0, top)).all():
            raise UnsupportedSeriesError(
                f"{named(dataset)} is fractional "
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
    raise UnsupportedSeriesError(f"{named(dataset)}: frame {index + 1} names no segment.")


def voxels_under(
    dataset: Dataset,
    shape: tuple[int, ...],
    pixels: npt.NDArray[np.bool_],
    to_voxel: npt.NDArray[np.float64],
) -> Voxels:
    """Voxels of an image of a shape that lie under the pixels of one frame.

    Raises
    ------
    GeometryError
        Pixels lie beside the voxels, or outside the image.
    """
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
            f"{named(dataset)} does not lie on the voxels of the image: its pixels are up to "
            f"{float(off.max()):.2f} voxels beside them. Resample it to the image first."
        )
    x, y, z = voxels[: len(rows)].T
    inside = np.ones(len(rows), dtype=np.bool_)
    for axis, size in zip((x, y, z), shape, strict=True):
        inside &= (axis >= 0) & (axis < size)
    if not inside.all():
        raise GeometryError(
            f"{named(dataset)} reaches out of the image: {int((~inside).sum())} pixels lie outside "
            "its grid. Choose the series it was drawn on."
        )
    return x, y, z


def _decoded(dataset: Dataset) -> Iterator[npt.NDArray[Any]]:
    """Yield the stored values of each frame, ``(rows, columns)``."""
    try:
        count = int(dataset.get("NumberOfFrames", 1) or 1)
        shape = int(dataset.Rows), int(dataset.Columns)
        size, bits = shape[0] * shape[1], int(dataset.BitsAllocated)
        syntax = dataset.file_meta.TransferSyntaxUID
        if size > MAX_VOXELS:
            raise UnsupportedSeriesError(
                f"{named(dataset)} tells of {size} pixels a frame. At most {MAX_VOXELS} are read."
            )
        held, needed = len(dataset.get("PixelData") or b""), -(-count * size * bits // 8)
        if not syntax.is_encapsulated and held < needed:
            raise UnsupportedSeriesError(
                f"{named(dataset)} was cut off: {held} of {needed} bytes of its pixels are there. "
                "Send or copy it again, or wait until that has ended."
            )
        if bits == 1 and syntax in _PACKED:
            # pydicom 3.0 takes the padding of small frames for further frames
            packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
            for start in range(0, count * size, size):
                first, skip = divmod(start, 8)
                frame = np.unpackbits(
                    packed[first : first + -(-(skip + size) // 8)], bitorder="little"
                )
                yield frame[skip : skip + size].reshape(shape)
            return
        found = 0
        for frame in islice(iter_pixels(dataset), count):
            found += 1
            yield frame.reshape(shape)
        if found < count:
            raise ValueError(f"{found} of {count} frames")
    except (MemoryError, SegUnlearnError):
        raise
    except Exception as error:
        raise UnsupportedSeriesError(
            f"{named(dataset)} cannot be decoded ({type(error).__name__}). Send it uncompressed."
        ) from error
