"""Dice, HD95 and surface Dice against distances known in closed form, and the table of cases."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from torch import nn

from segunlearn.cases import Case
from segunlearn.errors import CancelledError, GeometryError, InvalidInputError, LabelError
from segunlearn.evaluation import (
    CaseScore,
    Evaluation,
    dice,
    evaluate,
    hd95,
    score_case,
    surface_dice,
)
from segunlearn.inference import Segmenter
from segunlearn.networks import ModelConfig
from segunlearn.volumes import Volume, read_volume, write_volume

Mask = npt.NDArray[np.bool_]
SPACING = (0.5, 1.0, 3.0)


def box(*sides: tuple[int, int], shape: tuple[int, int, int] = (24, 20, 16)) -> Mask:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in sides)] = True
    return mask


def ball(radius: float, spacing: tuple[float, float, float], centre: Any = (0, 0, 0)) -> Mask:
    """A ball of this radius in mm within a field of view of 48 mm."""
    axes = [np.arange(round(48 / s)) * s - 24 - c for s, c in zip(spacing, centre, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.asarray(x**2 + y**2 + z**2 <= radius**2)


# Dice


def test_dice_of_boxes() -> None:
    one = box((2, 12), (2, 12), (2, 12))
    half = box((7, 17), (2, 12), (2, 12))
    assert dice(one, half) == dice(half, one) == pytest.approx(0.5)
    assert dice(one, one) == 1.0
    assert dice(one, box((12, 14), (2, 12), (2, 12))) == 0.0
    quarter = box((2, 7), (2, 7), (2, 12))
    assert dice(one, quarter) == pytest.approx(2 * 250 / (1000 + 250))


masks = hnp.arrays(bool, (4, 3, 5))


@given(a=masks, b=masks)
def test_dice_is_twice_the_overlap_over_the_sum(a: Mask, b: Mask) -> None:
    total = int(a.sum()) + int(b.sum())
    assert dice(a, b) == pytest.approx(2 * int((a & b).sum()) / total if total else 1.0)


# HD95


@pytest.mark.parametrize(("axis", "distance"), [(0, 1.5), (1, 3.0), (2, 9.0)])
def test_hd95_of_parallel_plates_is_their_distance(axis: int, distance: float) -> None:
    one = [(3, 12), (3, 12), (3, 12)]
    one[axis] = (5, 6)
    other = list(one)
    other[axis] = (8, 9)
    assert hd95(box(*one), box(*other), SPACING) == pytest.approx(distance)


def test_hd95_of_two_voxels_is_their_distance() -> None:
    one, other = box((1, 2), (1, 2), (1, 2)), box((5, 6), (4, 5), (2, 3))
    assert hd95(one, other, SPACING) == pytest.approx(math.sqrt(2.0**2 + 3.0**2 + 3.0**2))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.0)])
def test_hd95_of_concentric_balls_is_the_difference_of_their_radii(
    spacing: tuple[float, float, float],
) -> None:
    for inner, outer in ((10.0, 14.0), (8.0, 18.0)):
        distance = hd95(ball(inner, spacing), ball(outer, spacing), spacing)
        assert distance == pytest.approx(outer - inner, abs=max(spacing))


def hd95_by_hand(a: Mask, b: Mask, spacing: tuple[float, ...]) -> float:
    """All distances of all surface voxels (those with a face neighbour outside)."""
    surfaces = [
        np.argwhere(m & ~binary_erosion(np.pad(m, 1))[1:-1, 1:-1, 1:-1]) * spacing for m in (a, b)
    ]
    distances = cdist(*surfaces)
    return float(max(np.percentile(distances.min(axis=k), 95) for k in (0, 1)))


@given(
    a=hnp.arrays(bool, (6, 5, 7)),
    b=hnp.arrays(bool, (6, 5, 7)),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3),
)
def test_hd95_equals_all_distances_by_hand(
    a: Mask, b: Mask, spacing: tuple[float, float, float]
) -> None:
    if a.any() and b.any():
        assert hd95(a, b, spacing) == pytest.approx(hd95_by_hand(a, b, spacing), abs=1e-4)
        assert hd95(b, a, spacing) == pytest.approx(hd95(a, b, spacing), abs=1e-6)


def test_hd95_ignores_a_few_voxels_far_away() -> None:
    one = box((2, 18), (2, 18), (2, 14))
    far = one.copy()
    far[23, 19, 15] = True
    assert hd95(one, far, (1.0, 1.0, 1.0)) == 0.0
    assert hd95_by_hand(one, far, (1.0, 1.0, 1.0)) == 0.0


# surface Dice


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.0)])
def test_surface_dice_of_concentric_balls_jumps_at_the_difference(
    spacing: tuple[float, float, float],
) -> None:
    one, other = ball(12.0, spacing), ball(16.0, spacing)
    voxel = max(spacing)
    assert surface_dice(one, other, spacing, 4.0 + voxel) == 1.0
    assert surface_dice(one, other, spacing, 4.0 - 1.5 * voxel) < 0.02


def test_surface_dice_of_a_moved_half_counts_area_in_mm() -> None:
    """A box of 10 x 12 x 8 voxels whose face across x moves by 4 voxels, 2 mm.

    In mm the box is 5 x 12 x 24 and grows to 7: the faces across x have 12 * 24, those across y
    and z 5 (7) * 24 and 5 (7) * 12. Beyond the tolerance lie the moved face of each, and of the
    grown box the rim of 2 mm less the tolerance.
    """
    small = box((4, 14), (4, 16), (4, 12))
    large = box((4, 18), (4, 16), (4, 12))
    face, around = 12.0 * 24.0, 2 * (12.0 + 24.0)
    total = (2 * face + 5 * around) + (2 * face + 7 * around)
    tolerance = 1.0
    # the small box's moved face is within the tolerance of the large box's sides only at its edge
    edge = face - (12.0 - 2 * tolerance) * (24.0 - 2 * tolerance)
    beyond = (face - edge) + face + (2.0 - tolerance) * around
    share = surface_dice(small, large, SPACING, tolerance)
    assert share == pytest.approx(1 - beyond / total, abs=0.04)
    assert surface_dice(small, large, SPACING, 2.0) == 1.0
    assert surface_dice(small, small, SPACING, 0.0) == 1.0


def test_the_place_within_the_image_changes_nothing() -> None:
    """Also where a mask touches the border of the image."""
    rng = np.random.default_rng(0)
    a, b = rng.random((6, 7, 5)) < 0.7, rng.random((6, 7, 5)) < 0.7
    wide_a, wide_b = np.pad(a, ((3, 9), (5, 0), (1, 2))), np.pad(b, ((3, 9), (5, 0), (1, 2)))
    for measure in (hd95, surface_dice):
        assert measure(a, b, SPACING) == pytest.approx(measure(wide_a, wide_b, SPACING))
    full = np.ones((6, 7, 5), bool)
    assert hd95(full, full, SPACING) == 0.0
    assert surface_dice(full, full, SPACING) == 1.0


@given(a=masks, b=masks, tolerance=st.sampled_from([0.5, 1.0, 4.0]))
def test_surface_dice_is_symmetric_and_a_share(a: Mask, b: Mask, tolerance: float) -> None:
    share = surface_dice(a, b, SPACING, tolerance)
    assert 0.0 <= share <= 1.0
    assert share == pytest.approx(surface_dice(b, a, SPACING, tolerance))
    assert surface_dice(a, a, SPACING, tolerance) == 1.0


# empty masks and wrong ones


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_surface_of_one_slice_is_its_outline(axis: int) -> None:
    """Its inner voxels are no surface, else a large structure would hide how far it is off."""
    flat = np.zeros((40, 30), bool)
    flat[5:25, 5:25] = True
    moved = np.roll(flat, 4, axis=0)
    one, other = (np.expand_dims(m, axis) for m in (flat, moved))
    spacing = np.insert([1.0, 2.0], axis, 5.0)
    assert hd95(one, other, spacing) == pytest.approx(4.0)
    # the outlines share 2 of 4 sides, 16 of 20 voxels of them, 1 mm each; the others are 20 x 2 mm
    assert surface_dice(one, other, spacing) == pytest.approx(2 * 16 / (2 * 20 + 2 * 40), abs=0.05)


def test_empty_masks() -> None:
    empty, full = np.zeros((4, 5, 6), bool), np.ones((4, 5, 6), bool)
    assert (dice(empty, empty), hd95(empty, empty, SPACING)) == (1.0, 0.0)
    assert surface_dice(empty, empty, SPACING) == 1.0
    for a, b in ((empty, full), (full, empty)):
        assert (dice(a, b), hd95(a, b, SPACING)) == (0.0, math.inf)
        assert surface_dice(a, b, SPACING) == 0.0


def test_masks_of_other_shapes_are_refused() -> None:
    a, b = np.ones((4, 5, 6), bool), np.ones((4, 6, 5), bool)
    for measure in (
        lambda: dice(a, b),
        lambda: hd95(a, b, SPACING),
        lambda: surface_dice(a, b, SPACING),
    ):
        with pytest.raises(GeometryError, match="cannot be compared"):
            measure()


def test_masks_that_cannot_be_written_are_only_read() -> None:
    mask = np.broadcast_to(np.array([True, False, True]), (4, 5, 3))
    assert (dice(mask, mask), hd95(mask, mask, SPACING)) == (1.0, 0.0)
    assert surface_dice(mask, mask, SPACING) == 1.0
    still = np.ones((3, 3, 3), bool)
    still.setflags(write=False)
    assert dice(still, still) == 1.0


# one case


def test_score_case_takes_spacing_and_volume_from_the_affine() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(SPACING)
    found = box((5, 6), (3, 12), (3, 12)) + 2 * box((10, 20), (3, 12), (3, 12))
    truth = box((8, 9), (3, 12), (3, 12)) + 2 * box((10, 20), (3, 12), (3, 12))
    predicted, reference = (Volume(a.astype(np.int16), affine) for a in (found, truth))

    plate, block, absent = score_case(
        predicted,
        reference,
        {"plate": 1, "block": 2, "absent": 3},
        series="s",
        person="p",
    )

    assert (plate.series, plate.person, plate.label) == ("s", "p", "plate")
    assert plate.dice == 0.0
    assert plate.hd95_mm == pytest.approx(1.5)
    # the faces that look at each other are 1 mm apart, the other two 2 mm
    assert plate.surface_dice == pytest.approx(0.5)
    assert (block.dice, block.hd95_mm, block.surface_dice) == (1.0, 0.0, 1.0)
    assert (absent.dice, absent.hd95_mm, absent.surface_dice) == (1.0, 0.0, 1.0)
    assert plate.reference_ml == pytest.approx(81 * 1.5 / 1000)
    assert block.predicted_ml == pytest.approx(810 * 1.5 / 1000)
    (wide,) = score_case(predicted, reference, {"plate": 1}, tolerance_mm=1.5)
    assert wide.surface_dice == 1.0


def test_score_case_refuses_another_grid() -> None:
    one = Volume(np.zeros((4, 4, 4), np.int16), np.eye(4))
    moved = Volume(one.array, np.eye(4) + np.eye(4, k=3) * 0.1)
    with pytest.raises(GeometryError, match="same voxel grid"):
        score_case(one, moved, {"a": 1})


# the table


def score(person: str, series: str, label: str, value: float, far: float = 1.0) -> CaseScore:
    return CaseScore(series, person, label, value, far, value / 2, 1.0, 2.0)


def test_everyone_counts_once() -> None:
    evaluation = Evaluation(
        [
            score("p1", "a", "x", 0.2),
            score("p1", "b", "x", 0.4),
            score("p1", "c", "x", 0.6),
            score("p2", "d", "x", 1.0),
            score("p2", "d", "y", 0.0),
        ],
        tolerance_mm=1.0,
        seconds={},
    )
    assert evaluation.labels == ["x", "y"]
    assert evaluation.per_label()["x"]["dice"] == pytest.approx((0.4 + 1.0) / 2)
    assert evaluation.per_label()["y"]["dice"] == 0.0
    assert evaluation.per_person()["p2"]["dice"] == pytest.approx(0.5)
    assert evaluation.mean()["dice"] == pytest.approx((0.4 + 0.5) / 2)
    assert evaluation.mean()["surface_dice"] == pytest.approx((0.4 + 0.5) / 4)


def test_a_missed_structure_is_not_averaged_away() -> None:
    evaluation = Evaluation(
        [score("p1", "a", "x", 0.0, math.inf), score("p2", "b", "x", 1.0, 0.0)], 1.0, {}
    )

    assert evaluation.mean()["hd95_mm"] == math.inf
    assert evaluation.missed() == {"x": 1}
    data = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert data["mean"]["hd95_mm"] is None
    assert data["per_person"]["p2"]["hd95_mm"] == 0.0
    assert [c["hd95_mm"] for c in data["cases"]] == [None, 0.0]
    assert data["missed"] == {"x": 1}


# cases from files, through the segmenter


class AboveZero(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([-image, image], dim=1)


SEGMENTER = Segmenter(
    AboveZero(),
    ModelConfig(
        labels=("bright",), patch_size=(32, 16, 16), normalisation="ct", ct_window=(-1.0, 1.0)
    ),
    "cpu",
)


def case(folder: Path, name: str, image: Mask, label: npt.NDArray[Any], person: str = "") -> Case:
    affine = np.diag([-0.5, 1.0, 3.0, 1.0])
    spacing = (SEGMENTER.config.spacing, affine)  # the model's grid is another one
    assert spacing[0] == (1.0, 1.0, 1.0)
    write_volume(Volume(image * 1.6 - 0.8, affine), folder / f"{name}_image.nii.gz")
    write_volume(Volume(label.astype(np.int16), affine), folder / f"{name}_label.nii.gz")
    return Case(
        series=name,
        study=name,
        person=person or name,
        image=folder / f"{name}_image.nii.gz",
        label=folder / f"{name}_label.nii.gz",
    )


@pytest.fixture
def same_spacing() -> Segmenter:
    config = dataclasses.replace(SEGMENTER.config, spacing=SPACING)
    return Segmenter(AboveZero(), config, "cpu")


def test_cases_are_segmented_and_compared(tmp_path: Path, same_spacing: Segmenter) -> None:
    one, half = box((2, 12), (2, 12), (2, 12)), box((7, 17), (2, 12), (2, 12))
    cases = [
        case(tmp_path, "right", one, one, "p1"),
        case(tmp_path, "shifted", one, half, "p1"),
        case(tmp_path, "nothing", one, np.zeros_like(one), "p2"),
    ]
    seen: list[tuple[int, int]] = []

    result = evaluate(cases, same_spacing, progress=lambda n, m: seen.append((n, m)))

    assert [s.dice for s in result.scores] == pytest.approx([1.0, 0.5, 0.0])
    assert [s.series for s in result.scores] == ["right", "shifted", "nothing"]
    assert result.scores[1].hd95_mm == pytest.approx(2.5)
    assert result.mean()["dice"] == pytest.approx((0.75 + 0.0) / 2)
    assert result.missed() == {"bright": 1}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert list(result.seconds) == ["pre", "network", "post"]
    assert result.seconds["network"] > 0
    looser = evaluate(cases[1:2], same_spacing, tolerance_mm=2.5)
    assert looser.tolerance_mm == 2.5
    assert looser.scores[0].surface_dice == 1.0 > result.scores[1].surface_dice


def test_scores_are_on_the_images_own_grid(tmp_path: Path) -> None:
    one = box((2, 22), (2, 12), (2, 12))
    (result,) = evaluate([case(tmp_path, "a", one, one)], SEGMENTER).scores
    assert result.reference_ml == pytest.approx(20 * 10 * 10 * 1.5 / 1000)
    assert result.dice > 0.9


@pytest.mark.parametrize("value", [-1, 2, 7])
def test_unknown_label_values_are_refused(
    tmp_path: Path, same_spacing: Segmenter, value: int
) -> None:
    label = box((2, 12), (2, 12), (2, 12)).astype(np.int16)
    label[20, 18, 14] = value
    wrong = case(tmp_path, "wrong", label > 0, label)
    with pytest.raises(LabelError, match=rf"wrong_label\.nii\.gz.*\[{value}\].*1 bright"):
        evaluate([wrong], same_spacing)


def test_cases_without_labels_and_no_cases_are_refused(
    tmp_path: Path, same_spacing: Segmenter
) -> None:
    mask = box((2, 12), (2, 12), (2, 12))
    unlabelled = dataclasses.replace(case(tmp_path, "bare", mask, mask), label=None)
    with pytest.raises(LabelError, match="bare_image"):
        evaluate([unlabelled], same_spacing)
    with pytest.raises(LabelError, match="no cases"):
        evaluate([], same_spacing)


def test_a_label_on_another_grid_is_refused(tmp_path: Path, same_spacing: Segmenter) -> None:
    mask = box((2, 12), (2, 12), (2, 12))
    wrong = case(tmp_path, "wrong", mask, mask)
    assert wrong.label is not None
    write_volume(Volume(mask.astype(np.int16), np.diag([0.5, 1.0, 3.0, 1.0])), wrong.label)
    with pytest.raises(GeometryError, match=r"wrong_label\.nii\.gz: .*same voxel grid.* label on"):
        evaluate([wrong], same_spacing)


def test_an_image_of_other_channels_is_named(tmp_path: Path, same_spacing: Segmenter) -> None:
    mask = box((2, 12), (2, 12), (2, 12))
    wrong = case(tmp_path, "wrong", mask, mask)
    image = read_volume(wrong.image)
    write_volume(Volume(np.stack([image.array] * 2, axis=-1), image.affine), wrong.image)
    with pytest.raises(InvalidInputError, match=r"wrong_image\.nii\.gz: .* 2 channels"):
        evaluate([wrong], same_spacing)


def test_cancelling_before_and_within_a_case(tmp_path: Path, same_spacing: Segmenter) -> None:
    mask = box((2, 12), (2, 12), (2, 12))
    cases = [case(tmp_path, name, mask, mask) for name in "ab"]
    for asked_before in (0, 1, 2):
        answers = iter([False] * asked_before + [True] * 9)
        with pytest.raises(CancelledError, match="stopped"):
            evaluate(cases, same_spacing, cancel=lambda answers=answers: next(answers))  # type: ignore[misc]
