from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom.data
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from dicom_sources import ORIENTATIONS, Source, make_enhanced, make_series, set_pixels, written
from segunlearn.dicom.series import geometry_from_datasets, volume_from_datasets
from segunlearn.errors import UnsupportedSeriesError


def assert_shows(datasets: list[Dataset], source: Source) -> None:
    volume = volume_from_datasets(datasets)
    np.testing.assert_array_equal(volume.array, source.array.astype(np.float32))
    np.testing.assert_allclose(volume.affine, source.affine, atol=1e-5)
    assert volume.array.dtype == np.float32


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_orientation_gives_the_grid_it_was_made_from(orientation: str) -> None:
    source = make_series(orientation)
    assert_shows(source.datasets, source)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_same_world_as_simpleitk(orientation: str, tmp_path: Path) -> None:
    source = make_series(orientation)
    for i, ds in enumerate(source.datasets):
        ds.save_as(tmp_path / f"{i}.dcm", enforce_file_format=True)
    assert_same_as_simpleitk(tmp_path)


def assert_same_as_simpleitk(folder: Path) -> None:
    """Compare with SimpleITK's own series reader (GDCM, ITK) in both value and place."""
    datasets = [dcmread(p) for p in sorted(folder.glob("*.dcm"))]
    volume = volume_from_datasets(datasets)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    theirs = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    lps = np.eye(4)
    lps[:3, :3] = direction * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    np.testing.assert_allclose(volume.affine, ras, atol=2e-3)
    np.testing.assert_allclose(volume.array, theirs, rtol=1e-6, atol=1e-3)


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["mr-ge-t1post", "mr-siemens-t1post", "mr-hippocrop-1", "mr-hippocrop-2"]
)
def test_real_series_lie_where_simpleitk_puts_them(data_dir: Path, name: str) -> None:
    assert_same_as_simpleitk(data_dir / "dicom" / name)


@given(
    st.permutations(range(5)),
    st.tuples(*[st.floats(-500, 500).map(lambda v: round(v, 3))] * 3),
    st.tuples(*[st.floats(0.3, 6).map(lambda v: round(v, 3))] * 3),
    st.tuples(*[st.floats(-1, 1)] * 4),
)
def test_any_order_place_and_rotation(
    order: list[int],
    origin: tuple[float, float, float],
    spacing: tuple[float, float, float],
    quaternion: tuple[float, float, float, float],
) -> None:
    w, x, y, z = np.array(quaternion) / (np.linalg.norm(quaternion) or 1.0)
    if not np.linalg.norm([w, x, y, z]) > 0.5:
        w, x, y, z = 1.0, 0.0, 0.0, 0.0
    row = (1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w))
    column = (2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w))
    source = make_series((*row, *column), origin=origin, spacing=spacing, shuffle=False)
    assert_shows([source.datasets[i] for i in order], source)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_enhanced_multi_frame_equals_single_frames(orientation: str, parts: int) -> None:
    source = make_series(orientation, slope=0.5)
    assert_shows([written(d) for d in make_enhanced(source, parts=parts)], source)


def test_rescale_may_differ_from_slice_to_slice() -> None:
    source = make_series(shuffle=False)
    for z, ds in enumerate(source.datasets):
        ds.RescaleSlope, ds.RescaleIntercept = 1 + z, -z
        source.array[:, :, z] = (source.array[:, :, z] + 1024) * (1 + z) - z
    assert_shows(source.datasets, source)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_slice_that_does_not_tell_its_rescale_is_refused(keyword: str) -> None:
    """One of four slices would be 1024 HU off."""
    source = make_series(slope=2.0)
    delattr(source.datasets[2], keyword)
    assert f"tells {keyword} of 4 of its 5 frames" in refused(source.datasets)
    source.datasets[2].add_new(keyword, "DS", None)
    assert f"tells {keyword} of 4 of its 5 frames" in refused(source.datasets)
    frames = make_enhanced(make_series(slope=2.0), parts=2)
    frames[1].SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0][keyword].clear()
    assert f"tells {keyword} of" in refused(frames)


def test_a_rescale_that_nobody_tells_or_that_changes_nothing_is_none() -> None:
    source = make_series(intercept=0.0)
    del source.datasets[2].RescaleIntercept
    del source.datasets[2].RescaleSlope
    assert_shows(source.datasets, source)
    for ds in source.datasets:
        ds.pop("RescaleIntercept", None)
        ds.pop("RescaleSlope", None)
    assert_shows(source.datasets, source)


def test_signed_pixels() -> None:
    source = make_series(intercept=0)
    for ds in source.datasets:
        ds.PixelRepresentation = 1
        ds.PixelData = (ds.pixel_array.astype("<i2") - 2000).tobytes()
    source.array -= 2000
    assert_shows([written(d) for d in source.datasets], source)


