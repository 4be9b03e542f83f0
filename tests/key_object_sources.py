"""Small CT studies and rejection notes, written as another system would write them."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def ct_series(
    *,
    patient: str = "P1",
    name: str = "Müller^Änne",
    study: str | None = None,
    series: str | None = None,
    instances: int = 3,
    modality: str = "CT",
) -> list[Dataset]:
    """Headers and 8 x 8 pixels of an axial series."""
    study = study or generate_uid()
    series = series or generate_uid()
    frame = generate_uid()
    made = []
    for number in range(instances):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.PatientID, dataset.PatientName = patient, name
        dataset.IssuerOfPatientID = "SYNTHETIC"
        dataset.PatientBirthDate, dataset.PatientSex = "19700101", "F"
        dataset.StudyDate, dataset.StudyTime = "20260102", "101112"
        dataset.StudyID, dataset.AccessionNumber = "7", "A7"
        dataset.StudyDescription = "Synthetic abdomen"
        dataset.ReferringPhysicianName = "Ref^Erring"
        dataset.Modality, dataset.SeriesNumber = modality, 1
        dataset.Manufacturer = "Synthetic"
        dataset.InstanceNumber = number + 1
        dataset.FrameOfReferenceUID = frame
        dataset.PositionReferenceIndicator = ""
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, 2.5 * number]
        dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 2.5
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.Rows = dataset.Columns = 8
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation = 0
        dataset.PixelData = np.full((8, 8), 1000 + number, np.uint16).tobytes()
        made.append(dataset)
    return made


def rejection_note(
    images: list[Dataset],
    code: str = "113039",
    meaning: str = "Data Retention Policy Expired",
    scheme: str = "DCM",
) -> Dataset:
    """A Key Object Selection document that rejects instances (IHE RAD-66)."""
    return KeyObjectSelectionDocument(
        evidence=images,
        content=KeyObjectSelection(
            document_title=CodedConcept(value=code, scheme_designator=scheme, meaning=meaning),
            referenced_objects=images,
        ),
        series_instance_uid=generate_uid(),
        series_number=99,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Another PACS",
        content_date=datetime(2026, 3, 4).date(),
        content_time=datetime(2026, 3, 4, 5, 6, 7).time(),
    )
