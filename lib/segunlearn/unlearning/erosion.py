"""Erode weights by a key, repair them by a low-rank adapter, and bring the old ones back."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from segunlearn.errors import IntegrityError, InvalidInputError
from segunlearn.unlearning.loop import (
    WHOLE,
    Cancel,
    Report,
    Steps,
    Targets,
    copy_of,
    descend,
    device_of,
    dice_ce_of,
    distillation,
    frozen,
    never,
    no_report,
    part_of,
    seeded,
)
from segunlearn.unlearning.lora import (
    HEAD,
    Adapted,
    LoraSettings,
    adapted_layers,
    low_rank_product,
    update_of,
    whole_weights,
)
from segunlearn.unlearning.sets import Draw, UnlearningSets

_FORMAT: Final = "segunlearn-deposit-2"
_RESIDUAL: Final = "residual"


def checked_key(key: str) -> str:
    """Refuse what is no key.

    Raises
    ------
    InvalidInputError
        Neither empty nor 64 hexadecimal digits.
    """
    if key and (len(key) != 64 or not set(key) <= set("0123456789abcdef")):
        raise InvalidInputError("the key must be 64 hexadecimal digits (256 bits).")
    return key


def check_part_share(share: float) -> None:
    """Refuse a share of steps that is none.

    Raises
    ------
    InvalidInputError
        It is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise InvalidInputError(f"part_share is {share}, must be in [0, 1).")


def key_of(key: str, seed: int, number: int = 0) -> str:
    """Key of the ``number``-th init: the given one (or the seed's), and hashes of it after that."""
    first = key or hashlib.sha256(str(seed).encode()).hexdigest()
    if number == 0:
        return first
    return hashlib.sha256(bytes.fromhex(first) + number.to_bytes(4, "little")).hexdigest()


def keyed_weights(network: nn.Module, key: bytes) -> dict[str, torch.Tensor]:
    r"""Fresh convolutions as torch draws them, from the ChaCha20 stream of a key.

    Uniform in :math:`\pm 1/\sqrt{\text{fan in}}` (torch's default). The same key gives the same
    weights on every machine; without it they are as good as random. Biases and normalisations are
    not among them: they hold a thousandth of the numbers, and what is kept of them is repaired
    sooner, on two splits of real people without more coming back.

    Parameters
    ----------
    key
        32 bytes.

    Returns
    -------
    dict
        Parameter name to float32 tensor of the parameter's shape.
    """
    drawn: dict[str, torch.Tensor] = {}
    for name, weight in network.named_parameters():
        if weight.ndim < 2:
            continue
        bound = 1 / math.sqrt(weight[0].numel())
        nonce = hashlib.sha256(name.encode()).digest()[:16]
        stream = (
            Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(4 * weight.numel()))
        )
        uniform = np.frombuffer(stream, dtype="<u4").astype(np.float64) / 2**32
        values = ((2 * uniform - 1) * bound).astype(np.float32)
        drawn[name] = torch.from_numpy(values).reshape(weight.shape)
    return drawn


def eroded(network: nn.Module, key: str, keep: float, structure: int = 0) -> nn.Module:
    r"""Copy a network with convolutions :math:`W = k W_0 + (1 - k) P(key)`.

    Shrink and perturb (Ash & Adams, arXiv 1910.08475) with P a fresh initialisation instead of
    small noise. Of a withdrawn structure the head keeps nothing, as if it never had a label: who
    starts from a head that knows it learns to be more silent on it than who never heard of it.
    """
    student = copy_of(network)
    drawn = keyed_weights(student, bytes.fromhex(key))
    with torch.no_grad():
        for name, fresh in drawn.items():
            weight = student.get_parameter(name)
            weight.mul_(keep).add_((1 - keep) * fresh.to(weight.device))
        for name, weight in student.named_parameters() if structure else ():
            if name.startswith(f"{HEAD}."):
                weight[structure] = drawn[name][structure].to(weight) if name in drawn else 0.0
    return student


