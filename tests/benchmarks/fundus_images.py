"""Fundus photographs as benchmarks see them: small, and alike in grey."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

#: Pixels to which a photograph is brought.
WIDTH: Final = 256


def plane(picture: Image.Image) -> torch.Tensor:
    """Grey values ``(X, Y)`` at the common width."""
    height = round(WIDTH * picture.height / picture.width)
    small = picture.resize((WIDTH, height), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).copy()).T


def green(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Green channel ``(X, Y)``, z-scored over the field of view, and that field."""
    found = plane(Image.open(path).convert("RGB").getchannel("G"))
    inside = found > 10
    return (found - found[inside].mean()) / found[inside].std(), inside
