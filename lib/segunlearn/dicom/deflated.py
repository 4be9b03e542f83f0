"""Deflated DICOM files, which expand a thousandfold in memory before anything can be checked."""

from __future__ import annotations

from typing import IO, BinaryIO, cast

from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from segunlearn.dicom.reading import Clamped
from segunlearn.errors import InvalidInputError


def refuse_deflated(file: IO[bytes]) -> None:
    """Refuse a deflated DICOM file of somebody else; leaves ``file`` at its beginning.

    What cannot be read is left to the reader, which says why.

    Parameters
    ----------
    file
        Open for reading.

    Raises
    ------
    InvalidInputError
        Its transfer syntax is Deflated Explicit VR Little Endian (PS3.5 section A.5).
    """
    file.seek(0)
    try:
        clamped = cast(BinaryIO, Clamped(file))
        read_preamble(clamped, False)
        syntax = str(_read_file_meta_info(clamped).get("TransferSyntaxUID", ""))
    except Exception:  # noqa: BLE001 - pydicom raises a dozen kinds
        syntax = ""
    finally:
        file.seek(0)
    if syntax == DeflatedExplicitVRLittleEndian:
        raise InvalidInputError(
            "deflated DICOM files are not taken: they can unpack to any size. Send them in another "
            "transfer syntax, such as Explicit VR Little Endian or JPEG-LS."
        )
