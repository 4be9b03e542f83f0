"""Dice of a few studies while a method works: what the progress of an unlearning shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from torch import nn

from segunlearn.app.audit_choice import Choice
from segunlearn.app.audit_studies import window
from segunlearn.records.runs import Progress
from segunlearn.unlearning import studies_of
from segunlearn.unlearning.loop import mean_dice

#: Studies of each set that are scored, each in the window that shows its structures.
STUDIES: Final = 4
#: Times that a descent is looked at.
LOOKS: Final = 10
#: Most of the time that looking may take.
SHARE: Final = 0.05


class Watch:
    """Scores a few studies of S, R and C before, at every tenth of each descent, and after.

    The figures only tell how far it is. The method is given neither them nor the studies, and no
    random number is drawn.

    Parameters
    ----------
    sets
        Who is in which set.
    report
        Is told the figures before and after.
    clock
        Seconds, for the share of the time that looking takes.
    """

    def __init__(
        self,
        sets: Choice,
        report: Callable[[Progress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._report, self._clock = sets.config, report, clock
        self._began = clock()
        self._studies = {
            name: tuple(
                window(s, sets.config)
                for s in studies_of(cases[:STUDIES], sets.config, without=sets.untaught)
            )
            for name, cases in (
                ("forget", sets.forget), ("retain", sets.retain), ("calibration", sets.calibration),
            )
            if cases
        }  # fmt: skip
        self._figures: dict[str, float] = {}
        self._spent = self._last = 0.0

    def __call__(self, network: nn.Module, step: int, total: int) -> dict[str, float]:
        """Figures of a network on the way, measured anew at every tenth where time allows."""
        tenth = step * LOOKS // total > (step - 1) * LOOKS // total
        left = SHARE * (self._clock() - self._began) - self._spent
        if tenth and self._last <= left:
            self._measure(network)
        return self._figures

    def look(self, network: nn.Module, phase: str) -> None:
        """Measure a network now, and report it as a phase of its own."""
        self._report(Progress(phase, 0, 1))
        self._measure(network)
        self._report(Progress(phase, 1, 1, self._figures))

    def _measure(self, network: nn.Module) -> None:
        before = self._clock()
        self._figures = {
            f"{name}_dice": mean_dice(network, studies, self._config)
            for name, studies in self._studies.items()
        }
        self._last = self._clock() - before
        self._spent += self._last
