"""The small in-memory loop that unlearning methods and attacks share, and its losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from segunlearn.errors import CancelledError, InvalidInputError, SegUnlearnError
from segunlearn.inference import Segmenter
from segunlearn.networks import ModelConfig
from segunlearn.records.runs import Progress
from segunlearn.training import make_loss
from segunlearn.transforms import Grid, Preprocessed
from segunlearn.unlearning.sets import Study, of_one_patch

Report = Callable[[Progress], None]
Cancel = Callable[[], bool]
#: Index of a part of a batch; ``WHOLE`` is all of it.
Part = tuple[slice, ...]
WHOLE: Final[Part] = (slice(None),)
#: Tensors that are kept of a study.
Levels = list[torch.Tensor]
#: ``(network, steps done, steps in all)`` to figures that the progress shows beside the loss.
Watch = Callable[[nn.Module, int, int], Mapping[str, float]]

_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)

#: Studies that go through the network together when they are scored.
_SCORED_TOGETHER = 16


def no_report(_: Progress) -> None:
    """Report to nobody."""


def never() -> bool:
    """Go on."""
    return False


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Let somebody look at the network after each step of every descent inside."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


@dataclass(frozen=True)
class Steps:
    """How the loop descends.

    Parameters
    ----------
    count
        Optimiser steps.
    learning_rate
        Peak rate.
    schedule
        ``"constant"``, or ``"one_cycle"`` (Smith, arXiv 1708.07120): up for 30 %, then down.
    optimiser
        Adam without weight decay, or plain SGD.
    gradient_clip
        Largest norm of the gradient.
    """

    count: int
    learning_rate: float
    schedule: Literal["constant", "one_cycle"] = "constant"
    optimiser: Literal["adam", "sgd"] = "adam"
    gradient_clip: float = 12.0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.learning_rate < math.inf or self.gradient_clip <= 0:
            raise InvalidInputError(f"steps need a count >= 1 and a rate > 0, got {self}.")


def descend(
    network: nn.Module,
    objective: Callable[[int], torch.Tensor],
    steps: Steps,
    *,
    phase: str = "unlearn",
    mask: dict[str, torch.Tensor] | None = None,
    after_step: Callable[[int], bool] | None = None,
    report: Report = no_report,
    cancel: Cancel = never,
) -> int:
    """Minimise an objective over a network's weights, in place.

    Parameters
    ----------
    network
        Trained; left in training mode.
    objective
        Step number to loss.
    steps
        How.
    phase
        Name in the progress.
    mask
        Parameter name to 0/1 tensor: weights with 0 do not move.
    after_step
        Called with the number of steps done; True ends the loop.

    Returns
    -------
    int
        Steps done.

    Raises
    ------
    CancelledError
        ``cancel`` said so.
    SegUnlearnError
        The loss is no longer a number.
    """
    network.train()
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    if not named:
        raise InvalidInputError("the network has no weight that may be changed.")
    weights = [p for _, p in named]
    make = torch.optim.Adam if steps.optimiser == "adam" else torch.optim.SGD
    optimiser = make(weights, lr=steps.learning_rate)
    scheduler = None
    if steps.schedule == "one_cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, steps.learning_rate, total_steps=max(2, steps.count), cycle_momentum=False
        )
    for step in range(steps.count):
        if cancel():
            raise CancelledError(f"the {phase} was stopped at step {step}; nothing was kept of it.")
        loss = objective(step)
        if not torch.isfinite(loss):
            raise SegUnlearnError(
                f"{phase}: the loss became {loss.item()} at step {step}. Lower the learning rate "
                f"(it is {steps.learning_rate:g})."
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if mask is not None:
            for name, weight in named:
                if weight.grad is not None:
                    weight.grad.mul_(mask[name])
        nn.utils.clip_grad_norm_(weights, steps.gradient_clip)
        optimiser.step()
        if scheduler is not None:
            scheduler.step()
        watch = _WATCH.get()
        figures = watch(network, step + 1, steps.count) if watch is not None else {}
        report(Progress(phase, step + 1, steps.count, {"loss": loss.item(), **figures}))
        if after_step is not None and after_step(step + 1):
            return step + 1
    return steps.count


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fix torch's random numbers inside, and leave the global state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def copy_of(network: nn.Module) -> nn.Module:
    """Make a copy whose weights may all change; the network itself stays untouched."""
    other = copy.deepcopy(network)
    for weight in other.parameters():
        weight.requires_grad_(True)
    return other


def frozen(network: nn.Module) -> nn.Module:
    """Make a copy that gives targets: evaluation mode, no gradients."""
    other = copy.deepcopy(network).eval()
    for weight in other.parameters():
        weight.requires_grad_(False)
    return other


def device_of(network: nn.Module) -> torch.device:
    """Where the network's weights are."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def dice_ce(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Foreground soft Dice plus cross-entropy of a batch; the training loss."""
    image, label = (t.to(device_of(network)) for t in batch)
    return cast(torch.Tensor, _LOSS(network(image), label))


