"""The studies of an audit: read, and cut to the window of the network that shows the structures.

Every attack scores the same studies hundreds of times. A window of one patch is scored by one
forward pass, a whole abdomen by dozens, and what a model learnt of a study by heart lies where it
was annotated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import torch

from segunlearn.app.audit_choice import Choice
from segunlearn.audit.sets import AuditSets
from segunlearn.cases import Case
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import CancelledError, InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning import Study, studies_of
from segunlearn.volumes import read_volume

#: People of R and of T that are measured; figures of more would hardly differ.
MOST_PEOPLE: Final = 200


def sets_of(
    choice: Choice,
    pseudonyms: Pseudonyms,
    *,
    whole: bool = False,
    most_people: int = MOST_PEOPLE,
    report: Callable[[int, int], None] = lambda done, total: None,
    cancel: Callable[[], bool] = lambda: False,
) -> tuple[AuditSets, tuple[str, ...]]:
    """Read the sets of a choice.

    Parameters
    ----------
    choice
        Who is in which set.
    pseudonyms
        Of the site; choose the people where they are too many.
    whole
        Keep whole volumes.
    most_people
        Of R and of T.
    report, cancel
        Studies read and in all, and whether to stop.

    Returns
    -------
    sets, notes
        What the reader must know of what was left away.

    Raises
    ------
    LabelError, GeometryError, InvalidInputError
        An image or label cannot be used; persons overlap.
    CancelledError
        ``cancel`` said so.
    """
    notes = []
    members: dict[str, Sequence[Case]] = {"forget": choice.forget}
    for name in ("retain", "calibration", "test"):
        cases: Sequence[Case] = getattr(choice, name)
        members[name] = _fewer(cases, most_people, pseudonyms)
        if len(members[name]) < len(cases):
            notes.append(
                f"Of the {name} set {most_people} people were measured, chosen by a keyed hash."
            )
    read = read_sets(
        members, choice.config, report, cancel, without=choice.untaught,
        cut=(lambda study: study) if whole else lambda study: window(study, choice.config),
    )  # fmt: skip
    if not whole:
        notes.append(
            "Each study was measured in one window of the network's patch size, placed on its "
            "annotated structures; what lies outside was not looked at."
        )
    if choice.untaught:
        notes.append(
            f"{choice.original.version} was never taught {', '.join(sorted(choice.untaught))}: it "
            "is background in every label here, and counts as found where no model says it."
        )
    notes += _changed(choice)
    return AuditSets(choice.config, **read), tuple(notes)


def read_sets(
    members: Mapping[str, Sequence[Case]],
    config: ModelConfig,
    report: Callable[[int, int], None],
    cancel: Callable[[], bool],
    *,
    without: Collection[str] = (),
    cut: Callable[[Study], Study] = lambda study: study,
    stopped: str = "it was stopped while studies were read; nothing was changed.",
) -> dict[str, tuple[Study, ...]]:
    """Read the studies of some sets.

    Parameters
    ----------
    members
        Cases by the name of their set.
    config
        Of the network.
    report, cancel
        Studies read and in all, and whether to stop.
    without
        Structures whose voxels become background: the version was never taught them.
    cut
        What is kept of each study.
    stopped
        What a person is told who stopped it.

    Raises
    ------
    LabelError, GeometryError, InvalidInputError
        An image or label cannot be used; the message says which by its place, and ``about`` by its
        file.
    CancelledError
        ``cancel`` said so.
    """
    total, done = sum(map(len, members.values())), 0
    read: dict[str, tuple[Study, ...]] = {}
    for name, cases in members.items():
        studies = []
        for number, case in enumerate(cases, start=1):
            if cancel():
                raise CancelledError(stopped)
            try:
                studies += [cut(study) for study in studies_of([case], config, without=without)]
            except InvalidInputError as error:
                place = f"{name}, study {number} of {len(cases)}: "
                found = type(error)(f"{place}{error}")
                files = (case.image, *([case.label] if case.label else []))
                told = any(file.name in str(error) for file in files)
                found.about = "" if told else case.image.name
                raise found from error
            done += 1
            report(done, total)
        read[name] = tuple(studies)
    return read


def window(study: Study, config: ModelConfig) -> Study:
    """Cut or pad (with 0) a study to one patch around its structures, or its middle without any.

    In 2D that is the slice with the largest structures.

    Raises
    ------
    InvalidInputError
        The patch is not one of the study's dimensions.
    """
    if len(config.patch_size) != study.label.ndim:
        raise InvalidInputError("patch and study have different numbers of dimensions.")
    image, label = study.image, study.label
    for axis, patch in enumerate(config.patch_size):
        size = label.shape[axis]
        areas = (label > 0).sum(dim=[a for a in range(label.ndim) if a != axis])
        start = _start(areas, size, patch)
        image = _cut(image, axis + 1, start, patch)
        label = _cut(label, axis, start, patch)
    return dataclasses.replace(study, image=image.contiguous(), label=label.contiguous())


def _start(areas: torch.Tensor, size: int, patch: int) -> int:
    """First index of the stretch that holds the most structure; negative where it is too short."""
    if size <= patch:
        return -((patch - size) // 2)
    if not areas.any():
        return (size - patch) // 2
    sums = areas.double().unfold(0, patch, 1).sum(dim=1)
    best = torch.nonzero(sums == sums.max()).flatten()
    return int(best[len(best) // 2])


def _cut(tensor: torch.Tensor, axis: int, start: int, patch: int) -> torch.Tensor:
    if start >= 0 and tensor.shape[axis] >= start + patch:
        return tensor.narrow(axis, start, patch)
    shape = list(tensor.shape)
    shape[axis] = patch
    padded = torch.zeros(shape, dtype=tensor.dtype)
    padded.narrow(axis, -start, tensor.shape[axis]).copy_(tensor)
    return padded


def _fewer(cases: Sequence[Case], most: int, pseudonyms: Pseudonyms) -> Sequence[Case]:
    people = sorted({c.person for c in cases}, key=lambda p: pseudonyms.of(f"sample/{p}"))
    kept = set(people[:most])
    return [c for c in cases if c.person in kept]


def _changed(choice: Choice) -> list[str]:
    """Say where S is no longer what the original was trained on."""
    changed = 0
    for case in choice.forget:
        image, label = choice.changed.get(case.series, ("", ""))
        own = read_volume(case.image, modality=case.modality).digest() if image else ""
        labels = read_volume(case.label, label=True).digest() if case.label and label else ""
        changed += own != image or labels != label
    if not changed:
        return []
    return [
        f"The image or the annotation of {changed} forgotten series was changed after the training "
        "that is to be forgotten: what was learnt from the old one may not be seen."
    ]
