"""Simulated sites of the adaptation benchmarks: images of real people in other hospitals' looks.

Regime ``appearance``: every site annotates the whole hippocampus; contrast order, gamma, field,
blur, noise and resolution differ. Regime ``disagree``: a site annotates the whole, the anterior or
the posterior part under one name, perhaps one voxel wider, and may swap dark and bright.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from segunlearn.adaptation.virtual_sites import VirtualSettings, VirtualSite
from segunlearn.cases import cases_from_folder
from segunlearn.networks import ModelConfig
from segunlearn.unlearning import Study, cut_to_patch, studies_of

Regime = Literal["appearance", "disagree"]

CONFIG = ModelConfig(
    labels=("hippocampus",),
    spatial_dims=2,
    patch_size=(32, 48, 1),
    features=(8, 16, 32, 64, 64, 8),
    normalisation="zscore",
    modalities=("MR",),
)
#: Slices of a person, for training.
_MOST = 7
#: Which values of the data a site annotates.
_CONVENTIONS = ((1, 2), (1,), (2,))
_LOOKS = {
    "appearance": VirtualSettings(1, 1, 1, 0.5, 0.5, 0.3, 0.7, 0.3, 0, 0),
    "disagree": VirtualSettings(1, 1, 0, 0.5, 0.5, 0.3, 0.7, 0.3, 0, 0),
}


@dataclass(frozen=True)
class People:
    """Images of every person with the data's two labels; adapting is tried on the first."""

    people: tuple[tuple[Study, ...], ...]

    @classmethod
    def slices(cls, data: Path, people: int | None = None) -> People:
        """Axial slices, the largest first, of all or the first ``people`` of a folder of crops."""
        return cls(tuple(_slices(s) for s in _first_studies(data, CONFIG, people)))

    @classmethod
    def volumes(cls, data: Path, config: ModelConfig, people: int | None = None) -> People:
        """One volume of each, in one patch of the network."""
        return cls(tuple((cut_to_patch(s, config),) for s in _first_studies(data, config, people)))

    def sites(self, regime: Regime, count: int, seed: int) -> dict[str, tuple[Study, ...]]:
        """Divide the people among ``count`` sites; nobody is at two."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.people))
        sites = {}
        for number in range(count):
            look = VirtualSite.draw(-2.5, 2.5, _LOOKS[regime], rng)
            values, border = _CONVENTIONS[0], 0
            if regime == "disagree":
                values, border = _CONVENTIONS[number % 3], int(rng.integers(2))
            look = dataclasses.replace(look, border=border)
            mine = [s for i in order[number::count] for s in self.people[i]]
            sites[f"site-{number:02d}"] = tuple(_seen_at(s, look, values, rng) for s in mine)
        return sites


def _first_studies(data: Path, config: ModelConfig, people: int | None) -> list[Study]:
    """One study of each person, on the network's grid, with both labels."""
    first = {}
    for case in sorted(cases_from_folder(data, modality="MR"), key=lambda c: c.series):
        first.setdefault(case.person, case)
    both = dataclasses.replace(config, labels=("anterior", "posterior"))
    return list(studies_of(list(first.values())[:people], both))


def largest_of(studies: Sequence[Study]) -> tuple[Study, ...]:
    """The first slice of each person: the one that adapting is tried and judged on."""
    first: dict[str, Study] = {}
    for study in studies:
        first.setdefault(study.person, study)
    return tuple(first.values())


def _slices(study: Study) -> tuple[Study, ...]:
    """Slices that show at least half of what the fullest one shows, at most ``_MOST``."""
    area = (study.label > 0).sum(dim=(0, 1))
    by_area = [int(at) for at in area.argsort(descending=True) if 2 * area[at] >= area.max()]
    found = []
    for at in by_area[:_MOST]:
        one = dataclasses.replace(
            study, series=f"{study.series}-{at}",
            image=study.image[..., at : at + 1], label=study.label[..., at : at + 1],
        )  # fmt: skip
        found.append(cut_to_patch(one, CONFIG))
    return tuple(found)


def _seen_at(
    study: Study, look: VirtualSite, values: tuple[int, ...], rng: np.random.Generator
) -> Study:
    whole = torch.isin(study.label, torch.tensor(values)).to(study.label.dtype)
    image, label = study.image[None], whole[None, None]
    if image.shape[-1] == 1:  # a slice: a look's blur and coarser grid are in its plane
        image, label = (
            look.image(image[..., 0], rng)[..., None],
            look.label(label[..., 0])[..., None],
        )
    else:
        image, label = look.image(image, rng), look.label(label)
    image = (image - image.mean()) / image.std().clamp(min=1e-6)
    return dataclasses.replace(study, image=image[0], label=label[0, 0].to(study.label.dtype))
