"""The figures, bars and plot of the replay benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from replay_retain import WAYS
from report import bar

mpl.use("Agg")
from matplotlib import pyplot as plt

#: What replayed may lose against stored, and the share of the marker that may stay.
LOSS, LEFT = 0.02, 0.1


def figures_of(
    retained: Mapping[int, Mapping[str, Any]], features: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of both halves with their spread, and the bars.

    Parameters
    ----------
    retained
        By seed; see ``replay_retain.measure``.
    features
        By kind of images; see ``replay_feature.measure_feature``.
    """
    rows = {
        f"{way}, {source}": {
            name: spread([found[f"{way}, {source}"][name] for found in retained.values()])
            for name in ("test", "forget", "retain", "replay", "cpu_seconds")
        }
        for way, sources in WAYS.items()
        for source in sources
    }
    memory = [found["memory"] for found in retained.values()]
    figures = {
        "retain": rows,
        "original": {
            name: spread([found["original"][name] for found in retained.values()])
            for name in ("test", "forget", "retain", "replay")
        },
        "memory": {name: spread([m[name] for m in memory]) for name in memory[0]},
        "seeds": {str(seed): dict(found) for seed, found in retained.items()},
        "feature": {name: dict(found) for name, found in features.items()},
    }
    bars = []
    for way in WAYS:
        replayed, stored = (rows[f"{way}, {n}"]["test"]["mean"] for n in ("replay", "stored"))
        name = f"{way.replace('_', ' ')}, replay: test Dice minus that of stored"
        value = replayed - stored
        bars.append(bar(name, value, f">= -{LOSS}", value >= -LOSS))
    for name, found in features.items():
        bars += feature_bars(name, found)
    return figures, bars


def feature_bars(name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Marker gone, and the rest changed by less than three generators differ."""
    before, after, runs = found["before"], found["after"], found["retrainings"]
    left = after["share"] / before["share"] if before["share"] else float("nan")
    bars = [
        bar(f"{name}: share with the marker, after over before", left, f"<= {LEFT}", left <= LEFT)
    ]
    for key, words in (("frechet", "Fréchet distance"), ("ms_ssim", "MS-SSIM of pairs")):
        values = [run[key] for run in runs]
        spread_ = max(values) - min(values)
        change = abs(after[key] - before[key])
        bars.append(
            bar(
                f"{name}: change of the {words} without the marker, over the range of three "
                "re-trainings",
                change / spread_,
                "< 1",
                change < spread_,
            )
        )
    return bars


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds, and the values."""
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": [float(v) for v in values],
    }


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Test Dice by what stands for the retain set; the marker's share before and after."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    rows = figures["retain"]
    names = [n.replace("_and_", " and\n").replace(", ", "\n") for n in rows]
    left.errorbar(
        range(len(rows)),
        [r["test"]["mean"] for r in rows.values()],
        [r["test"]["sd"] or 0 for r in rows.values()],
        fmt="o",
        capsize=4,
    )
    left.axhline(figures["original"]["test"]["mean"], color="0.6", linestyle="--", label="original")
    left.set(xticks=range(len(rows)), ylabel="Dice on 70 unseen people")
    left.set_xticklabels(names, fontsize=7)
    left.legend(fontsize=8)
    feature = figures["feature"]
    for i, (when, colour) in enumerate((("before", "#b3261e"), ("after", "#0b6e4f"))):
        shares = [f[when]["share"] for f in feature.values()]
        attacked = [f[when]["attack"]["2.0"] for f in feature.values()]
        places = np.arange(len(feature)) + 0.2 * i
        right.bar(places, shares, 0.18, color=colour, label=f"{when}, drawn")
        right.bar(
            places + 0.4, attacked, 0.18, color=colour, alpha=0.5, label=f"{when}, latent attack"
        )
    right.set(
        xticks=np.arange(len(feature)) + 0.3,
        ylabel="share that shows the marker",
        yscale="symlog",
        ylim=(0, 1.4),
    )
    right.set_yscale("symlog", linthresh=0.01)
    right.set_xticklabels(list(feature))
    right.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for ax in (left, right):
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
