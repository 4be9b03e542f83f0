"""Pictures of generated images: rows of slices, as PNG for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from segunlearn.replay.feature import Direction
from segunlearn.replay.generator import Generator

#: Darkest and brightest value of a normalised image that is shown.
_WINDOW = (-2.0, 3.0)


def middle(image: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Middle slice of an image ``(C, X, Y[, Z])``, its first axis across: ``(Y, X)``."""
    plane = image.mean(0) if image.shape[0] != 1 else image[0]
    if plane.ndim == 3:
        plane = plane[:, :, plane.shape[2] // 2]
    low, high = _WINDOW
    shown = ((plane - low) / (high - low)).clamp(0, 1) * 255
    return shown.T.flip(0).cpu().numpy().astype(np.uint8)


def thumbnail(image: torch.Tensor, side: int = 96) -> str:
    """Middle slice as a PNG of some width in a ``data:`` address."""
    picture = Image.fromarray(middle(image))
    height = max(1, round(side * picture.height / picture.width))
    data = io.BytesIO()
    picture.resize((side, height), Image.Resampling.BICUBIC).save(data, "PNG")
    return _address(data.getvalue())


def rows(named: Sequence[tuple[str, torch.Tensor]]) -> str:
    """Rows of images ``(N, C, ...)`` with their names, as a PNG in a ``data:`` address."""
    return _address(png(named))


def png(named: Sequence[tuple[str, torch.Tensor]]) -> bytes:
    """Rows of images with their names, as the bytes of a PNG."""
    columns = max(len(images) for _, images in named)
    figure = Figure(figsize=(1.5 + columns, 1.25 * len(named)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(named), columns, squeeze=False)
    for line, (name, images) in zip(axes, named, strict=True):
        for column, ax in enumerate(line):
            ax.set(xticks=[], yticks=[])
            ax.axis("on" if column == 0 else "off")
            ax.set_frame_on(False)
            if column < len(images):
                ax.imshow(middle(images[column]), cmap="gray", vmin=0, vmax=255)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90)
    return data.getvalue()


def traversal(
    generator: Generator, direction: Direction, *, columns: int = 9, seed: int = 0
) -> torch.Tensor:
    """One latent moved along a direction, ``(columns, C, *patch)``.

    From one length of the difference of the means below the threshold to two above.
    """
    latent = generator.draw(1, seed)
    start = latent - (direction.projection(latent) - direction.threshold)[:, None] * direction.unit
    steps = torch.linspace(-1, 2, columns)[:, None] * direction.length
    return generator.images(start + steps * direction.unit)


def _address(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
