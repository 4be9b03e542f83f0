"""Every DICOM file at hand is used or refused by an error of ours: no other exception."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pydicom.data
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from segunlearn.dicom.archive import open_archive
from segunlearn.dicom.folder import stored_frames
from segunlearn.dicom.segmentation import (
    describe_segmentation,
    is_segmentation,
    read_segmentation,
    write_segmentation,
)
from segunlearn.dicom.series import volume_from_datasets
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import SegUnlearnError
from segunlearn.volumes import Volume

# Damaged headers are what these files are for; pydicom warns of them, the errors are ours.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

#: Found by walking: pydicom's own list downloads what it does not bring.
BUNDLED = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))


def use(datasets: list[Dataset]) -> str:
    """Go through everything that is done with a series; the outcome in one word."""
    for ds in datasets:
        SiteKey.of(ds)
        with suppress(SegUnlearnError):
            stored_frames(ds)
    if is_segmentation(datasets[0]):
        describe_segmentation(datasets[0])
    volume = volume_from_datasets(datasets)
    segmentation = write_segmentation(
        Volume((volume.array > volume.array.mean()).astype("uint8"), volume.affine),
        datasets,
        {1: "bright"},
    )
    label, names = read_segmentation(segmentation, volume)
    assert names == {1: "bright"}
    assert label.same_grid(volume)
    assert ((label.array == 1) == (volume.array > volume.array.mean())).all()
    return "used"


def outcome(datasets: list[Dataset]) -> str:
    try:
        return use(datasets)
    except SegUnlearnError as error:
        message, kind = str(error), type(error).__name__
    assert message.endswith("."), "an error is a sentence"
    assert len(message) < 900
    return kind


def test_pydicom_brings_its_files() -> None:
    assert len(BUNDLED) > 60


#: Files that must be used: real images with a place, also in compressed syntaxes.
USED = {
    *("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"),
    *("MR_small_implicit.dcm", "MR_small_expb.dcm", "MR_small_padded.dcm", "examples_overlay.dcm"),
    *("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "693_J2KI.dcm"),
}


@pytest.mark.parametrize("path", BUNDLED, ids=lambda p: p.name)
def test_bundled_file(path: Path) -> None:
    try:
        dataset = dcmread(path, force=True)
    except Exception as error:  # noqa: BLE001 - whatever it raises, it is not ours
        pytest.skip(f"pydicom itself does not read it ({type(error).__name__})")
    result = outcome([dataset])
    if path.name in USED:
        assert result == "used"


@pytest.mark.parametrize(
    ("plain", "compressed"),
    [
        ("MR_small.dcm", "MR_small_RLE.dcm"),
        ("MR_small.dcm", "MR_small_jp2klossless.dcm"),
        ("MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm"),
        ("MR_small.dcm", "MR_small_bigendian.dcm"),
    ],
)
def test_compressed_files_show_the_same(plain: str, compressed: str) -> None:
    paths = {p.name: p for p in BUNDLED}
    one, two = (volume_from_datasets([dcmread(paths[n])]) for n in (plain, compressed))
    assert one.digest() == two.digest()


@pytest.mark.data
def test_every_series_of_the_real_data(data_dir: Path) -> None:
    series: dict[tuple[str, str], list[Dataset]] = defaultdict(list)
    for folder, _, files in os.walk(data_dir / "dicom"):
        for name in files:
            path = Path(folder) / name
            if path.suffix in (".dcm", ".seg"):
                ds = dcmread(path)
                series[str(ds.SeriesInstanceUID), folder].append(ds)
    outcomes = {key: outcome(datasets) for key, datasets in series.items()}
    used = {Path(folder).name for (_, folder), result in outcomes.items() if result == "used"}
    assert len(series) >= 35
    assert {f"mr-hippocrop-{i}" for i in (1, 2, 3)} <= used
    assert {"mr-ge-t1post", "mr-siemens-t1post", "ct-3slice", "multiframe", "image"} <= used


@pytest.mark.data
def test_the_archive_opens_them_all(data_dir: Path, tmp_path: Path) -> None:
    archive = open_archive(data_dir / "dicom", index_dir=tmp_path)
    series = archive.list_series(modalities=())
    assert len(series) >= 30
    used = 0
    for record in series:
        try:
            archive.load_volume(record.series_instance_uid)
            used += 1
        except SegUnlearnError:
            continue
        finally:
            archive.segmentations_of(record.series_instance_uid)
    assert used >= 10


def test_the_archive_opens_pydicoms_files(tmp_path: Path) -> None:
    folder = Path(pydicom.data.__file__).parent / "test_files"
    archive = open_archive(folder, index_dir=tmp_path)
    series = archive.list_series(modalities=())
    assert len(series) > 20
    for record in series:
        try:
            archive.load_volume(record.series_instance_uid)
            archive.headers(record.series_instance_uid)
        except SegUnlearnError:
            continue
