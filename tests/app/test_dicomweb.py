"""The embedded DICOMweb service, asked by dicomweb-client as an independent client."""

import io
import shutil
import sys
import time
import tracemalloc
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from fastapi import FastAPI
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from live_server import live_server
from segunlearn.app import dicomweb
from segunlearn.app.dicomweb import store
from segunlearn.app.dicomweb.common import current_client
from segunlearn.app.dicomweb.frames import native_frames, read_header
from segunlearn.app.dicomweb.media import parse_media, split_quoted
from segunlearn.app.dicomweb.rendered import apply_window, render
from segunlearn.dicom.folder import FolderClient

SAMPLE = Path(__file__).parents[2] / "sample-data"
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"

# Some of pydicom's files hold UIDs and numbers that the standard does not allow.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")

#: pydicom's own files: every transfer syntax, colour, several frames, one-bit pixels.
FILES = (
    "CT_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle_2frame.dcm", "SC_rgb_small_odd.dcm", "SC_ybr_full_422_uncompressed.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm", "image_dfl.dcm", "rtdose.dcm", "rtdose_rle.dcm",
    "rtdose_expb.dcm", "liver_1frame.dcm", "examples_palette.dcm", "test-SR.dcm", "rtplan.dcm",
)  # fmt: skip


def write_sample(folder):
    sys.path.insert(0, str(SAMPLE))
    try:
        import generate
    finally:
        sys.path.remove(str(SAMPLE))
    for study in (generate.STUDIES[0], generate.STUDIES[6], generate.STUDIES[12]):
        generate.write_dicom(folder, study, generate.scan(study))


def write_pydicom_files(folder):
    """Copy pydicom's files, each as a study of its own; their pixels stay as they are."""
    for name in FILES:
        ds = pydicom.dcmread(get_testdata_file(name, download=False))
        ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyDescription = name
        ds.save_as(folder / name)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    write_sample(folder)
    write_pydicom_files(folder)
    return folder


@pytest.fixture(scope="module")
def service(studies, tmp_path_factory):
    client = FolderClient(studies, index_dir=tmp_path_factory.mktemp("index"))
    app = FastAPI()
    for router in dicomweb.routers():
        app.include_router(router)
    app.dependency_overrides[current_client] = lambda: client
    with live_server(app) as url:
        yield f"{url}/dicomweb"


@pytest.fixture(scope="module")
def web(service):
    return DICOMwebClient(service)


