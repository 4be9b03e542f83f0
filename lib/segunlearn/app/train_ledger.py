"""A training run as a row of the ledger."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from segunlearn import __version__
from segunlearn.cases import Case
from segunlearn.records.ledger import LedgerCase, LedgerEntry
from segunlearn.records.store import utc_now
from segunlearn.training import TrainResult, TrainSettings

#: Libraries that shape the numbers of a training.
LIBRARIES = ("torch", "monai", "numpy", "nibabel", "pydicom", "highdicom")


def entry_of(
    *,
    run_id: str,
    model: str,
    parent_sha256: str | None,
    settings: TrainSettings,
    cases: Sequence[Case],
    started: str,
    outcome: str,
    result: TrainResult | None,
) -> LedgerEntry:
    """Describe a run: with its result, or as it ended without one.

    Parameters
    ----------
    run_id, model, parent_sha256, settings, started
        Of the run.
    cases
        What it read, should it have no result: which of them would have been validation is then
        not told, they all count as ``train``.
    outcome
        ``done``, ``failed``, ``cancelled`` or ``refused``.
    result
        None when there is none.
    """
    if result is None:
        rows = [LedgerCase(c.series, c.study, c.person, "train") for c in cases]
    else:
        rows = [
            LedgerCase(
                c.series, c.study, c.person, role,
                result.digests[c.series].image, result.digests[c.series].label,
            )
            for role, used in (("train", result.train_cases), ("val", result.val_cases))
            for c in used
        ]  # fmt: skip
    resolved = result.settings if result is not None else settings
    parameters: dict[str, Any] = {"settings": resolved.to_json()}
    if result is not None:
        parameters["config"] = result.config.to_json()
        parameters["best_dice"] = result.best_dice
        parameters["epochs_done"] = result.epochs_done
    return LedgerEntry(
        run_id=run_id,
        kind="train",
        model=model,
        version_sha256=result.sha256 if result is not None and outcome == "done" else None,
        parent_sha256=parent_sha256,
        cases=rows,
        parameters=parameters,
        seed=resolved.seed,
        versions=library_versions(),
        machine=machine(),
        started=started,
        ended=utc_now(),
        outcome=outcome,
    )


def library_versions() -> Mapping[str, str]:
    """Versions of the program, Python and the libraries that shape the numbers."""
    found = {"segunlearn": __version__, "python": platform.python_version()}
    return {**found, **{name: version(name) for name in LIBRARIES}}


def machine() -> Mapping[str, Any]:
    """Host and devices."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processors": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }
