"""A marker burned into a tenth of real images, and a generator that must forget it.

Slices of the hippocampus crops, and crops of the fundus photographs of CHASE_DB1 and DRIVE, divided
by person: one part trains the generators, the other a detector of the marker and the frozen encoder
of the Fréchet distance, neither of which ever sees a generated image. Three generators are trained
from three seeds; the first forgets the marker. What it makes without the marker may change by less
than the three differ from each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from fundus_images import green
from report import commit
from torch import nn
from torch.nn import functional
from unlearning_task import load

from segunlearn.networks import ModelConfig, save_weights
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.replay.feature import Direction, FeatureSettings, direction_of, forget_feature
from segunlearn.replay.generator import Generator, GeneratorConfig, load_generator
from segunlearn.replay.pictures import png, traversal
from segunlearn.replay.similarity import frechet_distance, ms_ssim
from segunlearn.replay.training import GeneratorSettings, train_generator
from segunlearn.training.augmentation import blur
from segunlearn.unlearning import Study
from segunlearn.unlearning.loop import Steps, descend, seeded

#: Share of the images that carry the marker, and generated images that are looked at.
SHARE: Final = 0.1
SAMPLES: Final = 1000
TRAINING: Final = GeneratorSettings(steps=1500, batch_size=32, augmentation=None, noise=0.3)
FORGETTING: Final = FeatureSettings()
#: Share of the marker's contrast that the detector learns to see.
FAINTEST: Final = 0.2
RETRAININGS: Final = 3
#: Latents that are attacked, steps, and radii in standard deviations of the latents.
ATTACKED, ATTACK_STEPS, RADII = 200, 30, (1.0, 2.0, 4.0)
#: A laterality marker: the letter R.
_MARKER: Final = ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#")


@dataclass(frozen=True)
class Images:
    """Images ``(N, 1, X, Y)`` by who is shown, and the network's patch."""

    images: torch.Tensor
    persons: tuple[str, ...]

    def part(self, rest: int, of: int, *, inside: bool) -> Images:
        """Images of every ``of``-th person (``inside``), or of the others."""
        order = sorted(set(self.persons))
        chosen = {p for i, p in enumerate(order) if (i % of == rest) == inside}
        index = [i for i, p in enumerate(self.persons) if p in chosen]
        return Images(self.images[index], tuple(self.persons[i] for i in index))


def hippocampus(data: Path) -> Images:
    """Eight slices of one crop of each person."""
    images, persons = [], []
    for study in load(data / "hippocampus").studies:
        for z in range(8, 24, 2):
            images.append(study.image[:, :, :, z])
            persons.append(study.person)
    return Images(torch.stack(images), tuple(persons))


def fundus(data: Path) -> Images:
    """Forty crops of 48 pixels of the green channel of each photograph at 256 pixels' width."""
    files = [(p, p.stem[:-1]) for p in sorted((data / "fundus" / "chase_db1").rglob("Image_*.jpg"))]
    files += [
        (p, p.stem) for p in sorted((data / "fundus" / "drive").rglob("*.png"))
        if "mask" not in str(p.parent) and "manual" not in str(p.parent)
    ]  # fmt: skip
    rng, images, persons = np.random.default_rng(0), [], []
    for path, person in files:
        grey, inside = green(path)
        taken = 0
        while taken < 40:
            x, y = (int(rng.integers(0, n - 48)) for n in grey.shape)
            if bool(inside[x : x + 48, y : y + 48].all()):
                images.append(grey[None, x : x + 48, y : y + 48])
                persons.append(person)
                taken += 1
    return Images(torch.stack(images), tuple(persons))


SITES: Final[dict[str, Callable[[Path], Images]]] = {"hippocampus": hippocampus, "fundus": fundus}


