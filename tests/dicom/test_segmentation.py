from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import nibabel as nib
import nrrd
import numpy as np
import numpy.typing as npt
import pytest
from highdicom.seg import Segmentation
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from dicom_sources import ORIENTATIONS, Source, make_enhanced, make_series, written
from segunlearn.dicom.dates import instant, iso_date_time
from segunlearn.dicom.segmentation import (
    Algorithm,
    describe_segmentation,
    read_segmentation,
    read_segments,
    references_series,
    write_segmentation,
)
from segunlearn.dicom.series import volume_from_datasets
from segunlearn.errors import (
    GeometryError,
    InvalidInputError,
    LabelError,
    UnsupportedSeriesError,
)
from segunlearn.volumes import Volume

NAMES = {1: "liver", 2: "left kidney", 5: "anterior"}


def some_label(source: Source, seed: int = 1, values: Sequence[int] = (0, 1, 2, 5)) -> Volume:
    rng = np.random.default_rng(seed)
    array = rng.choice(values, size=source.array.shape).astype(np.int16)
    array[:, :, 0] = 0  # an empty slice: must not be lost
    return Volume(array, source.affine, "SEG")


def round_trip(source: Source, label: Volume, datasets: list[Dataset] | None = None) -> Volume:
    datasets = source.datasets if datasets is None else datasets
    segmentation = written(write_segmentation(label, datasets, NAMES))
    back, names = read_segmentation(segmentation, datasets, label_names=NAMES)
    assert names == NAMES
    np.testing.assert_allclose(back.affine, source.affine, atol=1e-5)
    return back


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_round_trip_is_equal_voxel_by_voxel(orientation: str) -> None:
    source = make_series(orientation)
    label = some_label(source)
    back = round_trip(source, label)
    np.testing.assert_array_equal(back.array, label.array)
    assert back.same_grid(volume_from_datasets(source.datasets))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_highdicom_puts_the_mask_at_the_same_place(orientation: str) -> None:
    source = make_series(orientation)
    label = some_label(source, values=(0, 1))
    segmentation = Segmentation.from_dataset(
        written(write_segmentation(label, source.datasets, {1: "liver"}))
    )
    theirs = segmentation.get_volume(combine_segments=True)
    world = theirs.get_geometry().map_indices_to_reference(np.argwhere(theirs.array > 0))  # mm, LPS
    ours = nib.affines.apply_affine(label.affine, np.argwhere(label.array > 0)) * [-1, -1, 1]
    np.testing.assert_allclose(
        sorted(map(tuple, np.round(world, 3))), sorted(map(tuple, np.round(ours, 3))), atol=2e-3
    )


@given(
    st.integers(3, 9),
    st.integers(3, 9),
    st.integers(1, 6),
    st.sampled_from(sorted(ORIENTATIONS)),
    st.sampled_from(sorted(ORIENTATIONS)),
    st.integers(0, 2**32 - 1),
)
def test_any_size_and_any_axes_of_the_label(
    x: int, y: int, z: int, orientation: str, saved_as: str, seed: int
) -> None:
    """Viewers save labels with swapped and reversed axes; the voxels stay where they are."""
    source = make_series(orientation, shape=(x, y, z), seed=seed)
    rng = np.random.default_rng(seed)
    label = Volume(rng.choice([0, 1, 2, 5], size=(x, y, z)).astype(np.uint8), source.affine)
    flips = nib.orientations.axcodes2ornt(("RAS", "LPS", "SPL", "AIR", "IRP")[seed % 5])
    image = nib.Nifti1Image(label.array, label.affine).as_reoriented(flips)
    saved = Volume(np.asarray(image.dataobj), image.affine)
    np.testing.assert_array_equal(round_trip(source, saved).array, label.array)


@pytest.mark.parametrize("parts", [1, 2])
def test_enhanced_multi_frame(parts: int) -> None:
    source = make_series("coronal")
    enhanced = [written(d) for d in make_enhanced(source, parts=parts)]
    label = some_label(source)
    np.testing.assert_array_equal(round_trip(source, label, enhanced).array, label.array)


