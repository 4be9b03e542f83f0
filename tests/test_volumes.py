"""Volumes: grids, digests, and files read by more than one library."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segunlearn.errors import GeometryError, InvalidInputError
from segunlearn.volumes import Volume, read_volume, strip_suffix, write_volume


def oblique_affine(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.7, 1.1, 3.0])
    affine[:3, 3] = [12.5, -40.0, 7.25]
    return affine


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_files_round_trip_on_an_oblique_grid(tmp_path: Path, suffix: str) -> None:
    array = np.random.default_rng(1).integers(0, 4, (5, 6, 7)).astype(np.int16)
    volume = Volume(array, oblique_affine())
    path = tmp_path / f"case{suffix}"

    write_volume(volume, path)
    again = read_volume(path, label=True)

    assert np.array_equal(again.array, array)
    assert again.same_grid(volume)
    assert again.digest() == volume.digest()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_two_writers_of_one_file_take_nothing_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    library = nrrd if suffix == ".nrrd" else nib
    name = "write" if suffix == ".nrrd" else "save"
    path, save, others = tmp_path / f"case{suffix}", getattr(library, name), []
    first, second = (Volume(np.full((3, 4, 5), n, np.int16), np.eye(4)) for n in (1, 2))

    def save_while_another_does(*given: Any) -> None:
        save(*given)
        if not others:
            others.append("has saved")
            write_volume(second, path)

    monkeypatch.setattr(library, name, save_while_another_does)
    write_volume(first, path)

    assert read_volume(path, label=True).digest() == first.digest(), "the last rename counts"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_volume_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flush, replace = tmp_path / "case.nii.gz", os.fsync, os.replace
    calls: list[tuple[str, int]] = []

    def flushed(descriptor: int) -> None:
        calls.append(("flushed", os.fstat(descriptor).st_ino))
        flush(descriptor)

    def renamed(source: Path, target: Path) -> None:
        calls.append(("renamed", source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    write_volume(Volume(np.zeros((3, 4, 5), np.int16), np.eye(4)), path)

    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("flushed", file), ("renamed", file), ("flushed", folder)]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "case.nii.gz", Volume(np.ones((3, 4, 5), np.int16), np.eye(4))
    write_volume(old, path)

    def refuse(_image: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_volume(old, path)
    assert read_volume(path, label=True).digest() == old.digest()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_share_that_knows_no_locks_and_flushes_no_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels go into the folder of the studies, which often lies on such a share."""
    flush = os.fsync

    def flush_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(os, "fsync", flush_files)
    monkeypatch.setattr(fcntl, "flock", no_lock)
    write_volume(Volume(np.ones((3, 4, 5), np.int16), np.eye(4)), tmp_path / "case.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["case.nii.gz"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_physical_place_agrees_with_simpleitk(tmp_path: Path, suffix: str) -> None:
    """SimpleITK speaks LPS: the same voxel lies at (-x, -y, z) of ours."""
    volume = Volume(np.zeros((4, 5, 6), np.int16), oblique_affine(3))
    path = tmp_path / f"case{suffix}"
    write_volume(volume, path)

    lps = np.array(sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((1, 2, 3)))

    ras = (volume.affine @ np.array([1, 2, 3, 1.0]))[:3]
    assert lps * [-1, -1, 1] == pytest.approx(ras, abs=1e-3)


@pytest.mark.parametrize("degrees", [0.0, 0.004, 0.02, 0.19])
def test_itk_reads_a_stack_that_leans_a_little(tmp_path: Path, degrees: float) -> None:
    """Rounded positions are enough for that; ITK, and Slicer with it, refuses such a sform."""
    affine = np.diag([-0.7, -0.9, 1.25, 1.0])
    affine[1, 2] = 1.25 * np.tan(np.radians(degrees))
    volume = Volume(np.arange(4 * 3 * 50, dtype=np.int16).reshape(4, 3, 50), affine)
    write_volume(volume, tmp_path / "v.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "v.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.array)
    last = np.array(image.TransformIndexToPhysicalPoint((0, 0, 49))) * (-1, -1, 1)
    np.testing.assert_allclose(last, (volume.upright() @ [0, 0, 49, 1])[:3], atol=0.01)
    np.testing.assert_allclose(read_volume(tmp_path / "v.nii.gz").affine, affine, atol=1e-6)


@pytest.mark.parametrize("value", [32768, 65537, 2**31])
def test_label_values_are_refused_before_they_become_others(tmp_path: Path, value: int) -> None:
    """65537 would be label 1 in 16 bits, and 2 ** 31 no label at all."""
    array = np.zeros((4, 3, 2), np.uint32)
    array[1, 1, 1] = value
    write_volume(Volume(array, np.eye(4)), tmp_path / "l.nrrd")
    with pytest.raises(InvalidInputError, match="Number the structures"):
        read_volume(tmp_path / "l.nrrd", label=True)


def test_a_stack_that_leans_far_is_never_straightened() -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.05
    np.testing.assert_array_equal(Volume(np.zeros((2, 2, 9)), affine).upright(), affine)


@given(
    hnp.arrays(np.int16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4)),
    st.integers(0, 3),
)
def test_digest_changes_with_voxels_and_place_and_nothing_else(
    array: np.ndarray, axis: int
) -> None:
    volume = Volume(array, np.eye(4))
    moved = np.eye(4)
    moved[min(axis, 2), 3] += 0.5
    changed = array.copy()
    changed.flat[0] = changed.flat[0] ^ 1

    assert volume.digest() == Volume(array.astype(np.int32), np.eye(4)).digest()
    assert volume.digest() == Volume(np.asfortranarray(array), np.eye(4) * 1.0).digest()
    assert volume.digest() != Volume(array, moved).digest()
    assert volume.digest() != Volume(changed, np.eye(4)).digest()


