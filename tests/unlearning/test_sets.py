"""Sets are divided by person, and batches are the same for the same seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from memorising_task import CONFIG, people
from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError, LabelError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning import Study, UnlearningSets, cut_to_patch, studies_of
from segunlearn.unlearning.sets import Draw
from segunlearn.volumes import Volume, write_volume


def test_a_person_belongs_to_one_set() -> None:
    one, two = people(0, 2)
    sibling = dataclasses.replace(two, person=one.person)
    with pytest.raises(InvalidInputError, match="divided by person") as caught:
        UnlearningSets(CONFIG, forget=(one,), retain=(sibling,))
    assert one.person not in str(caught.value)
    for other in ({"forget": (one,)}, {"retain": (one,)}):
        with pytest.raises(InvalidInputError, match=r"1 person.*calibration set"):
            UnlearningSets(CONFIG, calibration=(sibling,), **other)
    assert UnlearningSets(CONFIG, forget=(one, sibling)).forget


def test_doubled_series_and_unknown_labels_are_refused() -> None:
    one, two = people(0, 2)
    with pytest.raises(InvalidInputError, match="given twice"):
        UnlearningSets(CONFIG, forget=(one, one))
    wrong = dataclasses.replace(two, label=torch.full_like(two.label, 7))
    with pytest.raises(LabelError, match=r"unknown labels \[7\]"):
        UnlearningSets(CONFIG, forget=(one,), retain=(wrong,))
    with pytest.raises(InvalidInputError, match="on one grid"):
        dataclasses.replace(one, label=one.label[1:])


def test_batches_follow_the_seed_and_take_everyone_once() -> None:
    studies = people(0, 6)
    draw = Draw(studies, CONFIG, 3, seed=1)
    first, second = draw.next(), draw.next()
    again = Draw(studies, CONFIG, 3, seed=1)
    assert torch.equal(first[0], again.next()[0])
    assert torch.equal(second[1], again.next()[1])
    drawn = torch.cat([first[0], second[0]]).squeeze(1)
    for study in studies:
        assert sum(torch.equal(d, study.image[0, :, :, 0]) for d in drawn) == 1
    assert first[0].shape == (3, 1, 32, 32)
    assert first[1].shape == (3, 1, 32, 32)
    with pytest.raises(InvalidInputError, match="empty"):
        Draw((), CONFIG, 1, 0)


def test_cutting_keeps_the_centre() -> None:
    config = ModelConfig(patch_size=(32, 16, 16))
    image = torch.rand(1, 20, 21, 16)
    study = Study("a", "a", "a", image, (image[0] > 0.5).to(torch.uint8))
    cut = cut_to_patch(study, config)
    assert cut.label.shape == (32, 16, 16)
    assert torch.equal(cut.image[:, 6:26], image[:, :, 2:18])
    assert torch.equal(cut.label[6:26], study.label[:, 2:18])
    assert not cut.label[:6].any()


def test_cases_are_read_onto_the_models_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    label = (rng.random((18, 17, 16)) > 0.5).astype(np.int16)
    write_volume(Volume(rng.random(label.shape).astype(np.float32), affine), tmp_path / "i.nii.gz")
    write_volume(Volume(label, affine), tmp_path / "l.nii.gz")
    config = ModelConfig(patch_size=(32, 16, 16), normalisation="zscore")
    case = Case("s", "s", "p", tmp_path / "i.nii.gz", tmp_path / "l.nii.gz")
    (study,) = studies_of([case], config)
    assert torch.equal(study.label.int(), torch.from_numpy(label[::-1].copy()).int())
    (cut,) = studies_of([case], config, centre_crop=True)
    assert cut.label.shape == (32, 16, 16)
    with pytest.raises(LabelError, match="no label map"):
        studies_of([dataclasses.replace(case, label=None)], config)
