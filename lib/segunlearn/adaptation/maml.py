r"""Model-agnostic meta-learning: weights, and rates, from which a few steps fit any site.

.. math::

    \theta' = \theta - \alpha \odot \nabla_\theta L^{support}(\theta), \qquad
    \min_{\theta, \alpha} \sum_{sites} L^{query}(\theta')

Finn et al., arXiv 1703.03400; a learned rate for each layer and step, a loss after every step and
first order at first: Antoniou et al., arXiv 1810.09502; Reptile: Nichol et al., arXiv 1803.02999.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from segunlearn.adaptation.episodes import Episode
from segunlearn.adaptation.inner import InnerSet, Loss, Weights, inner_names, inner_steps, loss_with
from segunlearn.errors import InvalidInputError

Order = Literal["second", "first", "reptile"]


@dataclass(frozen=True)
class MamlSettings:
    """How MAML learns.

    Parameters
    ----------
    order
        ``"second"``: through the inner steps. ``"first"``: their gradients are constants.
        ``"reptile"``: towards where the steps lead; it learns no rates.
    inner_set
        What the inner steps change; the outer steps change everything.
    steps
        Inner steps.
    initial_rate
        Of every layer and step.
    first_order_share
        Share of the training, at its start, that is first order in any case.
    multi_step_share
        Share of the training over which the loss after every step gives way to the last one.
    zero_shot
        Weight of the loss before any step; above 0 the weights stay good without adapting.
    checkpointed
        Keep no activations of inner steps; None: above two steps.
    """

    order: Order = "second"
    inner_set: InnerSet = "decoder"
    steps: int = 3
    initial_rate: float = 0.05
    first_order_share: float = 0.3
    multi_step_share: float = 0.5
    zero_shot: float = 0.0
    checkpointed: bool | None = None

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise InvalidInputError(f"no order {self.order!r}: {', '.join(get_args(Order))}.")
        if self.steps < 1 or not 0 < self.initial_rate < math.inf or self.zero_shot < 0:
            raise InvalidInputError("MAML needs steps >= 1, a rate > 0 and zero_shot >= 0.")
        for name in ("first_order_share", "multi_step_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"MAML: {name} is a share, must be in [0, 1].")


class LearnedRates(nn.Module):
    """A rate for each weight of the inner set at each step, kept by its logarithm.

    Raises
    ------
    UnsupportedNetworkError
        Batch normalisation, or no weight belongs to the inner set.
    """

    def __init__(self, network: nn.Module, settings: MamlSettings) -> None:
        super().__init__()
        self.names = inner_names(network, settings.inner_set)
        start = torch.full((settings.steps,), math.log(settings.initial_rate))
        self.logs = nn.ParameterList([start.clone() for _ in self.names])

    def by_name(self) -> dict[str, torch.Tensor]:
        """Rates by the name of the weight, ``(steps,)``."""
        return {name: log.exp() for name, log in zip(self.names, self.logs, strict=True)}


class MamlLearner(nn.Module):
    """What MAML learns: the network, and the logarithms of its rates.

    Parameters
    ----------
    network
        From joint training; changed in place.
    settings
        How.

    Raises
    ------
    UnsupportedNetworkError
        Batch normalisation, or no weight belongs to the inner set.
    """

    def __init__(self, network: nn.Module, settings: MamlSettings) -> None:
        super().__init__()
        self.settings, self.network = settings, network.eval()
        self.learned_rates = LearnedRates(network, settings)

    def rates(self) -> dict[str, torch.Tensor]:
        """Rate of each adapted weight at each step, ``(steps,)``."""
        return self.learned_rates.by_name()

    def accumulate(self, episode: Episode, *, share: float = 1.0, progress: float = 1.0) -> float:
        """Add ``share`` times the meta-gradient of an episode to the gradients.

        Parameters
        ----------
        progress
            Share of the training that is done: of the annealing and of the loss after each step.

        Returns
        -------
        float
            Query loss after the last step.
        """
        settings = self.settings
        loss = loss_with(self.network, episode.task.values)
        weights: Weights = {n: self.network.get_parameter(n) for n in self.learned_rates.names}
        if settings.order == "reptile":
            return self._towards(loss, weights, episode, share)
        total, last = stepped_loss(loss, weights, self.rates(), episode, settings, progress)
        if settings.zero_shot > 0:
            total = total + settings.zero_shot * loss(weights, episode.query)
        (share * total).backward()  # type: ignore[no-untyped-call]
        return last

    def _towards(self, loss: Loss, weights: Weights, episode: Episode, share: float) -> float:
        support = episode.support[: self.settings.steps]
        after = inner_steps(loss, weights, self.rates(), support, second_order=False)[-1]
        with torch.no_grad():
            for name, weight in weights.items():
                towards = share * (weight - after[name])
                weight.grad = towards if weight.grad is None else weight.grad + towards
            return loss(after, episode.query).item()


def stepped_loss(
    loss: Loss,
    weights: Weights,
    rates: Mapping[str, torch.Tensor],
    episode: Episode,
    settings: MamlSettings,
    progress: float,
) -> tuple[torch.Tensor, float]:
    """Query loss after each inner step, weighted as ``step_weights`` says, and that of the last.

    Parameters
    ----------
    loss, weights, rates
        See ``inner.inner_steps``.
    progress
        Share of the training that is done.
    """
    checkpointed = settings.checkpointed
    after = inner_steps(
        loss,
        weights,
        rates,
        episode.support[: settings.steps],
        second_order=settings.order == "second" and progress >= settings.first_order_share,
        checkpointed=settings.steps > 2 if checkpointed is None else checkpointed,
    )
    total, last = torch.zeros(()), 0.0
    for part, now in zip(step_weights(settings, progress), after, strict=True):
        if part > 0:
            value = loss(now, episode.query)
            total, last = total + part * value, value.item()
    return total, last


def step_weights(settings: MamlSettings, progress: float) -> list[float]:
    """Weight of the query loss after each inner step: equal at first, in the end the last alone.

    Examples
    --------
    >>> step_weights(MamlSettings(steps=2), 0.25), step_weights(MamlSettings(steps=2), 0.5)
    ([0.25, 0.75], [0.0, 1.0])
    """
    share = settings.multi_step_share
    left = max(0.0, 1 - progress / share) if share > 0 else 0.0
    early = left / settings.steps
    return [early] * (settings.steps - 1) + [1 - early * (settings.steps - 1)]
