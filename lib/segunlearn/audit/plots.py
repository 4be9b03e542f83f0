"""The plots of an audit report, each as an SVG text that needs nothing from outside."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_INK, _GRID = "#2b2f36", "#d9dde3"
_CANDIDATE, _ORIGINAL, _REFERENCE, _UNSEEN = "#0b6e4f", "#b3261e", "#3b5bdb", "#8a919c"

Figures = Mapping[str, Mapping[str, Any]]


def loss_distributions(figures: Figures) -> str:
    """Loss of forgotten against unseen studies, before, after, and in a reference; a plot each."""
    names, drawn = _models(figures), []
    everything = [s["loss"] for n in names for part in ("forget", "test") for s in figures[n][part]]
    bins = np.linspace(min(everything), max(everything) + 1e-9, 16)
    for name in names:
        figure, ax = _panel()
        for part, colour, label in (
            ("test", _UNSEEN, "unseen"),
            ("forget", _COLOURS[name], "forgotten"),
        ):
            losses = [s["loss"] for s in figures[name][part]]
            weights = np.full(len(losses), 1 / len(losses))
            ax.hist(losses, bins=list(bins), weights=weights, color=colour, alpha=0.65, label=label)
        ax.set_title(_TITLES[name])
        ax.set_xlabel("loss")
        ax.set_ylabel("share of studies")
        ax.set_ylim(0, 1.02)
        ax.legend(frameon=False)
        drawn.append(_svg(figure, f"losses-{name}"))
    return "".join(drawn)


def roc(figures: Figures) -> str:
    """Receiver operating characteristic of the loss attack."""
    figure, ax = _panel(4.6, 4.2)
    for name in _models(figures):
        s = -np.asarray([x["loss"] for x in figures[name]["forget"]])
        u = -np.asarray([x["loss"] for x in figures[name]["test"]])
        thresholds = np.sort(np.concatenate([s, u]))[::-1]
        false = [0.0, *[float((u >= t).mean()) for t in thresholds]]
        true = [0.0, *[float((s >= t).mean()) for t in thresholds]]
        ax.plot(false, true, color=_COLOURS[name], label=_TITLES[name], linewidth=2)
    ax.plot([0, 1], [0, 1], color=_UNSEEN, linestyle=":", label="guessing")
    ax.set_xlabel("unseen studies taken for forgotten ones")
    ax.set_ylabel("forgotten studies found")
    figure.legend(frameon=False, loc="outside upper center", ncol=2)
    return _svg(figure, "roc")


def relearns_itself(figures: Figures) -> bool:
    """Whether a single study was forgotten: no others are there that an attack could bring back."""
    attacks = figures["candidate"]["relearning"] or ()
    return bool(attacks) and all(a["best_others"] is None for a in attacks)


def relearning(figures: Figures) -> str:
    """Dice of the other forgotten studies while an attacker fine-tunes; a plot a number.

    Of the attacker's own study where there is no other one.
    """
    names = [n for n in _models(figures) if figures[n]["relearning"]]
    if not names:
        return ""
    column = 1 if relearns_itself(figures) else 2
    first = figures[names[0]]["relearning"]
    numbers = sorted({a["people"] for a in first})
    whose = "the study itself" if column == 1 else "the other forgotten ones"
    points = [p[column] for n in names for a in figures[n]["relearning"] for p in a["curve"]]
    low, high, drawn = min(points), max(points), []
    for number in numbers:
        figure, ax = _panel(4.6, 3.6)
        for name in names:
            attacks = [a for a in figures[name]["relearning"] if a["people"] == number]
            for i, attack in enumerate(attacks):
                curve = [(p[0], p[column]) for p in attack["curve"]]
                ax.plot(
                    *zip(*curve, strict=True),
                    color=_COLOURS[name],
                    linewidth=1.6,
                    alpha=0.8,
                    marker="o" if len(curve) == 1 else None,
                    label=_TITLES[name] if i == 0 else None,
                )
        one, several = ("person", "people")
        if first[0].get("unit", "people") == "studies":
            one, several = ("study", "studies")
        ax.set_title(f"attacker has {number} {one if number == 1 else several}")
        ax.set_xlabel("steps of the attacker")
        ax.set_ylabel(f"Dice of {whose}")
        ax.set_ylim(low - 0.05 * (high - low + 0.1), high + 0.05 * (high - low + 0.1))
        figure.legend(frameon=False, loc="outside upper center", ncol=3, columnspacing=1.2)
        drawn.append(_svg(figure, f"relearning-{number}"))
    return "".join(drawn)


def class_row(found: Mapping[str, Any]) -> str:
    """Show what a model says of a withdrawn structure's voxels, beside models without it.

    Parameters
    ----------
    found
        ``ClassMode.to_json`` and ``"labels"``, the structures in the order of their values.
    """
    names = ["background", *found["labels"]]
    figure = Figure(figsize=(4.6, 0.62 * len(names) + 1.2), layout="constrained")
    ax = figure.subplots()
    _style(ax)
    at = np.arange(len(names))
    ax.barh(at - 0.19, found["row"], 0.36, color=_CANDIDATE, label="after")
    ax.barh(at + 0.19, found["target"], 0.36, color=_REFERENCE, label="never taught (reference)")
    ax.set_yticks(at, names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("mean probability")
    figure.legend(frameon=False, loc="outside upper center", ncol=2)
    return _svg(figure, "class")


def dice_before_and_after(figures: Figures) -> str:
    """Dice of each forgotten study before and after, with the reference's."""
    rows = sorted(figures["original"]["forget"], key=lambda s: s["dice"])
    after = {s["series"]: s["dice"] for s in figures["candidate"]["forget"]}
    never = [
        {s["series"]: s["dice"] for s in f["forget"]}
        for name, f in figures.items()
        if name.startswith("reference")
    ]
    figure = Figure(figsize=(5.4, max(2.4, 0.28 * len(rows) + 1.1)), layout="constrained")
    ax = figure.subplots()
    _style(ax)
    for y, row in enumerate(rows):
        series = row["series"]
        ax.plot([row["dice"], after[series]], [y, y], color=_GRID, linewidth=3, zorder=1)
        reference = float(np.mean([r[series] for r in never]))
        for x, colour, marker, label in (
            (row["dice"], _ORIGINAL, "o", "before"),
            (after[series], _CANDIDATE, "o", "after"),
            (reference, _REFERENCE, "|", "never seen (reference)"),
        ):
            ax.scatter(
                x, y, color=colour, marker=marker, s=60, zorder=2, label=None if y else label
            )
    ax.set_yticks(range(len(rows)), [r["series"] for r in rows], family="monospace")
    ax.set_xlabel("Dice")
    figure.legend(frameon=False, loc="outside upper center", ncol=3)
    return _svg(figure, "each")


