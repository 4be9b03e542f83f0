"""Voxels of segments that lie outside the image: a label has no place for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import vtk

import slicer
from SegUnlearnLib.segmentation import as_label_map, ids_of

#: Of a voxel's width: a place on the image's edge lies in it.
_ROUNDING = 0.01


def outside_of(scene: Any, node: Any, volume: Any) -> Mapping[str, int]:
    """Count the voxels of segments that lie outside the volume, by name.

    Raises
    ------
    ValueError
        They cannot be made a label map.
    """
    ids = ids_of(node)
    found: Counter[str] = Counter()
    with as_label_map(scene, node, None, ids) as label_map:
        image = label_map.GetImageData()
        if image is None or not image.GetNumberOfPoints():
            return found  # all of them are empty
        array = slicer.util.arrayFromVolume(label_map)
        places = np.argwhere(array)
        there, back = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        label_map.GetIJKToRASMatrix(there)
        volume.GetRASToIJKMatrix(back)
        matrix = _array(back) @ _array(there)
        ijk = places[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
        edge = np.array(volume.GetImageData().GetDimensions()) - 0.5
        out = ((ijk < -0.5 - _ROUNDING) | (ijk > edge + _ROUNDING)).any(axis=1)
        values, counts = np.unique(array[tuple(places[out].T)], return_counts=True)
    for value, voxels in zip(values, counts, strict=True):
        name = node.GetSegmentation().GetSegment(ids[int(value) - 1]).GetName()
        found[str(name)] += int(voxels)
    return found


def _array(matrix: Any) -> Any:
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
