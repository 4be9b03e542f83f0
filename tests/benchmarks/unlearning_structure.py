"""A structure is withdrawn from models of real people, beside models trained without it.

``python tests/benchmarks/unlearning_structure.py --data DIR --seeds 3`` with the folder of the
hippocampus crops. Splits and originals are those of ``unlearning.py``; those of its work folder
are taken where they are there. In each seed five models are trained in full on the same people
with the posterior label taken out (its voxels become background), and every way of withdrawing it
is held against them on unseen people: the other label's Dice, what it says on the withdrawn voxels,
and how fast the label comes back when the model is trained on two people who show it.

What is said is the confusion row of the withdrawn label, of probabilities and of masks; a KL is
always that of one model from the mean of four retrained ones: of a retrained model from the other
four, of any other model the mean over the five fours. The noise of a seed is the largest one of its
retrained models. (With two retrained models it was known only to a factor of ten.)

The settings of the ways are the library's, but for the epochs of both repairs, for which everybody
stays, and for ``calibrated``: its deepest layers do not let go of a structure, and of steps of its
decoder's adapter 16 took 0.037 from the other label's Dice on a split that is not reported, and 50
took 0.008. Each ``heir`` is shown.
What is done is kept under ``--work``: a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from report import ROOT, bar, commit, write
from torch import nn
from unlearning_task import Task, load

from segunlearn.audit.class_mode import (
    ClassFigures,
    class_figures,
    compare_classes,
    renormalised,
    row_divergence,
)
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.unlearning import METHODS, Study, UnlearningSets, unlearn
from segunlearn.unlearning.calibration import Heir, Without
from segunlearn.unlearning.loop import (
    Steps,
    copy_of,
    descend,
    dice_ce,
    dice_of,
    masks_of,
    seeded,
)
from segunlearn.unlearning.sets import Draw
from unlearning import Bench, Made

mpl.use("Agg")
from matplotlib import pyplot as plt

NAME: Final = "unlearning_structure"
WITHDRAWN: Final = "posterior"
#: The relearning attack: people it has, unseen people looked at, rate of Adam, steps, looks.
ATTACKERS, LOOKED_AT, RATE, STEPS, EVERY = 2, 12, 1e-3, 30, 5
#: It is back when it reaches this share of the original's Dice.
BACK = 0.9


@dataclass(frozen=True)
class Way:
    """One way of withdrawing a structure.

    Parameters
    ----------
    method
        Key of ``METHODS``; empty: a filter on the intact network's answers.
    heir
        Who gets the structure's probability; None where the method has no choice.
    settings
        That differ from the library's.
    """

    method: str
    heir: Heir | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    #: What tells it from another way with the same method and heir.
    note: str = ""

    @property
    def name(self) -> str:
        """Of files and rows."""
        heir = f" to {self.heir}" if self.heir else ""
        return (self.method or "filter") + heir + (f", {self.note}" if self.note else "")


#: Of ``calibrated``: its defaults hide studies; a structure is said by the decoder.
_BY_DECODER: Final = (("layers", "decoder"), ("rank", 8), ("steps", 80), ("learning_rate", 3e-3))
#: What is offered comes first: a benchmark may be stopped.
WAYS: Final = (
    Way("", "background"),
    Way("erode_and_repair", "background", (("epochs", 40),), "40 passes"),
    Way("erode_and_repair", "background", (("epochs", 20),)),
    Way("erode_and_repair_lora", "background", (("epochs", 36), ("part_share", 0.5))),
    Way("", "others"),
    Way("calibrated", "background", _BY_DECODER),
    Way("calibrated", "others", _BY_DECODER),
    Way("fine_tune"),
    Way("recoverable"),
    Way("adversarial", "background"),
)
#: What is offered, and must hold the bars.
OFFERED: Final = (
    "filter to background", "calibrated to background", "calibrated to others",
    "erode_and_repair to background", "erode_and_repair to background, 40 passes",
    "erode_and_repair_lora to background",
)  # fmt: skip
REFERENCES: Final = tuple(f"without-{i}" for i in range(1, 6))
LEFT_OUT: Final = "retrained (left out)"
#: Divergences that have a bar, and of what they are.
KINDS: Final = {
    "divergence": "probabilities",
    "divergence_of_others": "probabilities of the classes that stay",
    "divergence_of_masks": "masks",
}
Rows = dict[str, list[dict[str, Any]]]


class StructureBench(Bench):
    """One seed."""

    def __init__(
        self, task: Task, seed: int, work: Path, originals: Path, only: Sequence[str], say: Any
    ) -> None:
        super().__init__(task, seed, work, [], [], say)
        self.originals = originals / f"seed-{seed}"
        self.ways = [w for w in WAYS if not only or w.name in only]
        self.value = task.config.label_values[WITHDRAWN]
        trained = self.split["trained"]
        self.showing = UnlearningSets(
            task.config, forget=trained, calibration=self.split["calibration"]
        )
        self.repairing = UnlearningSets(
            task.config, retain=trained, calibration=self.split["calibration"]
        )
        self.never = self.repairing.without(self.value)
        self.attackers: tuple[Study, ...] = trained[:ATTACKERS]
        self.looked_at: tuple[Study, ...] = self.split["test"][:LOOKED_AT]

    def run(self) -> None:
        """Make and measure everything that is not there yet."""
        task, never = self.task, self.never.retain
        for i, name in enumerate(REFERENCES):
            make = partial(self.trained, self.dir, name, never, task.epochs, 21 + i)
            self.measured(name, make)
        self.measured("original", lambda: self.original)
        for way in self.ways:
            settings = self.settings_of(way)
            known = None if settings is None else asdict(settings)
            self.measured(way.name, partial(self.way, way), known)
        self.measured(
            "short", partial(self.trained, self.dir, "short", never, task.short_epochs, 23)
        )

    @cached_property
    def original(self) -> Made:
        """The model with the structure."""
        trained = self.split["trained"]
        return self.trained(self.originals, "original", trained, self.task.epochs, 0)

    def settings_of(self, way: Way) -> Any:
        """All settings of a way; None of a filter, which has none."""
        if not way.method:
            return None
        settings = METHODS[way.method].settings(**dict(way.settings))
        fields = type(settings).__dataclass_fields__
        chosen: dict[str, Any] = {}
        if "structure" in fields:
            chosen["structure"] = self.value
        if way.heir:
            chosen["heir"] = way.heir
        if "retain" in fields:
            chosen["retain"] = "none"  # everybody shows it, and is in the forget set
        return replace(settings, **chosen)

    def way(self, way: Way) -> Made:
        """Withdraw the structure in one way."""
        original, settings = self.original.network, self.settings_of(way)
        if settings is None:
            return Made(Without(original, self.value, way.heir or "background").eval(), 0.0)
        if "forget" in METHODS[way.method].reads_with(settings):
            sets = self.showing
        else:
            sets = self.repairing if hasattr(settings, "structure") else self.never
        run = partial(unlearn, way.method, original, sets, settings)
        return self.kept(self.dir, way.name, lambda: run().network, asdict(settings))

    def measured(
        self, name: str, make: Callable[[], Made], settings: dict[str, Any] | None = None
    ) -> None:
        """Make a model, measure it on unseen people and attack it; once with the same settings."""
        path = self.dir / "audits" / f"{name}.json"
        if path.is_file() and read_json(path).get("settings") == settings:
            return
        made = make()
        unseen, config = self.split["test"], self.task.config
        figures = class_figures(made.network, unseen, config, WITHDRAWN)
        if isinstance(made.network, Without):  # whoever has the weights takes a filter off
            curve = read_json(path.with_stem("original"))["curve"]
        else:
            curve = self.relearned(made.network)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_durably(
            path,
            {
                "class": figures.to_json(),
                "curve": curve,
                "cpu_seconds": made.cpu_seconds,
                "settings": settings,
                "commit": commit(),
            },
        )
        self.say(f"{name}: {WITHDRAWN} {figures.dice:.3f}, other {figures.others:.3f}")

    def relearned(self, network: nn.Module) -> list[list[float]]:
        """Steps of the attack, and the withdrawn label's Dice on unseen people."""
        attacker = copy_of(network)
        draw = Draw(self.attackers, self.task.config, ATTACKERS, 0)
        curve: list[list[float]] = []

        def look(step: int) -> bool:
            if step % EVERY == 0:
                masks = masks_of(attacker, self.looked_at, self.task.config)
                dices = [
                    dice_of(mask, study.label, (self.value,))
                    for mask, study in zip(masks, self.looked_at, strict=True)
                ]
                curve.append([step, float(np.mean(dices))])
            return False

        look(0)
        with seeded(0):
            descend(
                attacker,
                lambda _: dice_ce(attacker, draw.next()),
                Steps(STEPS, RATE),
                phase="relearn",
                after_step=look,
            )
        return curve


