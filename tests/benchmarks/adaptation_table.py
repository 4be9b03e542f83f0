"""What the folds say together: means, paired differences, bars and a plot."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from report import bar

mpl.use("Agg")
from matplotlib import pyplot as plt

#: Of the plot: what is drawn of a method, and how.
_DRAWN: Final = {
    "generator+maml": ("generator, then MAML", "tab:red", "-"),
    "generator+steps": ("generator, then steps on it", "tab:purple", "-"),
    "maml": ("MAML alone", "tab:orange", "-"),
    "generator+maml without virtual sites": ("without virtual sites", "tab:pink", ":"),
    "fine_tune all": ("fine-tuning, all weights", "tab:blue", "-"),
    "fine_tune decoder": ("fine-tuning, decoder", "tab:cyan", "-"),
    "fine_tune all, base": ("fine-tuning, all weights, shorter training", "tab:blue", ":"),
    "fine_tune decoder, base": ("fine-tuning, decoder, shorter training", "tab:cyan", ":"),
    "fine_tune augmented": ("fine-tuning, augmented", "tab:green", "--"),
    "fine_tune lora": ("fine-tuning, LoRA", "tab:olive", "--"),
    "scratch": ("from scratch", "tab:gray", ":"),
}


def paired(
    sites: Sequence[Mapping[str, Mapping[str, float]]], one: str, other: str, seed: int = 0
) -> dict[str, float]:
    """Mean difference in Dice points, its 95 % interval over sites and people, sites won."""
    rng = np.random.default_rng(seed)
    gains = [np.array([s[one][p] - s[other][p] for p in sorted(s[one])]) for s in sites]
    means = [
        np.mean([rng.choice(gains[i], len(gains[i])).mean() for i in picks])
        for picks in rng.integers(len(gains), size=(10_000, len(gains)))
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    mean = np.mean([g.mean() for g in gains])
    return {
        "difference": 100 * float(mean), "low": 100 * float(low), "high": 100 * float(high),
        "sites_won": sum(bool(g.mean() > 0) for g in gains), "sites": len(gains),
    }  # fmt: skip


def summary(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean Dice of every method over the left-out sites, and ours beside the best baseline."""
    sites = [dice for fold in folds for dice in fold["dice"].values()]
    common = [m for m in sites[0] if all(m in s for s in sites)]
    table = {
        method: 100 * float(np.mean([np.mean(list(s[method].values())) for s in sites]))
        for method in common
    }
    against = {}
    for method in table:
        if not method.startswith(("maml", "generator", "best")):
            continue
        at, steps = method[method.index(" k=") :], int(method.split("=")[-1])
        k = at.split(" steps")[0]
        tuned = [m for m in table if m.startswith("fine_tune") and k + " " in m]
        rivals = {
            "same steps": [m for m in tuned if m.endswith(at)],
            "any steps up to these": [m for m in tuned if int(m.split("=")[-1]) <= steps],
            "50 steps": [m for m in tuned if m.endswith("steps=50")],
            "any steps": tuned,
            "zero shot": [m for m in tuned if m.endswith("steps=0")],
        }
        against[method] = {
            name: {"rival": best, **paired(sites, method, best)}
            for name, found in rivals.items()
            if (best := max(found, key=lambda m: table[m], default="")) and best in table
        }
    return {"dice": table, "against": against, "folds": list(folds)}


def better_than(
    figures: Mapping[str, Any], about: str, method: str, rival: str, least: float,
    *, sure: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Bar: a method is at least so many Dice points above the best of some rivals.

    Parameters
    ----------
    figures
        Of ``summary``.
    about
        Said first.
    sure
        The interval must lie above zero, too.
    """
    row = figures["against"][method][rival]
    holds = row["difference"] >= least and (not sure or row["low"] > 0)
    interval = f"[{row['low']:+.1f}, {row['high']:+.1f}]"
    name = f"{about}: {method} over {rival} ({row['rival']}), Dice points {interval}"
    return bar(name, row["difference"], f">= {least}" + ", interval above 0" * sure, holds)


def gate_bars(
    figures: Mapping[str, Any], about: str, ks: Sequence[int], method: str = "generator+maml"
) -> list[dict[str, Any]]:
    """Bars: what the gate serves is not half a point below zero-shot or the best baseline."""
    return [
        better_than(figures, about, f"{method} gated k={k} steps=3", rival, -0.5)
        for k, rival in itertools.product(ks, ("zero shot", "same steps"))
    ]


def curves(figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw Dice against steps, a row for each part of the figures and a column for each k."""
    ks = sorted({int(m.split(" k=")[1].split()[0]) for f in figures.values() for m in f["dice"]})
    figure, axes = plt.subplots(
        len(figures), len(ks), figsize=(4.6 * len(ks), 3.7 * len(figures) + 0.6),
        squeeze=False, sharey="row", layout="constrained",
    )  # fmt: skip
    for (name, of), row in zip(figures.items(), axes, strict=True):
        sites = sum(len(f["dice"]) for f in of["folds"])
        for k, axis in zip(ks, row, strict=True):
            for method, (label, colour, style) in _DRAWN.items():
                found = {
                    int(m.split("=")[-1]): d
                    for m, d in of["dice"].items()
                    if m.startswith(f"{method} k={k} ")
                }
                if not found:
                    continue
                points = dict(sorted(found.items()))
                axis.plot(
                    range(len(points)), list(points.values()), style, color=colour, label=label,
                    marker="o", markersize=4,
                )  # fmt: skip
                axis.set_xticks(range(len(points)), [str(step) for step in points])
            if f"stock k={k} steps=0" in of["dice"]:
                level = of["dice"][f"stock k={k} steps=0"]
                axis.axhline(level, color="black", linewidth=0.8, label="stock recipe, 50 epochs")
            axis.set_title(f"{name}: {k} annotated {'person' if k == 1 else 'people'}")
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"Dice at {sites} left-out sites, %")
    for axis in axes[-1]:
        axis.set_xlabel("gradient steps")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
