"""The audits: their verdicts, and the report of each."""

from __future__ import annotations

from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.evidence import Evidence
from SegUnlearnLib.idioms import button, column, label, row
from SegUnlearnLib.parts.style import dot

_COLUMNS = ("Verdict", "Model", "Level", "Studies", "When")
_WIDTHS = (96, 120, 90, 56, 118)
_COLOURS = {"passed": "#2e9e4f", "refused": "#d23f3f", "inconclusive": "#d99a00"}


class EvidencePart:
    """A short list; the report opens in the browser."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self.widget = qt.QWidget()
        layout = column(self.widget)
        layout.addWidget(
            label(
                "An audit decides whether a model really forgot. It attacks the new model and "
                "compares it with models that never saw the studies.",
                role="quiet",
            )
        )
        self.list = qt.QTreeWidget()
        self.list.setObjectName("auditList")
        self.list.setColumnCount(len(_COLUMNS))
        self.list.setHeaderLabels(list(_COLUMNS))
        self.list.setRootIsDecorated(False)
        self.list.setAlternatingRowColors(True)
        for position, width in enumerate(_WIDTHS):
            self.list.setColumnWidth(position, width)
        self.list.itemSelectionChanged.connect(lambda *_: self._update())
        layout.addWidget(self.list, 1)
        self.about = label(role="quiet")
        layout.addWidget(self.about)
        self.open = button("Open the report", self._open, name="reportButton")
        layout.addLayout(row(self.open, button("Refresh", evidence.load)))
        evidence.changed.connect(self._changed)
        self._items: list[Any] = []
        self._changed()

    def _changed(self) -> None:
        self.list.clear()
        self._items = []
        for audit in self._evidence.audits:
            outcome = str(audit.get("outcome") or "")
            item = qt.QTreeWidgetItem()
            values = (
                texts.OUTCOMES.get(outcome, outcome),
                f"{audit.get('candidate')} from {audit.get('original')}",
                _level(str(audit.get("reached") or ""), str(audit.get("needed") or "")),
                str(audit.get("studies", "")),
                texts.local_time(str(audit.get("created") or "")),
            )
            for number, value in enumerate(values):
                item.setText(number, value)
            item.setIcon(0, dot(_COLOURS.get(outcome, "#8a8f98")))
            self.list.addTopLevelItem(item)
            self._items.append(item)
        if self._items:
            self.list.setCurrentItem(self._items[0])
        self._update()

    def _audit(self) -> dict[str, Any] | None:
        index = int(self.list.indexOfTopLevelItem(self.list.currentItem()))
        audits = self._evidence.audits
        return audits[index] if 0 <= index < len(audits) else None

    def _update(self) -> None:
        audit = self._audit() if self._items else None
        self.open.setEnabled(audit is not None)
        if audit is None:
            text = "There is no audit yet: the first unlearning makes one."
        else:
            text = str(audit.get("message") or "")
        self.about.setText(text)
        self.about.setVisible(bool(text))

    def _open(self) -> None:
        audit = self._audit()
        if audit is not None:
            self._evidence.open_report(str(audit["audit_id"]))


def _level(reached: str, needed: str) -> str:
    return reached if reached == needed else f"{reached}, needed {needed}"
