"""Site adapters: the tensors of a network that a hospital's adapter replaces, as one file.

A modulation (FiLM) of an affine normalisation folds into its weight and bias, and gradient steps
change tensors of the adapted part. So every adapter is a set of changed tensors, inference with it
costs nothing more, and the base's file is never written.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from segunlearn.errors import IntegrityError

FORMAT: Final = "segunlearn-site-adapter-2"
_HEADER: Final = "segunlearn"


@dataclass(frozen=True)
class Start:
    """Which tensors of a meta model go into the base before the adapter's own.

    Parameters
    ----------
    part
        Of the meta model, such as ``initial``.
    meta_sha256
        Digest of its file, hexadecimal.
    """

    part: str
    meta_sha256: str


@dataclass(frozen=True, eq=False)
class SiteAdapter:
    """What turns a base network into the network of one site.

    Parameters
    ----------
    base
        SHA-256 of the base's weights file, hexadecimal.
    tensors
        Name of a parameter of the base to its new value, float32; see ``differing``.
    about
        Plain JSON: method, k, steps, labels, support (pseudonyms), curve, leave-one-out Dice,
        time, versions.
    start
        The steps began at a meta model's weights, which are not repeated here; None: at the base.

    Raises
    ------
    IntegrityError
        No tensor at all, or one that is not finite float32.
    """

    base: str
    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)
    start: Start | None = None

    def __post_init__(self) -> None:
        if not self.tensors and self.start is None:
            raise IntegrityError(
                "the adapter changes no tensor. Adapt the site with more steps, or a larger "
                "learning rate."
            )
        for name, value in self.tensors.items():
            if value.dtype != torch.float32 or not bool(torch.isfinite(value).all()):
                raise IntegrityError(
                    f"the adapter's tensor {name!r} is not finite float32; adapt the site again."
                )

    @cached_property
    def content(self) -> bytes:
        """The file's content: safetensors, with the other facts in its header."""
        start = asdict(self.start) if self.start is not None else None
        return pack(FORMAT, self.tensors, self.base, {"start": start, "about": dict(self.about)})

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> SiteAdapter:
        """Read ``content``.

        Raises
        ------
        IntegrityError
            It is anything else.
        """
        tensors, base, facts = unpack(FORMAT, data, "site adapter")
        try:
            start = Start(**facts["start"]) if facts["start"] is not None else None
            return cls(base, tensors, dict(facts["about"]), start)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"the site adapter does not say what it is ({error!r:.80}); make it again."
            ) from error

    def applied_to(
        self,
        network: nn.Module,
        base_sha256: str,
        start: Mapping[str, torch.Tensor] | None = None,
    ) -> nn.Module:
        """Make the site's network; the given one stays as it is.

        Parameters
        ----------
        network
            The base, loaded.
        base_sha256
            Digest of the file it was loaded from.
        start
            The tensors that ``self.start`` names.

        Returns
        -------
        torch.nn.Module
            A copy in evaluation mode, on the device of ``network``.

        Raises
        ------
        IntegrityError
            The adapter was made for another base, does not fit the network, or what it starts from
            is not given.
        """
        check_base(self.base, base_sha256, "site adapter")
        if (self.start is None) != (start is None):
            raise IntegrityError(
                "the site adapter goes on from a meta model's weights, and only from them. Put the "
                "meta model back beside its version, or adapt the site again."
            )
        return with_tensors(network, {**(start or {}), **self.tensors})


def differing(
    tensors: Mapping[str, torch.Tensor], network: nn.Module, start: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Tensors that are not, bit for bit, what the network has once ``start`` was put in."""
    parameters = {n: p.detach().float().cpu() for n, p in network.named_parameters()}
    before = {**parameters, **start}
    return {n: value for n, value in tensors.items() if not torch.equal(value, before[n])}


def with_tensors(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Copy a network and put tensors in, in evaluation mode.

    Raises
    ------
    IntegrityError
        A name is unknown, or a shape differs; nothing was changed.
    """
    adapted = copy.deepcopy(network).eval()
    parameters = dict(adapted.named_parameters())
    for name, value in tensors.items():
        have = tuple(parameters[name].shape) if name in parameters else None
        if have != tuple(value.shape):
            raise IntegrityError(
                f"tensor {name!r} has shape {tuple(value.shape)}, the network {have}: they do not "
                "belong together. Adapt the site again."
            )
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)
    return adapted


def check_base(made_for: str, base_sha256: str, what: str) -> None:
    """Refuse what was made for another base.

    Raises
    ------
    IntegrityError
        The digests differ.
    """
    if made_for != base_sha256:
        raise IntegrityError(
            f"the {what} was made for weights {made_for[:12]}…, the base is {base_sha256[:12]}…. "
            "It would give a network that nobody has measured; make it again for this base."
        )


def pack(
    kind: str, tensors: Mapping[str, torch.Tensor], base: str, about: Mapping[str, Any]
) -> bytes:
    """Write tensors and facts about them as safetensors; the same content gives the same bytes."""
    facts = {"format": kind, "base": base, "about": dict(about)}
    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    # one entry: safetensors writes several in any order
    return save_safetensors(plain, {_HEADER: json.dumps(facts, sort_keys=True, allow_nan=False)})


def unpack(
    kind: str, data: bytes, what: str
) -> tuple[dict[str, torch.Tensor], str, dict[str, Any]]:
    """Read tensors, base digest and facts that ``pack`` wrote.

    Raises
    ------
    IntegrityError
        It is no such file, or damaged.
    """
    try:
        tensors = load_safetensors(data)
        (length,) = struct.unpack("<Q", data[:8])
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER])
        found, base, about = facts["format"], facts["base"], dict(facts["about"])
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"this is no valid {what} ({error!r:.200}); make it again.") from error
    if found != kind or not isinstance(base, str):
        raise IntegrityError(f"the {what} says it is {found!r:.60}, needed is {kind!r}.")
    return tensors, base, about
