"""Sliding-window inference: a volume in, a mask on the volume's own grid out."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers.inferer import SlidingWindowInferer
from torch import nn

from segunlearn.errors import CancelledError, InvalidInputError
from segunlearn.networks import ModelConfig, load_weights
from segunlearn.records.versions import VersionInfo
from segunlearn.transforms import (
    Assumption,
    Preprocessed,
    preprocess,
    restore,
    restore_probabilities,
)
from segunlearn.volumes import Volume

#: Called with the windows done and their total.
WindowProgress = Callable[[int, int], None]


#: Probabilities larger than this lie in a file that is mapped into memory, in bytes.
_IN_MEMORY: Final = 1 << 30
#: Logits, weights and probabilities of one part of a large image, in bytes.
_SLAB_BYTES: Final = 1 << 30
#: Slices that are treated together in 2D.
_SLICES: Final = 32


@dataclass(frozen=True)
class Prediction(Volume):
    """A mask on the input's grid, and how long each part took.

    Parameters
    ----------
    seconds
        Wall time of ``"pre"`` (orient, normalise, resample), ``"network"`` (sliding window) and
        ``"post"`` (back onto the input's grid).
    assumed
        How the modality was guessed, None where it is known or does not matter.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    assumed: Assumption | None = None


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """``"auto"`` is the first GPU where there is one, else the CPU.

    Raises
    ------
    InvalidInputError
        The name is no device, or a GPU is asked for where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidInputError(f"{device!r} is no device; use auto, cpu or cuda:0.") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidInputError(
            f"{str(device)!r} is no device that is made use of; use auto, cpu or cuda:0."
        )
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"{device!r}: this machine has no usable GPU; use auto or cpu.")
    return chosen


class Segmenter:
    """A network ready to segment.

    Parameters
    ----------
    network
        Put into evaluation mode and moved to the device.
    config
        What it expects.
    device
        ``"auto"``, ``"cpu"``, ``"cuda:0"`` …
    window_batch
        Windows that go through the network together.
    mirror_axes
        RAS axes: the probabilities are averaged over the image and its mirror images along them,
        which costs twice the time for each axis. Right only for a network that was trained on
        mirrored patches (``Augmentation.flip_axes``).

    Raises
    ------
    InvalidInputError
        The device is none, or a mirror axis is not 0, 1 or 2.
    """

    def __init__(
        self,
        network: nn.Module,
        config: ModelConfig,
        device: str | torch.device = "auto",
        *,
        window_batch: int = 4,
        mirror_axes: tuple[int, ...] = (),
    ) -> None:
        if len(set(mirror_axes)) != len(mirror_axes) or not set(mirror_axes) <= {0, 1, 2}:
            raise InvalidInputError(f"mirror axes {mirror_axes}: use each of 0, 1 and 2 once.")
        self.mirror_axes = mirror_axes
        self.device = choose_device(device)
        self.network = network.eval().to(self.device)
        self.config = config
        self.window_batch = window_batch

    @classmethod
    def from_version(
        cls,
        info: VersionInfo,
        device: str | torch.device = "auto",
        *,
        mirror_axes: tuple[int, ...] = (),
    ) -> Segmenter:
        """Load a published version; the digest of its weights is checked.

        Raises
        ------
        IntegrityError
            The weights are not the published ones.
        """
        config = ModelConfig.from_json(info.config)
        network = load_weights(info.weights, config, info.sha256)
        return cls(network, config, device, mirror_axes=mirror_axes)

    def predict(
        self,
        volume: Volume,
        progress: WindowProgress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Prediction:
        """Segment a volume.

        Parameters
        ----------
        volume
            Any orientation and spacing.
        progress
            Called with (windows done, windows in total).
        cancel
            Asked before each batch of windows.

        Returns
        -------
        Prediction
            uint8 label values on exactly the input's grid.

        Raises
        ------
        CancelledError
            ``cancel`` said so.
        InvalidInputError, GeometryError
            See ``segunlearn.transforms.preprocess``.
        """
        times = [time.perf_counter()]
        prepared = preprocess(volume, self.config)
        times.append(time.perf_counter())
        probabilities = self.probabilities_of(prepared, progress, cancel)
        self._synchronise()
        times.append(time.perf_counter())
        label = restore(probabilities, prepared.grid)
        times.append(time.perf_counter())
        spans = dict(zip(("pre", "network", "post"), np.diff(times).tolist(), strict=True))
        return Prediction(
            label, volume.affine, volume.modality, seconds=spans, assumed=prepared.assumed
        )

    def predict_probabilities(
        self,
        volume: Volume,
        progress: WindowProgress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Probability of each class, ``(K, X, Y, Z)`` on the input's grid; class 0 is background.

        Raises
        ------
        CancelledError, InvalidInputError, GeometryError
            As ``predict``.
        """
        prepared = preprocess(volume, self.config)
        return restore_probabilities(
            self.probabilities_of(prepared, progress, cancel), prepared.grid
        )

    def probabilities_of(
        self,
        prepared: Preprocessed,
        progress: WindowProgress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> torch.Tensor:
        """Probabilities on the model's grid, ``(K, X, Y, Z)`` float32.

        Logits of overlapping windows are blended with Gaussian weights before the softmax; in 2D
        each slice is treated on its own. Volumes smaller than a patch are padded with 0, the mean
        after normalisation.
        """
        subsets = [
            [a + 1 for a in chosen]
            for k in range(len(self.mirror_axes) + 1)
            for chosen in itertools.combinations(self.mirror_axes, k)
        ]
        sum_of: torch.Tensor | None = None
        for turn, dims in enumerate(subsets):

            def tell(done: int, total: int, turn: int = turn) -> None:
                if progress is not None:
                    progress(turn * total + done, len(subsets) * total)

            image = prepared.tensor.flip(dims) if dims else prepared.tensor
            found = self._windowed(image, tell, cancel)
            if sum_of is None:
                sum_of = found
            else:
                sum_of += found.flip(dims)
            del found
        mean = cast(torch.Tensor, sum_of)
        return mean.div_(len(subsets)) if len(subsets) > 1 else mean

    def _windowed(
        self, image: torch.Tensor, progress: WindowProgress, cancel: Callable[[], bool] | None
    ) -> torch.Tensor:
        axis = self.config.slice_axis
        # B, C, spatial: in 2D the slices are the batch
        batch = image[None] if axis is None else image.movedim(axis + 1, 0)
        done, total = 0, self._count_windows(tuple(batch.shape))

        def network(windows: torch.Tensor) -> torch.Tensor:
            nonlocal done
            if cancel is not None and cancel():
                raise CancelledError("the inference was stopped before it was complete.")
            with torch.autocast("cuda", torch.float16, enabled=self.device.type == "cuda"):
                logits = self.network(windows)
            done += windows.shape[0]
            progress(min(done, total), total)
            return cast(torch.Tensor, logits.float())

        def blended(part: torch.Tensor) -> torch.Tensor:
            inferer = SlidingWindowInferer(
                roi_size=self.config.roi_size,
                sw_batch_size=self.window_batch,
                overlap=self.config.overlap,
                mode="gaussian",
                sw_device=self.device,
                device=self._blend_device(part.shape),
            )
            return cast(torch.Tensor, inferer(part, network)).softmax(dim=1)

        shape = (self.config.num_classes, *image.shape[1:])
        found = _room(shape, self._blend_device(torch.Size((1, *image.shape))))
        with torch.inference_mode():
            if axis is not None:
                for i in range(0, len(batch), _SLICES):
                    part = blended(batch[i : i + _SLICES]).movedim(0, axis + 1)
                    found.narrow(axis + 1, i, part.shape[axis + 1]).copy_(part)
            else:
                for core, crop in self._slabs(tuple(image.shape[1:])):
                    part = blended(batch[..., crop])[0]
                    inside = slice(core.start - crop.start, core.stop - crop.start)
                    found[..., core] = part[..., inside].to(found.device)
        return found

    def _slabs(self, shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
        """Cut the last axis: parts of the result, each with the part of the image it depends on.

        The windows of a part are those of the whole image that reach into it, at the same places,
        so that the result does not depend on how it is cut.
        """
        depth, roi = shape[-1], self.config.roi_size[-1]
        step = max(1, int(roi * (1 - self.config.overlap)))
        per_slice = 4 * 3 * self.config.num_classes * int(np.prod(shape[:-1]))
        thick = max(roi, int(_SLAB_BYTES / per_slice) // step * step)
        if depth <= thick:
            return [(slice(0, depth), slice(0, depth))]
        parts, thick = [], -(-thick // step) * step
        for start in range(0, depth, thick):
            stop = min(depth, start + thick)
            before = max(0, start - -(-(roi - 1) // step) * step)
            after = min(depth, -(-stop // step) * step + roi)
            parts.append((slice(start, stop), slice(before, after)))
        return parts

    def _count_windows(self, shape: tuple[int, ...]) -> int:
        roi = self.config.roi_size
        padded = tuple(max(n, r) for n, r in zip(shape[2:], roi, strict=True))
        step = tuple(
            max(1, int(r * (1 - self.config.overlap))) if r != n else r
            for n, r in zip(padded, roi, strict=True)
        )
        return shape[0] * len(dense_patch_slices(padded, roi, step))

    def _blend_device(self, shape: torch.Size) -> torch.device:
        """Where windows are blended: the GPU only while all logits fit into a third of it."""
        if self.device.type != "cuda":
            return self.device
        # float32 logits and weights of every class, and the softmax
        needed = 4 * 3 * self.config.num_classes * int(np.prod(shape[2:]))
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.device if needed < free / 3 else torch.device("cpu")

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _room(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Room for float32 values; large ones in a file without a name, gone with the tensor."""
    size = 4 * int(np.prod(shape))
    if size <= _IN_MEMORY or device.type != "cpu":
        return torch.empty(shape, device=device)
    with tempfile.TemporaryFile(prefix="probabilities-") as file:
        file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
