"""Headers as DICOM JSON: what the standard forbids is in real files, and must come through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_sources import Source, make_series, written
from segunlearn.dicom.archive import open_archive
from segunlearn.dicom.json_model import to_json
from segunlearn.dicom.segmentation import write_segmentation
from segunlearn.dicom.series import geometry_from_datasets
from segunlearn.volumes import Volume

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def put_raw(ds: Dataset, keyword: str, text: str) -> None:
    """Set a value as its bytes stand in a file, unchecked."""
    tag, value = Tag(tag_for_keyword(keyword) or 0), text.encode()
    value += b" " * (len(value) % 2)
    ds[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def series_with_long_numbers() -> Source:
    """Positions as programs write them that never heard of 16 characters."""
    source = make_series("oblique", shuffle=False)
    for ds in source.datasets:
        put_raw(ds, "ImagePositionPatient", "\\".join(f"{v:.18f}" for v in ds.ImagePositionPatient))
        put_raw(ds, "AccessionNumber", "RIS-2024-0000123456789")
    return source


def save(source: Source, folder: Path) -> Path:
    folder.mkdir()
    for i, ds in enumerate(source.datasets):
        ds.save_as(folder / f"{i}.dcm", enforce_file_format=True)
    return folder


def test_long_positions_are_in_headers(tmp_path: Path) -> None:
    source = series_with_long_numbers()
    archive = open_archive(save(source, tmp_path / "studies"), index_dir=tmp_path / "index")
    headers = archive.headers(source.datasets[0].SeriesInstanceUID)
    np.testing.assert_allclose(geometry_from_datasets(headers).affine, source.affine, atol=1e-6)


def test_a_segmentation_keeps_the_long_accession_number_of_its_study(tmp_path: Path) -> None:
    source = series_with_long_numbers()
    archive = open_archive(save(source, tmp_path / "studies"), index_dir=tmp_path / "index")
    headers = archive.headers(source.datasets[0].SeriesInstanceUID)
    label = Volume((source.array > 0).astype(np.uint8), source.affine)
    seg = written(write_segmentation(label, headers, {1: "liver"}))
    assert seg.AccessionNumber == "RIS-2024-0000123456789"


def test_identifiers_with_leading_zeros(tmp_path: Path) -> None:
    source = make_series()
    for i, ds in enumerate(source.datasets):
        put_raw(ds, "SeriesInstanceUID", "1.2.03.4")
        ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.03.4.0{i}"
        put_raw(ds, "SOPInstanceUID", f"1.2.03.4.0{i}")
    archive = open_archive(save(source, tmp_path / "studies"), index_dir=tmp_path / "index")
    assert len(archive.headers("1.2.03.4")) == len(source.datasets)
    np.testing.assert_array_equal(archive.load_volume("1.2.03.4").array, source.array)


def test_one_bad_value_in_a_sequence_hides_nothing_else() -> None:
    ds, item = Dataset(), Dataset()
    put_raw(item, "SliceThickness", "2,5")
    put_raw(item, "PixelSpacing", "0.5\\0.5")
    ds.PixelMeasuresSequence = [item]
    (found,) = to_json(ds)["00289110"]["Value"]
    assert "00180050" not in found
    assert found["00280030"]["Value"] == [0.5, 0.5]


def test_other_threads_go_on_reading_as_before() -> None:
    """pydicom's own way makes the whole process strict, and may leave it so."""
    seen: list[int] = []

    def link(element: DataElement) -> str:
        seen.append(config.settings.reading_validation_mode)
        return "http://x"

    ds = Dataset()
    ds.add_new(0x00091010, "OB", bytes(5000))
    before = config.settings.reading_validation_mode
    assert to_json(ds, link=link)["00091010"] == {"vr": "OB", "BulkDataURI": "http://x"}
    assert seen == [before]
