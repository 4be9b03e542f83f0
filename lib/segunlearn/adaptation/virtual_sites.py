"""Virtual sites: an episode gets the look and the label convention of a hospital that is made up.

With few real sites a meta-learner learns them by heart instead of learning to adapt. One virtual
site holds for the support and the query of an episode: what it does is learned from the support.
Looks alone are not enough: as long as one image always has one mask, its mask can be learned by
heart too (Yin et al., arXiv 1912.03820), so some virtual sites annotate a part of the structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.nn.functional import interpolate, max_pool2d, max_pool3d

from segunlearn.errors import InvalidInputError
from segunlearn.training.augmentation import blur

_KNOTS: Final = 6


@dataclass(frozen=True)
class VirtualSettings:
    """How often, and how much, an episode is changed; every share is a probability.

    Parameters
    ----------
    share
        Of episodes that get a virtual site; the others keep their real site's look.
    intensities, monotone
        Of virtual sites with a random map of intensities, and of these maps the share that keeps
        the order of grey values. The others may swap dark and bright, as another sequence does.
    gamma, bias, blur, noise, resolution
        Of virtual sites with a gamma (0.7 to 1.5), a smooth bias field, a blur (sd 0.5 to 1
        voxel), noise (sd up to 0.1 of the range) and a coarser grid (up to 2 voxels).
    border
        Of virtual sites that draw every label one voxel wider or narrower.
    part
        Of virtual sites that annotate only one side of every structure.
    """

    share: float = 0.8
    intensities: float = 0.9
    monotone: float = 0.3
    gamma: float = 0.3
    bias: float = 0.3
    blur: float = 0.2
    noise: float = 0.5
    resolution: float = 0.15
    border: float = 0.3
    part: float = 0.4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise InvalidInputError(f"virtual sites: {name} is a share, must be in [0, 1].")


@dataclass(frozen=True)
class VirtualSite:
    """One made-up site; the default changes nothing.

    Parameters
    ----------
    low, high
        Grey values between which the map's knots lie.
    knots
        New values at equidistant old ones, as shares of the range; empty: no map.
    gamma, bias, blur, noise, resolution
        Exponent; log of the field at the border of a patch; sd in voxels; sd as share of the
        range; size of a voxel in old ones.
    border
        Voxels that labels grow, or shrink when negative.
    part
        Direction, in voxels along X, Y and Z, of the side of a structure's middle that is
        annotated; empty: all of it.
    """

    low: float = 0.0
    high: float = 1.0
    knots: tuple[float, ...] = ()
    gamma: float = 1.0
    bias: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    resolution: float = 1.0
    border: int = 0
    part: tuple[float, ...] = ()

    @classmethod
    def draw(
        cls, low: float, high: float, settings: VirtualSettings, rng: np.random.Generator
    ) -> VirtualSite:
        """Make one up; the same generator gives the same site."""

        def chosen(share: float, value: float, otherwise: float) -> float:
            return value if rng.random() < share else otherwise

        knots: tuple[float, ...] = ()
        if rng.random() < settings.intensities:
            values = rng.uniform(0, 1, _KNOTS)
            ordered = np.sort(values) if rng.random() < settings.monotone else values
            knots = tuple(ordered.tolist())
        return cls(
            low=low,
            high=max(high, low + 1e-6),
            knots=knots,
            gamma=chosen(settings.gamma, float(rng.uniform(0.7, 1.5)), 1.0),
            bias=chosen(settings.bias, float(rng.uniform(0.1, 0.4)), 0.0),
            blur=chosen(settings.blur, float(rng.uniform(0.5, 1.0)), 0.0),
            noise=chosen(settings.noise, float(rng.uniform(0, 0.1)), 0.0),
            resolution=chosen(settings.resolution, float(rng.uniform(1.2, 2.0)), 1.0),
            border=int(chosen(settings.border, float(rng.choice([-1, 1])), 0)),
            part=tuple(rng.standard_normal(3).tolist()) if rng.random() < settings.part else (),
        )

    def image(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Images ``(B, C, X, Y[, Z])`` as this site would make them.

        Parameters
        ----------
        rng
            Of what differs between images of one site: noise and the place of the bias field.
        """
        span = self.high - self.low
        unit = (image - self.low) / span
        if self.knots:
            unit = _piecewise(unit, self.knots)
        if self.gamma != 1.0:
            unit = unit.clamp(0, 1) ** self.gamma
        if self.bias:
            unit = torch.stack([x * _field(x, self.bias, rng) for x in unit])
        if self.resolution != 1.0:
            unit = _coarser(unit, self.resolution)
        if self.blur:
            unit = torch.stack([blur(x, self.blur) for x in unit])
        if self.noise:
            noise = rng.standard_normal(tuple(unit.shape), dtype=np.float32)
            unit = unit + self.noise * torch.from_numpy(noise)
        return unit * span + self.low

    def label(self, label: torch.Tensor) -> torch.Tensor:
        """Labels ``(B, 1, X, Y[, Z])`` as this site would draw them; structures never overlap."""
        if self.part:
            label = _one_side(label, self.part)
        if self.border == 0:
            return label
        pool = max_pool2d if label.ndim == 4 else max_pool3d
        new = torch.zeros_like(label)
        for value in (v for v in torch.unique(label).tolist() if v != 0):
            mask = (label == value).float()
            if self.border > 0:
                grown = pool(mask, 3, stride=1, padding=1) > 0
                new[grown & ((label == 0) | (label == value)) & (new == 0)] = value
            else:
                new[-pool(-mask, 3, stride=1, padding=1) > 0] = value
        return new


def _one_side(label: torch.Tensor, direction: tuple[float, ...]) -> torch.Tensor:
    """Keep of every structure, in every image, what lies on one side of its middle."""
    new = torch.zeros_like(label)
    for image, kept in zip(label[:, 0], new[:, 0], strict=True):
        for value in (v for v in torch.unique(image).tolist() if v != 0):
            places = (image == value).nonzero()
            side = (places - places.float().mean(0)) @ torch.tensor(direction[: image.ndim])
            kept[tuple(places[side >= 0].T)] = value
    return new


def _piecewise(unit: torch.Tensor, knots: tuple[float, ...]) -> torch.Tensor:
    """Piecewise linear map of [0, 1]; constant outside."""
    values = torch.tensor(knots, dtype=unit.dtype)
    place = unit.clamp(0, 1) * (len(knots) - 1)
    below = place.floor().long().clamp(max=len(knots) - 2)
    share = place - below
    return values[below] * (1 - share) + values[below + 1] * share


def _field(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Smooth positive factors for one image ``(C, X, Y[, Z])``."""
    log = torch.zeros(image.shape[1:])
    for axis, size in enumerate(image.shape[1:]):
        at = torch.linspace(-1, 1, size)
        line = rng.uniform(-1, 1) * at + rng.uniform(-1, 1) * (at**2 - 1 / 3)
        log = log + line.reshape([-1 if a == axis else 1 for a in range(image.ndim - 1)])
    return (strength * log).exp()


def _coarser(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Average on a coarser grid and interpolate back."""
    size = tuple(max(1, round(n / factor)) for n in image.shape[2:])
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    small = interpolate(image, size=size, mode="area")
    return interpolate(small, size=tuple(image.shape[2:]), mode=mode, align_corners=False)
