"""Collateral damage: who else is segmented worse, and whether they resemble the forgotten.

Unlearning one patient can erode others with the same disease (AMNESIA, arXiv 2605.30599), which a
mean over everybody hides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from segunlearn.audit.scores import StudyScore, person_means
from segunlearn.errors import InvalidInputError, UnsupportedNetworkError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import log_probabilities
from segunlearn.unlearning.sets import Study

#: The deepest level of BasicUNet.
BOTTLENECK = "down_4"


@dataclass(frozen=True)
class Collateral:
    """Change of Dice (after minus before) of people who were not to be forgotten.

    Parameters
    ----------
    mean, worst_decile
        Over persons: the mean change, and the mean of the worst tenth (at least one person).
    nearest, others
        Mean change of the persons nearest to S, and of the rest; None where no distance was given.
    """

    mean: float
    worst_decile: float
    nearest: float | None
    others: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def collateral(
    before: Sequence[StudyScore],
    after: Sequence[StudyScore],
    distance: Mapping[str, float] | None = None,
    share: float = 0.1,
) -> Collateral:
    """Compare Dice before and after over persons.

    Parameters
    ----------
    before, after
        Scores of the same studies.
    distance
        Of each person to S (``distances_to``); the nearest ``share`` of persons is looked at.
    share
        Size of the groups, in (0, 1).

    Raises
    ------
    InvalidInputError
        Different persons, or a person without distance.
    """
    old, new = person_means(before), person_means(after)
    if set(old) != set(new):
        raise InvalidInputError("before and after were scored on different persons.")
    change = {p: new[p] - old[p] for p in old}
    count = max(1, round(share * len(change)))
    worst = sorted(change.values())[:count]
    nearest = others = None
    if distance is not None:
        if missing := set(change) - set(distance):
            raise InvalidInputError(f"{len(missing)} person(s) have no distance to S.")
        order = sorted(change, key=lambda p: distance[p])
        nearest = float(np.mean([change[p] for p in order[:count]]))
        others = float(np.mean([change[p] for p in order[count:]])) if order[count:] else None
    return Collateral(float(np.mean(list(change.values()))), float(np.mean(worst)), nearest, others)


def features(
    network: nn.Module, studies: Sequence[Study], config: ModelConfig
) -> npt.NDArray[np.float64]:
    """Mean activations of the UNet's bottleneck, ``(N, F)``.

    Raises
    ------
    UnsupportedNetworkError
        The network has no layer ``down_4``.
    """
    layer = dict(network.named_modules()).get(BOTTLENECK)
    if layer is None:
        raise UnsupportedNetworkError(
            f"the network has no layer {BOTTLENECK!r}; distances between studies need BasicUNet."
        )
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, __: object, output: torch.Tensor) -> None:
        seen.append(output.detach().float().flatten(2).mean(dim=(0, 2)).cpu())

    rows = []
    handle = layer.register_forward_hook(keep)
    try:
        for study in studies:
            seen.clear()
            list(log_probabilities(network, [study], config))
            rows.append(torch.stack(seen).mean(dim=0).numpy().astype(np.float64))
    finally:
        handle.remove()
    return np.stack(rows)


def distances_to(
    network: nn.Module, forget: Sequence[Study], studies: Sequence[Study], config: ModelConfig
) -> dict[str, float]:
    """Distance of each person to the nearest forgotten study, in standardised features.

    Parameters
    ----------
    network
        Best one that never saw S: the original's features place S apart because it knows S.
    """
    near, far = features(network, forget, config), features(network, studies, config)
    scale = far.std(axis=0)
    scale[scale == 0] = 1.0
    gaps = np.linalg.norm((far[:, None] - near[None]) / scale, axis=-1).min(axis=1)
    persons = [s.person for s in studies]
    return {
        p: float(min(g for g, q in zip(gaps, persons, strict=True) if q == p))
        for p in dict.fromkeys(persons)
    }
