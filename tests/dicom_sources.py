"""Synthetic series: the grid is chosen first, headers are derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

#: Directions of a row and of a column in LPS.
ORIENTATIONS: dict[str, tuple[float, ...]] = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial, feet first and prone": (1, 0, 0, 0, -1, 0),
    "axial, mirrored rows": (-1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "coronal, mirrored": (-1, 0, 0, 0, 0, 1),
    "decubitus left": (0, 1, 0, -1, 0, 0),
    "decubitus right": (0, -1, 0, 1, 0, 0),
    "oblique": (0.8, 0.6, 0, -0.36, 0.48, -0.8),
}
DECUBITUS = {"decubitus left": "HFDL", "decubitus right": "HFDR"}


@dataclass
class Source:
    """A series with what it shows.

    Parameters
    ----------
    datasets
        Instances, in the order in which they would come from an archive.
    array
        float64 ``(X, Y, Z)`` in output units.
    affine
        Voxel to RAS, mm.
    """

    datasets: list[Dataset]
    array: npt.NDArray[np.float64]
    affine: npt.NDArray[np.float64]


def make_series(
    orientation: str | tuple[float, ...] = "axial",
    *,
    shape: tuple[int, int, int] = (7, 6, 5),
    spacing: tuple[float, float, float] = (0.7, 0.9, 2.5),
    origin: tuple[float, float, float] = (-31.5, 12.25, -70.125),
    slope: float = 1.0,
    intercept: float = -1024.0,
    seed: int = 0,
    shuffle: bool = True,
    patient_id: str = "SYN-1",
    study_uid: str | None = None,
    modality: str = "CT",
) -> Source:
    """Make a single-frame series; ``spacing`` is that of X, Y, Z (columns, rows, slices)."""
    rng = np.random.default_rng(seed)
    cosines = ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation
    row, column = np.array(cosines[:3], float), np.array(cosines[3:], float)
    normal = np.cross(row, column)
    stored = rng.integers(0, 4000, size=shape, dtype=np.uint16)
    lps = np.eye(4)
    lps[:3, :3] = np.stack([row * spacing[0], column * spacing[1], normal * spacing[2]], axis=1)
    lps[:3, 3] = origin
    study, series, frame = study_uid or generate_uid(), generate_uid(), generate_uid()
    datasets = []
    for z in range(shape[2]):
        ds = new_instance(MRImageStorage if modality == "MR" else CTImageStorage, study, series)
        ds.PatientID, ds.Modality, ds.FrameOfReferenceUID = patient_id, modality, frame
        ds.InstanceNumber = shape[2] - z
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        if isinstance(orientation, str):
            ds.PatientPosition = DECUBITUS.get(orientation, "HFS")
        ds.ImageOrientationPatient = [round(float(v), 10) for v in cosines]
        position = np.array(origin) + z * spacing[2] * normal
        ds.ImagePositionPatient = [round(float(v), 8) for v in position]
        ds.PixelSpacing = [spacing[1], spacing[0]]
        ds.SliceThickness = spacing[2]
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        set_pixels(ds, np.ascontiguousarray(stored[:, :, z].T))
        datasets.append(ds)
    if shuffle:
        datasets = [datasets[int(i)] for i in rng.permutation(len(datasets))]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return Source(datasets, stored.astype(np.float64) * slope + intercept, affine)


def make_enhanced(source: Source, *, parts: int = 1) -> list[Dataset]:
    """Put a single-frame series into one or more enhanced multi-frame instances."""
    groups = np.array_split(np.arange(len(source.datasets)), parts)
    series, result = generate_uid(), []
    for group in groups:
        frames = [source.datasets[int(i)] for i in group]
        first = frames[0]
        ds = new_instance(EnhancedMRImageStorage, first.StudyInstanceUID, series)
        ds.PatientID, ds.Modality = first.PatientID, "MR"
        ds.FrameOfReferenceUID = first.FrameOfReferenceUID
        shared, transformation = Dataset(), Dataset()
        shared.PlaneOrientationSequence = [_item(first, "ImageOrientationPatient")]
        shared.PixelMeasuresSequence = [_item(first, "PixelSpacing", "SliceThickness")]
        transformation.RescaleSlope = first.RescaleSlope
        transformation.RescaleIntercept = first.RescaleIntercept
        shared.PixelValueTransformationSequence = [transformation]
        ds.SharedFunctionalGroupsSequence = [shared]
        items = []
        for frame in frames:
            item = Dataset()
            item.PlanePositionSequence = [_item(frame, "ImagePositionPatient")]
            items.append(item)
        ds.PerFrameFunctionalGroupsSequence = items
        set_pixels(ds, np.stack([f.pixel_array for f in frames]))
        ds.NumberOfFrames = len(frames)
        result.append(ds)
    return result


def new_instance(sop_class: str, study: str, series: str) -> Dataset:
    """Make an instance with the attributes that every IOD wants."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "Synthetic^Sünje", "19700101", "O"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240229", "101112", "1", ""
    ds.SeriesNumber, ds.SeriesDescription, ds.Manufacturer = 1, "made by a test", "SYNTHETIC"
    ds.ReferringPhysicianName = ""
    return ds


def set_pixels(ds: Dataset, pixels: npt.NDArray[np.uint16]) -> None:
    """Set the image pixel module; the last two axes are rows and columns."""
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = pixels.astype("<u2").tobytes()


def written(ds: Dataset) -> Dataset:
    """The instance after a way through a file."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


def _item(source: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        value: Any = source.get(keyword)
        setattr(item, keyword, value)
    return item
