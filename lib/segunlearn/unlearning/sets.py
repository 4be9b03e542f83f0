"""The sets of an unlearning task: preprocessed studies in memory, divided by person."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
import torch

from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError, LabelError
from segunlearn.networks import ModelConfig
from segunlearn.training.augmentation import sample_patch
from segunlearn.transforms import preprocess, preprocess_label
from segunlearn.volumes import read_volume

SetName = Literal["forget", "retain", "calibration"]
T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """One labelled image on the model's grid.

    Parameters
    ----------
    series, study, person
        Whose; see ``segunlearn.cases.Case``. ``series`` is unique.
    image
        ``(C, X, Y, Z)`` float32, RAS, normalised.
    label
        ``(X, Y, Z)`` integers, 0 is background.
    spacing
        Of their grid, mm; None where nobody needs distances. In 2D the slices have that of the
        image, whatever the model's is.
    """

    series: str
    study: str
    person: str
    image: torch.Tensor
    label: torch.Tensor
    spacing: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 4 or self.image.shape[1:] != self.label.shape:
            raise InvalidInputError(
                f"a study needs an image (C, X, Y, Z) and a label (X, Y, Z) on one grid, not "
                f"{tuple(self.image.shape)} and {tuple(self.label.shape)}."
            )

    def without(self, structure: int) -> Study:
        """Make the same study with the voxels of a label value as background; 0 changes nothing."""
        if structure == 0:
            return self
        return dataclasses.replace(self, label=torch.where(self.label == structure, 0, self.label))

    @cached_property
    def foreground(self) -> list[torch.Tensor]:
        """Voxels of each structure that is there, ``(N, 3)``: possible centres of patches."""
        values = [v for v in np.unique(self.label.numpy()).tolist() if v != 0]
        return [torch.from_numpy(np.argwhere(self.label.numpy() == v)) for v in values]


def studies_of(
    cases: Sequence[Case],
    config: ModelConfig,
    *,
    centre_crop: bool = False,
    without: Collection[str] = (),
) -> tuple[Study, ...]:
    """Read and preprocess cases.

    Parameters
    ----------
    cases
        With label maps.
    config
        The model's grid, spacing and normalisation.
    centre_crop
        Cut or pad each study to one patch around its centre: then it is scored by one forward
        pass. For crops that are about as large as a patch.
    without
        Structures whose voxels become background.

    Raises
    ------
    LabelError
        A case has no label map: neither memory nor forgetting could be measured on it.
    InvalidInputError, GeometryError
        See ``segunlearn.transforms``.
    """
    studies = []
    for case in cases:
        if case.label is None:
            raise LabelError(f"{case.image.name}: has no label map; annotate it or leave it out.")
        ready = preprocess(read_volume(case.image, modality=case.modality), config)
        label = preprocess_label(read_volume(case.label, label=True), config, ready.grid)
        names = (case.series, case.study, case.person)
        study = Study(*names, ready.tensor, label, ready.grid.spacing)
        for structure in without:
            study = study.without(config.label_values[structure])
        studies.append(cut_to_patch(study, config) if centre_crop else study)
    return tuple(studies)


def cut_to_patch(study: Study, config: ModelConfig) -> Study:
    """Cut or pad (with 0) a study to ``config.patch_size`` around its centre."""
    patch = config.patch_size
    image = torch.zeros((study.image.shape[0], *patch), dtype=study.image.dtype)
    label = torch.zeros(patch, dtype=study.label.dtype)
    source, target = [], []
    for n, p in zip(study.label.shape, patch, strict=True):
        start = (n - p) // 2
        low, high = max(0, start), min(n, start + p)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    image[(slice(None), *target)] = study.image[(slice(None), *source)]
    label[tuple(target)] = study.label[tuple(source)]
    return dataclasses.replace(study, image=image, label=label)


@dataclass(frozen=True)
class UnlearningSets:
    """What an unlearning method may be given.

    Parameters
    ----------
    config
        Of the network.
    forget
        S: the studies to forget.
    retain
        R: what else the network was trained on.
    calibration
        C: studies it was never trained on, which a method may use.

    Raises
    ------
    InvalidInputError
        A person is in two sets, a study twice, or a label value is not the model's.

    Notes
    -----
    The test set T is left out on purpose: no method ever gets it.
    """

    config: ModelConfig
    forget: tuple[Study, ...] = ()
    retain: tuple[Study, ...] = ()
    calibration: tuple[Study, ...] = ()

    def __post_init__(self) -> None:
        check_disjoint(
            {"forget": self.forget, "retain": self.retain, "calibration": self.calibration},
            self.config,
        )

    def only(self, names: Iterable[SetName]) -> UnlearningSets:
        """Empty every other set: what is not there cannot have been read.

        Raises
        ------
        InvalidInputError
            A set that is asked for is empty.
        """
        names = tuple(names)
        for name in names:
            if not getattr(self, name):
                raise InvalidInputError(
                    f"the {name} set is empty, and the method reads it. Give studies, or choose a "
                    "method that does without."
                )
        return UnlearningSets(self.config, **{name: getattr(self, name) for name in names})

    def without(self, structure: int) -> UnlearningSets:
        """Take a label value out of the labels of all sets; see ``Study.without``."""
        return UnlearningSets(
            self.config,
            *(
                tuple(s.without(structure) for s in studies)
                for studies in (self.forget, self.retain, self.calibration)
            ),
        )


def few(studies: Sequence[T], most: int, seed: int) -> tuple[T, ...]:
    """Choose so many of them at random, all where they are no more; in their order."""
    if len(studies) <= most:
        return tuple(studies)
    chosen = np.random.default_rng(seed).choice(len(studies), most, replace=False)
    return tuple(studies[i] for i in sorted(chosen))


def check_disjoint(sets: dict[str, tuple[Study, ...]], config: ModelConfig) -> None:
    """Refuse sets that share a person or a study, or hold unknown label values.

    Raises
    ------
    InvalidInputError
        As said; the message names the sets, never the person.
    LabelError
        A label value the model does not know.
    """
    series = [s.series for studies in sets.values() for s in studies]
    if len(set(series)) != len(series):
        raise InvalidInputError("a series is given twice; each study belongs to one set, once.")
    names = list(sets)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            both = {s.person for s in sets[first]} & {s.person for s in sets[second]}
            if both:
                raise InvalidInputError(
                    f"{len(both)} person(s) are in the {first} set and in the {second} set. Sets "
                    "are divided by person: move all studies of a person into one set."
                )
    allowed = {0, *config.label_values.values()}
    for name, studies in sets.items():
        for study in studies:
            if unknown := sorted(set(np.unique(study.label.numpy()).tolist()) - allowed):
                raise LabelError(f"a study of the {name} set holds unknown labels {unknown}.")


def of_one_patch(studies: Sequence[Study], config: ModelConfig) -> bool:
    """Whether each study is exactly one patch: then every draw of it is the same."""
    return all(tuple(s.label.shape) == config.patch_size for s in studies)


class Draw:
    """Endless random batches of patches; the same seed gives the same batches.

    Every study is drawn once before one is drawn again.

    Parameters
    ----------
    studies
        At least one.
    config
        Patch size.
    batch_size
        Patches of a batch.
    seed
        Of order and places.
    foreground
        Share of patches that are placed on a structure, where a study is larger than a patch.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        config: ModelConfig,
        batch_size: int,
        seed: int,
        foreground: float = 0.67,
    ) -> None:
        if not studies:
            raise InvalidInputError("there is no study to draw from; the set is empty.")
        self._studies, self._config = studies, config
        self._batch_size, self._foreground = batch_size, foreground
        self._rng = np.random.default_rng(seed)
        self._order: list[int] = []
        #: Which studies the last batch is of, by their number in ``studies``.
        self.last: tuple[int, ...] = ()

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``(B, C, X, Y[, Z])`` float32 and labels ``(B, 1, X, Y[, Z])`` int64."""
        images, labels, drawn = [], [], []
        for _ in range(self._batch_size):
            if not self._order:
                self._order = self._rng.permutation(len(self._studies)).tolist()
            drawn.append(self._order.pop())
            study = self._studies[drawn[-1]]
            image, label = sample_patch(
                study.image,
                study.label,
                study.foreground,
                self._config,
                self._foreground,
                None,
                self._rng,
            )
            images.append(image)
            labels.append(label[None])
        self.last = tuple(drawn)
        return torch.stack(images), torch.stack(labels)
