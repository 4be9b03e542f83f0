"""Label maps as DICOM SEG, written with highdicom (PS3.3 A.51, C.8.20).

Segments are of type BINARY: one a label, numbered in the order of the label values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from highdicom import (
    AlgorithmIdentificationSequence,
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
)
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DSfloat

from segunlearn import __version__
from segunlearn.dicom.anatomy import coded_label
from segunlearn.dicom.dates import beside_study
from segunlearn.dicom.frames import name_series, refusing
from segunlearn.dicom.given_values import copy_given
from segunlearn.dicom.series import SeriesGeometry, geometry_from_datasets
from segunlearn.errors import (
    GeometryError,
    InvalidInputError,
    LabelError,
    UnsupportedSeriesError,
)
from segunlearn.volumes import GRID_TOLERANCE_MM, Volume

#: Attributes of patient and study that are copied as they are.
_COPIED = (
    *("PatientID", "IssuerOfPatientID", "PatientAge", "StudyID", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName", "Modality", "Manufacturer"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)


@dataclass(frozen=True)
class Algorithm:
    """What made a mask, for SegmentationAlgorithmIdentificationSequence (0062,0007).

    Parameters
    ----------
    name, version
        E.g. the model and the first digits of its weights' SHA-256.
    corrected
        A person changed the mask: SEMIAUTOMATIC instead of AUTOMATIC.
    parameters
        Settings that are recorded with it.
    """

    name: str
    version: str
    corrected: bool = False
    parameters: Mapping[str, str] | None = None


def write_segmentation(
    label: Volume,
    source_datasets: Sequence[Dataset],
    label_names: Mapping[int, str],
    *,
    author: str = "",
    algorithm: Algorithm | None = None,
    content_label: str = "SEGMENTATION",
    description: str = "",
    series_instance_uid: str | None = None,
    series_number: int = 300,
    created: datetime | None = None,
) -> Segmentation:
    """Make a SEG of a label map.

    Parameters
    ----------
    label
        Integers ``(X, Y, Z)`` on the grid of the image; axes may be swapped or reversed, as
        viewers save them.
    source_datasets
        All instances of the image's series; headers are enough.
    label_names
        Value to name of every label that the map may hold; each becomes a segment with coded name
        (``anatomy``), also one without voxels. Value 0 is the background and has none.
    author
        Person who made or corrected it, ``Family^Given`` or a plain name.
    algorithm
        None for a mask drawn by a person.
    content_label, description
        ContentLabel (code string, 16 characters), ContentDescription and SeriesDescription.
    series_instance_uid, series_number
        Series of the SEG; a new one by default.
    created
        Time of the content, without a zone local time of this machine; now by default.

    Returns
    -------
    highdicom.seg.Segmentation
        Explicit VR Little Endian, ready to be stored. An empty map is written too: its frames are
        there and hold zeros.

    Raises
    ------
    GeometryError
        The label map does not lie on the grid of the image.
    LabelError
        The map holds values without name, or a name is unusable or double.
    UnsupportedSeriesError
        The series is not one regular volume.
    InvalidInputError
        Author, content label or description cannot stand in a header.
    """
    geometry = geometry_from_datasets(source_datasets)
    if geometry.shape[0] * geometry.shape[1] < 8:
        # highdicom 0.28 packs the bits of such frames one by one, against PS3.5 section 8.1.1
        raise UnsupportedSeriesError(
            f"{name_series(source_datasets)} has slices of less than 8 pixels. Choose an image."
        )
    array = _on_grid(label, geometry)
    numbers = _segment_numbers(array, label_names)
    name = _person_name(author)
    if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", content_label):
        raise InvalidInputError(
            f"content label {content_label!r}: use 1 to 16 of A-Z, 0-9, space and underscore."
        )
    description = description or ", ".join(label_names[v] for v in numbers)
    with refusing(source_datasets):
        return _construct(
            geometry,
            source_datasets,
            np.ascontiguousarray(_renumber(array, numbers).transpose(2, 1, 0)),
            [_describe(n, label_names[v], algorithm) for v, n in numbers.items()],
            content_creator_name=name,
            content_label=content_label,
            content_description=description[:64],
            series_description=description[:64],
            series_instance_uid=series_instance_uid or generate_uid(),
            series_number=series_number,
            created=created or datetime.now(),
        )


def _on_grid(label: Volume, geometry: SeriesGeometry) -> npt.NDArray[np.int64]:
    """Label map with the axes of the image."""
    array, affine = np.asarray(label.array), label.affine
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer):
        raise LabelError(
            f"a label map holds whole numbers (X, Y, Z), this one has {array.ndim} axes of "
            f"{array.dtype}. Convert it first."
        )
    wanted = nib.orientations.io_orientation(  # type: ignore[no-untyped-call]
        np.linalg.inv(affine) @ geometry.affine
    )  # axes of the image in terms of the label's
    if not np.isnan(wanted).any():
        turn = _inverse(wanted)
        turned = nib.orientations.inv_ornt_aff(turn, array.shape)  # type: ignore[no-untyped-call]
        array = nib.orientations.apply_orientation(array, turn)  # type: ignore[no-untyped-call]
        affine = affine @ turned
    if array.shape != geometry.shape:
        raise GeometryError(
            f"the label map has {array.shape} voxels, its image {geometry.shape}. Save the label "
            "on the grid of the image."
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in array.shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(8)])
    distance = np.abs((affine - geometry.affine)[:3] @ corners).max()
    tolerance = max(GRID_TOLERANCE_MM, 0.02 * float(min(label.spacing)))
    if distance > tolerance:
        raise GeometryError(
            f"the label map lies up to {distance:.3f} mm beside its image. Resample it to the "
            "image first."
        )
    return np.asarray(array, dtype=np.int64)


def _inverse(orientation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Orientation that undoes another one."""
    result = np.empty_like(orientation)
    for axis, (to, flip) in enumerate(orientation):
        result[int(to)] = (axis, flip)
    return result


