"""Entry of the SegUnlearn module in 3D Slicer; everything else is in ``SegUnlearnLib``."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

import slicer


class SegUnlearn(ScriptedLoadableModule):
    """What Slicer knows of the module before it is opened."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "SegUnlearn"
        parent.categories = ["Active Learning"]
        parent.dependencies = []
        parent.contributors = ["SegUnlearn contributors"]
        parent.helpText = (
            "Segments studies, marks them for forgetting, takes them back out of the model and "
            "adapts the model to this site, by a SegUnlearn server. Not for diagnosis. Nothing is "
            "sent before you agree to a server's address."
        )
        parent.acknowledgementText = "Works beside the MONAI Label module and shares its address."
        slicer.app.startupCompleted.connect(self._started)
        self._kept: list[Any] = []

    def _started(self) -> None:
        """Join the menus of the subject hierarchy and the DICOM browser."""
        folder = Path(__file__).parent / "SegUnlearnLib"
        plugin = slicer.qSlicerSubjectHierarchyScriptedPlugin(None)
        plugin.setPythonSource(str(folder / "SegUnlearnSubjectHierarchyPlugin.py"))
        self._kept.append(plugin)
        try:
            from SegUnlearnLib.dicom_browser import BrowserButton
            from SegUnlearnLib.SegUnlearnSubjectHierarchyPlugin import propose

            browser = slicer.modules.dicom.widgetRepresentation().self().browserWidget
            self._kept.append(BrowserButton(browser, lambda: slicer.dicomDatabase, propose))
        except (AttributeError, RuntimeError) as error:  # Slicer without its DICOM module
            logging.warning("SegUnlearn adds no button to the DICOM browser: %s", error)


class SegUnlearnWidget(ScriptedLoadableModuleWidget):
    """Puts the panel into Slicer's module window."""

    def setup(self) -> None:
        """Make the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        from SegUnlearnLib.logic import Logic
        from SegUnlearnLib.widget import Widget

        self.panel = Widget(Logic())
        self.layout.addWidget(self.panel.widget)

    def enter(self) -> None:
        """Be shown."""
        self.panel.enter()

    def exit(self) -> None:
        """Be hidden by another module."""
        self.panel.exit()

    def cleanup(self) -> None:
        """End with the application."""
        self.panel.cleanup()

    def onReload(self) -> None:
        """Load changed files of the library too, for developers."""
        self.panel.cleanup()
        for name in sorted(n for n in sys.modules if n.split(".")[0] == "SegUnlearnLib"):
            del sys.modules[name]
        importlib.invalidate_caches()
        ScriptedLoadableModuleWidget.onReload(self)


class SegUnlearnTest(ScriptedLoadableModuleTest):
    """Self-test inside Slicer: that the panel can be made and says that nothing is loaded."""

    def runTest(self) -> None:
        """Run it on an empty scene; no server is needed and none is asked."""
        self.setUp()
        slicer.mrmlScene.Clear(0)
        from SegUnlearnLib.identity import Unknown
        from SegUnlearnLib.logic import Logic
        from SegUnlearnLib.widget import Widget

        panel = Widget(Logic())
        assert isinstance(panel.logic.study.identity, Unknown)
        panel.cleanup()
        self.delayDisplay("Test passed")
