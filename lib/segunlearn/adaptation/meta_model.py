"""What meta-training leaves beside the joint weights, as one file: ``meta.safetensors``.

The joint weights stay the model for every site without an adapter: MAML's own weights are worse
before their first step, so they are only where its steps start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast, get_args

import torch

from segunlearn.adaptation.inner import InnerSet
from segunlearn.adapters.site import Start, check_base, pack, unpack
from segunlearn.errors import IntegrityError, NotFoundError
from segunlearn.records.version_info import META_MODEL, VersionInfo

FORMAT: Final = "segunlearn-meta-model-1"
_PARTS: Final = ("initial", "rates", "film_network", "generator", "film_rates")

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class MetaModel:
    """Where adapting starts and how it goes on.

    Parameters
    ----------
    base
        SHA-256 of the joint weights' file.
    inner_set
        Part that MAML's steps change.
    initial
        MAML's weights, where they differ from the base's; empty: the base's.
    rates
        For each weight of the inner set its learned rate at each step, ``(steps,)``. Empty: no
        MAML.
    film_network
        Weights the generator was trained with, where they differ from the base's.
    generator
        State of ``generator.Generator``. Empty: no generator.
    film_rates
        As ``rates``, of steps that start at what the generator gives. Empty: none were learned.
    about
        Plain JSON: settings, sites, curve, versions.
    """

    base: str
    inner_set: InnerSet = "decoder"
    initial: Tensors = field(default_factory=dict)
    rates: Tensors = field(default_factory=dict)
    film_network: Tensors = field(default_factory=dict)
    generator: Tensors = field(default_factory=dict)
    film_rates: Tensors = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods of ``adapt`` that it makes possible, the best first."""
        parts = {
            "generator+maml": self.film_rates, "maml": self.rates,
            "generator": self.generator, "generator+steps": self.generator,
        }  # fmt: skip
        return tuple(name for name, part in parts.items() if part)

    def part_of(self, method: str) -> str:
        """Name the part whose weights a method of ``adapt`` starts from; empty: the base's."""
        part = {"maml": "initial", "fine_tune": ""}.get(method, "film_network")
        return part if part and getattr(self, part) else ""

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        tensors = {f"{p}/{k}": v for p in _PARTS for k, v in getattr(self, p).items()}
        about = {"inner_set": self.inner_set, "about": dict(self.about)}
        return pack(FORMAT, tensors, self.base, about)

    @classmethod
    def from_bytes(cls, data: bytes, base_sha256: str) -> MetaModel:
        """Read what ``to_bytes`` gave, for the base it was made for.

        Raises
        ------
        IntegrityError
            It is anything else, or of another base.
        """
        tensors, base, header = unpack(FORMAT, data, "meta model")
        check_base(base, base_sha256, "meta model")
        parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            if part not in parts or not rest:
                raise IntegrityError(f"the meta model holds an unknown tensor {name!r:.80}.")
            parts[part][rest] = value
        inner_set, about = header.get("inner_set"), header.get("about")
        if inner_set not in get_args(InnerSet) or not isinstance(about, dict):
            raise IntegrityError("the meta model does not say what it is; make it again.")
        return cls(base, cast(InnerSet, inner_set), about=about, **parts)


def read_meta_model(info: VersionInfo) -> MetaModel | None:
    """Read the meta model beside a version's weights; None where there is none.

    Digest and content come from one reading of the file.

    Raises
    ------
    IntegrityError
        The file is not the one that was published, or was made for other weights.
    """
    try:
        data = (info.path / META_MODEL).read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != info.meta_sha256:
        raise IntegrityError(
            f"{info.version}: its meta model was changed after it was published. Restore "
            f"{META_MODEL} from a backup, or remove it and adapt by fine_tune."
        )
    return MetaModel.from_bytes(data, info.sha256)


def start_of(info: VersionInfo, start: Start | None) -> Tensors | None:
    """Read the tensors that an adapter of a version goes on from; None: the base's own.

    Raises
    ------
    IntegrityError
        The meta model is missing, was changed, or is another one.
    """
    if start is None:
        return None
    meta = read_meta_model(info)
    if meta is None or info.meta_sha256 != start.meta_sha256 or start.part not in _PARTS:
        raise IntegrityError(
            f"{info.version}: the meta model that the site adapter goes on from "
            f"({start.meta_sha256[:12]}…) is not beside the weights. Restore {META_MODEL} from a "
            "backup, or adapt the site again."
        )
    found: Tensors = getattr(meta, start.part)
    return found


def need(meta: MetaModel | None, method: str) -> MetaModel:
    """Return the meta model, when it holds what a method needs.

    Raises
    ------
    NotFoundError
        There is none, or it was trained for other methods.
    """
    if meta is None:
        raise NotFoundError(
            f"{method}: the model was not meta-trained, so only fine_tune is possible. Run "
            "'segunlearn meta-train' on studies of several sites, or choose fine_tune."
        )
    if method not in meta.methods:
        raise NotFoundError(
            f"{method}: the model was meta-trained for {', '.join(meta.methods) or 'nothing'}. "
            "Choose one of these or fine_tune, or meta-train it for this method."
        )
    return meta
