"""The entry of the module: what Slicer does with it from start to end, on the doubles."""

from __future__ import annotations

import sys
import types
from typing import Any

import doubles
import qt

from conftest import ROOT, SLICER, load_file, put_into_tree


def test_from_start_to_end(scene: Any, loop: Any, tmp_path: Any, monkeypatch: Any) -> None:
    settings = qt.QSettings(str(tmp_path / "all.ini"), qt.QSettings.IniFormat)
    monkeypatch.setattr(qt, "QSettings", lambda *_: settings)
    sys.path.insert(0, str(ROOT / "lib" / "slicer" / "SegUnlearn"))
    import SegUnlearn

    browser = doubles.Browser()
    representation = types.SimpleNamespace(
        self=lambda: types.SimpleNamespace(browserWidget=browser)
    )
    SLICER.modules.dicom = types.SimpleNamespace(widgetRepresentation=lambda: representation)
    parent = types.SimpleNamespace()
    module = SegUnlearn.SegUnlearn(parent)
    assert (parent.title, parent.categories) == ("SegUnlearn", ["Active Learning"])
    SLICER.app.startupCompleted.emit()
    assert doubles.ScriptedPlugin.made.scriptedPlugin.name == "SegUnlearn"
    button = browser.findChild(qt.QWidget, "SegUnlearnMarkButton")
    assert button is not None

    widget = SegUnlearn.SegUnlearnWidget()
    widget.setup()
    SLICER.modules.SegUnlearnWidget = widget
    widget.enter()
    assert widget.panel.logic.session.server is None  # no address was agreed to: nothing is asked
    assert not widget.panel.logic.session.connecting
    volume = load_file(scene, "CT")
    put_into_tree(scene, volume, {"study": "1.2", "series": "1.2.3", "patient": "P"})
    loop.until(lambda: widget.panel.study.volume() is volume, what="the scene is observed")
    loop.until(lambda: getattr(widget.panel.logic.study.identity, "study", "") == "1.2")
    scene.RemoveNode(volume)
    loop.until(lambda: widget.panel.study.volume() is None)
    widget.exit()
    widget.cleanup()
    load_file(scene, "after the end")
    loop.turn()  # nobody listens any more
    del module

    test = SegUnlearn.SegUnlearnTest()
    test.runTest()
    assert test.displayed == "Test passed"


def test_slicer_without_a_dicom_module(scene: Any, loop: Any, caplog: Any) -> None:
    import SegUnlearn

    SegUnlearn.SegUnlearn(types.SimpleNamespace())._started()
    assert "no button to the DICOM browser" in caplog.text
