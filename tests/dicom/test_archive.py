"""The archive on a folder and on a scripted client; ``test_archive_orthanc`` has a real PACS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import generate_uid

from dicom_sources import Source, make_series, written
from segunlearn.dicom.archive import Archive, open_archive
from segunlearn.dicom.folder import FolderClient
from segunlearn.dicom.segmentation import write_segmentation
from segunlearn.dicom.series import geometry_from_datasets
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    InvalidIdentifierError,
    InvalidInputError,
    NotFoundError,
    SegUnlearnError,
    UnavailableError,
)
from segunlearn.volumes import Volume

NAMES = {1: "liver", 2: "spleen"}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    folder = tmp_path / "studies"
    folder.mkdir()
    return open_archive(folder, index_dir=tmp_path / "index")


def label_of(source: Source, value: int = 1) -> Volume:
    array = np.zeros(source.array.shape, np.uint8)
    array[1:3, 2:4, 1:3] = value
    return Volume(array, source.affine)


def test_list_filters_modalities_and_pages(archive: Archive) -> None:
    study = generate_uid()
    for i in range(5):
        modality = "CT" if i % 2 else "MR"
        source = make_series(shape=(4, 4, 1), seed=i, modality=modality, study_uid=study)
        archive.store(source.datasets)
    assert [r.modality for r in archive.list_series()] == ["CT"] * 2 + ["MR"] * 3
    assert len(archive.list_series(modalities=("MR",))) == 3
    assert len(archive.list_series(modalities=("PT",))) == 0
    assert len(archive.list_series(modalities=(), filters={"PatientID": "SYN-1"})) == 5
    pages = [archive.list_series(limit=2, offset=o) for o in (0, 2, 4, 6)]
    assert [len(p) for p in pages] == [2, 2, 1, 0]
    assert len({r.series_instance_uid for p in pages for r in p}) == 5
    assert len(archive.series_of_study(study)) == 5
    assert archive.studies_of_patient("SYN-1") == [study]
    assert archive.studies_of_patient("SYN*") == []
    assert archive.studies_of_patient("") == []


def test_patients_of_one_number_are_told_apart_by_their_issuers(archive: Archive) -> None:
    studies = {}
    for seed, issuer in enumerate(("St. Anna", "St. Bernd", "")):
        source = make_series(shape=(4, 4, 1), seed=seed, patient_id="4711")
        for dataset in source.datasets:
            if issuer:
                dataset.IssuerOfPatientID = issuer
        archive.store(source.datasets)
        studies[issuer] = str(source.datasets[0].StudyInstanceUID)
    found = {r.study_instance_uid: r.issuer_of_patient_id for r in archive.list_series()}
    assert found == {study: issuer for issuer, study in studies.items()}
    assert set(archive.studies_of_patient("4711")) == set(studies.values())
    # one whose issuer is not known may be any
    assert set(archive.studies_of_patient("4711", "St. Anna")) == {studies["St. Anna"], studies[""]}


def test_record(archive: Archive) -> None:
    source = make_series(shape=(4, 4, 3))
    archive.store(source.datasets)
    record = archive.find_series(source.datasets[0].SeriesInstanceUID)
    assert record.patient_id == "SYN-1"
    assert record.series_description == "made by a test"
    assert (record.study_date, record.number_of_instances) == ("20240229", 3)


def test_what_is_not_there(archive: Archive) -> None:
    with pytest.raises(NotFoundError, match=r"series 1\.2\.3 is not in the archive"):
        archive.find_series("1.2.3")
    with pytest.raises(NotFoundError):
        archive.series_of_study("1.2.3")
    for uid in ("../x", "", "*", "1.2\\1.3"):
        with pytest.raises(InvalidIdentifierError):
            archive.load_volume(uid)


def test_volume_and_headers(archive: Archive) -> None:
    source = make_series("oblique")
    archive.store(source.datasets)
    uid = source.datasets[0].SeriesInstanceUID
    volume = archive.load_volume(uid)
    np.testing.assert_array_equal(volume.array, source.array)
    np.testing.assert_allclose(volume.affine, source.affine, atol=1e-5)
    headers = archive.headers(uid)
    assert len(headers) == 5
    assert not any("PixelData" in h for h in headers)


def test_a_stored_label_is_seen_at_once_and_the_newest_counts(archive: Archive) -> None:
    source = make_series("sagittal")
    archive.store(source.datasets)
    uid = source.datasets[0].SeriesInstanceUID
    assert archive.segmentations_of(uid) == []
    assert archive.load_label(uid, NAMES) is None
    for value, day, author in ((1, 3, "Ann"), (2, 5, "Bo"), (1, 4, "Ann")):
        seg = write_segmentation(
            label_of(source, value),
            archive.headers(uid),
            NAMES,
            author=author,
            created=datetime(2024, 1, day),
        )
        archive.store([seg])
        assert len(archive.segmentations_of(uid)) > 0
    records = archive.segmentations_of(uid)
    assert [(r.created[8:10], r.author) for r in records] == [
        ("05", "Bo"),
        ("04", "Ann"),
        ("03", "Ann"),
    ]
    newest = archive.load_label(uid, NAMES)
    assert newest is not None
    np.testing.assert_array_equal(newest.array, label_of(source, 2).array)
    of_ann = archive.load_label(uid, NAMES, author="Ann", reference=archive.load_volume(uid))
    assert of_ann is not None
    np.testing.assert_array_equal(of_ann.array, label_of(source, 1).array)
    assert archive.load_label(uid, NAMES, author="Cy") is None
    assert archive.load_label(uid, {1: "pancreas"}) is None
    assert [r.modality for r in archive.list_series()] == ["CT"]


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this machine stand five hours behind UTC."""
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("new_york")
def test_the_newest_counts_whether_or_not_its_maker_tells_the_offset(archive: Archive) -> None:
    """A workstation that names its time zone must not stay the newest for hours."""
    source = make_series("axial")
    archive.store(source.datasets)
    uid = source.datasets[0].SeriesInstanceUID
    headers = archive.headers(uid)
    of_workstation = write_segmentation(
        label_of(source, 1), headers, NAMES, created=datetime(2024, 5, 1, 10, 15)
    )
    of_workstation.TimezoneOffsetFromUTC = "-0500"
    corrected = write_segmentation(
        label_of(source, 2), headers, NAMES, created=datetime(2024, 5, 1, 10, 30)
    )
    archive.store([of_workstation])
    archive.store([corrected])
    newest = archive.load_label(uid, NAMES)
    assert newest is not None
    np.testing.assert_array_equal(newest.array, label_of(source, 2).array)


