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
from monai.networks.layers.factories import Conv, Norm
from torch import nn
from torch.nn.functional import max_pool2d, max_pool3d

from segunlearn.adaptation.inner import Loss, Weights
from segunlearn.adaptation.task_loss import Batch
from segunlearn.errors import UnsupportedNetworkError
from segunlearn.networks import ModelConfig

_NORMALISATIONS: Final = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)
_CHANNELS: Final = (16, 32, 32)
_HIDDEN: Final = 64
#: Voxels around a structure that are described on their own.
_RIM: Final = 2


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


def film_loss(loss: Loss, weights: Mapping[str, torch.Tensor]) -> Loss:
    """Loss as a function of the modulation instead of the weights."""
    return lambda film, batch: loss(folded(weights, film), batch)


class Generator(nn.Module):
    """Reads support patches and gives a modulation; their order and number do not matter.

    Parameters
    ----------
    config
        Of the network: channels, structures, dimensions.
    layers
        See ``film_layers``.
    """

    def __init__(self, config: ModelConfig, layers: Mapping[str, int]) -> None:
        super().__init__()
        self.layers = dict(layers)
        self._values = tuple(config.label_values.values())
        dims, channels = config.spatial_dims, config.in_channels + len(self._values)
        self._pool = max_pool2d if dims == 2 else max_pool3d
        self._space = tuple(range(2, 2 + dims))
        stages: list[nn.Module] = []
        for number, width in enumerate(_CHANNELS):
            stride = 1 if number == 0 and dims == 2 else 2
            stages += [
                Conv[Conv.CONV, dims](channels, width, 3, stride=stride, padding=1),
                Norm[Norm.INSTANCE, dims](width, affine=True),
                nn.PReLU(),
            ]
            channels = width
        self.encoder = nn.Sequential(*stages)
        regions = 2 * len(self._values) + 1
        figures = regions * (1 + 3 * config.in_channels)
        self.head = nn.Sequential(
            nn.Linear(2 * channels + figures, _HIDDEN),
            nn.PReLU(),
            nn.Linear(_HIDDEN, 2 * sum(self.layers.values())),
        )
        last = cast(nn.Linear, self.head[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, support: Batch, values: Sequence[int]) -> Weights:
        """Give the modulation for a support set.

        Parameters
        ----------
        support
            Patches of the support studies.
        values
            Classes of the task; others are not shown to the encoder.

        Returns
        -------
        dict
            See ``folded``.
        """
        device = next(self.parameters()).device
        image, label = (t.to(device) for t in support)
        masks = [
            label == v if v in values else torch.zeros_like(label).bool() for v in self._values
        ]
        seen = self.encoder(torch.cat([image, *(m.to(image.dtype) for m in masks)], dim=1))
        features = torch.cat([seen.mean(dim=self._space), seen.amax(dim=self._space)], dim=1)
        summary = torch.cat([features.mean(dim=0), self._figures(image, masks)])
        flat, film, at = self.head(summary), {}, 0
        for name, channels in self.layers.items():
            for part in ("weight", "bias"):
                film[f"{name}.{part}"] = flat[at : at + channels]
                at += channels
        return film

    def _figures(self, image: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Area, mean, variance and spread of the mean, of inside, rim and outside.

        Instance normalisation takes the level of an image away; these figures bring it back.
        """
        regions, outside = [], torch.ones_like(masks[0])
        for mask in masks:
            size = 2 * _RIM + 1
            wide = self._pool(mask.to(image.dtype), size, stride=1, padding=_RIM) > 0
            regions += [mask, wide & ~mask]
            outside = outside & ~wide
        found = []
        for region in [*regions, outside]:
            inside = region.to(image.dtype)
            count = inside.sum(dim=self._space)
            there = (count > 0).to(image.dtype)
            mean = (image * inside).sum(dim=self._space) / count.clamp(min=1)
            shape = (*mean.shape, *(1 for _ in self._space))
            square = (image - mean.reshape(shape)) ** 2 * inside
            variance = square.sum(dim=self._space) / count.clamp(min=1)
            seen = there.sum(dim=0).clamp(min=1)  # patches that show the region
            centre = (mean * there).sum(dim=0) / seen
            spread = (((mean - centre) ** 2 * there).sum(dim=0) / seen).clamp(min=1e-12).sqrt()
            area = inside.mean(dim=(0, *range(1, inside.ndim)))
            found += [area.reshape(1), centre, (variance * there).sum(dim=0) / seen, spread]
        return torch.cat(found)
