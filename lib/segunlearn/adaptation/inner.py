"""Gradient steps on some of a network's weights, without changing the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, cast, get_args

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from segunlearn.adaptation.task_loss import Batch, task_loss
from segunlearn.errors import InvalidInputError, UnsupportedNetworkError
from segunlearn.unlearning.loop import device_of

InnerSet = Literal["all", "decoder", "head"]
Weights = dict[str, torch.Tensor]
#: Weights and a batch to a loss.
Loss = Callable[[Weights, Batch], torch.Tensor]

_PREFIXES: Final[dict[str, tuple[str, ...]]] = {
    "all": ("",),
    "decoder": ("upcat_", "final_conv"),
    "head": ("final_conv",),
}


def inner_names(network: nn.Module, inner_set: InnerSet) -> list[str]:
    """Parameters that adapting may change.

    Raises
    ------
    InvalidInputError
        There is no such set.
    UnsupportedNetworkError
        The network has none of them, or has batch normalisation.
    """
    if inner_set not in get_args(InnerSet):
        raise InvalidInputError(f"no inner set {inner_set!r}: {', '.join(get_args(InnerSet))}.")
    refuse_batch_normalisation(network)
    prefixes = _PREFIXES[inner_set]
    names = [name for name, _ in network.named_parameters() if name.startswith(prefixes)]
    if not names:
        raise UnsupportedNetworkError(
            f"no weight belongs to the part {inner_set!r}; adapting needs BasicUNet."
        )
    return names


def refuse_batch_normalisation(network: nn.Module) -> None:
    """Refuse running statistics: every inner forward pass would move them for all sites.

    Raises
    ------
    UnsupportedNetworkError
        The message names the layer.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise UnsupportedNetworkError(
                f"layer {name!r} is batch normalisation: its running statistics would carry one "
                "site into the next, and its gradient is not the one of a single site. Adapt a "
                "network with instance or group normalisation."
            )


def loss_with(network: nn.Module, values: Sequence[int]) -> Loss:
    """Loss of a batch under weights that stand in for the network's own."""

    def loss(weights: Weights, batch: Batch) -> torch.Tensor:
        image = batch[0].to(device_of(network))
        logits = cast(torch.Tensor, functional_call(network, weights, (image,)))
        return task_loss(logits, batch[1], values)

    return loss


def rate_at(rates: torch.Tensor, step: int) -> torch.Tensor:
    """Learned rate of a step, of ``(steps,)``; later steps take the last one."""
    return rates[min(step, len(rates) - 1)]


def inner_steps(
    loss: Loss,
    weights: Weights,
    rates: Mapping[str, torch.Tensor],
    batches: Sequence[Batch],
    *,
    second_order: bool,
    checkpointed: bool = False,
) -> list[Weights]:
    r"""Descend, differentiably: :math:`w \leftarrow w - \alpha_{w,s} \nabla_w L`.

    Parameters
    ----------
    loss
        See ``loss_with``.
    weights
        Where to start; not changed.
    rates
        For each weight a rate for each step, ``(steps,)``; later steps take the last one.
    batches
        One for each step.
    second_order
        Keep the graph of the gradients. False: they are constants (first order).
    checkpointed
        Keep no activations of a step, and compute them again backwards: memory then hardly grows
        with the number of steps.

    Returns
    -------
    list of dict
        Weights after each step.
    """
    names, after = list(weights), []

    def step(number: int, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        now = dict(zip(names, flat, strict=True))
        gradients = torch.autograd.grad(
            loss(now, batches[number]), list(now.values()), create_graph=second_order
        )
        return tuple(
            weight - rate_at(rates[name], number) * gradient
            for (name, weight), gradient in zip(now.items(), gradients, strict=True)
        )

    flat = tuple(weights.values())
    for number in range(len(batches)):
        if checkpointed and second_order:
            flat = cast(
                tuple[torch.Tensor, ...],
                checkpoint(step, number, *flat, use_reentrant=False),
            )
        else:
            flat = step(number, *flat)
        after.append(dict(zip(names, flat, strict=True)))
    return after
