"""The one preprocessing: training, inference and everything else see the same voxels.

Order: closest RAS orientation (axes swapped and flipped, never interpolated), normalisation,
resampling to the model's spacing. Grids are aligned at the outer edges of the field of view:
voxel ``j`` of ``n`` new voxels lies at ``(j + 1/2) * m / n - 1/2`` of ``m`` old ones. ``restore``
walks the same way back, onto exactly the input's grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from segunlearn.errors import GeometryError, InvalidInputError, LabelError
from segunlearn.networks import ModelConfig
from segunlearn.volumes import Volume

#: Largest model grid, in voxels, and how many times the image's own voxels it may have unless it
#: is small; a wrong unit in a header would ask for far more.
MAX_VOXELS = 1_000_000_000
MAX_GROWTH, SMALL_GRID = 64, 2**24

#: An image of unknown modality is taken for CT where this share of its voxels lies below this HU.
CT_SHARE, BELOW_HU = 0.01, -100

#: Sizes within this share of the model's spacing are not resampled.
_SAME_SPACING = 1e-3

#: Voxels restored at a time, per class.
_SLAB_VOXELS = 8_000_000


@dataclass(frozen=True)
class Grid:
    """How a volume's own grid and the model's grid belong together.

    Parameters
    ----------
    source_shape, source_affine
        The input's grid.
    axes
        ``axes[i]`` is the input axis that runs along RAS axis ``i``.
    flips
        Whether that axis runs against R, A or S.
    shape
        The model's grid, RAS.
    """

    source_shape: tuple[int, int, int]
    source_affine: npt.NDArray[np.float64]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]

    @property
    def oriented_shape(self) -> tuple[int, int, int]:
        """The input's shape after its axes were put into RAS order."""
        x, y, z = (self.source_shape[a] for a in self.axes)
        return (x, y, z)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Model voxel index to millimetres in RAS."""
        to_source = np.zeros((4, 4))
        to_source[3, 3] = 1.0
        for i, axis in enumerate(self.axes):
            size, scale = self.source_shape[axis], self.source_shape[axis] / self.shape[i]
            sign = -1.0 if self.flips[i] else 1.0
            to_source[axis, i] = sign * scale
            offset = (scale - 1.0) / 2.0
            to_source[axis, 3] = size - 1 - offset if self.flips[i] else offset
        return self.source_affine @ to_source

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels of the model's grid along R, A, S, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(x), float(y), float(z))

    def orient(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Swap and flip ``(X, Y, Z[, C])`` of the input into RAS order."""
        array = np.transpose(array, (*self.axes, *range(3, array.ndim)))
        return np.flip(array, tuple(i for i in range(3) if self.flips[i]))

    def deorient(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Inverse of ``orient``."""
        array = np.flip(array, tuple(i for i in range(3) if self.flips[i]))
        return np.transpose(array, (*np.argsort(self.axes), *range(3, array.ndim)))


@dataclass(frozen=True)
class Assumption:
    """The modality that was assumed for a file that names none.

    Parameters
    ----------
    modality
        CT, or MR for everything that is normalised by its own intensities.
    share
        Of the voxels that lie below ``BELOW_HU``: CT from ``CT_SHARE`` on.
    """

    modality: Literal["CT", "MR"]
    share: float


@dataclass(frozen=True)
class Preprocessed:
    """A volume as the network sees it.

    Parameters
    ----------
    tensor
        ``(C, X, Y, Z)`` float32, RAS, at the model's spacing.
    grid
        The way back.
    assumed
        None where the modality is known or does not matter to the model.
    """

    tensor: torch.Tensor
    grid: Grid
    assumed: Assumption | None = None


def grid_of(volume: Volume, config: ModelConfig) -> Grid:
    """Work out orientation and size of the model's grid for a volume.

    Raises
    ------
    GeometryError
        The model's grid would have more than ``MAX_VOXELS`` voxels, or be more than ``MAX_GROWTH``
        times as large as the image.
    """
    orientation = nib.orientations.io_orientation(volume.affine)  # type: ignore[no-untyped-call]
    if not np.isfinite(orientation).all():
        raise GeometryError(
            "the affine does not say which way each axis runs. Check the orientation of the file."
        )
    # orientation[i] = (RAS axis that input axis i runs along, direction)
    order = np.argsort(orientation[:, 0])
    axes = (int(order[0]), int(order[1]), int(order[2]))
    flips = tuple(bool(orientation[a, 1] < 0) for a in axes)
    shape = []
    for i, axis in enumerate(axes):
        size, spacing, wanted = volume.shape[axis], volume.spacing[axis], config.spacing[i]
        keep = i == config.slice_axis or abs(spacing - wanted) <= _SAME_SPACING * wanted
        shape.append(size if keep else max(1, round(size * spacing / wanted)))
    wanted_voxels, own = (math.prod(map(float, n)) for n in (shape, volume.shape))
    if wanted_voxels > min(MAX_VOXELS, max(SMALL_GRID, MAX_GROWTH * own)):
        raise GeometryError(
            f"a volume of {volume.shape} voxels of {_mm(volume.spacing)} mm would become {shape} "
            f"at the model's {_mm(config.spacing)} mm. Check the unit of the spacing (mm)."
        )
    return Grid(
        source_shape=volume.shape,
        source_affine=volume.affine,
        axes=axes,
        flips=(flips[0], flips[1], flips[2]),
        shape=(shape[0], shape[1], shape[2]),
    )


def preprocess(volume: Volume, config: ModelConfig) -> Preprocessed:
    """Orient, normalise and resample an image.

    Parameters
    ----------
    volume
        ``(X, Y, Z)`` or ``(X, Y, Z, C)`` intensities, any orientation; HU for CT.
    config
        Spacing, channels and normalisation.

    Raises
    ------
    InvalidInputError
        Another number of channels than the network's, or voxels that are not finite.
    GeometryError
        See ``grid_of``.
    """
    channels = volume.array.shape[3] if volume.array.ndim == 4 else 1
    if channels != config.in_channels:
        raise InvalidInputError(
            f"the image has {channels} channels, the model {config.name!r} takes "
            f"{config.in_channels}. Give the series the model was trained for."
        )
    if min(volume.shape) < 1:
        raise InvalidInputError(f"the image is empty: shape {volume.shape}.")
    grid = grid_of(volume, config)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
        oriented = grid.orient(volume.array.reshape(*volume.shape, channels))
        array = np.array(np.moveaxis(oriented, -1, 0), dtype=np.float32, order="C")  # one copy
    if not np.isfinite(array).all():
        raise InvalidInputError("the image holds NaN or infinite voxels. Repair the file.")
    tensor = torch.from_numpy(array)
    assumed, modality = None, modality_for(volume.modality, config)
    if config.normalisation == "auto" and modality == "OT":
        assumed = assume(tensor)
    tensor = normalise(tensor, config, assumed.modality if assumed else modality)
    return Preprocessed(tensor=_resize(tensor, grid.shape), grid=grid, assumed=assumed)


def preprocess_label(label: Volume, config: ModelConfig, grid: Grid) -> torch.Tensor:
    """Put a label map onto the model's grid by nearest-neighbour interpolation.

    Parameters
    ----------
    label
        ``(X, Y, Z)`` whole numbers, 0 is background.
    config
        Its labels are the allowed values.
    grid
        Of the image (``preprocess(image).grid``).

    Returns
    -------
    torch.Tensor
        ``(X, Y, Z)`` uint8, or int16 for more than 255 labels.

    Raises
    ------
    GeometryError
        Image and label lie on different grids.
    LabelError
        A value is not whole, or not one of the configuration's labels.
    """
    image = Volume(np.empty(grid.source_shape, np.uint8), grid.source_affine)
    if label.array.ndim != 3 or not label.same_grid(image):
        raise GeometryError(
            f"image {grid.source_shape} and label {label.array.shape} do not lie on the same "
            "voxel grid. Export the label on the grid of its image."
        )
    array = grid.orient(label.array)
    if np.issubdtype(array.dtype, np.inexact) and not np.array_equal(np.rint(array), array):
        raise LabelError(
            "a label map must hold whole numbers, this one has fractions. Resample labels with "
            "nearest-neighbour interpolation."
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > len(config.labels):
        raise LabelError(
            f"the label map holds values from {low} to {high}, the model knows 0 to "
            f"{len(config.labels)} ({', '.join(config.labels)}). Correct the map or the labels."
        )
    dtype = np.uint8 if len(config.labels) <= 255 else np.int16
    tensor = torch.from_numpy(np.ascontiguousarray(array.astype(dtype)))
    if tuple(tensor.shape) == grid.shape:
        return tensor
    picks = [_nearest(n, m) for n, m in zip(grid.shape, tensor.shape, strict=True)]
    return tensor[picks[0]][:, picks[1]][:, :, picks[2]]


def modality_for(modality: str, config: ModelConfig) -> str:
    """Modality that an image counts as: its own, else the one that the model was trained on.

    OT where neither is known, or the model was trained on CT and on others: the voxels tell.
    """
    kinds = {known == "CT" for known in config.modalities}
    if modality != "OT" or "OT" in config.modalities or len(kinds) != 1:
        return modality
    return config.modalities[0]


def normalise(tensor: torch.Tensor, config: ModelConfig, modality: str) -> torch.Tensor:
    """Bring intensities to a common scale.

    CT (``"ct"``, or ``"auto"`` with modality CT): HU clipped to ``config.ct_window`` and scaled
    to [-1, 1]. Others: clipped to the 0.5 and 99.5 percentiles of the voxels that are not 0, then
    their mean becomes 0 and their standard deviation 1, per channel. With ``"auto"`` and the
    modality OT, which files without a header have, the voxels tell (``looks_like_ct``).

    Parameters
    ----------
    tensor
        ``(C, X, Y, Z)`` float32.
    """
    is_ct = modality == "CT" or (modality == "OT" and looks_like_ct(tensor))
    if config.normalisation == "ct" or (config.normalisation == "auto" and is_ct):
        low, high = config.ct_window
        return (tensor.clamp(low, high) - low) * (2.0 / (high - low)) - 1.0
    channels = []
    for channel in tensor:
        foreground = channel[channel != 0]
        if foreground.numel() == 0:
            channels.append(channel)
            continue
        low, high = np.percentile(foreground.numpy(), (0.5, 99.5))
        if low == high:  # constant: rounding gives a deviation that is not quite 0
            channels.append(torch.zeros_like(channel))
            continue
        foreground = foreground.clamp(float(low), float(high))
        scale = float(foreground.std(correction=0))
        mean = float(foreground.mean())
        channels.append((channel.clamp(float(low), float(high)) - mean) / (scale or 1.0))
    return torch.stack(channels)


def looks_like_ct(tensor: torch.Tensor) -> bool:
    """Whether voxels can be HU: at least 1 % of them lie below -100, as air and fat do.

    MR has no such values, unless it is signed. A CT cut close around the brain has none either:
    name the modality.
    """
    return assume(tensor).modality == "CT"


def assume(tensor: torch.Tensor) -> Assumption:
    """Assume a modality from the voxels; see ``looks_like_ct``."""
    share = float((tensor < BELOW_HU).float().mean())
    return Assumption("CT" if share >= CT_SHARE else "MR", share)


def restore(probabilities: torch.Tensor, grid: Grid) -> npt.NDArray[np.uint8 | np.int16]:
    """Label map on the input's own grid: probabilities are interpolated, then the largest wins.

    Parameters
    ----------
    probabilities
        ``(K, X, Y, Z)`` on the model's grid; background is class 0.
    grid
        Of the preprocessed image.

    Returns
    -------
    numpy.ndarray
        ``(X, Y, Z)`` of the input, uint8 (int16 for more than 255 labels).
    """
    dtype: type[np.uint8 | np.int16] = np.uint8 if probabilities.shape[0] <= 256 else np.int16
    shape = grid.oriented_shape
    label = np.empty(shape, dtype)
    step = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    for start in range(0, shape[2], step):
        stop = min(start + step, shape[2])
        if tuple(probabilities.shape[1:]) == shape:
            slab = probabilities[..., start:stop]
        else:
            slab = _interpolate_slab(probabilities, shape, start, stop)
        label[:, :, start:stop] = slab.argmax(dim=0).to("cpu").numpy().astype(dtype)
    return cast("npt.NDArray[np.uint8 | np.int16]", np.ascontiguousarray(grid.deorient(label)))


def restore_probabilities(probabilities: torch.Tensor, grid: Grid) -> npt.NDArray[np.float32]:
    """Probabilities on the input's own grid, ``(K, X, Y, Z)`` float32 (needs K times the image)."""
    full = _resize(probabilities.float(), grid.oriented_shape).to("cpu").numpy()
    return np.ascontiguousarray(
        np.stack([cast(npt.NDArray[np.float32], grid.deorient(k)) for k in full])
    )


def _interpolate_slab(
    probabilities: torch.Tensor, shape: tuple[int, int, int], start: int, stop: int
) -> torch.Tensor:
    """Slices ``start:stop`` of the trilinear interpolation, with the memory of the slab only."""
    depth = probabilities.shape[3]
    position = ((torch.arange(start, stop) + 0.5) * depth / shape[2] - 0.5).clamp(0, depth - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=depth - 1)
    weight = (position - below).to(probabilities)
    slab = torch.lerp(
        probabilities[..., below.to(probabilities.device)].float(),
        probabilities[..., above.to(probabilities.device)].float(),
        weight.float(),
    )
    slab = slab.permute(0, 3, 1, 2)  # K, slice, X, Y
    slab = interpolate(slab, size=shape[:2], mode="bilinear", align_corners=False)
    return slab.permute(0, 2, 3, 1)


def _resize(tensor: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Linear interpolation of ``(C, X, Y, Z)``, grids aligned at their outer edges."""
    if tuple(tensor.shape[1:]) == shape:
        return tensor
    return interpolate(tensor[None], size=shape, mode="trilinear", align_corners=False)[0]


def _nearest(new: int, old: int) -> torch.Tensor:
    """Old index nearest to the centre of each new voxel."""
    return ((torch.arange(new) + 0.5) * old / new).floor().long().clamp(max=old - 1)


def _mm(spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{s:g}" for s in spacing)
