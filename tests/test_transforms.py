"""The one preprocessing: onto the model's grid and back, in any orientation."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from segunlearn import transforms
from segunlearn.errors import GeometryError, InvalidInputError, LabelError
from segunlearn.networks import ModelConfig
from segunlearn.transforms import (
    Grid,
    grid_of,
    normalise,
    preprocess,
    preprocess_label,
    restore,
    restore_probabilities,
)
from segunlearn.volumes import Volume

#: Leaves intensities in [-1, 1] as they are.
PLAIN = ModelConfig(labels=("a", "b"), normalisation="ct", ct_window=(-1.0, 1.0))

Affine = npt.NDArray[np.float64]


def config(**changes: Any) -> ModelConfig:
    return dataclasses.replace(PLAIN, **changes)


def axis_aligned(order: tuple[int, ...], signs: tuple[int, ...]) -> Affine:
    """Rotation and reflection that sends voxel axis ``i`` to RAS axis ``order[i]``."""
    matrix = np.zeros((3, 3))
    for i, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[axis, i] = sign
    return matrix


ORIENTATIONS = [
    axis_aligned(order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def rotation(seed: int, degrees: float = 180.0) -> Affine:
    """A rotation of at most so many degrees about an arbitrary axis."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(rng.uniform(-degrees, degrees))
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def affine_of(
    matrix: Affine, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), origin: Any = (0, 0, 0)
) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def points(affine: Affine, shape: tuple[int, ...]) -> Affine:
    """Millimetres in RAS of each voxel's centre, ``(3, X, Y, Z)``."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


def smooth(mm: Affine) -> Affine:
    """A smooth function of the place in the patient, within [-1, 1]."""
    x, y, z = mm
    return np.asarray(np.sin(x / 9 + 0.3) * np.cos(y / 11) * np.sin(z / 13 + 1.0))


def one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(label.long(), classes).movedim(-1, 0).float()


def dice(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


# orientation


def test_there_are_48_orientations() -> None:
    assert len({m.tobytes() for m in ORIENTATIONS}) == 48


@given(
    matrix=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    tilt=st.sampled_from([0.0, 20.0]),
    seed=st.integers(0, 1000),
)
def test_the_closest_ras_orientation_agrees_with_nibabel(
    matrix: Affine, shape: tuple[int, int, int], tilt: float, seed: int
) -> None:
    affine = affine_of(rotation(seed, tilt) @ matrix, origin=(3, -4, 5))
    array = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, affine))  # type: ignore[no-untyped-call]

    prepared = preprocess(Volume(array, affine), PLAIN)

    np.testing.assert_allclose(prepared.tensor[0].numpy(), canonical.get_fdata(), atol=1e-6)
    np.testing.assert_allclose(prepared.grid.affine, canonical.affine, atol=1e-9)
    assert prepared.grid.oriented_shape == prepared.grid.shape == canonical.shape


@given(shape=st.tuples(*[st.integers(1, 6)] * 3), seed=st.integers(0, 1000))
def test_labels_come_back_unchanged_in_all_48_orientations(
    shape: tuple[int, int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 3, shape).astype(np.int16)
    spacing = (0.7, 1.3, 4.0)
    for matrix in ORIENTATIONS:
        axes = tuple(int(np.flatnonzero(row)[0]) for row in matrix)  # RAS axis -> voxel axis
        same = config(spacing=tuple(spacing[a] for a in axes))
        volume = Volume(array, affine_of(matrix, spacing, rng.uniform(-100, 100, 3)))
        grid = grid_of(volume, same)

        label = preprocess_label(volume, same, grid)
        back = restore(one_hot(label, 3), grid)

        np.testing.assert_array_equal(back, array)
        assert back.dtype == np.uint8
        probabilities = restore_probabilities(one_hot(label, 3), grid)
        np.testing.assert_array_equal(probabilities.argmax(axis=0), array)


def test_image_and_label_stay_on_each_other() -> None:
    array = np.random.default_rng(0).integers(0, 2, (7, 9, 11)).astype(np.int16)
    for matrix in (*ORIENTATIONS, rotation(1), rotation(2)):
        affine = affine_of(matrix, (1.0, 1.0, 2.0))
        prepared = preprocess(Volume(array.astype(np.float32), affine), PLAIN)
        label = preprocess_label(Volume(array, affine), PLAIN, prepared.grid)
        assert label.shape == prepared.tensor.shape[1:]
        # interpolated image and nearest label agree wherever both are sure
        sure = (prepared.tensor[0] < 0.25) | (prepared.tensor[0] > 0.75)
        assert sure.float().mean() > 0.3
        assert torch.equal((prepared.tensor[0] > 0.5)[sure], (label == 1)[sure])


# resampling


def as_sitk(array: npt.NDArray[Any], affine: Affine) -> sitk.Image:
    """An ITK image at the same place: ITK counts in LPS and stores z, y, x."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T.astype(np.float64)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.0), (2.0, 0.8, 1.7)])
