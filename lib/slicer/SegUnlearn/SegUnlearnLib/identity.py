"""Whose study is this? The scene's own records say so, or nobody does: nothing is guessed.

In this order: the UIDs of the subject hierarchy; the instances that the volume was loaded from,
looked up in the DICOM database; the image that the MONAI Label module fetched from the server. A
node's name is never asked: it may be a PatientID, a file name or a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import slicer

_SERIES_TAG, _STUDY_TAG, _PATIENT_TAG = "0020,000E", "0020,000D", "0010,0020"
#: Attribute of a volume that the DICOM module loaded: SOP instance UIDs.
_INSTANCES = "DICOM.instanceUIDs"

HOW_TO_LOAD = (
    "Load it from Slicer's DICOM database (DICOM module, Import, then Load) or with Next Sample of "
    "the MONAI Label module."
)


@dataclass(frozen=True)
class Identity:
    """What is known of an image; empty texts for what is not.

    Parameters
    ----------
    study, series, patient
        StudyInstanceUID, SeriesInstanceUID, PatientID.
    image
        Id under which the server's datastore holds it.
    source
        Who says so, for people.
    """

    study: str = ""
    series: str = ""
    patient: str = ""
    image: str = ""
    source: str = ""

    def target(self, kind: str) -> str:
        """Return the identifier of a mark's target, empty where it is not known."""
        return {"study": self.study, "series": self.series, "patient": self.patient}[kind]


@dataclass(frozen=True)
class Unknown:
    """Nobody can say whose study it is.

    Parameters
    ----------
    reason
        Why, and what to do.
    """

    reason: str


def of_volume(volume: Any, scene: Any, database: Any, monai_label: Any) -> Identity | Unknown:
    """Find out whose study a volume is.

    Parameters
    ----------
    volume
        A volume node, None when none is loaded.
    scene
        Its scene.
    database
        Slicer's ``ctkDICOMDatabase``, None without one.
    monai_label
        Widget of the MONAI Label module, None while it was never opened.
    """
    if volume is None:
        return Unknown(f"No image is loaded. {HOW_TO_LOAD}")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    found = of_item(hierarchy, hierarchy.GetItemByDataNode(volume)) if hierarchy else None
    if isinstance(found, Identity):
        return found
    for later in (_of_instances(volume, database), _of_sample(volume, monai_label)):
        if later is not None:
            return later
    return Unknown(
        "It is not known whose study this image is: it was loaded from a file, and its name proves "
        f"nothing. {HOW_TO_LOAD}"
    )


def of_item(hierarchy: Any, item: int) -> Identity | Unknown:
    """Find out whose a patient, study, series or volume of the subject hierarchy is."""
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    nobody = Unknown(f"This item is not of a DICOM study. {HOW_TO_LOAD}")
    if not item or item == hierarchy.GetInvalidItemID():
        return nobody
    uid_name = constants.GetDICOMUIDName()
    level = hierarchy.GetItemLevel(item)
    own = str(hierarchy.GetItemUID(item, uid_name) or "")
    if level == constants.GetDICOMLevelPatient():
        return Identity(patient=own, source=_TREE) if own else nobody
    if level == constants.GetDICOMLevelStudy():
        study_item, series = item, ""
    else:
        study_item = hierarchy.GetItemAncestorAtLevel(item, constants.GetDICOMLevelStudy())
        series = own
    study = _uid_of(hierarchy, study_item, uid_name)
    if not study or (level != constants.GetDICOMLevelStudy() and not series):
        return nobody  # a folder or a node of another origin that was dropped into a study
    patient = _uid_of(hierarchy, hierarchy.GetItemParent(study_item), uid_name)
    return Identity(study, series, patient, series, _TREE)


def of_any_item(item: int, scene: Any, database: Any, monai_label: Any) -> Identity | Unknown:
    """Find out whose an item of the tree is, by its node where its UIDs do not tell."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    found = of_item(hierarchy, item)
    volume = hierarchy.GetItemDataNode(item) if isinstance(found, Unknown) else None
    if volume is not None and volume.IsA("vtkMRMLScalarVolumeNode"):
        return of_volume(volume, scene, database, monai_label)
    return found


_TREE = "subject hierarchy"


def _uid_of(hierarchy: Any, item: int, uid_name: str) -> str:
    if not item or item in (hierarchy.GetInvalidItemID(), hierarchy.GetSceneItemID()):
        return ""
    return str(hierarchy.GetItemUID(item, uid_name) or "")


def _of_instances(volume: Any, database: Any) -> Identity | Unknown | None:
    instances = str(volume.GetAttribute(_INSTANCES) or "").split()
    if not instances or database is None:
        return None
    return of_instances([uid for uid in instances if uid != "Unknown"], database)


def of_series(uids: Iterable[str], database: Any) -> Identity | Unknown:
    """Find out whose the series are that are selected in the DICOM browser."""
    series = [str(uid).strip().strip("'\"") for uid in uids]
    instances = [i for uid in series for i in list(database.instancesForSeries(uid))[:1]]
    if not instances:
        return Unknown("Select a series in the DICOM browser first.")
    return of_instances(instances, database) or Unknown(
        "The DICOM database does not know this series; import it again."
    )


def of_instances(instances: Iterable[str], database: Any) -> Identity | Unknown | None:
    """Look up instances; None where the database knows none, ``Unknown`` where they disagree."""
    found = set()
    for uid in instances:
        values = tuple(
            str(database.instanceValue(uid, tag) or "").strip()
            for tag in (_STUDY_TAG, _SERIES_TAG, _PATIENT_TAG)
        )
        if values[0]:
            found.add(values)
    if not found:
        return None
    if len({study for study, _, _ in found}) > 1:
        return Unknown(
            "This image was made from several studies, so a mark could hit the wrong one. Mark "
            "each study by itself: load its series, or right-click it in the subject hierarchy."
        )
    study, series, patient = min(found)
    if len({uid for _, uid, _ in found}) > 1:
        series = ""  # the study is certain, the series is not
    return Identity(study, series, patient, series, "DICOM database")


def _of_sample(volume: Any, monai_label: Any) -> Identity | None:
    sample = getattr(monai_label, "current_sample", None)
    if not isinstance(sample, dict) or getattr(monai_label, "_volumeNode", None) is not volume:
        return None
    if sample.get("session") or not sample.get("id"):
        return None  # uploaded under its name: the server knows no study of it
    return Identity(
        study=str(sample.get("StudyInstanceUID") or ""),
        series=str(sample.get("SeriesInstanceUID") or sample["id"]),
        patient=str(sample.get("PatientID") or ""),
        image=str(sample["id"]),
        source="MONAI Label",
    )
