"""A question within the panel: what will happen, and a word to type before it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from SegUnlearnLib.idioms import button, column, label, restyle, row, text_of
from SegUnlearnLib.parts.style import frame


class Confirm:
    """Asks one question at a time; there is no way to skip it.

    Parameters
    ----------
    choice
        A widget that is shown below the question, if any.
    """

    def __init__(self, choice: Any = None) -> None:
        self.widget = frame("ask")
        layout = column(self.widget, 10)
        self._text = label()
        self._hint = label()
        self._typed = qt.QLineEdit()
        self._typed.setObjectName("confirmWord")
        self._typed.textChanged.connect(lambda *_: self._update())
        self._typed.returnPressed.connect(lambda *_: self._confirm())
        self._yes = button("", self._confirm, name="confirmButton")
        self._no = button("Cancel", self._cancel, name="confirmCancel")
        layout.addWidget(self._text)
        if choice is not None:
            layout.addWidget(choice)
        self._entry = qt.QWidget()
        entry = row(self._hint, self._typed, stretch=1)
        self._entry.setLayout(entry)
        layout.addWidget(self._entry)
        layout.addLayout(row(self._yes, self._no))
        self.widget.setVisible(False)
        self._word = ""
        self._then: Callable[[], Any] | None = None
        self._otherwise: Callable[[], Any] | None = None

    def ask(
        self,
        text: str,
        action: str,
        then: Callable[[], Any],
        word: str = "",
        *,
        danger: bool = True,
        otherwise: Callable[[], Any] | None = None,
    ) -> None:
        """Ask; ``then`` is called when it is confirmed.

        Parameters
        ----------
        text
            What will happen.
        action
            Words of the button.
        then
            Does it.
        word
            What must be typed first, empty: nothing.
        danger
            It is hard to take back.
        otherwise
            Is called when it is cancelled.
        """
        self._word, self._then, self._otherwise = word, then, otherwise
        self._text.setText(text)
        self._hint.setText(f"Type {word} to confirm:")
        self._hint.setWordWrap(False)
        self._typed.clear()
        self._yes.setText(action)
        self._entry.setVisible(bool(word))
        restyle(self.widget, "danger" if danger else "ask")
        self._update()
        self.widget.setVisible(True)
        if word:
            self._typed.setFocus()

    def say(self, text: str) -> None:
        """Put the question in other words."""
        self._text.setText(text)

    def hide(self) -> None:
        """Ask nothing."""
        self._then = self._otherwise = None
        self.widget.setVisible(False)

    def is_asking(self) -> bool:
        """Whether a question is shown."""
        return self._then is not None

    def text(self) -> str:
        """Return the question."""
        return str(self._text.property("text")) if self._then else ""

    def _update(self) -> None:
        self._yes.setEnabled(self._is_typed())

    def _is_typed(self) -> bool:
        return not self._word or text_of(self._typed).strip() == self._word

    def _cancel(self) -> None:
        otherwise = self._otherwise
        self.hide()
        if otherwise is not None:
            otherwise()

    def _confirm(self) -> None:
        then = self._then
        if then is not None and self._is_typed():
            self.hide()
            then()
