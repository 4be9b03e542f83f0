"""How the panel looks: colours that carry a meaning, everything else from Slicer's palette."""

from __future__ import annotations

from typing import Any

import qt

from SegUnlearnLib.texts import STATES

SHEET = """
QLabel[role="quiet"] { color: #747b87; }
QLabel[role="title"] { font-weight: bold; }
QLabel[role="identity"] { font-weight: 600; }
QLabel[role="good"] { color: #2e9e4f; font-weight: 600; }
QLabel[role="bad"] { color: #d23f3f; font-weight: 600; }
QListWidget::item, QTreeWidget::item { padding: 3px; }
QFrame[role="card"] { border: 1px solid palette(midlight); border-radius: 4px; }
QFrame[role="error"] { background: rgba(210, 63, 63, 32); border-left: 4px solid #d23f3f; }
QFrame[role="notice"] { background: rgba(46, 158, 79, 28); border-left: 4px solid #2e9e4f; }
QFrame[role="danger"] { background: rgba(210, 63, 63, 20); border: 1px solid #d23f3f;
                        border-radius: 4px; }
QFrame[role="ask"] { background: rgba(47, 125, 225, 20); border: 1px solid #2f7de1;
                     border-radius: 4px; }
"""

_SIZE = 14
_icons: dict[str, Any] = {}


def colour_of(state: str) -> str:
    """Colour of a state's dot."""
    return STATES.get(state, ("", "#b6bac2"))[1]


def dot(colour: str) -> Any:
    """Return a round icon."""
    if colour not in _icons:
        pixmap = qt.QPixmap(_SIZE, _SIZE)
        pixmap.fill(qt.QColor(0, 0, 0, 0))
        spot(pixmap, colour, 1, 1, _SIZE - 3)
        _icons[colour] = qt.QIcon(pixmap)
    return _icons[colour]


def spot(pixmap: Any, colour: str, x: int, y: int, size: int) -> None:
    """Draw a filled circle, with a rim that is seen on a selected row."""
    painter = qt.QPainter(pixmap)
    painter.setRenderHint(qt.QPainter.Antialiasing, True)
    painter.setPen(qt.QPen(qt.QColor("white")))
    painter.setBrush(qt.QBrush(qt.QColor(colour)))
    painter.drawEllipse(x, y, size, size)
    painter.end()


def frame(role: str) -> Any:
    """Make a frame with a look."""
    made = qt.QFrame()
    made.setProperty("role", role)
    return made
