"""The few Qt idioms that PythonQt and PySide6 do not share, and helpers for all widgets.

What works alike in both, and is used here alone: ``obj.signal.connect(f)``, methods instead of
properties, positional arguments, unscoped enums, bytes for ``QByteArray``. A Python reference is
kept to everything that Qt does not own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt


def number(value: Any) -> int:
    """Return an enum's number: PythonQt gives integers, PySide6 objects."""
    return int(getattr(value, "value", value) or 0)


def once(milliseconds: int, call: Callable[[], Any]) -> Any:
    """Call later, once; keep the timer that is returned, stopping it cancels the call."""
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.timeout.connect(lambda *_: call())
    timer.start(int(milliseconds))
    return timer


def button(text: str, clicked: Callable[[], Any], tip: str = "", name: str = "") -> Any:
    """Make a push button."""
    made = qt.QPushButton(text)
    made.setToolTip(tip)
    made.setObjectName(name)
    made.clicked.connect(lambda *_: clicked())
    return made


def label(text: str = "", *, role: str = "", wrap: bool = True) -> Any:
    """Make a text; ``role`` chooses its look, see ``style``."""
    made = qt.QLabel(text)
    made.setWordWrap(bool(wrap))
    made.setTextFormat(qt.Qt.PlainText)
    made.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
    if role:
        made.setProperty("role", role)
    return made


def restyle(widget: Any, role: str) -> None:
    """Give a widget another look."""
    if str(widget.property("role") or "") != role:
        widget.setProperty("role", role)
        widget.style().unpolish(widget)
        widget.style().polish(widget)


def row(*widgets: Any, stretch: int = -1) -> Any:
    """Put widgets beside each other; ``stretch`` says which grows, -1: a spring at the end."""
    layout = qt.QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    for position, widget in enumerate(widgets):
        layout.addWidget(widget, 1 if position == stretch else 0)
    if stretch < 0:
        layout.addStretch(1)
    return layout


def column(parent: Any, margin: int = 0) -> Any:
    """Make the vertical layout of a widget."""
    layout = qt.QVBoxLayout(parent)
    layout.setContentsMargins(margin, margin, margin, margin)
    layout.setSpacing(6)
    return layout


def text_of(widget: Any) -> str:
    """Return the text of a line edit or combo box: a method in PySide6, a value in PythonQt."""
    name = "currentText" if hasattr(widget, "setCurrentIndex") else "text"
    return str(widget.property(name) or "")


def data_of(combo: Any) -> Any:
    """Return the data of a combo box's current item."""
    return combo.itemData(int(combo.property("currentIndex")))


def is_checked(widget: Any) -> bool:
    """Whether a button or check box is checked."""
    return bool(widget.property("checked"))
