r"""Weights that learn again as fast as new ones, and say the same.

A normalisation layer divides by what a scale of the convolution before it multiplies. So the norm
of its weights changes nothing of what the network says, but Adam's step turns weights of twice the
norm by half the angle. Joint training lets these norms grow, and what goes on from it hardly moves
(Lyle et al., arXiv 2407.01800).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from segunlearn.unlearning.loop import copy_of

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


def rescaled(network: nn.Module, share: float) -> nn.Module:
    r"""Copy a network, every convolution before an instance normalisation at a norm of its own.

    Parameters
    ----------
    network
        Any; what it says stays the same but for rounding and the normalisations' epsilon.
    share
        New norm, as a share of what new weights have: they are uniform up to one over the square
        root of the inputs (He et al., arXiv 1502.01852, as torch takes it), so :math:`C_{out}`
        channels have a norm of :math:`\sqrt{C_{out} / 3}`.
    """
    made = copy_of(network)
    with torch.no_grad():
        for layer in _before_normalisation(made):
            norm = float(layer.weight.norm())
            if norm > 0:
                factor = share * math.sqrt(layer.out_channels / 3) / norm
                layer.weight.mul_(factor)
                if layer.bias is not None:
                    layer.bias.mul_(factor)
    return made


def _before_normalisation(network: nn.Module) -> Iterator[nn.Conv2d | nn.Conv3d]:
    """Convolutions whose output goes to an instance normalisation and nowhere else."""
    for module in network.modules():
        for layer, after in pairwise(module.children()):
            if isinstance(layer, _CONVOLUTIONS) and isinstance(_first(after), _NORMALISATIONS):
                yield layer


def _first(module: nn.Module) -> nn.Module:
    """Give the layer that a module begins with."""
    for child in module.children():
        return _first(child)
    return module
