"""Bring the forget losses to the unseen level and no further, from the intact weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import nn

from segunlearn.errors import InvalidInputError
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
from segunlearn.unlearning.lora import Layers, LoraSettings, adapt, only
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
        Of a structure: who gets its probability; see ``calibration``.
    layers, rank, alpha
        What changes. Rank 0: all weights of these layers. Above: an adapter on them, and the head
        whole. What a network knows of studies sits deep: changing ``"bottleneck"`` (the two lowest
        steps down and up) costs unseen people least.
    up, back
        a and b: pull of forget losses up to the unseen level, and back down to it.
    beyond
        Added to each level. A loop as short as this one stays that much below.
    retain_weight, calibration_weight
        Of loss and distillation on R, and of distillation on C.
    noise
        Standard deviation added to the images of R and C, in units of the normalised image.
    unseen
        Studies of C that are read, at most: for the levels and to be held.
    tolerance
        The loop ends early when the mean forget loss is this near to its level and the mean loss
        on C no more above the original's; None: never.
    retain
        ``"none"``: without R, which is then not read.
    steps, learning_rate, batch_size, seed
        Of the loop, one cycle; patches of each set.

    Notes
    -----
    Chosen on two splits of the hippocampus that are not reported.
    """

    structure: int = 0
    heir: Heir = "background"
    layers: Layers = "bottleneck"
    rank: int = 0
    alpha: float = 16.0
    up: float = 3.0
    back: float = 0.3
    beyond: float = 0.03
    retain_weight: float = 1.0
    calibration_weight: float = 6.5
    noise: float = 0.0
    unseen: int = 8
    tolerance: float | None = None
    retain: Retain = "none"
    steps: int = 22
    learning_rate: float = 8e-3
    batch_size: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.structure, self.retain, heir=self.heir)
        if self.rank < 0 or self.unseen < 1:
            raise InvalidInputError("calibrated needs a rank >= 0 and at least one unseen study.")
        if self.structure and self.layers == "bottleneck":
            raise InvalidInputError(
                "a structure does not leave by the deepest layers: give layers 'decoder' and a "
                "rank, 8 for instance."
            )


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
    order = np.random.default_rng(settings.seed).permutation(len(sets.calibration))
    held = tuple(sets.calibration[i] for i in order[: settings.unseen])
    terms = Terms(
        network,
        replace(sets, calibration=held),
        settings.structure,
        weights,
        settings.batch_size,
        settings.seed,
        settings.heir,
    )
    if settings.structure == 0:
        terms.levels = terms.levels + settings.beyond
    adapted = None
    if settings.rank:
        adapter = LoraSettings(settings.rank, settings.alpha, settings.layers)
        adapted = adapt(network, adapter, settings.seed)
    student = adapted.network if adapted else only(network, settings.layers)
    enough = settings.tolerance
    terms.noted = terms.noted and enough is not None

    def objective(_: int) -> torch.Tensor:
        batch = terms.next_forget()
        logits = student(batch[0].to(device_of(student)))
        terms.note(logits, batch)
        return terms.forget(logits, batch) + terms.kept(student)

    with seeded(settings.seed):
        descend(
            student,
            objective,
            Steps(settings.steps, settings.learning_rate, "one_cycle"),
            phase="calibrate",
            after_step=None if enough is None else lambda _: terms.reached(enough),
            report=report,
            cancel=cancel,
        )
    return adapted.merged() if adapted else student.requires_grad_(True).eval()
