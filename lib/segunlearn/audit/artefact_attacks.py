"""Attacks on the released file: rounding its weights, and taking its adapter away.

Quantisation can bring back what a small change of weights suppressed (arXiv 2410.16454); an
adapter that was shipped beside its base is forgotten by whoever loads the base alone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
from torch import nn

_ADAPTER = re.compile(
    r"(^|\.)(lora_[A-Za-z_]+|modules_to_save|base_layer|adapter\w*|parametrizations)(\.|$)"
)


def half_precision(network: nn.Module) -> nn.Module:
    """Round every weight to float16; the arithmetic stays float32."""
    return _with_weights(network, lambda t: t.to(torch.float16).to(t.dtype))


def quantised(network: nn.Module, bits: int = 8) -> nn.Module:
    """Round weights to symmetric integers, one scale for each output channel ("fake" int8).

    ``w -> s * round(w / s)`` with ``s = max|w| / (2^(bits-1) - 1)``; vectors (biases, norms) stay.
    """
    top = 2 ** (bits - 1) - 1

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim < 2:
            return tensor
        scale = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / top
        return torch.where(scale > 0, (tensor / scale).round() * scale, tensor)

    return _with_weights(network, rounded)


def _with_weights(network: nn.Module, change: object) -> nn.Module:
    assert callable(change)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(change(weight))
    return other.eval()


def adapter_keys(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in a state that betray an adapter; a released, merged file has none."""
    return sorted(k for k in state if _ADAPTER.search(k))


def without_adapter(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop an adapter from a state, and give the base network its own names back.

    Understands peft (``base_model.model.x.base_layer.weight``, ``lora_*``, ``modules_to_save``)
    and torch's parametrisations (``x.parametrizations.weight.original``).
    """
    kept = {}
    for name, tensor in state.items():
        if re.search(r"(^|\.)(lora_[A-Za-z_]+|modules_to_save)(\.|$)", name):
            continue
        if ".parametrizations." in name and not name.endswith(".original"):
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        plain = plain.replace(".original_module.", ".")
        plain = re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", plain)
        kept[plain] = tensor
    return kept
