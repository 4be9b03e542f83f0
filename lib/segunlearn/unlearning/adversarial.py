"""Forget under attack: the worst input, or the few training steps, that bring the masks back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.calibration import Batch, Heir, Retain, Terms, Weights, check_common
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    descend,
    device_of,
    dice_ce_of,
    distillation,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.lora import Layers, LoraSettings, adapt
from segunlearn.unlearning.sets import SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget", "retain", "calibration")
Attack = Literal["fgsm", "pgd", "relearn", "fgsm+relearn"]

#: One-step attacks overshoot the bound and are clipped to it (Wong et al., arXiv 2001.03994).
_OVERSHOOT: Final = 1.25


@dataclass(frozen=True)
class AdversarialSettings:
    """The attack, what is held, and the loop.

    Parameters
    ----------
    structure
        Label value to withdraw from the model; 0: the studies are to look unseen.
    heir
        Who gets the structure's probability; see ``calibration.logits_without``.
    attack
        ``"fgsm"``: one step on the input; ``"pgd"``: ``pgd_steps`` steps; ``"relearn"``: SGD steps
        on the weights, the inner loop of MAML; or two of them.
    epsilon
        Bound of the input's change, in units of the normalised image.
    pgd_steps
        Of PGD.
    relearn_steps, relearn_rate
        Of the attacker on the weights.
    warm_up
        Share of steps before the first attack.
    layers, rank, alpha, up, back, retain_weight, calibration_weight, retain
        See ``CalibratedSettings``.
    steps, learning_rate, batch_size, seed
        Of the outer loop.
    """

    structure: int = 0
    heir: Heir = "background"
    attack: Attack = "fgsm"
    epsilon: float = 0.1
    pgd_steps: int = 3
    relearn_steps: int = 2
    relearn_rate: float = 0.02
    warm_up: float = 0.2
    layers: Layers = "decoder"
    rank: int = 8
    alpha: float = 16.0
    up: float = 3.0
    back: float = 0.3
    retain_weight: float = 1.0
    calibration_weight: float = 3.0
    retain: Retain = "stored"
    steps: int = 30
    learning_rate: float = 2e-3
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.structure, self.retain, self.warm_up, heir=self.heir)
        if self.attack not in get_args(Attack):
            raise InvalidInputError(f"no attack {self.attack!r}: {', '.join(get_args(Attack))}.")
        if not 0 < self.epsilon < math.inf or self.pgd_steps < 1 or self.relearn_steps < 1:
            raise InvalidInputError("an attack needs epsilon > 0 and at least one step.")
        if not 0 < self.relearn_rate < math.inf:
            raise InvalidInputError(f"relearn_rate is {self.relearn_rate}, must be above 0.")


def adversarial(
    network: nn.Module,
    sets: UnlearningSets,
    settings: AdversarialSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Forget clean inputs, and what an attacker makes of them or of the weights.

    .. math::
        \min_\phi L_S(\phi; x) + L_S(\phi; x + \delta^*) + L_S(\phi^*; x_q) + \text{kept}, \quad
        \delta^* = \arg\min_{|\delta| \le \epsilon} KL(\theta_o(x) \| \phi(x + \delta)), \quad
        \phi^* = \phi - a \nabla L(\phi; x_s)

    AdvUnlearn (arXiv 2405.15234) moved to a segmentation UNet: the inner problem makes the student
    say again what the original said, by the input (FGSM, arXiv 1412.6572; PGD, arXiv 1706.06083)
    or by a few weight steps on half of the batch, judged on the other half (first-order MAML,
    arXiv 1703.03400; as in TAR, arXiv 2408.00761). :math:`L_S` and the kept terms are those of
    ``calibrated``; the first steps go without attack.
    """
    weights = Weights(
        settings.up, settings.back, settings.retain_weight, settings.calibration_weight
    )
    terms = Terms(
        network,
        sets,
        settings.structure,
        weights,
        settings.batch_size,
        settings.seed,
        settings.heir,
    )
    adapter = LoraSettings(settings.rank, settings.alpha, settings.layers)
    adapted = adapt(network, adapter, settings.seed)
    student = adapted.network
    generator = torch.Generator().manual_seed(settings.seed)
    attacks = settings.attack.split("+")

    def objective(step: int) -> torch.Tensor:
        batch = terms.next_forget()
        image = batch[0].to(device_of(student))
        total = terms.forget(student(image), batch) + terms.kept(student)
        if step < settings.warm_up * settings.steps:
            return total
        if "fgsm" in attacks or "pgd" in attacks:
            inner = inner_loss(student, terms, batch)
            count = settings.pgd_steps if "pgd" in attacks else 1
            worst = attacked(image, inner, settings.epsilon, count, generator)
            total = total + terms.forget(student(worst), batch)
        if "relearn" in attacks:
            total = total + _after_relearning(student, terms, batch, settings)
        return total

    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate)
        descend(student, objective, steps, phase="adversarial", report=report, cancel=cancel)
    return adapted.merged()


