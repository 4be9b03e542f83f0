"""The archive on a real Orthanc over DICOMweb."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from conftest import Orthanc
from dicom_sources import ORIENTATIONS, make_enhanced, make_series, written
from segunlearn.dicom.archive import Archive, open_archive
from segunlearn.dicom.search import PAGE
from segunlearn.dicom.segmentation import write_segmentation
from segunlearn.errors import NotFoundError
from segunlearn.volumes import Volume

pytestmark = pytest.mark.pacs

NAMES = {1: "liver", 2: "left kidney", 7: "anterior"}


@pytest.fixture
def archive(orthanc: Orthanc, tmp_path: Path) -> Archive:
    return open_archive(orthanc.url, index_dir=tmp_path)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_image_and_label_come_back_voxel_by_voxel(
    orthanc: Orthanc, archive: Archive, orientation: str, tmp_path: Path
) -> None:
    source = make_series(orientation)
    orthanc.upload(source.datasets)
    uid = source.datasets[0].SeriesInstanceUID
    image = archive.load_volume(uid)
    np.testing.assert_array_equal(image.array, source.array)
    np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
    values = np.random.default_rng(3).choice([0, 0, 1, 2, 7], size=image.shape)
    values[:, :, [0, -1]] = 0
    label = Volume(values.astype(np.uint8), image.affine)
    archive.store([write_segmentation(label, archive.headers(uid), NAMES, author="Ünal")])
    fresh = open_archive(orthanc.url, index_dir=tmp_path / "new")  # no cache of any kind
    back = fresh.load_label(uid, NAMES)
    assert back is not None
    np.testing.assert_array_equal(back.array, label.array)
    assert back.same_grid(image)
    assert back.digest() == Volume(label.array, back.affine).digest()
    assert [r.author for r in fresh.segmentations_of(uid)] == ["Ünal"]


def test_enhanced_and_compressed_series(orthanc: Orthanc, archive: Archive) -> None:
    source = make_series("sagittal")
    enhanced = make_enhanced(source)
    packed = make_series("axial", seed=5)
    for ds in packed.datasets:
        ds.compress(RLELossless)
    orthanc.upload([*enhanced, *packed.datasets])
    image = archive.load_volume(enhanced[0].SeriesInstanceUID)
    np.testing.assert_array_equal(image.array, source.array)
    stored = archive.datasets(packed.datasets[0].SeriesInstanceUID)
    assert {d.file_meta.TransferSyntaxUID for d in stored} == {RLELossless}
    image = archive.load_volume(packed.datasets[0].SeriesInstanceUID)
    np.testing.assert_array_equal(image.array, packed.array)
    label = Volume((source.array > 500).astype(np.uint8), source.affine)
    headers = archive.headers(enhanced[0].SeriesInstanceUID)
    archive.store([write_segmentation(label, headers, {1: "x"})])
    back = archive.load_label(enhanced[0].SeriesInstanceUID, {1: "x"})
    assert back is not None
    np.testing.assert_array_equal(back.array, label.array)


def test_listing_shows_every_series_once(orthanc: Orthanc, archive: Archive) -> None:
    study = generate_uid()
    count = PAGE + 7
    base = make_series(shape=(4, 4, 1), study_uid=study).datasets[0]
    datasets: list[Dataset] = []
    for i in range(count):
        ds = written(base)
        ds.SeriesInstanceUID, ds.SOPInstanceUID = generate_uid(), generate_uid()
        ds.Modality = "MR" if i % 10 == 0 else "CT"
        datasets.append(ds)
    orthanc.upload(datasets)
    records = archive.list_series()
    assert len(records) == len({r.series_instance_uid for r in records}) == count
    assert {r.study_instance_uid for r in records} == {study}
    assert {r.patient_id for r in records} == {"SYN-1"}
    assert {r.number_of_instances for r in records} == {1}
    assert {r.series_description for r in records} == {"made by a test"}
    assert len(archive.list_series(modalities=("MR",))) == 11
    pages = [archive.list_series(limit=40, offset=o) for o in range(0, count, 40)]
    assert [r for p in pages for r in p] == records
    assert len(archive.list_series(filters={"PatientID": "nobody"})) == 0
    assert len(archive.series_of_study(study)) == count
    assert archive.studies_of_patient("SYN-1") == [study]
    assert archive.studies_of_patient("syn-1") == []  # Orthanc matches without case


def test_several_labels_are_resolved_by_date_and_author(orthanc: Orthanc, archive: Archive) -> None:
    source = make_series("axial")
    orthanc.upload(source.datasets)
    uid = source.datasets[0].SeriesInstanceUID
    for value, minute, author in ((1, 30, "Ann"), (2, 45, "Bo"), (7, 40, "Ann")):
        array = np.full(source.array.shape, value, np.uint8)
        segmentation = write_segmentation(
            Volume(array, source.affine),
            archive.headers(uid),
            NAMES,
            author=author,
            created=datetime(2024, 5, 1, 12, minute),
        )
        archive.store([segmentation])
        assert segmentation.SOPInstanceUID in {
            r.sop_instance_uid for r in archive.segmentations_of(uid)
        }
    newest = archive.load_label(uid, NAMES)
    of_ann = archive.load_label(uid, NAMES, author="Ann")
    assert [r.author for r in archive.labelled_series()[uid]] == ["Bo", "Ann", "Ann"]
    assert newest is not None
    assert of_ann is not None
    assert np.unique(newest.array).tolist() == [2]
    assert np.unique(of_ann.array).tolist() == [7]


def test_unknown_and_deleted_series(orthanc: Orthanc, archive: Archive) -> None:
    source = make_series(shape=(4, 4, 2))
    orthanc.upload(source.datasets)
    uid = source.datasets[0].SeriesInstanceUID
    assert archive.load_volume(uid).shape == (4, 4, 2)
    orthanc.clear()
    with pytest.raises(NotFoundError):
        archive.load_volume(uid)


def test_threads_share_an_archive(orthanc: Orthanc, archive: Archive) -> None:
    sources = [make_series(seed=i) for i in range(4)]
    orthanc.upload([ds for s in sources for ds in s.datasets])
    with ThreadPoolExecutor(4) as pool:
        uids = [s.datasets[0].SeriesInstanceUID for s in sources]
        volumes = list(pool.map(archive.load_volume, uids))
    for source, volume in zip(sources, volumes, strict=True):
        np.testing.assert_array_equal(volume.array, source.array)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mr-siemens-t1post", "mr-hippocrop-1", "mr-ge-t1post"])
def test_real_series(
    orthanc: Orthanc, archive: Archive, data_dir: Path, name: str, tmp_path: Path
) -> None:
    folder = open_archive(data_dir / "dicom" / name, index_dir=tmp_path)
    (record,) = folder.list_series()
    datasets = folder.datasets(record.series_instance_uid)
    orthanc.upload(datasets)
    image = archive.load_volume(record.series_instance_uid)
    assert image.digest() == folder.load_volume(record.series_instance_uid).digest()
    array = (image.array > np.median(image.array)).astype(np.uint8)
    headers = archive.headers(record.series_instance_uid)
    archive.store([write_segmentation(Volume(array, image.affine), headers, {1: "brain"})])
    back = archive.load_label(record.series_instance_uid, {1: "brain"})
    assert back is not None
    np.testing.assert_array_equal(back.array, array)
