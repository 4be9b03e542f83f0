"""The forget set: table, filters, and what is decided about requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.api import Api
from SegUnlearnLib.forget_set import ForgetSet, in_state
from SegUnlearnLib.idioms import button, column, data_of, label, row, text_of
from SegUnlearnLib.parts.asking import Asking
from SegUnlearnLib.parts.confirm import Confirm
from SegUnlearnLib.parts.requests_table import RequestsTable
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.runs import Runs
from SegUnlearnLib.watch import Watch

_FILTERS = {
    "All states": (),
    "To decide": ("proposed", "requested"),
    "To unlearn": ("approved", "working", "refused"),
    "In work": ("working",),
    "Forgotten": ("fulfilled", "purged"),
    "Closed": ("restored", "withdrawn", "dismissed"),
}
_LEVELS = {
    "Level each reason needs": "auto", "Hide only (seconds, reversible)": "hidden",
    "Unlearn": "unlearned", "Retrain without (exact)": "retrained",
}  # fmt: skip
#: States in which the server unlearns what is named, and, where nothing is, takes all.
_NAMED, _WAITING = ("approved", "working", "refused"), ("approved", "working")
_WITHDRAWABLE = ("requested", "approved", "refused")
#: The server plans at most so many at once.
_MOST = 1000


class ForgetPart:
    """Shows the forget set.

    Parameters
    ----------
    forget_set, runs, watch, api
        What is shown, started, and runs; the plan is asked for before an unlearning.
    may_decide
        Whether the one who is signed in is an administrator.
    failed
        Is given problems.
    """

    def __init__(
        self,
        forget_set: ForgetSet,
        runs: Runs,
        watch: Watch,
        api: Api,
        may_decide: Callable[[], bool],
        failed: Callable[[Problem], Any],
    ) -> None:
        self._set, self._runs, self._watch, self._api = forget_set, runs, watch, api
        self._may_decide, self._failed = may_decide, failed
        self._unlearned: frozenset[str] = frozenset()
        self.widget = qt.QWidget()
        layout = column(self.widget)
        self.filter, self.search = qt.QComboBox(), qt.QLineEdit()
        self.filter.setObjectName("stateFilter")
        for words in _FILTERS:
            self.filter.addItem(words, words)
        self.search.setObjectName("requestSearch")
        self.search.setPlaceholderText("Search")
        self.search.setClearButtonEnabled(True)
        refresh = button("Refresh", forget_set.load, name="refreshButton")
        layout.addLayout(row(self.filter, self.search, refresh, stretch=1))
        self.table = RequestsTable(lambda: watch.unlearned)
        layout.addWidget(self.table.widget, 1)
        self.count = label(role="quiet")
        self.count.setObjectName("requestCount")
        layout.addWidget(self.count)
        self.busy = qt.QProgressBar()
        self.busy.setObjectName("forgetBusy")
        self.busy.setRange(0, 0)
        self.busy.setTextVisible(False)
        self.busy.setMaximumHeight(10)
        layout.addWidget(self.busy)
        self.approve = button("Approve…", self._approve, name="approveButton")
        self.dismiss = button("Dismiss…", self._dismiss, name="dismissButton")
        self.withdraw = button("Withdraw…", self._withdraw, name="withdrawButton")
        self.restore = button("Restore…", self._restore, name="restoreButton")
        self.purge = button("Purge…", self._purge, name="purgeButton")
        layout.addLayout(row(self.approve, self.dismiss, self.withdraw, self.restore, self.purge))
        self.level = qt.QComboBox()
        self.level.setObjectName("levelChoice")
        for words, level in _LEVELS.items():
            self.level.addItem(words, level)
        self.dry = button(
            "Dry run", self._dry_run, "Say what an unlearning would do", "dryRunButton"
        )
        self.unlearn = button("Unlearn…", self._plan, name="unlearnButton")
        layout.addLayout(row(self.dry, self.unlearn, self.level))
        self.confirm = Confirm()
        self._asking = Asking(self.confirm, self.table.selected, self.update, failed)
        layout.addWidget(self.confirm.widget)
        self.filter.currentIndexChanged.connect(lambda *_: self._filter())
        self.search.textChanged.connect(lambda *_: self._filter())
        self.table.selection_changed.connect(self._selection_changed)
        forget_set.started.connect(self.update)
        forget_set.working.connect(self.update)
        forget_set.arrived.connect(self.table.add)
        forget_set.ended.connect(self._ended)
        forget_set.run_needed.connect(self._restore_by_run)
        runs.changed.connect(lambda *_: self._run_changed())
        runs.gone.connect(self._run_changed)
        watch.changed.connect(self._run_changed)
        self.update()

    # -- what is shown -------------------------------------------------------------------------

    def _ended(self) -> None:
        self.table.keep_only(self._set.requests)
        self.update()

    def _filter(self) -> None:
        self.table.filter(_FILTERS[str(data_of(self.filter))], text_of(self.search))
        self.update()

    def _run_changed(self) -> None:
        """Say anew what is so of the requests that a run took up or left."""
        before, self._unlearned = self._unlearned, self._watch.unlearned
        if others := before ^ self._unlearned:
            found = (self._set.requests.get(request_id) for request_id in others)
            self.table.add(request for request in found if request is not None)
        self.update()

    def _selection_changed(self) -> None:
        self._asking.check()
        self.update()

    def drop(self) -> None:
        """Ask nothing any more: another server."""
        self._asking.drop()

    def selected(self) -> list[dict[str, Any]]:
        """Return the requests that are selected."""
        found = (self._set.requests.get(request_id) for request_id in self.table.selected())
        return [request for request in found if request is not None]

    def update(self) -> None:
        """Offer what the selection allows."""
        chosen, free = self.selected(), not self._set.busy
        may = self._may_decide() and free
        one = len(chosen) == 1
        few = len(chosen) <= _MOST
        idle = self._runs.view is None or self._runs.view.is_over
        states = {request["state"] for request in chosen}
        self.approve.setEnabled(bool(may and few and states & {"requested", "proposed"}))
        self.dismiss.setEnabled(bool(may and few and "proposed" in states))
        self.withdraw.setEnabled(bool(free and few and states & set(_WITHDRAWABLE)))
        self.restore.setEnabled(bool(may and one and idle and states == {"fulfilled"}))
        self.purge.setEnabled(bool(may and one and idle and states == {"fulfilled"}))
        ready = may and idle and few and bool(self._to_unlearn())
        self.unlearn.setEnabled(bool(ready))
        self.dry.setEnabled(bool(ready))
        self.busy.setVisible(bool(self._set.busy))
        if self._set.busy:
            text = self._set.busy
        elif self._asking.asks:
            text = self._asking.asks
        elif self._set.loading or self.table.is_busy():
            text = f"Loading … {len(self._set.requests)} of {self._set.total}"
        else:
            text = texts.count(self._set.total, "request", "requests")
            if self.table.count() != self._set.total:
                text = f"{self.table.count()} of {text}"
            if chosen:
                text += f", {len(chosen)} selected"
                text += "" if few else f"; at most {_MOST} can be decided at once"
            if not self._may_decide():
                text += ". Approving, dismissing, unlearning, restoring and purging are for "
                text += "administrators."
        self.count.setText(text)

    def _to_unlearn(self) -> list[str]:
        """Return the selected ones that can be unlearned; without a selection all that wait."""
        chosen = self.selected()
        if chosen:
            return in_state(chosen, *_NAMED)
        return in_state(self._set.requests.values(), *_WAITING)

    # -- decisions -----------------------------------------------------------------------------

    def _approve(self) -> None:
        ids = in_state(self.selected(), "requested", "proposed")
        number = texts.count(len(ids), "request", "requests")
        self._asking.ask(
            f"Approve {number}? The next unlearning takes them out of the model.",
            "Approve", lambda: self._set.approve(ids), str(len(ids)), danger=False,
        )  # fmt: skip

    def _dismiss(self) -> None:
        ids = in_state(self.selected(), "proposed")
        number = texts.count(len(ids), "proposal", "proposals")
        self._asking.ask(
            f"Dismiss {number}? Nothing is forgotten: their studies stay in use for training, "
            "unless a mark covers them.",
            "Dismiss", lambda: self._set.dismiss(ids, ""), str(len(ids)),
        )  # fmt: skip

    def _withdraw(self) -> None:
        ids = in_state(self.selected(), *_WITHDRAWABLE)
        number = texts.count(len(ids), "request", "requests")
        self._asking.ask(
            f"Withdraw {number}? Their studies may be used for training again, unless another mark "
            "covers them.",
            "Withdraw", lambda: self._set.withdraw(ids, ""), str(len(ids)),
        )  # fmt: skip

    def _restore(self) -> None:
        (request,) = self.selected()
        target = texts.target(request["target"])
        self._asking.ask(
            f"Restore {target}? The version that knew it serves again, with everything that was "
            "unlearned together with it. It may be trained on again.",
            "Restore", lambda: self._set.restore(request["request_id"], ""), "restore",
        )  # fmt: skip

    def _restore_by_run(self, request_id: str) -> None:
        target = texts.target(self._set.requests[request_id]["target"])
        if self.table.selected() != [request_id]:
            words = f"Restoring {target} takes a run. Select it and press Restore… again."
            self._failed(Problem("refused", words))
            return
        self._asking.ask(
            f"The version that knew {target} also knows others that are still forgotten. They are "
            "unlearned from it again and audited first; it serves only if it passes. Start that?",
            "Restore by a run",
            lambda: self._runs.start("unlearn", {"restore": request_id, "dry_run": False}),
            "restore",
        )

    def _purge(self) -> None:
        """Ask the server what would be gone; only its answer is confirmed."""
        (request,) = self.selected()
        target = texts.target(request["target"])

        def told(would: Any) -> None:
            gone = ", ".join(would["destroyed"]) or "no older version"
            also = ""
            if others := would["requests"]:
                number = texts.count(len(others), "other request", "other requests")
                also = f", nor {number} unlearned together with it"
            self._asking.ask(
                f"Purge {target}? The key of the old weights and every older version that knew it "
                f"are destroyed: {gone}. Nobody can restore it afterwards{also}. This alone is "
                "erasure (GDPR Art. 17).",
                "Purge for good", lambda: self._set.purge(request["request_id"], ""), "purge",
            )  # fmt: skip

        self._asking.ask_server(
            f"what a purge of {target} would destroy",
            lambda done, failed: self._api.would_purge(request["request_id"], done, failed),
            told,
        )

    def _dry_run(self) -> None:
        self._runs.start("unlearn", {**self._options(), "dry_run": True})

    def _options(self) -> dict[str, Any]:
        """Name what is selected; else the server chooses, and leaves out what it cannot treat."""
        named = {"requests": self._to_unlearn()} if self.selected() else {}
        return {**named, "level": data_of(self.level)}

    def _plan(self) -> None:
        """Ask the server what would happen; only its answer is confirmed."""
        options = self._options()
        who, ids = "All that wait", options.get("requests", ())
        if ids:
            who = texts.count(len(ids), "request", "requests")
        if len(ids) == 1:
            who = texts.target(self._set.requests[ids[0]]["target"])

        def planned(plan: Any) -> None:
            text, word = texts.plan_question(who, plan)
            self._asking.ask(
                text,
                "Unlearn",
                lambda: self._runs.start("unlearn", {**options, "dry_run": False}),
                word,
            )

        level = "" if options["level"] == "auto" else options["level"]
        self._asking.ask_server(
            "what an unlearning would do",
            lambda done, failed: self._api.plan(ids, level, done, failed),
            planned,
        )
