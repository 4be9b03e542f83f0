"""Random patches for training: where they are cut, and how they are changed.

A patch is read from the whole cached volume in one interpolation, so that a rotated patch has real
voxels in its corners. Every choice comes from the generator that is given: the same generator
gives the same patch, in any process and after any restart.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate

from segunlearn.networks import ModelConfig
from segunlearn.training.settings import Augmentation


def choose_centre(
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    foreground: list[torch.Tensor],
    share: float,
    rng: np.random.Generator,
) -> list[float]:
    """Centre of a patch in voxels: on a random structure with probability ``share``.

    The patch is then moved so that it lies inside the volume; along an axis that is shorter than
    the patch it is centred.

    Parameters
    ----------
    foreground
        For each structure that is there, some of its voxels, ``(N, 3)``.
    """
    if foreground and rng.random() < share:
        voxels = foreground[rng.integers(len(foreground))]
        picked: list[float] = [float(v) for v in voxels[rng.integers(len(voxels))]]
        # not always in the middle of the patch
        picked = [v + rng.uniform(-p / 4, p / 4) for v, p in zip(picked, patch, strict=True)]
    else:
        picked = [rng.uniform(0, n - 1) for n in shape]
    centre = []
    for value, n, p in zip(picked, shape, patch, strict=True):
        low, high = (p - 1) / 2, n - 1 - (p - 1) / 2
        at = (n - 1) / 2 if high <= low else min(max(value, low), high)
        # whole voxels: an unchanged patch is a plain crop
        centre.append(round(at - (p - 1) / 2) + (p - 1) / 2)
    return centre


def sample_patch(
    image: torch.Tensor,
    label: torch.Tensor,
    foreground: list[torch.Tensor],
    config: ModelConfig,
    share: float,
    augmentation: Augmentation | None,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one patch.

    Parameters
    ----------
    image
        ``(C, X, Y, Z)`` float32 on the model's grid.
    label
        ``(X, Y, Z)`` integers.
    foreground
        See ``choose_centre``.
    share
        Share of patches on structures.
    augmentation
        None: a plain crop.

    Returns
    -------
    tuple of torch.Tensor
        ``(C, *patch)`` float32 and ``(*patch)`` int64; outside the volume both are 0. In 2D the
        slice axis is left out.
    """
    patch = config.patch_size
    centre = choose_centre(tuple(image.shape[1:]), patch, foreground, share, rng)
    spatial = augmentation is not None and rng.random() < augmentation.spatial
    if augmentation is not None and spatial:
        grid = _bent_grid(centre, config, augmentation, rng)
        scale = torch.tensor([max(1, n - 1) for n in image.shape[1:]], dtype=torch.float32)
        # grid_sample wants (z, y, x) in [-1, 1]; an axis of one voxel is everywhere 0
        grid = torch.where(scale > 1, 2 * grid / scale - 1, grid).flip(-1)[None]
        x = grid_sample(image[None], grid, mode="bilinear", align_corners=True)[0]
        y = grid_sample(label[None, None].float(), grid, mode="nearest", align_corners=True)[0, 0]
    else:
        x = _crop(image, centre, patch)
        y = _crop(label[None], centre, patch)[0]
    if augmentation is not None:
        for axis in augmentation.flip_axes:
            if rng.random() < 0.5:
                x, y = x.flip(axis + 1), y.flip(axis)
        x = _change_intensities(x, augmentation, rng)
    if config.slice_axis is not None:
        x, y = x.squeeze(config.slice_axis + 1), y.squeeze(config.slice_axis)
    return x.contiguous(), y.long().contiguous()


def _crop(array: torch.Tensor, centre: list[float], patch: tuple[int, ...]) -> torch.Tensor:
    out = torch.zeros((array.shape[0], *patch), dtype=array.dtype)
    source, target = [slice(None)], [slice(None)]
    for c, p, n in zip(centre, patch, array.shape[1:], strict=True):
        start = round(c - (p - 1) / 2)
        low, high = max(0, start), min(n, start + p)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    out[tuple(target)] = array[tuple(source)]
    return out


def _bent_grid(
    centre: list[float], config: ModelConfig, augmentation: Augmentation, rng: np.random.Generator
) -> torch.Tensor:
    """Voxel positions to read for each voxel of the patch, ``(*patch, 3)``; turned in mm."""
    patch, flat = config.patch_size, config.slice_axis
    angles = np.radians(rng.uniform(-1, 1, 3) * augmentation.rotation_degrees)
    factor = 1 + rng.uniform(-1, 1) * augmentation.scaling
    matrix = np.eye(3)
    for axis in range(3):
        if flat is None or axis == flat:
            matrix = matrix @ _rotation(axis, angles[axis])
    stretch = np.full(3, factor)
    spacing = np.array(config.spacing)
    if flat is not None:
        stretch[flat] = spacing[flat] = 1.0
    voxel = (matrix @ np.diag(stretch * spacing)) / spacing[:, None]
    axes = [torch.arange(p, dtype=torch.float32) - (p - 1) / 2 for p in patch]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    grid = grid @ torch.from_numpy(voxel.T.astype(np.float32))
    if augmentation.elastic_mm > 0:
        points = [1 if i == flat else 5 for i in range(3)]
        shifts = rng.normal(0, augmentation.elastic_mm, (1, 3, *points)) / spacing.reshape(
            1, 3, 1, 1, 1
        )
        if flat is not None:
            shifts[:, flat] = 0
        field = interpolate(
            torch.from_numpy(shifts.astype(np.float32)),
            size=patch,
            mode="trilinear",
            align_corners=True,
        )
        grid = grid + field[0].permute(1, 2, 3, 0)
    return grid + torch.tensor(centre)


def _rotation(axis: int, angle: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    cos, sin = math.cos(angle), math.sin(angle)
    first, second = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


def _change_intensities(
    x: torch.Tensor, augmentation: Augmentation, rng: np.random.Generator
) -> torch.Tensor:
    if rng.random() < augmentation.blur:
        x = blur(x, rng.uniform(0.5, 1.0))
    if rng.random() < augmentation.contrast:
        mean = x.mean()
        x = (x - mean) * rng.uniform(0.75, 1.25) + mean
    if rng.random() < augmentation.brightness:
        x = x + rng.uniform(-0.2, 0.2)
    if rng.random() < augmentation.gamma:
        low, high = x.min(), x.max()
        span = (high - low).clamp(min=1e-6)
        x = ((x - low) / span).clamp(0, 1) ** rng.uniform(0.7, 1.5) * span + low
    if rng.random() < augmentation.noise:
        noise = rng.standard_normal(tuple(x.shape), dtype=np.float32)
        x = x + torch.from_numpy(noise) * rng.uniform(0, 0.15)
    return x


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur along each axis that has more than one voxel; edges are repeated."""
    weights = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    weights = weights / weights.sum()
    for axis in range(1, x.ndim):
        n = x.shape[axis]
        if n == 1:
            continue
        index = torch.arange(n)
        x = sum(  # type: ignore[assignment]
            float(w) * x.index_select(axis, (index + k).clamp(0, n - 1))
            for k, w in zip(range(-2, 3), weights, strict=True)
        )
    return x
