"""Learning with recoverable forgetting: deposit knowledge from the shallow part of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.calibration import check_common
from segunlearn.unlearning.erosion import Deposit
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    Steps,
    descend,
    device_of,
    distillation,
    frozen,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.lora import Adapted, LoraSettings, adapt
from segunlearn.unlearning.random_label import other_labels
from segunlearn.unlearning.sets import Draw, SetName, UnlearningSets

READS: Final[tuple[SetName, ...]] = ("forget",)
#: The shallow part: blocks of the encoder, whose attention maps are pushed away.
_SHALLOW: Final = ("conv_0", "down_1", "down_2", "down_3")


@dataclass(frozen=True)
class RecoverableSettings:
    """What is removed and preserved, and the loop.

    Parameters
    ----------
    structure
        Label value to withdraw from the model; 0: the studies are to be forgotten.
    margin
        Study mode: knowledge of a study is sought within so many voxels of a border of its label.
        What every model would say, deep inside and far outside, is preserved.
    attention_weight
        Of the repulsion of attention maps. At 1 it damaged the rest of a small network's answer.
    preserve_weight, temperature
        Of the filtered distillation.
    rank, alpha
        Of the adapter on the encoder.
    steps, learning_rate, batch_size, seed
        Of the loop.
    """

    structure: int = 0
    margin: int = 2
    attention_weight: float = 0.1
    preserve_weight: float = 3.0
    temperature: float = 2.0
    rank: int = 8
    alpha: float = 16.0
    steps: int = 25
    learning_rate: float = 5e-3
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.structure, "stored")
        if self.margin < 1 or min(self.attention_weight, self.preserve_weight) < 0:
            raise InvalidInputError("margin must be at least 1, and weights at least 0.")


def recoverable(
    network: nn.Module,
    sets: UnlearningSets,
    settings: RecoverableSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> nn.Module:
    r"""Put random labels and other attention maps where the deposited knowledge is, on S alone.

    .. math::
        CE(T(x), y_{random}) - \lambda_{at} L_{at}(T^{(-n)}(x), T_0^{(-n)}(x))
        + \lambda_{kp} KL(g(z_{T_0}), g(z_T))

    LIRF (arXiv 2207.08224), with the encoder as the shallow part and an adapter on it as the only
    thing that learns. In structure mode random labels (never the structure's) go to the structure's
    voxels; there g keeps the logits of the other classes. Elsewhere it keeps all logits, for else
    nothing holds the structure's own from rising. In study mode, which LIRF does not have, the
    filters are of place alone: :math:`\bar g` keeps the voxels near a
    border of the label, where what is known of one person differs from what is known of people,
    and random labels of any class go there; g keeps the rest. LIRF's deposit module and its losses
    :math:`L_{pt}, L_{re}` are not needed: the sign-flipped adapter brings the original back
    (:func:`deposited`). It does not aim at the retrained model, and LIRF says so itself.
    """
    return deposited(network, sets, settings, report, cancel)[0]


def deposited(
    network: nn.Module,
    sets: UnlearningSets,
    settings: RecoverableSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> tuple[nn.Module, Adapted, Deposit]:
    """Do the same, and also give the adapter and the deposit for ``erosion.withdraw``."""
    teacher = frozen(network)
    adapter = LoraSettings(settings.rank, settings.alpha, "encoder", head=False)
    adapted = adapt(network, adapter, settings.seed)
    student = adapted.network
    draw = Draw(sets.forget, sets.config, settings.batch_size, settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    classes, structure = sets.config.num_classes, settings.structure

    def objective(_: int) -> torch.Tensor:
        image, label = draw.next()
        if structure:
            wrong = other_labels(torch.full_like(label, structure), classes, generator)
            place = label == structure
        else:
            wrong = torch.randint(0, classes, label.shape, generator=generator)
            place = near_border(label, settings.margin)
        image, wrong, place = (t.to(device_of(student)) for t in (image, wrong, place))
        with recorded(teacher) as before, torch.no_grad():
            target = teacher(image)
        with recorded(student) as now:
            logits = student(image)
        each = functional.cross_entropy(logits, wrong[:, 0], reduction="none")
        removed = each[place[:, 0]].mean() if bool(place.any()) else 0.0 * each.sum()
        apart = attention_distance(now, before)
        kept = _distilled(logits, target, ~place, settings.temperature)
        if structure:
            others = [k for k in range(classes) if k != structure]
            kept = kept + _distilled(
                logits[:, others], target[:, others], place, settings.temperature
            )
        return removed - settings.attention_weight * apart + settings.preserve_weight * kept

    with seeded(settings.seed):
        steps = Steps(settings.steps, settings.learning_rate)
        descend(student, objective, steps, phase="deposit", report=report, cancel=cancel)
    adapted.network.eval()
    return adapted.merged(), adapted, Deposit.of(adapted)


def near_border(label: torch.Tensor, margin: int) -> torch.Tensor:
    """Voxels with another label within ``margin`` voxels along the axes or diagonally.

    Parameters
    ----------
    label
        ``(B, 1, ...)``, 2D or 3D.

    Returns
    -------
    torch.Tensor
        Boolean, of the same shape.
    """
    pool = functional.max_pool3d if label.ndim == 5 else functional.max_pool2d
    values = label.float()
    highest = pool(values, 2 * margin + 1, stride=1, padding=margin)
    lowest = -pool(-values, 2 * margin + 1, stride=1, padding=margin)
    return highest != lowest


@contextmanager
def recorded(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the outputs of the encoder's blocks in a pass inside, from shallow to deep."""
    outputs: list[torch.Tensor] = []

    def keep(_: nn.Module, __: object, output: torch.Tensor) -> None:
        outputs.append(output)

    hooks = [network.get_submodule(name).register_forward_hook(keep) for name in _SHALLOW]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def attention_distance(now: list[torch.Tensor], before: list[torch.Tensor]) -> torch.Tensor:
    r"""Mean squared distance of attention maps, between 0 and 2.

    A map is :math:`\sum_c A_c^2`, flattened and divided by its Euclidean norm (Zagoruyko &
    Komodakis, arXiv 1612.03928).

    Parameters
    ----------
    now, before
        Activations ``(B, C, ...)`` of the same blocks.
    """
    distances = []
    for one, other in zip(now, before, strict=True):
        maps = [functional.normalize(a.square().sum(dim=1).flatten(1), dim=1) for a in (one, other)]
        distances.append((maps[0] - maps[1]).square().sum(dim=1).mean())
    return torch.stack(distances).mean()


def _distilled(
    student: torch.Tensor, teacher: torch.Tensor, place: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Distillation on the voxels in ``place``, ``(B, 1, ...)``."""
    chosen = [z.movedim(1, -1)[place[:, 0]] for z in (student, teacher)]
    if not chosen[0].numel():
        return 0.0 * student.sum()
    return distillation(chosen[0], chosen[1], temperature)
