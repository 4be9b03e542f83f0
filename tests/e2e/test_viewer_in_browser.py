"""The viewer in a real browser: studies, an image, and the mask of MONAI Label's panel on it."""

import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from chromium import chromium

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]

#: What the browser itself reports when the panel asks whether a training runs, and none does.
EXPECTED_ERROR = "/train/?check_if_running=true"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Six CT studies and one of each other site, as DICOM and as NIfTI with all labels."""
    sys.path.insert(0, str(ROOT / "sample-data"))
    try:
        import generate
    finally:
        sys.path.remove(str(ROOT / "sample-data"))
    folder = tmp_path_factory.mktemp("sample")
    for study in (*generate.STUDIES[:6], generate.STUDIES[11], generate.STUDIES[15]):
        scan = generate.scan(study)
        generate.write_dicom(folder / "dicom", study, scan)
        generate.write_nifti(folder / "nifti", replace(study, labelled=True), scan)
    return folder


@pytest.fixture(scope="module")
def home(sample, tmp_path_factory):
    """A home with a small model, trained for some seconds on the CT studies but the last."""
    import torch

    from segunlearn.cases import cases_from_folder
    from segunlearn.networks import ModelConfig
    from segunlearn.records.versions import VersionRegistry
    from segunlearn.training import TrainSettings, train

    home = tmp_path_factory.mktemp("home")
    cases = [c for c in cases_from_folder(sample / "nifti", modality="CT") if c.series < "P005"]
    config = ModelConfig(
        labels=("liver", "spleen"), spacing=(10.0, 10.0, 10.0), patch_size=(32, 32, 16),
        features=(8, 16, 16, 32, 32, 8),
    )  # fmt: skip
    settings = TrainSettings(
        epochs=16, batch_size=2, samples_per_case=2, learning_rate=8e-3, val_fraction=0.0
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # volumes this small are slower with more
    try:
        result = train(cases, config, settings, run_dir=home / "run")
    finally:
        torch.set_num_threads(threads)
    registry = VersionRegistry(home / "models" / "segmentation")
    registry.publish(result.weights, config.to_json(), parent_sha256=None, run_id="e2e")
    return home


@contextlib.contextmanager
def serving(studies, home, log):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "import sys; from segunlearn.app.server import serve; "
    code += "serve(sys.argv[1], {'home': sys.argv[2]}, port=int(sys.argv[3]))"
    command = [sys.executable, "-c", code, str(studies), str(home), str(port)]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                if process.poll() is not None:
                    pytest.fail("the server ended: " + log.read_text()[-3000:])
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/info/", timeout=20).status_code == 200:
                        break
                time.sleep(0.1)
            else:
                pytest.fail("the server did not answer: " + log.read_text()[-3000:])
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


@pytest.fixture(scope="module")
def server(sample, home, tmp_path_factory):
    with serving(sample / "dicom", home, tmp_path_factory.mktemp("log") / "log.txt") as url:
        yield url


@contextlib.contextmanager
def watched_page(browser, url):
    """A page; at its end nothing may have gone wrong in it, and nothing gone outside."""
    context = browser.new_context(viewport={"width": 1440, "height": 810})
    context.set_default_timeout(120_000)
    page = context.new_page()
    faults, outside, failed = [], [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda m: (
            faults.append(f"{m.text} {m.location['url']}")
            if m.type == "error" and not m.location["url"].endswith(EXPECTED_ERROR)
            else None
        ),
    )
    page.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
    page.on(
        "request",
        lambda r: outside.append(r.url) if not r.url.startswith((url, "blob:", "data:")) else None,
    )
    try:
        yield page
    finally:
        context.close()
    assert outside == []
    assert [u for u in failed if not u.endswith(EXPECTED_ERROR)] == []
    assert faults == []


def uids_of(sample, person):
    path = next((sample / "dicom" / f"SYNTHETIC-{person}").rglob("*.dcm"))
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return ds.StudyInstanceUID, ds.SeriesInstanceUID


def open_panel(page, url, study):
    page.goto(f"{url}/ohif/monai-label?StudyInstanceUIDs={study}")
    page.wait_for_selector("#monailabelServerURL")
    assert page.input_value("#monailabelServerURL") == f"{url}/"
    page.wait_for_function(
        "() => window.cornerstone?.cache.getVolumes().some(v => v.loadStatus?.loaded)"
    )
    page.click(".settingsTable button")
    page.wait_for_selector("button[title='Run Segmentation']")
    page.wait_for_function(
        "() => window.services.segmentationService.getLabelmapVolume('1') !== undefined"
    )


def run_segmentation(page):
    page.click("button[title='Run Segmentation']")
    page.wait_for_function(
        """() => services.segmentationService.getLabelmapVolume('1')
                 .voxelManager.getCompleteScalarDataArray().some(v => v > 0)"""
    )


def labelmap(page):
    """Mask in the browser, ``(i, j, k)``, and its affine to RAS, as the viewer places it."""
    found = page.evaluate(
        """() => {
          const v = services.segmentationService.getLabelmapVolume('1');
          const data = v.voxelManager.getCompleteScalarDataArray();
          let text = '';
          for (let i = 0; i < data.length; i++) text += String.fromCharCode(data[i]);
          return {data: btoa(text), dimensions: Array.from(v.dimensions),
                  spacing: Array.from(v.spacing), origin: Array.from(v.origin),
                  direction: Array.from(v.direction)};
        }"""
    )
    array = np.frombuffer(base64.b64decode(found["data"]), np.uint8)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(found["direction"], (3, 3)).T * found["spacing"]
    affine[:3, 3] = found["origin"]
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return array.reshape(found["dimensions"], order="F"), lps_to_ras @ affine


def on_grid(array, affine, shape, target_affine):
    """Label at the voxel centres of another grid, which must be the same up to flips."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    matrix = np.linalg.inv(affine) @ target_affine
    there = index @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.abs(there - np.rint(there)).max() < 0.02
    i, j, k = np.moveaxis(np.rint(there).astype(int), -1, 0)
    return array[i, j, k]


