"""WADO-RS rendered resources and thumbnails (PS3.18 sections 10.4.1.1.3 and 10.4.1.1.4)."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request, Response
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from segunlearn.app.dicomweb import frames as files
from segunlearn.app.dicomweb.common import (
    Client,
    InstanceUID,
    SeriesUID,
    StudyUID,
    make_router,
    reader,
)
from segunlearn.app.dicomweb.media import NotAcceptableError, require
from segunlearn.app.dicomweb.retrieve import parse_numbers, paths_of_study
from segunlearn.errors import InvalidInputError

router = make_router(dependencies=[reader])

THUMBNAIL_PIXELS = 128
LARGEST_PIXELS = 4096
_INSTANCE_PATH = "/studies/{study}/series/{series}/instances/{instance}"
Floats = npt.NDArray[np.floating[Any]]


@router.get("/studies/{study}/rendered", summary="Picture of a study (WADO-RS)")
def rendered_study(request: Request, client: Client, study: StudyUID) -> Response:
    """Draw the middle image of a study's first series of images."""
    return _draw(request, *_middle(paths_of_study(client, study)))


@router.get("/studies/{study}/thumbnail", summary="Thumbnail of a study (WADO-RS)")
def study_thumbnail(request: Request, client: Client, study: StudyUID) -> Response:
    """Draw the middle image of a study, small."""
    return _draw(request, *_middle(paths_of_study(client, study)), largest=THUMBNAIL_PIXELS)


@router.get("/studies/{study}/series/{series}/rendered", summary="Picture of a series (WADO-RS)")
def rendered_series(
    request: Request, client: Client, study: StudyUID, series: SeriesUID
) -> Response:
    """Draw the middle image of a series."""
    return _draw(request, *_middle(client.index.files(study, series)))


@router.get("/studies/{study}/series/{series}/thumbnail", summary="Thumbnail of a series (WADO-RS)")
def series_thumbnail(
    request: Request, client: Client, study: StudyUID, series: SeriesUID
) -> Response:
    """Draw the middle image of a series, small."""
    return _draw(request, *_middle(client.index.files(study, series)), largest=THUMBNAIL_PIXELS)


@router.get(f"{_INSTANCE_PATH}/rendered", summary="Picture of an instance (WADO-RS)")
def rendered_instance(
    request: Request, client: Client, study: StudyUID, series: SeriesUID, instance: InstanceUID
) -> Response:
    """Draw an instance, its middle frame when it has several."""
    return _draw(request, *_middle([client.path_of(study, series, instance)]))


@router.get(f"{_INSTANCE_PATH}/thumbnail", summary="Thumbnail of an instance (WADO-RS)")
def instance_thumbnail(
    request: Request, client: Client, study: StudyUID, series: SeriesUID, instance: InstanceUID
) -> Response:
    """Draw an instance, small."""
    path = client.path_of(study, series, instance)
    return _draw(request, *_middle([path]), largest=THUMBNAIL_PIXELS)


@router.get(f"{_INSTANCE_PATH}/frames/{{numbers}}/rendered", summary="Picture of a frame (WADO-RS)")
def rendered_frame(
    request: Request,
    client: Client,
    study: StudyUID,
    series: SeriesUID,
    instance: InstanceUID,
    numbers: str,
) -> Response:
    """Draw one frame (from 1)."""
    wanted = parse_numbers(numbers)
    if len(wanted) != 1:
        raise NotAcceptableError("pictures are sent one by one; ask for one frame.")
    return _draw(request, client.path_of(study, series, instance), wanted[0])


