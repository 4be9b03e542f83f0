"""Training a generator: images in, a generator out, and back where it was after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from segunlearn.errors import CancelledError, InvalidInputError, SegUnlearnError
from segunlearn.networks import ModelConfig
from segunlearn.records.runs import Progress
from segunlearn.replay.generator import Generator, GeneratorConfig, build_generator, spectrum_of
from segunlearn.training import learning_rate_at
from segunlearn.training.augmentation import sample_patch
from segunlearn.training.checkpoint import Checkpoint, TrainingState
from segunlearn.training.data import Throttle
from segunlearn.training.settings import Augmentation
from segunlearn.unlearning.loop import Cancel, Report, device_of, never, no_report
from segunlearn.unlearning.sets import Study

#: Share of patches that are placed on a structure, where a study is larger than a patch.
FOREGROUND = 0.67
#: Patches from which the spread of the latents and the texture are taken.
_MEASURED = 512


@dataclass(frozen=True)
class GeneratorSettings:
    """Everything that a generator's training depends on, beside its images and shape.

    Parameters
    ----------
    steps, batch_size
        Of the descent.
    learning_rate
        Peak; a warm-up, then half a cosine down to 0.
    kl_weight
        Of the divergence from the prior, in the sum over a latent vector, beside the squared error
        in the sum over an image divided by 2 ``noise``²: it rises from 0 over the first fifth.
    noise
        Standard deviation that a voxel is allowed, in the normalised image's unit.
    augmentation
        See ``Augmentation``; None: patches as they are.
    gradient_clip
        Largest norm of the gradient.
    checkpoint_every
        Steps after which a killed run goes on.
    seed
        Of weights, batches and noise.

    Raises
    ------
    InvalidInputError
        A value is out of its range.
    """

    steps: int = 1500
    batch_size: int = 16
    learning_rate: float = 2e-3
    kl_weight: float = 1.0
    noise: float = 0.3
    augmentation: Augmentation | None = field(
        default_factory=lambda: Augmentation(noise=0, blur=0, gamma=0)
    )
    gradient_clip: float = 100.0
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "steps", "batch_size", "learning_rate", "noise", "gradient_clip", "checkpoint_every",
        )  # fmt: skip
        faults = [f"{name} must be > 0" for name in positive if not getattr(self, name) > 0]
        if self.kl_weight < 0:
            faults.append("kl_weight must be >= 0")
        if faults:
            raise InvalidInputError(f"generator settings: {'; '.join(faults)}.")

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers, strings and nested mappings."""
        return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self))))


def elbo(
    generator: Generator, images: torch.Tensor, noise: torch.Tensor, settings: GeneratorSettings,
    kl_share: float,
) -> torch.Tensor:  # fmt: skip
    r"""Negative evidence lower bound of images ``(B, C, *shape)``, mean over the batch.

    :math:`\|x - f(\mu + \sigma\epsilon)\|^2 / 2s^2 + w KL(N(\mu, \sigma) \| N(0, 1))`
    (Kingma & Welling, arXiv 1312.6114).

    Parameters
    ----------
    noise
        :math:`\epsilon`, ``(B, latent)``.
    kl_share
        Of ``settings.kl_weight``.
    """
    mean, log_variance = generator.encode(images)
    made = generator.decode(mean + (0.5 * log_variance).exp() * noise)
    error = (made - images).square().flatten(1).sum(1) / (2 * settings.noise**2)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return (error + kl_share * settings.kl_weight * kl).mean()


