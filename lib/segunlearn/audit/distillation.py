"""The distillation attack: ask a fresh network, taught by the model, about the forgotten people.

Suppressed outputs are not forgetting: 93 to 96 % of the "forgotten" accuracy distils out of the
deposit networks of LIRF (arXiv 2207.08224, table 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from segunlearn.audit.statistics import PersonChance
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig, build_network
from segunlearn.unlearning.loop import (
    Report,
    Steps,
    descend,
    device_of,
    dice_by_person,
    distil_step,
    frozen,
    mean_dice,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.sets import Draw, Study


@dataclass(frozen=True)
class DistillationSettings:
    """How the student is taught.

    Parameters
    ----------
    steps, learning_rate, batch_size, seed
        One-cycle Adam; the seed also makes the student.
    temperature
        Of the softmaxes.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    batch_size: int = 4
    temperature: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class Distilled:
    """Mean Dice of the student on forgotten and on unseen people.

    ``people`` is that of each unseen person; empty in audits that did not keep it.
    """

    forgotten: float
    unseen: float
    people: Mapping[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """S - T of the student."""
        return self.forgotten - self.unseen

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def distil(
    network: nn.Module,
    forget: Sequence[Study],
    unlabelled: Sequence[Study],
    unseen: Sequence[Study],
    config: ModelConfig,
    settings: DistillationSettings,
    *,
    report: Report = no_report,
    cancel: Callable[[], bool] = never,
) -> Distilled:
    """Teach a fresh network with the model's outputs on images of S and others, without labels.

    Parameters
    ----------
    forget
        S; their images are in the attacker's hands.
    unlabelled
        Further images, e.g. of R or C.
    unseen
        T, only scored.

    Raises
    ------
    InvalidInputError
        No forgotten or no unseen studies.
    """
    if not forget or not unseen:
        raise InvalidInputError("the distillation attack needs forgotten and unseen studies.")
    teacher = frozen(network)
    student = build_network(config, settings.seed).to(device_of(network))
    draw = Draw([*forget, *unlabelled], config, settings.batch_size, settings.seed)

    def objective(_: int) -> torch.Tensor:
        return distil_step(student, teacher, draw.next()[0], settings.temperature)

    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate, "one_cycle")
        descend(student, objective, steps, phase="distil", report=report, cancel=cancel)
    people = dice_by_person(student, unseen, config, tuple(config.label_values.values()))
    mean = float(np.mean(list(people.values())))
    return Distilled(mean_dice(student, forget, config), mean, people)


def chance_of_students(
    original: Distilled | None, references: Sequence[Distilled], people: int
) -> float:
    """Lead of so many people that two students may differ by without any memory.

    A student is taught for a short while only, and differs from another more than their teachers
    do. 0 where the Dice of each person is not known.
    """
    if original is None or not all(d.people for d in (original, *references)):
        return 0.0
    return PersonChance(original.people, [r.people for r in references]).gap(people)


def distillation_excess(model: Distilled, references: Sequence[Distilled]) -> float:
    """S - T of the model's student minus that of the references' students.

    The level of T is taken out, as a better teacher makes a better student on everybody.
    """
    if not references:
        raise InvalidInputError("the distillation attack is read against a never-seen reference.")
    return model.gap - float(np.mean([r.gap for r in references]))
