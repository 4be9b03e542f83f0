"""What every Key Object Selection document has: title, evidence, and stable identifiers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, KeyObjectSelectionDocumentStorage


@dataclass(frozen=True)
class Reference:
    """One instance that a document points to.

    Parameters
    ----------
    study_instance_uid, series_instance_uid, sop_class_uid, sop_instance_uid
        Its identifiers.
    image
        Whether it is an image IOD (value type IMAGE; otherwise COMPOSITE).
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    image: bool = True


def derived_uid(secret: bytes, *parts: str) -> str:
    """UID that is always the same for the same parts, and this installation's own.

    A UUID-derived UID (PS3.5 B.2, root 2.25) from the first 128 bits of SHA-256 over the secret
    and the parts: a document that is built twice is the same instance, and the PACS keeps one.
    """
    sha = hashlib.sha256(len(secret).to_bytes(4, "big") + secret)
    for part in parts:
        data = part.encode()
        sha.update(len(data).to_bytes(4, "big") + data)
    return f"2.25.{int.from_bytes(sha.digest()[:16], 'big')}"


def references_of(datasets: Sequence[Dataset]) -> list[Reference]:
    """Instances to reference from headers or search results; key object documents are left out.

    An instance is an image when it has Rows and Columns, or, where the PACS does not say, when its
    SOP class is one of images or segmentations.
    """
    found: dict[str, Reference] = {}
    for dataset in datasets:
        sop_class = str(dataset.SOPClassUID)
        if sop_class == KeyObjectSelectionDocumentStorage:
            continue
        name = UID(sop_class).name
        found[str(dataset.SOPInstanceUID)] = Reference(
            study_instance_uid=str(dataset.StudyInstanceUID),
            series_instance_uid=str(dataset.SeriesInstanceUID),
            sop_class_uid=sop_class,
            sop_instance_uid=str(dataset.SOPInstanceUID),
            image=("Rows" in dataset and "Columns" in dataset)
            or "Image" in name
            or name.startswith("Segmentation"),
        )
    return list(found.values())


def word(dataset: Dataset, keyword: str) -> str:
    """Value of an attribute without DICOM's padding (spaces and NUL); empty when it is missing."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def title_of(dataset: Dataset) -> tuple[str, str]:
    """``(code value, coding scheme designator)`` of a document's title, empty when absent."""
    for item in dataset.get("ConceptNameCodeSequence") or ():
        return word(item, "CodeValue"), word(item, "CodingSchemeDesignator")
    return "", ""


def evidence_of(dataset: Dataset) -> list[Reference]:
    """Instances in the evidence sequence of a document; missing parts are empty strings."""
    return [
        Reference(
            study_instance_uid=word(study, "StudyInstanceUID"),
            series_instance_uid=word(series, "SeriesInstanceUID"),
            sop_class_uid=word(instance, "ReferencedSOPClassUID"),
            sop_instance_uid=word(instance, "ReferencedSOPInstanceUID"),
        )
        for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or ()
        for series in study.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedSOPSequence") or ()
    ]


def hierarchy(references: Sequence[Reference]) -> DicomSequence:
    """Hierarchical SOP Instance Reference items (PS3.3 C.17-3): study, series, instance."""
    studies: dict[str, dict[str, list[Dataset]]] = {}
    for reference in references:
        instance = Dataset()
        instance.ReferencedSOPClassUID = reference.sop_class_uid
        instance.ReferencedSOPInstanceUID = reference.sop_instance_uid
        study = studies.setdefault(reference.study_instance_uid, {})
        study.setdefault(reference.series_instance_uid, []).append(instance)
    items = DicomSequence()
    for study_uid, series in studies.items():
        item = Dataset()
        item.StudyInstanceUID = study_uid
        item.ReferencedSeriesSequence = DicomSequence()
        for series_uid, instances in series.items():
            inner = Dataset()
            inner.SeriesInstanceUID = series_uid
            inner.ReferencedSOPSequence = DicomSequence(instances)
            item.ReferencedSeriesSequence.append(inner)
        items.append(item)
    return items
