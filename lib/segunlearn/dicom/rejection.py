"""What other systems say about a study in the PACS, as proposals for a person to decide on.

Two kinds of Key Object Selection documents are understood: rejection notes of IHE Imaging Object
Change Management (RAD-66 "Rejection Note Stored"), and retractions of another SegUnlearn server.
Neither changes anything by itself: a wrong or forged document must not take a study out of a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from segunlearn.dicom.identifiers import is_uid
from segunlearn.dicom.key_objects import Reference, evidence_of, title_of, word
from segunlearn.dicom.retraction import Retraction, parse_retraction

Kind = Literal["mark", "withdraw", "drop"]
Source = Literal["rejection_note", "retraction", "deletion"]

#: Reasons of forget requests that a document may name; anything else becomes ``other``.
REASONS = frozenset(
    {"consent_withdrawn", "wrong_patient", "wrong_label", "quality", "retention_expired", "other"}
)


@dataclass(frozen=True)
class Meaning:
    """What a document title asks for.

    ``drop``: keep the study out of training, nothing to unlearn; ``mark``: unlearn it too;
    ``withdraw``: take an earlier request back; ``purge``: the erasure should be made final.
    """

    kind: Kind
    reason: str
    text: str
    purge: bool = False


#: Titles of rejection notes (IHE RAD TF, RAD-66; PS3.16 CID 7010), and dcm4chee's own code of
#: revocation (its rejection note type REVOKE_REJECTION; the standard has none).
REJECTIONS: Mapping[tuple[str, str], Meaning] = {
    ("113001", "DCM"): Meaning("drop", "quality", "Rejected for quality reasons"),
    ("113037", "DCM"): Meaning("mark", "other", "Rejected for patient safety reasons"),
    ("113038", "DCM"): Meaning("mark", "wrong_patient", "Incorrect modality worklist entry"),
    ("113039", "DCM"): Meaning(
        "mark", "retention_expired", "Data retention policy expired", purge=True
    ),
    ("REVOKE_REJECTION", "99DCM4CHEE"): Meaning("withdraw", "other", "Rejection revoked"),
}


@dataclass(frozen=True)
class Proposal:
    """What a person is asked to decide.

    Parameters
    ----------
    kind, reason, purge
        See :class:`Meaning`.
    text
        One sentence on where it comes from, without names of patients.
    study_uid
        StudyInstanceUID.
    series_uids, sop_instance_uids
        What the document names in this study; empty when it is about the whole study.
    source, source_document_uid
        Kind of source, and SOPInstanceUID of its document (empty for deletions).
    """

    kind: Kind
    reason: str
    text: str
    study_uid: str
    series_uids: tuple[str, ...] = ()
    sop_instance_uids: tuple[str, ...] = ()
    source: Source = "rejection_note"
    source_document_uid: str = ""
    purge: bool = False


def proposals_of(dataset: Dataset) -> list[Proposal]:
    """Read a document: one proposal for each study it names, none when it asks for nothing.

    Parameters
    ----------
    dataset
        Header of any instance. Whether a retraction is our own is for the caller to know.

    Notes
    -----
    References without valid UIDs are left out: they come from outside and can name nothing here.
    """
    if word(dataset, "SOPClassUID") != KeyObjectSelectionDocumentStorage:
        return []
    retraction = parse_retraction(dataset)
    if retraction is not None:
        meaning = _meaning(retraction)
        source: Source = "retraction"
    else:
        found = REJECTIONS.get(title_of(dataset))
        if found is None:
            return []
        meaning, source = found, "rejection_note"
    studies: dict[str, list[Reference]] = {}
    for reference in evidence_of(dataset):
        if is_uid(reference.study_instance_uid, strict=False):
            studies.setdefault(reference.study_instance_uid, []).append(reference)
    whole = retraction is not None and retraction.fields.get("target") in ("study", "patient")
    return [
        Proposal(
            kind=meaning.kind,
            reason=meaning.reason,
            text=meaning.text,
            study_uid=study,
            series_uids=() if whole else _distinct(r.series_instance_uid for r in references),
            sop_instance_uids=() if whole else _distinct(r.sop_instance_uid for r in references),
            source=source,
            source_document_uid=word(dataset, "SOPInstanceUID"),
            purge=meaning.purge,
        )
        for study, references in studies.items()
    ]


def deleted(study_instance_uid: str) -> Proposal:
    """Propose for a study that models were trained on, and that the PACS no longer holds."""
    return Proposal(
        kind="mark",
        reason="other",
        text="The study is no longer in the PACS",
        study_uid=study_instance_uid,
        source="deletion",
    )


def _meaning(retraction: Retraction) -> Meaning:
    if retraction.state in ("withdrawn", "restored"):
        return Meaning("withdraw", "other", "Another server took its forget request back")
    reason = retraction.fields.get("reason", "other")
    return Meaning(
        kind="drop" if retraction.fields.get("needed") == "none" else "mark",
        reason=reason if reason in REASONS else "other",
        text="Another server withdrew the study from its models",
        purge=retraction.state == "purged",
    )


def _distinct(uids: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(uid for uid in uids if is_uid(uid, strict=False)))
