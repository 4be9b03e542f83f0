"""Whether an adapter is adopted: leave one person of the support out, and look at that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from segunlearn.adaptation.adapt import AdaptSettings, adapt, check_support
from segunlearn.adaptation.meta_model import MetaModel
from segunlearn.errors import InvalidInputError, LabelError
from segunlearn.networks import ModelConfig
from segunlearn.records.runs import Progress
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    dice_by_person,
    never,
    no_report,
)
from segunlearn.unlearning.sets import Study


@dataclass(frozen=True)
class LeaveOneOut:
    """Dice of every person of the support under networks that never saw that person.

    Parameters
    ----------
    adapted, base
        Mean Dice of each person, in the order of their series' names; 0 to 1.
    """

    adapted: tuple[float, ...]
    base: tuple[float, ...]

    @property
    def means(self) -> dict[str, float]:
        """Mean over the people: ``adapted`` and ``base``."""
        return {"adapted": float(np.mean(self.adapted)), "base": float(np.mean(self.base))}


def leave_one_out(
    network: nn.Module,
    meta: MetaModel | None,
    support: Sequence[Study],
    config: ModelConfig,
    settings: AdaptSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> LeaveOneOut:
    """Adapt once for each person, without that person, and score it beside the base.

    Parameters
    ----------
    network, meta, support, config, settings, report, cancel
        As for ``adapt``; phase ``leave one out``.

    Raises
    ------
    InvalidInputError
        There is one person only: nobody could be left out.
    LabelError
        One person alone shows a structure: without that one there is nothing to adapt to.
    """
    values = check_support(support, config, settings.structures)
    support = sorted(support, key=lambda s: s.series)
    persons = list(dict.fromkeys(s.person for s in support))
    if len(persons) < 2:
        raise InvalidInputError(
            "leaving one person out needs two; the support shows one. Annotate a study of another "
            "person, or adopt the adapter without this check on your own judgement."
        )
    showing = {s.person for s in support if bool(torch.isin(s.label, torch.tensor(values)).any())}
    if len(showing) < 2:
        names = [name for name, value in config.label_values.items() if value in values]
        raise LabelError(
            f"only one person of the support shows {', '.join(names)}: without that one there is "
            "nothing to adapt to. Annotate another person's, or leave the other out."
        )
    base = dice_by_person(network, support, config, values)
    found = []
    for number, person in enumerate(persons):
        report(Progress("leave one out", number, len(persons)))
        others = [s for s in support if s.person != person]
        theirs = [s for s in support if s.person == person]
        adapted = adapt(network, meta, others, config, settings, cancel=cancel)
        found.append(dice_by_person(adapted.network, theirs, config, values)[person])
    report(Progress("leave one out", len(persons), len(persons)))
    return LeaveOneOut(tuple(found), tuple(base[p] for p in persons))


def choose(found: Sequence[LeaveOneOut]) -> int:
    """Give the number of the way that does best on people held out; of equal ones the first.

    Parameters
    ----------
    found
        Of each way, on the same support. Its Dice flatters the chosen one a little, the more ways
        are tried: these are two or three, and the people few.
    """
    return max(range(len(found)), key=lambda number: found[number].means["adapted"])


def gate(loo: LeaveOneOut) -> tuple[bool, str]:
    """Decide whether an adapter is adopted, and say why.

    Parameters
    ----------
    loo
        See ``leave_one_out``.
    """
    means = loo.means
    adopted = means["adapted"] >= means["base"]
    figures = (
        f"on {len(loo.base)} people, each left out once, Dice is {means['adapted']:.3f} with the "
        f"adapter and {means['base']:.3f} with the base"
    )
    return adopted, figures if adopted else f"{figures}; the base stays"