@pytest.fixture(scope="module")
def http(service):
    with httpx.Client(base_url=service, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def originals(studies):
    found = [pydicom.dcmread(p) for p in studies.rglob("*.dcm")]
    return {ds.SOPInstanceUID: ds for ds in found}


def value(result, tag):
    return result[tag]["Value"][0]


def uids(ds):
    return ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID


def named(originals, name):
    return next(ds for ds in originals.values() if ds.get("StudyDescription") == name)


def path_of(ds):
    study, series, instance = uids(ds)
    return f"/studies/{study}/series/{series}/instances/{instance}"


# --- QIDO-RS --------------------------------------------------------------------------------------


def test_all_studies_are_found(web, originals):
    found = web.search_for_studies()
    assert {value(r, STUDY) for r in found} == {d.StudyInstanceUID for d in originals.values()}


@pytest.mark.parametrize(
    ("filters", "patients"),
    [
        ({"PatientID": "SYNTHETIC-P001"}, {"P001"}),
        ({"PatientName": "SYNTHETIC^P00*"}, {"P001", "P006"}),
        ({"PatientName": "SYNTHETIC^P0?1"}, {"P001", "P011"}),
        ({"00100020": "SYNTHETIC-*", "ModalitiesInStudy": "CT"}, {"P001"}),
        ({"PatientID": "SYNTHETIC-*", "StudyDate": "20240116-20240117"}, {"P006"}),
        ({"PatientID": "SYNTHETIC-*", "StudyDate": "20240119-"}, {"P011"}),
        ({"PatientID": "nobody"}, set()),
    ],
)
def test_filters(web, filters, patients):
    found = web.search_for_studies(search_filters=filters)
    assert {value(r, "00100020")[-4:] for r in found} == patients


def test_filter_by_a_list_of_uids(web, originals):
    chosen = sorted({d.StudyInstanceUID for d in originals.values()})[:3]
    found = web.search_for_studies(search_filters={"StudyInstanceUID": ",".join(chosen)})
    assert sorted(value(r, STUDY) for r in found) == chosen


def test_pages_cover_everything_once(web):
    everything = [value(r, STUDY) for r in web.search_for_studies()]
    pages = [
        value(r, STUDY)
        for offset in range(0, len(everything) + 4, 4)
        for r in web.search_for_studies(limit=4, offset=offset)
    ]
    assert pages == everything


def test_a_long_answer_is_cut_and_says_so(http, monkeypatch):
    monkeypatch.setattr("segunlearn.app.dicomweb.search.LARGEST_ANSWER", 5)
    cut = http.get("/studies")
    assert len(cut.json()) == 5
    assert cut.headers["warning"].startswith("299 ")
    assert "warning" not in http.get("/studies?limit=4").headers
    assert len(http.get("/studies?limit=4").json()) == 4
    assert "warning" not in http.get("/studies?PatientID=SYNTHETIC-P001").headers
    assert http.get("/studies?limit=0").status_code == 204


def test_fuzzy_matching_finds_a_part_of_a_name(web):
    assert web.search_for_studies(search_filters={"PatientName": "P011"}) == []
    fuzzy = web.search_for_studies(search_filters={"PatientName": "P011"}, fuzzymatching=True)
    assert [value(r, "00100020") for r in fuzzy] == ["SYNTHETIC-P011"]


def test_series_and_instances_of_every_level(web, originals):
    study = next(d for d in originals.values() if d.PatientID == "SYNTHETIC-P001")
    series = web.search_for_series(study.StudyInstanceUID)
    assert sorted(value(r, "00080060") for r in series) == ["CT", "SEG"]
    ct = next(r for r in series if value(r, "00080060") == "CT")
    assert value(ct, "00201209") == 40
    assert value(ct, "0008103E") == "SYNTHETIC CT abdomen portal venous"
    slices = web.search_for_instances(study.StudyInstanceUID, value(ct, SERIES))
    assert [value(r, "00200013") for r in slices] == list(range(1, 41))
    assert len(web.search_for_instances(study.StudyInstanceUID)) == 41
    assert len(web.search_for_instances()) == len(originals)
    assert len(web.search_for_series()) == len({d.SeriesInstanceUID for d in originals.values()})


@pytest.mark.parametrize(
    "query",
    [
        "includefield=SliceThickness&includefield=00180087",
        "includefield=SliceThickness,00180087",
        "includefield=00180050%2CMagneticFieldStrength&includefield=all",
    ],
)
def test_fields_outside_the_index_are_added(http, query):
    (series,) = http.get(f"/series?PatientID=SYNTHETIC-P006&Modality=MR&{query}").json()
    assert value(series, "00180050") == 5.5
    assert value(series, "00180087") == 1.5
    plain = http.get("/series?PatientID=SYNTHETIC-P006&Modality=MR").json()[0]
    assert "00180050" not in plain


def test_retrieve_urls_lead_to_the_object(http):
    for result in http.get("/instances?PatientID=SYNTHETIC-P006&limit=2").json():
        answer = httpx.get(value(result, "00081190"), timeout=60)
        assert answer.status_code == 200
        assert value(result, INSTANCE).encode() in answer.content


def test_no_match_is_204(http):
    assert http.get("/studies?PatientID=nobody").status_code == 204


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/studies?limit=-1", 400),
        ("/studies?limit=ten", 400),
        ("/studies?offset=1e3", 400),
        ("/studies?NoSuchKeyword=1", 400),
        ("/studies?PatientID=a&PatientID=b", 400),
        ("/studies/1.2.3", 404),
        ("/studies/1.2.3/metadata", 404),
        ("/studies/1.2.3/series/4.5", 404),
        ("/studies/1.2.3/series/4.5/thumbnail", 404),
        ("/studies/1.2.3/series/4.5/instances/6.7/frames/1", 404),
        ("/studies/..%2F..%2Fetc", 404),
        ("/studies/not-a-uid", 400),
        ("/studies/1.2.3/series/' OR 1=1", 400),
        ("/studies/1.2.3/series/1.2/instances/6.7.x/metadata", 400),
    ],
)
def test_wrong_requests_are_answered_with_a_sentence(http, path, status):
    answer = http.get(path)
    assert answer.status_code == status
    assert len(answer.json()["detail"]) > 5


