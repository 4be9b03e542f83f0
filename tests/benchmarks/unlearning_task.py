"""The people of the unlearning benchmark: real images, divided by person, and the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segunlearn.audit.relearning import RelearningSettings
from segunlearn.cases import cases_from_folder
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning import Study, studies_of

#: Width and height to which fundus photographs (999 x 960) are brought.
FUNDUS_SIDE = 256


@dataclass(frozen=True)
class Task:
    """Data, network and sizes of one benchmark.

    Parameters
    ----------
    name
        Of the result.
    config
        Of the network.
    studies
        Of all people.
    trained, calibration
        Numbers of people trained on (R and S together) and in C; all others are T.
    forget
        Name of each random forget set and its number of people, nested.
    hard
        Number of people of the set of the most memorised.
    epochs, short_epochs
        Of the full trainings, and of the run from scratch that costs as much as a method.
    steps
        Of the unlearning methods.
    references
        Models trained in full without each forget set; each is judged with the noise of the
        others, so with two there is none to see.
    thorough
        Forget sets on which relearning is tried at three rates and distillation is, too.
    """

    name: str
    config: ModelConfig
    studies: tuple[Study, ...]
    trained: int
    calibration: int
    forget: Mapping[str, int]
    hard: int
    epochs: int
    short_epochs: int
    steps: int = 25
    references: int = 2
    thorough: frozenset[str] = frozenset({"20 %", "hard"})

    def split(self, seed: int) -> dict[str, tuple[Study, ...]]:
        """Trained, calibration and test people; the first of the trained are the forget sets."""
        persons = sorted({s.person for s in self.studies})
        if len(persons) < self.trained + self.calibration + 2:
            raise InvalidInputError(f"{self.name}: {len(persons)} people are too few.")
        order = [persons[i] for i in np.random.default_rng(seed).permutation(len(persons))]
        ends = (0, self.trained, self.trained + self.calibration, len(order))
        return {
            name: of(self.studies, order[ends[i] : ends[i + 1]])
            for i, name in enumerate(("trained", "calibration", "test"))
        }

    def relearning(self, forget_set: str, people: int) -> RelearningSettings | None:
        """Attack on a forget set; None for a single person, who has no others."""
        if people < 2:
            return None
        rates = (3e-4, 1e-3, 3e-3) if forget_set in self.thorough else (1e-3,)
        return RelearningSettings(
            people=(2 if people > 3 else 1,), rates=rates, steps=30, every=3, batch_size=2
        )


def of(studies: Sequence[Study], persons: Sequence[str]) -> tuple[Study, ...]:
    """Studies of persons, in the order of the persons."""
    return tuple(s for p in persons for s in studies if s.person == p)


def load(data: Path, *, quick: bool = False) -> Task:
    """Task of a folder: hippocampus crops (3D) or CHASE_DB1 photographs (2D).

    Raises
    ------
    InvalidInputError
        Neither.
    """
    if (data / "manual").is_dir():
        return _chase(data)
    if (data / "labels").is_dir():
        return _hippocampus(data, quick)
    raise InvalidInputError(
        f"{data.name}: give the folder of the hippocampus data (with images/ and labels/) or of "
        "CHASE_DB1 (with images/ and manual/)."
    )


def _hippocampus(data: Path, quick: bool) -> Task:
    spacing = 2.0 if quick else 1.0
    config = ModelConfig(
        labels=("anterior", "posterior"),
        spacing=(spacing, spacing, spacing),
        patch_size=(16, 32, 16) if quick else (32, 48, 32),
        features=(8, 16, 32, 64, 64, 8),
        normalisation="zscore",
        modalities=("MR",),
    )
    first: dict[str, Study] = {}
    cases = sorted(cases_from_folder(data, modality="MR"), key=lambda c: c.series)
    if quick:
        cases = cases[:90]
    for study in studies_of(cases, config, centre_crop=True):
        first.setdefault(study.person, study)  # one crop of each person
    task = Task(
        name="unlearning_hippocampus",
        config=config,
        studies=tuple(first.values()),
        trained=30,
        calibration=30,
        forget={"1 person": 1, "10 %": 3, "20 %": 6},
        hard=6,
        epochs=50,
        short_epochs=8,
    )
    if quick:
        return dataclasses.replace(
            task,
            trained=20,
            calibration=10,
            forget={"20 %": 4},
            hard=0,
            epochs=60,
            steps=10,
            references=3,
        )
    return task


def _chase(data: Path) -> Task:
    """Vessels by the first observer; a child's two eyes are one person."""
    studies = []
    for path in sorted((data / "images").glob("Image_*.jpg")):
        name = path.stem
        colour = (
            Image.open(path).convert("RGB").resize((FUNDUS_SIDE, FUNDUS_SIDE), Image.Resampling.BOX)
        )
        mask = Image.open(next((data / "manual").glob(f"{name}_1stHO.*"))).convert("L")
        mask = mask.resize((FUNDUS_SIDE, FUNDUS_SIDE), Image.Resampling.BOX)
        image = torch.from_numpy(np.asarray(colour, dtype=np.float32).transpose(2, 0, 1).copy())
        image = (image - image.mean((1, 2), keepdim=True)) / image.std((1, 2), keepdim=True)
        label = torch.from_numpy((np.asarray(mask) >= 128).astype(np.uint8))
        studies.append(Study(name, name, name[:-1], image[..., None], label[..., None]))
    return Task(
        name="unlearning_chase",
        config=ModelConfig(
            labels=("vessel",),
            spatial_dims=2,
            in_channels=3,
            patch_size=(FUNDUS_SIDE, FUNDUS_SIDE, 1),
            features=(8, 16, 32, 64, 64, 8),
            normalisation="zscore",
        ),
        studies=tuple(studies),
        trained=7,
        calibration=2,
        forget={"1 child": 1, "2 children": 2},
        hard=0,  # of seven children, two chosen for memory are hardly others than two at random
        epochs=80,
        short_epochs=10,
        references=5,
        thorough=frozenset({"2 children"}),
    )
