"""What a training run is told, and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training patch; every share is a probability per patch.

    Parameters
    ----------
    spatial
        Share of patches that are rotated, scaled and bent.
    rotation_degrees
        Largest rotation about each axis.
    scaling
        Largest relative change of size.
    elastic_mm
        Standard deviation of the displacement of control points, which lie a quarter of the
        patch apart. 0 leaves the step out.
    noise, blur, brightness, contrast, gamma
        Shares of patches with Gaussian noise (sd up to 0.15), Gaussian blur (sd 0.5 to 1 voxel),
        another mean, another standard deviation, another gamma (0.7 to 1.5).
    flip_axes
        RAS axes along which a patch is mirrored with probability 1/2. Empty by default: a
        mirrored patient has the liver on the left. Right only where no label is of one side.
    """

    spatial: float = 0.7
    rotation_degrees: float = 15.0
    scaling: float = 0.15
    elastic_mm: float = 1.0
    noise: float = 0.15
    blur: float = 0.15
    brightness: float = 0.3
    contrast: float = 0.3
    gamma: float = 0.3
    flip_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("spatial", "noise", "blur", "brightness", "contrast", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"augmentation {name} is a share, must be in [0, 1].")
        if not 0 <= self.scaling < 1 or self.rotation_degrees < 0 or self.elastic_mm < 0:
            raise InvalidInputError(
                "augmentation: rotation_degrees and elastic_mm must be >= 0, scaling in [0, 1)."
            )
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise InvalidInputError(f"augmentation flip_axes {self.flip_axes}: use 0, 1 and 2.")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that a training run depends on, beside the cases and the network.

    Parameters
    ----------
    epochs
        Passes over the training cases.
    batch_size
        Patches per step, over all GPUs together.
    samples_per_case
        Patches drawn of each case in an epoch.
    learning_rate
        Peak of the schedule: linear warm-up over ``warmup`` of all steps, then a half cosine to 0.
    weight_decay
        Of AdamW.
    gradient_clip
        Largest norm of the gradient.
    foreground
        Share of patches centred on a voxel of a random structure.
    val_fraction
        Share of the *persons* that only choose the best weights; 0 takes the last weights. A
        training that starts from weights validates on persons whom these were not fitted to.
    val_interval
        Epochs between validations.
    patience
        Validations without a better Dice until training stops early; 0 never stops early.
    seed
        Of the split, the initial weights and every random choice.
    amp
        Mixed precision: ``"auto"`` on GPUs, ``"off"`` nowhere. Never on a CPU: torch 2.13 gives
        wrong weight gradients of bfloat16 ``conv3d`` for maps of 2 voxels (seen on AVX-512).
    cache_gib
        Memory for preprocessed cases; what does not fit lies in files beside the checkpoint.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` …; with ``"auto"`` every GPU is used.
    processes
        Processes of a distributed run; 0 takes one for each GPU, or one.
    augmentation
        See ``Augmentation``.
    without
        Names of structures that are taken out of the label maps, where they become background.
        Their classes stay in the network, and it learns never to name them.

    Raises
    ------
    InvalidInputError
        A value is out of its range.
    """

    epochs: int = 100
    batch_size: int = 4
    samples_per_case: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05
    gradient_clip: float = 5.0
    foreground: float = 0.67
    val_fraction: float = 0.1
    val_interval: int = 5
    patience: int = 0
    seed: int = 0
    amp: Literal["auto", "off"] = "auto"
    cache_gib: float = 4.0
    device: str = "auto"
    processes: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "samples_per_case", "learning_rate", "val_interval")
        faults = [f"{n} must be > 0" for n in positive if not getattr(self, n) > 0]
        shares = ("warmup", "foreground", "val_fraction")
        faults += [f"{n} must be in [0, 1)" for n in shares if not 0 <= getattr(self, n) < 1]
        least = ("weight_decay", "patience", "cache_gib", "processes", "seed")
        faults += [f"{n} must be >= 0" for n in least if getattr(self, n) < 0]
        if self.gradient_clip <= 0:
            faults.append("gradient_clip must be > 0")
        if self.amp not in ("auto", "off"):
            faults.append(f"amp is {self.amp!r}, must be auto or off")
        if faults:
            raise InvalidInputError(f"training settings: {'; '.join(faults)}.")

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers, strings and one nested mapping."""
        data = dataclasses.asdict(self)
        data["augmentation"]["flip_axes"] = list(self.augmentation.flip_axes)
        data["without"] = list(self.without)
        return data


@dataclass(frozen=True)
class CaseDigests:
    """What of a case went into the weights.

    Parameters
    ----------
    image, label
        ``Volume.digest()`` of the files as they were read.
    """

    image: str
    label: str


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Parameters
    ----------
    weights
        ``run_dir/weights.safetensors``: the best by validation Dice, or the last without
        validation.
    sha256
        Of that file.
    best_dice
        Mean validation Dice of those weights on the model's grid; None without validation.
    curve
        One row an epoch: epoch, loss, learning_rate, and where validated val_dice (mean) and
        val_dice_per_label.
    train_cases, val_cases
        Both shaped the weights.
    digests
        By series.
    config, settings
        Resolved.
    seconds
        Wall time over all attempts of the run, preparation included.
    epochs_done
        Fewer than asked for after an early stop.
    """

    weights: Path
    sha256: str
    best_dice: float | None
    curve: list[dict[str, Any]]
    train_cases: list[Case]
    val_cases: list[Case]
    digests: Mapping[str, CaseDigests]
    config: ModelConfig
    settings: TrainSettings
    seconds: float
    epochs_done: int
