"""A real server under bad input, load and kill -9."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from app_sources import (
    LABELS,
    TINY,
    Server,
    Study,
    info_of,
    make_study,
    publish_tiny,
    running_server,
    wait_until,
    write_dicom,
)
from segunlearn.networks import ModelConfig
from segunlearn.records.versions import VersionRegistry
from segunlearn.volumes import Volume, read_volume, write_volume

pytestmark = pytest.mark.slow


@dataclass
class Place:
    """A server on a folder of DICOM files."""

    server: Server
    home: Path
    folder: Path
    studies: list[Study]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("server")
    studies = [make_study(n) for n in range(3)]
    write_dicom(root / "studies", studies)
    publish_tiny(root / "home")
    with running_server(str(root / "studies"), root / "home") as server:
        yield Place(server, root / "home", root / "studies", studies)


BAD_INPUT: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/infer/nobody?image={id}", {}),
    ("POST", "/infer/segmentation?image=1.2.3", {}),
    ("POST", "/infer/segmentation?image=../../etc/passwd", {}),
    ("POST", "/infer/segmentation?image=/etc/passwd", {}),
    ("POST", "/infer/segmentation", {}),
    ("POST", "/infer/segmentation?image={id}", {"data": {"params": "{bad"}}),
    ("POST", "/infer/segmentation?image={id}", {"data": {"params": "[1]"}}),
    ("POST", "/infer/segmentation?image={id}", {"data": {"params": '"x"'}}),
    ("POST", "/infer/segmentation?image={id}", {"data": {"params": '{"result_extension":"/x"}'}}),
    ("POST", "/infer/segmentation?image={id}", {"data": {"params": '{"result_dtype":"object"}'}}),
    (
        "POST",
        "/infer/segmentation?image={id}",
        {"data": {"params": '{"save_label":true,"label_tag":"../../x"}'}},
    ),
    (
        "POST",
        "/infer/segmentation?image={id}",
        {"data": {"params": '{"save_label":true,"label_tag":"final"}'}},
    ),
    ("POST", "/infer/segmentation?image={id}&output=png", {}),
    ("POST", "/infer/segmentation?session_id=../..", {}),
    ("POST", "/infer/segmentation", {"files": {"file": ("x.nii.gz", b"no volume")}}),
    ("POST", "/infer/segmentation", {"files": {"file": ("../../x.py", b"import os")}}),
    ("POST", "/infer/wsi_v2/segmentation?image={id}", {}),
    ("POST", "/activelearning/nobody", {"json": {}}),
    ("POST", "/activelearning/random", {"json": {"label_tag": "../x"}}),
    ("POST", "/activelearning/random", {"json": [1]}),
    ("POST", "/activelearning/uncertainty", {"json": {"method": "guess"}}),
    ("POST", "/activelearning/uncertainty", {"json": {"candidates": "many"}}),
    ("POST", "/train/nobody", {"json": {}}),
    ("POST", "/train/segmentation", {"json": {"max_epochs": "many"}}),
    ("POST", "/train/segmentation", {"json": {"train_ds": "/etc"}}),
    ("POST", "/train/segmentation", {"data": "{bad"}),
    ("POST", "/train/", {"json": {"segmentation": {"max_epochs": 1}, "unlearn": {"x": 1}}}),
    ("POST", "/train/", {"json": {"segmentation": {"val_ds": "/etc"}}}),
    ("POST", "/scoring/nobody", {"json": {}}),
    ("POST", "/scoring/dice", {"json": {"y": "../x"}}),
    ("POST", "/batch/infer/nobody", {"json": {}}),
    ("POST", "/batch/infer/segmentation", {"json": {"images": ["1.2.3"]}}),
    ("POST", "/batch/infer/segmentation?images=some", {}),
    ("GET", "/datastore/image?image=../x", {}),
    ("GET", "/datastore/image?image=1.2.3", {}),
    ("GET", "/datastore/image/info?image=1.2.3", {}),
    ("PUT", "/datastore/image/info?image={id}", {"data": {"info": "[]"}}),
    ("PUT", "/datastore/image?image=../x", {"files": {"file": ("x.py", b"1")}}),
    ("PUT", "/datastore/image?image=x", {"files": {"file": ("x.nii.gz", b"1")}}),
    ("PUT", "/datastore/label?image={id}&tag=../../x", {"files": {"label": ("x.nii.gz", b"1")}}),
    ("PUT", "/datastore/label?image={id}", {"files": {"label": ("x.nii.gz", b"1")}}),
    ("PUT", "/datastore/label?image=1.2.3", {"files": {"label": ("x.nii.gz", b"1")}}),
    ("PUT", "/datastore/label?image={id}", {}),
    ("GET", "/datastore/label?label={id}&tag=final", {}),
    ("GET", "/datastore/label?label={id}&tag=..", {}),
    ("DELETE", "/datastore/label?id={id}&tag=final", {}),
    ("DELETE", "/datastore/image?id={id}", {}),
    ("GET", "/datastore/?output=everything", {}),
    ("GET", "/datastore/dataset", {}),
    ("PUT", "/session/", {"files": {"files": ("x.tar", b"1")}, "params": {"uncompress": "true"}}),
    ("GET", "/session/..", {}),
    ("GET", "/session/not-a-session", {}),
    ("GET", "/model/nobody", {}),
    ("PUT", "/model/segmentation", {"files": {"file": ("m.pt", b"1")}}),
    ("DELETE", "/model/segmentation", {}),
    ("POST", "/reload", {}),
    ("GET", "/proxy/dicom/..%2Fsystem", {}),
    ("GET", "/train/", {}),
    ("GET", "/scoring/", {}),
    ("GET", "/batch/infer", {}),
]


def test_bad_input_is_answered_with_a_sentence(place: Place) -> None:
    """No 5xx, no traceback, nothing written outside the home."""
    before = {p for p in place.folder.parent.rglob("*") if place.home not in p.parents}
    wrong = []
    for method, path, options in BAD_INPUT:
        url = place.server.url + path.replace("{id}", place.studies[0].series)
        request = requests.Request(method, url, **options).prepare()
        request.url = url if "params" not in options else request.url  # ".." stays as it is
        with requests.Session() as session:
            answer = session.send(request, timeout=60)
        detail = answer.json().get("detail") if answer.content else None
        good = 400 <= answer.status_code < 500 and isinstance(detail, str) and len(detail) > 8
        if not good:
            wrong.append((method, path, options, answer.status_code, answer.text[:200]))
    assert wrong == []
    assert "Traceback" not in place.server.log.read_text()
    assert {p for p in place.folder.parent.rglob("*") if place.home not in p.parents} == before


def test_the_weights_come_from_the_url_and_the_image_from_the_index(place: Place) -> None:
    """``params`` can override neither, and no server path is read."""
    secret = place.home / "secret.nii.gz"
    write_volume(Volume(np.ones((4, 4, 4), np.float32), np.eye(4)), secret)
    params = f'{{"image": "{secret}", "model": "nobody", "result_extension": ".nrrd"}}'
    answer = place.server.post(
        f"/infer/segmentation?image={place.studies[0].series}&output=image",
        data={"params": params},
    )
    assert answer.status_code == 200
    (place.home / "mask.nrrd").write_bytes(answer.content)
    assert read_volume(place.home / "mask.nrrd", label=True).shape == place.studies[0].image.shape


def test_a_foreign_web_page_changes_nothing(place: Place) -> None:
    headers = {"Origin": "https://evil.example"}
    answer = place.server.post("/train/segmentation", json={}, headers=headers)
    assert (answer.status_code, "MONAI_LABEL_CORS_ORIGINS" in answer.text) == (403, True)
    assert "access-control-allow-origin" not in place.server.get("/info/", headers=headers).headers
    own = {"Origin": place.server.url}
    assert place.server.post("/activelearning/first", json={}, headers=own).status_code == 200


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_form_decides_nothing(place: Place, media: str) -> None:
    """What a browser sends for a foreign page without asking this server first."""
    before = place.server.get("/forget/requests").json()
    url = f"{place.server.url}/forget/studies/{place.studies[0].series}"
    for path in ("/forget/patients/x", "/train/unlearn", "/models/v0001/activate"):
        answer = place.server.post(
            path, data=b'{"reason": "other"}', headers={"Content-Type": media}
        )
        assert answer.status_code == 415, path
        assert "send application/json" in answer.json()["detail"]
    answer = requests.put(
        url, b'{"reason": "quality"}', headers={"Content-Type": media}, timeout=60
    )
    assert answer.status_code == 415
    assert place.server.get("/forget/requests").json() == before


@pytest.mark.parametrize("output", ["json", "image", "dicom_seg"])
def test_results_of_every_kind(place: Place, output: str) -> None:
    """The same mask as NIfTI and, read by highdicom, as DICOM SEG on the series' own frames."""
    study = place.studies[1]
    query = f"/infer/segmentation?image={study.series}&output="
    answer = place.server.post(query + output)
    assert answer.status_code == 200
    if output == "json":
        assert answer.json()["label_names"] == {n: i + 1 for i, n in enumerate(LABELS)}
        return
    path = place.home / f"result-{output}"
    if output == "image":
        path = path.with_suffix(".nii.gz")
        path.write_bytes(answer.content)
        assert read_volume(path, label=True).same_grid(study.image)
        return
    import highdicom

    path.write_bytes(answer.content)
    seg = highdicom.seg.segread(path)
    assert [d.SegmentLabel for d in seg.SegmentSequence] == list(LABELS)
    image = place.home / "mask.nii.gz"
    image.write_bytes(place.server.post(query + "image").content)
    mask = read_volume(image, label=True)
    by_place = {d.SOPInstanceUID: d.ImagePositionPatient[2] for d in study.datasets}
    order = sorted(by_place, key=lambda uid: by_place[uid])
    frames = seg.get_pixels_by_source_instance(
        order, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(np.moveaxis(frames, 0, -1).transpose(1, 0, 2), mask.array)


def test_an_upload_is_segmented_and_leaves_nothing_behind(place: Place) -> None:
    path = place.home / "upload.nii.gz"
    write_volume(place.studies[0].image, path)
    with path.open("rb") as file:
        answer = place.server.post("/infer/segmentation?output=image", files={"file": file})
    assert answer.status_code == 200
    wait_until(lambda: not list((place.home / "tmp").iterdir()), 5, "temporary files are gone")


def test_info_is_answered_at_once_while_inferences_run(place: Place) -> None:
    """The stock server answers nothing else until an inference is over."""
    path = place.home / "large.nii.gz"
    large = np.random.default_rng(0).normal(size=(160, 160, 120)).astype(np.float32)
    write_volume(Volume(large, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    content, codes, spans = path.read_bytes(), [], []

    def work() -> None:
        started = time.monotonic()
        files = {"file": ("large.nii.gz", content)}
        answer = place.server.post("/infer/segmentation?output=json", files=files)
        codes.append(answer.status_code)
        spans.append(time.monotonic() - started)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    latencies = []
    while any(thread.is_alive() for thread in threads):
        started = time.monotonic()
        info_of(place.server)
        latencies.append(time.monotonic() - started)
        time.sleep(0.02)
    assert codes == [200, 200, 200]
    assert max(spans) > 1.0  # else nothing was measured
    assert len(latencies) > 10
    assert float(np.median(latencies)) < 0.25
    assert max(latencies) < max(spans) / 2


def test_batch_inference_and_scoring(place: Place) -> None:
    series = [s.series for s in place.studies]
    done = place.server.post("/batch/infer/segmentation?run_sync=true", json={"max_workers": 1})
    assert done.status_code == 200
    assert set(done.json()) == set(series)
    assert info_of(place.server)["datastore"]["label_tags"] == {"original": 3}
    truth = place.home / "truth.nii.gz"
    write_volume(place.studies[0].label, truth)
    with truth.open("rb") as file:
        saved = requests.put(
            f"{place.server.url}/datastore/label?image={series[0]}",
            files={"label": file},
            timeout=60,
        )
    assert saved.status_code == 200
    scores = place.server.post("/scoring/dice?run_sync=true").json()
    assert set(scores) == {series[0]}
    masks = place.server.get(f"/datastore/label?label={series[0]}&tag=original")
    (place.home / "p.nii.gz").write_bytes(masks.content)
    predicted = read_volume(place.home / "p.nii.gz", label=True).array
    expected = []
    for value in (1, 2):
        a, b = place.studies[0].label.array == value, predicted == value
        expected.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert scores[series[0]]["dice"] == pytest.approx(np.mean(expected))
    info = place.server.get(f"/datastore/image/info?image={series[0]}").json()
    assert info["dice"] == pytest.approx(np.mean(expected))


def test_nothing_trained_yet_is_said_plainly(tmp_path: Path) -> None:
    """Without a server: the same handlers through the app itself."""
    from segunlearn.app.application import SegUnlearnApp
    from segunlearn.errors import ConflictError

    studies = [make_study(7)]
    write_dicom(tmp_path / "studies", studies)
    app = SegUnlearnApp(str(tmp_path), str(tmp_path / "studies"), {"home": str(tmp_path / "home")})
    assert app.info()["models"]["segmentation"]["type"] == "segmentation"
    with pytest.raises(ConflictError, match="no trained version yet"):
        app.infer({"model": "segmentation", "image": studies[0].series})
    with pytest.raises(ConflictError, match="Annotate"):
        app.train_request("segmentation", {})
    assert not (tmp_path / "home" / "models").exists()


@pytest.mark.timeout(900)
def test_kill_and_start_again(tmp_path: Path) -> None:
    """kill -9 of server while it trains: the old version is served, the training goes on."""
    studies = [make_study(n) for n in range(3)]
    write_dicom(tmp_path / "studies", studies)
    home = tmp_path / "home"
    slow = ModelConfig.from_json({**TINY.to_json(), "features": [16, 16, 16, 16, 16, 16]})
    old = publish_tiny(home, config=slow)
    options = {"max_epochs": 16, "val_split": 0, "train_batch_size": 1}
    with running_server(str(tmp_path / "studies"), home) as server:
        for study in studies:
            write_volume(study.label, home / "l.nrrd")
            with (home / "l.nrrd").open("rb") as file:
                url = f"{server.url}/datastore/label?image={study.series}"
                assert requests.put(url, files={"label": file}, timeout=60).status_code == 200
        assert server.post("/train/segmentation", json=options).status_code == 200
        stats = wait_until(
            lambda: (
                (s := info_of(server)["train_stats"]["segmentation"]).get("epoch", 0) >= 4 and s
            ),
            240,
            "four epochs are done",
            server.log,
        )
        interrupted = stats["run_id"]
        server.kill()
    registry = VersionRegistry(home / "models" / "segmentation")
    assert registry.active() is not None
    with running_server(str(tmp_path / "studies"), home) as server:
        info = info_of(server)
        assert info["models"]["segmentation"]["sha256"] == old.sha256
        query = f"/infer/segmentation?image={studies[0].series}&output=json"
        assert server.post(query).json()["sha256"] == old.sha256
        wait_until(
            lambda: info_of(server)["train_stats"]["segmentation"]["state"] == "interrupted",
            60,
            "the training that lost its server stops",
            server.log,
        )
        assert server.get("/train/").json()["status"] == "ERROR"
        assert server.post("/train/segmentation", json=options).status_code == 200
        wait_until(
            lambda: info_of(server)["train_stats"]["segmentation"]["state"] == "done",
            300,
            "the training ends",
            server.log,
        )
        log = server.log.read_text()
        assert f"taking over the checkpoint of run {interrupted}" in log
        stats = info_of(server)["train_stats"]["segmentation"]
        assert (stats["epoch"], stats["total_epochs"]) == (16, 16)
        new = registry.active()
        assert new is not None
        assert (new.version, new.parent_sha256) == ("v0002", old.sha256)
        assert server.post(query).json()["sha256"] == new.sha256
    assert not any((home / "runs").iterdir())