def test_xml_is_not_offered(http):
    answer = http.get("/studies", headers={"Accept": "application/dicom+xml"})
    assert answer.status_code == 406
    assert "application/dicom+json" in answer.json()["detail"]


# --- WADO-RS --------------------------------------------------------------------------------------


def test_instances_come_as_they_are_stored(http, studies, originals):
    """Asked for any transfer syntax, every file comes byte for byte."""
    for path in studies.rglob("*.dcm"):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        body = http.get(path_of(ds), headers={"Accept": accept}).content
        head, _, rest = body.partition(b"\r\n\r\n")
        assert rest[: rest.rindex(b"\r\n--")] == path.read_bytes(), path.name
        assert f"transfer-syntax={ds.file_meta.TransferSyntaxUID}".encode() in head
        alone = http.get(path_of(ds), headers={"Accept": "application/dicom; transfer-syntax=*"})
        assert alone.content == path.read_bytes()


def test_instances_are_decompressed_for_who_names_no_transfer_syntax(web, originals):
    for ds in originals.values():
        got = web.retrieve_instance(*uids(ds), media_types=("application/dicom",))
        assert got.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert got.PatientID == ds.PatientID
        if "PixelData" in ds:
            np.testing.assert_array_equal(pixels(got), pixels(ds))


def pixels(ds):
    """RGB or grey, from whatever is stored."""
    return pixel_array(ds)


def test_series_and_study_come_whole(web, originals):
    study = next(d for d in originals.values() if d.PatientID == "SYNTHETIC-P011")
    same_study = [d for d in originals.values() if d.StudyInstanceUID == study.StudyInstanceUID]
    got = {d.SOPInstanceUID: d for d in web.retrieve_study(study.StudyInstanceUID)}
    assert got.keys() == {d.SOPInstanceUID for d in same_study}
    for ds in same_study:
        assert got[ds.SOPInstanceUID].PixelData == ds.PixelData
    mr = next(d for d in same_study if d.Modality == "MR")
    assert len(web.retrieve_series(mr.StudyInstanceUID, mr.SeriesInstanceUID)) == 40


def test_a_transfer_syntax_that_is_not_stored_is_406(http, originals):
    ds = named(originals, "CT_small.dcm")
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.90'
    assert http.get(path_of(ds), headers={"Accept": accept}).status_code == 406
    assert http.get(path_of(ds), headers={"Accept": "text/html"}).status_code == 406


def test_metadata_hold_the_header_and_no_pixels(web, originals):
    for ds in originals.values():
        got = pydicom.Dataset.from_json(web.retrieve_instance_metadata(*uids(ds)), lambda *_: b"")
        assert "PixelData" not in got
        for keyword in ("SOPInstanceUID", "Rows", "PatientName", "ImagePositionPatient"):
            assert got.get(keyword) == ds.get(keyword), keyword
    study = next(d for d in originals.values() if d.PatientID == "SYNTHETIC-P001")
    assert len(web.retrieve_study_metadata(study.StudyInstanceUID)) == 41
    seg = next(d for d in originals.values() if d.Modality == "SEG" and "NumberOfFrames" in d)
    (header,) = web.retrieve_series_metadata(seg.StudyInstanceUID, seg.SeriesInstanceUID)
    assert len(header["52009230"]["Value"]) == seg.NumberOfFrames


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_values_that_the_standard_forbids_are_in_the_metadata(tmp_path):
    """Viewers place images by positions that many programs write with too many characters."""
    from segunlearn.app.dicomweb.frames import header_json

    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    for keyword, text in (
        ("ImagePositionPatient", "-158.1357421875000001\\-179.0357421875000001\\-75.6999969482"),
        ("AccessionNumber", "RIS-2024-0000123456789"),
        ("SOPInstanceUID", "1.2.03.4"),
    ):
        tag = pydicom.tag.Tag(keyword)
        ds[tag] = RawDataElement(tag, ds[tag].VR, len(text), text.encode(), 0, False, True)
    ds.save_as(tmp_path / "long.dcm")
    model = header_json(tmp_path / "long.dcm", "http://x/bulkdata")
    assert value(model, "00200032") == pytest.approx(-158.1357421875)
    assert value(model, "00080050") == "RIS-2024-0000123456789"
    assert value(model, INSTANCE) == "1.2.03.4"