def server_mask(url, series, tmp_path):
    answer = httpx.post(
        f"{url}/infer/segmentation?image={series}&output=image",
        data={"params": json.dumps({"result_extension": ".nii.gz"})},
        timeout=120,
    )
    assert answer.status_code == 200
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    return nib.load(tmp_path / "mask.nii.gz")


def dice(a, b):
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


def test_study_list_and_its_filter(browser, server):
    with watched_page(browser, server) as page:
        page.goto(f"{server}/ohif/")
        page.wait_for_selector("text=SYNTHETIC, P001")
        assert page.inner_text("[data-cy=num-studies]") == "8"
        page.fill("[data-cy=input-mrn]", "*P003")
        page.wait_for_function(
            "() => document.querySelector('[data-cy=num-studies]').innerText === '2'"
        )
        assert "P001" not in page.inner_text("body")


@pytest.mark.parametrize("person", ["P005", "P010", "P014"])
def test_the_panels_mask_lies_where_the_server_put_it(browser, server, sample, person, tmp_path):
    """CT axial, MR from head to feet, MR coronal and tilted: voxel by voxel in the patient."""
    study, series = uids_of(sample, person)
    with watched_page(browser, server) as page:
        open_panel(page, server, study)
        before = coloured(page)
        run_segmentation(page)
        array, affine = labelmap(page)
        expected = server_mask(server, series, tmp_path)
        here = on_grid(array, affine, expected.shape, expected.affine)
        np.testing.assert_array_equal(here, np.asanyarray(expected.dataobj))
        page.wait_for_timeout(500)
        assert coloured(page) > before + 0.01
        if person == "P005":  # the model knows its site, and never saw this person
            truth = nib.load(sample / "nifti" / "labels" / "P005_1.nii.gz")
            on_truth = on_grid(array, affine, truth.shape, truth.affine)
            labels = np.asanyarray(truth.dataobj)
            assert dice(on_truth == 1, labels == 1) > 0.8
            assert dice(on_truth == 2, labels == 2) > 0.4
            take_picture(page)


def coloured(page):
    """Share of the viewports' pixels that are not grey: the mask."""
    shot = page.locator("[data-cy=viewport-pane]").first.screenshot()
    rgb = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    inner = rgb[60:-40, 30:-40]  # without texts and borders
    return float((np.abs(inner[..., 0] - inner[..., 2]) > 25).mean())


def take_picture(page):
    """Renew ``docs/images/viewer.png`` when ``SEGUNLEARN_PICTURES`` is set."""
    if os.environ.get("SEGUNLEARN_PICTURES"):
        page.click("[data-cy=side-panel-header-left]")
        page.set_viewport_size({"width": 1440, "height": 560})
        page.wait_for_timeout(6000)  # messages fade
        target = ROOT / "docs" / "images" / "viewer.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(target))


def test_a_stored_seg_is_shown(browser, server, sample):
    study, _ = uids_of(sample, "P001")
    with watched_page(browser, server) as page:
        page.goto(f"{server}/ohif/viewer?StudyInstanceUIDs={study}")
        page.wait_for_selector("text=SYNTHETIC reference")
        page.wait_for_timeout(2000)
        page.dblclick("[data-cy=study-browser-thumbnail-no-image]")
        page.wait_for_function(
            "() => window.services.segmentationService.getSegmentations().length > 0"
        )
        labels = page.evaluate(
            """() => Object.values(services.segmentationService.getSegmentations()[0].segments)
                     .map(s => s.label)"""
        )
        assert sorted(labels) == ["liver", "spleen"]


@pytest.mark.pacs
def test_studies_of_a_pacs_through_the_proxy(browser, orthanc, sample, home, tmp_path):
    study, _ = uids_of(sample, "P005")
    with httpx.Client(timeout=30) as client:
        for path in (sample / "dicom" / "SYNTHETIC-P005").rglob("*.dcm"):
            client.post(f"{orthanc.rest}/instances", content=path.read_bytes()).raise_for_status()
    own = tmp_path / "home"  # two servers on one home are refused
    shutil.copytree(home / "models", own / "models")
    with (
        serving(orthanc.url, own, tmp_path / "log.txt") as url,
        watched_page(browser, url) as page,
    ):
        page.goto(f"{url}/ohif/")
        page.wait_for_selector("text=SYNTHETIC, P005")
        assert page.inner_text("[data-cy=num-studies]") == "1"
        page.fill("[data-cy=input-mrn]", "nobody")  # the filter reaches the PACS
        page.wait_for_selector("text=SYNTHETIC, P005", state="detached")
        open_panel(page, url, study)
        run_segmentation(page)
        array, affine = labelmap(page)
        truth = nib.load(sample / "nifti" / "labels" / "P005_1.nii.gz")
        on_truth = on_grid(array, affine, truth.shape, truth.affine)
        assert dice(on_truth == 1, np.asanyarray(truth.dataobj) == 1) > 0.8
