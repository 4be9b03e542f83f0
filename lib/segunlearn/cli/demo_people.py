"""Made-up people for the demonstration: each has an outline that cannot be guessed from the image.

A round organ is seen in the noise of a body slice. The outline that "the radiologist drew" is bent
by low waves, drawn for each person and not visible in the image: a habit. A network that was
trained on a person draws the habit, one that never saw the person draws the organ. So memory can
be seen with the naked eye, which it cannot be in real images.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from segunlearn.cases import Case, People, cases_from_folder
from segunlearn.volumes import Volume, write_volume

#: Voxels of a slice along R and A.
SIDE: Final = 32
#: Millimetres of a voxel.
SPACING: Final = 6.0
LABEL: Final = "organ"
_NOTE: Final = """Synthetic images of people who do not exist, made by 'segunlearn demo'.

Each label follows a habit of its own that cannot be seen in the image. Not for any other use.
"""


@dataclass(frozen=True)
class Crowd:
    """Labelled cases of made-up people.

    Parameters
    ----------
    forget
        Who will withdraw the consent.
    retain
        Who stays in training.
    unseen
        Who is never trained on.
    """

    forget: tuple[Case, ...]
    retain: tuple[Case, ...]
    unseen: tuple[Case, ...]

    @property
    def trained(self) -> tuple[Case, ...]:
        """Who the first model is trained on."""
        return self.forget + self.retain

    @property
    def everybody(self) -> tuple[Case, ...]:
        """All labelled cases."""
        return self.trained + self.unseen


def person(number: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Image and label of a person; the same number gives the same voxels.

    Returns
    -------
    image, label
        ``(SIDE, SIDE, 1)`` along R, A, S; arbitrary units, and 0 or 1.
    """
    rng = np.random.default_rng((20, number))
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    middle = SIDE / 2 + SIDE * rng.uniform(-0.03, 0.03, 2)
    axes = SIDE * rng.uniform([0.40, 0.34], [0.46, 0.42])
    body = np.hypot((x - middle[0]) / axes[0], (y - middle[1]) / axes[1]) < 1
    from_spine = np.hypot(x - middle[0], y - middle[1] + 0.62 * axes[1])
    spine = from_spine < rng.uniform(0.045, 0.065) * SIDE
    at = middle + SIDE * rng.uniform([-0.1, -0.02], [0.1, 0.1])
    radius = rng.uniform(0.17, 0.24) * SIDE
    angle, distance = np.arctan2(y - at[1], x - at[0]), np.hypot(x - at[0], y - at[1])
    heights = rng.dirichlet((4, 4)) ** 0.5  # every habit is equally strong
    waves = sum(
        height * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        for k, height in zip((2, 3), heights, strict=True)
    )
    tissue = 30 + 80 * body + 70 * (body & (distance < radius)) + 110 * (body & spine)
    image = gaussian_filter(tissue.astype(np.float64), 0.6) + rng.normal(0, 22, (SIDE, SIDE))
    label = body & (distance < radius * (1 + 0.42 * waves))
    return image.astype(np.float32)[..., None], label.astype(np.uint8)[..., None]


def write_people(folder: Path, *, forget: int, retain: int, unseen: int) -> Crowd:
    """Write ``images/``, ``labels/``, ``people.csv`` and a note that all of it is synthetic.

    Parameters
    ----------
    folder
        Of the data, as ``segunlearn train --data`` takes it.
    forget, retain, unseen
        How many people of each kind, one image each.
    """
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    groups = {"forget": (0, forget), "retain": (100, retain), "unseen": (300, unseen)}
    names: dict[str, list[str]] = {}
    for kind, (first, count) in groups.items():
        names[kind] = [f"Synthetic-{n:04d}" for n in range(first, first + count)]
        for number, name in enumerate(names[kind], first):
            image, label = person(number)
            write_volume(Volume(image, affine, "MR"), folder / "images" / f"{name}_1.nii.gz")
            write_volume(Volume(label, affine), folder / "labels" / f"{name}_1.nii.gz")
    table = folder / "people.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "person", "study"])
        writer.writerows([f"{n}_1", n, f"{n}_1"] for kind in names for n in names[kind])
    (folder / "SYNTHETIC.txt").write_text(_NOTE, encoding="utf-8")
    found = {c.person: c for c in cases_from_folder(folder, People(table=table), modality="MR")}
    return Crowd(*(tuple(found[n] for n in names[kind]) for kind in groups))
