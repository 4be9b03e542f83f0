"""The network that is planned for cases, and the normalisation of files that name no modality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.training.planning import RECIPES, fingerprint, plan
from segunlearn.transforms import preprocess
from segunlearn.volumes import Volume, write_volume


def write_image(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> Case:
    write_volume(Volume(np.ones(shape, np.float32), affine), path)
    return Case(path.name, path.name, path.name, path, path)


def test_the_grid_follows_the_patient_not_the_file(tmp_path: Path) -> None:
    # 1 x 2 x 4 mm along R, A, S, stored as (S, R, A) and reversed
    affine = np.array([[0, -1.0, 0, 0], [0, 0, -2.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    case = write_image(tmp_path / "a.nii.gz", (20, 100, 60), affine)
    found = fingerprint([case])
    assert found.spacing == pytest.approx((1, 2, 4))
    assert found.extent == pytest.approx((100, 120, 80))
    planned = plan([case], ("liver",))
    assert planned.spacing == (1.0, 2.0, 4.0)
    assert planned.patch_size == (96, 64, 16)
    assert planned.labels == ("liver",)


@pytest.mark.parametrize("name", RECIPES)
def test_patches_of_every_recipe_fit_its_budget(tmp_path: Path, name: str) -> None:
    cases = [
        write_image(tmp_path / f"{i}.nii.gz", shape, np.diag([*spacing, 1.0]))
        for i, (shape, spacing) in enumerate(
            [((300, 280, 90), (0.7, 0.7, 3.0)), ((200, 200, 60), (1.0, 1.0, 5.0))]
        )
    ]
    for chosen in ([cases[0]], cases):
        planned = plan(chosen, ("liver",), recipe=RECIPES[name])
        assert np.prod(planned.patch_size) <= RECIPES[name].voxels
        finest = RECIPES[name].coarseness * min(fingerprint(chosen).spacing)
        assert min(planned.spacing) >= finest - 1e-3


def test_cases_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    one = write_image(tmp_path / "one.nii.gz", (20, 20, 20), np.eye(4))
    two = write_image(tmp_path / "two.nii.gz", (20, 20, 20, 2), np.eye(4))
    with pytest.raises(InvalidInputError, match="1, 2 channels"):
        plan([one, two], ("liver",))
    with pytest.raises(InvalidInputError, match="no cases"):
        plan([], ("liver",))


def test_names_that_differ_in_case_alone_are_refused_for_a_new_model(tmp_path: Path) -> None:
    """A model that has them already is read all the same: its studies must be forgettable."""
    case = write_image(tmp_path / "one.nii.gz", (20, 20, 20), np.eye(4))
    with pytest.raises(InvalidInputError, match=r"Liver, liver .*case"):
        plan([case], ("Liver", "liver "))
    made = replace(plan([case], ("Liver", "spleen")), labels=("Liver", "liver"))
    assert ModelConfig.from_json(made.to_json()) == made


def test_a_file_without_a_modality_is_told_by_its_voxels() -> None:
    rng = np.random.default_rng(0)
    ct = np.full((20, 20, 20), -1000.0, np.float32)
    ct[4:16, 4:16, 4:16] = 40 + 20 * rng.standard_normal((12, 12, 12))
    mr = np.abs(rng.normal(300, 100, (20, 20, 20))).astype(np.float32)
    config = ModelConfig(patch_size=(32, 16, 16))

    def seen(array: np.ndarray, modality: str, config: ModelConfig = config) -> torch.Tensor:
        return preprocess(Volume(array, np.eye(4), modality), config).tensor

    assert torch.equal(seen(ct, "OT"), seen(ct, "CT"))
    assert torch.equal(seen(mr, "OT"), seen(mr, "MR"))
    assert not torch.equal(seen(ct, "OT"), seen(ct, "MR"))  # what is named counts
    always = replace(config, normalisation="zscore")
    assert torch.equal(seen(ct, "OT", always), seen(ct, "MR", always))
