"""The state's dot on the studies in the Data module's tree.

Slicer asks the plugin that owns an item for its icon. Owning studies would take them from Slicer's
own plugin, and a scene saved so would be shown with a warning where this module is missing. So the
dot is drawn over the owner's icon, in the model that the tree shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import qt

import slicer
from SegUnlearnLib import texts
from SegUnlearnLib.hierarchy import state_of
from SegUnlearnLib.idioms import number, once
from SegUnlearnLib.parts.style import colour_of, dot, spot

_DECORATION = number(qt.Qt.DecorationRole)
#: ``qMRMLSubjectHierarchyModel::SubjectHierarchyItemIDRole``.
_ITEM = number(qt.Qt.UserRole) + 1
_SIDE = 16


class TreeIcons:
    """Draws the dots, and again after Slicer has drawn its own icons.

    Parameters
    ----------
    scene
        Gives the scene.
    tree
        Gives the view of the subject hierarchy, None without one; the Data module's by default.
    """

    def __init__(self, scene: Callable[[], Any], tree: Callable[[], Any] | None = None) -> None:
        self._scene, self._tree = scene, tree or _data_tree
        self._observed: list[tuple[Any, int]] = []
        self._timer: Any = None
        self._icons: dict[tuple[int, str], Any] = {}
        self._bases: dict[int, Any] = {}

    def start(self) -> None:
        """Draw now, and whenever the tree changes."""
        self.stop()
        scene, node = self._scene(), slicer.vtkMRMLSubjectHierarchyNode
        hierarchy = node.GetSubjectHierarchyNode(scene)
        if hierarchy is None:
            return
        for event in (node.SubjectHierarchyItemModifiedEvent, node.SubjectHierarchyItemAddedEvent):
            self._observed.append((hierarchy, hierarchy.AddObserver(event, self._soon)))
        event = slicer.vtkMRMLScene.EndImportEvent
        self._observed.append((scene, scene.AddObserver(event, self._soon)))
        self._soon()

    def stop(self) -> None:
        """Draw no more."""
        for where, tag in self._observed:
            where.RemoveObserver(tag)
        self._observed, self._timer = [], None

    def _soon(self, *_: Any) -> None:
        """Draw once for many changes, and after Slicer did."""
        self._timer = once(0, self._draw)

    def _draw(self) -> None:
        tree = self._tree()
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene())
        if tree is None or hierarchy is None:
            return
        model = tree.model()
        if hasattr(model, "sourceModel"):  # Slicer's view gives its own model, Qt's the filter
            model = model.sourceModel()
        for index, item in list(_studies(model, hierarchy, qt.QModelIndex())):
            shown = model.data(index, _DECORATION)
            if shown is None:
                continue
            wanted = self._icon(self._bases.get(shown.cacheKey(), shown), state_of(hierarchy, item))
            if wanted.cacheKey() != shown.cacheKey():
                blocked = model.blockSignals(True)  # else Slicer takes it for an edit of the user
                model.setData(index, wanted, _DECORATION)
                model.blockSignals(blocked)
                tree.viewport().update()

    def _icon(self, base: Any, state: str) -> Any:
        """Return the owner's icon, with a dot if the study is marked."""
        if state not in texts.STATES:
            return base
        key = (int(base.cacheKey()), state)
        if key not in self._icons:
            icon = dot(colour_of(state)) if base.isNull() else _with_dot(base, colour_of(state))
            self._icons[key] = icon
            self._bases[icon.cacheKey()] = base
        return self._icons[key]


def _studies(model: Any, hierarchy: Any, parent: Any) -> Iterator[tuple[Any, int]]:
    """Yield the rows of studies, with their items."""
    study = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelStudy()
    for place in range(model.rowCount(parent)):
        index = model.index(place, 0, parent)
        item = int(model.data(index, _ITEM) or 0)
        if item and hierarchy.GetItemLevel(item) == study:
            yield index, item
        else:
            yield from _studies(model, hierarchy, index)


def _with_dot(base: Any, colour: str) -> Any:
    """Draw a dot into the lower right corner of an icon."""
    pixmap = base.pixmap(_SIDE, _SIDE)
    spot(pixmap, colour, _SIDE // 2, _SIDE // 2, _SIDE // 2 - 1)
    return qt.QIcon(pixmap)


def _data_tree() -> Any:
    module = getattr(slicer.modules, "data", None)
    if module is None:
        return None
    return module.widgetRepresentation().findChild(qt.QObject, "SubjectHierarchyTreeView")
