"""Adapting the model to this site from a few labelled studies, and its adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.idioms import button, column, is_checked, label, row, text_of
from SegUnlearnLib.parts.confirm import Confirm
from SegUnlearnLib.parts.style import dot
from SegUnlearnLib.runs import Runs
from SegUnlearnLib.site import Site

_STATES = {"current": "#2e9e4f", "available": "#8a8f98", "retired": "#b6bac2"}


class SitePart:
    """Studies to choose from, Plan and Adapt; adapters and Roll back."""

    def __init__(self, site: Site, runs: Runs, may_decide: Callable[[], bool]) -> None:
        self._site, self._runs, self._may_decide = site, runs, may_decide
        self.widget = qt.QWidget()
        layout = column(self.widget)
        layout.addWidget(label("Labelled studies", role="title"))
        layout.addWidget(
            label(
                "Choose a few studies of one scanner or hospital. The adapter serves only if "
                "it is better on people who were held out.",
                role="quiet",
            )
        )
        self.studies = qt.QListWidget()
        self.studies.setObjectName("labelledList")
        self.studies.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)
        self.studies.itemSelectionChanged.connect(lambda *_: self.update())
        layout.addWidget(self.studies, 1)
        self.name = qt.QLineEdit()
        self.name.setObjectName("siteName")
        self.name.setPlaceholderText("by the header; needed for images without one")
        layout.addLayout(row(label("Site", wrap=False), self.name, stretch=1))
        self.one = qt.QCheckBox("Allow one person's studies (nobody can be held out)")
        self.one.setObjectName("oneCheck")
        layout.addWidget(self.one)
        self.plan = button("Plan", self._plan, "Say what would be done", "adaptPlanButton")
        self.adapt = button("Adapt this site…", self._ask, name="adaptButton")
        layout.addLayout(row(self.plan, self.adapt))
        self.confirm = Confirm()
        layout.addWidget(self.confirm.widget)
        layout.addWidget(label("Adapters", role="title"))
        self.adapters = qt.QTreeWidget()
        self.adapters.setObjectName("adapterList")
        self.adapters.setColumnCount(4)
        self.adapters.setHeaderLabels(["Site", "Adapter", "State", "Made"])
        self.adapters.setRootIsDecorated(False)
        self.adapters.setColumnWidth(0, 160)
        self.adapters.itemSelectionChanged.connect(lambda *_: self.update())
        layout.addWidget(self.adapters, 1)
        self.back = button("Roll back…", self._ask_back, name="rollBackButton")
        layout.addLayout(row(self.back))
        self._items: list[Any] = []
        site.changed.connect(self._changed)
        runs.changed.connect(lambda *_: self.update())
        runs.gone.connect(self.update)
        self._changed()

    def update(self) -> None:
        """Offer what can be done now."""
        idle = self._runs.view is None or self._runs.view.is_over
        ready = bool(self._may_decide() and idle and self._chosen())
        self.plan.setEnabled(ready)
        self.adapt.setEnabled(ready)
        line = self._line()
        self.back.setEnabled(bool(self._may_decide() and line and line["state"] == "current"))

    def _chosen(self) -> list[str]:
        items = self.studies.selectedItems()
        return [str(item.data(qt.Qt.UserRole)) for item in items]

    def _options(self) -> dict[str, Any]:
        name = text_of(self.name).strip()
        return {
            "support": self._chosen(), "most": max(1, len(self._chosen())),
            "confirm_one": is_checked(self.one), **({"site": name} if name else {}),
        }  # fmt: skip

    def _plan(self) -> None:
        self._runs.start("site_adapt", self._options())

    def _ask(self) -> None:
        options, number = self._options(), len(self._chosen())
        self.confirm.ask(
            f"Adapt the model to the site of {texts.count(number, 'study', 'studies')}? Images of "
            "that site are segmented with the adapter if it is better on people who were held "
            "out; all others stay with the base model.",
            "Adapt",
            lambda: self._runs.start("site_adapt", {**options, "adapt_now": True}),
            str(number),
            danger=False,
        )

    def _ask_back(self) -> None:
        line = self._line()
        if line is not None:
            self.confirm.ask(
                f"Let the site {line['site']} be served by the adapter before {line['version']}, "
                "or by the base model if there is none?",
                "Roll back",
                lambda: self._site.roll_back(line["key"]),
                danger=False,
            )

    def _line(self) -> dict[str, Any] | None:
        if not self._items:
            return None
        index = int(self.adapters.indexOfTopLevelItem(self.adapters.currentItem()))
        return self._site.adapters[index] if 0 <= index < len(self._site.adapters) else None

    def _changed(self) -> None:
        chosen = set(self._chosen())
        self.studies.blockSignals(True)
        self.studies.clear()
        for one in self._site.labelled:
            text = texts.short(one.image, 30)
            self.studies.addItem(f"{one.about}   {text}" if one.about else text)
            item = self.studies.item(int(self.studies.property("count")) - 1)
            item.setData(qt.Qt.UserRole, one.image)
            item.setToolTip(one.image)
            item.setSelected(one.image in chosen)
        self.studies.blockSignals(False)
        self.adapters.clear()
        self._items = []
        for line in self._site.adapters:
            item = qt.QTreeWidgetItem()
            state = "serves" if line.get("serves") else str(line.get("state"))
            name = ", ".join(filter(None, str(line.get("site") or "").split("|")))
            values = (name, line.get("version"), state,
                      texts.local_time(str(line.get("created") or "")))  # fmt: skip
            for number, value in enumerate(values):
                item.setText(number, str(value))
            item.setIcon(0, dot(_STATES.get(str(line.get("state")), "#8a8f98")))
            item.setToolTip(2, str(line.get("why") or ""))
            self.adapters.addTopLevelItem(item)
            self._items.append(item)
        if self._items:
            self.adapters.setCurrentItem(self._items[-1])
        self.update()
