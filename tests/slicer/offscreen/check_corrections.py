"""What a radiologist drew is replaced by a new mask only when somebody says so."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import qt
from check_faults import known_study
from check_masks import voxels
from fake import mask

from conftest import SLICER, load_file, put_into_tree
from SegUnlearnLib import segmentation

LABELS = {"core": 1, "shell": 2}
SHAPE = (4, 5, 6)


def box(value: int, *, at: int = 1) -> Any:
    array = np.zeros(SHAPE, np.uint8)
    array[at : at + 2, 1:3, 1:4] = value
    return array


def nrrd(scene: Any, array: Any) -> bytes:
    """A label map on the grid of the images of ``load_file``."""
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    SLICER.util.updateVolumeFromArray(node, array)
    content = segmentation._write(scene, node)
    scene.RemoveNode(node)
    return content


def segments(node: Any) -> list[str]:
    inside = node.GetSegmentation()
    return [inside.GetNthSegment(i).GetName() for i in range(inside.GetNumberOfSegments())]


def segment(panel: Any, loop: Any) -> None:
    panel.click("segmentButton")
    loop.until(lambda: not panel.logic.masks.is_busy, what="the mask is there")


def test_corrections_are_replaced_when_somebody_says_so(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    volume = known_study(panel, scene)
    fake.answers["POST /infer/segmentation"] = mask(nrrd(scene, box(1)), LABELS)
    panel.connect(fake.url)
    segment(panel, loop)
    asked = panel.widget.masks.replace
    assert not asked.is_asking()  # there was nothing to lose
    node = segmentation.segmentation_of(scene, volume)
    np.testing.assert_array_equal(voxels(scene, node, volume, "core"), box(1) > 0)

    corrected = nrrd(scene, box(1, at=2))
    segmentation.show_mask(scene, volume, corrected, "x.nrrd", {"core": 1})
    node.GetSegmentation().AddEmptySegment("", "Core")  # a name of one's own
    for answer in ("no", "yes"):
        segment(panel, loop)
        loop.until(asked.is_asking, what="it asks")
        assert f"{node.GetName()}: core." in asked.text()  # shell is empty: nothing to lose
        assert "waits" in panel.find("maskState").text()
        assert panel.find("segmentButton").isEnabled()
        np.testing.assert_array_equal(voxels(scene, node, volume, "core"), box(1, at=2) > 0)
        panel.shot("replace")
        if answer == "no":
            loop.hold(asked.widget.findChild(qt.QWidget, "confirmCancel").click)
            assert "dropped" in panel.find("maskState").text()
            np.testing.assert_array_equal(voxels(scene, node, volume, "core"), box(1, at=2) > 0)
    panel.confirm(asked)
    np.testing.assert_array_equal(voxels(scene, node, volume, "core"), box(1) > 0)
    assert sorted(segments(node)) == ["Core", "core", "shell"]
    assert "Segmented by version v0001." in panel.find("maskState").text()


def test_a_mask_that_waits_is_not_dropped_without_a_word(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    """Whether the next one, of another image, is shown at once or asked about, too."""
    volume, other = known_study(panel, scene), load_file(scene, "MR")
    put_into_tree(scene, other, {"study": "1.9", "series": "1.9.1", "patient": "0815"})
    panel.widget.study.fill()
    fake.answers["POST /infer/segmentation"] = mask(nrrd(scene, box(1)), LABELS)
    panel.connect(fake.url)
    drawn = nrrd(scene, box(1, at=2))
    node = segmentation.show_mask(scene, volume, drawn, "x.nrrd", LABELS)
    asked, said = panel.widget.masks.replace, panel.find("maskState")
    for asks in (False, True):
        panel.choose("volumeChoice", volume.GetID())
        segment(panel, loop)
        assert f"{node.GetName()}: core." in asked.text()
        assert "was dropped" not in said.text()
        panel.choose("volumeChoice", other.GetID())
        if asks:
            segmentation.show_mask(scene, other, drawn, "x.nrrd", LABELS)
        segment(panel, loop)
        assert asked.is_asking() == asks
        assert f"The new mask for {node.GetName()} was dropped. Segmented by" in said.text()
    loop.hold(asked.widget.findChild(qt.QWidget, "confirmCancel").click)
    np.testing.assert_array_equal(voxels(scene, node, volume, "core"), box(1, at=2) > 0)


def test_what_was_drawn_while_the_server_segmented(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    volume, wait = known_study(panel, scene), threading.Event()
    fake.answers["POST /infer/segmentation"] = mask(nrrd(scene, box(2)), LABELS, wait)
    panel.connect(fake.url)
    panel.click("segmentButton")
    drawn = nrrd(scene, box(2, at=2))
    node = segmentation.show_mask(scene, volume, drawn, "x.nrrd", LABELS)
    wait.set()
    asked = panel.widget.masks.replace
    loop.until(asked.is_asking, what="it asks")
    assert ": shell." in asked.text()
    np.testing.assert_array_equal(voxels(scene, node, volume, "shell"), box(2, at=2) > 0)
    scene.RemoveNode(volume)  # and the image is closed before the answer
    panel.confirm(asked)
    loop.until(panel.banner)
    assert "was closed meanwhile" in panel.banner()


@pytest.mark.parametrize(
    ("array", "words"),
    [(box(7), "has no name"), (np.ones((4, 5, 7), np.uint8), "not on the grid")],
)
def test_a_mask_that_does_not_fit_removes_nothing(
    panel: Any, scene: Any, fake: Any, loop: Any, array: Any, words: str
) -> None:
    volume = known_study(panel, scene)
    panel.connect(fake.url)
    fake.answers["POST /infer/segmentation"] = mask(nrrd(scene, array), LABELS)
    segment(panel, loop)
    assert words in panel.banner()
    assert segmentation.found_segmentation(scene, volume) is None  # none is left behind, either
    panel.widget.banner.hide()
    drawn = nrrd(scene, box(1, at=2))
    node = segmentation.show_mask(scene, volume, drawn, "x.nrrd", LABELS)
    before = [node.GetSegmentation().GetNthSegmentID(i) for i in range(2)]
    segment(panel, loop)
    assert words in panel.banner()
    assert not panel.widget.masks.replace.is_asking()
    assert [node.GetSegmentation().GetNthSegmentID(i) for i in range(2)] == before
    np.testing.assert_array_equal(voxels(scene, node, volume, "core"), box(1, at=2) > 0)


def test_a_mask_that_slicer_cannot_take_removes_nothing(scene: Any, panel: Any) -> None:
    """Where the segments are kept as surfaces, an import fails."""
    import vtk

    volume = known_study(panel, scene)
    node = segmentation.segmentation_of(scene, volume)
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    ball = vtk.vtkSphereSource()
    ball.Update()
    drawn = node.AddSegmentFromClosedSurfaceRepresentation(ball.GetOutput(), "core", [1, 0, 0])
    assert segmentation.would_replace(scene, volume, LABELS) == ["core"]
    with pytest.raises(ValueError, match="cannot be made a segmentation"):
        segmentation.show_mask(scene, volume, nrrd(scene, box(1)), "x.nrrd", LABELS)
    assert segments(node) == ["core"]
    assert node.GetSegmentation().GetNthSegmentID(0) == drawn
