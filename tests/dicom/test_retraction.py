"""Retractions: legal Key Object Selection documents that other programs read as we meant them."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, RTStructureSetStorage, generate_uid

from key_object_sources import ct_series, rejection_note
from segunlearn.dicom.key_objects import derived_uid, references_of
from segunlearn.dicom.retraction import (
    SCHEME,
    SHARED_REFERENCES,
    TITLES,
    RetractionNote,
    build_retractions,
    parse_retraction,
)
from segunlearn.dicom.search import parse
from segunlearn.errors import InvalidInputError

SECRET = bytes(range(32))
IOCM_CODES = {"113001", "113037", "113038", "113039", "REVOKE_REJECTION"}


def note(state: str = "requested", **changes: object) -> RetractionNote:
    values: dict[str, object] = {
        "request_id": "f" * 32,
        "state": state,
        "target": "study",
        "reason": "consent_withdrawn",
        "needed": "unlearned",
        "reached": "none",
        "changed": datetime(2026, 11, 21, 23, 30, 5, tzinfo=UTC),
    }
    return RetractionNote(**{**values, **changes})  # type: ignore[arg-type]


def build(*studies: list[Dataset], state: str = "requested", **changes: object) -> list[Dataset]:
    return list(
        build_retractions(
            note(state, **changes),
            [(datasets[0], references_of(datasets)) for datasets in studies],
            secret=SECRET,
            document_uid=derived_uid(SECRET, "a"),
        )
    )


def written(document: Dataset, folder: Path) -> Path:
    path = folder / f"{document.SOPInstanceUID}.dcm"
    document.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("state", TITLES)
def test_every_state_is_written_and_read_back(tmp_path: Path, state: str) -> None:
    images = ct_series()
    digest = "0123456789abcdef" * 4
    (document,) = build(images, state=state, report_sha256=digest)
    read = dcmread(written(document, tmp_path))
    retraction = parse_retraction(read)
    assert retraction is not None
    assert retraction.state == state
    assert retraction.request_id == "f" * 32
    assert retraction.fields == {
        "request": "f" * 32,
        "target": "study",
        "reason": "consent_withdrawn",
        "needed": "unlearned",
        "reached": "none",
        "report_sha256": digest,
    }
    assert [r.sop_instance_uid for r in retraction.references] == [i.SOPInstanceUID for i in images]
    assert read.Modality == "KO"
    assert read.StudyInstanceUID == images[0].StudyInstanceUID
    assert read.SeriesInstanceUID != images[0].SeriesInstanceUID
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate"):
        assert read[keyword].value == images[0][keyword].value
    assert (read.AccessionNumber, read.StudyID) == ("A7", "7")


def test_titles_are_private_and_never_reject() -> None:
    codes = [code for code, _ in TITLES.values()]
    assert len(set(codes)) == len(TITLES)
    assert not IOCM_CODES & set(codes)
    assert SCHEME.startswith("99")
    assert "audit" not in TITLES["refused"][1]  # a stop or a fault also ends there
    for code, meaning in TITLES.values():
        assert len(code) <= 16  # SH
        assert len(meaning) <= 64  # LO
    for code in IOCM_CODES:
        assert code not in str(build(ct_series())[0])


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("count", [1, 3])
def test_dciodvfy_reports_no_error(tmp_path: Path, count: int) -> None:
    studies = [ct_series(instances=2) for _ in range(count)]
    for document in build(*studies):
        result = subprocess.run(
            ["dciodvfy", str(written(document, tmp_path))],
            capture_output=True,
            text=True,
            timeout=30,
        )
        lines = (result.stdout + result.stderr).splitlines()
        assert any("KeyObjectSelectionDocument" in line for line in lines)
        assert [line for line in lines if line.startswith("Error")] == []


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_instances_without_pixels_are_composites(tmp_path: Path) -> None:
    images, plan = ct_series(), ct_series(instances=1, modality="RTSTRUCT")
    for instance in plan:
        instance.SOPClassUID = RTStructureSetStorage
        instance.StudyInstanceUID = images[0].StudyInstanceUID
        del instance.Rows, instance.Columns
    for document in (*build(images + plan), *build(images, plan + ct_series())):
        types = {
            item.ReferencedSOPSequence[0].ReferencedSOPClassUID: item.ValueType
            for item in document.ContentSequence
            if "ReferencedSOPSequence" in item
        }
        assert types == {CTImageStorage: "IMAGE", RTStructureSetStorage: "COMPOSITE"}
        result = subprocess.run(
            ["dciodvfy", str(written(document, tmp_path))],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert "Error" not in result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="DCMTK is not installed")
def test_dsrdump_prints_it(tmp_path: Path) -> None:
    images = ct_series()
    path = written(build(images, state="fulfilled", reached="unlearned")[0], tmp_path)
    result = subprocess.run(
        ["dsrdump", "+Pl", "+Pc", "+Pu", str(path)], capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0, result.stderr
    assert "Withdrawal from model fulfilled" in result.stdout
    assert "FORGET04,99SEGUNLEARN" in result.stdout
    assert f"request={'f' * 32}" in result.stdout
    assert "reached=unlearned" in result.stdout
    assert result.stdout.count("<contains IMAGE") == len(images)


def test_sibling_studies_name_each_other_as_identical_documents(tmp_path: Path) -> None:
    studies = [ct_series(instances=2) for _ in range(3)]
    documents = [dcmread(written(d, tmp_path)) for d in build(*studies)]
    everything = {i.SOPInstanceUID for images in studies for i in images}
    uids = {d.SOPInstanceUID for d in documents}
    assert len(uids) == 3
    for document in documents:
        retraction = parse_retraction(document)
        assert retraction is not None
        assert {r.sop_instance_uid for r in retraction.references} == everything
        assert set(retraction.identical) == uids - {document.SOPInstanceUID}


def test_many_instances_are_not_repeated_in_every_study() -> None:
    studies = [ct_series(instances=1) for _ in range(2)]
    references = [references_of(images) for images in studies]
    many = [
        type(references[0][0])(r.study_instance_uid, r.series_instance_uid, r.sop_class_uid, str(i))
        for r in (references[0][0],)
        for i in range(SHARED_REFERENCES)
    ]
    documents = build_retractions(
        note(),
        [(studies[0][0], many), (studies[1][0], references[1])],
        secret=SECRET,
        document_uid=generate_uid(),
    )
    for document in documents:
        retraction = parse_retraction(document)
        assert retraction is not None
        assert {r.study_instance_uid for r in retraction.references} == {document.StudyInstanceUID}
        assert retraction.identical == ()


def test_building_twice_gives_the_same_instance() -> None:
    studies = [ct_series(), ct_series()]
    first, second = build(*studies), build(*reversed(studies))
    assert [d.SOPInstanceUID for d in first] == [d.SOPInstanceUID for d in second]
    assert [d.SeriesInstanceUID for d in first] == [d.SeriesInstanceUID for d in second]


def test_time_of_the_change_is_in_the_time_zone_of_the_study() -> None:
    images = ct_series()
    for image in images:
        image.TimezoneOffsetFromUTC = "+0200"
    (document,) = build(images)
    assert (str(document.ContentDate), str(document.ContentTime)) == ("20261122", "013005")
    assert document.TimezoneOffsetFromUTC == "+0200"


def test_headers_without_patient_attributes_are_enough(tmp_path: Path) -> None:
    images = ct_series()
    for keyword in ("PatientID", "PatientBirthDate", "StudyTime", "AccessionNumber", "StudyID"):
        del images[0][keyword]
    images[0].PatientSex = "X"
    read = dcmread(written(build(images)[0], tmp_path))
    assert read.PatientSex == ""
    assert read.PatientID == ""


@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
@pytest.mark.parametrize(
    ("keyword", "vr", "values"),
    [
        *(
            (keyword, "DA", [value])
            for keyword in ("PatientBirthDate", "StudyDate")
            for value in ("00000000", "202001", "1950-01-01", "20201301", "UNKNOWN")
        ),
        *(("StudyTime", "TM", [value]) for value in ("12:30:00", "25", "9999", "-")),
        ("PatientName", "PN", [{"Alphabetic": "Müller^Änne"}, {"Alphabetic": "Meier"}]),
    ],
)
def test_values_out_of_the_standard_keep_no_document_from_being_written(
    tmp_path: Path,
    keyword: str,
    vr: str,
    values: list[Any],
) -> None:
    """Archives hold them; the PACS gets back what it has, as it has it."""
    images = ct_series()
    header = parse(
        {
            "0020000D": {"vr": "UI", "Value": [str(images[0].StudyInstanceUID)]},
            f"{tag_for_keyword(keyword):08X}": {"vr": vr, "Value": values},
        }
    )
    (document,) = build_retractions(
        note(), [(header, references_of(images))], secret=SECRET, document_uid=generate_uid()
    )
    read = dcmread(written(document, tmp_path))
    assert str(read[keyword].value) == str(header[keyword].value)
    assert parse_retraction(read) is not None


def test_other_documents_are_not_retractions() -> None:
    images = ct_series()
    assert parse_retraction(images[0]) is None
    assert parse_retraction(rejection_note(images)) is None
    assert parse_retraction(rejection_note(images, "FORGET01", "x", "99OTHER")) is None
    assert parse_retraction(rejection_note(images, "FORGET99", "x", SCHEME)) is None
    assert parse_retraction(Dataset()) is None


def test_a_foreign_description_is_read_without_trust() -> None:
    (document,) = build(ct_series())
    for item in document.ContentSequence:
        if item.ValueType == "TEXT":
            item.TextValue = "request=../../x; reason=" + "a" * 10_000 + "; target=study\x00"
    retraction = parse_retraction(document)
    assert retraction is not None
    assert len(retraction.description) <= 4096
    assert all(len(value) <= 64 for value in retraction.fields.values())
    assert "/" not in "".join(retraction.fields.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "proposed"},
        {"request_id": ""},
        {"request_id": "a b"},
        {"reason": "Anna Müller"},
        {"report_sha256": "abc"},
        {"changed": datetime(2026, 1, 1)},
    ],
)
def test_notes_that_cannot_be_written(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        note(**changes)  # type: ignore[arg-type]


def test_a_study_without_instances_has_no_document() -> None:
    images = ct_series()
    with pytest.raises(InvalidInputError, match="at least one instance"):
        build_retractions(note(), [(images[0], [])], secret=SECRET, document_uid=generate_uid())


def test_key_objects_do_not_reference_key_objects() -> None:
    images = ct_series()
    assert len(references_of([*images, build(images)[0]])) == len(images)


@given(st.binary(min_size=1, max_size=40), st.lists(st.text(max_size=70), max_size=4))
def test_derived_uids_are_valid_and_differ(secret: bytes, parts: list[str]) -> None:
    uid = derived_uid(secret, *parts)
    assert UID(uid).is_valid
    assert len(uid) <= 64
    assert uid == derived_uid(secret, *parts)
    assert uid != derived_uid(secret, *parts, "")
    assert uid != derived_uid(secret + b"x", *parts)
