"""The datastores, without a server: files, and a folder of DICOM files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from monailabel.endpoints.user.auth import User
from pydicom import dcmread
from pydicom.uid import generate_uid

from app_sources import LABELS, Study, make_study, write_dicom, write_files
from segunlearn.app.datastores import DicomDatastore, FolderDatastore, files, open_datastore
from segunlearn.app.datastores.infos import MAX_INFO_BYTES
from segunlearn.app.datastores.studies import StudiesDatastore
from segunlearn.app.options import AppOptions, Home
from segunlearn.app.routes import datastore as routes
from segunlearn.app.scoring import DiceScoring
from segunlearn.audit.sweep import sweep
from segunlearn.cases import Case
from segunlearn.dicom.folder import RESULTS_FOLDER
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.dicom.search import SeriesRecord
from segunlearn.dicom.segmentation import (
    read_segmentation,
    references_series,
    write_segmentation,
)
from segunlearn.dicom.series import volume_from_datasets
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    GeometryError,
    InvalidInputError,
    LabelError,
    NotFoundError,
)
from segunlearn.volumes import Volume, read_volume, write_volume

VALUES = {name: i + 1 for i, name in enumerate(LABELS)}
Opener = Callable[..., StudiesDatastore]


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    def open_it(
        studies: Path,
        keep: Callable[[Any], list[Case]] = list,
        values: dict[str, int] | None = None,
        **conf: str,
    ) -> StudiesDatastore:
        options = AppOptions.from_conf({"home": str(tmp_path / "home"), **conf})
        chosen = VALUES if values is None else values
        return open_datastore(
            str(studies), options, Home(options.home), label_values=lambda: chosen, keep=keep
        )

    return open_it


@pytest.fixture
def studies() -> list[Study]:
    return [make_study(n, o) for n, o in enumerate(("axial", "sagittal", "oblique"))]


@pytest.fixture(params=["files", "dicom"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, studies: list[Study], opener: Opener
) -> StudiesDatastore:
    folder = tmp_path / "studies"
    if request.param == "files":
        write_files(folder, studies)
    else:
        write_dicom(folder, studies)
    return opener(folder)


def saved(study: Study, tmp_path: Path, label: Volume | None = None) -> str:
    path = tmp_path / "sent.nrrd"
    write_volume(label or study.label, path)
    return str(path)


def test_images_are_listed_and_equal_what_was_made(
    store: StudiesDatastore, studies: list[Study]
) -> None:
    assert store.list_images() == sorted(s.series for s in studies)
    for study in studies:
        image = read_volume(Path(store.get_image_uri(study.series)))
        assert image.same_grid(study.image)
        np.testing.assert_array_equal(image.array, study.image.array)
    assert store.status() == {"total": 3, "completed": 0, "label_tags": {}}


@pytest.fixture
def issued(tmp_path: Path, opener: Opener) -> tuple[DicomDatastore, list[Study]]:
    """Three studies of the number 4711, by two issuers and by nobody; all labelled."""
    studies = [make_study(n) for n in range(3)]
    for study, issuer in zip(studies, ("St. Anna", " St.  Bernd ", ""), strict=True):
        for ds in study.datasets:
            ds.PatientID = "4711"
            if issuer:
                ds.IssuerOfPatientID = issuer
    write_dicom(tmp_path / "studies", studies)
    store = opener(tmp_path / "studies")
    assert isinstance(store, DicomDatastore)
    for study in studies:
        store.save_label(study.series, saved(study, tmp_path), "final", {})
    return store, studies


def test_a_person_is_a_number_and_its_issuer(
    issued: tuple[DicomDatastore, list[Study]],
) -> None:
    store, studies = issued
    persons = [store.record(study.series).person for study in studies]
    assert persons == ["4711^^^St. Anna", "4711^^^St. Bernd", "4711"]
    assert {store.get_image_info(s.series)["PatientID"] for s in studies} == {"4711"}
    assert {c.series: c.person for c in store.trainable().cases} == {
        study.series: person for study, person in zip(studies, persons, strict=True)
    }


def test_an_issuer_that_the_search_does_not_tell_comes_from_the_header(
    issued: tuple[DicomDatastore, list[Study]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, studies = issued
    shutil.rmtree(store.home.cache)
    listed = store.archive.iter_series

    def silent(**options: Any) -> Iterator[SeriesRecord]:
        return (replace(r, issuer_of_patient_id="") for r in listed(**options))

    monkeypatch.setattr(store.archive, "iter_series", silent)
    store.refresh()
    assert {store.record(s.series).person for s in studies} == {"4711"}
    # read for the training, and known from then on
    expected = ["4711^^^St. Anna", "4711^^^St. Bernd", "4711"]
    cases = {c.series: c.person for c in store.trainable().cases}
    assert [cases[s.series] for s in studies] == expected
    store.refresh()
    assert [store.record(s.series).person for s in studies] == expected


def test_a_number_that_holds_its_issuer_is_taken_as_it_is(
    tmp_path: Path, opener: Opener, studies: list[Study]
) -> None:
    for ds in studies[0].datasets:
        ds.PatientID, ds.IssuerOfPatientID = "4711^^^St. Anna", "HIS"
    write_dicom(tmp_path / "studies", studies[:1])
    store = opener(tmp_path / "studies")
    assert store.record(studies[0].series).person == "4711^^^St. Anna"


def test_a_saved_label_is_there_at_once_and_voxel_by_voxel(
    store: StudiesDatastore, studies: list[Study], tmp_path: Path
) -> None:
    for number, study in enumerate(studies, start=1):
        store.save_label(study.series, saved(study, tmp_path), "final", {"client_id": "me"})
        assert store.status()["completed"] == number
        assert study.series in store.get_labeled_images()
        label = read_volume(Path(store.get_label_uri(study.series, "final")), label=True)
        assert label.same_grid(study.label)
        np.testing.assert_array_equal(label.array, study.label.array)
        assert store.get_label_info(study.series, "final")["client_id"] == "me"
    assert store.get_unlabeled_images() == []
    assert {Path(d["label"]).name for d in store.datalist()} == {
        f"{s.series}.nii.gz" for s in studies
    }
    assert store.json()["objects"][studies[0].series]["labels"]["final"]["info"]["client_id"]


def test_final_labels_survive_the_loss_of_every_cache(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    write_dicom(tmp_path / "studies", studies)
    store = opener(tmp_path / "studies")
    for study in studies:
        store.save_label(study.series, saved(study, tmp_path), "final", {})
        store.save_label(study.series, saved(study, tmp_path), "original", {})
    shutil.rmtree(tmp_path / "home")
    again = opener(tmp_path / "studies")
    assert again.status() == {"total": 3, "completed": 3, "label_tags": {"final": 3}}
    for study in studies:
        label = read_volume(Path(again.get_label_uri(study.series, "final")), label=True)
        assert label.same_grid(study.label)
        np.testing.assert_array_equal(label.array, study.label.array)


def test_the_newest_label_counts(
    store: StudiesDatastore, studies: list[Study], tmp_path: Path
) -> None:
    study = studies[0]
    store.save_label(study.series, saved(study, tmp_path), "final", {})
    store.get_label_uri(study.series, "final")
    corrected = replace(study.label, array=np.where(study.label.array == 1, 1, 0).astype(np.uint8))
    store.save_label(study.series, saved(study, tmp_path, corrected), "final", {})
    label = read_volume(Path(store.get_label_uri(study.series, "final")), label=True)
    np.testing.assert_array_equal(label.array, corrected.array)


@pytest.mark.parametrize(
    ("user", "author"),
    [("CORP\\meyer", "CORP/meyer"), ("hT9/x4oZ=", "hT9/x4oZ-"), ("u" * 80, "u" * 63), (" ", "")],
)
def test_who_signed_in_by_a_directory_saves_labels(
    tmp_path: Path, studies: list[Study], opener: Opener, user: str, author: str
) -> None:
    """A name that no header can hold must not keep its owner from finishing a label."""
    write_dicom(tmp_path / "studies", studies[:1])
    store = opener(tmp_path / "studies")
    store.save_label(studies[0].series, saved(studies[0], tmp_path), "final", {"user": user})
    info = store.get_label_info(studies[0].series, "final")
    assert info["author"] == author
    assert info["user"] == user


def test_before_a_first_training_segments_keep_the_names_that_the_viewer_gave(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    write_dicom(tmp_path / "studies", studies[:1])
    store = opener(tmp_path / "studies", values={})
    named = [{"name": name, "idx": i + 2} for i, name in enumerate(LABELS)]  # as Slicer counts
    store.save_label(studies[0].series, saved(studies[0], tmp_path), "final", {"label_info": named})
    assert store.structures() == LABELS


def test_names_that_differ_in_case_alone_are_one_structure(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    """Each reader of a SEG compares names without case: the first of two was never taught."""
    write_dicom(tmp_path / "studies", studies)
    for number, (study, name) in enumerate(zip(studies, ("Liver", "liver", "LIVER "), strict=True)):
        drawn = replace(study.label, array=(study.label.array > 0).astype(np.uint8))
        segmentation = write_segmentation(drawn, study.datasets, {1: name})
        segmentation.save_as(tmp_path / f"studies/seg{number}.dcm", enforce_file_format=True)
    store = opener(tmp_path / "studies", values={})
    names = store.structures()
    assert [name.strip().casefold() for name in names] == ["liver"]
    cases = store.trainable(values={name: i + 1 for i, name in enumerate(names)}).cases
    assert len(cases) == 3
    for case in cases:
        assert case.label is not None
        assert set(np.unique(read_volume(case.label, label=True).array)) == {0, 1}


def test_a_label_without_structures_is_a_label(
    store: StudiesDatastore, studies: list[Study], tmp_path: Path
) -> None:
    empty = replace(studies[0].label, array=np.zeros_like(studies[0].label.array))
    store.save_label(studies[0].series, saved(studies[0], tmp_path, empty), "final", {})
    assert store.status()["completed"] == 1
    label = read_volume(Path(store.get_label_uri(studies[0].series, "final")), label=True)
    assert not label.array.any()


def test_forgotten_cases_are_in_no_list(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    write_files(tmp_path / "studies", studies, labelled=3)
    hidden = studies[1].series
    store = opener(tmp_path / "studies", keep=lambda cs: [c for c in cs if c.series != hidden])
    assert hidden not in " ".join(d["image"] for d in store.datalist())
    assert len(store.trainable().cases) == 2
    assert hidden not in store.without_forgotten(store.list_images())
    assert hidden in store.list_images()


@pytest.mark.parametrize("image_id", ["../x", "/etc/passwd", "1.2.3", "nobody", "", "a\0b"])
def test_unknown_ids_never_become_paths(store: StudiesDatastore, image_id: str) -> None:
    for ask in (store.get_image_uri, store.get_image_info, store.remove_image):
        with pytest.raises((NotFoundError, InvalidInputError)):
            ask(image_id)
    with pytest.raises((NotFoundError, InvalidInputError)):
        store.update_image_info(image_id, {})


def test_wrong_labels_are_refused_and_nothing_is_kept(
    store: StudiesDatastore, studies: list[Study], tmp_path: Path
) -> None:
    study = studies[0]
    half = Volume(study.label.array[:, :, :5], study.label.affine)
    with pytest.raises(GeometryError):
        store.save_label(study.series, saved(study, tmp_path, half), "final", {})
    other = replace(study.label, array=np.full_like(study.label.array, 9))
    with pytest.raises(LabelError):
        store.save_label(study.series, saved(study, tmp_path, other), "final", {})
    with pytest.raises(InvalidInputError, match="tag"):
        store.save_label(study.series, saved(study, tmp_path), "../../x", {})
    with pytest.raises(NotFoundError):
        store.get_label_uri(study.series, "final")
    assert store.status()["label_tags"] == {}


def test_a_digest_that_needs_a_length_is_refused(
    store: StudiesDatastore, studies: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "current_app", lambda: SimpleNamespace(datastore=lambda: store))
    for check_sum in ("shake_128:00", "none:00"):
        with pytest.raises(InvalidInputError, match="unknown digest"):
            routes.check_image(studies[0].series, User(username="a"), check_sum)


ODD_NOTES = [{"comment": "x" * 300_000}, {"dice": float("nan")}, {"comment": "\ud800"}]


@pytest.mark.parametrize("info", ODD_NOTES)
def test_a_label_whose_note_cannot_be_kept_is_not_stored(
    store: StudiesDatastore, studies: list[Study], tmp_path: Path, info: dict[str, Any]
) -> None:
    """Else it would be stored again each time it is sent again, and never be answered for."""
    with pytest.raises(InvalidInputError, match="info"):
        store.save_label(studies[0].series, saved(studies[0], tmp_path), "final", info)
    store.refresh()
    assert store.status()["label_tags"] == {}
    assert not list((tmp_path / "studies").rglob("segunlearn-results/**/*.dcm"))
    store.save_label(studies[0].series, saved(studies[0], tmp_path), "final", {"a": 1})
    with pytest.raises(InvalidInputError, match="info"):
        store.update_image_info(studies[0].series, info)


def test_labels_in_the_decathlon_manner(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    folder = tmp_path / "studies"
    for study in studies:
        write_volume(study.image, folder / "images" / f"p{study.series[-4:]}.nii.gz")
        write_volume(study.label, folder / "labels" / f"p{study.series[-4:]}.nii.gz")
    (folder / "dataset.json").write_text('{"labels": {"0": "background", "1": "a", "2": "b"}}')
    store = opener(folder, values={})
    assert isinstance(store, FolderDatastore)
    assert store.structures() == ("a", "b")
    assert store.status()["completed"] == 3
    name = store.list_images()[0]
    with pytest.raises(ConflictError, match="belongs to the data set"):
        store.remove_label(name, "final")
    store.save_label(name, saved(studies[0], tmp_path, _empty(store, name)), "final", {})
    assert not read_volume(Path(store.get_label_uri(name, "final")), label=True).array.any()
    store.remove_label(name, "final")
    assert read_volume(Path(store.get_label_uri(name, "final")), label=True).array.any()


def test_files_that_are_known_by_their_dicom_series_are_not_served(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    """A series marked here would go on teaching what is trained from these files elsewhere."""
    folder, table = tmp_path / "studies", tmp_path / "people.csv"
    write_files(folder, studies)
    files = [p.name.removesuffix(".nii.gz") for p in folder.glob("*.nii.gz")]
    table.write_text("file,person,series\n" + "".join(f"{f},anna,\n" for f in files))
    assert len(opener(folder, people=str(table)).list_images()) == len(files)
    table.write_text(f"file,person,series\n{files[0]},anna,2.25.1\n")
    with pytest.raises(InvalidInputError, match="Serve the archive"):
        opener(folder, people=str(table))


def _empty(store: StudiesDatastore, name: str) -> Volume:
    image = read_volume(Path(store.get_image_uri(name)))
    return Volume(np.zeros(image.shape, np.uint8), image.affine)


def test_uploads_into_a_folder(tmp_path: Path, studies: list[Study], opener: Opener) -> None:
    write_files(tmp_path / "studies", studies[:1])
    store = opener(tmp_path / "studies")
    new = tmp_path / "x.nrrd"
    write_volume(studies[1].image, new)
    assert store.add_image("new one", str(new), {"comment": "c"}) == "new one"
    assert store.add_image("new one", str(new), {}) == "new one"
    assert store.get_image_info("new one")["comment"] == "c"
    with pytest.raises(ConflictError, match="another image"):
        store.add_image("person0", str(new), {})
    with pytest.raises(InvalidInputError, match="usable name"):
        store.add_image("../new", str(new), {})
    with pytest.raises(InvalidInputError, match="bytes"):
        store.add_image("noted", str(new), {"comment": "x" * MAX_INFO_BYTES})
    assert store.list_images().count("noted") == 0
    (tmp_path / "bad.nrrd").write_text("no")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        store.add_image("bad", str(tmp_path / "bad.nrrd"), {})
    store.remove_image("new one")
    assert store.list_images() == ["person0"]


def test_an_archive_takes_no_uploads_and_loses_no_images(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    write_dicom(tmp_path / "studies", studies[:1])
    store = opener(tmp_path / "studies")
    with pytest.raises(InvalidInputError, match="STOW-RS"):
        store.add_image("x", "x.nii.gz", {})
    with pytest.raises(ForbiddenError, match="PACS"):
        store.remove_image(studies[0].series)
    assert list((tmp_path / "studies").rglob("*.dcm"))


def test_a_series_that_grew_is_converted_again(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    study = studies[0]
    write_dicom(tmp_path / "studies", [study])
    last = max(study.datasets, key=lambda d: float(d.ImagePositionPatient[2]))
    file = tmp_path / "studies" / study.series / f"{last.InstanceNumber:03d}.dcm"
    held = file.read_bytes()
    file.unlink()
    store = opener(tmp_path / "studies")
    assert read_volume(Path(store.get_image_uri(study.series))).shape[2] == 19
    file.write_bytes(held)
    store = opener(tmp_path / "studies")
    assert read_volume(Path(store.get_image_uri(study.series))).shape[2] == 20


@pytest.mark.parametrize("keep", [0, 100])
@pytest.mark.parametrize("what", ["images", "labels"])
def test_what_a_power_cut_took_from_a_converted_file_is_made_again(
    tmp_path: Path, studies: list[Study], opener: Opener, what: str, keep: int
) -> None:
    """The note beside it may have reached the disk, and the file not."""
    study = studies[0]
    write_dicom(tmp_path / "studies", [study])
    store = opener(tmp_path / "studies")
    store.save_label(study.series, saved(study, tmp_path), "final", {})
    (before,) = store.trainable().cases
    assert before.label is not None
    cut = before.image if what == "images" else before.label
    digests = [read_volume(path).digest() for path in (before.image, before.label)]
    with cut.open("r+b") as file:
        file.truncate(keep)
    (case,) = opener(tmp_path / "studies").trainable().cases
    assert [read_volume(path).digest() for path in (case.image, before.label)] == digests


@pytest.mark.parametrize("empty", [False, True])
def test_a_file_whose_note_tells_no_size_is_whole_unless_it_is_empty(
    tmp_path: Path, studies: list[Study], opener: Opener, empty: bool
) -> None:
    """Notes of older programs: not every series is converted again after an update."""
    series = studies[0].series
    write_dicom(tmp_path / "studies", studies[:1])
    path = Path(opener(tmp_path / "studies").get_image_uri(series))
    note = path.with_name(f"{series}.json")
    told = json.loads(note.read_text())
    assert told.pop("size") == path.stat().st_size
    note.write_text(json.dumps(told))
    path.write_bytes(b"" if empty else b"as it was")
    opener(tmp_path / "studies").get_image_uri(series)
    assert (path.read_bytes() == b"as it was") is not empty
    if empty:
        assert read_volume(path).shape == studies[0].image.shape


@pytest.mark.parametrize("counts", [True, False])
def test_the_label_of_a_series_that_grew_is_made_again_on_its_grid(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    studies: list[Study],
    opener: Opener,
    counts: bool,
) -> None:
    """A cached label of the smaller grid would end every later training."""
    if not counts:
        monkeypatch.setattr("segunlearn.dicom.search._whole", lambda word: None)
    study = studies[0]
    write_dicom(tmp_path / "studies", [study])
    files = [tmp_path / "studies" / study.series / f"{n:03d}.dcm" for n in (1, 2)]
    held = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    store = opener(tmp_path / "studies")
    before = Volume(study.label.array[:, :, :18], study.label.affine)
    store.save_label(study.series, saved(study, tmp_path, before), "final", {})
    (case,) = store.trainable().cases
    assert read_volume(case.label, label=True).shape[2] == 18
    for file, content in zip(files, held, strict=True):
        file.write_bytes(content)
    for again in (store, opener(tmp_path / "studies")):
        again.refresh()
        (case,) = again.trainable().cases
        label = read_volume(case.label, label=True)
        assert label.same_grid(read_volume(case.image))
        np.testing.assert_array_equal(label.array[:, :, :18], before.array)
        assert not label.array[:, :, 18:].any()
    assert label.shape[2] == 20


def test_a_mask_of_a_series_before_it_grew_ends_no_scoring(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    """Masks of the model stay as they were made; the finished label follows its image."""
    grown, other = studies[:2]
    write_dicom(tmp_path / "studies", [grown, other])
    file = tmp_path / "studies" / grown.series / "001.dcm"
    held = file.read_bytes()
    file.unlink()
    store = opener(tmp_path / "studies")
    before = Volume(grown.label.array[:, :, :19], grown.label.affine)
    for study, label in ((grown, before), (other, other.label)):
        for tag in ("original", "final"):
            store.save_label(study.series, saved(study, tmp_path, label), tag, {})
    file.write_bytes(held)
    store = opener(tmp_path / "studies")
    scores = DiceScoring(lambda: VALUES)({}, store)
    assert scores.keys() == {other.series}
    assert scores[other.series]["dice"] == 1.0


def test_files_that_are_no_label_are_no_label(
    tmp_path: Path, studies: list[Study], store: StudiesDatastore, opener: Opener
) -> None:
    """What a kill left, what a Mac puts beside, what somebody copied there: others are listed."""
    study = studies[0]
    for tag in ("original", "final"):
        store.save_label(study.series, saved(study, tmp_path), tag, {})
    label = Path(store.get_label_uri(study.series, "original"))
    for name in (f".{study.series}.0123.part", f"._{study.series}", "a copy of it"):
        (label.parent / f"{name}.nii.gz").write_bytes(b"half")
    again = opener(tmp_path / "studies")
    assert again.get_labeled_images("original") == [study.series]
    assert again.status()["label_tags"] == {"original": 1, "final": 1}
    assert DiceScoring(lambda: VALUES)({}, opener(tmp_path / "studies")).keys() == {study.series}


def test_a_label_that_is_removed_while_labels_are_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(Volume(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    found = files.volumes_in(tmp_path)
    monkeypatch.setattr(files, "volumes_in", lambda folder: [*found, folder / "removed.nii.gz"])
    assert files.labels_in(tmp_path, "original").keys() == {"a"}


def test_what_is_to_be_forgotten_is_not_scored(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    folder = tmp_path / "studies"
    write_files(folder, studies[:2], labelled=2)
    for study in studies[:2]:
        write_volume(study.label, folder / "labels" / "original" / f"{study.series}.nii.gz")
    assert DiceScoring(lambda: VALUES)({}, opener(folder)).keys() == {"person0", "person1"}
    kept = opener(folder, keep=lambda cases: [c for c in cases if c.series != "person0"])
    assert DiceScoring(lambda: VALUES)({}, kept).keys() == {"person1"}


def test_labels_on_other_grids_are_not_scored(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    """Of the same shape, but mirrored: a Dice of them would be a number without a meaning."""
    folder = tmp_path / "studies"
    write_files(folder, studies[:2])
    mirrored, right = (study.label for study in studies[:2])
    mirrored = Volume(mirrored.array, np.diag([-1.0, 1, 1, 1]) @ mirrored.affine)
    for study, final in zip(studies, (mirrored, right), strict=False):
        write_volume(final, folder / "labels" / f"{study.series}.nii.gz")
        write_volume(study.label, folder / "labels" / "original" / f"{study.series}.nii.gz")
    scores = DiceScoring(lambda: VALUES)({}, opener(folder))
    assert {name: score["dice"] for name, score in scores.items()} == {"person1": 1.0}


def test_the_log_tells_how_many_images_a_scoring_scored(
    tmp_path: Path, studies: list[Study], opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """It is what clients show of a task, and one that scored none looked like one that worked."""
    folder = tmp_path / "studies"
    write_files(folder, studies[:2], labelled=1)
    write_volume(studies[0].label, folder / "labels/original" / f"{studies[0].series}.nii.gz")
    score = DiceScoring(lambda: VALUES)
    with caplog.at_level("INFO", "segunlearn.app.scoring"):
        score({}, opener(folder))
        assert caplog.messages == ["scored 1 images, mean Dice 1.000"]
        caplog.clear()
        assert score({"y_pred": "nosuch"}, opener(folder)) == {}
        (record,) = caplog.records
        assert record.getMessage() == "no image is scored: none has both labels, final and nosuch"
        assert record.levelname == "WARNING"
        caplog.clear()
        kept = opener(folder, keep=lambda _: [])
        assert score({}, kept) == {}
        assert "no image is scored, of 1 with both labels, final and original" in caplog.text


def test_labels_of_a_series_with_copied_slices_are_kept(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    """It is read as an image, so what was segmented on it must find its way back."""
    study = studies[0]
    for number, ds in enumerate(study.datasets[:2], start=100):
        copied = deepcopy(ds)
        copied.SOPInstanceUID, copied.InstanceNumber = generate_uid(), number
        study.datasets.append(copied)
    write_dicom(tmp_path / "studies", [study])
    store = opener(tmp_path / "studies")
    assert isinstance(store, DicomDatastore)
    store.save_label(study.series, saved(study, tmp_path), "final", {})
    label = read_volume(Path(store.get_label_uri(study.series, "final")), label=True)
    np.testing.assert_array_equal(label.array, study.label.array)
    params = dict.fromkeys(("model", "version", "sha256", "adapter", "site_rule"), "x")
    names = {v: n for n, v in VALUES.items()}
    made = store.as_segmentation(study.series, study.label, names, params, None)
    read, _ = read_segmentation(made, study.image, label_names=names)
    np.testing.assert_array_equal(read.array, study.label.array)


def test_a_label_that_lies_in_another_study_than_its_image_is_read(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    """Some stations file what they make as a study of its own; the newest counts here, too."""
    study = studies[0]
    write_dicom(tmp_path / "studies", [study])
    store = opener(tmp_path / "studies")
    assert isinstance(store, DicomDatastore)
    names = {v: n for n, v in VALUES.items()}
    for hour, value in ((8, 1), (10, 2), (9, 1)):
        mask = replace(study.label, array=np.where(study.label.array == value, value, 0))
        made = write_segmentation(
            mask, study.datasets, names, created=datetime(2026, 11, 3, hour, tzinfo=UTC)
        )
        made.StudyInstanceUID = generate_uid()
        store.archive.store([made])
    store.refresh()
    assert store.list_images() == [study.series]
    label = read_volume(Path(store.get_label_uri(study.series, "final")), label=True)
    np.testing.assert_array_equal(label.array, np.where(study.label.array == 2, 2, 0))


def test_a_label_that_was_handed_out_keeps_its_numbers(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    """A training reads its labels minutes after it was given them; others ask for them, too."""
    write_dicom(tmp_path / "studies", studies[:2])
    store = opener(tmp_path / "studies", values={})
    assert isinstance(store, DicomDatastore)
    one, two = LABELS[:2]
    for study, names in zip(studies, ({1: one, 2: two}, {1: two, 2: one}), strict=False):
        store.archive.store([write_segmentation(study.label, study.datasets, names)])
    store.refresh()
    first = studies[0].series
    (given,) = [
        c.label for c in store.trainable(values={one: 2, two: 1}).cases if c.series == first
    ]
    assert given is not None
    before = read_volume(given, label=True).array
    np.testing.assert_array_equal(before, np.array([0, 2, 1])[studies[0].label.array])
    asked = Path(store.get_label_uri(first, "final"))
    np.testing.assert_array_equal(read_volume(asked, label=True).array, studies[0].label.array)
    np.testing.assert_array_equal(read_volume(given, label=True).array, before)
    assert given.name == asked.name == f"{first}.nii.gz"
    copies = {
        p.where for p in sweep(store.home.root, {first}, (), Pseudonyms(b"k" * 32))
        if p.state == "open" and p.where.startswith("cache/labels/")
    }  # fmt: skip
    assert len(copies) == 4, "each with its note"


@pytest.mark.parametrize("what", ["values", "axes"])
def test_a_series_whose_files_were_replaced_is_converted_again(
    tmp_path: Path, studies: list[Study], opener: Opener, what: str
) -> None:
    """As many files as before: their number does not tell."""
    study = studies[0]
    write_dicom(tmp_path / "studies", [study])
    store = opener(tmp_path / "studies")
    assert isinstance(store, DicomDatastore)
    store.save_label(study.series, saved(study, tmp_path), "final", {})
    (case,) = store.trainable().cases
    assert case.label is not None
    path = Path(store.get_image_uri(study.series))
    converted = path.stat().st_mtime_ns
    opener(tmp_path / "studies").get_image_uri(study.series)
    assert path.stat().st_mtime_ns == converted, "nothing changed, nothing is converted again"
    for ds in study.datasets:
        ds.SOPInstanceUID = generate_uid()
        if what == "values":
            ds.RescaleIntercept = float(ds.get("RescaleIntercept", 0)) + 500
        else:  # the same place in the patient, listed from the other side
            row, column = ds.ImageOrientationPatient[:3], ds.ImageOrientationPatient[3:]
            step = (int(ds.Columns) - 1) * float(ds.PixelSpacing[1])
            ds.ImagePositionPatient = [
                float(p + r * step) for p, r in zip(ds.ImagePositionPatient, row, strict=True)
            ]
            ds.ImageOrientationPatient = [*(-v for v in row), *column]
            ds.PixelData = np.ascontiguousarray(ds.pixel_array[:, ::-1]).tobytes()
    shutil.rmtree(tmp_path / "studies" / study.series)
    write_dicom(tmp_path / "studies", [study])
    store.archive.client.index.refresh(force=True)
    store.refresh()
    (case,) = store.trainable().cases
    now, expected = read_volume(case.image), volume_from_datasets(study.datasets)
    assert now.same_grid(expected)
    np.testing.assert_array_equal(now.array, expected.array)
    assert case.label is not None
    label = read_volume(case.label, label=True)
    assert label.same_grid(now)
    assert (label.array > 0).sum() == (study.label.array > 0).sum()


def test_a_segmentation_that_is_still_being_copied_is_read_once_it_is_whole(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    write_dicom(tmp_path / "studies", studies[:2])
    store = opener(tmp_path / "studies")
    for study in studies[:2]:
        store.save_label(study.series, saved(study, tmp_path), "final", {})
    (file,) = [
        p
        for p in (tmp_path / "studies" / RESULTS_FOLDER).rglob("*.dcm")
        if references_series(dcmread(p))[0] == studies[0].series
    ]
    whole = file.read_bytes()
    file.write_bytes(whole[:-500])
    store = opener(tmp_path / "studies")
    selection = store.trainable()
    assert [c.series for c in selection.cases] == [studies[1].series]
    assert "was cut off" in selection.skipped[studies[0].series]
    file.write_bytes(whole)
    label = read_volume(Path(store.get_label_uri(studies[0].series, "final")), label=True)
    np.testing.assert_array_equal(label.array, studies[0].label.array)


def test_a_series_that_is_no_volume_is_left_out_with_its_reason(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    for study in studies[:2]:
        for ds in study.datasets[3:5]:
            if study is studies[0]:
                ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    write_dicom(tmp_path / "studies", studies[:2])
    store = opener(tmp_path / "studies")
    with pytest.raises(InvalidInputError) as caught:
        store.get_image_uri(studies[0].series)
    assert len(str(caught.value)) > 40
    assert not list((tmp_path / "home" / "cache").rglob(f"{studies[0].series}.nii.gz"))
    store.get_image_uri(studies[1].series)


def test_only_the_wanted_modalities_are_listed(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    for ds in studies[0].datasets:
        ds.Modality = "PT"
    write_dicom(tmp_path / "studies", studies[:2])
    assert opener(tmp_path / "studies").list_images() == [studies[1].series]
    both = opener(tmp_path / "studies", modalities="PT,CT")
    assert len(both.list_images()) == 2
    assert isinstance(both, DicomDatastore)


def test_the_archive_packs_what_would_be_trained_on(
    tmp_path: Path, studies: list[Study], opener: Opener
) -> None:
    import zipfile

    write_files(tmp_path / "studies", studies, labelled=2)
    store = opener(tmp_path / "studies")
    with zipfile.ZipFile(store.get_dataset_archive(1)) as archive:
        assert archive.namelist() == ["images/person0.nii.gz", "labels/person0.nii.gz"]
    with pytest.raises(NotFoundError, match="nothing to pack"):
        opener(tmp_path / "studies", keep=lambda _: []).get_dataset_archive(None)
