"""Files that claim more than they hold, hold more than they claim, or point elsewhere."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_sources import make_series
from segunlearn.dicom.deflated import refuse_deflated
from segunlearn.dicom.series import volume_from_datasets
from segunlearn.errors import InvalidInputError, UnsupportedSeriesError
from segunlearn.volume_bounds import MAX_VOXELS
from segunlearn.volumes import Volume, read_volume, write_volume


def refused(path: Path, word: str, megabytes: float = 64) -> None:
    """The file is refused, and reading it took little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError, match=word):
            read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


def nrrd(path: Path, lines: str, data: bytes) -> Path:
    head = (
        "NRRD0005\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\n"
    )
    path.write_bytes(f"{head}{lines}\n\n".encode() + data)
    return path


def nifti(path: Path, shape: tuple[int, ...]) -> Path:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["sform_code"] = 1
    header["srow_x"][0] = header["srow_y"][1] = header["srow_z"][2] = 1
    data = header.binaryblock + bytes(4)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(30000, 30000, 30000), (512, 512, 1024)])
def test_a_nifti_header_alone_takes_no_memory(
    tmp_path: Path, suffix: str, shape: tuple[int, ...]
) -> None:
    word = "voxels" if np.prod(np.array(shape, float)) > MAX_VOXELS else "cannot hold"
    refused(nifti(tmp_path / f"bomb{suffix}", shape), word)


def test_an_nrrd_header_alone_takes_no_memory(tmp_path: Path) -> None:
    refused(nrrd(tmp_path / "a.nrrd", "encoding: raw\nsizes: 9999 9999 9999", b""), "voxels")
    refused(nrrd(tmp_path / "b.nrrd", "encoding: raw\nsizes: 512 512 512", b"12"), "cannot hold")


def test_an_nrrd_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(200)]
    bomb = b"".join([*parts, packer.flush()])
    assert len(bomb) < 1 << 20
    refused(nrrd(tmp_path / "c.nrrd", "encoding: gzip\nsizes: 4 4 4", bomb), "more than")


@pytest.mark.parametrize("key", ["data file", "datafile"])
def test_an_nrrd_names_no_other_file(tmp_path: Path, key: str) -> None:
    """It would bring any file of the machine into a label that can be downloaded."""
    (tmp_path / "secret").write_bytes(bytes(range(64)))
    path = tmp_path / "d.nrrd"
    nrrd(path, f"encoding: raw\nsizes: 4 4 4\n{key}: {tmp_path}/secret", b"")
    refused(path, "another file")


def test_an_nrrd_skips_nothing(tmp_path: Path) -> None:
    """A loop over a number of lines that the file chooses."""
    skips = "encoding: raw\nsizes: 2 2 2\nline skip: 99999999999999"
    refused(nrrd(tmp_path / "e.nrrd", skips, bytes(8)), "line skip")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_an_empty_mask_is_no_bomb(tmp_path: Path, suffix: str) -> None:
    """Zeros pack a thousandfold, and radiologists do submit them."""
    path = tmp_path / f"mask{suffix}"
    write_volume(Volume(np.zeros((256, 256, 200), np.uint8), np.eye(4)), path)
    assert read_volume(path, label=True).shape == (256, 256, 200)


def test_a_series_of_too_many_voxels_is_refused_before_it_is_decoded() -> None:
    source = make_series("axial", shape=(8, 8, 4), spacing=(1, 1, 1))
    for dataset in source.datasets:
        dataset.Rows = dataset.Columns = 65535
    with pytest.raises(UnsupportedSeriesError, match="voxels"):
        volume_from_datasets(source.datasets)


def test_deflated_dicom_of_others_is_refused() -> None:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    plain, deflated = io.BytesIO(), io.BytesIO()
    dataset.save_as(plain)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(deflated)
    refuse_deflated(plain)
    refuse_deflated(io.BytesIO(b"no DICOM at all"))
    with pytest.raises(InvalidInputError, match="deflated"):
        refuse_deflated(deflated)
    assert plain.tell() == 0
