from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from dicomweb_client.file import DICOMfileClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RLELossless, generate_uid

from dicom_sources import make_series, new_instance, set_pixels
from segunlearn.dicom import folder_index
from segunlearn.dicom.folder import FolderClient, stored_frames
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
    UnsupportedSeriesError,
)


def save(datasets: list[Dataset], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ds in datasets:
        paths.append(folder / f"{ds.SOPInstanceUID}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two studies of one patient and one of another, with files that are no DICOM."""
    folder = tmp_path / "studies"
    for i, (patient, name) in enumerate([("A", "Åse^Ann"), ("A", "Åse^Ann"), ("B", "Bo^Li")]):
        source = make_series(shape=(4, 4, 3), patient_id=patient, seed=i)
        for ds in source.datasets:
            ds.PatientName, ds.StudyDate = name, f"2024010{i + 1}"
        save(source.datasets, folder / str(i))
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "image.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rubbish" * 50)
    (folder / "empty").write_bytes(b"")
    (folder / ".hidden").mkdir()
    return folder


@pytest.fixture
def client(studies: Path, tmp_path: Path) -> FolderClient:
    return FolderClient(studies, index_dir=tmp_path / "index")


def values(answers: list[dict[str, dict]], tag: str) -> list[object]:
    return [a[tag].get("Value", [None])[0] for a in answers]


def test_it_is_a_file_client(client: FolderClient) -> None:
    assert isinstance(client, DICOMfileClient)


def test_search_on_each_level(client: FolderClient) -> None:
    studies = client.search_for_studies()
    assert values(studies, "00080020") == ["20240103", "20240102", "20240101"]
    assert studies[0]["00100010"]["Value"] == [{"Alphabetic": "Bo^Li"}]
    assert studies[0]["00080061"]["Value"] == ["CT"]
    assert values(studies, "00201208") == [3, 3, 3]
    uid = studies[0]["0020000D"]["Value"][0]
    series = client.search_for_series(uid)
    assert values(series, "0020000D") == [uid]
    assert values(series, "00201209") == [3]
    instances = client.search_for_instances(uid, series[0]["0020000E"]["Value"][0])
    assert values(instances, "00200013") == [1, 2, 3]
    assert len(client.search_for_instances()) == 9


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"PatientID": "A"}, 2),
        ({"00100020": "B"}, 1),
        ({"PatientName": "å*"}, 0),  # LIKE folds ASCII only; the standard leaves it open
        ({"PatientName": "*ANN"}, 2),
        ({"PatientName": "B?^Li"}, 1),
        ({"StudyDate": "20240102-"}, 2),
        ({"StudyDate": "-20240101"}, 1),
        ({"StudyDate": "20240101-20240102"}, 2),
        ({"StudyDate": "20240102"}, 1),
        ({"ModalitiesInStudy": "CT\\MR"}, 3),
        ({"ModalitiesInStudy": "MR"}, 0),
        ({"Modality": "CT"}, 3),
        ({"PatientID": ""}, 3),
        ({"PatientID": "%"}, 0),
        ({"PatientID": "x' OR 1=1 --"}, 0),
    ],
)
def test_filters(client: FolderClient, filters: dict[str, str], count: int) -> None:
    assert len(client.search_for_studies(search_filters=filters)) == count


@pytest.mark.parametrize("number", ["--5", "9" * 20, "²", "-", "1.5"])
def test_numbers_that_are_none_are_refused(client: FolderClient, number: str) -> None:
    for keyword in ("InstanceNumber", "SeriesNumber"):
        with pytest.raises(InvalidInputError, match="not a whole number"):
            client.search_for_instances(search_filters={keyword: number})


def test_filters_that_sqlite_would_not_take_are_refused(client: FolderClient) -> None:
    with pytest.raises(InvalidInputError, match="500 characters") as error:
        client.search_for_studies(search_filters={"PatientName": "a*" * 30_000})
    assert len(str(error.value)) < 200
    with pytest.raises(InvalidInputError, match="500 characters"):
        client.search_for_studies(search_filters={"ModalitiesInStudy": "*" * 501})
    assert client.search_for_studies(search_filters={"PatientName": "a*" * 250}) == []
    many = {"(" * n + "00100010": "A*" for n in range(1200)}
    with pytest.raises(InvalidInputError, match="1200 search filters"):
        client.search_for_studies(search_filters=many)
    uids = ",".join(f"1.2.{n}" for n in range(5000))
    assert client.search_for_studies(search_filters={"StudyInstanceUID": uids}) == []


def test_fuzzy_names_and_unknown_filters(client: FolderClient) -> None:
    found = client.search_for_studies(search_filters={"PatientName": "an"}, fuzzymatching=True)
    assert len(found) == 2
    with pytest.raises(InvalidInputError, match="not kept in the index"):
        client.search_for_studies(search_filters={"EchoTime": "3"})
    with pytest.raises(InvalidInputError, match="no DICOM attribute"):
        client.search_for_studies(search_filters={"Nonsense": "3"})