def test_large_values_are_served_one_by_one(web, http, originals):
    ds = named(originals, "examples_palette.dcm")
    header = web.retrieve_instance_metadata(*uids(ds))
    links = {t: e["BulkDataURI"] for t, e in header.items() if "BulkDataURI" in e}
    assert not links or all(u.startswith("http://127.0.0.1") for u in links.values())
    for tag, link in links.items():
        (data,) = web.retrieve_bulkdata(link)
        assert data == ds[tag].value
    missing = http.get(f"{path_of(ds)}/bulkdata/{'0' * 32}")
    assert missing.status_code == 404


def test_a_large_private_value_is_linked_even_in_a_sequence(tmp_path):
    from segunlearn.app.dicomweb.frames import bulk_value, header_json

    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    item, blob = pydicom.Dataset(), bytes(range(256)) * 64
    item.add_new(0x00091010, "OB", blob)
    ds.ReferencedImageSequence = [item]
    ds.save_as(tmp_path / "big.dcm")
    model = header_json(tmp_path / "big.dcm", "http://x/bulkdata")
    link = model["00081140"]["Value"][0]["00091010"]["BulkDataURI"]
    assert bulk_value(tmp_path / "big.dcm", link.rpartition("/")[2]) == blob


def test_frames_are_the_pixels(web, originals):
    """Decoded frames of every transfer syntax, against pydicom's decoder."""
    seen = set()
    for ds in originals.values():
        if "PixelData" not in ds or ds.Modality == "SEG":
            continue
        count = int(ds.get("NumberOfFrames") or 1)
        got = web.retrieve_instance_frames(
            *uids(ds), frame_numbers=list(range(1, count + 1)),
            media_types=("application/octet-stream",),
        )  # fmt: skip
        array = pixel_array(ds, raw=True)
        frames = array if count > 1 else array[np.newaxis]
        assert len(got) == count
        for data, frame in zip(got, frames, strict=True):
            if ds.BitsAllocated == 1:
                frame = np.packbits(frame, axis=None, bitorder="little")
            elif ds.get("PhotometricInterpretation") == "YBR_FULL_422" and not (
                ds.file_meta.TransferSyntaxUID.is_encapsulated
            ):
                assert data == ds.PixelData[: ds.Rows * ds.Columns * 2]
                continue
            elif ds.get("PlanarConfiguration") == 1 and not (
                ds.file_meta.TransferSyntaxUID.is_encapsulated
            ):
                frame = frame.transpose(2, 0, 1)
            assert data == frame.astype(frame.dtype.newbyteorder("<")).tobytes(), uids(ds)
        seen.add(ds.file_meta.TransferSyntaxUID)
    assert len(seen) >= 9


def test_frames_of_a_seg_are_cut_at_the_bit(web, originals):
    seg = next(d for d in originals.values() if d.Modality == "SEG" and "NumberOfFrames" in d)
    numbers = [1, 2, int(seg.NumberOfFrames)]
    got = web.retrieve_instance_frames(*uids(seg), frame_numbers=numbers)
    for data, number in zip(got, numbers, strict=True):
        frame = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        expected = seg.pixel_array[number - 1]
        np.testing.assert_array_equal(frame[: expected.size].reshape(expected.shape), expected)


def test_frames_that_do_not_begin_at_a_byte(tmp_path):
    from segunlearn.app.dicomweb.frames import stored_frames

    ds = pydicom.dcmread(get_testdata_file("liver_1frame.dcm", download=False))
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 2, (4, 3, 5), dtype=np.uint8)
    ds.Rows, ds.Columns, ds.NumberOfFrames = 3, 5, 4
    packed = np.packbits(frames, axis=None, bitorder="little").tobytes()
    ds.PixelData = packed + b"\0" * (len(packed) % 2)
    ds.save_as(tmp_path / "odd.dcm")
    for data, frame in zip(stored_frames(tmp_path / "odd.dcm", [1, 2, 3, 4]), frames, strict=True):
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:15]
        np.testing.assert_array_equal(bits.reshape(3, 5), frame)


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_holds_few_frames_at_a_time(tmp_path, compressed):
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    ds.Rows, ds.Columns, ds.NumberOfFrames = 256, 256, 40
    ds.PixelData = bytes(40 * 2 * 256 * 256)
    if compressed:
        ds.compress(RLELossless)
    ds.save_as(tmp_path / "many.dcm")
    header = read_header(tmp_path / "many.dcm")
    tracemalloc.start()
    try:
        sizes = [len(f) for f in native_frames(tmp_path / "many.dcm", header, range(1, 41))]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sizes == [2 * 256 * 256] * 40
    assert peak < 10 * sizes[0]


