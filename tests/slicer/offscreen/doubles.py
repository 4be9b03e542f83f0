"""What 3D Slicer has and slicer-core lacks, as small stand-ins on PySide6.

Real: the MRML scene and nodes, segmentations, the subject hierarchy, Qt. Not real: ``qt`` is
PySide6 instead of PythonQt, and the application, its module manager, DICOM database and plugin
handler are the classes below. ``API`` lists each method of a stand-in that the module calls, as
Slicer's API documentation names it; a test holds the two together.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import vtk
from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

#: Class of the double -> methods that the module may call.
API = {
    "Database": {"instanceValue", "instancesForSeries"},
    "TableManager": {"currentSeriesSelection"},
    "ScriptedPlugin": {"name", "setPythonSource"},
}


def make_qt() -> types.ModuleType:
    """Return a module ``qt`` with the names that PythonQt puts there."""
    qt = types.ModuleType("qt")
    for module in (QtCore, QtGui, QtWidgets, QtNetwork):
        for name in dir(module):
            if name.startswith("Q"):
                setattr(qt, name, getattr(module, name))
    qt.Signal = QtCore.Signal  # type: ignore[attr-defined]  only for the stock module's doubles
    return qt


class Database:
    """``ctkDICOMDatabase`` of some instances: {SOP UID: {tag: value}}."""

    def __init__(self, instances: dict[str, dict[str, str]]) -> None:
        self._instances = instances

    def instanceValue(self, uid: str, tag: str) -> str:
        return self._instances.get(uid, {}).get(tag, "")

    def instancesForSeries(self, series: str) -> list[str]:
        return [u for u, tags in self._instances.items() if tags["0020,000E"] == series]


class TableManager:
    """``ctkDICOMTableManager``."""

    def __init__(self) -> None:
        self.selection: list[str] = []

    def currentSeriesSelection(self) -> list[str]:
        return self.selection


class Browser(QtWidgets.QWidget):
    """``SlicerDICOMBrowser``: the two attributes that are used of it."""

    def __init__(self) -> None:
        super().__init__()
        self.actionButtonLayout = QtWidgets.QHBoxLayout(self)
        self.tables = TableManager()
        self.dicomBrowser = types.SimpleNamespace(dicomTableManager=lambda: self.tables)


class TreeModel(QtGui.QStandardItemModel):
    """``qMRMLSubjectHierarchyModel``: rows of the hierarchy, with the icons of their owners.

    ``edits`` counts what Slicer would take for an edit by the user and write into the hierarchy.
    """

    ITEM = QtCore.Qt.UserRole + 1

    def __init__(self, slicer: Any, owner: QtGui.QIcon) -> None:
        super().__init__()
        self.owner, self.edits = owner, 0
        node = slicer.vtkMRMLSubjectHierarchyNode
        self._tree = node.GetSubjectHierarchyNode(slicer.mrmlScene)
        self._tree.AddObserver(node.SubjectHierarchyItemModifiedEvent, lambda *_: self.fill())
        self.itemChanged.connect(lambda *_: setattr(self, "edits", self.edits + 1))
        self.fill()

    def fill(self) -> None:
        self.blockSignals(True)
        self.clear()
        self._below(self._tree.GetSceneItemID(), self.invisibleRootItem())
        self.blockSignals(False)

    def _below(self, parent: int, row: QtGui.QStandardItem) -> None:
        ids = vtk.vtkIdList()
        self._tree.GetItemChildren(parent, ids, False)
        for position in range(ids.GetNumberOfIds()):
            item = QtGui.QStandardItem(self.owner, self._tree.GetItemName(ids.GetId(position)))
            item.setData(ids.GetId(position), self.ITEM)
            row.appendRow(item)
            self._below(ids.GetId(position), item)


class DataModule:
    """The module "Data", whose widget shows the tree through a filter."""

    def __init__(self, model: TreeModel) -> None:
        self._widget = QtWidgets.QWidget()
        self.view = QtWidgets.QTreeView(self._widget)
        self.view.setObjectName("SubjectHierarchyTreeView")
        self._filter = QtCore.QSortFilterProxyModel()
        self._filter.setSourceModel(model)
        self.view.setModel(self._filter)

    def widgetRepresentation(self) -> QtWidgets.QWidget:
        return self._widget


class ScriptedPlugin(QtCore.QObject):
    """``qSlicerSubjectHierarchyScriptedPlugin``: runs the file, makes the class named like it."""

    made: Any = None

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.name = ""

    def setPythonSource(self, path: str) -> bool:
        source = {"__file__": path, "__name__": "__main__"}
        text = Path(path).read_text(encoding="utf-8")
        exec(compile(text, path, "exec"), source)  # as Slicer does
        ScriptedPlugin.made = source[Path(path).stem](self)
        return True


class AbstractScriptedSubjectHierarchyPlugin:
    """Base class of scripted plugins; the real one also registers the plugin."""

    def __init__(self, scriptedPlugin: Any) -> None:
        self.scriptedPlugin = scriptedPlugin


class ScriptedLoadableModule:
    """As in ``slicer.ScriptedLoadableModule``."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    """As in ``slicer.ScriptedLoadableModule``."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent or QtWidgets.QWidget()

    def setup(self) -> None:
        self.layout = QtWidgets.QVBoxLayout(self.parent)

    def onReload(self) -> None:
        pass