def collect(work: Path, seeds: Sequence[int]) -> Rows:
    """Figures of every model against the retrained ones of its seed."""
    rows: Rows = {}
    for seed in seeds:
        audits = work / f"seed-{seed}" / "audits"
        if not all((audits / f"{name}.json").is_file() for name in (*REFERENCES, "original")):
            continue
        known = {path.stem: read_json(path) for path in audits.glob("*.json")}
        rest = {n: [known[m] for m in REFERENCES if m != n] for n in REFERENCES}
        for name, found in known.items():
            against = [rest[name]] if name in REFERENCES else list(rest.values())
            shown = LEFT_OUT if name in REFERENCES else name
            row = figures_of(found, against, known["original"])
            rows.setdefault(shown, []).append({"seed": seed, **row})
    return {n: rows[n] for n in ordered(rows)}


def ordered(rows: Rows) -> list[str]:
    """Original and references first, then the ways."""
    known = ["original", LEFT_OUT, "short", *(w.name for w in WAYS)]
    return [n for n in known if n in rows]


def figures_of(
    found: dict[str, Any], against: Sequence[Sequence[dict[str, Any]]], original: dict[str, Any]
) -> dict[str, Any]:
    """What the table shows of one model: means over the references it is held against in turn."""
    mine = ClassFigures.from_json(found["class"])
    curve = np.asarray(found["curve"])
    value = len(mine.row) - 1  # the posterior label is the last
    theirs = np.mean([[r["curve"] for r in some] for some in against], axis=(0, 1))[:, 1]
    level = BACK * original["curve"][0][1]
    back = [int(step) for step, dice in curve if dice >= level]
    full = float(np.mean([r["cpu_seconds"] for some in against for r in some]))
    apart = []
    for some in against:
        others = [ClassFigures.from_json(r["class"]) for r in some]
        mode = compare_classes(mine, others)
        staying = (renormalised(r, value) for r in (mode.target, mode.row))
        masks = np.mean([o.said for o in others], axis=0)
        # only what is offered was measured again since audits keep what masks say
        of_masks = row_divergence(masks, mine.said) if mine.said else np.nan
        apart.append((mode.others, mode.divergence, row_divergence(*staying), of_masks))
    names = ("other_difference", "divergence", "divergence_of_others", "divergence_of_masks")
    return {
        "withdrawn": mine.dice,
        "other": mine.others,
        **{
            n: None if np.isnan(v) else float(v)
            for n, v in zip(names, np.mean(apart, axis=0), strict=True)
        },
        "row": list(mine.row),
        "said": list(mine.said),
        "relearned": float((curve[:, 1] - theirs)[1:].mean()),
        "back_after": back[0] if back else None,
        "curve": found["curve"],
        "cpu_seconds": found["cpu_seconds"],
        "times_faster": full / found["cpu_seconds"] if found["cpu_seconds"] else None,
        "commit": found["commit"],
    }


