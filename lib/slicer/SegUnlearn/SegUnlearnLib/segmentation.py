"""Masks of the server as segmentations, and segmentations as label maps for the server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import vtk

import slicer


def show_mask(
    scene: Any, volume: Any, content: bytes, file_name: str, names: Mapping[str, int]
) -> Any:
    """Put a mask into the volume's segmentation node, each structure a segment.

    Parameters
    ----------
    scene, volume
        Where to, and what was segmented.
    content, file_name
        The mask as the server sent it; the name's ending tells the format.
    names
        Value of each structure; those that are not in the mask become empty segments.

    Returns
    -------
    vtkMRMLSegmentationNode
        That of the volume; segments of the same names are replaced, others stay. Ask before, see
        ``would_replace``.

    Raises
    ------
    ValueError
        It cannot be read, is not on the volume's grid, or holds what has no name; nothing was
        changed.
    """
    label_map = _read(scene, content, file_name)
    try:
        present = _structures(label_map, volume, names)
        node = segmentation_of(scene, volume)
        segmentation = node.GetSegmentation()
        old = [segment_id for segment_id, _ in _segments_named(segmentation, names)]
        new, ids = [], vtk.vtkStringArray()
        for name, value in sorted(names.items(), key=lambda item: item[1]):
            new.append(str(segmentation.AddEmptySegment("", name)))
            if value in present:
                ids.InsertNextValue(new[-1])
        _number(label_map, present)
        done = (
            not present
            or slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(
                label_map, node, ids
            )
        )
        for segment_id in old if done else new:
            segmentation.RemoveSegment(segment_id)
        if not done:
            raise ValueError("the mask cannot be made a segmentation")
    finally:
        _remove(scene, label_map)
    node.CreateDefaultDisplayNodes()
    return node


def would_replace(scene: Any, volume: Any, names: Iterable[str]) -> list[str]:
    """List the volume's segments that hold something and that a mask would replace."""
    node = found_segmentation(scene, volume)
    if node is None:
        return []
    found = _segments_named(node.GetSegmentation(), names)
    return [name for segment_id, name in found if _holds_something(node, segment_id)]


def check_mask(
    scene: Any, volume: Any, content: bytes, file_name: str, names: Mapping[str, int]
) -> None:
    """Raise ``show_mask``'s error if the mask does not fit; nothing is changed."""
    label_map = _read(scene, content, file_name)
    try:
        _structures(label_map, volume, names)
    finally:
        _remove(scene, label_map)


def segmentation_of(scene: Any, volume: Any) -> Any:
    """Return the volume's segmentation node, a new one where it has none."""
    found = found_segmentation(scene, volume)
    if found is not None:
        return found
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{volume.GetName()} structures")
    node.SetAttribute(_OURS, "1")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is not None and hierarchy.GetItemByDataNode(volume):
        parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volume))
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, parent)
    return node


def found_segmentation(scene: Any, volume: Any) -> Any:
    """Return the volume's segmentation node, None where it has none."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLSegmentationNode")
        if node.GetNodeReferenceID(role) == volume.GetID() and node.GetAttribute(_OURS):
            return node
    return None


#: Attribute of the segmentations that this module made.
_OURS = "SegUnlearn.Mask"


def ids_of(node: Any) -> list[str]:
    """Ids of a segmentation's segments, in its order."""
    inside = node.GetSegmentation()
    return [str(inside.GetNthSegmentID(i)) for i in range(int(inside.GetNumberOfSegments()))]


@contextmanager
def exported(scene: Any, node: Any, volume: Any, ids: Iterable[str]) -> Iterator[Any]:
    """Give some segments as an array on the volume's grid, while the block runs.

    The values are their places, from 1; a voxel that several have is given to the last of them.

    Raises
    ------
    ValueError
        They cannot be made a label map.
    """
    with as_label_map(scene, node, volume, ids) as label_map:
        yield slicer.util.arrayFromVolume(label_map)


@contextmanager
def as_label_map(scene: Any, node: Any, volume: Any, ids: Iterable[str]) -> Iterator[Any]:
    """Give some segments as a label map node; see ``exported``. None for the volume: all voxels."""
    wanted = vtk.vtkStringArray()
    for segment_id in ids:
        wanted.InsertNextValue(segment_id)
    label_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "SegUnlearn label")
    try:
        if not slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(
            node, wanted, label_map, volume
        ):
            raise ValueError("the segments cannot be made a label map")
        yield label_map
    finally:
        _remove(scene, label_map)


