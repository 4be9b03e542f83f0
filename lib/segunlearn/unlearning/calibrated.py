"""Bring the forget losses to the unseen level and no further, from the intact weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.calibration import (
    Answers,
    Heir,
    Terms,
    Weights,
    check_common,
    study_losses,
    unseen_ranks,
)
from segunlearn.unlearning.hardness import hardness
from segunlearn.unlearning.kept_layers import KeptLayers
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
from segunlearn.unlearning.sets import SetName, Study, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget", "retain", "calibration")

Retained = Literal["ranked", "stored", "none"]

#: Step of the shares that are tried.
_FINE: Final = 0.005
#: Where a set that is harder or easier than others stands: so far above its hardness, and no
#: higher than this: losses beyond those of all unseen people show, too.
_ABOVE: Final = 0.125
_HARDEST: Final = 0.87


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
        whole. What a network knows of studies sits deep: changing ``"bottleneck"`` (the lowest step
        down and the two lowest up) costs unseen people least.
    up, back
        a and b: pull of forget losses up to the unseen level, and back down to it.
    beyond
        Added to each level in the loop, which is so short that it stays below what it aims at.
    standing, rounds, again, furthest
        Another loop of ``again`` steps follows, up to so many loops in all, until the mean rank of
        forget losses among the original's on C is this. The change that was made is then scaled by
        the share at which it is, and by ``furthest`` at most; 0: one loop, and it stays as it is.
        So does that of a structure. Who is unseen loses a little, too: 0.5 is not enough. Of a set
        that is harder or easier than others, its ``hardness`` says where it stands instead.
    retain_weight, calibration_weight
        Of loss and distillation on R, and of distillation on C.
    noise
        Standard deviation added to the images of R and C, in units of the normalised image.
    unseen
        Studies of C that are held, at most. The levels are of all.
    retain
        ``"ranked"``: some of R is read, to know how hard S is; see ``hardness``. ``"stored"``: all
        of R is, to be held where it was, and S counts as hard as others. ``"none"``: so it does,
        and R is not read. For a structure ``"ranked"`` reads none of it, either.
    ranked
        Studies of R that are read for them, at most.
    steps, learning_rate, batch_size, seed
        Of the loop, one cycle; patches of each set.

    Notes
    -----
    Chosen on splits of the hippocampus that are not reported; on the reported ones it was looked
    at five times, as the documentation tells.
    """

    structure: int = 0
    heir: Heir = "background"
    layers: Layers = "bottleneck"
    rank: int = 0
    alpha: float = 16.0
    up: float = 3.0
    back: float = 0.3
    beyond: float = 0.06
    standing: float = 0.6
    rounds: int = 2
    again: int = 10
    furthest: float = 1.25
    retain_weight: float = 1.0
    calibration_weight: float = 6.5
    noise: float = 0.0
    unseen: int = 8
    retain: Retained = "ranked"
    ranked: int = 24
    steps: int = 20
    learning_rate: float = 8e-3
    batch_size: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.structure, self.retain, heir=self.heir, retains=get_args(Retained))
        counts = (self.unseen, self.rounds, self.again, self.ranked)
        if self.rank < 0 or self.furthest < 0 or min(counts) < 1:
            raise InvalidInputError(
                "calibrated needs a rank and furthest >= 0, a round, a step of the next, an unseen "
                "and a ranked study at least."
            )
        if self.structure and self.layers == "bottleneck":
            raise InvalidInputError(
                "a structure does not leave by the deepest layers: give layers 'decoder' and a "
                "rank, 8 for instance."
            )


def _ranks(settings: CalibratedSettings) -> bool:
    return settings.retain == "ranked" and settings.structure == 0


def reads(settings: CalibratedSettings) -> tuple[SetName, ...]:
    """Name the sets that are read with these settings."""
    return READS if _ranks(settings) or settings.retain == "stored" else ("forget", "calibration")


