"""Forget requests as DICOM: Key Object Selection documents with a private title.

A retraction tells every reader of the PACS that a study is withdrawn *from model training*. It
never uses the codes of IHE Imaging Object Change Management (113001, 113037, 113038, 113039):
archives hide and later delete what those reject, and a hospital usually must keep the study.

Source: PS3.3 A.35.4 and C.17.6 (Key Object Selection), PS3.16 TID 2010, PS3.3 C.12.1 (private
coding schemes). Written strictly, read tolerantly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import (
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    ObserverContext,
)
from highdicom.sr.enum import RelationshipTypeValues
from highdicom.sr.value_types import CompositeContentItem, ImageContentItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import KeyObjectSelectionDocumentStorage

from segunlearn import __version__
from segunlearn.dicom.dates import zone_of
from segunlearn.dicom.given_values import REFUSED, copy_given
from segunlearn.dicom.key_objects import (
    Reference,
    derived_uid,
    evidence_of,
    hierarchy,
    title_of,
    word,
)
from segunlearn.errors import InvalidInputError

#: Designator of the private coding scheme (PS3.16 8.1: private ones begin with 99).
SCHEME = "99SEGUNLEARN"

#: Document title of each state of a forget request. The first is the mark itself.
TITLES: Mapping[str, tuple[str, str]] = {
    "requested": ("FORGET01", "Withdrawn from model training"),
    "approved": ("FORGET02", "Withdrawal from model training approved"),
    "working": ("FORGET03", "Withdrawal from model in progress"),
    "fulfilled": ("FORGET04", "Withdrawal from model fulfilled"),
    "refused": ("FORGET05", "Withdrawal from model not achieved"),
    "restored": ("FORGET06", "Withdrawal from model reversed"),
    "purged": ("FORGET07", "Withdrawal from model made final"),
    "withdrawn": ("FORGET08", "Request to withdraw from model cancelled"),
}

_STATES = {code: state for state, (code, _) in TITLES.items()}
_KEY_OBJECT_DESCRIPTION = ("113012", "DCM")
_SOURCE = CodedConcept(value="260753009", scheme_designator="SCT", meaning="Source")
_FIELD = re.compile(
    r"\b(request|target|reason|needed|reached|report_sha256)=([A-Za-z0-9_.-]{1,64})"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
#: Patient and study attributes that the document needs (type 2: present, may be empty).
_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
#: References to this many instances at most are repeated in the documents of sibling studies.
SHARED_REFERENCES = 2000


@dataclass(frozen=True)
class RetractionNote:
    """What a document says about a forget request; no patient name and no free text.

    Parameters
    ----------
    request_id
        Identifier of the forget request in the store that wrote it.
    state
        One of ``TITLES``.
    target
        ``patient``, ``study`` or ``series``.
    reason
        Coded reason of the request, e.g. ``consent_withdrawn``.
    needed, reached
        Assurance levels (``none``, ``hidden``, ``unlearned``, ``retrained``).
    changed
        When the request came into this state, with time zone.
    report_sha256
        SHA-256 of the audit report, 64 hexadecimal digits, where there is one.
    """

    request_id: str
    state: str
    target: str
    reason: str
    needed: str
    reached: str
    changed: datetime
    report_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.state not in TITLES:
            raise InvalidInputError(
                f"{self.state!r} has no document title; use one of {', '.join(TITLES)}."
            )
        for name in ("request_id", "target", "reason", "needed", "reached"):
            if not _WORD.fullmatch(getattr(self, name)):
                raise InvalidInputError(
                    f"{name} must be 1 to 64 letters, digits, '.', '_' or '-' to stand in a "
                    f"DICOM document, got {getattr(self, name)[:80]!r}."
                )
        if self.report_sha256 is not None and not _SHA256.fullmatch(self.report_sha256):
            raise InvalidInputError("report_sha256 must be 64 hexadecimal digits in lower case.")
        if self.changed.tzinfo is None:
            raise InvalidInputError("the time of a change needs a time zone.")

    @property
    def description(self) -> str:
        """Text of the Key Object Description (113012, DCM), read by people and programs."""
        parts = [
            f"request={self.request_id}",
            f"target={self.target}",
            f"reason={self.reason}",
            f"needed={self.needed}",
            f"reached={self.reached}",
        ]
        if self.report_sha256 is not None:
            parts.append(f"report_sha256={self.report_sha256}")
        title = TITLES[self.state][1]
        return f"{title}; the images stay in clinical use. SegUnlearn {'; '.join(parts)}"


@dataclass(frozen=True)
class Retraction:
    """A retraction read back from a PACS, ours or another server's.

    ``fields`` holds what the description says (``request``, ``target``, ``reason``, …); a
    document without a readable description has none.
    """

    sop_instance_uid: str
    state: str
    references: tuple[Reference, ...]
    description: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    identical: tuple[str, ...] = ()

    @property
    def request_id(self) -> str:
        """The other server's request, empty when the description does not say."""
        return self.fields.get("request", "")


