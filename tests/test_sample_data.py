"""The sample data: deterministic, small, plainly synthetic, and right in its geometry."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest

GENERATOR = Path(__file__).parents[1] / "sample-data" / "generate.py"


def run_generator(out: Path, *options: str) -> float:
    start = time.monotonic()
    command = [sys.executable, "-W", "error", str(GENERATOR), "--out", str(out), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample") / "studies"
    return out, run_generator(out)


@pytest.fixture(scope="module")
def headers(studies):
    return {
        p: pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(studies[0].rglob("*.dcm"))
    }


def digest(folder: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sha.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return sha.hexdigest()


def lps_affine(datasets):
    """(column, row, slice) -> LPS, from the headers alone (PS3.3 C.7.6.2.1-1)."""
    first, last = datasets[0], datasets[-1]
    row, column = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    origin, end = (np.array(d.ImagePositionPatient, float) for d in (first, last))
    affine = np.eye(4)
    affine[:3, 0] = row * float(first.PixelSpacing[1])
    affine[:3, 1] = column * float(first.PixelSpacing[0])
    affine[:3, 2] = (end - origin) / (len(datasets) - 1)
    affine[:3, 3] = origin
    return affine


def test_time_and_size(studies):
    out, seconds = studies
    assert seconds < 60
    assert sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) < 30e6


def test_two_runs_write_the_same_bytes(studies, tmp_path):
    run_generator(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(studies[0])


def test_every_header_is_plainly_synthetic(headers):
    assert headers
    for ds in headers.values():
        assert str(ds.PatientName).startswith("SYNTHETIC^")
        assert ds.PatientID.startswith("SYNTHETIC-")
        assert ds.SyntheticData == "YES"
        assert ds.StudyInstanceUID.startswith("2.25.")
        assert ds.SOPInstanceUID.startswith("2.25.")
        if ds.Modality != "SEG":
            assert ds.InstitutionName.startswith("SYNTHETIC")
            assert ds.Manufacturer.startswith("SYNTHETIC")
            assert list(ds.ImageType[:2]) == ["DERIVED", "SECONDARY"]
            assert ds.BurnedInAnnotation == "NO"


def test_people_and_sites(headers):
    images = [d for d in headers.values() if d.Modality != "SEG"]
    studies_of = {}
    for ds in images:
        studies_of.setdefault(ds.PatientID, set()).add(ds.StudyInstanceUID)
    assert len(studies_of) >= 12
    assert sum(len(s) == 2 for s in studies_of.values()) == 2
    sites = {d.InstitutionName for d in images}
    assert len(sites) >= 3
    for keyword in ("Manufacturer", "ManufacturerModelName", "Rows", "SliceThickness"):
        assert len({getattr(d, keyword) for d in images}) >= 3, keyword
    labelled = {d.StudyInstanceUID for d in headers.values() if d.Modality == "SEG"}
    everything = {d.StudyInstanceUID for d in images}
    assert 0.5 < len(labelled) / len(everything) < 1
    segments = [s for d in headers.values() if d.Modality == "SEG" for s in d.SegmentSequence]
    kinds = {s.SegmentAlgorithmType for s in segments}
    assert kinds == {"SEMIAUTOMATIC"}, "AUTOMATIC ones are no finished labels"


def test_uids_are_unique(headers):
    uids = [d.SOPInstanceUID for d in headers.values()]
    assert len(set(uids)) == len(uids)
    series_in_study = {}
    for ds in headers.values():
        series_in_study.setdefault(ds.SeriesInstanceUID, set()).add(ds.StudyInstanceUID)
    assert all(len(s) == 1 for s in series_in_study.values())


@pytest.mark.parametrize("person", ["P001", "P006", "P011"])
def test_seg_equals_the_label_voxel_by_voxel(studies, nifti, person):
    """SEG and NIfTI label are two ways out of one label map; they meet in patient space."""
    folder = studies[0] / f"SYNTHETIC-{person}" / "visit1"
    paths = sorted(p for p in folder.rglob("*.dcm") if p.parent.name != "SEG")
    images = [pydicom.dcmread(p) for p in paths]
    seg = hd.seg.segread(folder / "SEG" / "001.dcm")
    names = [seg.get_segment_description(n).segment_label for n in seg.segment_numbers]
    assert names == ["liver", "spleen"]
    types = [seg.get_segment_description(n).segmented_property_type for n in seg.segment_numbers]
    assert [(t.value, t.scheme_designator) for t in types] == [
        ("10200004", "SCT"),
        ("78961009", "SCT"),
    ]
    planes = seg.get_pixels_by_source_instance(
        [d.SOPInstanceUID for d in images],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    label = nib.load(nifti / "labels" / f"{person}_1.nii.gz")
    np.testing.assert_array_equal(planes.transpose(2, 1, 0), np.asanyarray(label.dataobj))
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps_affine(images)
    np.testing.assert_allclose(ras, label.affine, atol=1e-4)
    assert set(np.unique(planes)) == {0, 1, 2}

    image = nib.load(nifti / "images" / f"{person}_1.nii.gz")
    floor = int(getattr(images[0], "RescaleIntercept", 0))
    stored = np.stack([d.pixel_array for d in images]).transpose(2, 1, 0) + float(floor)
    np.testing.assert_array_equal(stored, np.asanyarray(image.dataobj).clip(floor, floor + 4095))


@pytest.fixture(scope="module")
def nifti(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample") / "nifti"
    run_generator(out, "--nifti")
    return out


def test_liver_is_on_the_right_and_spleen_on_the_left(nifti):
    """In RAS, x grows towards the patient's right."""
    for path in sorted((nifti / "labels").iterdir()):
        label = nib.load(path)
        array = np.asanyarray(label.dataobj)
        liver, spleen = (
            (label.affine @ [*np.argwhere(array == v).mean(axis=0), 1.0])[0] for v in (1, 2)
        )
        assert liver > 20 > -20 > spleen, path.name


def test_a_person_looks_the_same_on_the_second_visit(nifti):
    volumes = {}
    for path in sorted((nifti / "labels").iterdir()):
        label = nib.load(path)
        voxel_ml = abs(np.linalg.det(label.affine[:3, :3])) / 1000
        volumes[path.name[:6]] = float((np.asanyarray(label.dataobj) == 1).sum() * voxel_ml)
    assert volumes["P003_1"] == pytest.approx(volumes["P003_2"], rel=0.03)
    assert max(volumes.values()) / min(volumes.values()) > 1.2  # and people differ


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, str(GENERATOR), "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "not empty" in done.stderr
