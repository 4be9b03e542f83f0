"""Masks of the server as segmentations, and segmentations as label maps for the server."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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
        That of the volume; segments of the same names are replaced, others stay.

    Raises
    ------
    ValueError
        It cannot be read, or is not on the volume's grid.
    """
    label_map = _read(scene, content, file_name)
    try:
        if not _same_grid(label_map, volume):
            raise ValueError("the mask is not on the grid of the image")
        node = segmentation_of(scene, volume)
        present = {int(v) for v in np.unique(slicer.util.arrayFromVolume(label_map))} - {0}
        ids = vtk.vtkStringArray()
        for name, value in sorted(names.items(), key=lambda item: item[1]):
            segment_id = _new_segment(node.GetSegmentation(), name)
            if value in present:
                ids.InsertNextValue(segment_id)
        if present - set(names.values()):
            raise ValueError("the mask holds a structure that has no name")
        _number(label_map, present)
        if (
            ids.GetNumberOfValues()
            and not slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(
                label_map, node, ids
            )
        ):
            raise ValueError("the mask cannot be made a segmentation")
    finally:
        _remove(scene, label_map)
    node.CreateDefaultDisplayNodes()
    return node


def segmentation_of(scene: Any, volume: Any) -> Any:
    """Return the volume's segmentation node, a new one where it has none."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLSegmentationNode")
        if node.GetNodeReferenceID(role) == volume.GetID() and node.GetAttribute(_OURS):
            return node
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


#: Attribute of the segmentations that this module made.
_OURS = "SegUnlearn.Mask"


def label_map_of(scene: Any, node: Any, volume: Any) -> tuple[bytes, str, list[dict[str, Any]]]:
    """Write a segmentation as one label map on the volume's grid.

    Returns
    -------
    bytes, str, list
        The file, its name, and ``{"name": …, "idx": …}`` of each segment, as the server reads it.

    Raises
    ------
    ValueError
        There is no segment.
    """
    segmentation = node.GetSegmentation()
    ids = vtk.vtkStringArray()
    segmentation.GetSegmentIDs(ids)
    if not ids.GetNumberOfValues():
        raise ValueError("the segmentation has no segment")
    label_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "SegUnlearn label")
    try:
        slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(
            node, ids, label_map, volume
        )
        content = _write(scene, label_map)
    finally:
        _remove(scene, label_map)
    named = [
        {"name": segmentation.GetSegment(ids.GetValue(i)).GetName(), "idx": i + 1}
        for i in range(ids.GetNumberOfValues())
    ]
    return content, "label.nrrd", named


def _number(label_map: Any, present: set[int]) -> None:
    """Give structures the numbers of their places: that is the value an import expects."""
    array = slicer.util.arrayFromVolume(label_map)
    for place, value in enumerate(sorted(present), start=1):
        if value != place:  # larger, so that none takes the number of one that is still to come
            array[array == value] = place
    label_map.GetImageData().Modified()


def _new_segment(segmentation: Any, name: str) -> str:
    old = segmentation.GetSegmentIdBySegmentName(name)
    if old:
        segmentation.RemoveSegment(old)
    return str(segmentation.AddEmptySegment("", name))


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