def test_names_in_several_scripts_are_told_apart(studies: Path, client: FolderClient) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    series = make_series(patient_id="JP")
    for i, ds in enumerate(series.datasets):
        ds.SpecificCharacterSet, ds.PatientName = ["", "ISO 2022 IR 87"], name
        ds.save_as(studies / f"jp{i}.dcm", enforce_file_format=True)
    client.index.refresh(force=True)
    (found,) = client.search_for_studies(search_filters={"PatientName": "Yamada*"})
    groups = {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    assert found["00100010"]["Value"] == [groups]


def test_paging_shows_each_study_once(client: FolderClient) -> None:
    pages = [client.search_for_studies(limit=1, offset=i) for i in range(4)]
    assert [len(p) for p in pages] == [1, 1, 1, 0]
    assert len({values(p, "0020000D")[0] for p in pages[:3]}) == 3


def test_retrieve(client: FolderClient) -> None:
    answer = client.search_for_series()[0]
    uids = (answer["0020000D"]["Value"][0], answer["0020000E"]["Value"][0])
    datasets = client.retrieve_series(*uids)
    assert [int(d.InstanceNumber) for d in datasets] == [1, 2, 3]
    assert datasets[0].pixel_array.shape == (4, 4)
    one = client.retrieve_instance(*uids, datasets[1].SOPInstanceUID)
    assert one == datasets[1]
    header = client.retrieve_instance_metadata(*uids, datasets[1].SOPInstanceUID)
    assert header["00080018"]["Value"] == [datasets[1].SOPInstanceUID]
    assert "7FE00010" not in header
    assert len(client.retrieve_study_metadata(uids[0])) == 3
    frames = client.retrieve_instance_frames(*uids, datasets[1].SOPInstanceUID, [1])
    assert frames == [datasets[1].PixelData]
    with pytest.raises(NotFoundError, match="no frame 2"):
        client.retrieve_instance_frames(*uids, datasets[1].SOPInstanceUID, [2])
    with pytest.raises(NotFoundError, match="not in the studies folder"):
        client.retrieve_series(uids[0], "1.2.3")


def test_implicit_vr_and_compressed_instances(studies: Path, tmp_path: Path) -> None:
    source = make_series(shape=(4, 4, 2))
    source.datasets[0].file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    source.datasets[1].compress(RLELossless)
    save(source.datasets, studies / "other")
    client = FolderClient(studies, index_dir=tmp_path / "index")
    first = source.datasets[0]
    found = client.retrieve_series(first.StudyInstanceUID, first.SeriesInstanceUID)
    assert len(found) == 2
    packed = next(d for d in found if d.file_meta.TransferSyntaxUID == RLELossless)
    assert len(stored_frames(packed)) == 1


def test_frames_that_end_too_early() -> None:
    ds = new_instance("1.2.840.10008.5.1.4.1.1.2", "1.2", "1.3")
    with pytest.raises(UnsupportedSeriesError, match="no pixel data"):
        stored_frames(ds)
    set_pixels(ds, make_series(shape=(4, 4, 1)).datasets[0].pixel_array)
    ds.NumberOfFrames = 2
    with pytest.raises(UnsupportedSeriesError, match="too few"):
        stored_frames(ds)


def test_new_changed_and_deleted_files_are_seen(studies: Path, client: FolderClient) -> None:
    assert len(client.search_for_studies()) == 3
    more = make_series(shape=(4, 4, 1))
    (path,) = save(more.datasets, studies / "new")
    client.index.refresh(force=True)
    assert len(client.search_for_studies()) == 4
    more.datasets[0].PatientID = "changed"
    save(more.datasets, studies / "new")
    os.utime(path, ns=(1, time.time_ns()))
    client.index.refresh(force=True)
    assert len(client.search_for_studies(search_filters={"PatientID": "changed"})) == 1
    path.unlink()
    client.index.refresh(force=True)
    assert len(client.search_for_studies()) == 3


def test_the_index_is_never_inside_the_studies(studies: Path) -> None:
    with pytest.raises(InvalidInputError, match="inside the studies folder"):
        FolderClient(studies, index_dir=studies / "index")
    with pytest.raises(InvalidInputError, match="no such folder"):
        FolderClient(studies / "missing", index_dir=studies.parent / "i")


def test_nothing_is_written_into_the_studies_by_reading(studies: Path, tmp_path: Path) -> None:
    before = sorted(studies.rglob("*"))
    FolderClient(studies, index_dir=tmp_path / "index").search_for_studies()
    assert sorted(studies.rglob("*")) == before


def test_store_and_delete(studies: Path, client: FolderClient) -> None:
    more = make_series(shape=(4, 4, 2)).datasets
    client.store_instances(more)
    paths = list((studies / "segunlearn-results").rglob("*.dcm"))
    assert sorted(p.stem for p in paths) == sorted(d.SOPInstanceUID for d in more)
    assert dcmread(paths[0]).PatientID == "SYN-1"
    uids = (more[0].StudyInstanceUID, more[0].SeriesInstanceUID)
    assert len(client.retrieve_series(*uids)) == 2
    with pytest.raises(ConflictError, match="stored already"):
        client.store_instances(more[:1])
    client.delete_series(*uids)
    assert not list((studies / "segunlearn-results").rglob("*.dcm"))
    answer = client.search_for_series()[0]
    with pytest.raises(ForbiddenError, match="came with the studies"):
        client.delete_series(answer["0020000D"]["Value"][0], answer["0020000E"]["Value"][0])
    with pytest.raises(ForbiddenError):
        client.delete_study(answer["0020000D"]["Value"][0])


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")
@pytest.mark.parametrize("uid", ["../../../x", "1/2", ""])
def test_no_uid_leads_out_of_the_folder(client: FolderClient, uid: str, tmp_path: Path) -> None:
    ds = make_series(shape=(4, 4, 1)).datasets[0]
    ds.SeriesInstanceUID = uid
    before = sorted(tmp_path.rglob("*.dcm"))
    with pytest.raises(InvalidInputError, match="not a valid SeriesInstanceUID"):
        client.store_instances([ds])
    assert sorted(tmp_path.rglob("*.dcm")) == before


def test_read_only_studies(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda p, m: Path(p) != studies and allowed(p, m))
    ds = make_series(shape=(4, 4, 1)).datasets
    with pytest.raises(ForbiddenError, match="read-only"):
        FolderClient(studies, index_dir=tmp_path / "index").store_instances(ds)
    client = FolderClient(
        studies, index_dir=tmp_path / "index", results_dir=tmp_path / "home" / "results"
    )
    client.store_instances(ds)
    assert len(client.search_for_studies()) == 4
    assert len(list((tmp_path / "home" / "results").rglob("*.dcm"))) == 1


def test_threads_share_a_client(client: FolderClient) -> None:
    objects = [make_series(shape=(4, 4, 1), seed=i).datasets for i in range(12)]

    def work(datasets: list[Dataset]) -> int:
        client.store_instances(datasets)
        return len(client.search_for_studies())

    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(work, objects))
    assert max(counts) == 15
    assert len(client.search_for_studies()) == 15


