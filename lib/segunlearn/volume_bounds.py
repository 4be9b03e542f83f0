"""What a volume file claims, checked before memory is given to it.

Volume files come from other machines. A few bytes can claim a terabyte, compressed data can expand
a thousandfold, and an NRRD header can name any other file of the machine as its data.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from segunlearn.errors import InvalidInputError

#: Most voxels of a volume: a series of 512 x 512 x 2048, or two channels of half as many.
MAX_VOXELS: Final = 2**29

#: Deflate expands no further than this (1 bit for each 258 bytes, and the block's header).
_DEFLATE_RATIO: Final = 1100

#: Bytes of the widest voxel.
_WIDEST: Final = 8
_CHUNK: Final = 1 << 20


def check_claim(name: str, shape: Sequence[int], itemsize: int, size: int, packed: bool) -> int:
    """Check that a file can hold what its header claims; returns the bytes of the voxels.

    Parameters
    ----------
    name
        Of the file, for the message.
    shape, itemsize
        Voxels along each axis, bytes of each.
    size
        Of the file, bytes.
    packed
        Its voxels are compressed.

    Raises
    ------
    InvalidInputError
        It claims more voxels than ``MAX_VOXELS``, or more than its bytes can be.
    """
    voxels = math.prod(int(n) for n in shape)
    if voxels < 1 or voxels > MAX_VOXELS:
        raise InvalidInputError(
            f"{name}: the header tells of {voxels} voxels; 1 to {MAX_VOXELS} are read. Cut the "
            "volume, or resample it."
        )
    claimed = voxels * int(itemsize)
    if claimed > size * (_DEFLATE_RATIO if packed else 1):
        raise InvalidInputError(
            f"{name}: the header tells of {claimed} bytes, and a file of {size} bytes cannot hold "
            "them. It was cut off, or made by hand; write it again."
        )
    return claimed


def check_nrrd(path: Path, header: Mapping[str, Any], file: IO[bytes]) -> None:
    """Check an NRRD file whose header was read; leaves ``file`` where it stood.

    Raises
    ------
    InvalidInputError
        Its voxels are in another file, are skipped to, or are more than the header tells of.
    """
    for key in ("data file", "datafile"):
        if key in header:
            raise InvalidInputError(
                f"{path.name}: its voxels are in another file, which is not followed. Write header "
                "and voxels into one .nrrd file."
            )
    for key in ("line skip", "lineskip", "byte skip", "byteskip"):
        if header.get(key, 0):
            raise InvalidInputError(f"{path.name}: {key} is not taken. Write the file without it.")
    encoding = str(header.get("encoding", "")).lower()
    if encoding not in ("raw", "gzip", "gz", "ascii", "text", "txt"):
        raise InvalidInputError(f"{path.name}: NRRD encoding {encoding!r:.20}; use raw or gzip.")
    packed = encoding in ("gzip", "gz")
    voxels = check_claim(path.name, header.get("sizes", (0,)), 1, path.stat().st_size, packed)
    if packed:
        start = file.tell()
        _check_unpacked(path.name, file, voxels * _WIDEST)
        file.seek(start)


def _check_unpacked(name: str, file: IO[bytes], largest: int) -> None:
    """Unpack piece by piece without keeping anything; stop where it is more than claimed."""
    gzip, found = zlib.decompressobj(zlib.MAX_WBITS | 16), 0
    pending = file.read(_CHUNK)
    while pending and not gzip.eof:
        found += len(gzip.decompress(pending, _CHUNK))
        if found > largest:
            raise InvalidInputError(
                f"{name}: the packed voxels are more than the header tells of; they are not "
                "unpacked."
            )
        pending = gzip.unconsumed_tail or file.read(_CHUNK)