def test_labels_belong_to_their_series(archive: Archive) -> None:
    study = generate_uid()
    one, two = (make_series(seed=i, study_uid=study) for i in (0, 1))
    archive.store([*one.datasets, *two.datasets])
    archive.store([write_segmentation(label_of(one), one.datasets, NAMES)])
    assert archive.load_label(one.datasets[0].SeriesInstanceUID, NAMES) is not None
    assert archive.load_label(two.datasets[0].SeriesInstanceUID, NAMES) is None


def test_all_labels_are_listed_at_once(archive: Archive) -> None:
    sources = [make_series(seed=i) for i in range(3)]
    for source in sources:
        archive.store(source.datasets)
    assert archive.labelled_series() == {}
    series = str(generate_uid())
    for source, uid in zip(sources[:2], (series, None), strict=True):
        archive.store(
            [write_segmentation(label_of(source), source.datasets, NAMES, series_instance_uid=uid)]
        )
    labelled = archive.labelled_series()
    assert set(labelled) == {s.datasets[0].SeriesInstanceUID for s in sources[:2]}
    again = write_segmentation(
        label_of(sources[0]),
        sources[0].datasets,
        NAMES,
        series_instance_uid=series,
    )
    archive.store([again])  # the same series grows by one instance
    records = archive.segmentations_of(sources[0].datasets[0].SeriesInstanceUID)
    assert len(records) == 2
    assert records[0].sop_instance_uid == again.SOPInstanceUID


