"""What the layers that do not change make of each study, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, cast

import torch
from torch import nn

from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import Levels, MadeOnce
from segunlearn.unlearning.sets import Study, of_one_patch

#: Steps of BasicUNet (Falk et al. 2019), on the way down, and those up again that join them.
_DOWN: Final = ("conv_0", "down_1", "down_2", "down_3", "down_4")
_UP: Final = ("upcat_1", "upcat_2", "upcat_3", "upcat_4")
#: Bytes that are kept, at most.
_MOST: Final = 2**30


class KeptLayers:
    r"""A network whose first steps down, as far as none of their weights may change, run once.

    A step up convolves what came down at its level, e, together with what comes up, u. Where its
    weights stay, too, :math:`W * [e, u] = W_e * e + W_u * u`, and the first term is kept: at the
    full resolution that is a third of the work, and of that of the gradient.

    Studies of exactly one patch give the same patch at every draw; of others, and of a network
    that is no BasicUNet or has dropout, nothing is kept.

    Parameters
    ----------
    network
        The rest of it may change between calls, and has its gradients.
    studies
        Of which the patches are.
    config
        Of the network.
    """

    def __init__(self, network: nn.Module, studies: Sequence[Study], config: ModelConfig) -> None:
        self._network, self._kept = cast(Any, network), MadeOnce(self._run, _MOST)
        #: How many steps down stay, and at which of their levels the step up stays.
        self._first, self._joined = 0, set[int]()
        same = of_one_patch(studies, config) and config.dropout == 0
        if same and all(hasattr(network, n) for n in (*_DOWN, *_UP)):
            down, up = ([_stays(getattr(network, n)) for n in names] for names in (_DOWN, _UP))
            self._first = [*down, False].index(False)
            if all(n % 2 ** len(_UP) == 0 for n in config.roi_size):  # else what comes up is padded
                self._joined = {i for i, stays in enumerate(up[: self._first]) if stays}

    def __call__(self, image: torch.Tensor, drawn: Sequence[int]) -> torch.Tensor:
        """Logits ``(B, K, ...)``.

        Parameters
        ----------
        image
            The batch, ``(B, C, ...)``, on the network's device.
        drawn
            Number of each sample's study; see ``Draw.last``.
        """
        if not self._first:
            return cast(torch.Tensor, self._network(image))
        each = self._kept.of(image, drawn)
        *skips, upwards = (torch.cat(level) for level in zip(*each, strict=True))
        for name in _DOWN[self._first :]:
            upwards = getattr(self._network, name)(upwards)
            skips.append(upwards)
        for i in reversed(range(len(_UP))):
            step = getattr(self._network, _UP[i])
            join = partial(_join, step) if i in self._joined else step
            upwards = join(upwards, skips[i])
        return cast(torch.Tensor, self._network.final_conv(upwards))

    def _run(self, images: torch.Tensor) -> list[Levels]:
        """For each sample, what each level gives to its step up, and to the next step down."""
        made, below = [], images
        with torch.no_grad():
            for i, name in enumerate(_DOWN[: self._first]):
                below = getattr(self._network, name)(below)
                if i < len(_UP):
                    made.append(self._given(i, below))
        samples = (x.chunk(len(x)) for x in [*made, below])
        return [list(levels) for levels in zip(*samples, strict=True)]

    def _given(self, level: int, made: torch.Tensor) -> torch.Tensor:
        if level not in self._joined:
            return made
        conv = getattr(self._network, _UP[level]).convs.conv_0.conv
        return _part(conv, slice(made.shape[1]), made, conv.bias)


def _stays(step: nn.Module) -> bool:
    return not any(w.requires_grad for w in step.parameters())


def _part(
    conv: Any, channels: slice, came: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Give what some of the channels add to a convolution."""
    return cast(torch.Tensor, conv._conv_forward(came, conv.weight[:, channels], bias))


def _join(step: Any, upwards: torch.Tensor, kept: torch.Tensor) -> Any:
    """Do as the step up does (``UpCat``), with the part of the skipped level given."""
    upwards, first = step.upsample(upwards), step.convs.conv_0
    mixed = kept + _part(first.conv, slice(-upwards.shape[1], None), upwards, None)
    return step.convs.conv_1(first.adn(mixed))
