"""How alike images and sets of images are: MS-SSIM, and the Fréchet distance of features."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy import linalg

from segunlearn.errors import InvalidInputError

#: Range of a normalised image, whose standard deviation is 1: six of them.
DATA_RANGE: Final = 6.0
#: Weights of the scales (Wang et al., Asilomar 2003), finest first; small images take the first.
WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: A scale at which two images contradict each other counts as this, so that the gradient exists.
_LEAST: Final = 1e-4


def ms_ssim(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity of each pair, ``(B,)``; 1 means equal.

    As ``monai.metrics.regression.compute_ms_ssim``, whose gradient is no number where a scale's
    similarity is 0 or less, and which takes neither small images nor fewer scales by itself.

    Parameters
    ----------
    images, others
        ``(B, C, X, Y[, Z])``, normalised; each side at least 6 voxels.

    Raises
    ------
    InvalidInputError
        The images are smaller.
    """
    smallest, dims = min(images.shape[2:]), images.ndim - 2
    if smallest < 6:
        raise InvalidInputError(f"images of {smallest} voxels are too small to be compared.")
    kernel = 11 if smallest >= 176 else 7 if smallest >= 28 else 3
    scales = max(n for n in range(1, len(WEIGHTS) + 1) if smallest // 2 ** (n - 1) >= kernel)
    weights, result = WEIGHTS[:scales], torch.ones(len(images), device=images.device)
    pool = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
    for scale, weight in enumerate(weights):
        ssim, contrast = compute_ssim_and_cs(
            images, others, spatial_dims=dims, kernel_size=(kernel,) * dims,
            kernel_sigma=(1.5,) * dims, data_range=DATA_RANGE,
        )  # fmt: skip
        found = (ssim if scale == scales - 1 else contrast).flatten(1).mean(1)
        result = result * found.clamp(min=_LEAST) ** (weight / sum(weights))
        images, others = pool(images, 2), pool(others, 2)
    return result


def frechet_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    r"""Fréchet distance of the normal distributions of two sets of features ``(N, D)``.

    :math:`\|m_1 - m_2\|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})` (Heusel et al., arXiv
    1706.08500), with features of whatever frozen encoder.

    Raises
    ------
    InvalidInputError
        Fewer than two samples in a set.
    """
    if min(len(features), len(others)) < 2:
        raise InvalidInputError("a Fréchet distance needs two samples in each set.")
    first, second = (x.double().cpu().numpy() for x in (features, others))
    gap = first.mean(0) - second.mean(0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = linalg.sqrtm(np.atleast_2d(one @ two if one.ndim else one * two))
    trace = np.trace(np.atleast_2d(one)) + np.trace(np.atleast_2d(two)) - 2 * np.trace(root).real
    return max(0.0, float(gap @ gap + trace))