@pytest.mark.parametrize(
    ("accept", "syntax"),
    [
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", "stored"),
        ('multipart/related; type="image/jp2"', "stored"),
        ('multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90', "stored"),
        ('multipart/related; type="image/*"; transfer-syntax=*', "stored"),
        ('multipart/related; type="application/octet-stream"', "native"),
        ("*/*", "native"),
        (None, "native"),
        (
            'multipart/related; type="image/jls";q=0.9, '
            'multipart/related; type="application/octet-stream";q=0.1',
            "native",
        ),
        ("application/octet-stream", "native"),
    ],
)
def test_compressed_frames_go_to_who_takes_them(http, originals, accept, syntax):
    ds = named(originals, "MR_small_jp2klossless.dcm")
    headers = {"Accept": accept} if accept else {}
    answer = http.get(f"{path_of(ds)}/frames/1", headers=headers)
    assert answer.status_code == 200
    native = ds.pixel_array.astype("<i2").tobytes()
    stored = next(iter(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)))
    expected, uid = (native, "1.2.1") if syntax == "native" else (stored, "1.2.4.90")
    if accept == "application/octet-stream":
        assert answer.content == expected
    else:
        head, _, rest = answer.content.partition(b"\r\n\r\n")
        assert rest[: rest.rindex(b"\r\n--")] == expected
        assert f"transfer-syntax=1.2.840.10008.{uid}\r\n".encode() in head


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/frames/0", 404),
        ("/frames/2", 404),
        ("/frames/x", 400),
        ("/frames/1,,2", 400),
        ("/frames/1,1", 400),
        ("/frames/1,01", 400),
    ],
)
def test_wrong_frames(http, originals, path, status):
    ds = named(originals, "CT_small.dcm")
    assert http.get(path_of(ds) + path).status_code == status


def test_a_report_has_no_frames_and_no_picture(http, originals):
    ds = named(originals, "test-SR.dcm")
    assert http.get(f"{path_of(ds)}/frames/1").status_code == 404
    assert http.get(f"{path_of(ds)}/rendered").status_code == 406


def test_a_damaged_file_is_a_sentence(http, studies, originals):
    source = get_testdata_file("MR_truncated.dcm", download=False)
    shutil.copy(source, studies / "truncated")
    ds = pydicom.dcmread(source, stop_before_pixels=True)
    answer = http.get(f"{path_of(ds)}/frames/1")
    for _ in range(70):  # the index looks at the folder again after some seconds
        if answer.status_code != 404:
            break
        time.sleep(0.1)
        http.get("/studies")
        answer = http.get(f"{path_of(ds)}/frames/1")
    (studies / "truncated").unlink()
    assert answer.status_code == 422
    assert "cannot be read" in answer.json()["detail"]


# --- rendered -------------------------------------------------------------------------------------


