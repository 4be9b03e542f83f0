"""Adapting between real sites: retinal vessels of CHASE_DB1, DRIVE and any further folder.

``python tests/benchmarks/adaptation_fundus.py --data DIR`` with ``chase_db1/`` and ``drive/`` in it
(CHASE_DB1: CC BY 4.0, Fraz 2012, Nidek NM-200-D, children; DRIVE: Staal 2004, Canon CR5). Every
site is left out once: joint model and meta models are trained on the others, and on virtual sites.
``--site NAME=FOLDER`` adds one more, with photographs in ``images/`` and vessel masks of the same
beginning in ``manual/``.

A study is the central crop of a photograph's green channel, both brought to 256 pixels' width;
people are divided, never photographs. With two sites none is left to tune the baselines on: a
third of the source's people stay out of the training and are seen as a virtual site would see
them. ``--work`` keeps what is made on the way, for one set of settings: a stopped run goes on.
``--quick`` is tiny and writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from adaptation_fold import Training, fold
from adaptation_table import better_than, curves, gate_bars, summary
from adaptation_ways import Protocol
from fundus_images import green, plane
from PIL import Image
from report import ROOT, commit, write

from segunlearn.adaptation.virtual_sites import VirtualSettings, VirtualSite
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.unlearning import Study

SIDE = 96
CONFIG = ModelConfig(
    labels=("vessel",),
    spatial_dims=2,
    patch_size=(SIDE, SIDE, 1),
    features=(8, 16, 32, 64, 64, 8),
    normalisation="zscore",
)
#: A child of CHASE_DB1 has two eyes (``Image_01L``); DRIVE says who is of its test set.
PERSON: Final = re.compile(r"^(.*?\d+)(?:[LR]|_test|_training)?$")
#: Of the people that rates are tuned on; noise or a coarser grid would take their thin vessels.
_LOOK = VirtualSettings(1, 1, 1, 0.5, 0.5, 0, 0, 0, 0.5, 0)
PROTOCOL = Protocol(CONFIG, query=10)
#: Cameras that make the same picture: none swaps bright and dark, and a vessel of two pixels' width
#: is gone when it is drawn one narrower or on a coarser grid.
_CAMERAS = VirtualSettings(monotone=1, resolution=0, border=0, part=0)
TRAINING = Training(3000, 0, 150, 4, 150, batch=8, virtual=_CAMERAS)
QUICK = (
    Protocol(CONFIG, (1, 2), (0, 3), 1, 1, (1e-3, 1e-2), 2, query=2),
    Training(5, 0, 2, 1, 2, batch=4),
)  # fmt: skip


def photographs(folder: Path, name: str) -> tuple[Study, ...]:
    """Studies of a site's folder.

    Raises
    ------
    InvalidInputError
        No photograph, or one without a mask.
    """
    studies = []
    for path in sorted((folder / "images").glob("*")):
        found = PERSON.match(path.stem)
        person = found.group(1) if found else path.stem
        beginning = path.stem if person[:1].isalpha() else person
        masks = sorted((folder / "manual").glob(f"{beginning}_*")) + sorted(
            (folder / "manual").glob(f"{beginning}.*")
        )
        if not masks:
            raise InvalidInputError(
                f"{path.name} has no mask in manual/: give one whose name begins with {beginning}."
            )
        studies.append(_study(path, masks[0], f"{name}-{path.stem}", f"{name}-{person}"))
    if not studies:
        raise InvalidInputError(f"{folder.name} holds no images/. Give a folder with some.")
    return tuple(studies)


def _study(image: Path, mask: Path, series: str, person: str) -> Study:
    grey, _ = green(image)
    vessel = plane(Image.open(mask).convert("L"))
    x, y = ((n - SIDE) // 2 for n in grey.shape)
    cut = (slice(x, x + SIDE), slice(y, y + SIDE))
    label = (vessel[cut] >= 128).to(torch.uint8)
    return Study(series, series, person, grey[cut][None, ..., None], label[..., None])


def divided(studies: Sequence[Study], seed: int) -> tuple[list[Study], list[Study]]:
    """Two thirds of the people to train on; the others as a virtual site sees them."""
    persons = sorted({s.person for s in studies})
    rng = np.random.default_rng(seed)
    order = [persons[i] for i in rng.permutation(len(persons))]
    trained = set(order[: round(len(order) * 2 / 3)])
    look = VirtualSite.draw(-2.5, 2.5, _LOOK, rng)
    seen = []
    for study in (s for s in studies if s.person not in trained):
        image = look.image(study.image[None, ..., 0], rng)[0, ..., None]
        label = look.label(study.label[None, None, ..., 0])[0, 0, ..., None]
        seen.append(dataclasses.replace(study, image=image, label=label))
    return [s for s in studies if s.person in trained], seen


def one_fold(
    sites: Mapping[str, Sequence[Study]], out: str, seed: int, protocol: Protocol,
    training: Training, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Leave one site out; what is made on the way is kept in the folder."""
    sources, tuning = {}, []
    for name in sorted(sites):
        if name != out:
            sources[name], seen = divided(sites[name], seed)
            tuning += seen
    left = {out: sites[out]}
    found = fold(sources, tuning, left, seed, protocol, training, ablate=False, folder=folder)
    return {"commit": commit(), "people": len({s.person for s in sites[out]}), **found}


