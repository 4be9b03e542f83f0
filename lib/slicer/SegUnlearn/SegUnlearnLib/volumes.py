"""The images of the scene, and which of them is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from SegUnlearnLib.idioms import once
from SegUnlearnLib.signals import Signal


class Volumes:
    """Observes a scene.

    Signals: ``changed()``: images came, went, or another one is looked at.

    Parameters
    ----------
    scene
        Gives the scene.
    """

    def __init__(self, scene: Callable[[], Any]) -> None:
        self._scene = scene
        self.changed = Signal()
        self._observed: list[tuple[Any, int]] = []
        self._timer: Any = None

    def start(self) -> None:
        """Observe the scene of now."""
        self.stop()
        scene, events = self._scene(), slicer.vtkMRMLScene
        for event in (events.NodeAddedEvent, events.NodeRemovedEvent, events.EndCloseEvent):
            self._observed.append((scene, scene.AddObserver(event, self._soon)))
        selection = _selection(scene)
        if selection is not None:
            self._observed.append((selection, selection.AddObserver("ModifiedEvent", self._soon)))

    def stop(self) -> None:
        """Observe nothing."""
        for where, tag in self._observed:
            where.RemoveObserver(tag)
        self._observed = []

    def all(self) -> list[Any]:
        """Images in the order of loading; no label maps."""
        scene = self._scene()
        found = [
            scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode")
            for number in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"))
        ]
        return [node for node in found if not node.IsA("vtkMRMLLabelMapVolumeNode")]

    def active(self) -> Any:
        """Image that the views show, else the last one that was loaded, else None."""
        selection = _selection(self._scene())
        shown = selection.GetActiveVolumeID() if selection is not None else None
        everything = self.all()
        return next((v for v in everything if v.GetID() == shown), (everything or [None])[-1])

    def segmentations(self) -> list[Any]:
        """Segmentation nodes of the scene."""
        scene, name = self._scene(), "vtkMRMLSegmentationNode"
        return [
            scene.GetNthNodeByClass(i, name) for i in range(scene.GetNumberOfNodesByClass(name))
        ]

    def _soon(self, *_: Any) -> None:
        """Tell it once when many nodes come, and when they are complete."""
        self._timer = once(0, self.changed.emit)


def _selection(scene: Any) -> Any:
    return scene.GetSingletonNode("Singleton", "vtkMRMLSelectionNode")
