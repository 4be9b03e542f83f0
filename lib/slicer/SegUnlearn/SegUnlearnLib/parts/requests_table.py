"""The table of forget requests: a model over a list, so that ten thousand rows are no burden."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.idioms import number, once
from SegUnlearnLib.parts.style import colour_of, dot
from SegUnlearnLib.signals import Signal

COLUMNS = ("State", "What", "Reason", "Level", "Marked by", "Since")
_WIDTHS = (130, 150, 122, 84, 80, 118)
_SINCE = len(COLUMNS) - 1
_HEIGHT = 24
#: Milliseconds that changes are gathered before they are shown.
_GATHER = 60
#: A selection of more rows is not kept when the rows change.
_KEPT = 1000


class _Row:
    """What is shown of one request."""

    def __init__(self, request: Mapping[str, Any], unlearned: Collection[str]) -> None:
        state, target = str(request["state"]), request["target"]
        reached, needed = str(request.get("reached") or "none"), str(request.get("needed") or "")
        self.request_id, self.state = str(request["request_id"]), state
        self.full_id, self.note = str(target["id"]), str(request.get("note") or "")
        self.created = str(request.get("created") or "")
        reason = str(request.get("agreed_reason") or request.get("reason") or "")
        self.values = (
            texts.state_of(request, unlearned),
            texts.target(target),
            texts.REASONS.get(reason, reason),
            _level(reached, needed),
            texts.who_marked(request),
            texts.local_time(self.created),
        )
        self.text = " ".join((*self.values, self.full_id, self.note)).lower()


def _level(reached: str, needed: str) -> str:
    """Say which level is reached, and which is needed where that is more."""
    order = texts.LEVELS
    if reached not in order or needed not in order or reached == "none":
        return needed
    return reached if order.index(reached) >= order.index(needed) else f"{reached} of {needed}"


class RequestsModel(qt.QAbstractTableModel):
    """A list of rows, with the few methods that Slicer's own modules override too."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[_Row] = []
        self.sorted_by: Any = None

    def rowCount(self, parent: Any = None) -> int:
        """Rows; a row has no rows below it."""
        inside = parent is not None and hasattr(parent, "isValid") and parent.isValid()
        return 0 if inside else len(self.rows)

    def columnCount(self, parent: Any = None) -> int:
        """Columns."""
        return len(COLUMNS)

    def headerData(self, section: int, orientation: Any, role: int = 0) -> Any:
        """Titles of the columns."""
        across = number(orientation) == number(qt.Qt.Horizontal)
        return COLUMNS[section] if across and number(role) == _DISPLAY else None

    def data(self, index: Any, role: int = 0) -> Any:
        """Text, dot or tip of a cell."""
        if not 0 <= index.row() < len(self.rows):
            return None
        row, column, wanted = self.rows[index.row()], index.column(), number(role)
        if wanted == _DISPLAY:
            return row.values[column]
        if wanted == _DECORATION and column == 0:
            return dot(colour_of(row.state))
        if wanted == _TIP:
            return {1: row.full_id, 2: row.note, 3: row.values[3]}.get(column)
        return None

    def sort(self, column: int, order: Any = 0) -> None:
        """Be asked for another order by a click on a title."""
        if self.sorted_by is not None:
            self.sorted_by(column, number(order) == number(qt.Qt.DescendingOrder))

    def show(self, rows: list[_Row]) -> None:
        """Show other rows."""
        self.layoutAboutToBeChanged.emit()
        self.rows = rows
        self.layoutChanged.emit()


_DISPLAY, _DECORATION = number(qt.Qt.DisplayRole), number(qt.Qt.DecorationRole)
_TIP = number(qt.Qt.ToolTipRole)


