"""Replayed against stored retain studies, on the people of the unlearning benchmark.

Each seed has the split and the original of ``unlearning.py``. A generator is trained on the
retained people alone. A way is given stored studies, replayed ones, or none where it can do
without, and the network that comes out is measured on people it never saw. The same generators are
asked what they remember of whom they were trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import commit
from unlearning_task import Task, of
from unlearning_tuning import settings_of

from segunlearn.audit.membership import Scores, membership
from segunlearn.networks import build_network, load_weights, save_weights
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.replay.generator import Generator, GeneratorConfig, load_generator
from segunlearn.replay.memory import images_of, nearest_neighbours, reconstruction_errors
from segunlearn.replay.pictures import png
from segunlearn.replay.sampling import replayed_studies
from segunlearn.replay.training import GeneratorSettings, train_generator
from segunlearn.unlearning import Study, UnlearningSets, unlearn
from segunlearn.unlearning.loop import mean_dice
from segunlearn.unlearning.retrain import RetrainSettings, retrain

#: People forgotten, images replayed; the generator's training.
FORGET, REPLAYED = "20 %", 96
GENERATOR = GeneratorSettings(steps=800, batch_size=8)
#: Ways and what stands for the retain set.
WAYS = {
    "erode_and_repair": ("stored", "replay"),
    "calibrated": ("stored", "replay", "none"),
}
#: Samples whose nearest training image is looked for.
SAMPLES = 200


def original_of(task: Task, seed: int, folder: Path, originals: Path) -> torch.nn.Module:
    """Original of the unlearning benchmark: a copy where that has made it, else trained here."""
    weights = folder / "original.safetensors"
    made = originals / f"seed-{seed}" / "original.safetensors"
    if not weights.is_file() and made.is_file():
        shutil.copyfile(made, weights)
    if not weights.is_file():
        sets = UnlearningSets(task.config, retain=task.split(seed)["trained"])
        settings = RetrainSettings(epochs=task.epochs, seed=seed * 1000)
        save_weights(retrain(build_network(task.config, 0), sets, settings), weights)
    return load_weights(weights, task.config)


def generator_of(task: Task, retained: tuple[Study, ...], seed: int, folder: Path) -> Generator:
    """Generator of the retained people; a stopped training goes on."""
    config, weights = GeneratorConfig.of(task.config), folder / "generator.safetensors"
    if not weights.is_file():
        settings = replace(GENERATOR, seed=seed)
        made = train_generator(retained, task.config, config, settings, run_dir=folder / "training")
        save_weights(made, weights)
    return load_generator(weights, config)


def measure(
    task: Task, seed: int, work: Path, originals: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """One seed: every way with every source, and the generator's memory.

    What its ``figures.json`` holds is not measured again: take the rows of a way out of it when the
    way has changed.
    """
    folder = work / f"retain-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "figures.json"
    figures: dict[str, Any] = dict(read_json(path)) if path.is_file() else {}
    rows = {f"{way}, {source}": (way, source) for way, of in WAYS.items() for source in of}
    if {*rows, "original", "memory"} <= figures.keys():
        return figures
    split = task.split(seed)
    order = list(dict.fromkeys(s.person for s in split["trained"]))
    gone = order[: task.forget[FORGET]]
    forget = of(split["trained"], gone)
    retained = of(split["trained"], [p for p in order if p not in gone])
    original = original_of(task, seed, folder, originals)
    generator = generator_of(task, retained, seed, folder)
    say(f"seed {seed}: generator is there")
    replayed = replayed_studies(generator, original, task.config, REPLAYED, seed)
    fresh = replayed_studies(generator, original, task.config, len(retained), seed + 1000)
    measured = {"test": split["test"], "forget": forget, "retain": retained, "replay": fresh}
    figures["original"] = {n: mean_dice(original, s, task.config) for n, s in measured.items()}
    for name, (way, source) in rows.items():
        if name in figures:
            continue
        settings = settings_of(way, task.steps)
        if hasattr(settings, "retain"):
            settings = replace(settings, retain="none" if source == "none" else "stored")
        sets = UnlearningSets(
            task.config, forget, replayed if source == "replay" else retained,
            split["calibration"],
        )  # fmt: skip
        made = unlearn(way, original, sets, settings)
        row = {n: mean_dice(made.network, s, task.config) for n, s in measured.items()}
        figures[name] = row | {"cpu_seconds": made.cpu_seconds, "commit": commit()}
        write_json_durably(path, figures)
        say(f"seed {seed}: {name}: test Dice {row['test']:.3f}")
    figures["memory"] = memory(task, generator, retained, split["test"], folder)
    write_json_durably(path, figures)
    return figures


def memory(
    task: Task,
    generator: Generator,
    retained: tuple[Study, ...],
    unseen: tuple[Study, ...],
    folder: Path,
) -> dict[str, Any]:
    """Membership by reconstruction error, and how near samples come to training images."""
    sides = []
    for side in (retained, unseen):
        errors = reconstruction_errors(generator, side, task.config)
        person = {s.series: s.person for s in side}
        sides.append(Scores.of({k: -e for k, e in errors.items()}, person))
    found = membership(sides[0], sides[1])
    trained, others = (images_of(generator, s, task.config) for s in (retained, unseen))
    with torch.no_grad():
        drawn = generator.decode(generator.draw(SAMPLES, 7))
    near = nearest_neighbours(drawn, trained)
    # as many unseen people as trained ones: with more, one is nearer by chance
    near_unseen = nearest_neighbours(drawn, others[: len(trained)])
    among = [
        nearest_neighbours(trained[i : i + 1], torch.cat([trained[:i], trained[i + 1 :]]))[0].error
        for i in range(len(trained))
    ]
    show = slice(0, 8)
    (folder / "neighbours.png").write_bytes(
        png([
            ("drawn", drawn[show]),
            ("nearest trained on", trained[[n.nearest for n in near[show]]]),
            ("nearest unseen", others[[n.nearest for n in near_unseen[show]]]),
        ])
    )  # fmt: skip
    return {
        "membership_auc": found.area.value,
        "membership_low": found.area.low,
        "membership_high": found.area.high,
        "membership_tpr_at_1_percent": found.tpr_at_1_percent,
        "trained": len(trained),
        "unseen": len(others),
        "error_trained": -float(np.mean(sides[0].values)),
        "error_unseen": -float(np.mean(sides[1].values)),
        "samples": SAMPLES,
        "distance_to_nearest_trained": float(np.mean([n.error for n in near])),
        "distance_to_nearest_unseen": float(np.mean([n.error for n in near_unseen])),
        "nearer_to_a_trained_one": float(
            np.mean([a.error < b.error for a, b in zip(near, near_unseen, strict=True)])
        ),
        "distance_among_trained": float(np.mean(among)),
    }
