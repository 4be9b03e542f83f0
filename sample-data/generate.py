"""Write small synthetic abdominal studies of three sites: DICOM with reference SEGs, or NIfTI.

    python sample-data/generate.py --out sample-data/studies
    python sample-data/generate.py --out sample-data/nifti --nifti

The same command writes the same bytes: UIDs are hashes of names, dates are fixed, random numbers
are seeded. See README.md beside this file for what is in the studies.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import phantom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from segunlearn.volumes import Volume, write_volume

VERSION = "1"
CODES = {"liver": codes.SCT.Liver, "spleen": codes.SCT.Spleen}
COLOURS = {"liver": (178, 76, 56), "spleen": (96, 150, 190)}


@dataclass(frozen=True)
class Site:
    """One scanner: geometry (mm; DICOM's LPS directions) and contrast."""

    key: str
    modality: str
    manufacturer: str
    model: str
    contrast: phantom.Contrast
    columns: int
    rows: int
    slices: int
    pixel_mm: float
    slice_mm: float
    row_direction: tuple[float, float, float]
    column_direction: tuple[float, float, float]
    tilt_degrees: float
    description: str
    window: tuple[int, int]

    @property
    def institution(self) -> str:
        return f"SYNTHETIC HOSPITAL {self.key}"


SITES = {
    "A": Site(
        "A", "CT", "SYNTHETIC VENDOR ONE", "Phantom CT 64", phantom.CT_PORTAL_VENOUS,
        128, 128, 40, 3.0, 5.0, (1, 0, 0), (0, 1, 0), 0.0,
        "SYNTHETIC CT abdomen portal venous", (60, 400),
    ),
    # Slices run from head to feet: their normal points against their order.
    "B": Site(
        "B", "MR", "SYNTHETIC VENDOR TWO", "Phantom MR 1.5T", phantom.MR_T1,
        144, 112, 36, 2.7, -5.5, (1, 0, 0), (0, 1, 0), 0.0,
        "SYNTHETIC MR abdomen T1 axial", (520, 1100),
    ),
    "C": Site(
        "C", "MR", "SYNTHETIC VENDOR THREE", "Phantom MR 3T", phantom.MR_T2_FATSAT,
        144, 84, 40, 2.6, 6.0, (1, 0, 0), (0, 0, -1), 7.0,
        "SYNTHETIC MR abdomen T2 fatsat coronal oblique", (480, 1100),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """One visit of one made-up person."""

    person: int
    site: str
    visit: int = 1
    labelled: bool = True

    @property
    def name(self) -> str:
        return f"P{self.person:03d}_{self.visit}"


#: 14 persons, 16 studies; persons 3 and 8 came twice; four studies have no reference SEG.
STUDIES = (
    Study(1, "A"), Study(2, "A"), Study(3, "A"), Study(3, "A", visit=2), Study(4, "A"),
    Study(5, "A", labelled=False),
    Study(6, "B"), Study(7, "B"), Study(8, "B"), Study(8, "B", visit=2, labelled=False),
    Study(9, "B"), Study(10, "B", labelled=False),
    Study(11, "C"), Study(12, "C"), Study(13, "C"), Study(14, "C", labelled=False),
)  # fmt: skip


def uid(*name: object) -> str:
    """UID under 2.25 (PS3.5 B.2) from a name-based UUID."""
    text = "/".join(["segunlearn sample data", VERSION, *map(str, name)])
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"


def seed(*name: object) -> int:
    """32 bits out of a name."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, name)).encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Scan:
    """Image and label of a study, ``(slice, row, column)``, and the place of their voxels."""

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8]
    origin: npt.NDArray[np.float64]
    row_direction: npt.NDArray[np.float64]
    column_direction: npt.NDArray[np.float64]
    slice_step: npt.NDArray[np.float64]

    def affine(self, site: Site) -> npt.NDArray[np.float64]:
        """(column, row, slice) index to RAS in mm."""
        lps = np.eye(4)
        lps[:3, 0] = self.row_direction * site.pixel_mm
        lps[:3, 1] = self.column_direction * site.pixel_mm
        lps[:3, 2] = self.slice_step
        lps[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def rotation(axis: int, degrees: float) -> npt.NDArray[np.float64]:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def scan(study: Study) -> Scan:
    """Place the person in the scanner, and image them."""
    site = SITES[study.site]
    rng = np.random.default_rng([seed("pose", study.name)])
    tilt = rotation(0, site.tilt_degrees * rng.uniform(0.4, 1.0))
    row, column = tilt @ np.array(site.row_direction), tilt @ np.array(site.column_direction)
    step = np.cross(row, column) * site.slice_mm
    count = np.array([site.columns, site.rows, site.slices])
    centre = np.array([0.0, 4.0, 12.0]) + rng.uniform(-4.0, 4.0, 3)
    axes = np.stack([row * site.pixel_mm, column * site.pixel_mm, step], axis=1)
    origin = np.round(centre - axes @ ((count - 1) / 2.0), 3)

    k, j, i = np.meshgrid(*(np.arange(n) for n in count[::-1]), indexing="ij")
    world = np.einsum("ab,b...->a...", axes, np.stack([i, j, k]).astype(np.float64))
    world += origin[:, None, None, None]
    pose = rotation(2, rng.uniform(-4.0, 4.0)) @ rotation(1, rng.uniform(-2.0, 2.0))
    breath = np.array([0.0, 0.0, rng.uniform(-9.0, 9.0)])
    points = np.einsum("ab,b...->a...", pose, world) + breath[:, None, None, None]
    points = points.astype(np.float32)

    anatomy = phantom.anatomy(points, seed("person", study.person))
    image = phantom.render(anatomy, site.contrast, points, site.pixel_mm, seed("noise", study.name))
    image = np.rint(image)
    return Scan(image, phantom.label_map(anatomy), origin, row, column, step)


def image_datasets(study: Study, s: Scan) -> list[Dataset]:
    """The series as single-frame CT or MR instances, in the order of their InstanceNumber."""
    site = SITES[study.site]
    ct = site.modality == "CT"
    stored = np.clip(s.image + (1024.0 if ct else 0.0), 0, 4095).astype("<u2")
    day = 10 + study.person + 200 * (study.visit - 1)
    date = np.datetime_as_string(np.datetime64("2024-01-01") + day).replace("-", "")
    moment = f"{8 + study.person % 9:02d}3000"
    direction = [*s.row_direction, *s.column_direction]
    datasets = []
    for index, plane in enumerate(stored):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.SOPClassUID = CTImageStorage if ct else MRImageStorage
        ds.SOPInstanceUID = uid(study.name, "image", index)
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if ct else "OTHER"]
        ds.SyntheticData = "YES"
        ds.BurnedInAnnotation = "NO"
        ds.DerivationDescription = "Computed phantom. SYNTHETIC: no person was imaged."
        ds.PatientIdentityRemoved = "YES"
        ds.DeidentificationMethod = "SYNTHETIC: no person was imaged"
        ds.PatientName = f"SYNTHETIC^P{study.person:03d}"
        ds.PatientID = f"SYNTHETIC-P{study.person:03d}"
        ds.PatientBirthDate = ""
        ds.PatientSex = "O"
        ds.PatientPosition = "HFS"
        ds.StudyInstanceUID = uid(study.name, "study")
        ds.StudyID = study.name
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = date
        ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = moment
        ds.StudyDescription = f"SYNTHETIC abdomen, site {site.key}, visit {study.visit}"
        ds.AccessionNumber = f"SYN{study.person:03d}{study.visit}"
        ds.ReferringPhysicianName = ""
        ds.Modality = site.modality
        ds.SeriesInstanceUID = uid(study.name, "series")
        ds.SeriesNumber = 1
        ds.SeriesDescription = site.description
        ds.BodyPartExamined = "ABDOMEN"
        ds.FrameOfReferenceUID = uid(study.name, "frame of reference")
        ds.PositionReferenceIndicator = ""
        ds.Manufacturer = site.manufacturer
        ds.ManufacturerModelName = site.model
        ds.DeviceSerialNumber = f"SYN-{site.key}-1"
        ds.StationName = f"SYN{site.key}1"
        ds.SoftwareVersions = f"phantom {VERSION}"
        ds.InstitutionName = site.institution
        ds.InstanceNumber = index + 1
        ds.AcquisitionNumber = 1
        ds.ImagePositionPatient = decimals(s.origin + index * s.slice_step)
        ds.ImageOrientationPatient = decimals(direction)
        ds.PixelSpacing = [site.pixel_mm, site.pixel_mm]
        ds.SliceThickness = abs(site.slice_mm)
        ds.SpacingBetweenSlices = abs(site.slice_mm)
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.WindowCenter, ds.WindowWidth = site.window
        if ct:
            ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
            ds.KVP, ds.ConvolutionKernel = 120, "SYNTHETIC"
        else:
            ds.ScanningSequence, ds.SequenceVariant = "RM", "NONE"
            ds.ScanOptions, ds.MRAcquisitionType = "", "2D"
            ds.EchoTime, ds.RepetitionTime, ds.EchoTrainLength = "", "", ""
            ds.MagneticFieldStrength = 1.5 if site.key == "B" else 3
        ds.PixelData = plane.tobytes()
        datasets.append(ds)
    return datasets


def decimals(values: npt.ArrayLike) -> list[str]:
    """Decimal strings (VR DS: at most 16 characters)."""
    return [f"{round(float(v), 6) + 0.0:.6f}" for v in np.asarray(values)]


def reference_segmentation(study: Study, s: Scan, images: list[Dataset]) -> Dataset:
    """The phantom's own label map as DICOM SEG."""
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Phantom ground truth", version=VERSION, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=value,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=CODES[name],
            # stands for what a person drew: AUTOMATIC ones are no finished labels
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm_identification=algorithm,
            tracking_id=f"{study.name} {name}",
            tracking_uid=uid(study.name, "tracking", name),
            display_color=hd.color.CIELabColor.from_rgb(*COLOURS[name]),
        )
        for value, name in phantom.LABELS.items()
    ]
    seg = hd.seg.Segmentation(
        source_images=images,
        pixel_array=s.label,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=uid(study.name, "seg series"),
        series_number=100,
        sop_instance_uid=uid(study.name, "seg"),
        instance_number=1,
        manufacturer="SegUnlearn sample data",
        manufacturer_model_name="phantom",
        software_versions=VERSION,
        device_serial_number="SYN-SEG",
        content_label="REFERENCE",
        content_description="SYNTHETIC reference segmentation",
        content_creator_name="SYNTHETIC^REFERENCE",
        series_description="SYNTHETIC reference segmentation",
    )
    seg.SyntheticData = "YES"
    for keyword in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(seg, keyword, images[0].StudyDate)
    for keyword in ("SeriesTime", "ContentTime", "InstanceCreationTime"):
        setattr(seg, keyword, images[0].StudyTime)
    _replace(seg, "DimensionOrganizationUID", uid(study.name, "dimension organization"))
    _replace(seg, "ContributionDateTime", images[0].StudyDate + images[0].StudyTime)
    return seg


def _replace(ds: Dataset, keyword: str, value: str) -> None:
    """Set an element wherever it stands, in nested sequences too."""
    for element in ds.iterall():
        if element.keyword == keyword:
            element.value = value


def write_dicom(folder: Path, study: Study, s: Scan) -> None:
    images = image_datasets(study, s)
    target = folder / f"SYNTHETIC-P{study.person:03d}" / f"visit{study.visit}"
    written = [(f"{images[0].Modality}/{d.InstanceNumber:03d}.dcm", d) for d in images]
    if study.labelled:
        written.append(("SEG/001.dcm", reference_segmentation(study, s, images)))
    for name, ds in written:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)


