"""A label has one structure a voxel: what overlaps is said, and decided, before it is sent."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import qt
import vtk
from check_corrections import SHAPE, box, nrrd
from check_faults import known_study
from fake import INFO

from conftest import SLICER
from SegUnlearnLib import multipart, segmentation

TOLD = "core and shell share 6 voxels"


@pytest.fixture(autouse=True)
def takes_labels(fake: Any) -> None:
    fake.answers["PUT /datastore/label"] = {"label": "x"}


def draw(scene: Any, volume: Any, name: str, array: Any) -> Any:
    """Draw a segment over whatever is there, as with "Allow overlap" in the Segment Editor."""
    content = nrrd(scene, (array > 0).astype(np.uint8))
    return segmentation.show_mask(scene, volume, content, "x.nrrd", {name: 1})


def sent(scene: Any, fake: Any) -> list[dict[str, Any]]:
    """Voxels of each structure in the labels that the server was sent."""
    found = []
    for method, path, headers, body in fake.seen:
        if (method, path.partition("?")[0]) != ("PUT", "/datastore/label"):
            continue
        (kind,) = [v for name, v in headers.items() if name.lower() == "content-type"]
        parts = multipart.decode(body, kind)
        name, content = parts["label"]
        node = segmentation._read(scene, content, name)
        array = np.array(SLICER.util.arrayFromVolume(node))
        scene.RemoveNode(node)
        named = json.loads(parts["params"][1])["label_info"]
        found.append({one["name"]: array == one["idx"] for one in named})
    return found


def submit(panel: Any) -> Any:
    panel.click("submitButton")
    asked = panel.widget.masks.confirm
    assert asked.is_asking()
    return asked


def test_what_overlaps_is_told_before_anything_is_sent(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    volume = known_study(panel, scene)
    draw(scene, volume, "core", box(1))
    draw(scene, volume, "shell", box(1, at=2))
    panel.connect(fake.url)
    asked = submit(panel)
    assert TOLD in asked.text()
    assert "shell loses 6 of its 12 voxels" in asked.text()
    assert panel.find("overlapOrder").isVisible()
    panel.shot("overlap")
    loop.hold(asked.widget.findChild(qt.QWidget, "confirmCancel").click)
    assert not asked.is_asking()
    assert sent(scene, fake) == []
    node = segmentation.segmentation_of(scene, volume)
    assert node.GetSegmentation().GetNumberOfSegments() == 2  # nothing of them is changed


@pytest.mark.parametrize("wins", ["core", "shell"])
def test_the_segment_that_is_chosen_keeps_the_voxels(
    panel: Any, scene: Any, fake: Any, loop: Any, wins: str
) -> None:
    volume, core, shell = known_study(panel, scene), box(1) > 0, box(1, at=2) > 0
    draw(scene, volume, "core", core)
    draw(scene, volume, "shell", shell)
    panel.connect(fake.url)
    asked = submit(panel)
    if wins == "shell":
        panel.find("overlapOrder").setCurrentRow(1)
        panel.click("overlapUp")
        assert "core loses 6 of its 12 voxels" in asked.text()
        assert not panel.find("overlapUp").isEnabled()  # it is the first
    panel.confirm(asked)
    loop.until(lambda: not panel.logic.masks.is_busy and sent(scene, fake))
    (label,) = sent(scene, fake)
    np.testing.assert_array_equal(label["core"], core if wins == "core" else core & ~shell)
    np.testing.assert_array_equal(label["shell"], shell if wins == "shell" else shell & ~core)


def test_three_segments_and_one_that_is_covered(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    volume, hull = known_study(panel, scene), np.zeros(SHAPE, bool)
    fake.answers["/info/"] = info = copy.deepcopy(INFO)
    info["models"]["segmentation"]["labels"]["hull"] = 3
    hull[1, 1, 1] = hull[2, 1, 1] = True
    core, shell = box(1) > 0, box(1, at=2) > 0
    for name, array in (("core", core), ("shell", shell), ("hull", hull)):
        draw(scene, volume, name, array)
    panel.connect(fake.url)
    asked = submit(panel)
    for words in (TOLD, "core and hull share 2 voxels", "shell and hull share 1 voxel",
                  "Nothing is left of hull"):  # fmt: skip
        assert words in asked.text()
    for _ in range(2):
        row = [panel.find("overlapOrder").item(i).text() for i in range(3)].index("hull")
        panel.find("overlapOrder").setCurrentRow(row)
        panel.click("overlapUp")
    assert "Nothing is left" not in asked.text()
    assert "core loses 2 of its 12 voxels" in asked.text()
    assert "shell loses 6 of its 12 voxels" in asked.text()
    panel.confirm(asked)
    loop.until(lambda: sent(scene, fake))
    (label,) = sent(scene, fake)
    np.testing.assert_array_equal(label["hull"], hull)
    np.testing.assert_array_equal(label["core"], core & ~hull)
    np.testing.assert_array_equal(label["shell"], shell & ~core & ~hull)


def test_what_changed_since_the_question_is_not_sent(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    volume = known_study(panel, scene)
    draw(scene, volume, "core", box(1))
    panel.connect(fake.url)
    asked = submit(panel)
    assert "share" not in asked.text()
    assert not panel.find("overlapOrder").isVisible()
    draw(scene, volume, "shell", box(1, at=2))
    panel.confirm(asked)
    loop.until(panel.banner)
    assert "Nothing was sent" in panel.banner()
    assert sent(scene, fake) == []
    asked = submit(panel)
    assert TOLD in asked.text()
    panel.confirm(asked)
    loop.until(lambda: sent(scene, fake))


def test_surfaces_overlap_too(panel: Any, scene: Any, fake: Any, loop: Any) -> None:
    volume = known_study(panel, scene)
    node = segmentation.segmentation_of(scene, volume)
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    for name in ("core", "shell"):
        cube = vtk.vtkCubeSource()
        cube.SetBounds(0.6, 3.4, 0.6, 3.4, 0.6, 2.4)
        cube.Update()
        surface = vtk.vtkTriangleFilter()
        surface.SetInputConnection(cube.GetOutputPort())
        surface.Update()
        node.AddSegmentFromClosedSurfaceRepresentation(surface.GetOutput(), name, [1, 0, 0])
    panel.connect(fake.url)
    asked = submit(panel)
    assert "core and shell share" in asked.text()
    assert "Nothing is left of shell" in asked.text()


def test_two_segments_of_one_structure_lose_nothing(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    """The server puts them together, by their name."""
    volume = known_study(panel, scene)
    node = draw(scene, volume, "core", box(1))
    draw(scene, volume, "shell", box(1, at=2))
    inside = node.GetSegmentation()
    inside.GetNthSegment(1).SetName("core")
    panel.connect(fake.url)
    asked = submit(panel)
    assert "share" not in asked.text()
    panel.confirm(asked)
    loop.until(lambda: sent(scene, fake))
