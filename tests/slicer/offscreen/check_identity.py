"""Whose study is this: for volumes from DICOM, from MONAI Label and from files."""

from __future__ import annotations

import types
from typing import Any

import doubles
import pytest

from conftest import SLICER, load_file, put_into_tree
from SegUnlearnLib import hierarchy, identity
from SegUnlearnLib.identity import Identity, Unknown

ONE = {"study": "1.2.3", "series": "1.2.3.4", "patient": "4711"}
OTHER = {"study": "1.9", "series": "1.9.1", "patient": "0815"}


def tags(study: dict[str, str]) -> dict[str, str]:
    return {
        "0020,000D": study["study"], "0020,000E": study["series"], "0010,0020": study["patient"],
    }  # fmt: skip


def who(volume: Any, scene: Any, database: Any = None, module: Any = None) -> Any:
    return identity.of_volume(volume, scene, database, module)


def test_the_subject_hierarchy_comes_first(scene: Any) -> None:
    volume = load_file(scene)
    put_into_tree(scene, volume, ONE)
    volume.SetAttribute("DICOM.instanceUIDs", "1.9.1.1")
    found = who(volume, scene, doubles.Database({"1.9.1.1": tags(OTHER)}))
    assert found == Identity("1.2.3", "1.2.3.4", "4711", "1.2.3.4", "subject hierarchy")


def test_then_the_instances_it_was_loaded_from(scene: Any) -> None:
    volume = load_file(scene)
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3.4.1 Unknown 1.2.3.4.2")
    known = doubles.Database({"1.2.3.4.1": tags(ONE), "1.2.3.4.2": tags(ONE)})
    found = who(volume, scene, known)
    assert found == Identity("1.2.3", "1.2.3.4", "4711", "1.2.3.4", "DICOM database")


def test_instances_of_two_studies_are_refused_even_with_a_sample(scene: Any) -> None:
    volume = load_file(scene)
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3.4.1 1.9.1.1")
    module = types.SimpleNamespace(current_sample={"id": "1.9.1"}, _volumeNode=volume)
    both = doubles.Database({"1.2.3.4.1": tags(ONE), "1.9.1.1": tags(OTHER)})
    found = who(volume, scene, both, module)
    assert isinstance(found, Unknown)
    assert "several studies" in found.reason


def test_instances_of_two_series_name_the_study_only(scene: Any) -> None:
    volume = load_file(scene)
    volume.SetAttribute("DICOM.instanceUIDs", "a b")
    both = doubles.Database({"a": tags(ONE), "b": tags({**ONE, "series": "1.2.3.5"})})
    assert who(volume, scene, both) == Identity("1.2.3", "", "4711", "", "DICOM database")


SAMPLE = {
    "id": "1.2.3.4", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4",
    "PatientID": "4711",
}  # fmt: skip


def test_then_the_sample_of_monai_label(scene: Any) -> None:
    volume = load_file(scene)
    module = types.SimpleNamespace(current_sample=SAMPLE, _volumeNode=volume)
    assert who(volume, scene, None, module) == Identity(
        "1.2.3", "1.2.3.4", "4711", "1.2.3.4", "MONAI Label"
    )


@pytest.mark.parametrize("fault", ["another volume", "session", "no sample"])
def test_a_sample_that_is_not_this_image_is_no_proof(scene: Any, fault: str) -> None:
    volume, other = load_file(scene), load_file(scene)
    module = types.SimpleNamespace(current_sample=dict(SAMPLE), _volumeNode=volume)
    if fault == "another volume":
        module._volumeNode = other
    elif fault == "session":  # uploaded under the node's name
        module.current_sample = {"id": "P-0815", "session": True}
    else:
        module.current_sample = None
    assert isinstance(who(volume, scene, None, module), Unknown)


def test_a_file_is_refused_and_told_how_to_load_it(scene: Any) -> None:
    found = who(load_file(scene, name="1.2.3.4"), scene, doubles.Database({"x": tags(ONE)}))
    assert isinstance(found, Unknown)
    assert "Next Sample" in found.reason
    assert isinstance(who(None, scene), Unknown)


def test_items_of_the_tree(scene: Any) -> None:
    volume = load_file(scene)
    item = put_into_tree(scene, volume, ONE)
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study, patient = tree.GetItemByUID("DICOM", "1.2.3"), tree.GetItemByUID("DICOM", "4711")
    assert identity.of_item(tree, item).series == "1.2.3.4"
    assert identity.of_item(tree, study) == Identity("1.2.3", "", "4711", "", "subject hierarchy")
    assert identity.of_item(tree, patient) == Identity(patient="4711", source="subject hierarchy")
    kinds = [hierarchy.kind_of(tree, i) for i in (item, study, patient)]
    assert kinds == ["series", "study", "patient"]


def test_a_stranger_dropped_into_a_study_is_not_of_it(scene: Any) -> None:
    put_into_tree(scene, load_file(scene), ONE)
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    stranger = load_file(scene, "somebody else")
    tree.CreateItem(tree.GetItemByUID("DICOM", "1.2.3"), stranger)
    assert isinstance(who(stranger, scene, doubles.Database({})), Unknown)


def test_series_of_the_dicom_browser() -> None:
    known = doubles.Database({"a": tags(ONE), "b": tags(OTHER)})
    assert identity.of_series(["'1.2.3.4'"], known).study == "1.2.3"
    assert isinstance(identity.of_series(["1.2.3.4", "1.9.1"], known), Unknown)
    assert isinstance(identity.of_series([], known), Unknown)
    assert isinstance(identity.of_series(["7"], known), Unknown)


def test_states_are_noted_at_the_study(scene: Any) -> None:
    item = put_into_tree(scene, load_file(scene), ONE)
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    hierarchy.remember(scene, "1.2.3", "approved", "Approved")
    hierarchy.remember(scene, "9.9", "approved", "Approved")  # not in the tree: nothing happens
    assert hierarchy.state_of(tree, item) == "approved"
    assert hierarchy.state_of(tree, tree.GetItemByUID("DICOM", "4711")) == ""