_LOSS = make_loss()


def dice_ce_of(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute the same from logits ``(B, K, ...)`` and labels ``(B, 1, ...)``."""
    return cast(torch.Tensor, _LOSS(logits, label.to(logits.device)))


def sample_losses(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute the same for each sample of the batch alone, ``(B,)``."""
    label = label.to(logits.device)
    return torch.stack([_LOSS(x[None], y[None]) for x, y in zip(logits, label, strict=True)])


def distillation(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0
) -> torch.Tensor:
    r"""KL divergence of tempered softmaxes, :math:`T^2 KL(p_t \| p_s)`, mean over voxels.

    Hinton et al., arXiv 1503.02531.

    Parameters
    ----------
    student, teacher
        Logits ``(B, K, ...)``.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    return divergence.mean() * temperature**2


def distil_step(
    student: nn.Module, teacher: nn.Module, image: torch.Tensor, temperature: float = 2.0
) -> torch.Tensor:
    """``distillation`` of a batch of images, the teacher without gradient."""
    image = image.to(device_of(student))
    with torch.no_grad():
        target = teacher(image)
    return distillation(student(image), target, temperature)


class MadeOnce:
    """What is made of each study that a :class:`Draw` gives, made at its first draw and kept.

    Only for studies of exactly one patch, which give the same patch at every draw.

    Parameters
    ----------
    make
        Images ``(B, C, ...)`` to what is made of each, B times some tensors.
    most
        Bytes that are kept; what does not fit is made again.
    """

    def __init__(
        self, make: Callable[[torch.Tensor], Iterable[Levels]], most: float = math.inf
    ) -> None:
        self._make, self._room = make, most
        self._kept: dict[int, Levels] = {}

    def of(self, image: torch.Tensor, drawn: Sequence[int]) -> list[Levels]:
        """Give what is made of each sample of a batch, of the studies of these numbers."""
        new = [i for i, number in enumerate(drawn) if number not in self._kept]
        fresh = dict(zip(new, self._make(image[new]), strict=True)) if new else {}
        found = [fresh.get(i) or self._kept[number] for i, number in enumerate(drawn)]
        for i, levels in fresh.items():
            size = sum(x.nbytes for x in levels)
            if drawn[i] not in self._kept and size <= self._room:
                self._kept[drawn[i]] = levels
                self._room -= size
        return found


class Targets:
    """The logits of a frozen network on the patches that a :class:`Draw` gives.

    Those of studies of exactly one patch are kept, which saves a quarter of what a distilling step
    costs.
    """

    def __init__(self, teacher: nn.Module, studies: Sequence[Study], config: ModelConfig) -> None:
        self._teacher = teacher
        self._keeps = of_one_patch(studies, config)
        self._kept = MadeOnce(lambda images: [[logits] for logits in teacher(images)])

    def of(self, image: torch.Tensor, drawn: Sequence[int], part: Part = WHOLE) -> torch.Tensor:
        """Logits ``(B, K, ...)`` without gradient.

        Parameters
        ----------
        image
            The batch, ``(B, C, ...)``, on the network's device.
        drawn
            Number of each sample's study; see ``Draw.last``.
        part
            Index of the part of the batch that is wanted; see ``part_of``.
        """
        with torch.no_grad():
            if not self._keeps:
                return cast(torch.Tensor, self._teacher(image[part]))
            return torch.stack([logits for (logits,) in self._kept.of(image, drawn)])[part]


def part_of(shape: Sequence[int], rng: np.random.Generator) -> Part:
    """Choose a part of a batch ``(B, C, X, Y[, Z])`` at random: about a third of its voxels.

    The longest axes are halved, one after the other, until 40 % of the voxels or less are left. A
    side stays a multiple of 16, by which BasicUNet divides it, and two such pieces remain: a single
    value cannot be normalised.
    """
    whole, size = shape[2:], list(shape[2:])
    for axis in sorted(range(len(size)), key=lambda a: -size[a]):
        smaller = [*size[:axis], min(size[axis], -(-size[axis] // 32) * 16), *size[axis + 1 :]]
        if math.prod(size) > 0.4 * math.prod(whole) and math.prod(smaller) > 16 ** len(size):
            size = smaller
    starts = [int(rng.integers(0, n - m + 1)) for n, m in zip(whole, size, strict=True)]
    return (slice(None), slice(None), *(slice(a, a + m) for a, m in zip(starts, size, strict=True)))


def log_probabilities(
    network: nn.Module, studies: Sequence[Study], config: ModelConfig
) -> Iterator[torch.Tensor]:
    """Logarithm of the probability of each class, ``(K, X, Y, Z)`` for each study, on the CPU.

    Studies of exactly one patch go through the network in batches; larger ones by sliding window,
    each when it is asked for: probabilities of a few whole volumes fill the memory.
    """
    for first in range(0, len(studies), _SCORED_TOGETHER):
        group = studies[first : first + _SCORED_TOGETHER]
        if of_one_patch(group, config):
            yield from _scored_together(network, group, config)
        else:
            yield from (_scored_alone(network, study, config) for study in group)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _scored_together(
    network: nn.Module, group: Sequence[Study], config: ModelConfig
) -> list[torch.Tensor]:
    axis = config.slice_axis
    with _evaluating(network), torch.no_grad():
        images = torch.stack([s.image for s in group]).to(device_of(network))
        images = images if axis is None else images.squeeze(axis + 2)
        logs = functional.log_softmax(network(images).float(), dim=1).cpu()
    return list(logs if axis is None else logs.unsqueeze(axis + 2))


def _scored_alone(network: nn.Module, study: Study, config: ModelConfig) -> torch.Tensor:
    shape = study.label.shape
    size = (shape[0], shape[1], shape[2])
    grid = Grid(size, np.eye(4), (0, 1, 2), (False, False, False), size)
    with _evaluating(network):
        segmenter = Segmenter(network, config, device_of(network))
        probabilities = segmenter.probabilities_of(Preprocessed(study.image, grid))
    return probabilities.cpu().clamp_min(1e-12).log()


def masks_of(network: nn.Module, studies: Sequence[Study], config: ModelConfig) -> torch.Tensor:
    """Predicted label maps of studies of one shape, ``(B, X, Y, Z)`` int64."""
    return torch.stack([p.argmax(dim=0) for p in log_probabilities(network, studies, config)])


def dice_of(predicted: torch.Tensor, label: torch.Tensor, values: Iterable[int]) -> float:
    """Mean hard Dice over the structures; a structure absent from both counts 1."""
    scores = []
    for value in values:
        found, truth = predicted == value, label == value
        size = float(found.sum() + truth.sum())
        scores.append(2 * float((found & truth).sum()) / size if size else 1.0)
    return float(np.mean(scores))


def dice_by_person(
    network: nn.Module, studies: Sequence[Study], config: ModelConfig, values: Sequence[int]
) -> dict[str, float]:
    """Mean hard Dice of each person: over structures of these label values, then studies."""
    persons: dict[str, list[float]] = {}
    for study, logs in zip(studies, log_probabilities(network, studies, config), strict=True):
        score = dice_of(logs.argmax(dim=0), study.label, values)
        persons.setdefault(study.person, []).append(score)
    return {person: float(np.mean(scores)) for person, scores in persons.items()}


def mean_dice(network: nn.Module, studies: Sequence[Study], config: ModelConfig) -> float:
    """Mean over persons of ``dice_by_person``, of every structure."""
    values = tuple(config.label_values.values())
    return float(np.mean(list(dice_by_person(network, studies, config, values).values())))
