"""What a DICOM series must be, besides lying on one grid, to be read as one volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from segunlearn.dicom.frames import Frame, refuse
from segunlearn.volume_bounds import MAX_VOXELS

#: SOP classes with geometry that are no images of a volume, and what they are.
_NOT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.66": "raw data",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "an RT dose",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a whole slide microscopy image",
    "1.2.840.10008.5.1.4.1.1.4.2": "MR spectroscopy",
}

#: What all instances of a series share (PS3.3 A.1.2); an instance without it says nothing.
_SHARED = (
    ("SeriesInstanceUID", "series", "Give one."),
    ("PatientID", "patients", "One of them is in a wrong series: export it again."),
    ("FrameOfReferenceUID", "frames of reference", "Send each as a series of its own."),
    ("Modality", "modalities", "Send each as a series of its own."),
)


def check_images(datasets: Sequence[Dataset]) -> None:
    """Refuse instances of several series, and such as hold no grey values of one size.

    Raises
    ------
    UnsupportedSeriesError
        Any of this, or more than ``MAX_VOXELS``.
    """
    for keyword, words, then in _SHARED:
        values = {str(d.get(keyword, "") or "").strip() for d in datasets} - {""}
        if len(values) > 1:
            raise refuse(datasets, f"holds images of {len(values)} {words}", then)
    for dataset in datasets:
        kind = _NOT_IMAGES.get(str(dataset.get("SOPClassUID", "")))
        if kind is not None:
            raise refuse(datasets, f"is {kind}, no image", "Choose a CT or MR image series.")
        if "Rows" not in dataset or "Columns" not in dataset:
            raise refuse(datasets, "holds no images", "Choose a CT or MR image series.")
        photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        if int(dataset.get("SamplesPerPixel", 1) or 1) != 1 or photometric not in (
            "MONOCHROME1",
            "MONOCHROME2",
        ):
            raise refuse(datasets, f"is in colour ({photometric})", "Choose the grey-value series.")
        stored, high = dataset.get("BitsStored"), dataset.get("HighBit")
        if stored and high is not None and int(high) != int(stored) - 1:
            raise refuse(
                datasets,
                f"stores values in the upper bits (HighBit {high} with {stored} bits stored)",
                "Export it again.",
            )
        if dataset.get("ModalityLUTSequence"):
            raise refuse(
                datasets, "stores values through a modality lookup table", "Export it rescaled."
            )
    sizes = {(int(d.Rows), int(d.Columns)) for d in datasets}
    if len(sizes) > 1:
        raise refuse(
            datasets,
            f"has images of {len(sizes)} sizes ({_listed(sizes)})",
            "Send images of one size as one series.",
        )
    if len(sizes) == 1 and min(next(iter(sizes))) < 1:
        raise refuse(datasets, "has images without rows or columns", "Export it again.")
    voxels = sum(int(d.Rows) * int(d.Columns) * _frames_of(d) for d in datasets)
    if voxels > MAX_VOXELS:
        raise refuse(datasets, f"tells of {voxels} voxels", f"At most {MAX_VOXELS} are read.")


def check_image_type(datasets: Sequence[Dataset], frames: int) -> None:
    """Refuse mosaics and localizers, which are no stack of slices.

    A series of several localizer slices of one plane is a volume, save in CT: its scouts are
    projections. Source: PS3.3 C.7.6.1.1.2, C.8.2.1.1.1.

    Parameters
    ----------
    datasets
        Of one series.
    frames
        How many frames they hold, without copies.

    Raises
    ------
    UnsupportedSeriesError
        ImageType says so.
    """
    if any("MOSAIC" in image_type(d) for d in datasets):
        raise refuse(
            datasets,
            "is a mosaic: each image holds tiles of many slices",
            "Convert it to single or enhanced frames first.",
        )
    localizer = any("LOCALIZER" in image_type(d) for d in datasets)
    if localizer and (frames == 1 or str(datasets[0].get("Modality", "")) == "CT"):
        raise refuse(
            datasets, "holds a localizer, no stack of slices", "Choose the series of slices."
        )


def image_type(dataset: Dataset) -> list[str]:
    """Values of ImageType (0008,0008), also where there is only one."""
    value = dataset.get("ImageType") or []
    return [str(v) for v in ([value] if isinstance(value, str) else value)]


def check_rescale(datasets: Sequence[Dataset], frames: Sequence[Frame]) -> None:
    """Refuse frames without a rescale among others that have one.

    Raises
    ------
    UnsupportedSeriesError
        Some frames tell a slope or intercept that changes values, and others tell none.
    """
    for keyword, values, none in (
        ("RescaleSlope", [f.slope for f in frames], 1.0),
        ("RescaleIntercept", [f.intercept for f in frames], 0.0),
    ):
        told = [v for v in values if np.isfinite(v)]
        if len(told) < len(values) and any(v != none for v in told):
            raise refuse(
                datasets,
                f"tells {keyword} of {len(told)} of its {len(values)} frames, so the values of "
                "the others are not known",
                "Export it again.",
            )


def _frames_of(dataset: Dataset) -> int:
    return max(1, int(dataset.get("NumberOfFrames", 1) or 1))


def _listed(sizes: set[tuple[int, int]]) -> str:
    return ", ".join(f"{r}x{c}" for r, c in sorted(sizes)[:4])
