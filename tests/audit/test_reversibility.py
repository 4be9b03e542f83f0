"""A restored model is the original again, or it is said by how much it is not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import memorising_task as task
from segunlearn.audit.reversibility import reversibility
from segunlearn.errors import InvalidInputError
from segunlearn.networks import build_network

ORIGINAL = build_network(task.CONFIG, 0).eval()
STUDIES = task.TEST[:3]


def changed(by: float) -> nn.Module:
    """The original with a constant added to the last bias: every logit moves by it."""
    other = copy.deepcopy(ORIGINAL)
    with torch.no_grad():
        list(other.parameters())[-1].add_(by)
    return other


def test_the_original_is_itself() -> None:
    found = reversibility(copy.deepcopy(ORIGINAL), ORIGINAL, STUDIES, task.CONFIG)
    assert (found.largest_difference, found.equal_voxels, found.same_weights) == (0, 1, True)
    assert found.holds
    assert found.studies == 3


def test_a_difference_of_the_logits_is_found_although_no_mask_changes() -> None:
    found = reversibility(changed(1e-3), ORIGINAL, STUDIES, task.CONFIG)
    assert found.largest_difference == pytest.approx(1e-3, rel=0.01)
    assert (found.equal_voxels, found.same_weights, found.holds) == (1, False, False)
    near = reversibility(changed(2e-6), ORIGINAL, STUDIES, task.CONFIG)
    assert near.holds
    assert not near.same_weights


def test_another_model_and_one_without_numbers_do_not_pass() -> None:
    assert not reversibility(build_network(task.CONFIG, 7), ORIGINAL, STUDIES, task.CONFIG).holds
    broken = reversibility(changed(float("nan")), ORIGINAL, STUDIES, task.CONFIG)
    assert not broken.holds
    assert broken.to_json()["largest_difference"] is None


def test_a_study_larger_than_a_patch_is_compared_whole() -> None:
    study = task.study(1)
    wide = type(study)(
        "series-w",
        "study-w",
        "person-w",
        study.image.repeat(1, 2, 1, 1),
        study.label.repeat(2, 1, 1),
    )
    found = reversibility(ORIGINAL, ORIGINAL, [wide], task.CONFIG)
    assert found.holds
    with pytest.raises(InvalidInputError, match="at least one"):
        reversibility(ORIGINAL, ORIGINAL, [], task.CONFIG)
