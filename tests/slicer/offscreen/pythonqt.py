"""Enough of PythonQt on PySide6 to run MONAI Label's own module, which is written for it.

In PythonQt, a Qt property is a value (``box.currentText``, ``bar.value = 3``), signals are
connected by their signature in text, and numbers and objects are converted where C++ wants a bool
or int.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

#: Widgets of Slicer and CTK in the module's .ui file, and what stands in for them.
STAND_INS = {
    "ctkCollapsibleButton": "QWidget", "ctkComboBox": "QComboBox", "ctkPathLineEdit": "QWidget",
    "ctkSliderWidget": "QWidget", "qMRMLSegmentEditorWidget": "QWidget", "qMRMLWidget": "QWidget",
    "qSlicerMarkupsPlaceWidget": "QWidget",
}  # fmt: skip


#: Properties that the module reads or writes; the others are also virtual methods, which Qt calls.
_VALUES = frozenset(
    ("checked", "collapsed", "count", "currentIndex", "currentText", "rowCount", "text", "toolTip",
     "value")
)  # fmt: skip


def _names_of(cls: Any) -> frozenset[str]:
    meta = cls.staticMetaObject
    return _VALUES & {meta.property(i).name() for i in range(meta.propertyCount())} | (
        {"rowCount"} if cls is QtWidgets.QTableWidget else set()
    )


def _in_pythonqt(cls: Any) -> Any:
    """Make a subclass whose properties are values, as in PythonQt."""
    names = _names_of(cls)

    class Made(cls):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if name in names:
                return self.property(name)
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in names:
                self.setProperty(name, value)
            else:
                super().__setattr__(name, value)

        def connect(self, *values: Any) -> Any:
            if len(values) != 2:  # PySide6 itself calls it, by the signal
                return super().connect(*values)
            signature, slot = values
            signal = getattr(self, signature.partition("(")[0], None)
            if not hasattr(signal, "emit"):
                return None  # of a widget that has a stand-in
            return signal.connect(lambda *given: slot(*given[: _takes(slot)]))

        def setEnabled(self, value: Any) -> None:
            super().setEnabled(bool(value))

        def setValue(self, value: Any) -> None:
            super().setValue(int(value))

    Made.__name__ = cls.__name__
    return Made


def _takes(slot: Any) -> int:
    """Arguments that a slot takes at most: PythonQt gives no more."""
    code = slot.__func__.__code__ if hasattr(slot, "__func__") else slot.__code__
    return int(code.co_argcount) - hasattr(slot, "__self__")


class Anything:
    """A widget part whose methods do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: Anything()


def make_qt(settings_file: Path) -> types.ModuleType:
    """Return a module ``qt`` as PythonQt shows it."""
    qt = types.ModuleType("qt")
    for module in (QtCore, QtGui, QtWidgets):
        for name in dir(module):
            if name.startswith("Q"):
                cls = getattr(module, name)
                is_object = isinstance(cls, type) and issubclass(cls, QtCore.QObject)
                wrapped = is_object and (issubclass(cls, QtWidgets.QWidget) or name == "QTimer")
                setattr(qt, name, _in_pythonqt(cls) if wrapped else cls)
    qt.QSettings = lambda: QtCore.QSettings(  # type: ignore[attr-defined]
        str(settings_file), QtCore.QSettings.Format.IniFormat
    )
    return qt


class Loader(QtUiTools.QUiLoader):
    """Loads a .ui file with the widgets of ``make_qt``."""

    def __init__(self, qt: Any) -> None:
        super().__init__()
        self._qt, self.widgets, self.hidden = qt, {}, []

    def createWidget(self, name: str, parent: Any = None, object_name: str = "") -> Any:
        made = getattr(self._qt, STAND_INS.get(name, name))(parent)
        made.setObjectName(object_name)
        if name in STAND_INS and STAND_INS[name] == "QWidget":
            self.hidden.append(made)  # the layout holds it, the module a part that does nothing
            self.widgets[object_name] = Anything()
            return made
        self.widgets[object_name] = made
        return made


def install_stock(slicer: Any, folder: Path, settings_file: Path) -> tuple[Any, list[str]]:
    """Import MONAI Label's module as it is; returns it and the windows it opens."""
    qt = make_qt(settings_file)
    shown: list[str] = []
    ctk = types.ModuleType("ctk")
    ctk.ctkSettingsPanel = QtWidgets.QWidget  # type: ignore[attr-defined]
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda _, text: text)  # type: ignore[attr-defined]
    for name in ("SampleData", "SimpleITK", "sitkUtils", "vtkSegmentationCore"):
        sys.modules.setdefault(name, types.ModuleType(name))
    saved = {name: sys.modules.get(name) for name in ("qt", "ctk")}
    sys.modules.update({"qt": qt, "ctk": ctk, "slicer.i18n": i18n})
    settings = qt.QSettings()

    def value(key: str, default: Any, converter: Any = None) -> Any:
        found = settings.value(key)
        return default if found is None else converter(found) if converter else found

    def load_ui(path: str) -> Any:
        loader = Loader(qt)
        widget = loader.load(str(path))
        widget.setMRMLScene = lambda *_: None
        slicer._ui = types.SimpleNamespace(**loader.widgets)
        slicer._loader = loader
        return widget

    util = slicer.util
    util.settingsValue, util.loadUI = value, load_ui
    util.childWidgetVariables = lambda widget: slicer._ui
    util.tempDirectory = lambda *_: str(settings_file.parent)
    for name in ("errorDisplay", "infoDisplay", "warningDisplay"):
        setattr(util, name, lambda text, *_, **__: shown.append(text))
    util.mainWindow = lambda: None
    sys.path.insert(0, str(folder))
    try:
        import MONAILabel
    finally:
        sys.path.remove(str(folder))
        sys.modules.update({name: module for name, module in saved.items() if module is not None})
    MONAILabel.qt = qt
    cls = MONAILabel.MONAILabelWidget
    cls.resourcePath = lambda self, name: str(folder / "Resources" / name)
    node = slicer.vtkMRMLScriptedModuleNode()
    slicer.mrmlScene.AddNode(node)
    MONAILabel.MONAILabelLogic.getParameterNode = lambda self: node
    return MONAILabel, shown