def test_slices_whose_orientation_differs_a_little_in_any_order() -> None:
    """Archives send headers and pixels in their own orders; the grid must not depend on it."""
    source = make_series("oblique", shape=(300, 300, 6), spacing=(0.5, 0.5, 3.0))
    rng = np.random.default_rng(0)
    for ds in source.datasets:
        jitter = rng.normal(0, 4e-4, 6)
        ds.ImageOrientationPatient = [
            round(float(v), 6) for v in np.add(ds.ImageOrientationPatient, jitter)
        ]
    image = volume_from_datasets(source.datasets)
    array = (rng.random(image.shape) > 0.5).astype(np.uint8)
    for order in (
        source.datasets,
        source.datasets[::-1],
        source.datasets[3:] + source.datasets[:3],
    ):
        seg = written(write_segmentation(Volume(array, image.affine), order, {1: "liver"}))
        for grid in (image, order):
            label, _ = read_segmentation(seg, grid, label_names={1: "liver"})
            np.testing.assert_array_equal(label.array, array)


def test_datasets_are_not_changed() -> None:
    source = make_series()
    before = [d.to_json() for d in source.datasets]
    write_segmentation(some_label(source), source.datasets, NAMES, author="Müller")
    assert [d.to_json() for d in source.datasets] == before


def test_an_empty_label_comes_back_empty() -> None:
    source = make_series()
    label = Volume(np.zeros(source.array.shape, np.uint8), source.affine)
    back = round_trip(source, label)
    assert not back.array.any()
    assert back.shape == label.shape


def test_a_label_without_voxels_keeps_its_segment() -> None:
    source = make_series()
    segmentation = write_segmentation(some_label(source, values=(0, 1)), source.datasets, NAMES)
    segments = read_segments(written(segmentation), source.datasets)
    assert [(s.number, s.name) for s in segments] == [
        (1, "liver"),
        (2, "left kidney"),
        (3, "anterior"),
    ]
    assert segments[0].mask.any()
    assert not segments[1].mask.any()