def inner_loss(
    student: nn.Module, terms: Terms, batch: Batch
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make what the attacker on the input lowers: distance to the original's answer.

    In structure mode: minus the log-probability of the structure on its voxels.
    """
    image, label = (t.to(device_of(student)) for t in batch)
    with torch.no_grad():
        target = terms.teacher(image)
    inside = label[:, 0] == terms.structure

    def loss(attacked_image: torch.Tensor) -> torch.Tensor:
        logits = student(attacked_image)
        if terms.structure and bool(inside.any()):
            return -functional.log_softmax(logits, dim=1)[:, terms.structure][inside].mean()
        return distillation(logits, target)

    return loss


def attacked(
    image: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Find an input near ``image`` with a low loss, by signed gradient steps.

    Starts at a random point of the box; one step of 1.25 epsilon (FGSM), several of 2.5 epsilon
    over their number (PGD), each clipped to the box, at last to each image's own intensities.

    Parameters
    ----------
    image
        ``(B, C, ...)``.
    loss
        Of such a tensor.
    epsilon
        Half the side of the box.
    steps
        At least 1.
    generator
        Of the start.
    """
    size = _OVERSHOOT * epsilon * (1 if steps == 1 else 2 / steps)
    start = torch.rand(image.shape, generator=generator).to(image)
    change = (2 * start - 1) * epsilon
    for _ in range(steps):
        change.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(image + change), change)
        change = (change.detach() - size * gradient.sign()).clamp(-epsilon, epsilon)
    space = tuple(range(2, image.ndim))
    low, high = image.amin(dim=space, keepdim=True), image.amax(dim=space, keepdim=True)
    return (image + change).clamp(low, high).detach()


def relearned(network: nn.Module, batch: Batch, steps: int, rate: float) -> dict[str, torch.Tensor]:
    r"""Weights after SGD steps of the task loss, by name, first order.

    :math:`\phi' = \phi - a \sum \nabla L`, with the gradients taken as constants, so that the
    gradient of a loss at :math:`\phi'` goes to :math:`\phi` unchanged. All weights move, frozen
    ones too: an attacker who has the model is not bound to the adapter.

    Parameters
    ----------
    batch
        What the attacker has.
    steps, rate
        a is ``rate``.
    """
    image, label = (t.to(device_of(network)) for t in batch)
    start = dict(network.named_parameters())
    moved: Mapping[str, torch.Tensor] = {n: w.detach() for n, w in start.items()}
    for _ in range(steps):
        here = {n: w.detach().requires_grad_(True) for n, w in moved.items()}
        loss = dice_ce_of(functional_call(network, here, (image,)), label)
        gradients = torch.autograd.grad(loss, list(here.values()), materialize_grads=True)
        moved = {
            n: w.detach() - rate * g for (n, w), g in zip(here.items(), gradients, strict=True)
        }
    return {n: w + (moved[n] - w.detach()) for n, w in start.items()}


def _after_relearning(
    student: nn.Module, terms: Terms, batch: Batch, settings: AdversarialSettings
) -> torch.Tensor:
    """Forget term of one half of the batch after an attacker trained on the other."""
    half = max(1, len(batch[0]) // 2)
    support = (batch[0][:half], batch[1][:half])
    part = slice(half, None) if len(batch[0]) > 1 else slice(None)
    query = (batch[0][part], batch[1][part])
    weights = relearned(student, support, settings.relearn_steps, settings.relearn_rate)
    logits = functional_call(student, weights, (query[0].to(device_of(student)),))
    return terms.forget(logits, query, part)