def _middle(paths: list[Path]) -> tuple[Path, int | None]:
    """Return the file that stands for many: the middle one of those with pixels."""
    tags = ["SeriesInstanceUID", "Rows", "Columns", "Modality"]
    headers = [(path, files.read_header(path, tags)) for path in paths]
    images = [(p, h) for p, h in headers if files.count_frames(h)]
    images = [(p, h) for p, h in images if h.get("Modality") != "SEG"] or images
    if not images:
        raise NotAcceptableError("nothing of this can be drawn: it holds no image.")
    first = images[0][1].get("SeriesInstanceUID")
    series = [p for p, h in images if h.get("SeriesInstanceUID") == first]
    return series[len(series) // 2], None


def _draw(request: Request, path: Path, number: int | None = None, *, largest: int = 0) -> Response:
    """Send a frame as a picture.

    The query's ``window`` (centre, width, function), ``viewport`` (width, height) and ``quality``
    are those of PS3.18 section 8.3.5.
    """
    media = require(request, "image/jpeg", "image/png")
    header = files.read_header(path)
    if number is None:
        number = max(1, (files.count_frames(header) + 1) // 2)
    files.check_numbers(header, [number])
    window = _numbers(request, "window", 2)
    viewport = _numbers(request, "viewport", 2)
    quality = (_numbers(request, "quality", 1) or [90.0])[0]
    if not 1 <= quality <= 100:
        raise InvalidInputError("quality: give a number from 1 to 100.")
    picture = Image.fromarray(render(path, header, number, window))
    width, height = (int(v) for v in viewport) if viewport else (largest, largest)
    if viewport and not (0 < width <= LARGEST_PIXELS and 0 < height <= LARGEST_PIXELS):
        raise InvalidInputError(f"viewport: give width and height from 1 to {LARGEST_PIXELS}.")
    if width:
        scale = min(width / picture.width, height / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    out = io.BytesIO()
    if media == "image/png":
        picture.save(out, "PNG")
    else:
        picture.save(out, "JPEG", quality=int(quality))
    return Response(out.getvalue(), media_type=media)


def render(
    path: Path, header: Dataset, number: int, window: list[float] | None = None
) -> npt.NDArray[np.uint8]:
    """Turn a frame (from 1) into what a screen shows.

    Parameters
    ----------
    window
        Centre and width in the units of the image (HU for CT); that of the header otherwise, or
        the middle 98 % of the values.

    Returns
    -------
    numpy.ndarray
        uint8, ``(rows, columns)``, or ``(rows, columns, 3)`` for colour.
    """
    pixels = files.decoded_frame(path, number, raw=False)
    if pixels.ndim == 3:
        scale = 255.0 / (2 ** int(header.get("BitsStored", 8)) - 1)
        return np.asarray(np.clip(pixels * scale, 0, 255), dtype=np.uint8)
    values: Floats = pixels.astype(np.float64)
    transform = _functional(header, number, "PixelValueTransformationSequence")
    slope = _number(transform.get("RescaleSlope"), 1.0)
    values = values * slope + _number(transform.get("RescaleIntercept"), 0.0)
    centre, width, function = _window(header, number, values, window)
    grey = apply_window(values, centre, width, function)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = 1.0 - grey
    return np.rint(grey * 255).astype(np.uint8)


def apply_window(values: Floats, centre: float, width: float, function: str = "LINEAR") -> Floats:
    """VOI LUT function (PS3.3 section C.11.2.1.2): grey from 0 to 1."""
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - centre) / width)))
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, max(width - 1.0, 1e-6)
    return np.asarray(np.clip((values - centre) / width + 0.5, 0.0, 1.0))


def _window(
    header: Dataset, number: int, values: Floats, asked: list[float] | None
) -> tuple[float, float, str]:
    voi = _functional(header, number, "FrameVOILUTSequence")
    function = str(voi.get("VOILUTFunction") or "LINEAR")
    if asked:
        if asked[1] <= 0:
            raise InvalidInputError("window: the width must be above 0.")
        return asked[0], asked[1], function
    centre, width = _number(voi.get("WindowCenter"), None), _number(voi.get("WindowWidth"), None)
    if centre is not None and width is not None and width > 0:
        return centre, width, function
    low, high = np.percentile(values, [1, 99])
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return (low + high) / 2, max(float(high - low), 1.0), "LINEAR_EXACT"


def _functional(header: Dataset, number: int, sequence: str) -> Dataset:
    """Attributes of one frame: its own functional group, the shared one, or the header."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[number - 1 : number], *shared[:1]):
        items = group.get(sequence)
        if items:
            item: Dataset = items[0]
            return item
    return header


def _number(value: Any, otherwise: Any) -> Any:
    """Return the first of one or several numbers; the first may be empty."""
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return otherwise
    return number if math.isfinite(number) else otherwise


def _numbers(request: Request, name: str, least: int) -> list[float] | None:
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        numbers = [float(t) for t in text.split(",")[:least]]
    except ValueError as error:
        raise InvalidInputError(f"{name}={text!r:.40}: give {least} numbers.") from error
    if len(numbers) < least or not all(map(math.isfinite, numbers)):
        raise InvalidInputError(f"{name}={text!r:.40}: give {least} numbers.")
    return numbers