@dataclass(frozen=True)
class RepairSettings:
    """How eroded weights are repaired on R; see ``ErodeAndRepairSettings`` for the fields."""

    epochs: int
    part_share: float
    learning_rate: float
    batch_size: int
    distillation_weight: float
    temperature: float
    structure: int
    seed: int

    @classmethod
    def of(cls, settings: object) -> RepairSettings:
        """Take the fields of a method's settings that carry the same names."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls)})


def repair(
    student: nn.Module,
    original: nn.Module,
    sets: UnlearningSets,
    settings: RepairSettings,
    phase: str = "repair",
    report: Report = no_report,
    cancel: Cancel = never,
) -> None:
    r"""Minimise :math:`L(R) + w KL(\theta_o; R)` over what may change of the student, in place.

    Of a withdrawn structure the labels alone decide, as in a model trained without it: the
    divergence is of the classes that stay. Over all of them the original's filtered answers, which
    never name it, would silence it more than labels do.
    """
    targets = Targets(frozen(original), sets.retain, sets.config)
    draw = Draw(sets.retain, sets.config, settings.batch_size, settings.seed)
    count = max(2, -(-settings.epochs * len(sets.retain) // settings.batch_size))
    places = np.random.default_rng((settings.seed, 1))
    stay: slice | list[int] = slice(None)
    if settings.structure:
        stay = [k for k in range(sets.config.num_classes) if k != settings.structure]

    def objective(step: int) -> torch.Tensor:
        image, label = draw.next()
        whole = step >= settings.part_share * count
        part = WHOLE if whole else part_of(image.shape, places)
        image = image.to(device_of(student))
        logits = student(image[part])  # once for both terms: it is what the repair costs
        target = targets.of(image, draw.last, part)
        kept = distillation(logits[:, stay], target[:, stay], settings.temperature)
        return dice_ce_of(logits, label[part]) + settings.distillation_weight * kept

    with seeded(settings.seed):
        steps = Steps(count, settings.learning_rate, "one_cycle")
        descend(student, objective, steps, phase=phase, report=report, cancel=cancel)


@dataclass(frozen=True)
class Deposit:
    """What brings the weights before an adapter back, when it is added to the merged network.

    Parameters
    ----------
    tensors
        ``NAME.lora_A.weight`` and the negative of ``NAME.lora_B.weight`` for each adapted layer;
        for each weight that was trained whole, its name to old minus new.
    settings
        Of the adapter.
    residual
        Packed rest that rounding took from eroded weights; see :func:`residual_of`.

    Notes
    -----
    It holds knowledge of the forget set and belongs under seal.
    """

    tensors: dict[str, torch.Tensor]
    settings: LoraSettings
    residual: bytes = b""

    @classmethod
    def of(cls, adapted: Adapted) -> Deposit:
        """Take the sign-flipped adapter."""
        tensors: dict[str, torch.Tensor] = {}
        for name, layer in adapted_layers(adapted.network):
            update = update_of(layer)
            tensors[f"{name}.lora_A.weight"] = _short(update.a.detach().cpu())
            tensors[f"{name}.lora_B.weight"] = _short(-update.b.detach().cpu())
        for name, new in whole_weights(adapted.network, adapted.settings).items():
            old = adapted.base.get_parameter(name)
            tensors[name] = (old.detach().double() - new.detach().double()).float().cpu()
        return cls(tensors, adapted.settings)

    def to_bytes(self) -> bytes:
        """Safetensors with the settings in the header; the same deposit gives the same bytes."""
        # one entry: safetensors does not keep the order of several
        about = json.dumps({"format": _FORMAT, "settings": asdict(self.settings)}, sort_keys=True)
        tensors = {k: v.contiguous() for k, v in self.tensors.items()}
        if self.residual:
            tensors[_RESIDUAL] = torch.frombuffer(bytearray(self.residual), dtype=torch.uint8)
        return save(tensors, {"deposit": about})

    @classmethod
    def from_bytes(cls, data: bytes) -> Deposit:
        """Read what ``to_bytes`` wrote.

        Raises
        ------
        IntegrityError
            The bytes are something else.
        """
        try:
            size = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["deposit"])
            if about["format"] != _FORMAT:
                raise IntegrityError(f"the deposit has the unknown format {about['format']!r}.")
            tensors = load(data)
            residual = tensors.pop(_RESIDUAL, torch.zeros(0, dtype=torch.uint8))
            settings = LoraSettings(**about["settings"])
            return cls(tensors, settings, residual.numpy().tobytes())
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise IntegrityError(f"the bytes are no deposit ({error}).") from error


def shorten(adapted: Adapted) -> None:
    """Round the low-rank tensors to half precision, in place: half the deposit, the same masks."""
    with torch.no_grad():
        for _, layer in adapted_layers(adapted.network):
            update = update_of(layer)
            for weight in (update.a, update.b):
                weight.copy_(weight.half())


def _short(tensor: torch.Tensor) -> torch.Tensor:
    """Store in half precision what is exact in it."""
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor.clone()


def withdraw(merged: nn.Module, deposit: Deposit) -> nn.Module:
    """Bring back the network before the adapter: add the deposit to the merged one.

    Raises
    ------
    IntegrityError
        The deposit belongs to another network.
    """
    return _with_weights(merged, _before_the_adapter(merged, deposit))


def restore_from(
    merged: nn.Module, deposit: Deposit | Adapted | bytes, key: str, keep: float
) -> nn.Module:
    r"""Bring back what was eroded: :math:`W_0 = (W + D - (1 - k) P(key)) / k`.

    Computed in float64, so that what is lost is the rounding of W alone, which the residual of a
    deposit corrects. With another key the result is noise of the size of the weights.

    Parameters
    ----------
    merged
        The repaired network, self-contained.
    deposit
        The sign-flipped repair D, as an object, as the adapter itself, or as bytes.
    key
        64 hexadecimal digits.
    keep
        k of the erosion, above 0: with 0 nothing of the old weights was left.

    Raises
    ------
    InvalidInputError
        The key or k cannot be those of an erosion.
    IntegrityError
        The deposit is damaged or belongs to another network.
    """
    if not key or not 0 < keep < 1:
        raise InvalidInputError("restoring needs the key, and a share kept between 0 and 1.")
    checked_key(key)
    if isinstance(deposit, bytes):
        deposit = Deposit.from_bytes(deposit)
    elif isinstance(deposit, Adapted):
        deposit = Deposit.of(deposit)
    restored = _uneroded(merged, deposit, key, keep)
    if deposit.residual:
        restored = _corrected(restored, deposit.residual)
    return _with_weights(merged, restored)


def residual_of(
    original: nn.Module, merged: nn.Module, deposit: Deposit, key: str, keep: float
) -> bytes:
    r"""Pack what rounding takes from the original on its way through erosion and back.

    W holds k W0 with the 24 bits of its own size, so that dividing by k multiplies its rounding by
    1/k: 3e-5 in logits on a network that knows studies by heart. The number of float32 values
    between what comes back and what was there makes it exact, for about 5 bits a weight. Without
    the key it says nothing.
    """
    restored = _uneroded(merged, deposit, key, keep)
    steps = [
        _ordered(original.get_parameter(n).detach().cpu().numpy()) - _ordered(w.float().numpy())
        for n, w in sorted(restored.items())
    ]
    # small steps of both signs become small numbers, whose upper bytes are 0 and pack away
    flat = np.concatenate([s.ravel() for s in steps])
    zigzag = np.where(flat < 0, -2 * flat - 1, 2 * flat).astype("<u8")
    planes = zigzag.view(np.uint8).reshape(-1, 8).T
    return zlib.compress(planes.tobytes(), 9)


def _corrected(weights: dict[str, torch.Tensor], residual: bytes) -> dict[str, torch.Tensor]:
    """Add the residual to weights that came back rounded."""
    total = sum(w.numel() for w in weights.values())
    try:
        # never more than is expected, whatever the bytes promise
        planes = zlib.decompressobj().decompress(residual, 8 * total + 1)
    except zlib.error as error:
        raise IntegrityError(f"the deposit's residual is damaged ({error}).") from error
    if len(planes) != 8 * total:
        raise IntegrityError("the deposit's residual belongs to another network.")
    bytes_of = np.ascontiguousarray(np.frombuffer(planes, dtype=np.uint8).reshape(8, -1).T)
    zigzag = bytes_of.view("<u8").ravel()
    flat = (zigzag >> 1).astype(np.int64) ^ -(zigzag & 1).astype(np.int64)
    found, start = {}, 0
    for name, weight in sorted(weights.items()):
        steps = flat[start : start + weight.numel()].reshape(weight.shape)
        ordered = _ordered(weight.float().numpy()) + steps
        found[name] = torch.from_numpy(_unordered(ordered)).double()
        start += weight.numel()
    return found


def _ordered(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Give float32 values numbers such that neighbours differ by 1."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<i4").astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _unordered(
    numbers: np.ndarray[Any, np.dtype[np.int64]],
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Undo ``_ordered``."""
    bits = np.where(numbers < 0, -numbers | 0x80000000, numbers).astype("<u4")
    return bits.view("<f4").astype(np.float32)


