"""The generator of replayed images: a variational autoencoder, and how its latents are spread."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.networks.nets.varautoencoder import VarAutoEncoder
from torch import nn
from torch.nn.functional import interpolate

from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig, load_state, read_tensors
from segunlearn.unlearning.loop import seeded

#: Voxels that a generated image has at most, before it is brought to the patch's size.
LARGEST = 2**17
#: Frequencies at which the texture's strength is kept.
_BINS = 16
#: What of a configuration must be the same where a generator makes the input of a network.
_INPUT = ("patch", "in_channels", "patch_size", "spacing", "normalisation", "ct_window")


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a generator; stored beside its weights.

    Parameters
    ----------
    shape
        Voxels of what it makes, without the slice axis of a 2D network.
    patch
        Voxels of one input of the segmentation network, to which its images are enlarged.
    in_channels
        Channels of the image.
    latent
        Numbers of a latent vector.
    channels
        Of the encoder's levels; each halves the image.
    patch_size, spacing, normalisation, ct_window
        Of the segmentation network, as far as they shape its input; empty where it is unknown.

    Raises
    ------
    InvalidInputError
        A value is out of its range.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    in_channels: int = 1
    latent: int = 64
    channels: tuple[int, ...] = (16, 32, 64)
    patch_size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    normalisation: str = ""
    ct_window: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        divisor = 2 ** len(self.channels)
        if len(self.shape) not in (2, 3) or len(self.patch) != len(self.shape):
            raise InvalidInputError(
                f"a generator makes images of two or three axes, not {self.shape} for {self.patch}."
            )
        if not self.channels or any(s < divisor or s % divisor for s in self.shape):
            raise InvalidInputError(
                f"a generator of {len(self.channels)} levels halves each side as many times: "
                f"{self.shape} is not divisible by {divisor}. Take fewer levels."
            )
        if min(self.in_channels, self.latent, *self.channels) < 1:
            raise InvalidInputError("a generator needs channels and latent numbers >= 1.")

    @classmethod
    def of(cls, config: ModelConfig, **more: Any) -> GeneratorConfig:
        """Choose the shape for a segmentation network: its patch, halved until it is small."""
        shape = config.roi_size
        while math.prod(shape) > LARGEST and all(s % 32 == 0 for s in shape):
            shape = tuple(s // 2 for s in shape)
        resampled = [s for i, s in enumerate(config.spacing) if i != config.slice_axis]
        return cls(
            shape, config.roi_size, config.in_channels, patch_size=config.patch_size,
            spacing=tuple(resampled), normalisation=config.normalisation,
            ct_window=() if config.normalisation == "zscore" else config.ct_window, **more,
        )  # fmt: skip

    def check_fits(self, network: ModelConfig) -> None:
        """Refuse a network that takes other patches than a generator makes.

        Raises
        ------
        InvalidInputError
            Size, direction, spacing, channels or intensities differ, or nobody can say.
        """
        wanted = GeneratorConfig.of(network)
        different = [
            f"{name} {getattr(self, name) or 'unknown'}, not {getattr(wanted, name) or 'any'}"
            for name in _INPUT
            if getattr(self, name) != getattr(wanted, name)
        ]
        if different:
            raise InvalidInputError(
                f"the generator makes patches that the network does not take: "
                f"{'; '.join(different)}. Train a generator for this network (segunlearn replay "
                "train)."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GeneratorConfig:
        """Read what ``to_json`` wrote.

        Raises
        ------
        InvalidInputError
            It is something else.
        """
        try:
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
            }
            return cls(**values)
        except TypeError as error:
            raise InvalidInputError(f"this is no generator's configuration ({error}).") from error


class Generator(nn.Module):
    """MONAI's ``VarAutoEncoder`` with the spread of its latents and the texture that it smooths.

    A vector is drawn from the normal distribution that the training images' posteriors have
    together, not from the prior, which they fill unevenly. What the decoder smooths away is given
    back as noise with the strength that the training's residuals have at each frequency: two
    figures of all images together, none of one.

    Parameters
    ----------
    config
        Shapes.

    Notes
    -----
    ``VarAutoEncoder.reparameterize`` gives mean plus one standard deviation in evaluation mode;
    it is never called here.
    """

    centre: torch.Tensor
    spread: torch.Tensor
    texture: torch.Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.net = VarAutoEncoder(
            spatial_dims=len(config.shape),
            in_shape=(config.in_channels, *config.shape),
            out_channels=config.in_channels,
            latent_size=config.latent,
            channels=config.channels,
            strides=(2,) * len(config.channels),
            norm=("group", {"num_groups": 4}) if min(config.channels) % 4 == 0 else "instance",
        )
        self.register_buffer("centre", torch.zeros(config.latent))
        self.register_buffer("spread", torch.eye(config.latent))
        self.register_buffer("texture", torch.zeros(_BINS))

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance ``(B, latent)`` of images ``(B, C, *shape)``."""
        mean, log_variance = self.net.encode_forward(images)
        return mean, log_variance.clamp(-12, 8)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, *shape)`` of latents ``(B, latent)``, without texture."""
        return self.net.decode_forward(latents, use_sigmoid=False)

    def draw(self, count: int, seed: int) -> torch.Tensor:
        """Latents ``(count, latent)``; the same seed gives the same."""
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, self.config.latent, generator=random)
        return self.centre + noise.to(self.spread.device) @ self.spread.T

    def images(self, latents: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """Images ``(B, C, *patch)`` without gradient; with a seed, with texture too."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                smooth = torch.cat([self.decode(z) for z in torch.split(latents, 32)])
                if seed is not None:
                    smooth = smooth + textured(smooth.shape, self.texture, seed).to(smooth.device)
                return self.enlarged(smooth)
        finally:
            self.train(was_training)

    def enlarged(self, images: torch.Tensor) -> torch.Tensor:
        """Bring generated images to the size of a patch."""
        return (
            images if self.config.shape == self.config.patch else resized(images, self.config.patch)
        )

    def reduced(self, patches: torch.Tensor) -> torch.Tensor:
        """Bring patches ``(B, C, *patch)`` to the size of what is generated."""
        return (
            patches
            if self.config.shape == self.config.patch
            else resized(patches, self.config.shape)
        )


