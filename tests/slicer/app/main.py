"""The app with stand-ins that take a moment: a method, its audit, and the gate of an adapter.

MONAI Label loads this file in the server and in each child process. Everything else is the real
app: requests, runs, ledger, sealing and publishing.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from segunlearn.adaptation import LeaveOneOut
from segunlearn.app import adapter_run, unlearn_run
from segunlearn.app.application import SegUnlearnApp as SegUnlearnApp
from segunlearn.app.audit_files import Audits
from segunlearn.app.unlearn_make import Made
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.audit.run import FORMAT
from segunlearn.errors import CancelledError
from segunlearn.networks import build_network, save_weights
from segunlearn.records.runs import Progress
from segunlearn.records.store import utc_now

_STEPS = 20


def quick_make(
    name: str, order: Any, sets: Any, records: Any, folder: Path, report: Any, cancel: Any
) -> Made:
    """Random weights, in as many seconds as a file says, with the progress of a real one."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds = float(Path(os.environ["SEGUNLEARN_TEST_SECONDS"]).read_text())
    for step in range(_STEPS):
        report(Progress("forget", step, _STEPS, {"forget_dice": 0.9 - step / 50}))
        if cancel():
            raise CancelledError("the unlearning was stopped; the old version serves on.")
        time.sleep(seconds / _STEPS)
    seed = random.SystemRandom().randrange(2**31)
    weights = folder / "candidate.safetensors"
    digest = save_weights(build_network(sets.config, seed), weights)
    return Made(weights, digest, {}, seed, {"retain": 1}, 1.0, {"train": sets.retain}, exact=True)


def quick_audit(run: UnlearnRun, choice: Any, original: Any, candidate: Any) -> dict[str, Any]:
    """A signed audit that passes."""
    verdict = {
        "outcome": "passed", "reached": choice.level, "needed": choice.needed, "reasons": [],
        "reference": "full",
    }  # fmt: skip
    people = {"studies": len(choice.requests), "persons": len(choice.requests)}
    empty = ("findings", "void", "notes", "not_proved", "provenance", "settings", "versions")
    result = {
        **{name: [] for name in empty},
        "format": FORMAT, "created": utc_now(), "verdict": verdict, "sets": {"forget": people},
        "digests": {"candidate": candidate.sha256, "original": original.sha256},
        "figures": {"original": {"forget": []}},
        "about": {"audit_id": run.run_id, "model": run.order.model,
                  "candidate": candidate.version, "original": original.version},
    }  # fmt: skip
    page = "<!doctype html><html><title>Audit report</title><h1>Audit report</h1></html>"
    Audits(run.home).write(run.run_id, result, page)
    return {"verdict": verdict, "about": {"audit_id": run.run_id}}


unlearn_run.make = quick_make
UnlearnRun._audited = quick_audit
adapter_run.leave_one_out = lambda *_: LeaveOneOut((0.8, 0.6), (0.5, 0.5))
