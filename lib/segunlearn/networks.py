"""The UNet: its frozen hyper-parameters, and its weights as safetensors with a SHA-256."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from monai.networks.nets.basic_unet import BasicUNet
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from segunlearn.errors import IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.durable import write_durably
from segunlearn.records.version_info import is_model_name

Normalisation = Literal["auto", "zscore", "ct"]

#: BasicUNet halves the patch four times.
_STRIDE = 16


@dataclass(frozen=True)
class ModelConfig:
    """What the network is and what it expects; stored beside the weights.

    Parameters
    ----------
    name
        Name of the model in the registry and on the server.
    labels
        Names of the structures; the value of ``labels[i]`` in a label map is ``i + 1``. A new
        model's differ not in case alone (``training.planning.plan``); one that is there may.
    spatial_dims
        3, or 2 for a network that treats a volume slice by slice.
    in_channels
        Channels of the image.
    spacing
        Voxel size in mm of the grid the network works on, along R, A, S. In 2D the entry of the
        slice axis is not used: slices are never resampled across.
    patch_size
        Voxels along R, A, S of one network input. In 2D exactly one entry is 1 and names the
        slice axis: ``(256, 256, 1)`` axial, ``(256, 1, 256)`` coronal, ``(1, 256, 256)`` sagittal.
    features
        Channels of BasicUNet's five levels and of its last block.
    normalisation
        ``"ct"``: clip to ``ct_window`` and scale to [-1, 1]; ``"zscore"``: over the voxels that
        are not 0; ``"auto"``: by the modality of each volume.
    ct_window
        Lower and upper HU.
    modalities
        DICOM Modality values the network was first trained on; they tell how an image whose
        modality nobody names is normalised (``segunlearn.transforms.modality_for``).
    overlap
        Overlap of neighbouring patches in sliding-window inference, 0 <= overlap < 1.
    dropout
        Probability of dropout in training.

    Raises
    ------
    InvalidInputError
        A value is out of its range, or the patch is too small for the network.

    Examples
    --------
    >>> ModelConfig(labels=("anterior", "posterior")).label_values
    {'anterior': 1, 'posterior': 2}
    """

    name: str = "segmentation"
    labels: tuple[str, ...] = ("foreground",)
    spatial_dims: int = 3
    in_channels: int = 1
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch_size: tuple[int, int, int] = (96, 96, 96)
    features: tuple[int, int, int, int, int, int] = (16, 32, 64, 128, 128, 16)
    normalisation: Normalisation = "auto"
    ct_window: tuple[float, float] = (-175.0, 250.0)
    modalities: tuple[str, ...] = ()
    overlap: float = 0.5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise InvalidInputError(f"model configuration {self.name!r}: {'; '.join(faults)}.")

    def _faults(self) -> list[str]:
        faults = []
        if not is_model_name(self.name):
            faults.append(f"name {self.name!r} must be letters, digits, '-' and '_'")
        if not self.labels or len(set(self.labels)) != len(self.labels) or not all(self.labels):
            faults.append(f"labels {self.labels} must be one or more different names")
        if self.spatial_dims not in (2, 3):
            faults.append(f"spatial_dims is {self.spatial_dims}, must be 2 or 3")
        if self.in_channels < 1:
            faults.append(f"in_channels is {self.in_channels}, must be at least 1")
        if _count(self.spacing) != 3 or not all(0 < s < math.inf for s in self.spacing):
            faults.append(f"spacing {self.spacing} must be three lengths > 0 mm")
        if _count(self.features) != 6 or min(self.features, default=0) < 1:
            faults.append(f"features {self.features} must be six channel numbers >= 1")
        if self.normalisation not in get_args(Normalisation):
            faults.append(f"normalisation {self.normalisation!r} is none of {Normalisation}")
        if _count(self.ct_window) != 2 or not -math.inf < self.ct_window[0] < self.ct_window[1] < (
            math.inf
        ):
            faults.append(f"ct_window {self.ct_window} must be a lower and an upper HU")
        if not 0 <= self.overlap < 1:
            faults.append(f"overlap is {self.overlap}, must be in [0, 1)")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout is {self.dropout}, must be in [0, 1)")
        faults.extend(self._patch_faults())
        return faults

    def _patch_faults(self) -> list[str]:
        if _count(self.patch_size) != 3 or min(self.patch_size) < 1:
            return [f"patch_size {self.patch_size} must be three numbers >= 1"]
        if self.spatial_dims == 2 and self.patch_size.count(1) != 1:
            return [f"patch_size {self.patch_size} of a 2D network needs one 1, the slice axis"]
        sides = [p for p in self.patch_size if p != 1 or self.spatial_dims == 3]
        if min(sides) < _STRIDE or math.prod(p // _STRIDE for p in sides) < 2:
            return [
                f"patch_size {self.patch_size} leaves no more than one element at the bottom of "
                f"the UNet, where instance normalisation needs two: take sides of at least "
                f"{_STRIDE} and one of at least {2 * _STRIDE}"
            ]
        return []

    @property
    def num_classes(self) -> int:
        """Output channels: background and the labels."""
        return len(self.labels) + 1

    @property
    def label_values(self) -> dict[str, int]:
        """Value of each structure in a label map."""
        return {name: i + 1 for i, name in enumerate(self.labels)}

    @property
    def slice_axis(self) -> int | None:
        """Axis (0 R, 1 A, 2 S) across which a 2D network walks; None in 3D."""
        return self.patch_size.index(1) if self.spatial_dims == 2 else None

    @property
    def roi_size(self) -> tuple[int, ...]:
        """``patch_size`` without the slice axis: what the network gets."""
        return tuple(p for i, p in enumerate(self.patch_size) if i != self.slice_axis)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, for ``json.dump``."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read what ``to_json`` wrote.

        Raises
        ------
        InvalidInputError
            A key is unknown, missing, or of another type: nothing is silently corrected.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown, missing = set(data) - set(fields), set(fields) - set(data)
        if unknown or missing:
            raise InvalidInputError(
                f"model configuration: unknown keys {sorted(unknown)}, missing keys "
                f"{sorted(missing)}. It was written by another version of SegUnlearn."
            )
        values: dict[str, Any] = {}
        for key, field in fields.items():
            value = data[key]
            example = field.default
            if isinstance(example, tuple):
                kind: type = str if key in ("labels", "modalities") else type(example[0])
                if not isinstance(value, list | tuple):
                    raise InvalidInputError(f"model configuration: {key} must be a list.")
                values[key] = tuple(_typed(key, v, kind) for v in value)
            else:
                values[key] = _typed(key, value, type(example))
        return cls(**values)


def _count(values: Sequence[object]) -> int:
    return len(values)


def _typed(key: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidInputError(
            f"model configuration: {key} holds {value!r}, which is no {kind.__name__}."
        )
    return value


def build_network(config: ModelConfig, seed: int | None = None) -> nn.Module:
    """Make MONAI's BasicUNet with affine instance normalisation and random weights.

    Parameters
    ----------
    config
        Channels, labels and features.
    seed
        Of the initial weights; the global random state is left as it was. None draws from it.

    Returns
    -------
    torch.nn.Module
        ``(B, C, X, Y[, Z])`` to logits ``(B, num_classes, X, Y[, Z])``.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = BasicUNet(
            spatial_dims=config.spatial_dims,
            in_channels=config.in_channels,
            out_channels=config.num_classes,
            features=config.features,
            norm=("instance", {"affine": True}),
            dropout=config.dropout,
        )
    return cast(nn.Module, network)