def test_a_folder_is_looked_through_once_for_all_who_wait(
    studies: Path, client: FolderClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[Path] = []
    going_on, describe = Event(), folder_index._describe

    def slowly(path: Path) -> Any:
        described.append(path)
        assert going_on.wait(30)
        return describe(path)

    monkeypatch.setattr(folder_index, "_describe", slowly)
    with ThreadPoolExecutor(6) as pool:
        first = [pool.submit(client.search_for_instances) for _ in range(6)]
        time.sleep(0.3)
        assert not any(f.done() for f in first)  # there is nothing to go on with
        going_on.set()
        assert [len(f.result()) for f in first] == [9] * 6
        assert len(described) == len(set(described)) == 12  # three are no DICOM

        going_on.clear()
        save(make_series(shape=(4, 4, 1)).datasets, studies / "new")
        monkeypatch.setattr(client.index, "_next_scan", time.monotonic())
        looking = pool.submit(client.search_for_instances)
        while len(described) < 13:
            time.sleep(0.01)
        assert len(client.search_for_instances()) == 9  # what is known, at once
        forced = pool.submit(client.index.refresh, force=True)
        time.sleep(0.1)
        assert not forced.done()
        going_on.set()
        forced.result()
        assert len(looking.result()) == 10
    assert len(pickle.loads(pickle.dumps(client)).search_for_instances()) == 10  # noqa: S301


def test_processes_share_an_index(studies: Path, tmp_path: Path, client: FolderClient) -> None:
    """A training child opens the same index while the server stores a label."""
    assert len(client.search_for_studies()) == 3
    code = (
        "import sys; from pathlib import Path\n"
        "from segunlearn.dicom.folder import FolderClient\n"
        "from pydicom import dcmread\n"
        "client = FolderClient(Path(sys.argv[1]), index_dir=Path(sys.argv[2]))\n"
        "client.store_instances([dcmread(sys.argv[3])])\n"
    )
    (path,) = save(make_series(shape=(4, 4, 1)).datasets, tmp_path / "elsewhere")
    arguments = [sys.executable, "-c", code, str(studies), str(tmp_path / "index"), str(path)]
    subprocess.run(arguments, check=True, timeout=60)
    assert len(client.search_for_studies()) == 4


def test_a_damaged_index_says_what_to_do(studies: Path, tmp_path: Path) -> None:
    client = FolderClient(studies, index_dir=tmp_path / "index")
    (database,) = (tmp_path / "index").glob("*.db")
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "index").mkdir()
    database.write_bytes(b"no database" * 100)
    with pytest.raises(UnavailableError, match="Delete the file"):
        client.search_for_studies()


def test_a_file_twice_is_one_instance(studies: Path, client: FolderClient) -> None:
    path = next((studies / "0").glob("*.dcm"))
    shutil.copy(path, studies / "copy.dcm")
    client.index.refresh(force=True)
    ds = dcmread(path)
    uids = (ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert len(client.search_for_instances(*uids)) == 3
    assert len(client.retrieve_series_metadata(*uids)) == 3
    assert generate_uid() not in {ds.SOPInstanceUID}
