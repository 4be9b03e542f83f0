"""Cases in memory or in files, preprocessed once; and the patches of each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from segunlearn.cases import Case
from segunlearn.errors import CancelledError, LabelError
from segunlearn.networks import ModelConfig
from segunlearn.training.augmentation import sample_patch
from segunlearn.training.settings import CaseDigests, TrainSettings
from segunlearn.transforms import Assumption, preprocess, preprocess_label
from segunlearn.volumes import read_volume

#: Voxels of each structure that are kept as possible patch centres.
_CENTRES = 4096


@dataclass(frozen=True)
class PreparedCase:
    """A case on the model's grid.

    Parameters
    ----------
    image
        ``(C, X, Y, Z)`` float32.
    label
        ``(X, Y, Z)`` integers.
    foreground
        For each structure that is there, up to ``_CENTRES`` of its voxels, ``(N, 3)``.
    digests
        Of the files.
    assumed
        How the image's modality was guessed, None where it is known or does not matter.
    """

    case: Case
    image: torch.Tensor
    label: torch.Tensor
    foreground: list[torch.Tensor]
    digests: CaseDigests
    assumed: Assumption | None = None


def prepare(
    cases: Sequence[Case],
    config: ModelConfig,
    *,
    cache_gib: float,
    folder: Path,
    report: Callable[[int, int], None],
    cancel: Callable[[], bool],
    without: Collection[str] = (),
    trained: int | None = None,
) -> list[PreparedCase]:
    """Read and preprocess all cases; beyond ``cache_gib`` they are mapped from files.

    Structures named in ``without`` become background. The first ``trained`` cases are trained on,
    by default all; the others validate.

    Raises
    ------
    LabelError
        A case has no label, no case that is trained on shows one of the structures, or all of them
        or an unknown one are to be left out.
    InvalidInputError, GeometryError
        A file is damaged, or image and label do not belong together; the message names it.
    CancelledError
        ``cancel`` said so.
    """
    taught = {n: v for n, v in config.label_values.items() if n not in without}
    if unknown := sorted(set(without) - set(config.labels)):
        raise LabelError(
            f"the network has no structure {unknown[0]!r}, so it cannot be left out; it has "
            f"{', '.join(config.labels)}."
        )
    if not taught:
        raise LabelError("every structure is left out of the labels; nothing is left to learn.")
    left = int(cache_gib * 2**30)
    prepared = []
    for number, case in enumerate(cases):
        if cancel():
            raise CancelledError("the training was stopped while its cases were read.")
        ready = _prepare_one(case, config, taught.values())
        size = ready.image.nbytes + ready.label.nbytes
        if size > left:
            ready = _move_to_files(ready, folder, number)
        else:
            left -= size
        prepared.append(ready)
        report(number + 1, len(cases))
    present = {v for p in prepared[:trained] for v in _values(p)}
    absent = [name for name, value in taught.items() if value not in present]
    if absent:
        judged = {v for p in prepared for v in _values(p)}
        only = [name for name in absent if taught[name] in judged]
        raise LabelError(
            f"no training case shows {', '.join(absent)}. "
            + (f"Only people who validate show {', '.join(only)}. " if only else "")
            + "Annotate it in more people's images, or train without it"
            + (", with another seed, or without validation." if only else ".")
        )
    return prepared


def _prepare_one(case: Case, config: ModelConfig, taught: Collection[int]) -> PreparedCase:
    if case.label is None:
        raise LabelError("a case without a label map was given for training; annotate it first.")
    image = read_volume(case.image, modality=case.modality)
    label = read_volume(case.label, label=True)
    try:
        ready = preprocess(image, config)
        mask = preprocess_label(label, config, ready.grid)
    except ValueError as error:
        raise type(error)(f"{case.image.name}: {error}") from error
    for value in set(config.label_values.values()) - set(taught):
        mask = torch.where(mask == value, 0, mask)
    generator = np.random.default_rng(0)
    foreground = []
    for value in taught:
        voxels = np.argwhere(mask.numpy() == value)
        if len(voxels) > _CENTRES:
            voxels = voxels[generator.choice(len(voxels), _CENTRES, replace=False)]
        if len(voxels):
            foreground.append(torch.from_numpy(voxels.astype(np.int32)))
    digests = CaseDigests(image=image.digest(), label=label.digest())
    return PreparedCase(case, ready.tensor, mask, foreground, digests, ready.assumed)


def _values(ready: PreparedCase) -> set[int]:
    return {int(ready.label[tuple(int(i) for i in v[0])]) for v in ready.foreground}


def _move_to_files(ready: PreparedCase, folder: Path, number: int) -> PreparedCase:
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in (("image", ready.image), ("label", ready.label)):
        np.save(_stored(folder, number, name), tensor.numpy(), allow_pickle=False)
    stored = open_stored(folder, number, ready.case, ready.foreground, ready.digests)
    return replace(stored, assumed=ready.assumed)


def open_stored(
    folder: Path,
    number: int,
    case: Case,
    foreground: list[torch.Tensor],
    digests: CaseDigests,
) -> PreparedCase:
    """Map the files of a case that ``prepare`` stored as number ``number``."""
    # "c": pages are read when touched; torch wants a writable array, the file never changes
    image, label = (
        torch.from_numpy(np.load(_stored(folder, number, n), mmap_mode="c", allow_pickle=False))
        for n in ("image", "label")
    )
    return PreparedCase(case, image, label, foreground, digests)


def _stored(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:05d}-{name}.npy"


class Batches:
    """The patches of every step, the same for any number of processes and after any restart.

    Parameters
    ----------
    prepared
        Training cases.
    config, settings
        Patch size, batch size, augmentation, seed.
    """

    def __init__(
        self, prepared: Sequence[PreparedCase], config: ModelConfig, settings: TrainSettings
    ) -> None:
        self._prepared = prepared
        self._config = config
        self._settings = settings
        samples = len(prepared) * settings.samples_per_case
        #: Steps of an epoch; the last batch is filled up from the start of the order.
        self.steps = -(-samples // settings.batch_size)

    def batch(
        self, epoch: int, step: int, rank: int = 0, processes: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every ``processes``-th patch of a step: images ``(B, C, …)``, labels ``(B, 1, …)``."""
        settings = self._settings
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(self._prepared))
        first = step * settings.batch_size
        images, labels = [], []
        for index in range(first + rank, first + settings.batch_size, processes):
            ready = self._prepared[order[index % len(order)]]
            image, label = sample_patch(
                ready.image,
                ready.label,
                ready.foreground,
                self._config,
                settings.foreground,
                settings.augmentation,
                np.random.default_rng((settings.seed, epoch, index)),
            )
            images.append(image)
            labels.append(label[None])
        return torch.stack(images), torch.stack(labels)


class Throttle:
    """Lets a progress report through at most twice a second, and always the last one."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self, last: bool) -> bool:
        """Whether to report now."""
        now = time.monotonic()
        if now < self._next and not last:
            return False
        self._next = now + 0.5
        return True