@pytest.mark.parametrize("syntax", ["jpeg lossless", "jpeg lossless sv1", "jpeg 2000", "jpeg-ls"])
def test_compressed_equals_uncompressed(syntax: str, tmp_path: Path) -> None:
    import gdcm

    source = make_series(shape=(32, 24, 3))
    kind = {
        "jpeg lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
        "jpeg lossless sv1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        "jpeg 2000": gdcm.TransferSyntax.JPEG2000Lossless,
        "jpeg-ls": gdcm.TransferSyntax.JPEGLSLossless,
    }[syntax]
    compressed = []
    for i, ds in enumerate(source.datasets):
        ds.save_as(tmp_path / f"{i}.dcm", enforce_file_format=True)
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), None
        reader.SetFileName(str(tmp_path / f"{i}.dcm"))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(kind))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(tmp_path / f"{i}-c.dcm"))
        assert writer.Write()
        compressed.append(dcmread(tmp_path / f"{i}-c.dcm"))
    assert all(d.file_meta.TransferSyntaxUID.is_compressed for d in compressed)
    assert_shows(compressed, source)


def test_run_length_encoding() -> None:
    source = make_series()
    for ds in source.datasets:
        ds.compress(RLELossless)
    assert_shows([written(d) for d in source.datasets], source)


# --- what is refused -----------------------------------------------------------------------------


def refused(datasets: list[Dataset]) -> str:
    with pytest.raises(UnsupportedSeriesError) as caught:
        volume_from_datasets(datasets)
    message = str(caught.value)
    if datasets and "SeriesInstanceUID" in datasets[0]:
        assert str(datasets[0].SeriesInstanceUID) in message
    assert "Synthetic" not in message
    return message


def test_missing_slices_are_counted() -> None:
    source = make_series(shape=(4, 4, 12), shuffle=False)
    del source.datasets[5:7]
    assert "misses 2 of 12 slices" in refused(source.datasets)


def test_a_missing_slice_near_the_end_is_seen() -> None:
    source = make_series(shape=(4, 4, 40), shuffle=False)
    del source.datasets[38]
    assert "misses 1 of 40 slices" in refused(source.datasets)


def test_uneven_gaps() -> None:
    source = make_series(shape=(4, 4, 9), shuffle=False)
    for z, ds in enumerate(source.datasets):
        ds.ImagePositionPatient = [0, 0, 2.5 * z + (0.9 if z > 4 else 0)]
    assert "uneven slice gaps from 2.50 to 3.40 mm" in refused(source.datasets)


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_accepted() -> None:
    source = make_series(shape=(4, 4, 30), spacing=(1, 1, 0.625), origin=(0, 0, 0), shuffle=False)
    for ds in source.datasets:
        ds.ImagePositionPatient = [0, 0, round(float(ds.ImagePositionPatient[2]), 1)]
    assert volume_from_datasets(source.datasets).spacing[2] == pytest.approx(0.625, abs=0.003)


@pytest.mark.parametrize(("angle", "accepted"), [(0.05, True), (1.0, False), (15.0, False)])
def test_gantry_tilt(angle: float, accepted: bool) -> None:
    source = make_series(shape=(4, 4, 9), shuffle=False)
    for z, ds in enumerate(source.datasets):
        ds.ImagePositionPatient = [0, float(z * 2.5 * np.tan(np.radians(angle))), 2.5 * z]
    if accepted:
        volume = volume_from_datasets(source.datasets)
        assert -volume.affine[1, 2] == pytest.approx(2.5 * np.tan(np.radians(angle)))
    else:
        assert "gantry tilt" in refused(source.datasets)


def test_slices_shifted_sideways() -> None:
    source = make_series(shape=(4, 4, 9), shuffle=False)
    source.datasets[4].ImagePositionPatient[0] += 1.5
    assert "shifted sideways" in refused(source.datasets)


def test_localizer() -> None:
    axial, sagittal = make_series("axial", modality="MR"), make_series("sagittal", modality="MR")
    mixed = [axial.datasets[0], sagittal.datasets[0]]
    for ds in mixed:
        ds.SeriesInstanceUID = axial.datasets[0].SeriesInstanceUID
        ds.FrameOfReferenceUID = axial.datasets[0].FrameOfReferenceUID
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert "is a localizer and mixes 2 orientations" in refused(mixed)


@pytest.mark.parametrize(("modality", "images"), [("CT", 1), ("CT", 5), ("MR", 1), ("PT", 1)])
def test_a_localizer_of_one_plane(modality: str, images: int) -> None:
    source = make_series("coronal", shape=(7, 6, images), modality=modality)
    for ds in source.datasets:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert "holds a localizer" in refused(source.datasets)


def test_a_stack_of_localizer_slices_of_another_modality_is_a_volume() -> None:
    source = make_series(modality="MR")
    for ds in source.datasets:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert_shows(source.datasets, source)


def test_the_scout_that_pydicom_brings() -> None:
    folder = Path(pydicom.data.__file__).parent / "test_files/dicomdirtests/98892001/CT2N"
    assert "holds a localizer" in refused([dcmread(folder / "6293")])


@pytest.mark.parametrize("images", [1, 3])
def test_a_mosaic_is_no_slice(images: int) -> None:
    source = make_series(shape=(96, 96, images), modality="MR")
    for ds in source.datasets:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "ND", "MOSAIC"]
        ds.ImagePositionPatient = source.datasets[0].ImagePositionPatient
    assert "tiles of many slices" in refused(source.datasets)


