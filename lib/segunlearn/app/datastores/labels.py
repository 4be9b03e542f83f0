"""Label maps as clients send them: brought onto the image's grid and the model's values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from segunlearn.errors import GeometryError, InvalidInputError, LabelError
from segunlearn.volumes import Volume


def on_grid_of(image: Volume, label: Volume) -> Volume:
    """Return the label on the image's grid; axes may be flipped or swapped, nothing is resampled.

    Viewers that know no shear put the slices straight above each other (``Volume.upright``); that
    is the image's grid, too.

    Raises
    ------
    LabelError
        The label has several layers.
    GeometryError
        Its voxels are not the image's voxels.
    """
    if label.array.ndim != 3:
        raise LabelError(
            "the label map has several layers, so its segments may overlap. Save one label map in "
            "which every voxel has one value."
        )
    grids = (image, Volume(image.array, image.upright()))
    if any(label.same_grid(grid) for grid in grids):
        return Volume(label.array, image.affine, image.modality)
    o: Any = nib.orientations
    turn = o.ornt_transform(o.io_orientation(label.affine), o.io_orientation(image.affine))
    array = o.apply_orientation(label.array, turn)
    affine = label.affine @ o.inv_ornt_aff(turn, label.shape)
    turned = Volume(np.ascontiguousarray(array), affine, image.modality)
    if not any(turned.same_grid(grid) for grid in grids):
        raise GeometryError(
            f"the label map ({_grid(label)}) does not lie on the voxels of its image "
            f"({_grid(image)}). Save it with the image as reference geometry."
        )
    return Volume(turned.array, image.affine, image.modality)


def values_in(label: Volume) -> list[int]:
    """Values of a label map, without the background."""
    return [int(v) for v in np.unique(label.array) if v != 0]


def renumber(label: Volume, label_info: Any, values: Mapping[str, int]) -> Volume:
    """Give every structure the model's value, by its name.

    Parameters
    ----------
    label
        A label map with the client's values.
    label_info
        The client's list ``[{"name", "idx"}]``; None or empty: the values are the model's already.
        See ``names_in``.
    values
        Value of each structure of the model; empty while no model names its structures.

    Raises
    ------
    InvalidInputError
        The list is malformed.
    LabelError
        A voxel has a value without a name, one that may be two structures', or a name that the
        model does not know.
    """
    present = values_in(label)
    if present and present[0] < 0:
        raise LabelError(f"the label map holds the negative value {present[0]}.")
    named = named_values(label_info)
    if not values:
        return label
    if not named:
        unknown = sorted(set(present) - set(values.values()))
        if unknown:
            raise LabelError(
                f"the label map holds {unknown}, the model knows {dict(values)}. Correct the "
                "values, or send their names as label_info."
            )
        return label
    names = names_in(present, label_info)
    nameless = [v for v in present if v not in names]
    foreign = sorted({names[v] for v in present if v in names} - set(values))
    if nameless or foreign:
        raise LabelError(
            f"the label map holds structures that the model does not know: "
            f"{', '.join([*foreign, *(f'value {v}' for v in nameless)])}. It knows "
            f"{', '.join(values)}; rename or remove the others."
        )
    table = np.zeros(max(present, default=0) + 1, dtype=np.int16)
    for value in present:
        table[value] = values[names[value]]
    return Volume(table[label.array], label.affine, label.modality)


def names_in(present: Collection[int], label_info: Any) -> dict[int, str]:
    """Return the name of each value of a label map, by a client's list.

    3D Slicer counts left-out segments in ``idx`` but not in the file, whose values are then
    positions in the list. A value that neither reading names is not in what is returned.

    Raises
    ------
    InvalidInputError
        The list is malformed.
    LabelError
        Both readings are possible, and differ.
    """
    named = named_values(label_info)
    by_idx = dict(named)
    by_position = {i: name for i, (_, name) in enumerate(named, start=1)}
    readings = [r for r in (by_idx, by_position) if set(present) <= r.keys()]
    twofold = [v for v in present if len(readings) > 1 and by_idx[v] != by_position[v]]
    if twofold:
        value = twofold[0]
        raise LabelError(
            f"value {value} of the label map is {by_idx[value]!r} by its idx and "
            f"{by_position[value]!r} by its place in label_info, and the other values do not tell "
            "which is meant: a segment before them was left out. Remove that segment, or number "
            "the segments without gaps, and save again."
        )
    return readings[0] if readings else by_idx


def named_values(label_info: Any) -> list[tuple[int, str]]:
    """(value, name) of a client's list, without the background.

    Raises
    ------
    InvalidInputError
        The list is malformed.
    """
    if not label_info:
        return []
    if not isinstance(label_info, Sequence) or isinstance(label_info, str):
        raise InvalidInputError('label_info must be a list of {"name": …, "idx": …}.')
    named = []
    for position, item in enumerate(label_info):
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise InvalidInputError('label_info must be a list of {"name": …, "idx": …}.')
        idx = item.get("idx", position + 1)
        if isinstance(idx, bool) or not isinstance(idx, int) or not 0 <= idx <= 32767:
            raise InvalidInputError(f"label_info: idx {idx!r} must be a label value.")
        if item["name"] != "background":
            named.append((idx, item["name"]))
    return named


def _grid(volume: Volume) -> str:
    shape, spacing = volume.shape, volume.spacing
    return f"{'x'.join(map(str, shape))} voxels of {'x'.join(f'{s:.3g}' for s in spacing)} mm"
