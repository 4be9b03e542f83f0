"""Sets of whole numbers as short bytes: the case lists of the ledger.

One hundred thousand runs of five hundred cases are fifty million references. A set is kept as the
differences of its sorted numbers, one, two or four bytes each, compressed when that is shorter:
about one byte a reference for a random choice, and almost nothing for neighbouring numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from segunlearn.errors import IntegrityError

Numbers = npt.NDArray[np.int64]

_WIDTHS: Final[dict[int, str]] = {1: "u1", 2: "<u2", 4: "<u4"}
_COMPRESSED: Final = 0x80


def encode(numbers: Numbers) -> bytes:
    """Write a set.

    Parameters
    ----------
    numbers
        Sorted, each once, 0 to 2**32 - 1.

    Examples
    --------
    >>> decode(encode(np.array([1, 2, 700]))).tolist()
    [1, 2, 700]
    """
    steps = np.diff(numbers, prepend=0)
    largest = int(steps.max(initial=0))
    width = 1 if largest < 2**8 else 2 if largest < 2**16 else 4
    plain: bytes = steps.astype(np.dtype(_WIDTHS[width])).tobytes()
    packed = zlib.compress(plain, 1)
    if len(packed) < len(plain):
        return bytes([width | _COMPRESSED]) + packed
    return bytes([width]) + plain


def decode(data: bytes) -> Numbers:
    """Read what ``encode`` wrote.

    Raises
    ------
    IntegrityError
        The bytes were damaged.
    """
    try:
        width = data[0] & ~_COMPRESSED
        plain = zlib.decompress(data[1:]) if data[0] & _COMPRESSED else data[1:]
        return np.cumsum(np.frombuffer(plain, np.dtype(_WIDTHS[width])), dtype=np.int64)
    except (IndexError, KeyError, ValueError, zlib.error) as error:
        raise IntegrityError(
            "a case list of the ledger cannot be read: it was damaged. Verify the ledger and "
            "restore the store from a backup."
        ) from error


def union(sets: Iterable[Numbers]) -> Numbers:
    """Sorted union of any number of sets."""
    parts = list(sets)
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def invert(sets: list[tuple[int, Numbers]]) -> list[tuple[int, Numbers]]:
    """Turn sets of cases into, for each case, the sorted numbers of the sets that hold it.

    Parameters
    ----------
    sets
        (number of the set, its members), in ascending order of the number.

    Returns
    -------
    list
        (case, numbers of sets), in ascending order of the case.
    """
    members = np.concatenate([np.empty(0, np.int64), *(m for _, m in sets)])
    if not len(members):
        return []
    owners = np.repeat([n for n, _ in sets], [len(m) for _, m in sets]).astype(np.int64)
    order = np.argsort(members, kind="stable")
    members, owners = members[order], owners[order]
    cases, starts = np.unique(members, return_index=True)
    return list(zip(cases.tolist(), np.split(owners, starts[1:]), strict=True))
