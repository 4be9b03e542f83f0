r"""The fast weight generator: support studies in, modulation of every normalisation layer out.

A normalisation's output :math:`o` becomes :math:`o (1 + \gamma) + \beta` (FiLM, Perez et al.,
arXiv 1709.07871; from a support set: CNAPs, arXiv 1906.07697). As :math:`o = w \hat x + b`, that
folds into its weight and bias. The last layer starts at zero: an untrained generator gives the
network as it is, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import torch
from torch import nn
from torch.nn.functional import interpolate

from segunlearn.adaptation.inner import Loss, Weights
from segunlearn.adaptation.sampling import parts_of
from segunlearn.adaptation.task_loss import Batch
from segunlearn.errors import UnsupportedNetworkError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import device_of

_NORMALISATIONS: Final = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)
_HIDDEN: Final = 128
_REGIONS: Final = 3
#: Share of a patch below which a region's mean fades to zero.
_FEW: Final = 1e-3


def film_layers(network: nn.Module) -> dict[str, int]:
    """Channels of every affine normalisation layer, by its name.

    Raises
    ------
    UnsupportedNetworkError
        There is none.
    """
    found = {
        name: int(cast(torch.Tensor, layer.weight).numel())
        for name, layer in network.named_modules()
        if isinstance(layer, _NORMALISATIONS) and layer.weight is not None
    }
    if not found:
        raise UnsupportedNetworkError(
            "the network has no affine normalisation layer to modulate. Use fine_tune or maml."
        )
    return found


def folded(weights: Mapping[str, torch.Tensor], film: Mapping[str, torch.Tensor]) -> Weights:
    """Weights and biases of the normalisation layers under a modulation.

    Parameters
    ----------
    weights
        Of the network, by name; at least those of ``film``.
    film
        Gamma under the name of a layer's weight, beta under the name of its bias.
    """
    found: Weights = {}
    for name, gamma in film.items():
        if not name.endswith(".weight"):
            continue
        bias = name.removesuffix("weight") + "bias"
        found[name] = weights[name] * (1 + gamma)
        found[bias] = weights[bias] * (1 + gamma) + film[bias]
    return found


def modulated(weights: Mapping[str, torch.Tensor], film: Mapping[str, torch.Tensor]) -> Weights:
    """All weights under a modulation, as copies.

    The modulation depends on the weights themselves; a gradient for the copies stops there.
    """
    return {name: weight.clone() for name, weight in {**weights, **folded(weights, film)}.items()}


def film_loss(loss: Loss, weights: Mapping[str, torch.Tensor]) -> Loss:
    """Loss as a function of the modulation instead of the weights."""
    return lambda film, batch: loss(folded(weights, film), batch)


class Generator(nn.Module):
    """Compares what the network says of the support with its masks, and gives a modulation.

    Every feature map of the network is averaged over three regions of each structure: annotated
    and found, annotated and not found, found and not annotated. In what they differ is what tells
    one site from another, so the network that is to be modulated is the encoder itself. Order and
    number of the patches do not matter.

    Parameters
    ----------
    config
        Of the network: channels, structures.
    layers
        See ``film_layers``.
    """

    def __init__(self, config: ModelConfig, layers: Mapping[str, int]) -> None:
        super().__init__()
        self.layers = dict(layers)
        self._values = tuple(config.label_values.values())
        channels, regions = sum(self.layers.values()), _REGIONS * len(self._values)
        self.head = nn.Sequential(
            nn.Linear(regions * (1 + config.in_channels + channels), _HIDDEN),
            nn.PReLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.PReLU(),
            nn.Linear(_HIDDEN, 2 * channels),
        )
        last = cast(nn.Linear, self.head[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, network: nn.Module, support: Batch, values: Sequence[int]) -> Weights:
        """Give the modulation for a support set.

        Parameters
        ----------
        network
            As it is without a modulation, in evaluation mode.
        support
            Patches of the support studies.
        values
            Classes of the task; others are not looked at.

        Returns
        -------
        dict
            See ``folded``.
        """
        device, count = device_of(network), len(support[0])
        pooled = [
            self._pooled(network, image.to(device), label.to(device), values)
            for image, label in parts_of(support)
        ]
        sums, sizes = (
            [sum(of) for of in zip(*each, strict=True)] for each in zip(*pooled, strict=True)
        )
        means = [s / (n + _FEW * count) for s, n in zip(sums, sizes, strict=True)]
        area = sizes[0][:, 0] / count
        flat = self.head(torch.cat([area, *(m.flatten() for m in means)]))
        film, at = {}, 0
        for name, channels in self.layers.items():
            for part in ("weight", "bias"):
                film[f"{name}.{part}"] = flat[at : at + channels]
                at += channels
        return film

    def _pooled(
        self, network: nn.Module, image: torch.Tensor, label: torch.Tensor, values: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Add up every feature map over the regions, and the regions' shares of the patches."""
        seen = [image]
        hooks = [
            network.get_submodule(name).register_forward_hook(lambda _m, _x, out: seen.append(out))
            for name in self.layers
        ]
        try:
            found = network(image).detach().softmax(dim=1)
        finally:
            for hook in hooks:
                hook.remove()
        maps = []
        for value in self._values:
            here = found[:, value : value + 1]
            mask = (label == value).to(here.dtype)
            asked = float(value in values)
            maps += [asked * mask * here, asked * mask * (1 - here), asked * (1 - mask) * here]
        regions = torch.cat(maps, dim=1)
        sums, sizes = [], []
        for features in seen:
            weights = interpolate(regions, size=features.shape[2:], mode="area").flatten(2)
            voxels = weights.shape[2]
            sums.append(torch.einsum("nrv,ncv->rc", weights, features.flatten(2)) / voxels)
            sizes.append(weights.mean(dim=2).sum(dim=0)[:, None])
        return sums, sizes