def build_retraction(
    note: RetractionNote,
    header: Dataset,
    references: Sequence[Reference],
    *,
    sop_instance_uid: str,
    series_instance_uid: str,
    instance_number: int = 1,
    device_uid: str | None = None,
    identical: Sequence[tuple[str, str, str]] = (),
) -> KeyObjectSelectionDocument:
    """Build the document of one study.

    Parameters
    ----------
    note
        What it says.
    header
        Any header of the study; its patient and study modules are copied.
    references
        Instances it points to, at least one of them in the study of ``header``.
    sop_instance_uid, series_instance_uid
        Of the new document. The series holds only key object documents.
    instance_number
        At least 1, should rise with the states of a request.
    device_uid
        UID of this installation, written as the device observer.
    identical
        ``(study, series, sop instance)`` UIDs of the same document in other studies (Identical
        Documents Sequence, PS3.3 C.17.6.2.1).

    Raises
    ------
    InvalidInputError
        No instance of the study is referenced: such a document is not legal.
    """
    study = str(header.StudyInstanceUID)
    own = [
        _evidence(reference) for reference in references if reference.study_instance_uid == study
    ]
    others = [reference for reference in references if reference.study_instance_uid != study]
    if not own:
        raise InvalidInputError(
            "a Key Object Selection document needs at least one instance of its own study; "
            "the PACS lists none. It can be built when the study has arrived."
        )
    own[0].update(_patient_and_study(header))
    changed = note.changed.astimezone(zone_of(header.get("TimezoneOffsetFromUTC")))
    code, meaning = TITLES[note.state]
    content = KeyObjectSelection(
        document_title=CodedConcept(value=code, scheme_designator=SCHEME, meaning=meaning),
        referenced_objects=own,
        observer_device_context=_device_observer(device_uid) if device_uid else None,
        description=note.description,
    )
    document = KeyObjectSelectionDocument(
        evidence=own,
        content=content,
        series_instance_uid=series_instance_uid,
        series_number=9901,
        sop_instance_uid=sop_instance_uid,
        instance_number=instance_number,
        manufacturer="SegUnlearn",
        manufacturer_model_name="SegUnlearn",
        software_versions=__version__,
        device_serial_number=device_uid or "unknown",
        series_description="Withdrawn from model training",
        content_date=changed.date(),
        content_time=changed.time().replace(microsecond=0),
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=SCHEME, name="SegUnlearn forget requests", version="1"
            )
        ],
    )
    copy_given(header, document)
    if header.get("PatientSex") not in ("M", "F", "O"):
        document.PatientSex = ""
    if header.get("IssuerOfPatientID"):  # highdicom leaves it out, and archives ask any instance
        document.IssuerOfPatientID = header.IssuerOfPatientID
    if header.get("TimezoneOffsetFromUTC"):
        document.TimezoneOffsetFromUTC = header.TimezoneOffsetFromUTC
    if others:
        document.ContentSequence.extend(_item(reference) for reference in others)
        document.CurrentRequestedProcedureEvidenceSequence.extend(hierarchy(others))
    if identical:
        document.IdenticalDocumentsSequence = hierarchy(
            [Reference(a, b, KeyObjectSelectionDocumentStorage, c) for a, b, c in identical]
        )
    return document


