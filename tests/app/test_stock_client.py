"""The unmodified client of MONAI Label's Slicer module, against a real server, on all studies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests

from app_sources import (
    LABELS,
    Server,
    Study,
    info_of,
    make_study,
    publish_tiny,
    running_server,
    stock_client_module,
    wait_until,
    write_dicom,
    write_files,
)
from segunlearn.records.store import open_store
from segunlearn.records.versions import VersionRegistry
from segunlearn.volumes import read_volume, write_volume

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.slow,
    # the stock client leaves the file of an upload open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@dataclass
class Place:
    """A server on one kind of studies."""

    kind: str
    server: Server
    home: Path
    studies: list[Study]
    client: Any


@pytest.fixture(scope="module")
def stock() -> ModuleType:
    return stock_client_module()


@pytest.fixture(
    scope="module", params=["files", "dicom", pytest.param("pacs", marks=pytest.mark.pacs)]
)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, stock: ModuleType
) -> Iterator[Place]:
    root = tmp_path_factory.mktemp(f"stock-{request.param}")
    home = root / "home"
    studies = [make_study(n, o) for n, o in enumerate(("axial", "oblique", "sagittal"))]
    where = str(root / "studies")
    if request.param == "files":
        write_files(root / "studies", studies)
    elif request.param == "dicom":
        write_dicom(root / "studies", studies)
    else:
        orthanc = request.getfixturevalue("orthanc_server")
        orthanc.clear()
        orthanc.upload(ds for study in studies for ds in study.datasets)
        where = orthanc.url
    publish_tiny(home)
    with running_server(where, home, stock_launcher=request.param == "files") as server:
        yield Place(
            request.param,
            server,
            home,
            studies,
            stock.MONAILabelClient(server.url, tmpdir=str(root), client_id="reader"),
        )


def test_a_day_with_the_stock_client(place: Place, tmp_path: Path) -> None:
    """Info, next sample, infer, save label, train, status, stop: in the order of a working day."""
    info = place.client.info()
    assert info["name"] == "SegUnlearn"
    assert "config" not in info  # the Slicer module takes it for an old server
    assert info["models"]["segmentation"]["labels"] == {n: i + 1 for i, n in enumerate(LABELS)}
    assert info["labels"] == list(LABELS)
    assert next(iter(info["trainers"])) == "segmentation"
    assert info["datastore"] == {"total": 3, "completed": 0, "label_tags": {}}
    assert not place.client.auth_enabled()

    by_series = {study.series: study for study in place.studies}
    for strategy in ("random", "first", "uncertainty"):
        sample = place.client.next_sample(strategy, {})
        assert sample["id"] in by_series
        truth = by_series[sample["id"]]
        image = read_volume(Path(sample["path"]))
        np.testing.assert_array_equal(image.array, truth.image.array)
        assert image.same_grid(truth.image)

    options = {"result_extension": ".nrrd", "result_dtype": "uint8"}
    file, params = place.client.infer("segmentation", truth.series, options)
    assert read_volume(Path(file), label=True).same_grid(truth.image)
    assert params["label_names"] == {n: i + 1 for i, n in enumerate(LABELS)}
    assert params["version"] == "v0001"
    assert params["sha256"] == info["models"]["segmentation"]["sha256"]
    assert params["adapter"] == "base"

    session = place.client.create_session(str(Path(sample["path"])))
    file, params = place.client.infer("segmentation", "x", {}, session_id=session["session_id"])
    assert read_volume(Path(file), label=True).shape == truth.image.shape
    place.client.remove_session(session["session_id"])

    named = [{"name": "shell", "idx": 1}, {"name": "core", "idx": 2}]  # as a viewer numbers them
    for number, study in enumerate(place.studies, start=1):
        swapped = np.array([0, 2, 1], np.uint8)[study.label.array]
        path = tmp_path / "label.nrrd"
        write_volume(type(study.label)(swapped, study.label.affine), path)
        saved = place.client.save_label(study.series, str(path), params={"label_info": named})
        assert saved["image"] == study.series
        assert place.client.info()["datastore"]["completed"] == number
    assert set(place.client.datastore()["objects"]) == set(by_series)

    shutil.rmtree(place.home / "cache", ignore_errors=True)  # labels come back from the archive
    for study in place.studies:
        file = place.client.download_label(study.series, "final")
        label = read_volume(Path(file), label=True)
        assert label.same_grid(study.label)
        np.testing.assert_array_equal(label.array, study.label.array)
    shutil.rmtree(place.home / "cache", ignore_errors=True)

    leaked = {"max_epochs": "2", "val_split": "0.34", "name": "train_01", "gpus": "all"}
    assert not place.client.train_status(check_if_running=True)
    started = place.client.train_start("segmentation", dict(leaked))
    assert started["status"] in ("SUBMITTED", "RUNNING")
    assert started["request"]["max_epochs"] == 2
    assert "name" not in started["request"]
    again = requests.post(f"{place.server.url}/train/segmentation", json={}, timeout=20)
    assert (again.status_code, "already running" in again.json()["detail"]) == (429, True)
    log = place.server.log
    wait_until(lambda: place.client.train_status()["status"] == "RUNNING", 60, "it runs", log)
    wait_until(lambda: not place.client.train_status(True), 300, "the training ends", log)
    assert place.client.train_status()["status"] == "DONE", log.read_text()[-3000:]
    info = place.client.info()
    stats = next(iter(info["train_stats"].values()))
    assert (stats["epoch"], stats["total_epochs"], stats["state"]) == (2, 2, "done")
    assert 0 <= stats["best_metric"] <= 1
    assert info["models"]["segmentation"]["version"] == "v0002"
    _, params = place.client.infer("segmentation", truth.series, {})
    assert params["version"] == "v0002"
    assert params["sha256"] == info["models"]["segmentation"]["sha256"]

    place.client.train_start("segmentation", {"max_epochs": 5000, "val_split": 0})
    wait_until(
        lambda: (
            info_of(place.server)["train_stats"]["segmentation"]["step"] > 2
            and info_of(place.server)["train_stats"]["segmentation"]["phase"] == "train"
        ),
        240,
        "the training makes steps",
        log,
    )
    assert place.client.train_stop()["status"] == "STOPPED"
    assert not place.client.train_status(check_if_running=True)
    assert place.client.train_status()["status"] == "STOPPED"
    stats = wait_until(
        lambda: (
            (s := info_of(place.server)["train_stats"]["segmentation"])["state"] != "running" and s
        ),
        10,
        "the run is recorded as stopped",
        log,
    )
    assert stats["state"] == "cancelled"
    active = VersionRegistry(place.home / "models" / "segmentation").active()
    assert active is not None
    assert active.version == "v0002"
    assert "Traceback" not in log.read_text(), log.read_text()[-5000:]
    _check_ledger(place)


def _check_ledger(place: Place) -> None:
    """The row of the published version names every study, read without the server."""
    from segunlearn.records.ledger import Ledger

    ledger = Ledger(open_store(place.home / "segunlearn.db"))
    assert ledger.verify() == []
    active = VersionRegistry(place.home / "models" / "segmentation").active()
    assert active is not None
    for study in place.studies:
        versions = ledger.versions_that_saw(series=study.series)
        assert active.sha256 in {str(getattr(v, "version_sha256", v)) for v in versions}