def label_map_of(
    scene: Any, node: Any, volume: Any, order: Sequence[str] = ()
) -> tuple[bytes, str, list[dict[str, Any]]]:
    """Write a segmentation as one label map on the volume's grid.

    Parameters
    ----------
    scene, node, volume
        The segmentation, and the image whose grid it gets.
    order
        Ids of the segments that overlap; the first of them keeps what several have.

    Returns
    -------
    bytes, str, list
        The file, its name, and ``{"name": …, "idx": …}`` of each segment, as the server reads it.

    Raises
    ------
    ValueError
        There is no segment, or they cannot be made a label map.
    """
    segmentation = node.GetSegmentation()
    ids = [i for i in ids_of(node) if i not in order] + list(reversed(order))
    if not ids:
        raise ValueError("the segmentation has no segment")
    with as_label_map(scene, node, volume, ids) as label_map:
        content = _write(scene, label_map)
    named = [
        {"name": segmentation.GetSegment(segment_id).GetName(), "idx": place}
        for place, segment_id in enumerate(ids, start=1)
    ]
    return content, "label.nrrd", named


def _structures(label_map: Any, volume: Any, names: Mapping[str, int]) -> set[int]:
    """Return the values that a mask holds, if it fits."""
    if not _same_grid(label_map, volume):
        raise ValueError("the mask is not on the grid of the image")
    present = {int(v) for v in np.unique(slicer.util.arrayFromVolume(label_map))} - {0}
    if present - set(names.values()):
        raise ValueError("the mask holds a structure that has no name")
    return present


def _number(label_map: Any, present: set[int]) -> None:
    """Give structures the numbers of their places: that is the value an import expects."""
    array = slicer.util.arrayFromVolume(label_map)
    for place, value in enumerate(sorted(present), start=1):
        if value != place:  # larger, so that none takes the number of one that is still to come
            array[array == value] = place
    label_map.GetImageData().Modified()


def _segments_named(segmentation: Any, names: Iterable[str]) -> list[tuple[str, str]]:
    """Ids and names of the segments of these names, exactly: VTK takes Core for core."""
    ids = [str(segmentation.GetNthSegmentID(i)) for i in range(segmentation.GetNumberOfSegments())]
    named = [(i, str(segmentation.GetSegment(i).GetName())) for i in ids]
    return [(segment_id, name) for segment_id, name in named if name in names]


def _holds_something(node: Any, segment_id: str) -> bool:
    segment, classes = (
        node.GetSegmentation().GetSegment(segment_id),
        slicer.vtkSegmentationConverter,
    )
    if segment.GetRepresentation(classes.GetBinaryLabelmapRepresentationName()) is not None:
        image = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(segment_id, image)
        return bool(image.GetNumberOfPoints() and image.GetScalarRange()[1] > 0)
    surface = segment.GetRepresentation(classes.GetClosedSurfaceRepresentationName())
    return surface is not None and bool(surface.GetNumberOfPoints())


def _remove(scene: Any, label_map: Any) -> None:
    """Remove a label map with the colours that an export made for it."""
    display = label_map.GetDisplayNode()
    if display is not None:
        colours = display.GetColorNode()
        if colours is not None and colours.GetName().endswith("_ColorTable"):
            scene.RemoveNode(colours)
        scene.RemoveNode(display)
    scene.RemoveNode(label_map)


def _same_grid(one: Any, other: Any) -> bool:
    matrices = []
    for node in (one, other):
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        matrices.append([matrix.GetElement(i, j) for i in range(4) for j in range(4)])
    close = all(abs(a - b) < 1e-3 for a, b in zip(*matrices, strict=True))
    return close and one.GetImageData().GetDimensions() == other.GetImageData().GetDimensions()


def _read(scene: Any, content: bytes, file_name: str) -> Any:
    suffix = ".nii.gz" if file_name.endswith(".nii.gz") else Path(file_name).suffix
    with tempfile.TemporaryDirectory(prefix="segunlearn-") as folder:
        path = Path(folder) / f"mask{suffix}"
        path.write_bytes(content)
        node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "SegUnlearn mask")
        storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        try:
            storage.SetFileName(str(path))
            storage.SetSingleFile(True)
            read = storage.ReadData(node)
        finally:
            scene.RemoveNode(storage)
    if not read or node.GetImageData() is None:
        scene.RemoveNode(node)
        raise ValueError("the mask cannot be read")
    return node


def _write(scene: Any, node: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="segunlearn-") as folder:
        path = Path(folder) / "label.nrrd"
        storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        try:
            storage.SetFileName(str(path))
            written = storage.WriteData(node)
        finally:
            scene.RemoveNode(storage)
        if not written:
            raise ValueError("the label map cannot be written")
        return path.read_bytes()
