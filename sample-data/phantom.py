"""A made-up abdomen: analytic organs, textured, evaluated on any voxel grid.

Every structure is an implicit function in patient coordinates (LPS, mm, origin near the first
lumbar vertebra). A person is a seed: size, shapes, fat and a smooth warp are drawn from it, so
two studies of one person show the same anatomy. Nothing here derives from a real image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates

Field = npt.NDArray[np.floating[Any]]

#: Label values of the reference segmentations.
LABELS = {1: "liver", 2: "spleen"}

# Smooth random fields live on a cube of this side (mm) and repeat outside it.
_CUBE_MM = 512.0


@dataclass(frozen=True)
class Contrast:
    """What the tissues of one scanner look like: HU for CT, arbitrary units for MR."""

    air: float
    lung: float
    fat: float
    muscle: float
    bone: float
    marrow: float
    fluid: float
    blood: float
    bowel: float
    stomach: float
    kidney: float
    pelvis: float
    spleen: float
    liver: float
    vessel: float
    texture: float
    noise: float
    noise_width: float
    bias: float
    magnitude: bool


CT_PORTAL_VENOUS = Contrast(
    air=-1000.0, lung=-840.0, fat=-102.0, muscle=58.0, bone=520.0, marrow=190.0, fluid=8.0,
    blood=165.0, bowel=42.0, stomach=28.0, kidney=185.0, pelvis=120.0, spleen=132.0, liver=104.0,
    vessel=160.0, texture=5.0, noise=26.0, noise_width=0.7, bias=0.0, magnitude=False,
)  # fmt: skip
MR_T1 = Contrast(
    air=4.0, lung=28.0, fat=940.0, muscle=330.0, bone=70.0, marrow=560.0, fluid=150.0,
    blood=210.0, bowel=300.0, stomach=240.0, kidney=345.0, pelvis=250.0, spleen=300.0, liver=520.0,
    vessel=290.0, texture=22.0, noise=26.0, noise_width=0.4, bias=0.34, magnitude=True,
)  # fmt: skip
MR_T2_FATSAT = Contrast(
    air=6.0, lung=40.0, fat=210.0, muscle=190.0, bone=60.0, marrow=230.0, fluid=1250.0,
    blood=120.0, bowel=560.0, stomach=900.0, kidney=760.0, pelvis=1000.0, spleen=640.0,
    liver=330.0, vessel=480.0, texture=30.0, noise=42.0, noise_width=0.4, bias=0.5, magnitude=True,
)  # fmt: skip


class _Noise:
    """Periodic smooth random fields with mean 0 and standard deviation 1."""

    def __init__(self, rng: np.random.Generator, points: Field) -> None:
        self._rng, self._points = rng, points

    def field(self, width_mm: float) -> Field:
        step_mm = 4.0 if width_mm < 12.0 else 8.0
        count = int(_CUBE_MM / step_mm)
        cube = self._rng.standard_normal((count, count, count), dtype=np.float32)
        cube = gaussian_filter(cube, width_mm / step_mm, mode="wrap", truncate=3.0)
        cube /= cube.std()
        index = self._points / np.float32(step_mm)
        return np.asarray(map_coordinates(cube, index, order=1, mode="grid-wrap"), dtype=np.float32)


def _ellipsoid(p: Field, centre: tuple[float, ...], radii: tuple[float, ...]) -> Field:
    """Approximate signed distance (mm) to an ellipsoid; radius 0 makes it a cylinder."""
    q0 = np.zeros(p.shape[1:], dtype=np.float32)
    q1 = np.zeros(p.shape[1:], dtype=np.float32)
    for axis, c, r in zip(p, centre, radii, strict=True):
        if r > 0:
            q0 += np.square((axis - c) / r)
            q1 += np.square((axis - c) / (r * r))
    q0, q1 = np.sqrt(q0), np.sqrt(q1)
    return np.asarray(q0 * (q0 - 1.0) / np.maximum(q1, 1e-6), dtype=np.float32)


def _union(a: Field, b: Field, blend_mm: float) -> Field:
    """Smooth minimum of two distances."""
    h = np.clip(0.5 + 0.5 * (b - a) / blend_mm, 0.0, 1.0)
    return np.asarray(b + (a - b) * h - blend_mm * h * (1.0 - h), dtype=np.float32)


def _cut(a: Field, b: Field, blend_mm: float) -> Field:
    """``a`` without ``b``, with a rounded edge."""
    return -_union(-a, b, blend_mm)


@dataclass(frozen=True)
class Anatomy:
    """Signed distances (mm, negative inside) of one person on one grid."""

    body: Field
    cavity: Field
    lung: Field
    heart: Field
    liver: Field
    spleen: Field
    kidneys: Field
    kidney_core: Field
    spine: Field
    discs: Field
    canal: Field
    ribs: Field
    aorta: Field
    cava: Field
    stomach: Field
    gas: Field
    gallbladder: Field
    bowel: Field
    bowel_gas: Field
    vessels: Field
    texture: Field


def anatomy(points: Field, person_seed: int) -> Anatomy:
    """Evaluate a person's organs.

    Parameters
    ----------
    points
        ``(3, …)``, LPS in mm.
    person_seed
        Same seed, same person.
    """
    rng = np.random.default_rng([person_seed, 1])
    size = rng.uniform(0.93, 1.07)
    fat = rng.uniform(9.0, 26.0)
    s = dict(zip("abcdefghij", rng.uniform(-1.0, 1.0, 10), strict=True))
    noise = _Noise(rng, points)
    p = np.asarray(points / size, dtype=np.float32)
    p = p + np.stack([noise.field(42.0) * 5.0 for _ in range(3)])
    x, y, z = p
    wall = noise.field(14.0) * 1.6

    cavity = _ellipsoid(p, (0, -8, 0), (132 + 6 * s["a"], 84 + 6 * s["b"], 0))
    body = _ellipsoid(p, (0, 0, 0), (150 + fat + 6 * s["a"], 100 + fat + 6 * s["b"], 0))

    right = _ellipsoid(p, (-66, -8, 22 + 5 * s["c"]), (72 + 5 * s["d"], 80, 78 + 8 * s["e"]))
    left = _ellipsoid(p, (-2 + 8 * s["f"], -44, 44 + 5 * s["c"]), (74, 38, 36 + 5 * s["g"]))
    liver = _union(right, left, 26.0)
    liver = _cut(liver, _ellipsoid(p, (-18, 62, -8), (72, 58, 90)), 12.0)  # porta, kidney, spine
    liver = _cut(liver, -(cavity + 5.0), 8.0)
    heart = np.maximum(np.hypot(x - 6.0, y + 22.0) - 42.0, 68.0 - z)
    liver = _cut(liver, heart - 2.0, 4.0)
    liver = _cut(liver, 0.9 * z - 0.55 * x + 44.0, 10.0) + wall  # lower edge

    spleen = _ellipsoid(p, (92, 32 + 5 * s["h"], 42 + 7 * s["i"]), (48, 54, 50 + 8 * s["j"]))
    spleen = _cut(spleen, _ellipsoid(p, (52, 6, 44), (44, 46, 66)), 7.0)
    spleen = _cut(spleen, -(cavity + 5.0), 8.0) + wall

    kidneys = np.minimum(
        _ellipsoid(p, (-62, 50, -34 + 6 * s["i"]), (25, 23, 50)),
        _ellipsoid(p, (64, 50, -24 + 6 * s["h"]), (25, 23, 50)),
    )
    sinus = np.minimum(
        _ellipsoid(p, (-45, 44, -34 + 6 * s["i"]), (20, 9, 22)),
        _ellipsoid(p, (47, 44, -24 + 6 * s["h"]), (20, 9, 22)),
    )
    kidneys = _cut(kidneys, sinus, 3.0) + 0.6 * wall
    spleen = _cut(spleen, kidneys - 4.0, 4.0)
    liver = _cut(liver, kidneys - 4.0, 5.0)

    dome = _ellipsoid(p, (-60, -6, 28), (102, 104, 66))
    dome = np.minimum(dome, _ellipsoid(p, (70, -2, 26), (82, 100, 60)))
    lung = np.maximum(np.maximum(cavity + 5.0, -dome), 52.0 - z)
    lung = np.maximum(lung, 20.0 - np.hypot(x - 6.0, y + 22.0) * 0.42)  # room for the heart

    body_axis = _ellipsoid(p, (0, 62, 0), (23, 19, 0))
    process = _ellipsoid(p, (0, 96, 0), (5, 22, 0))
    arms = np.maximum(np.abs(y - 84.0) - 5.0, np.abs(x) - 34.0)
    spine = np.minimum(body_axis, _union(process, arms, 4.0))
    phase = np.mod(z + 17.0 * s["a"], 34.0)
    discs = np.maximum(body_axis - 1.0, np.abs(phase - 17.0) - 4.0)
    canal = _ellipsoid(p, (0, 88, 0), (9, 7, 0))

    shell = np.abs(cavity - 7.0) - 4.2
    slope = z - 0.42 * (y + 8.0) + 0.12 * np.abs(x)
    ribs = np.maximum(shell, np.abs(np.mod(slope, 29.0) - 14.5) - 4.6)
    ribs = np.maximum(ribs, np.maximum(-20.0 - z - 0.25 * y, 40.0 - np.abs(x)))

    aorta = np.hypot(x - 14.0, y - 32.0) - 9.5
    cava = np.hypot(x + 20.0, (y - 32.0) * 1.25) - 10.0
    stomach = _ellipsoid(p, (54, -20 + 5 * s["g"], 40), (44, 40, 46))
    stomach = _union(stomach, _ellipsoid(p, (18, -50, 4), (42, 19, 22)), 14.0)
    stomach = _cut(stomach, liver - 3.0, 4.0) + wall
    gas = np.maximum(stomach + 5.0, y + 40.0 + 4.0 * s["b"])
    gallbladder = _ellipsoid(p, (-46, -42, -14 + 5 * s["d"]), (14, 16, 26))

    loops = noise.field(9.0)
    bowel_room = np.maximum(cavity + 12.0, np.maximum(z - 8.0 - 0.3 * x, y - 30.0))
    bowel = np.maximum(bowel_room, (0.3 - np.abs(loops)) * 9.0)
    bowel_gas = np.maximum(bowel + 4.0, (1.5 - np.abs(loops)) * 9.0)

    tubes = np.hypot(noise.field(22.0), noise.field(22.0)) * 22.0 - 4.2
    vessels = np.maximum(tubes, liver + 7.0)
    return Anatomy(
        body=body, cavity=cavity, lung=lung, heart=heart, liver=liver, spleen=spleen,
        kidneys=kidneys, kidney_core=kidneys + 8.0, spine=spine, discs=discs, canal=canal,
        ribs=ribs, aorta=aorta, cava=cava, stomach=stomach, gas=gas,
        gallbladder=gallbladder, bowel=bowel, bowel_gas=bowel_gas, vessels=vessels,
        texture=noise.field(5.0),
    )  # fmt: skip


def label_map(a: Anatomy) -> npt.NDArray[np.uint8]:
    """Label values (see ``LABELS``) on the grid of the anatomy."""
    label = np.zeros(a.body.shape, dtype=np.uint8)
    inside = (a.body < 0) & (a.lung > 0)
    label[inside & (a.liver < 0) & (a.gallbladder > 0)] = 1
    label[inside & (a.spleen < 0) & (label == 0)] = 2
    return label


def render(
    a: Anatomy, contrast: Contrast, points: Field, spacing_mm: float, study_seed: int
) -> Field:
    """Image intensities: tissues mixed at their borders, shading, texture and noise.

    Parameters
    ----------
    a, points
        The anatomy and the places (LPS, mm) where it was evaluated.
    contrast
        Of the scanner.
    spacing_mm
        Width over which two tissues mix in a voxel.
    study_seed
        Noise and shading of this study.
    """
    rng = np.random.default_rng([study_seed, 2])
    c = contrast
    image = np.full(a.body.shape, c.air, dtype=np.float32)

    def paint(distance: Field, value: Field | float, mix: float = 0.5) -> None:
        weight = 1.0 / (1.0 + np.exp(np.clip(distance / (mix * spacing_mm * 0.5), -30, 30)))
        image[...] = image + weight.astype(np.float32) * (value - image)

    parenchyma = a.texture * c.texture
    paint(a.body, c.muscle * 0.9)  # skin
    paint(a.body + 3.0, c.fat)
    paint(a.cavity - 13.0, c.muscle + parenchyma)
    paint(a.cavity + 3.0, c.fat + parenchyma)
    psoas = np.minimum(a.spine - 11.0, a.canal - 26.0)
    paint(np.maximum(psoas, a.body + 14.0), c.muscle + parenchyma)
    paint(a.bowel, c.bowel + 2.0 * parenchyma)
    paint(a.bowel_gas, c.air)
    paint(a.heart, c.muscle)
    paint(a.heart + 12.0, c.blood)
    paint(a.stomach, c.muscle)
    paint(a.stomach + 5.0, c.stomach + parenchyma)
    paint(a.gas, c.air)
    paint(a.kidneys, c.kidney + parenchyma)
    paint(a.kidney_core, c.pelvis)
    paint(a.spleen, c.spleen + parenchyma)
    paint(a.liver, c.liver + parenchyma)
    paint(a.vessels, c.vessel, mix=1.0)
    paint(a.gallbladder, c.fluid)
    paint(a.lung, c.lung + parenchyma)
    paint(a.aorta, c.blood)
    paint(np.maximum(a.cava, -1.0 - a.liver), c.blood * 0.95)
    paint(a.ribs, c.bone)
    paint(a.ribs + 2.6, c.marrow)
    paint(a.spine, c.bone)
    paint(a.spine + 3.0, c.marrow + 2.0 * parenchyma)
    paint(a.discs, c.muscle * 1.1)
    paint(a.canal, c.fluid)

    if c.bias > 0:
        shading = _Noise(rng, points).field(90.0)
        image *= np.exp(c.bias * 0.5 * shading)
    shape, sigma = image.shape, (0.0, c.noise_width, c.noise_width)

    def grain() -> Field:
        raw = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
        return np.asarray(raw * (c.noise / raw.std()), dtype=np.float32)

    if c.magnitude:  # Rician: the magnitude of a complex signal
        return np.asarray(np.hypot(image + grain(), grain()), dtype=np.float32)
    return image + grain()