def test_a_copy_of_an_instance_is_dropped() -> None:
    source = make_series()
    assert_shows([*source.datasets, written(source.datasets[2])], source)


def test_a_copy_under_another_uid_is_dropped() -> None:
    source = make_series()
    copy = written(source.datasets[2])
    copy.SOPInstanceUID = generate_uid()
    assert_shows([*source.datasets, copy], source)


@pytest.mark.parametrize("same_uid", [True, False])
def test_two_images_at_one_place(same_uid: bool) -> None:
    source = make_series()
    other = written(source.datasets[2])
    set_pixels(other, other.pixel_array + 1)
    if not same_uid:
        other.SOPInstanceUID = generate_uid()
    message = refused([*source.datasets, other])
    assert ("same SOPInstanceUID" if same_uid else "shows one position several times") in message


def test_echoes_are_named() -> None:
    source = make_series(shuffle=False)
    second = [written(d) for d in source.datasets]
    for a, b in zip(source.datasets, second, strict=True):
        a.EchoTime, b.EchoTime, b.SOPInstanceUID = 10, 80, generate_uid()
        set_pixels(b, b.pixel_array // 2)
    assert "10 images at 5 positions, 2 echo times" in refused([*source.datasets, *second])


def test_sizes_spacings_and_series_must_agree() -> None:
    small = make_series(shape=(4, 4, 3))
    set_pixels(small.datasets[1], np.zeros((4, 5), np.uint16))
    assert "2 sizes (4x4, 4x5)" in refused(small.datasets)
    spaced = make_series()
    spaced.datasets[0].PixelSpacing = [1, 1]
    assert "different PixelSpacing" in refused(spaced.datasets)
    assert "images of 2 series" in refused([*make_series().datasets, *make_series().datasets])


@pytest.mark.parametrize(
    ("keyword", "values", "words"),
    [
        ("PatientID", ("A-1", "B-2"), "images of 2 patients"),
        ("FrameOfReferenceUID", ("1.2.3", "1.2.4"), "2 frames of reference"),
        ("Modality", ("CT", "MR"), "2 modalities"),
    ],
)
def test_a_series_is_of_one_patient_place_and_kind(
    keyword: str, values: tuple[str, str], words: str
) -> None:
    """PS3.3 A.1.2: a series has one of each, so one of two images lies in a wrong series."""
    source = make_series()
    for i, ds in enumerate(source.datasets):
        setattr(ds, keyword, values[i == 2])
    message = refused(source.datasets)
    assert words in message
    assert "B-2" not in message


def test_padding_and_empty_values_make_no_other_patient() -> None:
    source = make_series()
    for ds, value in zip(source.datasets, ("A-1", "A-1 ", "", "A-1", "A-1"), strict=True):
        ds.PatientID = value
    assert_shows(source.datasets, source)


def test_values_in_the_upper_bits_are_refused() -> None:
    """PS3.5 8.1.1 wants BitsStored - 1, earlier editions did not; pydicom does not shift."""
    source = make_series()
    for ds in source.datasets:
        ds.BitsStored, ds.HighBit = 12, 15
    assert "HighBit 15 with 12 bits stored" in refused(source.datasets)


def test_single_slice_needs_a_thickness() -> None:
    source = make_series(shape=(4, 4, 1))
    assert volume_from_datasets(source.datasets).spacing == pytest.approx((0.7, 0.9, 2.5))
    del source.datasets[0].SliceThickness
    assert "single slice without SliceThickness" in refused(source.datasets)
    source.datasets[0].SpacingBetweenSlices = 3
    assert volume_from_datasets(source.datasets).spacing[2] == pytest.approx(3)


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("PhotometricInterpretation", "RGB", "colour"),
        ("SamplesPerPixel", 3, "colour"),
        ("ImagePositionPatient", None, "no usable ImagePositionPatient"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "not perpendicular"),
        ("PixelSpacing", [0, 1], "invalid PixelSpacing"),
        ("PixelData", b"\0\0", "cannot be decoded"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.2", "an RT dose"),
        ("ModalityLUTSequence", [Dataset()], "lookup table"),
    ],
)
def test_bad_headers(keyword: str, value: object, words: str) -> None:
    source = make_series()
    for ds in source.datasets:
        setattr(ds, keyword, value)
    assert words in refused(source.datasets)


def test_nothing_at_all() -> None:
    assert "no instances" in refused([])


def test_multi_frame_without_positions() -> None:
    ds = make_series(shape=(4, 4, 1)).datasets[0]
    ds.NumberOfFrames = 3
    set_pixels(ds, np.zeros((3, 4, 4), np.uint16))
    assert "3 frames without positions" in refused([ds])


def test_geometry_needs_no_pixels() -> None:
    source = make_series("coronal")
    for ds in source.datasets:
        del ds.PixelData
    geometry = geometry_from_datasets(source.datasets)
    np.testing.assert_allclose(geometry.affine, source.affine, atol=1e-5)
    assert geometry.shape == source.array.shape
