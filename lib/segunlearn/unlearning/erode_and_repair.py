"""Throw most of the weights' knowledge away, and repair the rest on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.calibration import Heir, Without, check_structure
from segunlearn.unlearning.erosion import (
    RepairSettings,
    check_part_share,
    checked_key,
    eroded,
    key_of,
    repair,
)
from segunlearn.unlearning.loop import Cancel, Report, never, no_report
from segunlearn.unlearning.sets import SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("retain",)


@dataclass(frozen=True)
class ErodeAndRepairSettings:
    """How much is kept, and how the rest is repaired.

    Parameters
    ----------
    keep
        k: share of the old convolutions, in [0, 1). In the pilot 0.5 kept 46 % of the gap, 0.3 kept
        13 to 24 %, and 0 (a fresh start with a teacher) none. Biases and normalisations stay.
    epochs, learning_rate, batch_size
        Of the repair: passes over R, peak of a one-cycle schedule, patches of a step.
    part_share
        Share of the steps, the first, that are taken on parts of the patches; see
        ``loop.part_of``. They cost a third and repair nearly as much.
    distillation_weight, temperature
        Of the divergence to the original on R.
    structure, heir
        Label value to withdraw from the model, and who gets its probability in the original's
        answers; see ``calibration.logits_without``. 0: studies are forgotten.
    key
        64 hexadecimal digits from which the fresh weights are drawn; empty: made from the seed,
        which is enough where nobody is to be kept from undoing the erosion.
    seed
        Of the batches.
    """

    keep: float = 0.4
    epochs: int = 15
    part_share: float = 0.6
    learning_rate: float = 5e-3
    batch_size: int = 3
    distillation_weight: float = 1.0
    temperature: float = 2.0
    structure: int = 0
    heir: Heir = "background"
    key: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.keep < 1 or self.epochs < 1 or self.distillation_weight < 0:
            raise InvalidInputError(
                "erode and repair needs keep in [0, 1), epochs >= 1 and a weight >= 0."
            )
        check_part_share(self.part_share)
        check_structure(self.structure, self.heir)
        checked_key(self.key)


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
    not bring back. A structure is taken out of the labels of R, of the original's answers and out
    of the head.
    """
    key = key_of(settings.key, settings.seed)
    student = eroded(network, key, settings.keep, settings.structure)
    how = RepairSettings.of(settings)
    teacher, sets = (
        Without(network, settings.structure, settings.heir),
        sets.without(settings.structure),
    )
    repair(student, teacher, sets, how, report=report, cancel=cancel)
    return student.eval()