@pytest.mark.parametrize("seed", range(4))
def test_resampling_agrees_with_simpleitk(wanted: tuple[float, float, float], seed: int) -> None:
    matrix = rotation(seed) @ ORIENTATIONS[13 * seed]
    affine = affine_of(matrix, (0.9, 1.2, 2.5), (10, -20, 30))
    array = smooth(points(affine, (31, 26, 17))).astype(np.float32)

    prepared = preprocess(Volume(array, affine), config(spacing=wanted))

    grid = as_sitk(np.zeros(prepared.grid.shape), prepared.grid.affine)
    resampled = sitk.Resample(as_sitk(array, affine), grid, sitk.Transform(), sitk.sitkLinear, 9.0)
    expected = sitk.GetArrayFromImage(resampled).T
    inside = expected != 9.0  # ITK knows nothing half a voxel beyond the outermost centres
    assert inside.mean() > 0.6
    np.testing.assert_allclose(prepared.tensor[0].numpy()[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_resampling_keeps_each_value_at_its_place_in_the_patient(seed: int) -> None:
    affine = affine_of(rotation(seed), (1.0, 1.5, 2.0), (10, -20, 30))
    volume = Volume(smooth(points(affine, (30, 24, 20))).astype(np.float32), affine)

    prepared = preprocess(volume, config(spacing=(1.2, 1.2, 1.2)))

    expected = smooth(points(prepared.grid.affine, prepared.grid.shape))
    difference = np.abs(prepared.tensor[0].numpy() - expected)[2:-2, 2:-2, 2:-2]
    assert difference.max() < 0.02, "the error of linear interpolation, no shift"


def test_the_model_grid_covers_the_same_field_of_view() -> None:
    volume = Volume(np.zeros((10, 20, 30)), affine_of(ORIENTATIONS[29], (3.0, 0.5, 1.0), (1, 2, 3)))
    grid = grid_of(volume, config(spacing=(1.0, 1.0, 2.0)))

    def edges(affine: Affine, shape: tuple[int, ...]) -> Affine:
        corners = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in shape]))).T
        return np.sort((affine[:3, :3] @ corners + affine[:3, 3:]), axis=1)

    np.testing.assert_allclose(
        edges(grid.affine, grid.shape), edges(volume.affine, volume.shape), atol=1e-9
    )
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    np.testing.assert_allclose(spacing, (1.0, 1.0, 2.0), rtol=0.04)


def test_almost_equal_spacing_is_not_resampled() -> None:
    volume = Volume(np.zeros((1000, 2, 2)), affine_of(np.eye(3), (1.0009, 1.0, 1.0)))
    assert grid_of(volume, PLAIN).shape == (1000, 2, 2)
    volume = Volume(np.zeros((1000, 2, 2)), affine_of(np.eye(3), (1.002, 1.0, 1.0)))
    assert grid_of(volume, PLAIN).shape == (1002, 2, 2)


def test_a_thin_volume_keeps_one_voxel() -> None:
    volume = Volume(np.full((1, 1, 2), 0.5), affine_of(np.eye(3), (0.1, 0.1, 0.1)))
    prepared = preprocess(volume, PLAIN)
    assert prepared.tensor.flatten().tolist() == [0.5]
    assert restore(torch.tensor([0.1, 0.9]).reshape(2, 1, 1, 1), prepared.grid).tolist() == [
        [[1, 1]]
    ]


