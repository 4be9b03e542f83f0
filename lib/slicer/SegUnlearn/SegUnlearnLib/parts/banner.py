"""A sentence at the top of the panel, instead of a window that pops up."""

from __future__ import annotations

from typing import Any

import qt

from SegUnlearnLib.idioms import label, once, restyle
from SegUnlearnLib.parts.style import frame

#: Milliseconds that a notice stays; an error stays until it is mended or hidden.
_NOTICE = 12_000


class Banner:
    """One sentence: an error or a notice."""

    def __init__(self) -> None:
        self.widget = frame("notice")
        layout = qt.QHBoxLayout(self.widget)
        layout.setContentsMargins(8, 6, 4, 6)
        self._text = label()
        self._text.setObjectName("bannerText")
        layout.addWidget(self._text, 1)
        close = qt.QToolButton()
        close.setText("✕")
        close.setAutoRaise(True)
        close.setToolTip("Hide this message")
        close.clicked.connect(lambda *_: self.hide())
        layout.addWidget(close, 0)
        self._close = close
        self.widget.setVisible(False)
        self.role = ""
        self._timer: Any = None

    def error(self, text: str) -> None:
        """Show what went wrong."""
        self._show("error", text)

    def notice(self, text: str) -> None:
        """Show what was done, for a while."""
        self._show("notice", text)
        self._timer = once(_NOTICE, self.hide)

    def hide(self) -> None:
        """Show nothing."""
        self.role = ""
        self.widget.setVisible(False)

    def text(self) -> str:
        """Return the sentence that is shown."""
        return str(self._text.property("text")) if self.role else ""

    def _show(self, role: str, text: Any) -> None:
        if self._timer is not None:
            self._timer.stop()
        self.role = role
        self._text.setText(str(text))
        restyle(self.widget, role)
        self.widget.setVisible(True)