class RequestsTable:
    """Shows, filters, sorts and selects requests.

    Signals: ``selection_changed()``.

    Parameters
    ----------
    unlearned
        Gives the requests that a run works on now.
    """

    def __init__(self, unlearned: Callable[[], Collection[str]]) -> None:
        self._unlearned = unlearned
        self.selection_changed = Signal()
        self._all: dict[str, _Row] = {}
        self._states: frozenset[str] = frozenset()
        self._text = ""
        self._order = (_SINCE, True)
        self._timer: Any = None
        self._model = RequestsModel()
        self.widget = view = qt.QTableView()
        view.setObjectName("requestsTable")
        view.setModel(self._model)
        view.setShowGrid(False)
        view.setWordWrap(False)
        view.setAlternatingRowColors(True)
        view.verticalHeader().setVisible(False)
        view.verticalHeader().setDefaultSectionSize(_HEIGHT)
        view.horizontalHeader().setHighlightSections(False)
        view.horizontalHeader().setDefaultAlignment(qt.Qt.AlignLeft | qt.Qt.AlignVCenter)
        view.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        view.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        view.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)
        view.setSortingEnabled(True)
        view.sortByColumn(_SINCE, qt.Qt.DescendingOrder)
        self._model.sorted_by = self._sort
        view.setMinimumHeight(180)
        for position, width in enumerate(_WIDTHS):
            view.setColumnWidth(position, width)
        self._selection = view.selectionModel()
        self._selection.selectionChanged.connect(lambda *_: self._selected())
        self._quiet = False
        self._chosen: list[str] | None = []  # None: to be read

    # -- rows ----------------------------------------------------------------------------------

    def add(self, requests: Iterable[Mapping[str, Any]]) -> None:
        """Show requests, or what changed of them, in a moment."""
        unlearned = self._unlearned()
        for request in requests:
            row = _Row(request, unlearned)
            self._all[row.request_id] = row
        self._later()

    def keep_only(self, ids: Iterable[str]) -> None:
        """Remove all other rows."""
        kept = set(ids)
        self._all = {i: row for i, row in self._all.items() if i in kept}
        self._later()

    def is_busy(self) -> bool:
        """Whether changes wait to be shown."""
        return self._timer is not None

    def count(self) -> int:
        """Rows that the filters let through."""
        return len(self._model.rows)

    def _later(self) -> None:
        if self._timer is None:
            self._timer = once(_GATHER, self._show)

    def _show(self) -> None:
        """Show what the filters let through; what is selected stays so, wherever it goes."""
        self._timer = None
        chosen = list(self.selected())
        rows = [row for row in self._all.values() if self._is_shown(row)]
        column, falling = self._order
        same = [row.request_id for row in self._model.rows]
        if column == _SINCE:
            rows.sort(key=lambda row: row.created, reverse=falling)
        else:
            rows.sort(key=lambda row: row.values[column].lower(), reverse=falling)
        if same == [row.request_id for row in rows]:  # only what is said of them has changed
            self._model.rows = rows
            self.widget.viewport().update()
            self.selection_changed.emit()
            return
        self._quiet = True
        self._selection.clearSelection()  # Qt keeps numbers of rows, which mean others now
        self._model.show(rows)
        if 0 < len(chosen) <= _KEPT:
            places = {row.request_id: place for place, row in enumerate(rows)}
            for request_id in chosen:
                if request_id in places:
                    self._select(places[request_id])
        self._quiet = False
        self._selected()

    def _is_shown(self, row: _Row) -> bool:
        return (not self._states or row.state in self._states) and self._text in row.text

    def _sort(self, column: int, falling: bool) -> None:
        self._order = (column, falling)
        self._show()

    # -- filters and selection -----------------------------------------------------------------

    def filter(self, states: Iterable[str], text: str) -> None:
        """Show requests in these states (none: all) and with this text."""
        self._states, self._text = frozenset(states), text.strip().lower()
        self._show()

    def selected(self) -> list[str]:
        """Ids of the selected requests."""
        if self._chosen is None:
            rows = self._model.rows
            places = (int(index.row()) for index in self._selection.selectedRows(0))
            self._chosen = [rows[place].request_id for place in places if place < len(rows)]
        return self._chosen

    def select(self, request_id: str) -> None:
        """Select one request alone and scroll to it."""
        for place, row in enumerate(self._model.rows):
            if row.request_id == request_id:
                self._selection.clearSelection()
                self._select(place)
                self.widget.scrollTo(self._model.index(place, 0))
                return

    def _select(self, place: int) -> None:
        how = qt.QItemSelectionModel.Select | qt.QItemSelectionModel.Rows
        self._selection.select(self._model.index(place, 0), how)

    def _selected(self) -> None:
        self._chosen = None
        if not self._quiet:
            self.selection_changed.emit()