def test_a_series_of_copies_still_takes_a_label(archive: Archive) -> None:
    source = make_series()
    copy = written(source.datasets[2])
    copy.SOPInstanceUID = generate_uid()
    archive.store([*source.datasets, copy])
    uid = source.datasets[0].SeriesInstanceUID
    image = archive.load_volume(uid)
    label = Volume(label_of(source).array, image.affine)
    archive.store([write_segmentation(label, archive.datasets(uid), NAMES)])
    back = archive.load_label(uid, NAMES, reference=image)
    assert back is not None
    np.testing.assert_array_equal(back.array, label.array)


def test_urls_and_options_are_checked(tmp_path: Path) -> None:
    for url, words in (
        ("http://", "needs the form"),
        ("http://a:b@host/dicom-web", "are logged"),
        ("http://host:99999/", "not a DICOMweb URL"),
        ("http://host/x?y=1", "needs the form"),
        (str(tmp_path / "missing"), "no such folder"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            open_archive(url, index_dir=tmp_path / "index")
    with pytest.raises(InvalidInputError, match="not both"):
        open_archive("http://host/", index_dir=tmp_path, user="u", token="t")
    with pytest.raises(InvalidInputError, match="no such file"):
        open_archive("https://host/", index_dir=tmp_path, ca_bundle=tmp_path / "ca.pem")


def test_a_pacs_that_is_not_there(tmp_path: Path) -> None:
    archive = open_archive(
        "http://127.0.0.1:9/dicom-web", index_dir=tmp_path, timeout=1, attempts=1
    )
    with pytest.raises(UnavailableError, match="cannot be reached"):
        archive.list_series()


# --- a scripted client ---------------------------------------------------------------------------


class Scripted:
    """The folder client, but for the methods that a test replaces."""

    def __init__(self, inner: Any, **methods: Callable[..., Any]) -> None:
        self._inner = inner
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._inner, name)


def http_error(code: int) -> Callable[..., Any]:
    def answer(*_arguments: Any, **_options: Any) -> Any:
        response = requests.Response()
        response.status_code, response.reason = code, "because"
        raise requests.HTTPError(response=response)

    return answer


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, InvalidInputError),
        (401, ForbiddenError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, ConflictError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
def test_answers_of_a_pacs(archive: Archive, code: int, kind: type[SegUnlearnError]) -> None:
    scripted = Archive(Scripted(archive.client, search_for_series=http_error(code)))
    with pytest.raises(kind, match=str(code)):
        scripted.list_series()


@pytest.mark.parametrize(
    "error", [requests.Timeout(), requests.ConnectionError(), ValueError("x"), InvalidDicomError()]
)
def test_other_faults_of_a_pacs(archive: Archive, error: Exception) -> None:
    def fail(**_options: Any) -> Any:
        raise error

    with pytest.raises(UnavailableError):
        Archive(Scripted(archive.client, search_for_series=fail)).list_series()


def test_a_part_of_a_series_is_never_taken_for_the_whole(archive: Archive) -> None:
    source = make_series()
    archive.store(source.datasets)
    uid = source.datasets[0].SeriesInstanceUID

    def cut(*uids: str, **options: Any) -> list[Dataset]:
        return archive.client.retrieve_series(*uids, **options)[:-1]

    with pytest.raises(UnavailableError, match="4 of 5 instances"):
        Archive(Scripted(archive.client, retrieve_series=cut)).load_volume(uid)


def test_a_server_that_ignores_offset_does_not_loop(archive: Archive) -> None:
    archive.store(make_series(shape=(4, 4, 1)).datasets)
    calls = []

    def always(**options: Any) -> Any:
        calls.append(options["offset"])
        return archive.client.search_for_series()

    scripted = Archive(Scripted(archive.client, search_for_series=always))
    assert len(scripted.list_series(modalities=("CT",))) == 1
    assert calls == [0, 1]


def test_a_refused_instance_is_an_error(archive: Archive) -> None:
    def refuse(_datasets: Any) -> Dataset:
        response, item = Dataset(), Dataset()
        item.FailureReason = 0x0122
        response.FailedSOPSequence = [item]
        return response

    with pytest.raises(UnavailableError, match=r"refused 1 of 1 instances .*0122H"):
        Archive(Scripted(archive.client, store_instances=refuse)).store(
            make_series(shape=(4, 4, 1)).datasets
        )


def test_one_strange_value_does_not_hide_the_header_of_a_series(archive: Archive) -> None:
    """Archives pass on what stands in files: "70,5" kg, an IS that is a word, an SQ of null."""
    source = make_series("oblique")
    archive.store(source.datasets)
    uids = source.datasets[0].StudyInstanceUID, source.datasets[0].SeriesInstanceUID
    answers = archive.client.retrieve_series_metadata(*uids)
    for answer in answers:
        answer["00101030"] = {"vr": "DS", "Value": ["70,5"]}
        answer["00200011"] = {"vr": "IS", "Value": ["three"]}
        answer["00081140"] = {"vr": "SQ", "Value": None}
        item = {"00180050": {"vr": "DS", "Value": ["2,5"]}, "00280030": answer["00280030"]}
        answer["00289110"] = {"vr": "SQ", "Value": [item]}
    scripted = Archive(Scripted(archive.client, retrieve_series_metadata=lambda *_: answers))
    headers = scripted.headers(uids[1])
    np.testing.assert_allclose(geometry_from_datasets(headers).affine, source.affine, atol=1e-5)
    assert headers[0].PixelMeasuresSequence[0].PixelSpacing == [0.9, 0.7]
    assert "PatientWeight" not in headers[0]


def test_a_segmentation_without_header_hides_no_other(archive: Archive) -> None:
    """Some archives answer with nothing for what was deleted a moment ago."""
    source = make_series("axial")
    archive.store(source.datasets)
    uid = source.datasets[0].SeriesInstanceUID
    kept, gone = (
        write_segmentation(label_of(source), archive.headers(uid), NAMES) for _ in range(2)
    )
    archive.store([kept, gone])

    def metadata(study: str, series: str, instance: str) -> Any:
        found = archive.client.retrieve_instance_metadata(study, series, instance)
        return [found][0 if instance == kept.SOPInstanceUID else 1]

    scripted = Archive(Scripted(archive.client, retrieve_instance_metadata=metadata))
    found = scripted.segmentations_of(uid)
    assert [r.sop_instance_uid for r in found] == [kept.SOPInstanceUID]
    with pytest.raises(NotFoundError, match="no header"):
        scripted.header(gone.StudyInstanceUID, gone.SeriesInstanceUID, gone.SOPInstanceUID)


def test_bugs_are_not_hidden_as_faults_of_the_pacs(archive: Archive) -> None:
    def broken(**_options: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Archive(Scripted(archive.client, search_for_series=broken)).list_series()


def test_read_only_studies_keep_results_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "studies"
    source = make_series("coronal")
    folder.mkdir()
    for ds in source.datasets:
        ds.save_as(folder / f"{ds.SOPInstanceUID}.dcm", enforce_file_format=True)
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr("segunlearn.dicom.folder.os.access", lambda *_: False)
    archive = Archive(
        FolderClient(folder, index_dir=tmp_path / "index", results_dir=tmp_path / "results")
    )
    uid = source.datasets[0].SeriesInstanceUID
    archive.store([write_segmentation(label_of(source), source.datasets, NAMES)])
    label = archive.load_label(uid, NAMES)
    assert label is not None
    np.testing.assert_array_equal(label.array, label_of(source).array)
    assert sorted(folder.rglob("*")) == before
