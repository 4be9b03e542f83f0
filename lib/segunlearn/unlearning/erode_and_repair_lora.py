"""Throw most of the weights' knowledge away, and repair the rest by a low-rank adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.calibration import Heir, Without, check_structure
from segunlearn.unlearning.erosion import (
    Deposit,
    RepairSettings,
    check_part_share,
    checked_key,
    eroded,
    key_of,
    repair,
    residual_of,
    shorten,
)
from segunlearn.unlearning.loop import Cancel, Report, mean_dice, never, no_report
from segunlearn.unlearning.lora import Adapted, LoraSettings, adapt
from segunlearn.unlearning.sets import SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("retain", "calibration")


@dataclass(frozen=True)
class ErodeAndRepairLoraSettings:
    """How much is kept, and how the rest is repaired.

    Parameters
    ----------
    keep
        k: share of the old convolutions, in (0, 1). Biases and normalisations stay.
    epochs, learning_rate, batch_size
        Of the repair: passes over R, peak of a one-cycle schedule, patches of a step.
    part_share
        Share of the steps, the first, that are taken on parts of the patches; see
        ``loop.part_of``. They cost a third and repair nearly as much.
    rank, alpha
        Of the adapter on all 3x3(x3) convolutions; norms, biases and head are trained whole.
    distillation_weight, temperature
        Of the divergence to the original on R.
    structure, heir
        Label value to withdraw from the model, and who gets its probability in the original's
        answers; see ``calibration.logits_without``. 0: studies are forgotten.
    inits
        Repairs from so many keyed fresh weights, of which the best mean Dice on C is kept. With 1
        nothing is chosen, and C is not read.
    key
        64 hexadecimal digits from which the fresh weights are drawn; empty: made from the seed,
        which is enough where nobody is to be kept from undoing the erosion.
    seed
        Of the batches and of the adapter's start.
    """

    keep: float = 0.5
    epochs: int = 18
    part_share: float = 0.75
    learning_rate: float = 1e-2
    batch_size: int = 3
    rank: int = 12
    alpha: float = 24.0
    distillation_weight: float = 1.0
    temperature: float = 2.0
    structure: int = 0
    heir: Heir = "background"
    inits: int = 1
    key: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1 or self.epochs < 1 or self.distillation_weight < 0:
            raise InvalidInputError(
                "erode and repair by LoRA needs keep in (0, 1), epochs >= 1 and a weight >= 0."
            )
        check_part_share(self.part_share)
        if self.inits < 1:
            raise InvalidInputError(f"inits is {self.inits}, must be at least 1.")
        check_structure(self.structure, self.heir)
        checked_key(self.key)
        self.adapter()

    def adapter(self) -> LoraSettings:
        """Where the repair may change what."""
        return LoraSettings(self.rank, self.alpha, "all", norms=True, biases=True)


@dataclass(frozen=True)
class Repaired:
    """A repaired network, and what undoes it.

    Parameters
    ----------
    network
        Merged and self-contained, in evaluation mode.
    adapted
        The eroded base with the repair beside it.
    key
        The one used, 64 hexadecimal digits: with several inits it need not be the one given.
    keep
        k.
    deposit
        What brings the original back together with the key; see ``erosion.restore_from``.
    calibration_dice
        Mean Dice on C of each init, in their order; empty when there was nothing to choose.
    """

    network: nn.Module
    adapted: Adapted
    key: str
    keep: float
    deposit: Deposit
    calibration_dice: tuple[float, ...] = ()


def reads(settings: ErodeAndRepairLoraSettings) -> tuple[SetName, ...]:
    """Name the sets that are read with these settings."""
    return READS if settings.inits > 1 else ("retain",)


def erode_and_repair_lora(
    network: nn.Module,
    sets: UnlearningSets,
    settings: ErodeAndRepairLoraSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Start from :math:`W = k W_0 + (1 - k) P(key)` and repair it by :math:`W + s B A`.

    Shrink and perturb (Ash & Adams, arXiv 1910.08475) with a repair of low rank (Hu et al., arXiv
    2106.09685): A, B, norms, biases and head minimise :math:`L(R) + w KL(\theta_o; R)`, everything
    else stays eroded. It never reads the forget set; a structure is taken out of the labels, of
    the original's answers and of the head. See :func:`repaired` for what undoes it.
    """
    return repaired(network, sets, settings, report, cancel).network


def repaired(
    network: nn.Module,
    sets: UnlearningSets,
    settings: ErodeAndRepairLoraSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> Repaired:
    """Do the same, and also give the adapter and the key that was used.

    Raises
    ------
    UnsupportedNetworkError
        Adapters cannot treat this network; see ``lora.adapt``.
    CancelledError
        ``cancel`` said so.
    """
    how = RepairSettings.of(settings)
    teacher, sets = (
        Without(network, settings.structure, settings.heir),
        sets.without(settings.structure),
    )
    best: tuple[nn.Module, Adapted, str] | None = None
    dices: list[float] = []
    for number in range(settings.inits):
        key = key_of(settings.key, settings.seed, number)
        base = eroded(network, key, settings.keep, settings.structure)
        adapted = adapt(base, settings.adapter(), settings.seed + number)
        phase = f"repair {number + 1} of {settings.inits}" if settings.inits > 1 else "repair"
        repair(adapted.network, teacher, sets, how, phase, report, cancel)
        shorten(adapted)
        merged = adapted.merged()
        if settings.inits > 1:
            dices.append(mean_dice(merged, sets.calibration, sets.config))
        if best is None or dices[-1] > max(dices[:-1]):
            adapted.network.eval()
            best = merged, adapted, key
    if best is None:
        raise InvalidInputError("there is no init to repair.")
    merged, adapted, key = best
    deposit = Deposit.of(adapted)
    rest = residual_of(network, merged, deposit, key, settings.keep)
    deposit = replace(deposit, residual=rest)
    return Repaired(merged, adapted, key, settings.keep, deposit, tuple(dices))
