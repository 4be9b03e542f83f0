"""A mask from the server as a segmentation, corrected, submitted, and read back by the server."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import numpy as np
import pytest
import vtk

from conftest import SLICER, load_dicom, load_file
from SegUnlearnLib import segmentation


def fetched(place: Any, scene: Any, study: dict[str, Any], path: str) -> Any:
    """What the server has, read without the panel."""
    with urllib.request.urlopen(f"{place.url}{path}", timeout=60) as answer:
        return segmentation._read(scene, answer.read(), "x.nii.gz")


def geometry(node: Any) -> list[float]:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return [matrix.GetElement(i, j) for i in range(4) for j in range(4)]


def voxels(scene: Any, node: Any, volume: Any, name: str) -> Any:
    """Voxels of a segment on the volume's grid."""
    ids = vtk.vtkStringArray()
    ((segment_id, _),) = segmentation._segments_named(node.GetSegmentation(), [name])
    ids.InsertNextValue(segment_id)
    label_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    SLICER.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(
        node, ids, label_map, volume
    )
    array = np.array(SLICER.util.arrayFromVolume(label_map)) > 0
    scene.RemoveNode(label_map)
    return array


def served_mask(place: Any, scene: Any, study: dict[str, Any]) -> Any:
    """The mask of ``/infer`` by another client."""
    url = f"{place.url}/infer/segmentation?image={study['series']}&output=image"
    body = b"params=" + json.dumps({"result_extension": ".nrrd"}).encode()
    request = urllib.request.Request(url, body, method="POST")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return segmentation._read(scene, answer.read(), "x.nrrd")


def test_segment_correct_submit(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    study = place.unseen(4)
    volume = load_dicom(scene, study)
    panel.widget.enter()
    panel.connect(place.url)
    loop.until(lambda: panel.find("segmentButton").isEnabled())
    results: list[Any] = []
    panel.logic.masks.segmented.connect(lambda node, params: results.append((node, params)))
    panel.click("segmentButton")
    assert not panel.find("segmentButton").isEnabled()
    loop.until(lambda: results or panel.banner(), 120, "the mask is there")
    assert panel.banner() == ""
    ((node, params),) = results
    assert params["version"] in panel.find("maskState").text()

    expected = served_mask(place, scene, study)
    assert geometry(expected) == geometry(volume) or np.allclose(
        geometry(expected), geometry(volume), atol=1e-4
    )
    truth = SLICER.util.arrayFromVolume(expected)
    for name, value in place.labels.items():
        np.testing.assert_array_equal(voxels(scene, node, volume, name), truth == value)
    panel.shot("segmented")

    # corrected: one structure becomes a box
    wanted = np.zeros(truth.shape, np.uint8)
    wanted[3:6, 4:9, 5:11] = place.labels["core"]
    label_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    SLICER.util.updateVolumeFromArray(label_map, wanted)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    label_map.SetIJKToRASMatrix(matrix)
    content = segmentation._write(scene, label_map)
    assert segmentation.show_mask(scene, volume, content, "x.nrrd", place.labels) is node
    saved: list[Any] = []
    panel.logic.masks.saved.connect(saved.append)
    panel.click("submitButton")
    panel.confirm(panel.widget.masks.confirm)
    loop.until(lambda: saved or panel.banner(), 60, "it is saved")
    assert panel.banner() == ""
    back = fetched(place, scene, study, f"/datastore/label?label={study['series']}&tag=final")
    assert np.allclose(geometry(back), geometry(volume), atol=1e-4)
    np.testing.assert_array_equal(SLICER.util.arrayFromVolume(back), wanted)


def test_a_stranger_in_the_segmentation_is_not_sent(
    panel: Any, scene: Any, place: Any, loop: Any
) -> None:
    volume = load_dicom(scene, place.unseen(4))
    panel.widget.enter()
    panel.connect(place.url)
    node = segmentation.segmentation_of(scene, volume)
    node.GetSegmentation().AddEmptySegment("", "lesion")
    panel.click("submitButton")
    panel.confirm(panel.widget.masks.confirm)
    loop.until(panel.banner)
    assert "no structure lesion" in panel.banner()
    assert panel.find("submitButton").isEnabled()


def test_a_mask_of_another_grid_is_refused(scene: Any) -> None:
    volume, other = load_file(scene), load_file(scene)
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 2.0)
    other.SetIJKToRASMatrix(matrix)
    label_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    SLICER.util.updateVolumeFromArray(label_map, np.ones((4, 5, 6), np.uint8))
    label_map.SetIJKToRASMatrix(matrix)
    content = segmentation._write(scene, label_map)
    assert segmentation.show_mask(scene, other, content, "a.nrrd", {"core": 1}) is not None
    for bad in (content, b"no image"):
        with pytest.raises(ValueError, match="the mask"):
            segmentation.show_mask(scene, volume, bad, "a.nrrd", {"core": 1})
    names = [scene.GetNthNode(i).GetName() for i in range(scene.GetNumberOfNodes())]
    assert "SegUnlearn mask" not in names


@pytest.mark.parametrize("present", [(), (1,), (2,), (5,), (1, 5), (2, 5), (1, 2, 5)])
def test_each_structure_by_its_value(scene: Any, present: tuple[int, ...]) -> None:
    """Slicer imports by position: a structure that is not in the mask must not shift the others."""
    names = {"core": 1, "shell": 2, "hull": 5}
    volume, array = load_file(scene), np.zeros((4, 5, 6), np.uint8)
    for value in present:
        array[1 : 1 + value % 3, 1:3, value - 1] = value
    label_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    SLICER.util.updateVolumeFromArray(label_map, array)
    content = segmentation._write(scene, label_map)
    node = segmentation.show_mask(scene, volume, content, "a.nrrd", names)
    for name, value in names.items():
        np.testing.assert_array_equal(voxels(scene, node, volume, name), array == value, name)

    sent, file_name, named = segmentation.label_map_of(scene, node, volume)
    back = SLICER.util.arrayFromVolume(segmentation._read(scene, sent, file_name))
    for one in named:
        np.testing.assert_array_equal(back == one["idx"], array == names[one["name"]], one["name"])