COLUMNS: Final = (
    "withdrawn", "other", "other_difference", "divergence", "divergence_of_others",
    "divergence_of_masks", "relearned", "back_after", "cpu_seconds", "times_faster",
)  # fmt: skip


def known(entries: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Values of a figure that were measured."""
    return [e[name] for e in entries if e[name] is not None]


def mean(entries: Sequence[dict[str, Any]], name: str) -> float:
    """Mean of a figure, not-a-number when it was never measured."""
    values = known(entries, name)
    return float(np.mean(values)) if values else float("nan")


def noise(rows: Rows, column: str) -> float:
    """Largest divergence of a retrained model from the other, mean over seeds."""
    largest: dict[int, float] = {}
    for entry in rows[LEFT_OUT]:
        largest[entry["seed"]] = max(entry[column], largest.get(entry["seed"], 0.0))
    return float(np.mean(list(largest.values())))


def text(rows: Rows) -> str:
    """Table for a terminal: means over seeds."""
    lines = [
        f"{'':38} {WITHDRAWN:>9}   other  minus retrained      KL  of others  of masks  relearned"
        "  back after  CPU s"
    ]
    for name, entries in rows.items():
        lines.append(
            f"{name:38} {mean(entries, 'withdrawn'):9.3f} {mean(entries, 'other'):7.3f} "
            f"{mean(entries, 'other_difference'):+16.4f} {mean(entries, 'divergence'):7.4f} "
            f"{mean(entries, 'divergence_of_others'):10.4f} "
            f"{mean(entries, 'divergence_of_masks'):9.4f} "
            f"{mean(entries, 'relearned'):+10.3f} {mean(entries, 'back_after'):11.1f} "
            f"{mean(entries, 'cpu_seconds'):6.0f}   of {len(entries)}"
        )
    return "\n".join(lines) + "\n"


def bars(rows: Rows) -> list[dict[str, Any]]:
    """Acceptance figures: means over seeds, and the largest Dice of what was withdrawn."""
    found = []
    for name in [n for n in OFFERED if n in rows]:
        entries = rows[name]
        if len(entries) < len(rows["original"]):
            name += f" ({len(entries)} of {len(rows['original'])} seeds)"
        drawn = max(known(entries, "withdrawn"))
        found.append(
            bar(f"{name}: Dice of the withdrawn label, largest", drawn, "<= 0.001", drawn <= 0.001)
        )
        change = mean(entries, "other_difference")
        found.append(
            bar(
                f"{name}: other label's Dice, minus retrained",
                change,
                "|.| <= 0.01",
                abs(change) <= 0.01,
            )
        )
        for column, what in KINDS.items():
            if len(known(entries, column)) < len(entries):
                continue
            apart, most = mean(entries, column), noise(rows, column)
            found.append(
                bar(
                    f"{name}: confusion KL of {what}, nats",
                    apart,
                    f"<= {most:.4f}, of retrained models",
                    apart <= most,
                )
            )
    return found


def plot(rows: Rows, path: Path) -> None:
    """Draw what stays, what is said instead, and how fast it comes back."""
    names = [n for n in rows if n != "original"]
    places = np.arange(len(names))[::-1]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 5.4), layout="constrained")
    left.axvspan(-0.01, 0.01, color="tab:green", alpha=0.15)
    for place, name in zip(places, names, strict=True):
        values = known(rows[name], "other_difference")
        left.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5, markersize=5)
        left.plot(np.mean(values), place, "D", color="black", markersize=6)
        values = [max(v, 1e-5) for v in known(rows[name], "divergence")]
        middle.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5, markersize=5)
        middle.plot(np.mean(values), place, "D", color="black", markersize=6)
    left.set(yticks=places, yticklabels=names, title="the label that stays (green: the bar)")
    left.set_xlabel("Dice on unseen people, minus retrained")
    middle.axvspan(1e-5, noise(rows, "divergence"), color="tab:green", alpha=0.15)
    middle.set(xscale="log", yticks=places, yticklabels=[], xlabel="KL from retrained, nats")
    middle.set_title("what is said on the withdrawn voxels")
    colours = plt.get_cmap("tab20")
    for i, (name, entries) in enumerate(rows.items()):
        curves = np.mean([np.asarray(e["curve"]) for e in entries], axis=0)
        bold = name in ("original", LEFT_OUT)
        right.plot(
            curves[:, 0], curves[:, 1], label=name, linewidth=3 if bold else 1.5,
            color="black" if name == "original" else colours(i),
        )  # fmt: skip
    right.set(xlabel="training steps on two people who show it", ylabel=f"Dice of {WITHDRAWN}")
    right.set_title("how fast it comes back")
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def finish(rows: Rows, found: list[dict[str, Any]], seeds: Sequence[int]) -> None:
    """Write result and plot."""
    figures = {
        name: {
            **{
                column: {
                    "mean": mean(entries, column),
                    "sd": float(np.std(known(entries, column), ddof=1))
                    if len(known(entries, column)) > 1
                    else None,
                }
                for column in COLUMNS
                if known(entries, column)
            },
            "per_seed": entries,
        }
        for name, entries in rows.items()
    }
    done = sorted({e["seed"] for es in rows.values() for e in es})
    attack = {
        "people": ATTACKERS, "unseen": LOOKED_AT, "rate": RATE, "steps": STEPS, "every": EVERY,
    }  # fmt: skip
    write(
        NAME, {WITHDRAWN: figures}, found, seeds=[s for s in seeds if s in done],
        threads=os.environ.get("OMP_NUM_THREADS", "1"), relearning=attack,
    )  # fmt: skip
    plot(rows, ROOT / "results" / f"{NAME}.png")


def main() -> int:
    """Run what is missing, draw up the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, help="run one seed and stop, for a second core")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / NAME)
    parser.add_argument(
        "--originals", type=Path, default=ROOT / ".bench" / "unlearning_hippocampus"
    )
    parser.add_argument("--ways", nargs="+", default=[], choices=[w.name for w in WAYS])
    parser.add_argument("--summary", action="store_true", help="only from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(options.seeds))
    started = time.monotonic()
    for seed in seeds if options.only_seed is None else [options.only_seed]:

        def say(words: str, seed: int = seed) -> None:
            minutes = (time.monotonic() - started) / 60
            sys.stdout.write(f"[{minutes:5.1f} min] seed {seed} of {len(seeds)} · {words}\n")
            sys.stdout.flush()

        if not options.summary:
            StructureBench(
                load(options.data), seed, options.work, options.originals, options.ways, say
            ).run()
    if options.only_seed is not None:
        return 0
    rows = collect(options.work, seeds)
    sys.stdout.write(text(rows))
    finish(rows, bars(rows), seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