def write_nifti(folder: Path, study: Study, s: Scan) -> None:
    site = SITES[study.site]
    affine, name = s.affine(site), f"{study.name}.nii.gz"
    image = s.image.astype(np.int16).transpose(2, 1, 0)
    write_volume(Volume(image, affine, site.modality), folder / "images" / name)
    if study.labelled:
        label = s.label.transpose(2, 1, 0)
        write_volume(Volume(label, affine, "SEG"), folder / "labels" / name)


def generate(out: Path, *, nifti: bool = False, label_all: bool = False) -> Iterator[Study]:
    """Write every study below ``out``; yields each when it is written."""
    out.mkdir(parents=True, exist_ok=True)
    if nifti:
        with (out / "people.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["file", "person", "study", "series", "site"])
            for study in STUDIES:
                person = f"SYNTHETIC-P{study.person:03d}"
                uids = [uid(study.name, kind) for kind in ("study", "series")]
                rows.writerow([study.name, person, *uids, study.site])
    for study in STUDIES:
        wanted = Study(study.person, study.site, study.visit, study.labelled or label_all)
        (write_nifti if nifti else write_dicom)(out, wanted, scan(wanted))
        yield wanted


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder, made if it is missing")
    parser.add_argument("--nifti", action="store_true", help="images/ and labels/ as .nii.gz")
    parser.add_argument("--label-all", action="store_true", help="leave no study unlabelled")
    options = parser.parse_args(arguments)
    if options.out.is_dir() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; remove it or name another folder")
    start = time.monotonic()
    count = sum(1 for _ in generate(options.out, nifti=options.nifti, label_all=options.label_all))
    size = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file())
    seconds = time.monotonic() - start
    sys.stdout.write(f"{count} studies, {size / 1e6:.1f} MB, {seconds:.0f} s: {options.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