def build_retractions(
    note: RetractionNote,
    studies: Sequence[tuple[Dataset, Sequence[Reference]]],
    *,
    secret: bytes,
    document_uid: str,
    instance_number: int = 1,
) -> list[KeyObjectSelectionDocument]:
    """Build the documents of a request over one or several studies, one for each study.

    Parameters
    ----------
    note
        What they say.
    studies
        ``(header, references)`` of each study.
    secret
        Key of this installation, from which the UIDs of series and device are derived.
    document_uid
        SOP Instance UID of the document; that of the first study when there are several, from
        which the others' are derived.
    instance_number
        See :func:`build_retraction`.

    Notes
    -----
    Up to ``SHARED_REFERENCES`` instances, every document references all studies and names the
    others as identical documents. Beyond, each references its own study only: the size of all
    documents together would grow with the square of the number of studies.
    """
    ordered = sorted(studies, key=lambda study: str(study[0].StudyInstanceUID))
    places = [
        (
            uid := str(header.StudyInstanceUID),
            derived_uid(secret, "series", uid),
            document_uid if index == 0 else derived_uid(secret, "document", document_uid, uid),
        )
        for index, (header, _) in enumerate(ordered)
    ]
    everything = [reference for _, references in ordered for reference in references]
    shared = len(ordered) > 1 and len(everything) <= SHARED_REFERENCES
    return [
        build_retraction(
            note,
            header,
            everything if shared else references,
            sop_instance_uid=place[2],
            series_instance_uid=place[1],
            instance_number=instance_number,
            device_uid=derived_uid(secret, "device"),
            identical=[other for other in places if other != place] if shared else (),
        )
        for (header, references), place in zip(ordered, places, strict=True)
    ]


def parse_retraction(dataset: Dataset) -> Retraction | None:
    """Read a retraction; None when the document is something else.

    Parameters
    ----------
    dataset
        A document of any SOP class from any server.
    """
    if word(dataset, "SOPClassUID") != KeyObjectSelectionDocumentStorage:
        return None
    code, scheme = title_of(dataset)
    if scheme != SCHEME or code not in _STATES:
        return None
    description = ""
    for item in dataset.get("ContentSequence") or ():
        if item.get("ValueType") == "TEXT" and title_of(item) == _KEY_OBJECT_DESCRIPTION:
            description = str(item.get("TextValue", ""))[:4096]
    return Retraction(
        sop_instance_uid=word(dataset, "SOPInstanceUID"),
        state=_STATES[code],
        references=tuple(evidence_of(dataset)),
        description=description,
        fields=dict(_FIELD.findall(description)),
        identical=tuple(
            word(instance, "ReferencedSOPInstanceUID")
            for study in dataset.get("IdenticalDocumentsSequence") or ()
            for series in study.get("ReferencedSeriesSequence") or ()
            for instance in series.get("ReferencedSOPSequence") or ()
        ),
    )


def _evidence(reference: Reference) -> Dataset:
    dataset = Dataset()
    dataset.StudyInstanceUID = reference.study_instance_uid
    dataset.SeriesInstanceUID = reference.series_instance_uid
    dataset.SOPClassUID = reference.sop_class_uid
    dataset.SOPInstanceUID = reference.sop_instance_uid
    if reference.image:
        dataset.Rows = dataset.Columns = 1  # how highdicom tells IMAGE from COMPOSITE
    return dataset


def _patient_and_study(header: Dataset) -> Dataset:
    found = Dataset()
    for keyword in _TYPE_2:
        setattr(found, keyword, "" if keyword in REFUSED else header.get(keyword) or "")
    found.SpecificCharacterSet = "ISO_IR 192"  # whatever the names hold; headers came as Unicode
    return found


def _device_observer(device_uid: str) -> ObserverContext:
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=device_uid, name="SegUnlearn"
        ),
    )


def _item(reference: Reference) -> ImageContentItem | CompositeContentItem:
    kind = ImageContentItem if reference.image else CompositeContentItem
    return kind(
        name=_SOURCE,
        referenced_sop_class_uid=reference.sop_class_uid,
        referenced_sop_instance_uid=reference.sop_instance_uid,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