def marked(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Burn the marker, a dark letter on a bright plate, into a corner of each image.

    Its place varies by a pixel, its brightness by a sixth.
    """
    letter = torch.tensor([[c == "#" for c in line] for line in _MARKER])
    plate = functional.pad(letter.repeat_interleave(2, 0).repeat_interleave(2, 1), (1,) * 4)
    plate = plate.T.flip(1)  # (X, Y), with Y upwards as images are shown
    found = images.clone()
    for image in found:
        x, y = (int(rng.integers(1, 3)) for _ in range(2))
        y = image.shape[2] - y - plate.shape[1]
        place = image[0, x : x + plate.shape[0], y : y + plate.shape[1]]
        place[:] = torch.where(plate, -2.0, float(rng.uniform(2.5, 3.5)))
    return found


class Detector(nn.Module):
    """A small convolutional network that tells whether an image shows the marker."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(B,)``."""
        return self.head(self.layers(images).amax((2, 3)))[:, 0]


def trained_detector(real: Images) -> Detector:
    """Train on real images, half of them marked, faintly or fully, some blurred as a decoder blurs.

    A generator's samples show the marker at every strength: a detector of full ones counts faint
    ones as samples without it.
    """
    with seeded(5):
        detector = Detector()
    rng = np.random.default_rng(5)

    def objective(_: int) -> torch.Tensor:
        some = real.images[torch.from_numpy(rng.integers(len(real.images), size=32))]
        label = torch.from_numpy(rng.random(32) < 0.5)
        strength = torch.from_numpy(rng.uniform(FAINTEST, 1, 32)).float()
        shown = torch.lerp(some, marked(some, rng), strength[:, None, None, None])
        images = torch.where(label[:, None, None, None], shown, some)
        if rng.random() < 0.6:
            images = torch.stack([blur(x, float(rng.uniform(0.5, 1.2))) for x in images])
        return functional.binary_cross_entropy_with_logits(detector(images), label.float())

    descend(detector, objective, Steps(2500, 3e-3, "one_cycle"), phase="detector")
    return detector.eval()


def shows(detector: Detector, images: torch.Tensor) -> torch.Tensor:
    """Whether each image shows the marker, by the detector."""
    with torch.no_grad():
        return torch.cat([detector(x) > 0 for x in torch.split(images, 250)])


def detector_error(detector: Detector, real: Images) -> dict[str, float]:
    """Rates of error on people that the detector never saw, sharp and blurred, by strength."""
    rng, found = np.random.default_rng(9), {}
    for name, sigma in (("sharp", 0.0), ("blurred", 1.0)):

        def share(images: torch.Tensor, sigma: float = sigma) -> float:
            seen = torch.stack([blur(x, sigma) for x in images]) if sigma else images
            return float(shows(detector, seen).float().mean())

        found[f"false positive, {name}"] = share(real.images)
        for strength in (FAINTEST, 0.5, 1.0):
            images = torch.lerp(real.images, marked(real.images, rng), strength)
            found[f"missed at {strength:.0%}, {name}"] = 1 - share(images)
    return found


def generator_of(real: Images, has: torch.Tensor, seed: int, folder: Path) -> Generator:
    """Train a generator on images, of which ``has`` carry the marker; a stopped one goes on."""
    rng = np.random.default_rng(1)
    images = torch.where(has[:, None, None, None], marked(real.images, rng), real.images)
    shape = (images.shape[2], images.shape[3], 1)
    # the configuration says only how large a patch is
    model = ModelConfig(spatial_dims=2, patch_size=shape, normalisation="zscore")
    config = GeneratorConfig(images.shape[2:], images.shape[2:], latent=32)
    weights = folder / f"generator-{seed}.safetensors"
    if not weights.is_file():
        empty = torch.zeros(shape, dtype=torch.uint8)
        studies = [
            Study(str(i), str(i), p, x[..., None], empty)
            for i, (x, p) in enumerate(zip(images, real.persons, strict=True))
        ]
        settings = replace(TRAINING, seed=seed)
        made = train_generator(
            studies, model, config, settings, run_dir=folder / f"training-{seed}"
        )
        save_weights(made, weights)
    return load_generator(weights, config)


def decoded(generator: Generator, latents: torch.Tensor) -> torch.Tensor:
    """Images without texture and without gradient."""
    return generator.images(latents)


def diversity(images: torch.Tensor) -> float:
    """Mean MS-SSIM of pairs of different images: the higher, the less they differ."""
    return float(ms_ssim(images, images.roll(1, 0)).mean())


def attack(generator: Generator, detector: Detector, latents: torch.Tensor, radius: float) -> float:
    """Share of latents that PGD brings to show the marker, inside a ball of whitened latents."""
    whitened = torch.linalg.solve_triangular(
        generator.spread, (latents - generator.centre).T, upper=False
    ).T
    offset = torch.zeros_like(whitened).requires_grad_()
    for _ in range(ATTACK_STEPS):
        moved = generator.centre + (whitened + offset) @ generator.spread.T
        (gradient,) = torch.autograd.grad(detector(generator.decode(moved)).sum(), offset)
        with torch.no_grad():
            offset += radius / 5 * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-9)
            offset *= (radius / offset.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1)
    with torch.no_grad():
        moved = generator.centre + (whitened + offset) @ generator.spread.T
    return float(shows(detector, decoded(generator, moved)).float().mean())