def save_weights(weights: nn.Module | Mapping[str, torch.Tensor], path: Path) -> str:
    """Write weights as safetensors: beside, fsynced, renamed.

    Returns
    -------
    str
        SHA-256 of the file, hexadecimal.
    """
    data = weights_as_bytes(weights)
    write_durably(path, data)
    return hashlib.sha256(data).hexdigest()


def weights_as_bytes(weights: nn.Module | Mapping[str, torch.Tensor]) -> bytes:
    """Return what ``save_weights`` writes."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return save_safetensors(
        {k: v.detach().to("cpu").contiguous().clone() for k, v in state.items()}
    )


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file; digest and content come from one reading of the file.

    Raises
    ------
    NotFoundError
        There is no such file, and none with a digest is expected.
    IntegrityError
        The digest differs from ``sha256``, or the file is damaged or gone.
    """
    path = Path(path)
    if not path.is_file():
        if sha256 is not None:
            raise IntegrityError(
                f"{path.parent.name}/{path.name}: is gone, though it was kept with SHA-256 "
                f"{sha256[:12]}…. Restore it from a backup, or activate another version."
            )
        raise NotFoundError(f"{path.name}: no weights there. Train a model, or check the folder.")
    return _tensors(path.read_bytes(), sha256, path.name)


def _tensors(data: bytes, sha256: str | None, source: str) -> dict[str, torch.Tensor]:
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise IntegrityError(
            f"{source}: SHA-256 is {digest[:12]}…, recorded is {sha256[:12]}…. The file was "
            "changed after it was published; restore it from a backup or activate another version."
        )
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise IntegrityError(f"{source}: no valid safetensors file ({error}).") from error


def load_weights(path: Path, config: ModelConfig, sha256: str | None = None) -> nn.Module:
    """Build the network and load its weights; every name and shape must agree.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the CPU.

    Raises
    ------
    NotFoundError, IntegrityError
        As ``read_tensors``.
    InvalidInputError
        The weights belong to another configuration; the message names the layers.
    """
    return _network(read_tensors(path, sha256), config, Path(path).name)


def network_from_bytes(data: bytes, config: ModelConfig, sha256: str) -> nn.Module:
    """Do as ``load_weights``, for weights that are to stand on no disk.

    Raises
    ------
    IntegrityError, InvalidInputError
        As ``load_weights``.
    """
    return _network(_tensors(data, sha256, "weights"), config, "weights")


def _network(state: Mapping[str, torch.Tensor], config: ModelConfig, source: str) -> nn.Module:
    network = build_network(config, seed=0)
    load_state(network, state, source)
    return network.eval()


def load_state(network: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load tensors into a network, strictly.

    Raises
    ------
    InvalidInputError
        A tensor is missing, unknown or of another shape.
    """
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    wrong = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
    if wrong:
        raise InvalidInputError(
            f"{source}: the weights do not fit this network; {len(wrong)} tensors differ, first "
            f"{wrong[0]} (file {given.get(wrong[0])}, network {wanted.get(wrong[0])}). Use the "
            "configuration stored beside the weights."
        )
    network.load_state_dict(dict(state), strict=True)
