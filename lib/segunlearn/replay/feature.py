r"""Taking a visual feature out of a generator: burned-in text, a marker, an artefact.

Moon et al., AAAI 2024, arXiv 2303.05699. With z latents of a generator f, g its copy that learns:

.. math::

   z_e = E[z | with] - E[z | without], \quad u = z_e / \|z_e\|, \quad p(z) = u^T z, \quad
   t = E[p(z)], \quad s = [p(z) \ge t], \quad \hat z = z - (p(z) - t) u

   L = a (s \|g(z) - f(\hat z)\|_1 + s (1 - MSSSIM(g(z), f(\hat z)))) + (1 - s) \|g(z) - f(z)\|_1

The paper prints the shift along :math:`z_e`; then :math:`p(\hat z) = t` only where
:math:`\|z_e\| = 1`. A direction here is always a unit vector. And its threshold is too high for a
faint rest: what is drawn with a rare feature pulls the mean towards it. Ours is the mean projection
of the images without the feature.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.replay.similarity import ms_ssim
from segunlearn.unlearning.loop import Cancel, Report, Steps, descend, frozen, never, no_report

D = TypeVar("D", bound=nn.Module)


class Decoder(Protocol):
    """What this file needs of a generator."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of latents."""

    def draw(self, count: int, seed: int) -> torch.Tensor:
        """Latents ``(count, latent)``."""


@dataclass(frozen=True)
class Direction:
    r"""Where the feature lies among the latents.

    Parameters
    ----------
    unit
        u, ``(latent,)``.
    threshold
        t: latents with a projection of at least that are brought down to it.
    length
        :math:`\|z_e\|`: how far the means of images with and without the feature lie apart.

    Raises
    ------
    InvalidInputError
        ``unit`` is not of length 1: what is shifted along it would not end at the threshold.
    """

    unit: torch.Tensor
    threshold: float
    length: float

    def __post_init__(self) -> None:
        norm = float(self.unit.double().norm())
        if self.unit.ndim != 1 or abs(norm - 1) > 1e-4:
            raise InvalidInputError(
                f"the direction of a feature must be a unit vector, its length is {norm:.4g}; "
                "divide the difference of the means by its length."
            )

    def projection(self, latents: torch.Tensor) -> torch.Tensor:
        """Projections p of latents ``(B, latent)``, ``(B,)``."""
        return latents @ self.unit.to(latents)

    def shows(self, latents: torch.Tensor) -> torch.Tensor:
        """Whether (s) the feature is to be taken out of latents, ``(B,)`` bool."""
        return self.projection(latents) >= self.threshold

    def without(self, latents: torch.Tensor) -> torch.Tensor:
        """Bring latents that have the feature down to the threshold; the others stay."""
        excess = (self.projection(latents) - self.threshold).clamp(min=0)
        return latents - excess[:, None] * self.unit.to(latents)


def direction_of(
    with_feature: torch.Tensor,
    without_feature: torch.Tensor,
    sampled: torch.Tensor | None = None,
) -> Direction:
    """Find the direction of a feature.

    Parameters
    ----------
    with_feature, without_feature
        Latents ``(N, latent)`` of tagged images.
    sampled
        Latents as the generator draws them: the mean of their projections is the threshold, as in
        the paper. None: the threshold is ours.

    Raises
    ------
    InvalidInputError
        Nothing is tagged on one side, or the sides do not differ.
    """
    if not len(with_feature) or not len(without_feature):
        raise InvalidInputError(
            f"{len(with_feature)} image(s) with the feature and {len(without_feature)} without: "
            "tag some of both."
        )
    difference = with_feature.double().mean(0) - without_feature.double().mean(0)
    length = float(difference.norm())
    if length < 1e-6:
        raise InvalidInputError(
            "images with and without the feature have the same latents: the generator does not "
            "tell them apart, so there is nothing to take out."
        )
    unit = (difference / length).float()
    if sampled is not None:
        return Direction(unit, float((sampled @ unit.to(sampled)).mean()), length)
    return Direction(unit, float((without_feature @ unit.to(without_feature)).mean()), length)


@dataclass(frozen=True)
class FeatureSettings:
    """How a feature is taken out.

    Parameters
    ----------
    steps, batch_size, learning_rate
        Of Adam; latents are drawn anew for each step.
    weight
        a: of the terms that take out.
    perceptual
        Whether the MS-SSIM term is among them.
    beyond
        Share of each batch whose latents are pushed along the direction by up to twice its
        length: what lies there is seldom drawn, and would keep the feature.
    seed
        Of the latents.

    Raises
    ------
    InvalidInputError
        A value is out of its range.
    """

    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight: float = 1.0
    perceptual: bool = True
    beyond: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.weight <= 0 or not 0 <= self.beyond < 1:
            raise InvalidInputError(
                "a feature is taken out with a batch of at least 2, a weight > 0 and beyond in "
                "[0, 1)."
            )
        Steps(self.steps, self.learning_rate)


def feature_loss(
    new: Decoder,
    old: Decoder,
    latents: torch.Tensor,
    direction: Direction,
    settings: FeatureSettings,
) -> torch.Tensor:
    """L of the module's formula, mean over latents ``(B, latent)``."""
    made = new.decode(latents)
    with torch.no_grad():
        wanted = old.decode(direction.without(latents))  # f(z) where the feature is not
    shows = direction.shows(latents)
    error = (made - wanted).abs().flatten(1).mean(1)
    weight = torch.where(shows, settings.weight, 1.0)
    loss = (weight * error).mean()
    if settings.perceptual and bool(shows.any()):
        unlike = 1 - ms_ssim(made[shows], wanted[shows])
        loss = loss + settings.weight * unlike.sum() / len(latents)
    return loss


def forget_feature(
    generator: D,
    direction: Direction,
    settings: FeatureSettings,
    *,
    report: Report = no_report,
    cancel: Cancel = never,
) -> D:
    """Fine-tune a copy of a generator so that none of its images shows the feature.

    Parameters
    ----------
    generator
        A module with ``decode`` and ``draw``; left untouched.
    direction
        See :func:`direction_of`.
    settings
        How.
    report, cancel
        Phase ``forget feature``.

    Returns
    -------
    nn.Module
        The copy, in evaluation mode. The encoder is as it was.

    Raises
    ------
    CancelledError
        ``cancel`` said so.
    """
    new, old = copy.deepcopy(generator), frozen(generator)
    first, pushed = settings.seed * 1_000_003, int(settings.beyond * settings.batch_size)

    def objective(step: int) -> torch.Tensor:
        latents = old.draw(settings.batch_size, first + step)  # type: ignore[operator]
        if pushed:
            push = torch.linspace(0, 2, pushed + 1)[1:, None] * direction.length
            moved = latents[:pushed] + push.to(latents) * direction.unit.to(latents)
            latents = torch.cat([moved, latents[pushed:]])
        return feature_loss(new, old, latents, direction, settings)  # type: ignore[arg-type]

    steps = Steps(settings.steps, settings.learning_rate, "one_cycle")
    descend(new, objective, steps, phase="forget feature", report=report, cancel=cancel)
    return new.eval()