def test_bad_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"not a volume")
    (tmp_path / "image.txt").write_text("text")
    fractions = Volume(np.full((2, 2, 2), 0.5, np.float32), np.eye(4))
    write_volume(fractions, tmp_path / "fractions.nii.gz")
    nan = np.zeros((2, 2, 2), np.float32)
    nan[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(nan, np.eye(4)), tmp_path / "nan.nii.gz")

    for name, words in {
        "missing.nii": "no such file",
        "broken.nii.gz": "cannot be read",
        "image.txt": "not a volume",
        "nan.nii.gz": "NaN",
    }.items():
        with pytest.raises(InvalidInputError, match=words):
            read_volume(tmp_path / name)
    with pytest.raises(InvalidInputError, match="whole numbers"):
        read_volume(tmp_path / "fractions.nii.gz", label=True)
    with pytest.raises(InvalidInputError, match="ending"):
        write_volume(fractions, tmp_path / "out.png")


@pytest.mark.parametrize("unit", ["meter", "mm", "micron", "unknown"])
def test_nifti_in_other_units_lies_where_itk_puts_it(tmp_path: Path, unit: str) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), oblique_affine())
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    itk = sitk.ReadImage(str(tmp_path / "a.nii"))
    np.testing.assert_allclose(volume.spacing, itk.GetSpacing(), rtol=1e-5)
    origin = np.array(itk.GetOrigin()) * [-1, -1, 1]
    np.testing.assert_allclose(volume.affine[:3, 3], origin, rtol=1e-5)


def test_nrrd_in_other_units_is_refused(tmp_path: Path) -> None:
    directions = np.diag([0.1, 0.1, 0.3])
    for unit in ("mm", "cm"):
        header = {
            "space": "left-posterior-superior",
            "space directions": directions,
            "space units": [unit] * 3,
        }
        nrrd.write(str(tmp_path / f"{unit}.nrrd"), np.zeros((4, 5, 6), np.int16), header)
    assert read_volume(tmp_path / "mm.nrrd").spacing == pytest.approx((0.1, 0.1, 0.3))
    with pytest.raises(InvalidInputError, match="in cm"):
        read_volume(tmp_path / "cm.nrrd")


def test_a_grid_without_a_place_is_refused() -> None:
    with pytest.raises(GeometryError, match="singular"):
        Volume(np.zeros((2, 2, 2)), np.zeros((4, 4)))
    with pytest.raises(InvalidInputError, match="axes"):
        Volume(np.zeros((2, 2)), np.eye(4))


def test_one_slice_of_a_2d_file_is_a_volume(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 5), np.float32), np.eye(4)), tmp_path / "slice.nii")
    assert read_volume(tmp_path / "slice.nii").shape == (4, 5, 1)


def test_strip_suffix() -> None:
    assert strip_suffix(Path("a/hippocampus_001.nii.gz")) == "hippocampus_001"
    assert strip_suffix(Path("1.2.840.10008.nrrd")) == "1.2.840.10008"
