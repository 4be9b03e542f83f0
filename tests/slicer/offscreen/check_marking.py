"""Marking from the panel, the tree's menu and the DICOM browser, on the real server."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import doubles
import qt
from check_unlearning import post, select

from conftest import SLICER, load_dicom, load_file, put_into_tree
from SegUnlearnLib import hierarchy
from SegUnlearnLib.dicom_browser import BrowserButton
from SegUnlearnLib.identity import Identity


def state(panel: Any) -> str:
    return str(panel.find("studyState").text())


def marks(panel: Any, study: str) -> list[dict[str, Any]]:
    found = panel.logic.forget_set.requests.values()
    return [r for r in found if r["target"]["id"] == study]


def test_marking_a_study_from_the_panel(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    study = place.unseen(0)
    load_dicom(scene, study)
    panel.widget.enter()
    assert not panel.find("markButton").isEnabled()  # nothing is sent anywhere yet
    panel.connect(place.url)
    loop.until(lambda: "Not marked" in state(panel), what="its state is known")
    loop.until(
        lambda: panel.logic.study.counted.get("study") == 2, what="its image and its label count"
    )
    panel.shot("study")
    panel.choose("markReason", "other")
    assert not panel.find("markButton").isEnabled()  # other needs a note
    panel.find("markNote").setText("asked by phone")
    panel.click("markButton")
    asked = panel.widget.study.confirm
    assert "2 series on the server" in asked.text()
    panel.shot("mark")
    panel.confirm(asked)
    loop.until(lambda: marks(panel, study["study"]), what="the table shows the request")
    loop.until(lambda: "approval" in state(panel), what="the state is shown")
    (request,) = marks(panel, study["study"])
    assert (request["target"]["kind"], request["state"]) == ("study", "requested")
    assert (request["reason"], request["note"]) == ("other", "asked by phone")
    assert panel.find("markNote").text() == ""
    assert "marked" in panel.banner()
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = tree.GetItemByUID("DICOM", study["study"])
    assert hierarchy.state_of(tree, item) == "requested"
    panel.shot("marked")


def test_a_series_and_a_patient(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    study = place.unseen(1)
    load_dicom(scene, study, tree=False)  # known from the DICOM database
    panel.widget.enter()
    panel.connect(place.url)
    for kind in ("series", "patient"):
        panel.choose("markKind", kind)
        panel.choose("markReason", "quality")
        panel.click("markButton")
        panel.confirm(panel.widget.study.confirm)
        loop.until(lambda kind=kind: marks(panel, study[kind]), what=f"the {kind} is marked")
        (request,) = marks(panel, study[kind])
        assert request["target"]["kind"] == kind
    withdrawn = marks(panel, study["patient"])[0]["request_id"]
    select(panel, withdrawn)
    panel.click("withdrawButton")
    panel.confirm(panel.widget.forget.confirm, "1")
    loop.until(lambda: marks(panel, study["patient"])[0]["state"] == "withdrawn")


def test_a_sample_of_monai_label(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    """Known by what the server really sends with Next Sample, not by the name of the node."""
    sample = post(place, "/activelearning/first")
    study = place.studies[-1]  # the only one without a label
    volume = load_file(scene, sample["name"])
    SLICER.modules.MONAILabelWidget = types.SimpleNamespace(
        current_sample=sample, _volumeNode=volume
    )
    panel.widget.enter()
    panel.connect(place.url)
    found = panel.logic.study.identity
    assert (found.study, found.series, found.image) == (
        study["study"], study["series"], sample["id"],
    )  # fmt: skip
    assert found.source == "MONAI Label"
    loop.until(lambda: panel.logic.study.counted.get("study") == 1, what="the server knows it")
    assert panel.find("segmentButton").isEnabled()


def test_a_file_is_never_marked(panel: Any, scene: Any, place: Any) -> None:
    load_file(scene, place.unseen(2)["study"])  # its name is a UID of the server: no proof
    panel.widget.enter()
    panel.connect(place.url)
    assert not panel.find("markButton").isVisible()
    assert "loaded from a file" in state(panel)
    panel.shot("unknown")


def test_the_menu_of_the_subject_hierarchy(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    study = place.unseen(2)
    load_dicom(scene, study)
    stranger = load_file(scene)
    SLICER.modules.SegUnlearnWidget = type("Module", (), {"panel": panel.widget})()
    shown: list[str] = []
    SLICER.util.selectModule = shown.append
    plugin = doubles.ScriptedPlugin()
    library = Path(hierarchy.__file__).parent
    plugin.setPythonSource(str(library / "SegUnlearnSubjectHierarchyPlugin.py"))
    made = doubles.ScriptedPlugin.made
    assert plugin.name == "SegUnlearn"
    (action,) = made.itemContextMenuActions()
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)

    made.showContextMenuActionsForItem(tree.CreateItem(tree.GetSceneItemID(), stranger))
    assert not action.isVisible()
    made.showContextMenuActionsForItem(0)
    assert not action.isVisible()

    panel.widget.enter()
    panel.connect(place.url)
    item = tree.GetItemByUID("DICOM", study["study"])
    made.showContextMenuActionsForItem(item)
    assert action.isVisible()
    assert action.text() == "Mark for forgetting…"
    loop.hold(action.trigger)
    assert shown == ["SegUnlearn"]
    assert panel.find("markKind").currentData() == "study"
    loop.until(lambda: panel.find("markButton").isEnabled())
    panel.click("markButton")
    panel.confirm(panel.widget.study.confirm)
    loop.until(lambda: marks(panel, study["study"]), what="it is marked")
    loop.until(lambda: hierarchy.state_of(tree, item) == "requested")
    made.showContextMenuActionsForItem(item)
    assert action.text() == "Mark for forgetting… (requested)"
    assert not action.icon().isNull()


def test_a_dot_on_the_study_in_the_tree(panel: Any, scene: Any, loop: Any) -> None:
    """Drawn over the owner's icon, again after Slicer drew it anew, and gone with the mark."""
    volume, study = load_file(scene), {"study": "1.2", "series": "1.2.3", "patient": "P"}
    put_into_tree(scene, volume, study)
    pixmap = qt.QPixmap(16, 16)
    pixmap.fill(qt.QColor("white"))
    model = doubles.TreeModel(SLICER, qt.QIcon(pixmap))
    SLICER.modules.data = data = doubles.DataModule(model)
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = tree.GetItemByUID("DICOM", "1.2")
    view = data.view.model()

    def colours(row: Any) -> list[str]:
        """Of the icon's upper left and its lower right part."""
        image = view.data(row, qt.Qt.DecorationRole).pixmap(16, 16).toImage()
        return [image.pixelColor(*at).name() for at in ((2, 2), (11, 11))]

    def study_row() -> Any:
        return view.index(0, 0, view.index(0, 0))

    assert int(view.data(study_row(), model.ITEM)) == item
    panel.logic.study.identity = Identity("1.2", "1.2.3", source="test")
    for state, dot in (
        ("requested", "#d99a00"), ("approved", "#2f7de1"), ("free", "#ffffff"),
        ("fulfilled", "#2e9e4f"),
    ):  # fmt: skip
        panel.logic.study.state = state
        panel.logic.study.changed.emit()
        loop.until(lambda dot=dot: colours(study_row()) == ["#ffffff", dot], 5, f"{state}: {dot}")
    assert colours(view.index(0, 0)) == ["#ffffff", "#ffffff"]  # the patient's
    tree.SetItemName(item, "renamed")  # Slicer draws its own icons anew
    assert colours(study_row())[1] == "#ffffff"
    loop.until(lambda: colours(study_row())[1] == "#2e9e4f", 5, "it is drawn again")
    assert model.edits == 0
    assert tree.GetItemName(item) == "renamed"


def test_a_button_in_the_dicom_browser(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    study = place.unseen(3)
    load_dicom(scene, study, tree=False)
    database = SLICER.dicomDatabase
    browser = doubles.Browser()
    button = BrowserButton(browser, lambda: database, panel.widget.propose_mark)
    panel.connect(place.url)
    loop.hold(button.button.click)
    assert "Select a series" in state(panel)
    browser.tables.selection = [f"'{study['series']}'"]
    loop.hold(button.button.click)
    assert panel.logic.study.identity.study == study["study"]
    loop.until(lambda: "Not marked" in state(panel), what="the server knows it")
    assert browser.findChild(qt.QWidget, "SegUnlearnMarkButton") is not None


def test_the_doubles_offer_what_slicer_documents(loop: Any) -> None:
    for name, methods in doubles.API.items():
        own = {m for m in vars(getattr(doubles, name)) if not m.startswith("_")}
        assert own - {"made", "selection", "staticMetaObject"} == methods - {"name"}, name
