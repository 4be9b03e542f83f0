"""A signal without Qt: Qt signals defined in Python end the application under PythonQt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Signal:
    """Calls whoever is connected, in the order of connecting.

    Examples
    --------
    >>> heard = []
    >>> changed = Signal()
    >>> changed.connect(heard.append)
    >>> changed.emit(3)
    >>> changed.disconnect(heard.append)
    >>> changed.emit(4)
    >>> heard
    [3]
    """

    def __init__(self) -> None:
        self._slots: list[Callable[..., Any]] = []

    def connect(self, slot: Callable[..., Any]) -> None:
        """Call ``slot`` from now on."""
        self._slots.append(slot)

    def disconnect(self, slot: Callable[..., Any]) -> None:
        """Call ``slot`` no more; nothing happens if it was not connected."""
        if slot in self._slots:
            self._slots.remove(slot)

    def emit(self, *values: Any) -> None:
        """Call all slots; one that connects or disconnects others is no trouble."""
        for slot in list(self._slots):
            slot(*values)