def test_header_names_patient_study_codes_author_and_algorithm() -> None:
    source = make_series(patient_id="Größe-1")
    segmentation = written(
        write_segmentation(
            some_label(source),
            source.datasets,
            NAMES,
            author="Łukasz Müller",
            algorithm=Algorithm("segmentation", "v0003 4f2a"),
            created=datetime(2024, 2, 29, 10, 11, 12, 345),
        )
    )
    first = source.datasets[0]
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "PatientSex"):
        assert segmentation[keyword].value == first[keyword].value
    assert segmentation.FrameOfReferenceUID == first.FrameOfReferenceUID
    record = describe_segmentation(segmentation)
    assert record.author == "Łukasz Müller"
    assert record.created == "2024-02-29T10:11:12.000345"
    assert record.segments == {1: "liver", 2: "left kidney", 3: "anterior"}
    assert record.automatic == {1, 2, 3}
    assert references_series(segmentation) == (first.SeriesInstanceUID,)
    liver, kidney, private = (
        s.SegmentedPropertyTypeCodeSequence[0] for s in segmentation.SegmentSequence
    )
    assert (liver.CodeValue, liver.CodingSchemeDesignator) == ("10200004", "SCT")
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert (private.CodingSchemeDesignator, private.CodeMeaning) == ("99SEGUNLEARN", "anterior")
    algorithm = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("segmentation", "v0003 4f2a")
    assert segmentation.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    referenced = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {i.ReferencedSOPInstanceUID for i in referenced} == {
        d.SOPInstanceUID for d in source.datasets
    }


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def local(hour: int, minute: int, *, day: int = 25) -> datetime:
    """As ``datetime.now()`` tells a time of UTC in October 2026."""
    moment = datetime(2026, 10, day, hour, minute, tzinfo=UTC)
    return datetime.fromtimestamp(moment.timestamp())


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("study_date", ["20260701", "20261201", ""])
def test_in_the_hour_that_comes_twice_the_later_mask_stays_the_later(study_date: str) -> None:
    source = make_series(shape=(8, 8, 3))
    for ds in source.datasets:
        ds.StudyDate, ds.StudyTime = study_date, study_date and "101500"
    found = []
    for hour, minute in ((23, 50), (24, 50), (25, 10), (26, 5)):
        made = local(hour % 24, minute, day=24 + hour // 24)
        seg = write_segmentation(some_label(source), source.datasets, NAMES, created=made)
        found.append(instant(describe_segmentation(written(seg)).created))
        # the study's own time is no other one by the offset that the SEG tells
        zone = seg.get("TimezoneOffsetFromUTC")
        assert (zone is not None) == (hour in (24, 25))
        own = [iso_date_time(seg.StudyDate, seg.StudyTime, z) for z in (zone, None)]
        assert instant(own[0]) == instant(own[1])
    assert [f[8:16] for f in found] == ["24T23:50", "25T00:50", "25T01:10", "25T02:05"]


@pytest.mark.usefixtures("berlin")
def test_times_are_in_the_time_zone_of_the_image() -> None:
    """The offset that an instance tells is that of all its dates, also of the copied ones."""
    source = make_series()
    for ds in source.datasets:
        ds.TimezoneOffsetFromUTC = "-0500"
    made = datetime(2026, 7, 1, 3, 30)
    seg = written(write_segmentation(some_label(source), source.datasets, NAMES, created=made))
    assert seg.TimezoneOffsetFromUTC == "-0500"
    for kind in ("Content", "Series", "InstanceCreation"):
        assert (seg[f"{kind}Date"].value, seg[f"{kind}Time"].value) == ("20260630", "203000")
    assert describe_segmentation(seg).created == "2026-07-01T01:30:00.000000Z"


@pytest.mark.parametrize(
    "spoil",
    ["FrameOfReferenceUID", "PatientSex", "PatientBirthDate", "StudyID", "PatientName", "odd"],
)
def test_headers_with_holes_still_carry_a_segmentation(spoil: str) -> None:
    source = make_series()
    for ds in source.datasets:
        if spoil == "odd":
            ds.PatientName, ds.PatientSex, ds.SeriesNumber = "single", "", None
        else:
            del ds[spoil]
    label = some_label(source)
    np.testing.assert_array_equal(round_trip(source, label).array, label.array)


# --- what is refused -----------------------------------------------------------------------------


def test_values_without_name() -> None:
    source = make_series()
    with pytest.raises(LabelError, match=r"holds the values \[5\]"):
        write_segmentation(some_label(source), source.datasets, {1: "liver", 2: "spleen"})
    with pytest.raises(LabelError, match="one name"):
        write_segmentation(some_label(source), source.datasets, {1: "a", 2: "A ", 5: "b"})


def test_a_label_on_another_grid() -> None:
    source = make_series()
    label = some_label(source)
    moved = label.affine.copy()
    moved[2, 3] += 0.5
    with pytest.raises(GeometryError, match=r"0\.500 mm beside"):
        write_segmentation(Volume(label.array, moved), source.datasets, NAMES)
    with pytest.raises(GeometryError, match="voxels"):
        write_segmentation(Volume(label.array[:-1], label.affine), source.datasets, NAMES)
    with pytest.raises(LabelError, match="whole numbers"):
        write_segmentation(Volume(label.array * 0.5, label.affine), source.datasets, NAMES)


def test_images_of_a_few_pixels() -> None:
    source = make_series(shape=(2, 3, 2))
    with pytest.raises(UnsupportedSeriesError, match="less than 8 pixels"):
        write_segmentation(some_label(source), source.datasets, NAMES)


@pytest.mark.parametrize("author", ["a\\b", "x" * 70, "a\nb", "a=b"])
def test_an_author_that_no_header_can_hold(author: str) -> None:
    source = make_series()
    with pytest.raises(InvalidInputError, match="author"):
        write_segmentation(some_label(source), source.datasets, NAMES, author=author)


def test_a_segmentation_of_another_series() -> None:
    source, other = make_series(), make_series(seed=2)
    segmentation = write_segmentation(some_label(source), source.datasets, NAMES)
    with pytest.raises(GeometryError, match="another frame of reference"):
        read_segmentation(segmentation, other.datasets)


def test_a_segmentation_between_the_voxels() -> None:
    source = make_series()
    segmentation = write_segmentation(some_label(source), source.datasets, NAMES)
    cases = [(0, 0.4, "beside them"), (1, 0.4, "beside them"), (2, 1.0, "beside them")]
    for axis, shift, words in [*cases, (0, 0.7 * 3, "reaches out"), (2, -2.5, "reaches out")]:
        affine = source.affine.copy()
        affine[axis, 3] += shift
        with pytest.raises(GeometryError, match=words):
            read_segmentation(segmentation, Volume(source.array, affine))


def test_none_of_the_names() -> None:
    source = make_series()
    segmentation = write_segmentation(some_label(source), source.datasets, NAMES)
    with pytest.raises(LabelError, match="holds none of the labels"):
        read_segmentation(segmentation, source.datasets, label_names={1: "spleen"})


def test_only_the_wanted_names_are_read() -> None:
    source = make_series()
    label = some_label(source)
    segmentation = write_segmentation(label, source.datasets, NAMES)
    back, _ = read_segmentation(segmentation, source.datasets, label_names={9: "Anterior"})
    np.testing.assert_array_equal(back.array, np.where(label.array == 5, 9, 0))


# --- other types and other makers ----------------------------------------------------------------


def by_highdicom(source: Source, pixels: npt.NDArray[np.generic], kind: str) -> Segmentation:
    """A SEG straight from highdicom; pixels are ``(X, Y, Z[, segments])``."""
    ordered = sorted(source.datasets, key=lambda d: -int(d.InstanceNumber))
    count = pixels.shape[3] if pixels.ndim == 4 else max(1, int(pixels.max()))
    code = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    return Segmentation(
        source_images=ordered,
        pixel_array=np.ascontiguousarray(np.moveaxis(pixels, (0, 1, 2), (2, 1, 0))),
        segmentation_type=kind,
        segment_descriptions=[
            highdicom.seg.SegmentDescription(n, f"s{n}", code, code, "MANUAL")
            for n in range(1, count + 1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    )


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_segmentations_by_highdicom(kind: str, orientation: str) -> None:
    source = make_series(orientation)
    label = some_label(source, values=(0, 1, 2, 3)).array.astype(np.uint8)
    segmentation = written(by_highdicom(source, label, kind))
    back, names = read_segmentation(segmentation, source.datasets)
    np.testing.assert_array_equal(back.array, label)
    assert names == {1: "s1", 2: "s2", 3: "s3"}


def test_overlapping_segments_are_read_apart_and_refused_together() -> None:
    source = make_series()
    both = np.zeros((*source.array.shape, 2), np.uint8)
    both[1:4, :, 1, 0] = 1
    both[3:6, :, 1, 1] = 1
    segmentation = written(by_highdicom(source, both, "BINARY"))
    one, two = read_segments(segmentation, source.datasets)
    np.testing.assert_array_equal(one.mask, both[..., 0])
    np.testing.assert_array_equal(two.mask, both[..., 1])
    with pytest.raises(LabelError, match=r"'s1' and 's2' overlap in 6 voxels"):
        read_segmentation(segmentation, source.datasets)
    alone, _ = read_segmentation(segmentation, source.datasets, label_names={1: "s2"})
    np.testing.assert_array_equal(alone.array, both[..., 1])


def test_true_fractions_are_refused() -> None:
    source = make_series()
    fractions = np.linspace(0, 1, source.array.size).reshape(*source.array.shape, 1)
    with pytest.raises(UnsupportedSeriesError, match=r"is fractional .*PROBABILITY"):
        read_segmentation(written(by_highdicom(source, fractions, "FRACTIONAL")), source.datasets)


@pytest.mark.parametrize("kept", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL", "RLE"])
def test_a_segmentation_that_was_cut_off_is_refused(kind: str, kept: float) -> None:
    """A copy that has not ended must not become a label with less in it."""
    source = make_series(shape=(9, 7, 5))
    label = some_label(source, values=(0, 1)).array.astype(np.uint8)
    segmentation = written(by_highdicom(source, label, "LABELMAP" if kind == "RLE" else kind))
    if kind == "RLE":
        segmentation.compress(RLELossless, encoding_plugin="pydicom")
    pixels = segmentation.PixelData
    bits = segmentation.BitsAllocated * segmentation.NumberOfFrames * 9 * 7
    whole = len(pixels) if kind == "RLE" else -(-bits // 8)  # without padding
    segmentation["PixelData"].value = pixels[: int(kept * whole)]
    if kept == 1.0:
        np.testing.assert_array_equal(
            read_segmentation(segmentation, source.datasets)[0].array, label
        )
        return
    with pytest.raises(UnsupportedSeriesError, match="decoded" if kind == "RLE" else "was cut off"):
        read_segmentation(segmentation, source.datasets)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_number_of_frames_that_is_not_there_takes_no_memory(kind: str) -> None:
    source = make_series()
    label = some_label(source, values=(0, 1)).array.astype(np.uint8)
    segmentation = written(by_highdicom(source, label, kind))
    segmentation.NumberOfFrames = 2_000_000_000
    with pytest.raises(UnsupportedSeriesError, match="2000000000 frames and"):
        read_segmentation(segmentation, source.datasets)


def test_one_structure_of_many_takes_no_memory_for_the_others() -> None:
    source = make_series(shape=(200, 200, 20))
    stripes = np.repeat(np.arange(1, 41), 5).astype(np.uint8)
    array = np.ascontiguousarray(np.broadcast_to(stripes[:, None, None], source.array.shape))
    names = {n: f"s{n}" for n in range(1, 41)}
    segmentation = written(write_segmentation(Volume(array, source.affine), source.datasets, names))
    grid = Volume(source.array, source.affine)
    list(segmentation.PerFrameFunctionalGroupsSequence)  # pydicom's own share
    tracemalloc.start()
    try:
        label, _ = read_segmentation(segmentation, grid, label_names={1: "s3"})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(label.array, array == 3)
    assert peak < 20 * array.size, "40 masks, and 40 times the image's pixels, need 80"


def test_an_image_is_no_segmentation() -> None:
    source = make_series()
    with pytest.raises(UnsupportedSeriesError, match="no segmentation"):
        read_segmentation(source.datasets[0], source.datasets)


@pytest.fixture
def dcmqi(data_dir: Path) -> Path:
    return data_dir / "dicom" / "ct-ge-3slice-seg" / "segmentations"


def read_nrrd(path: Path) -> npt.NDArray[np.int16]:
    return np.asarray(nrrd.read(str(path))[0])


@pytest.mark.data
def test_dcmqi_liver(dcmqi: Path) -> None:
    source = [dcmread(p) for p in (dcmqi / "ct-3slice").glob("*.dcm")]
    label, names = read_segmentation(dcmread(dcmqi / "liver.dcm"), source)
    np.testing.assert_array_equal(label.array, read_nrrd(dcmqi / "liver_seg.nrrd"))
    assert names == {1: "Liver"}


@pytest.mark.data
def test_dcmqi_partial_overlaps(dcmqi: Path) -> None:
    source = [dcmread(p) for p in (dcmqi / "ct-3slice").glob("*.dcm")]
    segmentation = dcmread(dcmqi / "partial_overlaps.dcm")
    masks = [read_nrrd(dcmqi / f"partial_overlaps-{i}.nrrd") for i in (1, 2, 3)]
    segments = read_segments(segmentation, source)
    assert [s.name for s in segments] == ["GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
    for segment in segments:
        theirs = next(m for m in masks if (m == segment.number).any())
        np.testing.assert_array_equal(segment.mask, theirs == segment.number)
    with pytest.raises(LabelError, match="overlap"):
        read_segmentation(segmentation, source)


@pytest.mark.data
@pytest.mark.parametrize("size", ["23x38x3", "24x38x3"])
@pytest.mark.parametrize("kind", ["image", "multiframe"])
def test_dcmqi_frames_that_do_not_fill_bytes(dcmqi: Path, size: str, kind: str) -> None:
    folder = dcmqi / size
    source = [dcmread(p) for p in (folder / kind).glob("*.dcm")]
    label, _ = read_segmentation(dcmread(folder / "seg" / "label.seg"), source)
    np.testing.assert_array_equal(label.array, read_nrrd(folder / "nrrd" / "label.nrrd"))


@pytest.mark.data
@pytest.mark.parametrize("name", ["ppv5", "noppv"])
def test_dcmqi_label_map_with_left_out_frames(dcmqi: Path, name: str) -> None:
    source = [dcmread(p) for p in (dcmqi / "24x38x3" / "image").glob("*.dcm")]
    label, names = read_segmentation(dcmread(dcmqi / f"sparse-labelmap-{name}.dcm"), source)
    theirs = read_nrrd(dcmqi / f"sparse_labelmap_{name}_seg.nrrd")
    np.testing.assert_array_equal(label.array == 1, theirs == 1)
    assert names == {1: "Liver"}


@pytest.mark.data
@pytest.mark.parametrize("name", ["mr-ge-t1post", "mr-siemens-t1post", "mr-hippocrop-3"])
def test_round_trip_on_real_series(data_dir: Path, name: str) -> None:
    source = [dcmread(p) for p in (data_dir / "dicom" / name).glob("*.dcm")]
    image = volume_from_datasets(source)
    array = np.digitize(image.array, np.quantile(image.array, [0.5, 0.9])).astype(np.uint8)
    label = Volume(array, image.affine)
    segmentation = written(write_segmentation(label, source, {1: "brain", 2: "tumor"}))
    back, _ = read_segmentation(segmentation, source, label_names={1: "brain", 2: "tumor"})
    np.testing.assert_array_equal(back.array, array)
    assert back.same_grid(image)
