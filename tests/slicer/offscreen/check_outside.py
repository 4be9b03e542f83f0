"""What lies outside the image is no part of its label: that is said before it is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vtk
from check_corrections import SHAPE
from check_faults import known_study
from check_overlaps import sent, submit

from conftest import SLICER
from SegUnlearnLib import segmentation
from SegUnlearnLib.outside import outside_of


@pytest.fixture(autouse=True)
def takes_labels(fake: Any) -> None:
    fake.answers["PUT /datastore/label"] = {"label": "x"}


def draw_beyond(scene: Any, volume: Any, name: str, voxels: int) -> None:
    """Import a segment from another grid: a row of voxels that begins before the image."""
    array = np.zeros((SHAPE[0], SHAPE[1], SHAPE[2] + voxels), np.uint8)
    array[1, 1, :] = 1
    grid = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    SLICER.util.updateVolumeFromArray(grid, array)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    for i in range(3):
        matrix.SetElement(i, 3, matrix.GetElement(i, 3) - voxels * matrix.GetElement(i, 0))
    grid.SetIJKToRASMatrix(matrix)
    node, ids = segmentation.segmentation_of(scene, volume), vtk.vtkStringArray()
    ids.InsertNextValue(str(node.GetSegmentation().AddEmptySegment("", name)))
    logic = SLICER.vtkSlicerSegmentationsModuleLogic
    assert logic.ImportLabelmapToSegmentationNode(grid, node, ids)
    scene.RemoveNode(grid)


@pytest.mark.parametrize("voxels", [0, 3])
def test_voxels_outside_are_counted(
    panel: Any, scene: Any, fake: Any, loop: Any, voxels: int
) -> None:
    volume = known_study(panel, scene)
    tilted = vtk.vtkMatrix4x4()
    for i, row in enumerate([(0.6, -1.6, 0, 5), (0.8, 1.2, 0, -7), (0, 0, 3, 20)]):
        for j, value in enumerate(row):
            tilted.SetElement(i, j, value)
    volume.SetIJKToRASMatrix(tilted)
    draw_beyond(scene, volume, "shell", voxels)
    panel.connect(fake.url)
    asked = submit(panel)
    assert ("3 voxels of shell outside the image" in asked.text()) == bool(voxels)
    assert ("outside" in asked.text()) == bool(voxels)
    panel.shot(f"outside-{voxels}")
    panel.confirm(asked)
    loop.until(lambda: sent(scene, fake))
    ((shell,),) = [label.values() for label in sent(scene, fake)]
    assert shell.sum() == SHAPE[2]


def test_nothing_is_outside_of_empty_segments(panel: Any, scene: Any, fake: Any) -> None:
    volume = known_study(panel, scene)
    node = segmentation.segmentation_of(scene, volume)
    assert outside_of(scene, node, volume) == {}
    node.GetSegmentation().AddEmptySegment("", "core")
    assert outside_of(scene, node, volume) == {}