def train_generator(
    studies: Sequence[Study],
    model: ModelConfig,
    config: GeneratorConfig,
    settings: GeneratorSettings,
    *,
    run_dir: Path | None = None,
    device: torch.device | None = None,
    report: Report = no_report,
    cancel: Cancel = never,
) -> Generator:
    """Train a generator on patches of studies; labels only say where patches are cut.

    Parameters
    ----------
    studies
        On the model's grid. The caller has taken out every study that a forget request covers.
    model
        The segmentation network's patch.
    config
        Shapes, see ``GeneratorConfig.of``.
    settings
        How.
    run_dir
        Holds the checkpoint; None: a killed run begins again.
    device
        Where it is trained.
    report, cancel
        Called and asked at each step; phase ``generator``.

    Returns
    -------
    Generator
        In evaluation mode.

    Raises
    ------
    InvalidInputError
        There are fewer than two studies.
    CancelledError
        ``cancel`` said so; a later call goes on from the last checkpoint.
    SegUnlearnError
        The loss is no longer a number.
    """
    if len(studies) < 2:
        raise InvalidInputError(
            f"{len(studies)} image(s): a generator of one image would be that image. Give more."
        )
    generator = build_generator(config, settings.seed).to(device or torch.device("cpu"))
    optimiser = torch.optim.Adam(generator.parameters())
    checkpoint = None
    if run_dir is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        checkpoint = Checkpoint(Path(run_dir), _fingerprint(studies, model, config, settings))
    state = checkpoint.load(generator, optimiser) if checkpoint is not None else None
    state = state or TrainingState()
    throttle, started, first = Throttle(), time.monotonic(), state.epoch
    generator.train()
    for step in range(first, settings.steps):
        if cancel():
            raise CancelledError(
                f"the generator's training was stopped at step {step}; start it again to go on "
                "from its last checkpoint."
            )
        rng = np.random.default_rng((settings.seed, step))  # a resumed run draws the same
        images = patches(studies, model, generator, settings.batch_size, rng, settings.augmentation)
        noise = torch.from_numpy(
            rng.standard_normal((len(images), config.latent), dtype=np.float32)
        ).to(images.device)
        rate = learning_rate_at(step, settings.steps, settings.learning_rate, 0.05)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = elbo(generator, images, noise, settings, min(1.0, 5 * step / settings.steps))
        if not torch.isfinite(loss):
            raise SegUnlearnError(
                f"the generator's loss became {loss.item()} at step {step}. Lower the learning "
                f"rate (it is {settings.learning_rate:g})."
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(generator.parameters(), settings.gradient_clip * len(noise))
        optimiser.step()
        state.epoch = done = step + 1
        if throttle.due(last=done == settings.steps):
            pace = (time.monotonic() - started) / (done - first)
            figures = {"loss": loss.item() / math.prod(config.shape)}
            report(
                Progress("generator", done, settings.steps, figures, pace * (settings.steps - done))
            )
        if checkpoint is not None and (
            done % settings.checkpoint_every == 0 or done == settings.steps
        ):
            checkpoint.save(state, generator, optimiser, is_best=False)
    measure_spread(generator.eval(), studies, model, settings)
    return generator


def patches(
    studies: Sequence[Study],
    model: ModelConfig,
    generator: Generator,
    count: int,
    rng: np.random.Generator,
    augmentation: Augmentation | None,
    chosen: Sequence[int] | None = None,
) -> torch.Tensor:
    """Draw patches at the generator's size, ``(count, C, *shape)``, on its device.

    Parameters
    ----------
    chosen
        Number of the study of each; None: at random.
    """
    numbers = rng.integers(len(studies), size=count) if chosen is None else chosen
    found = []
    for number in numbers:
        study = studies[int(number)]
        foreground = study.foreground
        image, _ = sample_patch(
            study.image, study.label, foreground, model, FOREGROUND, augmentation, rng
        )
        found.append(image)
    return generator.reduced(torch.stack(found).to(device_of(generator)))


def measure_spread(
    generator: Generator, studies: Sequence[Study], model: ModelConfig, settings: GeneratorSettings
) -> None:
    """Set the spread of the latents and the texture from patches of the training, in place."""
    rng = np.random.default_rng((settings.seed, settings.steps))
    count = max(_MEASURED, len(studies)) if settings.augmentation else len(studies)
    numbers = [i % len(studies) for i in range(count)]
    means, variances, spectra = [], [], []
    with torch.no_grad():
        for start in range(0, count, 32):
            some = numbers[start : start + 32]
            images = patches(studies, model, generator, len(some), rng, settings.augmentation, some)
            mean, log_variance = generator.encode(images)
            means.append(mean)
            variances.append(log_variance.exp())
            spectra.append(spectrum_of(images - generator.decode(mean)).square() * len(some))
        mean = torch.cat(means).double()
        covariance = torch.cov(mean.T) + torch.diag(torch.cat(variances).double().mean(0))
        generator.centre.copy_(mean.mean(0))
        generator.spread.copy_(torch.linalg.cholesky(covariance))
        generator.texture.copy_((torch.stack(spectra).sum(0) / count).sqrt())


def _fingerprint(
    studies: Sequence[Study],
    model: ModelConfig,
    config: GeneratorConfig,
    settings: GeneratorSettings,
) -> str:
    """Of everything that shapes the result: a checkpoint of other studies is never used."""
    facts = {
        "model": model.to_json(), "generator": config.to_json(), "settings": settings.to_json()
    }  # fmt: skip
    content = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for study in studies:
        content.update(f"\n{study.series}\0{study.person}\0".encode())
        content.update(study.image.numpy().tobytes())
    return content.hexdigest()
