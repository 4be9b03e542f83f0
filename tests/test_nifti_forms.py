"""NIfTI files lie where ITK, and 3D Slicer with it, puts them, whatever their two forms say."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from segunlearn.app.datastores.labels import on_grid_of
from segunlearn.errors import GeometryError
from segunlearn.volumes import Volume, read_volume, write_volume

Affine = npt.NDArray[np.float64]

ARRAY = np.arange(10 * 12 * 8, dtype=np.int16).reshape(10, 12, 8)
CODES = list(product(range(5), range(5)))


def rotated(seed: int) -> Affine:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.7, 1.1, 3.0])
    affine[:3, 3] = [12.5, -40.0, 7.25]
    return affine


def of_another_subject() -> Affine:
    """As an atlas space: turned, shifted, and of other voxel sizes."""
    affine = rotated(2)
    affine[:3, :3] *= 1.2
    affine[:3, 3] += 30
    return affine


def sheared() -> Affine:
    affine = rotated(2)
    affine[:3, 1] += 0.3 * affine[:3, 0]
    return affine


def write(path: Path, qform: Affine, q_code: int, sform: Affine, s_code: int) -> None:
    image = nib.Nifti1Image(ARRAY, None)
    image.header.set_qform(qform, q_code)
    image.header.set_sform(sform, s_code)
    nib.save(image, path)


def in_itk(path: Path) -> Affine:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.parametrize(
    "sform", [rotated(1), rotated(2), of_another_subject()], ids=["equal", "turned", "atlas"]
)
@pytest.mark.parametrize(("q_code", "s_code"), CODES)
def test_an_image_its_mask_and_its_label_lie_where_itk_puts_the_image(
    tmp_path: Path, q_code: int, s_code: int, sform: Affine
) -> None:
    path, mask, drawn = (tmp_path / n for n in ("image.nii", "mask.nii.gz", "drawn.nrrd"))
    write(path, rotated(1), q_code, sform, s_code)

    image = read_volume(path)
    np.testing.assert_allclose(image.affine, in_itk(path), atol=1e-3)

    write_volume(Volume((image.array > 500).astype(np.uint8), image.affine), mask)
    np.testing.assert_allclose(in_itk(mask), in_itk(path), atol=1e-3)

    sitk.WriteImage(sitk.ReadImage(str(path)) > 500, str(drawn))
    label = on_grid_of(image, read_volume(drawn, label=True))
    np.testing.assert_array_equal(label.array, image.array > 500)


@pytest.mark.parametrize(("q_code", "s_code"), CODES)
def test_a_sheared_sform_counts_only_where_there_is_nothing_else(
    tmp_path: Path, q_code: int, s_code: int
) -> None:
    path = tmp_path / "image.nii"
    write(path, rotated(1), q_code, sheared(), s_code)
    if s_code and not q_code:
        with pytest.raises(RuntimeError, match="orthonormal"):
            sitk.ReadImage(str(path))
        np.testing.assert_allclose(read_volume(path).affine, sheared(), atol=1e-5)
    else:
        np.testing.assert_allclose(read_volume(path).affine, in_itk(path), atol=1e-3)


@pytest.mark.parametrize(("q_code", "s_code"), [(q, s) for q, s in CODES if q or s])
def test_where_both_forms_agree_the_affine_is_that_of_the_file(
    tmp_path: Path, q_code: int, s_code: int
) -> None:
    """To the last bit: digests of volumes are made of it."""
    path = tmp_path / "image.nii"
    write(path, rotated(1), q_code, rotated(1), s_code)
    np.testing.assert_array_equal(read_volume(path).affine, nib.load(path).affine)


def test_a_qform_counts_where_the_sform_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "image.nii", rotated(1), 1, np.zeros((4, 4)), 2)
    affine = read_volume(tmp_path / "image.nii").affine
    np.testing.assert_allclose(affine, in_itk(tmp_path / "image.nii"), atol=1e-5)


def test_forms_that_are_mirrored_are_refused(tmp_path: Path) -> None:
    """ITK takes one of them by chance; see ``itk_affine``."""
    qform = rotated(1)
    sform = qform.copy()
    sform[:3, 0] *= -1
    write(tmp_path / "image.nii", qform, 1, sform, 2)
    with pytest.raises(GeometryError, match="left and right"):
        read_volume(tmp_path / "image.nii")

    write(tmp_path / "image.nii", qform, 1, sform, 1)
    np.testing.assert_allclose(
        read_volume(tmp_path / "image.nii").affine, in_itk(tmp_path / "image.nii"), atol=1e-3
    )
