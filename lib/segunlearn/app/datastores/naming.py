"""What the values of label maps mean before a model settles it: the names that clients give.

A label map holds numbers; its names stand in the note beside it. As long as nothing else says what
a number means, each label that is saved takes up the numbers of those before it, so that one
number is one structure in all of them. Names are compared without case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from typing import Any

from segunlearn.app.datastores.labels import named_values, names_in
from segunlearn.errors import InvalidInputError, LabelError


@dataclass(frozen=True)
class NamedLabel:
    """A finished label: its image, the values that it holds, and the names that its note gives."""

    image_id: str
    present: tuple[int, ...]
    names: Mapping[int, str]

    @classmethod
    def read(cls, image_id: str, present: Iterable[int], label_info: Any) -> NamedLabel:
        """Read a note; one that does not fit the label map names nothing."""
        values = tuple(present)
        try:
            named = names_in(values, label_info)
        except (InvalidInputError, LabelError):
            named = {}
        return cls(image_id, values, {v: named[v].strip() for v in values if v in named})


def values_for(present: Collection[int], label_info: Any, others: Iterable[Any]) -> dict[str, int]:
    """Choose the value of each structure of a label map that is to be saved.

    Parameters
    ----------
    present
        Values that it holds.
    label_info
        The client's list of names; see ``names_in``.
    others
        The same lists, as they are noted with the finished labels of the other images.

    Returns
    -------
    dict
        By name as the client wrote it; empty when it gave none.

    Raises
    ------
    InvalidInputError
        The list is malformed.
    LabelError
        It names some values only, or may be read in two ways.
    """
    if not label_info:
        return {}
    names = names_in(present, label_info)
    nameless = [v for v in sorted(present) if v not in names]
    if nameless:
        raise LabelError(
            f"label_info has no name for value {nameless[0]} of the label map. Name every segment, "
            "or send no names at all."
        )
    taken: dict[str, int] = {}
    for other in others:
        with suppress(InvalidInputError):  # what cannot be read claims no number
            taken |= {name.strip().casefold(): v for v, name in named_values(other)}
    chosen = {}
    for value in sorted(present):
        name = names[value]
        key = name.strip().casefold()
        if key not in taken:
            taken[key] = next(n for n in count(1) if n not in taken.values())
        chosen[name] = taken[key]
    return dict(sorted(chosen.items(), key=itemgetter(1)))  # so that a place is its number


def agreed_names(labels: Iterable[NamedLabel], values: Mapping[str, int]) -> tuple[str, ...]:
    """Name the structures of finished labels, in the order of their values.

    Parameters
    ----------
    labels
        All of them.
    values
        Value of each structure where something else than the labels says it; else empty.

    Returns
    -------
    tuple of str
        ``label_1`` and on, where no label has names.

    Raises
    ------
    InvalidInputError
        Labels contradict each other or ``values``, or some have names and others have none.
    """
    kept = [label for label in labels if label.present]
    found: dict[int, tuple[str, str]] = {v: (n, "") for n, v in values.items()}
    number_of = {name.casefold(): v for name, v in values.items()}
    for label in kept:
        for value, name in label.names.items():
            meant, image = found.setdefault(value, (name, label.image_id))
            number = number_of.setdefault(name.casefold(), value)
            if number == value and meant.casefold() == name.casefold():
                continue
            if values:
                raise InvalidInputError(_other_numbers(label, name, value, kept, values))
            raise InvalidInputError(
                f"the finished labels do not agree on their values: {value} is {meant!r} in that "
                f"of image {image!r}, and {name!r} is {value} in that of {label.image_id!r}. "
                "Open the latter and submit it again, with the names of its structures."
            )
    if values:
        return tuple(values)
    top = max((max(label.present) for label in kept), default=0)
    names = tuple(found[v][0] if v in found else f"label_{v}" for v in range(1, top + 1))
    nameless = [label.image_id for label in kept if set(label.present) - label.names.keys()]
    if found and nameless:
        raise InvalidInputError(
            f"some finished labels name their structures and others do not: {_few(nameless)}. "
            f"Submit these again with names, or, if their values mean the same, start the server "
            f"with --conf labels {','.join(names)}."
        )
    return names


def _other_numbers(
    label: NamedLabel,
    name: str,
    value: int,
    kept: Iterable[NamedLabel],
    values: Mapping[str, int],
) -> str:
    order = {v: n for one in kept for v, n in one.names.items()}
    told = ",".join(order.get(v, f"label_{v}") for v in range(1, max(order) + 1))
    return (
        f"in the finished label of image {label.image_id!r}, {name!r} is {value}, but the "
        f"structures are {', '.join(f'{n}={v}' for n, v in values.items())}. Start the server with "
        f"--conf labels {told}, as the labels count, or submit them again."
    )


def _few(images: list[str]) -> str:
    more = f" and {len(images) - 3} more" if len(images) > 3 else ""
    return ", ".join(sorted(images)[:3]) + more
