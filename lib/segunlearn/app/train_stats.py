"""A run in the shape of MONAI Label's train statistics, which stock clients render."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from segunlearn.records.runs import RunRecord


def training_stats_of(run: RunRecord) -> dict[str, Any]:
    """Statistics as ``BasicTrainTask`` writes them, and our own progress.

    Returns
    -------
    dict
        ``epoch``, ``total_epochs``, ``start_ts``, ``total_time`` once it ended or
        ``current_time``, ``best_metric`` and, beside the stock keys, ``run_id``, ``state``,
        ``phase``, ``step``, ``total``, ``metrics``, ``eta_seconds``.
    """
    common = _common(run)
    metrics = common["metrics"]
    epoch = int(metrics.get("epoch", 0))
    if run.state == "running" and common["phase"] == "train":
        epoch = max(0, epoch - 1)  # the epoch under way is not done
    best = metrics.get("best_dice", 0.0)
    return {
        **common,
        "epoch": epoch,
        "total_epochs": int(run.parameters.get("settings", {}).get("epochs", 0)),
        "best_metric": best,
        "train": _part({"train_loss": metrics.get("loss", 0.0)}, "train_loss", best),
        "eval": _part({"val_mean_dice": metrics.get("val_dice", 0.0)}, "val_mean_dice", best),
    }


def stats_of(run: RunRecord) -> dict[str, Any]:
    """Show any other run as stock clients render trainings: the steps of its phase are epochs."""
    common = _common(run)
    return {
        **common,
        "epoch": common["step"],
        "total_epochs": max(1, common["total"]),
        "best_metric": 0.0,
        "kind": run.kind,
        "plan": run.parameters.get("plan"),
    }


def _common(run: RunRecord) -> dict[str, Any]:
    progress = run.progress
    started = datetime.fromisoformat(run.started)
    ended = datetime.fromisoformat(run.ended) if run.ended else datetime.now(UTC)
    seconds = str(timedelta(seconds=int((ended - started).total_seconds())))
    return {
        "start_ts": int(started.timestamp()),
        ("total_time" if run.ended else "current_time"): seconds,
        "run_id": run.run_id,
        "state": run.state,
        "message": run.message,
        "phase": progress.phase if progress else "",
        "step": progress.step if progress else 0,
        "total": progress.total if progress else 0,
        "metrics": dict(progress.metrics) if progress else {},
        "eta_seconds": progress.eta_seconds if progress else None,
    }


def _part(metrics: dict[str, float], name: str, best: float) -> dict[str, Any]:
    return {"metrics": metrics, "key_metric_name": name, "best_metric": best}