def test_rendered_png_is_the_window_of_the_header(http, originals):
    ds = next(
        d for d in originals.values() if d.PatientID == "SYNTHETIC-P001" and d.Modality == "CT"
    )
    answer = http.get(f"{path_of(ds)}/rendered", headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    got = np.asarray(Image.open(io.BytesIO(answer.content)), float)
    hounsfield = apply_modality_lut(ds.pixel_array, ds)
    expected = pydicom.pixels.apply_windowing(hounsfield, ds)
    expected = (expected - expected.min()) / np.ptp(expected) * 255
    assert np.abs(got - expected).max() <= 1.0


def test_window_functions_against_the_standard():
    """PS3.3 C.11.2.1.2.1: x <= c - 0.5 - (w-1)/2 is black, x > c - 0.5 + (w-1)/2 is white."""
    grey = apply_window(np.array([-49.5, 50.0, 149.5]), 50.5, 200.0)
    np.testing.assert_allclose(grey, [0.0, 0.5, 1.0], atol=1e-2)
    exact = apply_window(np.array([-50.0, 50.0, 150.0]), 50.0, 200.0, "LINEAR_EXACT")
    np.testing.assert_allclose(exact, [0.0, 0.5, 1.0])
    assert apply_window(np.array([50.0]), 50.0, 200.0, "SIGMOID") == pytest.approx(0.5)


@pytest.mark.parametrize("centre", ["\\40", "\\", "", "wide"])
def test_a_window_without_numbers_is_none(tmp_path, centre):
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    for keyword, text in (("WindowCenter", centre), ("WindowWidth", "400\\80")):
        tag = pydicom.tag.Tag(keyword)
        data = text.encode() + b" " * (len(text) % 2)
        ds[tag] = RawDataElement(tag, "DS", len(data), data, 0, False, True)
    ds.save_as(tmp_path / "window.dcm")
    header = read_header(tmp_path / "window.dcm")
    picture = render(tmp_path / "window.dcm", header, 1)
    assert picture.min() == 0
    assert picture.max() == 255


def test_pictures_of_everything_with_pixels(http, originals):
    for ds in originals.values():
        if "PixelData" in ds and not ds.PatientID.startswith("SYNTHETIC"):
            for kind in ("rendered", "thumbnail"):
                answer = http.get(f"{path_of(ds)}/{kind}")
                assert answer.status_code == 200, (ds.StudyDescription, answer.text)
                picture = Image.open(io.BytesIO(answer.content))
                assert picture.format == "JPEG"
                if kind == "thumbnail":
                    assert max(picture.size) == 128
                else:
                    assert picture.size == (ds.Columns, ds.Rows)


def test_options_of_a_picture(http, originals):
    ds = named(originals, "CT_small.dcm")

    def picture(query):
        answer = http.get(f"{path_of(ds)}/frames/1/rendered?accept=image/png&{query}")
        return answer.status_code, answer

    status, answer = picture("viewport=64,32&window=1000,500,linear")
    assert status == 200
    assert Image.open(io.BytesIO(answer.content)).size == (32, 32)
    for wrong in ("window=a,b", "window=1", "window=1,-4", "viewport=0,1", "viewport=9999,9999"):
        assert picture(wrong)[0] == 400, wrong
    refused = http.get(f"{path_of(ds)}/rendered", headers={"Accept": "image/gif"})
    assert refused.status_code == 406


def test_thumbnail_of_a_study_shows_an_image_and_not_the_seg(http, originals):
    ds = next(d for d in originals.values() if d.PatientID == "SYNTHETIC-P006")
    answer = http.get(f"/studies/{ds.StudyInstanceUID}/thumbnail?accept=image/png")
    grey = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert len(np.unique(grey)) > 50


# --- STOW-RS --------------------------------------------------------------------------------------


def new_instance(**changes):
    ds = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    ds.PatientID = "SYNTHETIC-STOW"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, changed in changes.items():
        setattr(ds, keyword, changed)
    return ds


def message(*contents, boundary="cut"):
    body = b""
    for content in contents:
        if not isinstance(content, bytes):
            buffer = io.BytesIO()
            content.save_as(buffer)
            content = buffer.getvalue()
        body += f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


HEADERS = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=cut'}


def test_what_was_stored_is_found_at_once_and_equal(web, studies):
    ds = new_instance()
    answer = web.store_instances([ds])
    (item,) = answer.ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == ds.SOPInstanceUID
    assert item.RetrieveURL.endswith(path_of(ds))
    (found,) = web.search_for_instances(search_filters={"SOPInstanceUID": ds.SOPInstanceUID})
    assert value(found, STUDY) == ds.StudyInstanceUID
    got = web.retrieve_instance(*uids(ds))
    assert got.PixelData == ds.PixelData
    written = [p for p in studies.rglob(f"{ds.SOPInstanceUID}.dcm")]
    assert len(written) == 1
    assert written[0].is_relative_to(studies / "segunlearn-results")


def test_the_same_instance_twice_is_one_and_a_changed_one_is_refused(http, web):
    ds = new_instance()
    web.store_instances([ds])
    again = http.post("/studies", content=message(ds), headers=HEADERS)
    assert again.status_code == 200
    ds.PatientComments = "changed"
    changed = http.post("/studies", content=message(ds), headers=HEADERS)
    assert changed.status_code == 409
    (failure,) = pydicom.Dataset.from_json(changed.json()).FailedSOPSequence
    assert failure.FailureReason == 0x0111
    assert failure.ReferencedSOPInstanceUID == ds.SOPInstanceUID
    assert "PatientComments" not in web.retrieve_instance(*uids(ds))


def test_some_fail_and_others_are_stored(http, web):
    good, stray = new_instance(), new_instance()
    path = f"/studies/{good.StudyInstanceUID}"
    answer = http.post(path, content=message(good, stray, b"no DICOM"), headers=HEADERS)
    assert answer.status_code == 202
    body = pydicom.Dataset.from_json(answer.json())
    assert [i.ReferencedSOPInstanceUID for i in body.ReferencedSOPSequence] == [good.SOPInstanceUID]
    assert [i.FailureReason for i in body.FailedSOPSequence] == [0xA900]
    assert [i.FailureReason for i in body.OtherFailuresSequence] == [0xC000]
    with pytest.raises(requests.HTTPError, match="404"):
        web.retrieve_instance(*uids(stray))


def test_paths_in_uids_are_refused(http, studies):
    bad = new_instance()
    bad.add(pydicom.DataElement(0x0020000E, "UI", "../../escape", validation_mode=0))
    answer = http.post("/studies", content=message(bad), headers=HEADERS)
    assert answer.status_code == 409
    assert not list(studies.parent.rglob("escape*"))


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", HEADERS["Content-Type"], 400),
        (b"--cut\r\nContent-Type: application/dicom\r\n\r\nDICM", HEADERS["Content-Type"], 400),
        (b"no boundary at all", HEADERS["Content-Type"], 400),
        (b"--cut--\r\n", 'multipart/related; type="application/dicom"', 400),
        (b"{}", "application/json", 415),
        (b"{}", 'multipart/related; type="application/dicom+json"; boundary=cut', 415),
        (message(b"no DICOM"), HEADERS["Content-Type"], 409),
    ],
)
def test_messages_that_are_no_stow(http, content, kind, status):
    answer = http.post("/studies", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status


def test_a_message_of_endless_parts_is_refused(http, monkeypatch):
    """A part of seven bytes costs kilobytes of memory."""
    monkeypatch.setattr(store, "MOST_PARTS", 3)
    empty = b"--cut\r\n\r\n\r\n"
    answer = http.post("/studies", content=empty * 4 + b"--cut--\r\n", headers=HEADERS)
    assert answer.status_code == 413
    assert "3 instances" in answer.json()["detail"]
    answer = http.post("/studies", content=empty * 3 + b"--cut--\r\n", headers=HEADERS)
    assert answer.status_code == 409  # each is told as what it is
    assert len(pydicom.Dataset.from_json(answer.json()).OtherFailuresSequence) == 3


def test_small_parts_wait_on_the_disk_together(monkeypatch):
    monkeypatch.setattr(store, "_IN_MEMORY", 1 << 20)
    content = message(*[bytes([n]) * 10_000 for n in range(200)])
    opened = len(list(Path("/proc/self/fd").iterdir()))
    parts = store.PartFiles(HEADERS["Content-Type"])
    tracemalloc.start()
    try:
        for start in range(0, len(content), 5000):
            parts.write(content[start : start + 5000])
        parts.finish()
        assert tracemalloc.get_traced_memory()[0] < 1.3 * (1 << 20)
    finally:
        tracemalloc.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened + 1
    for number, part in enumerate(parts):
        assert part.read() == bytes([number]) * 10_000
        part.seek(-10, io.SEEK_END)
        assert (part.tell(), part.read(20)) == (9990, bytes([number]) * 10)
    parts.close()


def test_nothing_is_changed_or_deleted_over_http(http, originals):
    ds = named(originals, "CT_small.dcm")
    for method in ("PUT", "DELETE", "PATCH"):
        assert http.request(method, path_of(ds)).status_code == 405


# --- media types ----------------------------------------------------------------------------------


def test_quotes_protect_separators():
    assert split_quoted('a, b; type="x,y", c', ",") == ["a", 'b; type="x,y"', "c"]
    assert parse_media('multipart/related;type="a/b" ; Q=0.5') == (
        "multipart/related",
        {"type": "a/b", "q": "0.5"},
    )
