"""Where a forget set is brought to, and what is held meanwhile: terms that methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.training.augmentation import sample_patch
from segunlearn.unlearning.loop import (
    Targets,
    device_of,
    dice_ce_of,
    distillation,
    frozen,
    sample_losses,
)
from segunlearn.unlearning.sets import (
    Draw,
    SetName,
    Study,
    UnlearningSets,
    of_one_patch,
)

Retain = Literal["stored", "none"]
#: Who gets the probability of a withdrawn structure; see :func:`logits_without`.
Heir = Literal["background", "others"]
Batch = tuple[torch.Tensor, torch.Tensor]

#: Images ``(B, C, ...)`` and the number of each one's study to logits.
Answers = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]

#: Patches by which a study larger than one patch is scored.
_PATCHES_OF_A_STUDY = 4
#: Eight together do not fit into a core's cache, and take a quarter longer.
_SCORED_TOGETHER = 2
#: Logit of what is never said: its probability is 0 in float32, and 0 times it is a number.
_NEVER = -1e4


def study_losses(
    network: nn.Module,
    studies: Sequence[Study],
    config: ModelConfig,
    seed: int = 0,
    answers: Answers | None = None,
) -> torch.Tensor:
    """Soft Dice plus cross-entropy of each study, ``(N,)``.

    Of a study larger than one patch: the mean over four patches, drawn as for training.
    ``answers`` are the network's, from whoever keeps some of them.
    """
    each = 1 if of_one_patch(studies, config) else _PATCHES_OF_A_STUDY
    rng = np.random.default_rng(seed)
    samples = [
        sample_patch(s.image, s.label, s.foreground, config, 0.67, None, rng)
        for s in studies
        for _ in range(each)
    ]
    losses, device = [], device_of(network)
    with torch.no_grad():
        for first in range(0, len(samples), _SCORED_TOGETHER):
            some = samples[first : first + _SCORED_TOGETHER]
            image = torch.stack([image for image, _ in some]).to(device)
            label = torch.stack([label[None] for _, label in some])
            numbers = [i // each for i in range(first, first + len(some))]
            logits = answers(image, numbers) if answers else network(image)
            losses.append(sample_losses(logits, label).cpu())
    return torch.cat(losses).reshape(len(studies), each).mean(dim=1)


def unseen_levels(forget: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    r"""Give each forgotten study the loss of an unseen one of the same rank.

    The study with rank r of n gets the quantile :math:`(r + 1/2) / n` of the unseen losses, linear
    between them.

    Parameters
    ----------
    forget, unseen
        Losses of the original, ``(N,)`` and ``(M,)``.

    Examples
    --------
    >>> unseen_levels(torch.tensor([0.3, 0.1]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist()
    [4.0, 2.0]
    """
    ranks = forget.argsort().argsort()
    return torch.quantile(unseen.double(), (ranks + 0.5).double() / len(forget)).to(forget.dtype)


def unseen_ranks(losses: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    r"""Rank of losses among unseen ones, in (0, 1): what :func:`unseen_levels` inverts.

    The r-th of n unseen losses, from 0, has the rank :math:`(r + 1/2) / n`, linear between them.

    Parameters
    ----------
    losses, unseen
        Of any shape, and ``(M,)``.

    Examples
    --------
    >>> unseen_ranks(torch.tensor([0.0, 2.5, 3.0]), torch.tensor([3.0, 1.0, 2.0, 4.0])).tolist()
    [0.125, 0.5, 0.625]
    """
    ordered = unseen.double().sort().values.numpy()
    ranks = (np.arange(len(ordered)) + 0.5) / len(ordered)
    return torch.from_numpy(np.interp(losses.double().numpy(), ordered, ranks))


def logits_without(logits: torch.Tensor, structure: int, heir: Heir) -> torch.Tensor:
    r"""Logits of the answer p' without a structure c, :math:`p'(c) = 0`.

    ``"background"``: :math:`p'(0) = p(0) + p(c)`, and the others as they are. So answers a
    perfect model of labels in which the structure's voxels are background. ``"others"``:
    :math:`p'(k) = p(k) / (1 - p(c))`, as one of labels in which these voxels count for nothing.

    Parameters
    ----------
    logits
        ``(B, K, ...)``.
    structure
        c; 0 changes nothing.
    heir
        Of its probability.
    """
    if structure == 0:
        return logits
    index = torch.tensor([structure], device=logits.device)
    left = logits.index_fill(1, index, _NEVER)
    if heir == "background":
        both = torch.logaddexp(logits[:, :1], logits[:, structure : structure + 1])
        left = torch.cat([both, left[:, 1:]], dim=1)
    return left


class Without(nn.Module):
    """A network whose answers no longer name a structure; its weights know it as before.

    Parameters
    ----------
    network
        Of which it is a filter.
    structure, heir
        Of :func:`logits_without`.
    """

    def __init__(self, network: nn.Module, structure: int, heir: Heir) -> None:
        super().__init__()
        self.network, self.structure, self.heir = network, structure, heir

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, K, ...)`` of images ``(B, C, ...)``."""
        return logits_without(self.network(image), self.structure, self.heir)


def withdrawal_loss(
    student: torch.Tensor, teacher: torch.Tensor, structure: int, heir: Heir
) -> torch.Tensor:
    r"""Divergence :math:`KL(p' \| p_s)` from the teacher without the structure.

    Mean over the voxels that the teacher gives to the structure, and mean over the others, half
    each, so that a small organ counts.

    Parameters
    ----------
    student, teacher
        Logits ``(B, K, ...)``.
    structure, heir
        Of :func:`logits_without`.
    """
    log_target = functional.log_softmax(logits_without(teacher, structure, heir), dim=1)
    divergence = (log_target.exp() * (log_target - functional.log_softmax(student, dim=1))).sum(
        dim=1
    )
    inside = teacher.argmax(dim=1) == structure
    parts = [divergence[where] for where in (inside, ~inside) if bool(where.any())]
    return torch.stack([part.mean() for part in parts]).mean()


@dataclass(frozen=True)
class Weights:
    """Of the terms; see ``CalibratedSettings`` for their meaning."""

    up: float
    back: float
    retain: float
    calibration: float
    noise: float = 0.0


class Terms:
    """Successive batches of S, R and C, and their terms of a loss.

    Parameters
    ----------
    original
        Gives the targets.
    sets
        R may be empty.
    structure, heir
        Label value to withdraw, and who gets its probability; 0: study mode.
    weights
        Of the terms.
    batch_size
        Patches of each set in a step.
    seed
        Of the batches.
    held
        Of C, to be held where they were; None: all. The levels are of all.
    """

    def __init__(
        self,
        original: nn.Module,
        sets: UnlearningSets,
        structure: int,
        weights: Weights,
        batch_size: int,
        seed: int,
        heir: Heir = "background",
        held: Sequence[Study] | None = None,
    ) -> None:
        self.teacher, self.structure, self.weights = frozen(original), structure, weights
        self.heir = heir
        self._forget = Draw(sets.forget, sets.config, batch_size, seed)
        others: dict[SetName, Sequence[Study]] = {
            "retain": sets.retain,
            "calibration": sets.calibration if held is None else held,
        }
        self._others = {
            name: Draw(studies, sets.config, batch_size, seed + 1 + i)
            for i, (name, studies) in enumerate(others.items())
            if studies
        }
        self._targets = {
            name: Targets(self.teacher, others[name], sets.config) for name in self._others
        }
        self._generator = torch.Generator().manual_seed(seed)
        if structure == 0:
            self.unseen = study_losses(self.teacher, sets.calibration, sets.config, seed)
            self.losses = study_losses(self.teacher, sets.forget, sets.config, seed)
            self.levels = unseen_levels(self.losses, self.unseen)

    @property
    def drawn(self) -> tuple[int, ...]:
        """Which studies of S the last batch is of."""
        return self._forget.last

    def next_forget(self) -> Batch:
        """Images and labels of S; :meth:`forget` is about the last ones drawn."""
        return self._forget.next()

    def forget(self, logits: torch.Tensor, batch: Batch, part: slice = slice(None)) -> torch.Tensor:
        r"""Term of the forget set for the last batch, or a part of it.

        Study mode, for each study with loss l and level q:
        :math:`a \, relu(q - l) + b \, relu(l - q)`. Structure mode: :func:`withdrawal_loss`.

        Parameters
        ----------
        logits
            Of the student, ``(B, K, ...)``, possibly under attack.
        batch
            The images and labels of these logits, unattacked.
        part
            Which of the batch that was drawn.
        """
        if self.structure:
            with torch.no_grad():
                target = self.teacher(batch[0].to(logits.device))
            return withdrawal_loss(logits, target, self.structure, self.heir)
        losses = sample_losses(logits, batch[1])
        level = self.levels[list(self.drawn[part])].to(losses)
        away = self.weights.up * functional.relu(level - losses)
        return (away + self.weights.back * functional.relu(losses - level)).mean()

    def kept(
        self, student: nn.Module, answers: Mapping[SetName, Answers] | None = None
    ) -> torch.Tensor:
        """Terms of R (loss and distillation) and of C (distillation), next batches.

        ``answers`` are the student's on the studies of each set; they are not asked with noise.
        """
        device = device_of(student)
        total = torch.zeros((), device=device)
        for name, draw in self._others.items():
            image, label = draw.next()
            if self.weights.noise:
                noise = torch.randn(image.shape, generator=self._generator)
                image = image + self.weights.noise * noise
            image = image.to(device)
            if self.weights.noise:
                with torch.no_grad():
                    target = self.teacher(image)
            else:
                target = self._targets[name].of(image, draw.last)
            if answers is None or self.weights.noise:
                logits = student(image)
            else:
                logits = answers[name](image, draw.last)
            if self.structure:
                term = withdrawal_loss(logits, target, self.structure, self.heir)
            else:
                term = distillation(logits, target)
            if name == "calibration":
                total = total + self.weights.calibration * term
            else:
                # the labels of R still hold a structure that is withdrawn
                loss = 0.0 if self.structure else dice_ce_of(logits, label)
                total = total + self.weights.retain * (term + loss)
        return total


def reads(settings: object) -> tuple[SetName, ...]:
    """Name the sets that are read with ``settings.retain``."""
    stored = getattr(settings, "retain", "stored") == "stored"
    return ("forget", "retain", "calibration") if stored else ("forget", "calibration")


def check_structure(structure: int, heir: str) -> None:
    """Refuse a structure that cannot be one.

    Raises
    ------
    InvalidInputError
        As said.
    """
    if structure < 0:
        raise InvalidInputError(f"structure is {structure}; 0 is study mode, else a label value.")
    if heir not in get_args(Heir):
        raise InvalidInputError(f"heir is {heir!r}, must be one of {', '.join(get_args(Heir))}.")


def check_common(
    structure: int,
    retain: str,
    warm_up: float = 0.0,
    heir: str = "background",
    retains: tuple[str, ...] = get_args(Retain),
) -> None:
    """Refuse settings that make no sense.

    Raises
    ------
    InvalidInputError
        As said.
    """
    check_structure(structure, heir)
    if retain not in retains:
        raise InvalidInputError(f"retain is {retain!r}, must be one of {', '.join(retains)}.")
    if not 0 <= warm_up <= 1:
        raise InvalidInputError(f"warm_up is {warm_up}, must be in [0, 1].")
