"""The menu "Mark for forgetting…" of the subject hierarchy, and the states noted there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from SegUnlearnLib import texts
from SegUnlearnLib.identity import Identity, Unknown
from SegUnlearnLib.parts.style import colour_of, dot

#: Attributes of a study's item: a copy of what the server said last; the server knows the truth.
STATE, WORDS = "SegUnlearn.State", "SegUnlearn.Words"
_ACTION = "Mark for forgetting…"


def remember(scene: Any, study: str, state: str, words: str) -> None:
    """Note the state of a study, and what it is called, at its item, if it is in the tree."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None:
        return
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMUIDName()
    item = hierarchy.GetItemByUID(name, study)
    if item:
        hierarchy.SetItemAttribute(item, STATE, state)
        hierarchy.SetItemAttribute(item, WORDS, words)


def state_of(hierarchy: Any, item: int) -> str:
    """Return the noted state of an item's study, empty when nothing was noted."""
    return _noted(hierarchy, item, STATE)


def _noted(hierarchy: Any, item: int, what: str) -> str:
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    level = constants.GetDICOMLevelStudy()
    if hierarchy.GetItemLevel(item) != level:
        item = hierarchy.GetItemAncestorAtLevel(item, level)
    return str(hierarchy.GetItemAttribute(item, what) or "") if item else ""


def kind_of(hierarchy: Any, item: int) -> str:
    """Return what an item is: ``patient``, ``study`` or ``series``."""
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    level = hierarchy.GetItemLevel(item)
    if level == constants.GetDICOMLevelPatient():
        return "patient"
    return "study" if level == constants.GetDICOMLevelStudy() else "series"


class MarkMenu:
    """Shows an action where it means something, with the colour of the study's state.

    Parameters
    ----------
    action
        A ``QAction``.
    hierarchy
        Gives the subject hierarchy node.
    identify
        Finds out whose an item is.
    propose
        Opens the module with an identity and a kind of target.
    """

    def __init__(
        self,
        action: Any,
        hierarchy: Callable[[], Any],
        identify: Callable[[int], Identity | Unknown],
        propose: Callable[[Identity | Unknown, str], Any],
    ) -> None:
        self._action, self._hierarchy = action, hierarchy
        self._identify, self._propose = identify, propose
        self._item = 0
        action.triggered.connect(lambda *_: self._triggered())

    def show_for(self, item: int) -> None:
        """Prepare the action for the item whose menu opens."""
        self._item = item
        known = bool(item) and isinstance(self._identify(item), Identity)
        state = state_of(self._hierarchy(), item) if known else ""
        marked = state in texts.STATES
        # a scene that was saved before they were noted has no words
        words = (_noted(self._hierarchy(), item, WORDS) or texts.STATES[state][0]) if marked else ""
        self._action.setText(_ACTION + (f" ({words.lower()})" if words else ""))
        self._action.setIcon(dot(colour_of(state) if marked else "#b6bac2"))
        self._action.setVisible(known)

    def _triggered(self) -> None:
        if self._item:
            self._propose(self._identify(self._item), kind_of(self._hierarchy(), self._item))