def _segment_numbers(
    array: npt.NDArray[np.int64], label_names: Mapping[int, str]
) -> dict[int, int]:
    values = sorted(int(v) for v in label_names if int(v) != 0)
    if not values or values[0] < 0:
        raise LabelError("a SEG needs at least one label name, with a value above 0.")
    unknown = sorted(set(np.unique(array).tolist()) - {0, *values})
    if unknown:
        raise LabelError(
            f"the label map holds the values {unknown[:8]}, which have no name. Names are known "
            f"for {values}."
        )
    names = [label_names[v].strip().casefold() for v in values]
    if len(set(names)) < len(names):
        raise LabelError(f"two labels have one name: {sorted(label_names.values())}. Rename one.")
    return {value: i for i, value in enumerate(values, start=1)}


def _renumber(array: npt.NDArray[np.int64], numbers: Mapping[int, int]) -> npt.NDArray[Any]:
    table = np.zeros(max(numbers) + 1, dtype=np.uint8 if len(numbers) < 256 else np.uint16)
    for value, segment in numbers.items():
        table[value] = segment
    return np.asarray(table[array])


def _describe(segment: int, name: str, algorithm: Algorithm | None) -> SegmentDescription:
    label = coded_label(name)
    kind = SegmentAlgorithmTypeValues.MANUAL
    identification = None
    if algorithm is not None:
        kind = (
            SegmentAlgorithmTypeValues.SEMIAUTOMATIC
            if algorithm.corrected
            else SegmentAlgorithmTypeValues.AUTOMATIC
        )
        identification = AlgorithmIdentificationSequence(
            name=algorithm.name[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=algorithm.version[:64],
            parameters=dict(algorithm.parameters) if algorithm.parameters else None,
        )
    description = SegmentDescription(
        segment_number=segment,
        segment_label=label.name,
        segmented_property_category=label.category,
        segmented_property_type=label.kind,
        algorithm_type=kind,
        algorithm_identification=identification,
    )
    if label.laterality is not None:
        modifier = _code_item(label.laterality)
        description.SegmentedPropertyTypeCodeSequence[
            0
        ].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _person_name(author: str) -> str | None:
    author = author.strip()
    if not author:
        return None
    if len(author) > 63 or re.search(r"[\\=]", author) or not author.isprintable():
        raise InvalidInputError(
            "the author's name cannot stand in a DICOM header: at most 63 printable characters, "
            "without backslash and equals sign."
        )
    return author if "^" in author else f"{author}^"


def _construct(
    geometry: SeriesGeometry,
    sources: Sequence[Dataset],
    pixels: npt.NDArray[Any],
    descriptions: Sequence[SegmentDescription],
    *,
    created: datetime,
    **options: Any,
) -> Segmentation:
    """Hand highdicom clean headers: it refuses what real series hold."""
    first = sources[geometry.frames[0].dataset]
    created, offset = beside_study(created, first)
    series = str(first.SeriesInstanceUID)
    reference = str(first.get("FrameOfReferenceUID") or "") or generate_uid(entropy_srcs=[series])
    multi_frame = any(
        "PerFrameFunctionalGroupsSequence" in sources[f.dataset] for f in geometry.frames
    )
    orientation = [_ds(v) for v in geometry.orientation]
    measures = PixelMeasuresSequence(
        pixel_spacing=[_ds(v) for v in geometry.frames[0].spacing],
        slice_thickness=_ds(_thickness(geometry)),
        spacing_between_slices=_ds(np.linalg.norm(geometry.affine[:3, 2])),
    )
    positions = [
        PlanePositionSequence("PATIENT", [_ds(v) for v in f.position]) for f in geometry.frames
    ]
    if multi_frame:
        used = list(dict.fromkeys(f.dataset for f in geometry.frames))
        images = [_multi_frame_header(sources[i], reference, geometry, i, measures) for i in used]
    else:
        images = []
        for frame, position in zip(geometry.frames, positions, strict=True):
            image = _header(sources[frame.dataset], reference)
            image.ImageOrientationPatient = orientation
            image.ImagePositionPatient = position[0].ImagePositionPatient
            image.PixelSpacing = measures[0].PixelSpacing
            image.SliceThickness = measures[0].SliceThickness
            images.append(image)
    segmentation = Segmentation(
        source_images=images[:1] if multi_frame else images,
        further_source_images=images[1:] if multi_frame else None,
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="SegUnlearn",
        manufacturer_model_name="SegUnlearn",
        software_versions=__version__,
        device_serial_number="0",
        specific_character_set="ISO_IR 192",
        omit_empty_frames=bool(pixels.any()),
        plane_positions=positions if multi_frame else None,
        plane_orientation=(
            PlaneOrientationSequence("PATIENT", orientation) if multi_frame else None
        ),
        pixel_measures=measures if multi_frame else None,
        content_date=created.date(),
        content_time=created.time(),
        series_date=created.date(),
        series_time=created.time(),
        **options,
    )
    length = -(-segmentation.NumberOfFrames * segmentation.Rows * segmentation.Columns // 8)
    if len(segmentation.PixelData) > length:  # highdicom 0.28 pads with the character "0"
        segmentation.PixelData = segmentation.PixelData[:length] + b"\0"
    copy_given(first, segmentation)
    if offset:
        segmentation.TimezoneOffsetFromUTC = offset
        segmentation.InstanceCreationDate = segmentation.ContentDate
        segmentation.InstanceCreationTime = segmentation.ContentTime
    return segmentation


def _header(source: Dataset, reference: str) -> Dataset:
    """Copy what a SEG takes from its image, with empty values for what is missing."""
    header = Dataset()
    for keyword in _COPIED:
        value = source.get(keyword)
        if value is not None:
            setattr(header, keyword, value)
    header.PatientName = ""
    for keyword in ("PatientID", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        if keyword not in header:
            setattr(header, keyword, "")
    header.PatientBirthDate = header.PatientSex = ""
    header.StudyDate = header.StudyTime = ""
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(header, keyword, source[keyword].value)
    header.Rows, header.Columns = source.Rows, source.Columns
    header.FrameOfReferenceUID = reference
    header.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or ""
    return header


def _multi_frame_header(
    source: Dataset,
    reference: str,
    geometry: SeriesGeometry,
    index: int,
    measures: PixelMeasuresSequence,
) -> Dataset:
    header = _header(source, reference)
    header.NumberOfFrames = int(source.get("NumberOfFrames", 1) or 1)
    shared = Dataset()
    shared.PixelMeasuresSequence = measures
    shared.PlaneOrientationSequence = PlaneOrientationSequence(
        "PATIENT", [_ds(v) for v in geometry.orientation]
    )
    header.SharedFunctionalGroupsSequence = [shared]
    places = {f.index: f.position for f in geometry.frames if f.dataset == index}
    items = []
    for i in range(header.NumberOfFrames):
        item = Dataset()
        place = places.get(i, geometry.frames[0].position)
        item.PlanePositionSequence = PlanePositionSequence("PATIENT", [_ds(v) for v in place])
        items.append(item)
    header.PerFrameFunctionalGroupsSequence = items
    return header


def _thickness(geometry: SeriesGeometry) -> float:
    thickness = geometry.frames[0].thickness
    return thickness if np.isfinite(thickness) else float(np.linalg.norm(geometry.affine[:3, 2]))


def _ds(value: Any) -> DSfloat:
    """Decimal string of at most 16 characters."""
    return DSfloat(float(value), auto_format=True)
