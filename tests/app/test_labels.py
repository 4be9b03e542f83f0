"""Label maps as clients send them."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segunlearn.app.datastores.labels import names_in, on_grid_of, renumber
from segunlearn.errors import GeometryError, InvalidInputError, LabelError
from segunlearn.volumes import Volume, read_volume, write_volume

VALUES = {"liver": 1, "spleen": 2}
AFFINE = np.array([[0.9, 0.1, 0, -3], [-0.1, 1.2, 0.2, 5], [0, -0.2, 2.5, 7], [0, 0, 0, 1.0]])


def label_map(*values: int) -> Volume:
    array = np.zeros((4, 3, 2), np.int16)
    array.flat[: len(values)] = values
    return Volume(array, AFFINE)


@given(
    order=st.sampled_from(list(permutations(range(3)))),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_turned_axes_come_back_voxel_by_voxel(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    """A viewer may store the same voxels in any order of axes; nibabel is the reference."""
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    image = Volume(np.zeros((4, 3, 2), np.float32), AFFINE)
    ornt = np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)])
    stored = nib.Nifti1Image(array, AFFINE).as_reoriented(ornt)
    label = Volume(np.asarray(stored.dataobj), np.asarray(stored.affine))
    back = on_grid_of(image, label)
    np.testing.assert_array_equal(back.array, array)
    assert back.same_grid(image)


def test_a_label_of_a_viewer_that_knows_no_shear_is_on_the_grid() -> None:
    """Slicer puts slices straight above each other; a series that leans a little still fits."""
    leaning = np.diag([0.5, 0.5, 5.0, 1.0])
    leaning[1, 2] = 5.0 * np.tan(np.radians(0.1))
    image = Volume(np.zeros((4, 3, 2), np.float32), leaning)
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    back = on_grid_of(image, Volume(array, np.diag([0.5, 0.5, 5.0, 1.0])))
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_array_equal(back.affine, leaning)


def test_another_grid_is_refused() -> None:
    image = Volume(np.zeros((4, 3, 2), np.float32), AFFINE)
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.5
    with pytest.raises(GeometryError, match="does not lie on the voxels"):
        on_grid_of(image, Volume(np.zeros((4, 3, 2), np.int16), shifted))
    with pytest.raises(GeometryError, match="4x3x1"):
        on_grid_of(image, Volume(np.zeros((4, 3, 1), np.int16), AFFINE))
    with pytest.raises(LabelError, match="several layers"):
        on_grid_of(image, Volume(np.zeros((4, 3, 2, 2), np.int16), AFFINE))


def test_names_win_over_numbers() -> None:
    turned = [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}]
    out = renumber(label_map(1, 2, 0, 2), turned, VALUES)
    assert out.array.flat[:4].tolist() == [2, 1, 0, 1]


def test_slicer_counts_left_out_segments_in_idx_but_not_in_the_file() -> None:
    sent = [{"name": "liver", "idx": 2}, {"name": "spleen", "idx": 3}]
    out = renumber(label_map(1, 2), sent, VALUES)
    assert out.array.flat[:2].tolist() == [1, 2]


THREE = {"core": 1, "shell": 2, "rim": 3}
COUNTED = [{"name": n, "idx": i + 2} for i, n in enumerate(THREE)]  # a left-out segment came first


@pytest.mark.parametrize("present", [(2,), (3,), (2, 3)])
def test_where_idx_and_position_name_other_structures_nobody_guesses(
    present: tuple[int, ...],
) -> None:
    """Stock Slicer with one structure not drawn looks like a client that sends true values."""
    with pytest.raises(LabelError, match="number the segments without gaps"):
        renumber(label_map(*present), COUNTED, THREE)
    with pytest.raises(LabelError, match="number the segments without gaps"):
        names_in(present, COUNTED)


@pytest.mark.parametrize(
    ("idx", "present", "expected"),
    [
        ((2, 3, 4), (1, 2, 3), (1, 2, 3)),  # by position: nothing has the idx 1
        ((2, 3, 4), (1,), (1,)),
        ((2, 3, 4), (2, 4), (1, 3)),  # by idx: there is no fourth segment
        ((1, 2, 4), (1, 2), (1, 2)),  # both say the same
        ((1, 2, 4), (1, 3), (1, 3)),
        ((1, 2, 4), (4,), (3,)),
        ((10, 20, 30), (10, 30), (1, 3)),
    ],
)
def test_gaps_do_no_harm_where_one_reading_is_left(
    idx: tuple[int, ...], present: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    sent = [{"name": n, "idx": i} for n, i in zip(THREE, idx, strict=True)]
    out = renumber(label_map(*present), sent, THREE)
    assert out.array.flat[: len(expected)].tolist() == list(expected)


def test_without_names_the_values_must_be_the_models() -> None:
    assert renumber(label_map(2), None, VALUES).array.flat[0] == 2
    with pytest.raises(LabelError, match="3"):
        renumber(label_map(3), [], VALUES)
    assert renumber(label_map(7), None, {}).array.flat[0] == 7


def test_unknown_structures_are_refused_only_when_they_have_voxels() -> None:
    sent = [{"name": "liver", "idx": 1}, {"name": "FORGET", "idx": 2}]
    assert renumber(label_map(1), sent, VALUES).array.flat[0] == 1
    with pytest.raises(LabelError, match="FORGET"):
        renumber(label_map(1, 2), sent, VALUES)


@pytest.mark.parametrize(
    "info", ["liver", [1], [{"idx": 1}], [{"name": "liver", "idx": "1"}], {"name": "liver"}]
)
def test_malformed_lists_are_refused(info: object) -> None:
    with pytest.raises(InvalidInputError, match="label_info"):
        renumber(label_map(1), info, VALUES)


def test_nrrd_of_a_viewer_and_nifti_of_an_image_agree(tmp_path: Path) -> None:
    image = Volume(np.zeros((4, 3, 2), np.float32), AFFINE)
    write_volume(image, tmp_path / "image.nii.gz")
    write_volume(label_map(1, 2), tmp_path / "label.nrrd")
    label = read_volume(tmp_path / "label.nrrd", label=True)
    out = on_grid_of(read_volume(tmp_path / "image.nii.gz"), label)
    assert out.array.flat[:2].tolist() == [1, 2]
