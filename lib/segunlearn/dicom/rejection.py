"""What other systems say about a study in the PACS, as proposals for a person to decide on.

Two kinds of Key Object Selection documents are understood: rejection notes of IHE Imaging Object
Change Management (RAD-66 "Rejection Note Stored"), and retractions of another SegUnlearn server.
Neither changes anything by itself: a wrong or forged document must not take a study out of a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from segunlearn.dicom.archive import Archive
from segunlearn.dicom.identifiers import is_uid
from segunlearn.dicom.key_objects import Reference, evidence_of, title_of, word
from segunlearn.dicom.retraction import Retraction, parse_retraction
from segunlearn.errors import NotFoundError

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


#: Modalities of what is no image of a study.
NO_IMAGES = frozenset({"KO", "SEG", "PR", "SR"})

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
    named
        Images that the document names in this study, by series; empty when it is about the whole
        study.
    counts
        Images that there are of these series, as far as the archive says, see :func:`measured`.
    source, source_document_uid
        Kind of source, and SOPInstanceUID of its document (empty for deletions).
    """

    kind: Kind
    reason: str
    text: str
    study_uid: str
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    source: Source = "rejection_note"
    source_document_uid: str = ""
    purge: bool = False

    @property
    def series_uids(self) -> tuple[str, ...]:
        """Series that the document names; empty when it is about the whole study."""
        return tuple(self.named)

    def extent(self, *series: str) -> str:
        """Say of how many images the document speaks; empty where it speaks of all.

        Parameters
        ----------
        series
            Some of ``series_uids``; all of them by default.
        """
        told = series or self.series_uids
        named = sum(len(self.named[uid]) for uid in told)
        if not all(uid in self.counts for uid in told):
            return f"It names {named} images; the PACS does not say of how many."
        there = sum(self.counts[uid] for uid in told)
        if named >= there:
            return ""
        return f"It names {named} of {there} images of the series."


def proposals_of(dataset: Dataset) -> list[Proposal]:
    """Read a document: one proposal for each study it names, none when it asks for nothing.

    Parameters
    ----------
    dataset
        Header of any instance. Whether a retraction is our own is for the caller to know.

    Notes
    -----
    References without valid UIDs are left out: they come from outside and can name nothing here.
    Where none of a study is left, the text says that nobody can tell of which images it speaks.
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
    proposals = []
    for study, references in studies.items():
        named = {} if whole else _named(references)
        unclear = "" if whole or named else " (which of its images cannot be read)"
        proposals.append(
            Proposal(
                kind=meaning.kind,
                reason=meaning.reason,
                text=meaning.text + unclear,
                study_uid=study,
                named=named,
                source=source,
                source_document_uid=word(dataset, "SOPInstanceUID"),
                purge=meaning.purge,
            )
        )
    return proposals


def measured(proposal: Proposal, archive: Archive) -> Proposal:
    """Count the images that the archive has of the series which a document names.

    A document that names all images of a study is about the study. Archives may hide what was
    rejected, so images are compared and not their numbers, and a study of which the archive shows
    no image is never taken for named as a whole.

    Parameters
    ----------
    proposal
        As the document says.
    archive
        Where the study is.

    Raises
    ------
    UnavailableError
        The archive cannot be reached now.
    """
    if not proposal.named:
        return proposal
    try:
        series = archive.series_of_study(proposal.study_uid)
    except NotFoundError:
        return proposal
    listed = {
        s.series_instance_uid: {
            word(i, "SOPInstanceUID")
            for i in archive.instances(proposal.study_uid, s.series_instance_uid)
        }
        for s in series
        if s.series_instance_uid in proposal.named
    }
    images = {s.series_instance_uid for s in series if s.modality not in NO_IMAGES}
    if images and all(listed.get(s) and listed[s] <= {*proposal.named[s]} for s in images):
        return replace(proposal, named={}, counts={})
    counts = {s: len(uids.union(proposal.named[s])) for s, uids in listed.items() if uids}
    return replace(proposal, counts=counts)


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


def _named(references: Iterable[Reference]) -> dict[str, tuple[str, ...]]:
    """Images by series, each once."""
    found: dict[str, dict[str, None]] = {}
    for reference in references:
        if is_uid(reference.series_instance_uid, strict=False):
            images = found.setdefault(reference.series_instance_uid, {})
            if is_uid(reference.sop_instance_uid, strict=False):
                images[reference.sop_instance_uid] = None
    return {series: tuple(images) for series, images in found.items()}