def slices(pictures: Sequence[Mapping[str, Any]]) -> str:
    """Middle slices of forgotten studies with the masks before, after and of a reference.

    Parameters
    ----------
    pictures
        Each ``{"name", "image": (X, Y), "label", "original", "candidate", "reference"}`` arrays.
    """
    if not pictures:
        return ""
    columns = ("label", "original", "candidate", "reference")
    figure = Figure(figsize=(2.1 * len(columns), 2.2 * len(pictures)), layout="constrained")
    grid = figure.subplots(len(pictures), len(columns), squeeze=False)
    for row, (line, picture) in enumerate(zip(grid, pictures, strict=True)):
        for ax, column in zip(line, columns, strict=True):
            ax.imshow(np.asarray(picture["image"]).T, cmap="gray", origin="lower")
            mask = np.asarray(picture[column]).T
            if mask.any():
                ax.contour(
                    mask > 0, [0.5], colors=[_COLOURS.get(column, "#f2c14e")], linewidths=1.5
                )
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(_TITLES.get(column, "annotation"), fontsize=10)
        line[0].set_ylabel(picture["name"], family="monospace", fontsize=8)
    return _svg(figure, "slices")


_COLOURS = {
    "original": _ORIGINAL,
    "candidate": _CANDIDATE,
    "reference-1": _REFERENCE,
    "reference": _REFERENCE,
}
_TITLES = {
    "original": "before",
    "candidate": "after",
    "reference-1": "never seen (reference)",
    "reference": "never seen (reference)",
}


def _models(figures: Figures) -> list[str]:
    return [n for n in ("original", "candidate", "reference-1") if n in figures]


def _panel(width: float = 3.1, height: float = 2.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    _style(ax)
    return figure, ax


def _style(ax: Axes) -> None:
    ax.grid(color=_GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(colors=_INK)


def _svg(figure: Figure, name: str) -> str:
    """SVG without XML head, scripts, links, random names or the time.

    Names inside are the plot's own: one that is folded away must not be referred to by another.
    """
    buffer = io.StringIO()
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            buffer, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*pt" height="[^"]*pt"', r"<svg \1", text, count=1)
    return text.replace("<svg ", '<svg role="img" ', 1)
