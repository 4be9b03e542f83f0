"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) on the UNet, in weight space.

A layer computes with W + s B A instead of W. On disk an adapter is PEFT's file pair, so that it
can be read without this code; in training the sum is formed once a step, which is faster on small
3D networks than PEFT's second convolution and the same function.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.utils import parametrize

from segunlearn.errors import IntegrityError, InvalidInputError, UnsupportedNetworkError
from segunlearn.records.durable import write_durably
from segunlearn.unlearning.loop import copy_of, frozen, seeded

Layers = Literal["encoder", "decoder", "decoder+bottleneck", "bottleneck", "all"]

_PREFIXES: Final[dict[str, tuple[str, ...]]] = {
    "encoder": ("conv_0.", "down_1.", "down_2.", "down_3."),
    "decoder": ("upcat_",),
    "decoder+bottleneck": ("upcat_", "down_4"),
    "bottleneck": ("down_4.", "upcat_4.", "upcat_3."),
    "all": ("",),
}
#: The last 1x1 convolution: too small for a low rank, so it is trained and saved whole.
HEAD: Final = "final_conv"
_PEFT: Final = "base_model.model."
_CONVOLUTIONS: Final = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMALISATIONS: Final = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)
_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class LoraSettings:
    """Which weights get a low-rank update.

    Parameters
    ----------
    rank, alpha
        r, and the scale s = alpha / r.
    layers
        Part of the UNet whose 3x3(x3) convolutions are adapted.
    transposed
        Also the transposed convolutions of these parts.
    head
        Also train the last 1x1 convolution (``modules_to_save`` of PEFT).
    norms
        Also train the scale and shift of these parts' normalisation layers, whole
        (``modules_to_save``).
    biases
        Also train the biases of these parts' convolutions (``bias`` of PEFT).
    """

    rank: int = 8
    alpha: float = 16.0
    layers: Layers = "decoder"
    transposed: bool = False
    head: bool = True
    norms: bool = False
    biases: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise InvalidInputError("LoRA needs a rank of at least 1 and an alpha above 0.")
        if self.layers not in get_args(Layers):
            raise InvalidInputError(f"no layers {self.layers!r}: {', '.join(get_args(Layers))}.")


class LowRank(nn.Module):
    """Parametrisation W -> W + s B A; B is 0 at first.

    Parameters
    ----------
    weight
        Of a convolution, ``(out, in, ...)``, or transposed, ``(in, out, ...)``.
    """

    def __init__(self, weight: torch.Tensor, settings: LoraSettings, *, transposed: bool) -> None:
        super().__init__()
        rank, ones = settings.rank, (1,) * (weight.ndim - 2)
        self.scale, self.transposed = settings.alpha / rank, transposed
        if transposed:  # A: in -> r by 1x1, B: r -> out by the layer's own kernel
            self.a = nn.Parameter(weight.new_empty(rank, weight.shape[0], *ones))
            self.b = nn.Parameter(weight.new_zeros(rank, *weight.shape[1:]))
        else:  # A: in -> r by the layer's own kernel, B: r -> out by 1x1
            self.a = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
            self.b = nn.Parameter(weight.new_zeros(weight.shape[0], rank, *ones))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def delta(self) -> torch.Tensor:
        """S B A, in the shape of the weight."""
        return self.scale * low_rank_product(self.a, self.b, transposed=self.transposed)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Sum of weight and update."""
        return weight + self.delta()


def low_rank_product(a: torch.Tensor, b: torch.Tensor, *, transposed: bool) -> torch.Tensor:
    """B A, in the shape of the weight of a convolution, or of a transposed one."""
    if transposed:
        return cast(torch.Tensor, torch.tensordot(a.flatten(1).T, b, dims=1))
    return cast(torch.Tensor, torch.tensordot(b.flatten(1), a, dims=1))


@dataclass(frozen=True)
class Adapted:
    """A network with an adapter; only the adapter (and the head) can be trained.

    Parameters
    ----------
    network
        With parametrised convolutions.
    base
        The network before; never changed.
    settings
        Of the adapter.
    """

    network: nn.Module
    base: nn.Module
    settings: LoraSettings

    def merged(self) -> nn.Module:
        """Make a self-contained network without any trace of an adapter."""
        plain = self.disabled()
        with torch.no_grad():
            for name, layer in adapted_layers(self.network):
                weight = cast(torch.Tensor, layer.weight)
                cast(torch.Tensor, plain.get_submodule(name).weight).copy_(weight)
            for name, weight in whole_weights(self.network, self.settings).items():
                plain.get_parameter(name).copy_(weight)
        return plain

    def disabled(self) -> nn.Module:
        """Give the network before, bit for bit."""
        return copy_of(self.base).eval()


def adapt(network: nn.Module, settings: LoraSettings, seed: int = 0) -> Adapted:
    """Put an adapter beside a copy of a network; it computes the same as before.

    Raises
    ------
    UnsupportedNetworkError
        No layer of the network is meant, it has no ``final_conv``, a layer has groups, dilation
        or another padding than zeros, which PEFT does not carry over, or there is batch
        normalisation.
    """
    refuse_batch_normalisation(network)
    adapted = copy.deepcopy(network)
    for weight in adapted.parameters():
        weight.requires_grad_(False)
    layers = list(_layers_of(adapted, settings))
    if not layers:
        raise UnsupportedNetworkError(
            f"no convolution belongs to the part {settings.layers!r}; adapters need BasicUNet."
        )
    with seeded(seed):
        for _, layer in layers:
            transposed = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
            update = LowRank(cast(torch.Tensor, layer.weight), settings, transposed=transposed)
            parametrize.register_parametrization(layer, "weight", update)
    if settings.head and not dict(adapted.named_children()).get(HEAD):
        raise UnsupportedNetworkError(f"the network has no layer {HEAD!r} to train whole.")
    for weight in whole_weights(adapted, settings).values():
        weight.requires_grad_(True)
    return Adapted(adapted, frozen(network), settings)


def only(network: nn.Module, layers: Layers) -> nn.Module:
    """Copy a network so that all weights of a part may change, and no others.

    Raises
    ------
    UnsupportedNetworkError
        No weight belongs to the part.
    """
    part = copy_of(network)
    for name, weight in part.named_parameters():
        weight.requires_grad_(name.startswith(_PREFIXES[layers]))
    if not any(w.requires_grad for w in part.parameters()):
        raise UnsupportedNetworkError(
            f"no weight belongs to the part {layers!r}; parts are those of BasicUNet."
        )
    return part


def save_adapter(adapted: Adapted, folder: Path) -> None:
    """Write PEFT's file pair; the same adapter gives the same bytes."""
    settings = adapted.settings
    tensors = {k: v.detach().cpu().contiguous() for k, v in _on_disk(adapted).items()}
    saved = [HEAD] if settings.head else []
    if settings.norms:
        saved += [name for name, _ in _norms(adapted.network, settings)]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "all" if settings.biases else "none",
        "target_modules": sorted(name for name, _ in adapted_layers(adapted.network)),
        "modules_to_save": sorted(saved) or None,
        "inference_mode": True,
        "segunlearn": asdict(settings),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / _FILES[1], save(tensors, metadata={"format": "pt"}))
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    write_durably(folder / _FILES[0], text.encode("utf-8"))


