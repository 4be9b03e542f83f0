"""The app; where a file says so, unlearnings wait: to be cancelled, killed and watched.

MONAI Label loads this file in the server and in each child process. With ``real`` in that file
everything is the product's, but that the audit is quick and has wide bars; else none is made. The
method is always ``retrain``, and sites are adapted to with other defaults.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks

from segunlearn.app import adapter_task, background, unlearn_run
from segunlearn.app.application import SegUnlearnApp as SegUnlearnApp
from segunlearn.app.unlearn_make import Made
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.audit.policy import Policy
from segunlearn.errors import CancelledError
from segunlearn.records.runs import Progress
from unlearn_storm import passing_audit

_STEPS = 20
#: Wider bars than the product's: the audit is real, but its people are seven and hardly learned.
WIDE = Policy(
    unseen_quality_short=-0.3, forget_level=0.5, gap_excess=0.5, worst_person=0.5, membership=0.5
)
real_make, real_audit = unlearn_run.make, UnlearnRun._audited


def make(name: str, *given: Any) -> Made:
    """Wait as many seconds as a file says, as a long method does."""
    seconds, (report, cancel) = told(), given[4:6]
    for step in range(_STEPS if seconds else 0):
        report(Progress("forget", step, _STEPS, {"forget_dice": 0.9 - step / 50}))
        if cancel():
            raise CancelledError("the unlearning was stopped; the old version serves on.")
        time.sleep((seconds or 0) / _STEPS)
    return real_make(name, *given)


def audit(run: UnlearnRun, *given: Any) -> dict[str, Any]:
    """A quick audit, or one that passes what was made in a moment."""
    if told() is not None:
        return passing_audit(run)
    run.order = replace(run.order, quick=True, policy=WIDE)
    return real_audit(run, *given)


def told() -> float | None:
    """Seconds that an unlearning takes; None for a real one."""
    words = Path(os.environ["SEGUNLEARN_TEST_SECONDS"]).read_text()
    return None if words == "real" else float(words)


#: Steps enough that the gate, which is real, surely sees a gain on a model that was hardly trained.
STRONGER = {"adapt_steps": 40, "adapt_rate": 1e-2, "inner_set": "all"}

adapter_task.OPTIONS.update(
    {name: replace(adapter_task.OPTIONS[name], default=value) for name, value in STRONGER.items()}
)
UnlearnOrder.method_for = lambda self, level: "retrain"  # over in a moment
unlearn_run.make = make
UnlearnRun._audited = audit
background.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": forks.Popen})
