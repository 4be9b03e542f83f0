"""What Slicer's subject hierarchy loads: a plugin with one menu entry that owns no items.

Slicer runs this file by its path and wants the class to be named like the file.
"""

from __future__ import annotations

from typing import Any

import qt
from AbstractScriptedSubjectHierarchyPlugin import AbstractScriptedSubjectHierarchyPlugin

import slicer
from SegUnlearnLib import identity
from SegUnlearnLib.hierarchy import MarkMenu


class SegUnlearnSubjectHierarchyPlugin(AbstractScriptedSubjectHierarchyPlugin):
    """Adds "Mark for forgetting…" to the menus of patients, studies, series and images."""

    filePath = __file__

    def __init__(self, scriptedPlugin: Any) -> None:
        scriptedPlugin.name = "SegUnlearn"
        AbstractScriptedSubjectHierarchyPlugin.__init__(self, scriptedPlugin)
        self.action = qt.QAction("Mark for forgetting…", scriptedPlugin)
        self.action.setObjectName("SegUnlearnMarkAction")
        self.menu = MarkMenu(self.action, _hierarchy, _identify, propose)

    def canAddNodeToSubjectHierarchy(self, node: Any, parentItemID: int) -> float:
        """Add nothing."""
        return 0.0

    def canOwnSubjectHierarchyItem(self, itemID: int) -> float:
        """Own nothing: icons and tooltips stay those of the DICOM and Volumes plugins."""
        return 0.0

    def roleForPlugin(self) -> str:
        """Have no role."""
        return "N/A"

    def itemContextMenuActions(self) -> list[Any]:
        """Actions of items."""
        return [self.action]

    def sceneContextMenuActions(self) -> list[Any]:
        """Actions of the empty tree."""
        return []

    def showContextMenuActionsForItem(self, itemID: int) -> None:
        """Prepare the menu that opens."""
        self.menu.show_for(itemID)


def propose(found: Any, kind: str) -> None:
    """Open the module with what was chosen."""
    slicer.util.selectModule("SegUnlearn")
    slicer.modules.SegUnlearnWidget.panel.propose_mark(found, kind)


def _hierarchy() -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def _identify(item: int) -> Any:
    return identity.of_any_item(
        item,
        slicer.mrmlScene,
        getattr(slicer, "dicomDatabase", None),
        getattr(slicer.modules, "MONAILabelWidget", None),
    )
