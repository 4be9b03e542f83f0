"""Frames, headers and whole instances read from a DICOM file, as stored or decoded."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from segunlearn.app.dicomweb.media import EXPLICIT_LITTLE_ENDIAN
from segunlearn.dicom.json_model import to_json
from segunlearn.errors import NotFoundError, UnsupportedSeriesError

T = TypeVar("T")

#: Values above this many bytes (base64) are left out of headers and served one by one.
BULK_BYTES = 4096

#: Media type of compressed frames (PS3.18 table 8.7.3-5).
_MEDIA = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
OCTETS = "application/octet-stream"


def read_header(path: Path, tags: Sequence[str] | None = None) -> Dataset:
    """Read a file up to its pixels, only ``tags`` of it when they are given.

    Raises
    ------
    NotFoundError
        The file vanished.
    UnsupportedSeriesError
        It is damaged.
    """
    return _guard(
        path,
        lambda: dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=list(tags) if tags else None
        ),
    )


def transfer_syntax(header: Dataset) -> str:
    """Transfer syntax UID; files without one are told by how they were read."""
    named = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    if named is not None:
        return str(named)
    return str(
        ExplicitVRLittleEndian if header.original_encoding[0] is False else ImplicitVRLittleEndian
    )


def media_of(syntax: str) -> str:
    """Media type of frames stored in a transfer syntax; native frames are octets."""
    return _MEDIA.get(syntax, OCTETS)


def is_compressed(syntax: str) -> bool:
    """Whether frames are compressed; a transfer syntax that nobody knows counts as compressed."""
    uid = UID(syntax)
    return uid.is_encapsulated if uid.is_transfer_syntax else True


def count_frames(header: Dataset) -> int:
    """Return the number of frames, 0 for what is no image."""
    if "Rows" not in header or "Columns" not in header:
        return 0
    try:
        return max(1, int(header.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1


def check_numbers(header: Dataset, numbers: Sequence[int]) -> None:
    """Check frame numbers (from 1).

    Raises
    ------
    NotFoundError
        The instance has no such frame.
    """
    count = count_frames(header)
    for number in numbers:
        if not 1 <= number <= count:
            raise NotFoundError(f"there is no frame {number}, the instance has {count}.")


def stored_frames(path: Path, numbers: Sequence[int]) -> Iterator[bytes]:
    """Read frames (from 1) as they lie in the file, one when it is asked for, and nothing else.

    Raises
    ------
    UnsupportedSeriesError
        The pixel data are damaged.
    """
    frames = _stored_frames(path, numbers)
    while (frame := _guard(path, lambda: next(frames, None))) is not None:
        yield frame


def _stored_frames(path: Path, numbers: Sequence[int]) -> Iterator[bytes]:
    with path.open("rb") as file:
        header = dcmread(file, stop_before_pixels=True, force=True)
        syntax, count = transfer_syntax(header), count_frames(header)
        if syntax == DeflatedExplicitVRLittleEndian:
            whole = dcmread(path).PixelData
            start, stream = 0, io.BytesIO(whole)
        else:
            file.seek(8 if header.original_encoding[0] else 12, io.SEEK_CUR)
            start, stream = file.tell(), file  # type: ignore[assignment]
        if is_compressed(syntax):
            for number in numbers:
                stream.seek(start)
                yield get_frame(stream, number - 1, number_of_frames=count)
            return
        samples = int(header.SamplesPerPixel)
        if header.PhotometricInterpretation == "YBR_FULL_422":
            samples = 2  # two pixels share their colours (PS3.3 section C.7.6.3.1.2)
        bits = int(header.Rows) * int(header.Columns) * samples * int(header.BitsAllocated)
        for number in numbers:
            yield _native_frame(stream, start, (number - 1) * bits, bits)


def _native_frame(stream: Any, start: int, first_bit: int, bits: int) -> bytes:
    """Cut a frame out; frames of one-bit pixels need not begin at a byte (PS3.5 section 8.1.1)."""
    first, shift = divmod(first_bit, 8)
    stream.seek(start + first)
    data: bytes = stream.read((shift + bits + 7) // 8)
    if len(data) < (shift + bits + 7) // 8:
        raise ValueError("the pixel data end too early")
    if shift == 0 and bits % 8 == 0:
        return data
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return np.packbits(unpacked[shift : shift + bits], bitorder="little").tobytes()


def decoded_frame(path: Path, number: int, *, raw: bool) -> npt.NDArray[np.generic]:
    """Decode a frame (from 1): ``(rows, columns)`` or ``(rows, columns, 3)``.

    ``raw`` leaves the colour space as it is stored.

    Raises
    ------
    UnsupportedSeriesError
        The pixels are damaged, or their compression is unknown.
    """

    def decode() -> npt.NDArray[np.generic]:
        deflated = transfer_syntax(read_header(path)) == DeflatedExplicitVRLittleEndian
        source = dcmread(path) if deflated else path  # by path only what is needed is read
        return pixel_array(source, index=number - 1, raw=raw)

    return _guard(path, decode)


def native_frames(path: Path, header: Dataset, numbers: Sequence[int]) -> Iterator[bytes]:
    """Read frames (from 1) as Explicit VR Little Endian would hold them, decoded if need be.

    Each is read when it is asked for.
    """
    syntax = transfer_syntax(header)
    if not is_compressed(syntax) and syntax != ExplicitVRBigEndian:
        yield from stored_frames(path, numbers)
        return
    for number in numbers:
        array = decoded_frame(path, number, raw=True)
        yield np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()


def instance_bytes(path: Path, syntax: str, wanted: str) -> tuple[bytes, str]:
    """Whole instance as a DICOM file.

    Parameters
    ----------
    syntax
        Transfer syntax of the file.
    wanted
        ``"*"`` or the same: as stored, byte for byte. Explicit VR Little Endian: rewritten.

    Returns
    -------
    bytes, str
        The file, and its transfer syntax.
    """
    data = _guard(path, path.read_bytes)
    if wanted in ("*", syntax) and data[128:132] == b"DICM":
        return data, syntax

    def rewrite() -> bytes:
        dataset = dcmread(io.BytesIO(data), force=True)
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        if is_compressed(syntax):
            dataset.decompress()
        if syntax == ExplicitVRBigEndian and "PixelData" in dataset and dataset.BitsAllocated > 8:
            array = dataset.pixel_array
            dataset.PixelData = array.astype(array.dtype.newbyteorder("<")).tobytes()
        out = io.BytesIO()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(out, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
        return out.getvalue()

    return _guard(path, rewrite), EXPLICIT_LITTLE_ENDIAN


def header_json(path: Path, bulk_address: str) -> dict[str, Any]:
    """Header in the DICOM JSON model (PS3.18 annex F), large values as addresses.

    Parameters
    ----------
    bulk_address
        Address of the instance's ``/bulkdata``; a digest of the value is added to it.
    """
    header = read_header(path)
    if "SpecificCharacterSet" in header:
        header.SpecificCharacterSet = "ISO_IR 192"  # JSON is UTF-8

    def link(element: DataElement) -> str:
        return f"{bulk_address}/{_digest(element.value)}"

    return to_json(header, threshold=BULK_BYTES, link=link)


def bulk_value(path: Path, digest: str) -> bytes:
    """Return the value that a header's ``BulkDataURI`` stands for.

    Raises
    ------
    NotFoundError
        No value of the header has this digest.
    """
    for element in read_header(path).iterall():
        if isinstance(element.value, bytes) and _digest(element.value) == digest:
            return element.value
    raise NotFoundError("the instance holds no such bulk data. Read its metadata again.")


def dumps(model: Any) -> str:
    """JSON text; numbers that JSON cannot write (NaN, infinity) become null."""
    try:
        return json.dumps(model, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(model), parse_constant=lambda _: None))


def _digest(value: Any) -> str:
    return sha256(value if isinstance(value, bytes) else str(value).encode()).hexdigest()[:32]


def _guard(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (NotFoundError, UnsupportedSeriesError):
        raise
    except FileNotFoundError as error:
        raise NotFoundError("the file of this instance vanished. Search again.") from error
    except Exception as error:  # pydicom and the codecs raise a dozen kinds
        text = error.strerror if isinstance(error, OSError) else str(error)
        reason = next((line for line in (text or "").splitlines() if line.strip()), "")[:200]
        raise UnsupportedSeriesError(
            f"the file of this instance cannot be read ({type(error).__name__}: {reason}). Copy it "
            "from its source again, or store it in another transfer syntax."
        ) from error