def load_adapter(network: nn.Module, folder: Path) -> Adapted:
    """Put a saved adapter onto its base.

    Raises
    ------
    IntegrityError
        A file is missing, damaged, or belongs to another network.
    """
    try:
        data = json.loads((folder / _FILES[0]).read_text(encoding="utf-8"))
        settings = LoraSettings(**data["segunlearn"])
        tensors = load_file(folder / _FILES[1])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise IntegrityError(f"{folder.name}: is no adapter of ours ({error}).") from error
    adapted = adapt(network, settings)
    wanted = _on_disk(adapted)
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in tensors.items()}:
        raise IntegrityError(f"{folder.name}: the adapter belongs to another network.")
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(tensors[name])
    return adapted


def whole_weights(network: nn.Module, settings: LoraSettings) -> dict[str, nn.Parameter]:
    """Weights that are trained whole beside the low-rank updates, by name."""
    found: dict[str, nn.Parameter] = {}
    if settings.norms:
        for name, layer in _norms(network, settings):
            found |= dict(layer.named_parameters(prefix=name))
    if settings.biases:
        for name, layer in network.named_modules():
            inside = name.startswith(_PREFIXES[settings.layers]) and name != HEAD
            if inside and isinstance(layer, _CONVOLUTIONS) and layer.bias is not None:
                found[f"{name}.bias"] = cast(nn.Parameter, layer.bias)
    if settings.head:
        found |= dict(network.get_submodule(HEAD).named_parameters(prefix=HEAD))
    return found


def refuse_batch_normalisation(network: nn.Module) -> None:
    """Refuse what would change the frozen base while an adapter is trained.

    Raises
    ------
    UnsupportedNetworkError
        A layer keeps running statistics: one pass in training mode moves them, and the network
        with its adapter off would no longer be the network before.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise UnsupportedNetworkError(
                f"layer {name!r} is batch normalisation, whose running statistics drift while an "
                "adapter is trained. Use a network with instance normalisation, or a method that "
                "changes all weights."
            )


def _on_disk(adapted: Adapted) -> dict[str, torch.Tensor]:
    """Every tensor of the adapter under its name in PEFT's file."""
    tensors: dict[str, torch.Tensor] = {}
    layers = adapted_layers(adapted.network)
    for name, layer in layers:
        update = update_of(layer)
        tensors[f"{_PEFT}{name}.lora_A.weight"] = update.a
        tensors[f"{_PEFT}{name}.lora_B.weight"] = update.b
    inside = {f"{name}.bias": f"{name}.base_layer.bias" for name, _ in layers}
    for name, weight in whole_weights(adapted.network, adapted.settings).items():
        tensors[_PEFT + inside.get(name, name)] = weight
    return tensors


def _norms(network: nn.Module, settings: LoraSettings) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in network.named_modules():
        if name.startswith(_PREFIXES[settings.layers]) and isinstance(layer, _NORMALISATIONS):
            yield name, layer


def _layers_of(network: nn.Module, settings: LoraSettings) -> Iterator[tuple[str, nn.Module]]:
    prefixes = _PREFIXES[settings.layers]
    for name, layer in network.named_modules():
        if not name.startswith(prefixes):
            continue
        transposed = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
        if not transposed and not isinstance(layer, nn.Conv2d | nn.Conv3d):
            continue
        kernel = cast(tuple[int, ...], layer.kernel_size)
        if (transposed and settings.transposed) or (not transposed and min(kernel) > 1):
            _check(name, layer)
            yield name, layer


def _check(name: str, layer: Any) -> None:
    if layer.groups != 1 or set(layer.dilation) != {1} or layer.padding_mode != "zeros":
        raise UnsupportedNetworkError(
            f"layer {name!r} has groups, dilation or a padding other than zeros; PEFT would "
            "compute something else there."
        )


def adapted_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers with a low-rank update, by name."""
    return [
        (name, layer)
        for name, layer in network.named_modules()
        if parametrize.is_parametrized(layer, "weight")
    ]


def update_of(layer: nn.Module) -> LowRank:
    """Update of such a layer."""
    return cast(LowRank, layer.parametrizations.weight[0])  # type: ignore[union-attr,index]