@pytest.mark.parametrize(("axis", "patch"), [(0, (1, 32, 32)), (1, (32, 1, 32)), (2, (32, 32, 1))])
def test_slices_are_never_resampled_across(axis: int, patch: tuple[int, int, int]) -> None:
    flat = config(spatial_dims=2, patch_size=patch, spacing=(1.0, 1.0, 1.0))
    for matrix in ORIENTATIONS:
        volume = Volume(np.zeros((4, 5, 6)), affine_of(matrix, (2.0, 2.0, 2.0)))
        grid = grid_of(volume, flat)
        expected = [2 * n for n in grid.oriented_shape]
        expected[axis] //= 2
        assert grid.shape == tuple(expected)


@pytest.mark.parametrize("new", [(9, 14, 5), (4, 4, 20), (11, 7, 10)])
def test_labels_take_the_nearest_voxel(new: tuple[int, int, int]) -> None:
    shape = (11, 7, 10)
    array = np.random.default_rng(0).integers(0, 3, shape).astype(np.int16)
    grid = Grid(shape, np.eye(4), (0, 1, 2), (False, False, False), new)

    label = preprocess_label(Volume(array, np.eye(4)), PLAIN, grid).numpy()

    index = np.linalg.inv(np.eye(4)) @ grid.affine
    place = points(index, new) + 1e-6  # exactly between two voxels, the upper one
    expected = map_coordinates(array, place, order=0, mode="nearest")
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("slab", [1, 400, 10**9])
def test_restoring_in_slabs_equals_restoring_at_once(
    monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    monkeypatch.setattr(transforms, "_SLAB_VOXELS", slab)
    shape = (13, 10, 17)
    affine = affine_of(ORIENTATIONS[37])
    grid = grid_of(Volume(np.zeros(shape), affine), config(spacing=(1.7, 0.6, 2.2)))
    probabilities = torch.rand(3, *grid.shape, generator=torch.Generator().manual_seed(0)).softmax(
        0
    )

    label = restore(probabilities, grid)
    full = restore_probabilities(probabilities, grid)

    # oracle: where each voxel of the input lies on the model's grid
    place = points(np.linalg.inv(grid.affine) @ affine, shape)
    expected = np.stack(
        [map_coordinates(p, place, order=1, mode="nearest") for p in probabilities.numpy()]
    )
    np.testing.assert_allclose(full, expected, atol=1e-5)
    top = np.sort(expected, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    np.testing.assert_array_equal(label[clear], expected.argmax(axis=0)[clear])
    assert clear.mean() > 0.99


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("spacing", "least"), [(0.5, 0.98), (1.5, 0.95), (2.5, 0.91)])
def test_a_ball_survives_another_spacing(seed: int, spacing: float, least: float) -> None:
    """At the model's spacing and back: the shape by Dice, the place to a part of a voxel."""
    affine = affine_of(rotation(seed) @ ORIENTATIONS[7 * seed], (1.0, 0.8, 1.4), (50, 60, -70))
    shape = (36, 44, 26)
    mm = points(affine, shape)
    centre = affine @ [17.3, 21.6, 12.4, 1.0]
    distance = np.linalg.norm(mm - centre[:3, None, None, None], axis=0)
    array = (distance < 12.0).astype(np.int16)
    coarse = config(spacing=(spacing,) * 3)
    volume = Volume(array, affine)
    grid = grid_of(volume, coarse)

    back = restore(one_hot(preprocess_label(volume, coarse, grid), 2), grid)

    assert dice(back == 1, array == 1) > least
    shift = mm[:, back == 1].mean(axis=1) - mm[:, array == 1].mean(axis=1)
    assert np.linalg.norm(shift) < 0.15 * max(spacing, 1.0)


def test_more_than_255_labels() -> None:
    many = config(labels=tuple(f"n{i}" for i in range(300)))
    array = np.arange(0, 300).reshape(10, 10, 3).astype(np.int16) + 1
    volume = Volume(array, np.eye(4))
    grid = grid_of(volume, many)

    label = preprocess_label(volume, many, grid)
    back = restore(one_hot(label, 301), grid)

    np.testing.assert_array_equal(back, array)
    assert back.dtype == np.int16


# normalisation


def ramp() -> torch.Tensor:
    return torch.linspace(-1200, 3000, 8 * 9 * 10).reshape(1, 8, 9, 10)


@pytest.mark.parametrize(("kind", "modality"), [("ct", "MR"), ("ct", "OT"), ("auto", "CT")])
def test_ct_is_clipped_and_scaled(kind: Any, modality: str) -> None:
    ct = config(normalisation=kind, ct_window=(-100.0, 300.0))
    hu = torch.tensor([-2000.0, -100.0, 0.0, 100.0, 300.0, 5000.0]).reshape(1, 6, 1, 1)

    scaled = normalise(hu, ct, modality)

    assert scaled.flatten().tolist() == [-1.0, -1.0, -0.5, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("modalities", "named", "as_if", "assumed"),
    [
        (("CT",), "OT", "CT", False),
        (("MR",), "OT", "MR", False),
        (("MR", "PT"), "OT", "MR", False),
        (("CT",), "MR", "MR", False),  # somebody says so
        (("MR",), "CT", "CT", False),
        (("CT", "MR"), "OT", "MR", True),
        (("CT", "OT"), "OT", "MR", True),
        ((), "OT", "MR", True),
    ],
)
def test_a_file_without_a_header_is_taken_for_what_the_model_was_trained_on(
    modalities: tuple[str, ...], named: str, as_if: str, assumed: bool
) -> None:
    """Else a forgotten CT without air would be unlearned, and judged, on other intensities."""
    array = np.random.default_rng(0).uniform(-50, 300, (6, 6, 6)).astype(np.float32)
    model = config(normalisation="auto", modalities=modalities)
    found = preprocess(Volume(array, np.eye(4), named), model)
    expected = normalise(torch.from_numpy(array)[None], model, as_if)
    torch.testing.assert_close(found.tensor, expected)
    assert (found.assumed is not None) == assumed
    signed = preprocess(Volume(array - 500, np.eye(4), named), model)
    if not assumed:
        torch.testing.assert_close(
            signed.tensor, normalise(torch.from_numpy(array - 500)[None], model, as_if)
        )


@pytest.mark.parametrize(("kind", "modality"), [("zscore", "CT"), ("auto", "MR"), ("auto", "OT")])
def test_others_get_mean_0_and_deviation_1_over_what_is_not_0(kind: Any, modality: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.gamma(3.0, 100.0, (16, 16, 16)).astype(np.float32)
    image[:5] = 0
    image[10, 10, 10] = 1e6  # an outlier

    scaled = normalise(torch.from_numpy(image)[None], config(normalisation=kind), modality)[0]

    foreground = image[image != 0].astype(np.float64)
    low, high = np.percentile(foreground, (0.5, 99.5))
    clipped = np.clip(foreground, low, high)
    expected = (np.clip(image, low, high) - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(scaled.numpy(), expected, atol=1e-4)
    assert abs(float(scaled[image != 0].mean())) < 1e-4
    assert abs(float(scaled[image != 0].std(correction=0)) - 1) < 1e-4


@given(
    a=st.floats(0.01, 1000), value=st.sampled_from([0.0, 0.1, 1.0, -1024.0, 1234.567, 1e6, 1e-6])
)
def test_a_constant_image_becomes_0(a: float, value: float) -> None:
    image = Volume(np.full((11, 12, 13), value * a, np.float32), np.eye(4), "MR")
    tensor = preprocess(image, config(normalisation="auto")).tensor
    assert float(tensor.abs().max()) == 0.0


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_the_scale_of_a_scanner_does_not_matter(scale: float, shift: float) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(50, 10, (1, 8, 8, 8)))
    kind = config(normalisation="zscore")

    one = normalise(image.float(), kind, "MR")
    other = normalise((image * 4.0 * scale + shift * scale + 1e-9).float(), kind, "MR")

    assert torch.allclose(one, other, atol=0.01)


def test_channels_are_normalised_apart() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(100, 5, (6, 7, 8)), rng.normal(-3, 900, (6, 7, 8))
    both = np.stack([first, second], axis=-1)
    affine = affine_of(ORIENTATIONS[21], (1.0, 2.0, 1.5))
    kind = config(in_channels=2, normalisation="zscore")

    prepared = preprocess(Volume(both, affine), kind)

    for index, alone in enumerate((first, second)):
        single = preprocess(Volume(alone, affine), config(normalisation="zscore"))
        assert torch.equal(prepared.tensor[index : index + 1], single.tensor)


def test_a_few_outliers_in_a_constant_image_are_no_scale() -> None:
    image = torch.full((1, 20, 20, 20), 0.1)
    image[0, 0, 0, :3] = torch.tensor([-50.0, 0.0, 1e5])
    assert float(normalise(image, config(normalisation="zscore"), "MR").abs().max()) == 0.0


# refused


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"2 channels.*takes 1"):
        preprocess(Volume(np.zeros((4, 4, 4, 2)), np.eye(4)), PLAIN)
    with pytest.raises(InvalidInputError, match=r"1 channels.*takes 3"):
        preprocess(Volume(np.zeros((4, 4, 4)), np.eye(4)), config(in_channels=3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_no_float32_are_refused(value: float) -> None:
    array = np.zeros((4, 4, 4))
    array[1, 2, 3] = value
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        preprocess(Volume(array, np.eye(4)), PLAIN)


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        preprocess(Volume(np.zeros((4, 0, 4)), np.eye(4)), PLAIN)


def test_a_wrong_unit_is_refused_before_memory_is_asked_for() -> None:
    metres = Volume(np.zeros((10, 10, 10)), np.diag([1000.0, 1000.0, 1000.0, 1.0]))
    with pytest.raises(GeometryError, match="unit"):
        preprocess(metres, PLAIN)


@pytest.mark.parametrize(
    "label",
    [
        Volume(np.zeros((4, 4, 5), np.int16), np.eye(4)),
        Volume(np.zeros((4, 4, 4), np.int16), affine_of(np.eye(3), origin=(0, 0, 0.01))),
        Volume(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)),
    ],
    ids=["shape", "origin", "channels"],
)
def test_a_label_on_another_grid_is_refused(label: Volume) -> None:
    grid = grid_of(Volume(np.zeros((4, 4, 4)), np.eye(4)), PLAIN)
    with pytest.raises(GeometryError, match="grid"):
        preprocess_label(label, PLAIN, grid)


@pytest.mark.parametrize("value", [-1, 3, 255])
def test_unknown_label_values_are_refused(value: int) -> None:
    array = np.zeros((4, 4, 4), np.int16)
    array[1, 2, 3] = value
    label = Volume(array, np.eye(4))
    with pytest.raises(LabelError, match=f"{value}.*a, b"):
        preprocess_label(label, PLAIN, grid_of(label, PLAIN))


@pytest.mark.parametrize("value", [0.5, 1.999, np.nan])
def test_labels_with_fractions_are_refused(value: float) -> None:
    array = np.zeros((4, 4, 4), np.float32)
    array[1, 2, 3] = value
    label = Volume(array, np.eye(4))
    with pytest.raises(LabelError, match="whole numbers"):
        preprocess_label(label, PLAIN, grid_of(label, PLAIN))


def test_the_inputs_are_left_as_they_were() -> None:
    array = np.random.default_rng(0).uniform(-1, 1, (4, 5, 6)).astype(np.float32)
    array.setflags(write=False)
    label = np.zeros((4, 5, 6), ">i2")
    label.setflags(write=False)

    prepared = preprocess(Volume(array, np.eye(4)), PLAIN)
    prepared.tensor.add_(1)  # its own memory
    preprocess_label(Volume(label, np.eye(4)), PLAIN, prepared.grid).add_(1)

    assert abs(array).max() <= 1
    assert label.max() == 0