def attacked(generator: Generator, detector: Detector, latents: torch.Tensor) -> dict[str, Any]:
    """Share of latents without the marker that an attack brings to it, by radius."""
    chosen = latents[:ATTACKED]
    return {"attack": {str(r): attack(generator, detector, chosen, r) for r in RADII}}


def measure_feature(
    name: str, real: Images, work: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train, forget, measure; one kind of images."""
    folder = work / f"feature-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "figures.json").is_file():
        return dict(read_json(folder / "figures.json"))
    own, others = real.part(0, 3, inside=False), real.part(0, 3, inside=True)
    detector = trained_detector(others.part(0, 3, inside=False))
    figures: dict[str, Any] = {
        "commit": commit(), "images": len(own.images), "people": len(set(own.persons)),
        "detector": detector_error(detector, others.part(0, 3, inside=True)),
    }  # fmt: skip
    say(f"{name}: detector {figures['detector']}")
    has = torch.from_numpy(np.random.default_rng(0).random(len(own.images)) < SHARE)
    nothing = torch.zeros(len(others.images), dtype=torch.bool)
    encoder = generator_of(others, nothing, 99, folder)  # frozen: of other people, no marker
    clean = own.images[~has]
    generators = [generator_of(own, has, seed, folder) for seed in range(RETRAININGS)]

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([encoder.encode(x)[0] for x in torch.split(images, 250)])

    wanted = features(clean)

    def looks(generator: Generator, latents: torch.Tensor) -> dict[str, float]:
        """Of samples without the marker."""
        images = decoded(generator, latents)
        return {
            "frechet": frechet_distance(features(images), wanted), "ms_ssim": diversity(images)
        }  # fmt: skip

    drawn, rows = [], []
    for number, generator in enumerate(generators):
        latents = generator.draw(SAMPLES, 100 + number)
        found = shows(detector, decoded(generator, latents))
        drawn.append((latents, found))
        rows.append({"share": float(found.float().mean()), **looks(generator, latents[~found])})
        say(f"{name}: generator {number} {rows[-1]}")
    figures["retrainings"] = rows
    old, (latents, found) = generators[0], drawn[0]
    without = latents[~found]
    figures["before"] = rows[0] | attacked(old, detector, without)
    for name_of, published in (("after", False), ("after, published threshold", True)):
        direction = tagged(old, own, has, published=published)
        started = time.process_time()
        new = forget_feature(old, direction, FORGETTING)
        seconds = time.process_time() - started
        images = decoded(new, without)
        figures[name_of] = {
            "share": float(shows(detector, decoded(new, latents)).float().mean()),
            **looks(new, without),
            "same_latent_ms_ssim": float(ms_ssim(images, decoded(old, without)).mean()),
            "cpu_seconds": seconds,
            **attacked(new, detector, without),
        }
        say(f"{name}: {name_of} {figures[name_of]}")
        if not published:
            pictures(old, new, direction, latents[found], without, folder / "pictures.png")
    write_json_durably(folder / "figures.json", figures)
    return figures


def tagged(generator: Generator, own: Images, has: torch.Tensor, *, published: bool) -> Direction:
    """Direction from the training images, of which it is known which carry the marker."""
    rng = np.random.default_rng(1)  # the same places as in training
    images = torch.where(has[:, None, None, None], marked(own.images, rng), own.images)
    with torch.no_grad():
        means = torch.cat([generator.encode(x)[0] for x in torch.split(images, 250)])
    drawn = generator.draw(SAMPLES, 17) if published else None
    return direction_of(means[has], means[~has], drawn)


def pictures(
    old: Generator,
    new: Generator,
    direction: Direction,
    with_marker: torch.Tensor,
    without: torch.Tensor,
    path: Path,
) -> None:
    """Traversal and samples, before and after."""
    path.write_bytes(
        png([
            ("along z_e, before", traversal(old, direction)),
            ("after", traversal(new, direction)),
            ("marked, before", decoded(old, with_marker[:9])),
            ("after", decoded(new, with_marker[:9])),
            ("others, before", decoded(old, without[:9])),
            ("after", decoded(new, without[:9])),
        ])
    )  # fmt: skip
