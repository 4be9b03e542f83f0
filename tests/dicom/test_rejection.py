"""Documents of other systems become proposals, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import KeyObjectSelectionDocumentStorage, generate_uid

from key_object_sources import ct_series, rejection_note
from segunlearn.dicom.key_objects import references_of
from segunlearn.dicom.rejection import REJECTIONS, deleted, proposals_of
from segunlearn.dicom.retraction import SCHEME, TITLES, RetractionNote, build_retractions


def on_disk(dataset: Dataset) -> Dataset:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


@pytest.mark.parametrize(
    ("code", "kind", "reason", "purge"),
    [
        (codes.DCM.RejectedForQualityReasons, "drop", "quality", False),
        (codes.DCM.RejectedForPatientSafetyReasons, "mark", "other", False),
        (codes.DCM.IncorrectModalityWorklistEntry, "mark", "wrong_patient", False),
        (codes.DCM.DataRetentionPolicyExpired, "mark", "retention_expired", True),
    ],
)
def test_rejection_notes(code: object, kind: str, reason: str, purge: bool) -> None:
    images = ct_series()
    note = rejection_note(images, code.value, code.meaning)  # type: ignore[attr-defined]
    (proposal,) = proposals_of(on_disk(note))
    assert (proposal.kind, proposal.reason, proposal.purge) == (kind, reason, purge)
    assert proposal.source == "rejection_note"
    assert proposal.study_uid == images[0].StudyInstanceUID
    uids = tuple(str(i.SOPInstanceUID) for i in images)
    assert proposal.named == {images[0].SeriesInstanceUID: uids}
    assert proposal.source_document_uid == note.SOPInstanceUID


def test_a_revoked_rejection_proposes_to_withdraw() -> None:
    note = rejection_note(
        ct_series(), "REVOKE_REJECTION", "Restore rejected Instances", "99DCM4CHEE"
    )
    assert [p.kind for p in proposals_of(on_disk(note))] == ["withdraw"]


def test_our_titles_and_rejections_are_apart() -> None:
    ours = {(code, SCHEME) for code, _ in TITLES.values()}
    assert not ours & set(REJECTIONS)


@pytest.mark.parametrize(
    ("state", "needed", "kind", "purge"),
    [
        ("requested", "unlearned", "mark", False),
        ("requested", "none", "drop", False),
        ("fulfilled", "retrained", "mark", False),
        ("purged", "unlearned", "mark", True),
        ("withdrawn", "unlearned", "withdraw", False),
        ("restored", "unlearned", "withdraw", False),
    ],
)
def test_retractions_of_another_server(state: str, needed: str, kind: str, purge: bool) -> None:
    studies = [ct_series(), ct_series()]
    note = RetractionNote(
        "a" * 32, state, "patient", "consent_withdrawn", needed, "none", datetime.now(UTC)
    )
    documents = build_retractions(
        note,
        [(images[0], references_of(images)) for images in studies],
        secret=b"other",
        document_uid=generate_uid(),
    )
    proposals = proposals_of(on_disk(documents[0]))
    assert {p.study_uid for p in proposals} == {i[0].StudyInstanceUID for i in studies}
    for proposal in proposals:
        assert (proposal.kind, proposal.purge) == (kind, purge)
        assert proposal.source == "retraction"
        assert proposal.series_uids == ()
        if kind != "withdraw":
            assert proposal.reason == "consent_withdrawn"


def test_unknown_reasons_become_other() -> None:
    images = ct_series()
    note = RetractionNote(
        "a" * 32, "requested", "series", "because", "unlearned", "none", datetime.now(UTC)
    )
    (document,) = build_retractions(
        note, [(images[0], references_of(images))], secret=b"other", document_uid=generate_uid()
    )
    (proposal,) = proposals_of(document)
    assert proposal.reason == "other"
    assert proposal.series_uids == (images[0].SeriesInstanceUID,)


def test_ordinary_key_objects_propose_nothing() -> None:
    images = ct_series()
    assert proposals_of(rejection_note(images, "113000", "Of Interest")) == []
    assert proposals_of(rejection_note(images, "113039", "x", "99DCM")) == []
    assert proposals_of(images[0]) == []
    assert proposals_of(Dataset()) == []


def test_invalid_identifiers_in_a_document_are_left_out() -> None:
    note = rejection_note(ct_series())
    study = note.CurrentRequestedProcedureEvidenceSequence[0]
    study.ReferencedSeriesSequence[0]["SeriesInstanceUID"]._value = "../../etc/passwd"
    (proposal,) = proposals_of(note)
    assert proposal.series_uids == ()
    assert "which of its images cannot be read" in proposal.text
    study["StudyInstanceUID"]._value = "1' OR '1'='1"
    assert proposals_of(note) == []


def test_deletion() -> None:
    proposal = deleted("1.2.3")
    assert proposal.source == "deletion"
    assert replace(proposal, study_uid="1.2.4") == deleted("1.2.4")


@given(
    st.dictionaries(
        st.sampled_from(["ConceptNameCodeSequence", "CurrentRequestedProcedureEvidenceSequence"]),
        st.lists(st.just(Dataset()), max_size=2),
    )
)
def test_half_documents_do_not_raise(parts: dict[str, list[Dataset]]) -> None:
    dataset = Dataset()
    dataset.SOPClassUID = KeyObjectSelectionDocumentStorage
    for keyword, items in parts.items():
        setattr(dataset, keyword, items)
    assert proposals_of(dataset) == []
