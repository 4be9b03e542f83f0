"""The run under way, or how the last one ended, and what runs beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.idioms import button, column, label, restyle, row
from SegUnlearnLib.parts.style import frame
from SegUnlearnLib.run_view import RunView
from SegUnlearnLib.runs import Runs
from SegUnlearnLib.watch import Watch

_ENDS = {
    "done": ("Done", "good"), "failed": ("Failed", "bad"), "refused": ("Refused", "bad"),
    "cancelled": ("Cancelled", "bad"), "interrupted": ("Interrupted: its server stopped", "bad"),
    "lost": ("Lost", "bad"),
}  # fmt: skip
_WHOLE = 1000
#: Other runs that are named; of more their number is.
_NAMED = 4


class RunPart:
    """Progress with Cancel."""

    def __init__(self, runs: Runs, watch: Watch, may_decide: Callable[[], bool]) -> None:
        self._runs, self._watch, self._may_decide = runs, watch, may_decide
        self.widget = frame("card")
        layout = column(self.widget, 8)
        self.title = label(role="title", wrap=False)
        self.title.setObjectName("runTitle")
        self.cancel = button("Cancel", runs.cancel, "Stop at the next step", "runCancel")
        self.close = button("Hide", runs.forget, name="runHide")
        layout.addLayout(row(self.title, self.cancel, self.close, stretch=0))
        self.bar = qt.QProgressBar()
        self.bar.setObjectName("runBar")
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(10)
        layout.addWidget(self.bar)
        self.phase, self.text = label(role="quiet"), label()
        self.phase.setObjectName("runPhase")
        self.text.setObjectName("runText")
        self.trouble = label(role="bad")
        self.trouble.setObjectName("runTrouble")
        self.beside = label(role="quiet")
        self.beside.setObjectName("runBeside")
        for one in (self.phase, self.text, self.trouble, self.beside):
            layout.addWidget(one)
        self.widget.setVisible(False)
        self.beside.setVisible(False)
        runs.changed.connect(self._changed)
        runs.gone.connect(self._hide)
        runs.trouble.connect(self._trouble)
        watch.changed.connect(self._others)

    def _changed(self, view: RunView) -> None:
        name = texts.RUNS.get(view.kind, view.kind)
        self.widget.setVisible(True)
        self.cancel.setVisible(bool(view.can_stop and self._may_decide()))
        self.close.setVisible(bool(view.is_over))
        self.bar.setVisible(not view.is_over)
        if view.is_over:
            word, role = _ENDS.get(view.state, (view.state, "bad"))
            self.title.setText(f"{name}: {word}")
            restyle(self.title, role)
            self.phase.setText("")
        else:
            self.title.setText(name)
            restyle(self.title, "title")
            self.phase.setText(_phase(view))
            unknown = view.fraction < 0
            self.bar.setRange(0, 0 if unknown else _WHOLE)
            if not unknown:
                self.bar.setValue(int(_WHOLE * min(1.0, view.fraction)))
        lines = [f"· {texts.squeeze(line)}" for line in view.lines]
        self.text.setText("\n".join(filter(None, (texts.sentence(view.text), *lines))))
        self.phase.setVisible(bool(not view.is_over and _phase(view)))
        self.text.setVisible(bool(view.text or view.lines))
        self._others()

    def _others(self) -> None:
        """Tell what else runs; it is followed once nothing else is shown."""
        others = self._watch.beside
        lines = [f"Also running: {_other(view)}" for view in others[:_NAMED]]
        if len(others) > _NAMED:
            lines.append(f"and {len(others) - _NAMED} more")
        self.beside.setText("\n".join(lines))
        self.beside.setVisible(bool(lines))

    def _trouble(self, text: str) -> None:
        self.trouble.setText(text)
        self.trouble.setVisible(bool(text))

    def _hide(self) -> None:
        self.widget.setVisible(False)


def _other(view: RunView) -> str:
    words = texts.RUNS.get(view.kind, view.kind)
    if view.requests:
        words += f" of {texts.count(len(view.requests), 'request', 'requests')}"
    words += f" ({view.by})" if view.by else ""
    return " · ".join(filter(None, (words, _phase(replace(view, metrics=None)))))


def _phase(view: RunView) -> str:
    words: list[str] = []
    if view.state == "waiting" or not view.can_stop:  # which tells nothing of itself
        return ""
    if view.phase:
        words.append(view.phase.replace("_", " "))
    if view.fraction >= 0:
        words.append(f"{round(100 * view.fraction)} %")
    if view.eta_seconds is not None:
        words.append(f"about {texts.duration(view.eta_seconds)} left")
    figures: dict[str, Any] = dict(view.metrics or {})
    words += [f"{k.replace('_', ' ')} {v:.3g}" for k, v in list(figures.items())[:4]]
    return " · ".join(words) or "It begins …"
