"""Questions about what is selected: they go when something else is, and so do late answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from SegUnlearnLib.api import Done, Failed
from SegUnlearnLib.parts.confirm import Confirm
from SegUnlearnLib.problems import Problem


class Asking:
    """Asks about what is selected, where needed after the server said what would happen.

    Parameters
    ----------
    confirm
        Shows the question.
    selected
        Gives what is selected.
    changed
        Is called when the server begins to be asked, or has answered; see ``asks``.
    failed
        Is given problems.
    """

    def __init__(
        self,
        confirm: Confirm,
        selected: Callable[[], Iterable[str]],
        changed: Callable[[], Any],
        failed: Failed,
    ) -> None:
        self._confirm, self._selected = confirm, selected
        self._changed, self._failed = changed, failed
        self._call: Any = None
        self._about: list[str] = []
        self.asks = ""  # what the server is asked now

    def ask(
        self, text: str, action: str, then: Callable[[], Any], word: str, *, danger: bool = True
    ) -> None:
        """Ask; see ``Confirm``."""
        self._begin()
        self._confirm.ask(text, action, then, word, danger=danger)

    def ask_server(
        self, what: str, call: Callable[[Done, Failed], Any], then: Callable[[Any], Any]
    ) -> None:
        """Ask the server first; ``then`` is given its answer, unless something came between."""
        self._begin()

        def answered() -> None:
            self._call, self.asks = None, ""
            self._changed()

        def told(answer: Any) -> None:
            answered()
            then(answer)

        def failed(problem: Problem) -> None:
            answered()
            self._failed(problem)

        self.asks = f"Asking the server {what} …"
        self._call = call(told, failed)
        self._changed()

    def check(self) -> None:
        """Drop the question if something else is selected by now."""
        asks = self._call is not None or self._confirm.is_asking()
        if asks and sorted(self._selected()) != self._about:
            self.drop()

    def drop(self) -> None:
        """Ask nothing any more, and expect no answer."""
        self._confirm.hide()
        call, self._call, self.asks = self._call, None, ""
        if call is not None:
            call.silence()
            call.cancel()
            self._changed()

    def _begin(self) -> None:
        self.drop()
        self._about = sorted(self._selected())