def bars_of(figures: Mapping[str, Any], ks: Sequence[int]) -> list[dict[str, Any]]:
    """What a hospital would ask: is the shipped thing ever worse than leaving it?"""
    found = []
    for name, of in figures.items():
        found += gate_bars(of, name, ks)
        found += gate_bars(of, name, [k for k in ks if k > 1], "best")
        found += [
            better_than(of, name, f"generator+maml k={k} steps=3", "same steps", 0.0) for k in ks
        ]
    return found


def main() -> None:
    """Leave every site out; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="with chase_db1/ and drive/")
    parser.add_argument("--site", nargs="+", default=[], metavar="NAME=FOLDER", help="further ones")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "adaptation_fundus")
    parser.add_argument("--only", nargs="+", default=[], metavar="SITE-SEED")
    parser.add_argument("--quick", action="store_true", help="tiny, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folders = {"CHASE_DB1": options.data / "chase_db1", "DRIVE": options.data / "drive"}
    folders |= {name: Path(at) for name, _, at in (s.partition("=") for s in options.site)}
    sites = {name: photographs(folder, name) for name, folder in folders.items()}
    protocol, training = QUICK if options.quick else (PROTOCOL, TRAINING)
    options.work.mkdir(parents=True, exist_ok=True)
    folds: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for name in sites:
            path = options.work / f"{name}-{seed}.json"
            if not path.is_file() and (path.stem in options.only or not options.only):
                folder = path.with_suffix("")
                write_json_durably(path, one_fold(sites, name, seed, protocol, training, folder))
                sys.stdout.write(f"{path.stem}: done\n")
                sys.stdout.flush()
            if path.is_file():
                others = " and ".join(n for n in sites if n != name)
                folds.setdefault(f"{others} to {name}", []).append(read_json(path))
    figures = {name: summary(of) for name, of in folds.items()}
    for name, of in figures.items():
        for method, value in of["dice"].items():
            sys.stdout.write(f"{name:20} {method:40} {value:6.2f}\n")
    if not (options.quick or options.only):
        curves(figures, ROOT / "results" / "adaptation_fundus.png")
        write(
            "adaptation_fundus", figures, bars_of(figures, protocol.ks),
            seeds=list(range(options.seeds)), protocol=dataclasses.asdict(protocol),
            training=dataclasses.asdict(training), threads="1",
            people={n: len({s.person for s in studies}) for n, studies in sites.items()},
        )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