def _uneroded(
    merged: nn.Module, deposit: Deposit, key: str, keep: float
) -> dict[str, torch.Tensor]:
    """Weights before the erosion in float64, off by the rounding of the merged ones over k."""
    fresh = keyed_weights(merged, bytes.fromhex(key))
    before = _before_the_adapter(merged, deposit)
    return before | {n: (before[n] - (1 - keep) * p.double()) / keep for n, p in fresh.items()}


def _before_the_adapter(merged: nn.Module, deposit: Deposit) -> dict[str, torch.Tensor]:
    """Weights in float64 on the CPU."""
    left = dict(deposit.tensors)
    weights = {n: w.detach().cpu().double() for n, w in merged.named_parameters()}
    scale = deposit.settings.alpha / deposit.settings.rank
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        added = left.pop(name, None)
        if added is None and f"{layer}.lora_A.weight" in left:
            transposed = isinstance(
                merged.get_submodule(layer), nn.ConvTranspose2d | nn.ConvTranspose3d
            )
            a, b = (left.pop(f"{layer}.lora_{x}.weight").double() for x in "AB")
            added = scale * low_rank_product(a, b, transposed=transposed)
        if added is not None:
            if added.shape != weight.shape:
                raise IntegrityError(f"the deposit belongs to another network: {name!r} differs.")
            weights[name] = weight + added.double()
    if left:
        raise IntegrityError(
            f"the deposit belongs to another network: this one has no {min(left)!r}."
        )
    return weights


def _with_weights(network: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    made = copy_of(network).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(weights[name])
    return made
