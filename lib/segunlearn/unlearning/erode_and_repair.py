"""Throw most of the weights' knowledge away, and repair the rest on the retain set."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    copy_of,
    descend,
    dice_ce,
    distil_step,
    frozen,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("retain",)


@dataclass(frozen=True)
class ErodeAndRepairSettings:
    """How much is kept, and how the rest is repaired.

    Parameters
    ----------
    keep
        k: share of the old weights, in [0, 1). In the pilot 0.5 kept 46 % of the gap, 0.3 kept 13
        to 24 %, and 0 (a fresh start with a teacher) none.
    epochs, learning_rate, batch_size
        Of the repair: passes over R, peak of a one-cycle schedule, patches of a step.
    distillation_weight, temperature
        Of the divergence to the original on R.
    key
        64 hexadecimal digits from which the fresh weights are drawn; empty: made from the seed,
        which is enough where nobody is to be kept from undoing the erosion.
    seed
        Of the batches.
    """

    keep: float = 0.3
    epochs: int = 15
    learning_rate: float = 3e-3
    batch_size: int = 3
    distillation_weight: float = 1.0
    temperature: float = 2.0
    key: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.keep < 1 or self.epochs < 1 or self.distillation_weight < 0:
            raise InvalidInputError(
                "erode and repair needs keep in [0, 1), epochs >= 1 and a weight >= 0."
            )
        if self.key and (len(self.key) != 64 or not set(self.key) <= set("0123456789abcdef")):
            raise InvalidInputError("the key must be 64 hexadecimal digits (256 bits).")


def erode_and_repair(
    network: nn.Module,
    sets: UnlearningSets,
    settings: ErodeAndRepairSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Start from :math:`W = k W_0 + (1 - k) P` and minimise :math:`L(R) + w KL(\theta_o; R)`.

    Shrink and perturb (Ash & Adams, arXiv 1910.08475) with P a fresh initialisation instead of
    small noise. It never reads the forget set: what it takes away is whatever the retain set does
    not bring back.
    """
    student, teacher = copy_of(network), frozen(network)
    key = bytes.fromhex(settings.key) or hashlib.sha256(str(settings.seed).encode()).digest()
    fresh = keyed_weights(student, key)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            weight.mul_(settings.keep).add_((1 - settings.keep) * fresh[name].to(weight.device))
    draw = Draw(sets.retain, sets.config, settings.batch_size, settings.seed)
    count = max(2, -(-settings.epochs * len(sets.retain) // settings.batch_size))

    def objective(_: int) -> torch.Tensor:
        batch = draw.next()
        kept = distil_step(student, teacher, batch[0], settings.temperature)
        return dice_ce(student, batch) + settings.distillation_weight * kept

    with seeded(settings.seed):
        steps = Steps(count, settings.learning_rate, "one_cycle")
        descend(student, objective, steps, phase="repair", report=report, cancel=cancel)
    return student.eval()


def keyed_weights(network: nn.Module, key: bytes) -> dict[str, torch.Tensor]:
    r"""Fresh weights as torch draws them, from the ChaCha20 stream of a key.

    Convolutions uniform in :math:`\pm 1/\sqrt{\text{fan in}}` (torch's default), normalisation
    layers 1 and 0. The same key gives the same weights on every machine; without it they are as
    good as random.

    Parameters
    ----------
    key
        32 bytes.

    Returns
    -------
    dict
        Parameter name to float32 tensor of the parameter's shape.
    """
    drawn: dict[str, torch.Tensor] = {}
    layers = dict(network.named_modules())
    for name, weight in network.named_parameters():
        layer = layers[name.rpartition(".")[0]]
        main = layer.weight
        if not isinstance(main, torch.Tensor) or main.ndim < 2:  # a normalisation
            drawn[name] = torch.full_like(weight, float(name.endswith("weight")), device="cpu")
            continue
        bound = 1 / math.sqrt(main[0].numel())
        nonce = hashlib.sha256(name.encode()).digest()[:16]
        stream = (
            Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(4 * weight.numel()))
        )
        uniform = np.frombuffer(stream, dtype="<u4").astype(np.float64) / 2**32
        values = ((2 * uniform - 1) * bound).astype(np.float32)
        drawn[name] = torch.from_numpy(values).reshape(weight.shape)
    return drawn
