"""Bring the forget losses to the unseen level and no further, by an adapter on intact weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from segunlearn.unlearning.calibration import Heir, Retain, Terms, Weights, check_common
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    descend,
    device_of,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.lora import Layers, LoraSettings, adapt
from segunlearn.unlearning.sets import SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget", "retain", "calibration")


@dataclass(frozen=True)
class CalibratedSettings:
    """Where to, what is held, and the loop.

    Parameters
    ----------
    structure
        Label value to withdraw from the model; 0: the studies are to look unseen.
    heir
        Who gets the structure's probability; see ``calibration.logits_without``.
    layers, rank, alpha
        Of the adapter; the head is trained whole.
    up, back
        a and b: pull of forget losses up to the unseen level, and back down to it.
    retain_weight, calibration_weight
        Of loss and distillation on R, and of distillation on C.
    noise
        Standard deviation added to the images of R and C, in units of the normalised image.
    tolerance
        The loop ends early when the mean forget loss is this near to its level and the mean loss
        on C no more above the original's.
    retain
        ``"none"``: without R, which is then not read.
    steps, learning_rate, batch_size, seed
        Of the loop; patches of each set.
    """

    structure: int = 0
    heir: Heir = "background"
    layers: Layers = "decoder"
    rank: int = 8
    alpha: float = 16.0
    up: float = 3.0
    back: float = 0.3
    retain_weight: float = 1.0
    calibration_weight: float = 3.0
    noise: float = 0.0
    tolerance: float = 0.02
    retain: Retain = "stored"
    steps: int = 16
    learning_rate: float = 3e-3
    batch_size: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.structure, self.retain, heir=self.heir)


def calibrated(
    network: nn.Module,
    sets: UnlearningSets,
    settings: CalibratedSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Minimise a loss that is 0 where forgotten studies look unseen and unseen ones as before.

    .. math::
        \frac{1}{|S|} \sum_i a \, relu(q_i - l_i) + b \, relu(l_i - q_i)
        + w_R (L(R) + KL(\theta_o; R)) + w_C KL(\theta_o; C)

    with :math:`q_i` the rank-matched quantile of the original's losses on C. With a structure c
    every term is :math:`KL(p' \| p_s)` with p' of ``calibration.logits_without``.

    For the level ``hidden``: outputs no longer show the studies, the weights still know them. The
    loss is our own; forgetting by an adapter on intact weights as in arXiv 2511.16574, the class
    filter as in LIRF, arXiv 2207.08224.
    """
    weights = Weights(
        settings.up,
        settings.back,
        settings.retain_weight,
        settings.calibration_weight,
        settings.noise,
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

    def objective(_: int) -> torch.Tensor:
        batch = terms.next_forget()
        logits = student(batch[0].to(device_of(student)))
        terms.note(logits, batch)
        return terms.forget(logits, batch) + terms.kept(student)

    with seeded(settings.seed):
        descend(
            student,
            objective,
            Steps(settings.steps, settings.learning_rate),
            phase="calibrate",
            after_step=lambda _: terms.reached(settings.tolerance),
            report=report,
            cancel=cancel,
        )
    return adapted.merged()