class ScriptedLoadableModuleLogic:
    """As in ``slicer.ScriptedLoadableModule``."""

    def __init__(self, parent: Any = None) -> None:
        pass


class ScriptedLoadableModuleTest:
    """As in ``slicer.ScriptedLoadableModule``."""

    def setUp(self) -> None:
        pass

    def delayDisplay(self, text: str, *_: Any) -> None:
        self.displayed = text


class Application(QtCore.QObject):
    """``slicer.app``, as far as a module's entry needs it."""

    startupCompleted = QtCore.Signal()


def install() -> Any:
    """Put the doubles in the places where the module looks; returns ``slicer``."""
    import slicer

    slicer.mrmlScene = slicer.vtkMRMLScene()
    slicer._kept = [
        slicer.vtkSlicerSegmentationsModuleLogic(),  # registers the converters of segmentations
        slicer.vtkSlicerSubjectHierarchyModuleLogic(),
        slicer.vtkSlicerVolumesLogic(),
    ]
    attach(slicer)
    slicer.modules = types.SimpleNamespace()
    slicer.app = Application()
    slicer.qSlicerSubjectHierarchyScriptedPlugin = ScriptedPlugin
    slicer.dicomDatabase = Database({})
    entry = types.ModuleType("slicer.ScriptedLoadableModule")
    for cls in (
        ScriptedLoadableModule, ScriptedLoadableModuleLogic, ScriptedLoadableModuleTest,
        ScriptedLoadableModuleWidget,
    ):  # fmt: skip
        setattr(entry, cls.__name__, cls)
    entry.__all__ = [n for n in vars(entry) if n.startswith("Scripted")]  # type: ignore[attr-defined]
    base = types.ModuleType("AbstractScriptedSubjectHierarchyPlugin")
    base.AbstractScriptedSubjectHierarchyPlugin = (  # type: ignore[attr-defined]
        AbstractScriptedSubjectHierarchyPlugin
    )
    sys.modules.update(
        {
            "qt": make_qt(),
            "slicer.ScriptedLoadableModule": entry,
            "AbstractScriptedSubjectHierarchyPlugin": base,
        }
    )
    slicer.ScriptedLoadableModule = entry
    return slicer


def attach(slicer: Any) -> None:
    """Give the scene its module logics and singletons; again after it was cleared."""
    for logic in slicer._kept:
        logic.SetMRMLScene(slicer.mrmlScene)
    if slicer.mrmlScene.GetSingletonNode("Singleton", "vtkMRMLSelectionNode") is None:
        node = slicer.vtkMRMLSelectionNode()
        node.SetSingletonTag("Singleton")
        slicer.mrmlScene.AddNode(node)