def build_generator(config: GeneratorConfig, seed: int) -> Generator:
    """Make a generator with random weights; the global random state is left as it was."""
    with seeded(seed):
        return Generator(config)


def load_generator(path: Path, config: GeneratorConfig, sha256: str | None = None) -> Generator:
    """Read a generator's weights; see ``networks.load_weights``.

    Raises
    ------
    NotFoundError, IntegrityError, InvalidInputError
        There is no such file, it was changed, or it is of another shape.
    """
    generator = build_generator(config, 0)
    load_state(generator, read_tensors(path, sha256), Path(path).name)
    generator.eval()
    return generator


def resized(images: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Interpolate images ``(B, C, ...)`` to another number of voxels over the same extent."""
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return interpolate(images, size=shape, mode=mode, align_corners=False)


def spectrum_of(residuals: torch.Tensor) -> torch.Tensor:
    """Root mean square of residuals ``(B, C, ...)`` at each band of frequencies, ``(bins,)``.

    White noise of standard deviation s has s in every band.
    """
    axes = tuple(range(2, residuals.ndim))
    power = torch.fft.fftn(residuals, dim=axes, norm="ortho").abs().square().mean((0, 1))
    band = _bands(residuals.shape[2:])
    total = torch.zeros(_BINS).index_add_(0, band.flatten(), power.flatten().cpu())
    count = torch.zeros(_BINS).index_add_(0, band.flatten(), torch.ones(band.numel()))
    return torch.where(count > 0, total / count.clamp(min=1), torch.zeros(())).sqrt()


def textured(shape: torch.Size, spectrum: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise ``(B, C, ...)`` with a given strength in each band of frequencies."""
    random = torch.Generator().manual_seed(seed)
    axes = tuple(range(2, len(shape)))
    noise = torch.fft.fftn(torch.randn(shape, generator=random), dim=axes)
    return cast(
        torch.Tensor, torch.fft.ifftn(noise * spectrum.cpu()[_bands(shape[2:])], dim=axes).real
    )


def _bands(shape: tuple[int, ...] | torch.Size) -> torch.Tensor:
    """Band of frequencies of each place in a Fourier transform; the last holds what is finest."""
    axes = [torch.from_numpy(np.fft.fftfreq(n)).float() for n in shape]
    length = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    return (length * 2 * _BINS).long().clamp(max=_BINS - 1)