def most(settings: CalibratedSettings) -> dict[SetName, int]:
    """Studies of a set that are read at most with these settings."""
    return {"retain": settings.ranked} if _ranks(settings) else {}


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

    with :math:`q_i` a quantile of the original's losses on C, and scale the change until the
    :math:`l_i` stand among the losses on C as unseen studies so hard would: the quantile is the
    ``hardness`` of S, or the one of the same rank where S is not known to be harder or easier.
    With a structure c every term is :math:`KL(p' \| p_s)` with p' of
    ``calibration.logits_without``.

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
    hard, standing = None, settings.standing
    if _ranks(settings):
        hard = hardness(network, sets.forget, sets.retain, sets.config, settings.seed)
        sets = replace(sets, retain=())
    if hard is not None:
        standing = min(hard + _ABOVE, _HARDEST)
    terms = Terms(
        network,
        sets,
        settings.structure,
        weights,
        settings.batch_size,
        settings.seed,
        settings.heir,
        held,
    )
    if hard is not None:
        terms.levels[:] = torch.quantile(terms.unseen, min(hard, _HARDEST))
    if settings.structure == 0:
        terms.levels = terms.levels + settings.beyond
    adapted = None
    if settings.rank:
        adapter = LoraSettings(settings.rank, settings.alpha, settings.layers)
        adapted = adapt(network, adapter, settings.seed)
    student = adapted.network if adapted else only(network, settings.layers)

    read: dict[SetName, Sequence[Study]] = {
        "forget": sets.forget, "retain": sets.retain, "calibration": held,
    }  # fmt: skip
    answers: dict[SetName, Answers] = {
        name: KeptLayers(student, some, sets.config) for name, some in read.items()
    }

    def objective(_: int) -> torch.Tensor:
        batch = terms.next_forget()
        logits = answers["forget"](batch[0].to(device_of(student)), terms.drawn)
        return terms.forget(logits, batch) + terms.kept(student, answers)

    def losses(made: nn.Module) -> torch.Tensor:
        known = answers["forget"] if made is student else None
        return study_losses(made.eval(), sets.forget, sets.config, settings.seed, known)

    scaled = settings.structure == 0 and settings.furthest > 0
    with seeded(settings.seed):
        for number in range(settings.rounds):
            phase = f"calibrate, round {number + 1}" if number else "calibrate"
            count = settings.again if number else settings.steps
            steps = Steps(count, settings.learning_rate, "one_cycle")
            descend(student, objective, steps, phase=phase, report=report, cancel=cancel)
            if not scaled:
                break
            ended = losses(student)
            if float(unseen_ranks(ended, terms.unseen).mean()) >= standing:
                break
    made = adapted.merged() if adapted else student
    if scaled:
        share_of = partial(share_at, standing, unseen=terms.unseen, furthest=settings.furthest)
        _scale(made, network, partial(losses, made), {0.0: terms.losses, 1.0: ended}, share_of)
    return made.requires_grad_(True).eval()


def _scale(
    made: nn.Module,
    network: nn.Module,
    losses: Callable[[], torch.Tensor],
    known: dict[float, torch.Tensor],
    share_of: Callable[[Mapping[float, torch.Tensor]], float],
) -> None:
    """Scale the change of the weights, in place, to the share that losses known on its way say."""
    pairs = zip(made.parameters(), network.parameters(), strict=True)
    ends = [(w, old.detach(), w.detach().clone()) for w, old in pairs]
    for looked in (False, True):
        share = share_of(known)
        with torch.no_grad():
            for weight, old, new in ends:
                weight.copy_(torch.lerp(old, new, share))
        if not looked:
            known[share] = losses()


def share_at(
    standing: float, known: Mapping[float, torch.Tensor], unseen: torch.Tensor, furthest: float
) -> float:
    """Share of a change at which losses stand among unseen ones as they should.

    Parameters
    ----------
    standing
        Wanted mean rank; see ``calibration.unseen_ranks``.
    known
        Share, 0 and another among them, to the losses there ``(N,)``; linear between and beyond.
    unseen
        Losses ``(M,)``.
    furthest
        Largest share that is given back; also where the standing is never reached.

    Examples
    --------
    >>> known = {0.0: torch.tensor([0.1]), 1.0: torch.tensor([0.5])}
    >>> share_at(0.5, known, torch.tensor([0.2, 0.3, 0.4]), 1.25)
    0.5
    """
    shares = np.asarray(sorted(known))
    losses = torch.stack([known[share] for share in shares.tolist()]).double().numpy()
    grid = np.linspace(0.0, furthest, round(furthest / _FINE) + 1)
    before = np.clip(np.searchsorted(shares, grid) - 1, 0, len(shares) - 2)
    part = ((grid - shares[before]) / (shares[before + 1] - shares[before]))[:, None]
    way = torch.from_numpy((1 - part) * losses[before] + part * losses[before + 1])
    reached = np.flatnonzero(unseen_ranks(way, unseen).mean(dim=1).numpy() >= standing - 1e-6)
    return float(grid[reached[0]]) if reached.size else furthest
