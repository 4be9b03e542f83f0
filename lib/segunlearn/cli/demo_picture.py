"""The picture at the end of the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segunlearn.cli.demo_steps import Line, Mask

_INK: Final = "#2b2f36"
_GREY: Final = "#8a919c"
_RED: Final = "#b3261e"
_GREEN: Final = "#0b6e4f"
_AMBER: Final = "#c77700"
_BLUE: Final = "#3b5bdb"
_PURPLE: Final = "#8e2a8b"
#: One for each line: original, hidden, published method, unlearned, reference.
COLOURS: Final = (_RED, _AMBER, _PURPLE, _GREEN, _BLUE)


def draw(
    path: Path,
    image: npt.NDArray[np.float32],
    outlines: Sequence[tuple[str, str, Mask]],
    lines: Sequence[Line],
) -> None:
    """Write the picture.

    Parameters
    ----------
    path
        PNG.
    image
        ``(R, A)``, of a forgotten person.
    outlines
        Title, words below, and mask ``(R, A)``; the first is the label, drawn in all panels.
    lines
        Original, hidden, published method, unlearned, and the model that never saw the people.
    """
    figure = Figure(figsize=(13, 9.2), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(
        "Six people withdrew their consent. Does the model still know them?",
        fontsize=19, fontweight="bold", color=_INK, x=0.03, ha="left", y=0.975,
    )  # fmt: skip
    figure.text(
        0.03, 0.907,
        "What looks forgotten can come back from the weights. The audit asks both.",
        fontsize=14, color=_INK,
    )  # fmt: skip
    top = figure.add_gridspec(
        1, len(outlines), left=0.03, right=0.97, top=0.85, bottom=0.485, wspace=0.08
    )
    for column, (title, words, mask) in enumerate(outlines):
        colour = (_INK, _RED, _AMBER, _GREEN)[column % 4]
        _outline(figure.add_subplot(top[column]), image, title, words, mask, outlines[0][2], colour)
    bottom = figure.add_gridspec(1, 2, left=0.15, right=0.845, top=0.355, bottom=0.095, wspace=0.12)
    left, right = figure.add_subplot(bottom[0]), figure.add_subplot(bottom[1])
    _membership(left, lines)
    _relearned(right, lines)
    figure.text(
        0.03, 0.018,
        "Synthetic people, a tiny network, and an audit with wider bars than the product's. "
        "Measured, not proved: a stronger attack may find more.",
        fontsize=10, color=_GREY,
    )  # fmt: skip
    figure.savefig(path, format="png", metadata={"Software": "SegUnlearn"})


def _outline(
    ax: Axes,
    image: npt.NDArray[np.float32],
    title: str,
    words: str,
    mask: Mask,
    label: Mask,
    colour: str,
) -> None:
    ax.imshow(image.T, cmap="gray", origin="lower", interpolation="bicubic")
    if mask is not label:
        _contour(ax, label, "#ffffff", 1.6, "dotted")
    _contour(ax, mask, {_INK: "#ffffff"}.get(colour, _bright(colour)), 3.2, "solid")
    ax.set_title(title, fontsize=13, fontweight="bold", color=colour, loc="left", pad=8)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(words, fontsize=10.5, color=_INK, loc="left", labelpad=6)
    for spine in ax.spines.values():
        spine.set(color=colour, linewidth=2.5)


def _bright(colour: str) -> str:
    return {_RED: "#ff5a4f", _AMBER: "#ffb020", _GREEN: "#3ddc97"}.get(colour, colour)


def _contour(ax: Axes, mask: Mask, colour: str, width: float, style: str) -> None:
    if mask.any() and not mask.all():
        drawn: Any = mask.T.astype(float)
        ax.contour(drawn, levels=[0.5], colors=[colour], linewidths=width, linestyles=style)


def _membership(ax: Axes, lines: Sequence[Line]) -> None:
    at = np.arange(len(lines))[::-1]
    usual = lines[-1].membership
    ax.axvspan(max(0.0, usual - 0.3), min(1.0, usual + 0.3), color=_BLUE, alpha=0.09, linewidth=0)
    ax.axvline(usual, color=_BLUE, linewidth=1.5, linestyle="dashed")
    for y, line, colour in zip(at, lines, COLOURS, strict=True):
        ax.plot([usual, line.membership], [y, y], color=colour, linewidth=2, alpha=0.5)
        ax.plot(line.membership, y, "o", color=colour, markersize=12)
        _number(ax, line.membership, y, colour)
    ax.set_yticks(at, [n.name for n in lines], fontsize=12)
    for tick, colour in zip(ax.get_yticklabels(), COLOURS, strict=True):
        tick.set_color(colour)
    ax.set_xlim(-0.04, 1.04)
    ax.set_xticks([0, 0.5, 1], ["0", "0.5: guessing", "1: knows"])
    ax.set_xlabel("shaded: what the audit lets pass", loc="left", fontsize=10.5)
    _finish(ax, "1  What its answers show: an attacker\n    guesses who was trained on (AUC)")


def _relearned(ax: Axes, lines: Sequence[Line]) -> None:
    at = np.arange(len(lines))[::-1]
    level = lines[-1].relearned
    values = [v for n in lines for v in (n.others, n.relearned)]
    ax.axvline(level, color=_BLUE, linewidth=1.5, linestyle="dashed")
    for y, line, colour in zip(at, lines, COLOURS, strict=True):
        ends = [line.others, line.relearned]
        ax.plot(ends, [y, y], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        ax.plot(ends[0], y, "o", markersize=11, color="white", markeredgecolor=colour, mew=2)
        ax.plot(ends[1], y, "o", markersize=12, color=colour)
        _number(ax, ends[1], y, colour)
        ax.text(
            1.03, y, line.verdict, transform=ax.get_yaxis_transform(), va="center",
            color=colour, fontsize=11, fontweight="bold",
        )  # fmt: skip
    ax.set_xlim(min(values) - 0.06, max(values) + 0.04)
    ax.set_yticks(at, [""] * len(lines))
    ax.set_xlabel("Dice. Open: before the attack; full: after it", loc="left", fontsize=10.5)
    _finish(
        ax,
        "2  What its weights still hold: forgotten people\n"
        "    after an attacker relearned others of them",
    )


def _number(ax: Axes, x: float, y: float, colour: str) -> None:
    ax.text(
        x, y + 0.3, f"{x:.2f}", color=colour, fontsize=10.5, ha="center", va="bottom",
        fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def _finish(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=12.5, fontweight="bold", color=_INK, loc="left", pad=10)
    ax.set_ylim(-0.6, len(ax.get_yticks()) - 0.35)
    ax.tick_params(length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(_GREY)
