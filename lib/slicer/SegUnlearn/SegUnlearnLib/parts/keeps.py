"""Which segment keeps the voxels that several have: the upper one of a list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from SegUnlearnLib.idioms import button, column, row
from SegUnlearnLib.overlaps import Overlaps

_HEIGHT = 90


class Keeps:
    """A list of the segments that overlap, in an order that can be changed."""

    def __init__(self) -> None:
        self.widget = qt.QWidget()
        layout = column(self.widget)
        self.list = qt.QListWidget()
        self.list.setObjectName("overlapOrder")
        self.list.setMaximumHeight(_HEIGHT)
        self.list.currentRowChanged.connect(lambda *_: self._update())
        self.up = button("Move up", self._up, "Let it keep what it shares", "overlapUp")
        layout.addLayout(row(self.list, self.up, stretch=0))
        self.order: list[str] = []
        self._names: dict[str, str] = {}
        self._changed: Callable[[], Any] = lambda: None
        self.widget.setVisible(False)

    def show(self, overlaps: Overlaps, changed: Callable[[], Any]) -> None:
        """Offer the segments that overlap; ``changed`` is called for each other order."""
        self._names, self._changed = dict(overlaps.names), changed
        self.order = list(self._names)
        self.widget.setVisible(bool(self.order))
        self._fill(0)

    def _fill(self, chosen: int) -> None:
        self.list.clear()
        for segment_id in self.order:
            self.list.addItem(self._names[segment_id])
        self.list.setCurrentRow(chosen)
        self._update()

    def _update(self) -> None:
        self.up.setEnabled(bool(int(self.list.property("currentRow")) > 0))

    def _up(self) -> None:
        place = int(self.list.property("currentRow"))
        if 0 < place < len(self.order):
            self.order.insert(place - 1, self.order.pop(place))
            self._fill(place - 1)
            self._changed()
