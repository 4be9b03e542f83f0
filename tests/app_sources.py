"""Small studies of three kinds, a tiny published model, and the server as a real process."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import requests
from pydicom.dataset import Dataset

from dicom_sources import make_series, set_pixels
from segunlearn.app.from_active import held_out_details
from segunlearn.dicom.identifiers import Pseudonyms, load_or_create_key
from segunlearn.dicom.segmentation import write_segmentation
from segunlearn.networks import ModelConfig, build_network, save_weights
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.records.version_info import META_MODEL
from segunlearn.records.versions import VersionInfo, VersionRegistry
from segunlearn.volumes import Volume, write_volume

LABELS = ("core", "shell")
SHAPE = (32, 28, 20)
TINY = ModelConfig(
    labels=LABELS,
    spacing=(2.0, 2.0, 2.0),
    patch_size=(32, 32, 16),
    features=(4, 4, 4, 4, 4, 4),
    overlap=0.25,
)


@dataclass
class Study:
    """One image with its true label map."""

    series: str
    image: Volume
    label: Volume
    datasets: list[Dataset]


def make_study(number: int, orientation: str = "axial") -> Study:
    """Make a bright ball with a shell, somewhere else in each study."""
    rng = np.random.default_rng(number)
    source = make_series(
        orientation,
        shape=SHAPE,
        spacing=(1.5, 1.5, 2.0),
        seed=number,
        patient_id=f"SYN-{number}",
    )
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    centre = np.array([16, 14, 10]) + rng.integers(-3, 4, size=3)
    distance = np.sqrt((((grid.T - centre) * (1.5, 1.5, 2.0)) ** 2).sum(-1)).T
    label = np.where(distance < 5, 1, np.where(distance < 9, 2, 0)).astype(np.uint8)
    stored = (1000 + 400 * (label == 2) + 900 * (label == 1) + rng.normal(0, 40, SHAPE)).astype(
        np.uint16
    )
    for ds in source.datasets:
        z = SHAPE[2] - int(ds.InstanceNumber)
        set_pixels(ds, np.ascontiguousarray(stored[:, :, z].T))
    return Study(
        series=str(source.datasets[0].SeriesInstanceUID),
        image=Volume(stored.astype(np.float32) - 1024.0, source.affine, "CT"),
        label=Volume(label, source.affine, "CT"),
        datasets=source.datasets,
    )


def write_dicom(folder: Path, studies: list[Study]) -> None:
    """Write each study into a folder of its own."""
    for study in studies:
        place = folder / study.series
        place.mkdir(parents=True)
        for ds in study.datasets:
            ds.save_as(place / f"{ds.InstanceNumber:03d}.dcm", enforce_file_format=True)


def write_segmentations(folder: Path, studies: list[Study]) -> None:
    """Write the label of each study as a finished SEG."""
    names = {i + 1: name for i, name in enumerate(LABELS)}
    for number, study in enumerate(studies):
        segmentation = write_segmentation(study.label, study.datasets, names)
        segmentation.save_as(folder / f"seg{number}.dcm", enforce_file_format=True)


def write_files(folder: Path, studies: list[Study], labelled: int = 0) -> None:
    """Write images as NIfTI, and the first labels as finished."""
    for number, study in enumerate(studies):
        study.series = f"person{number}"
        write_volume(study.image, folder / f"{study.series}.nii.gz")
        if number < labelled:
            write_volume(study.label, folder / "labels" / "final" / f"{study.series}.nii.gz")


def publish_tiny(home: Path, seed: int = 1, config: ModelConfig = TINY) -> VersionInfo:
    """Publish a network with random weights."""
    home.mkdir(parents=True, exist_ok=True)
    weights = home / "tiny.safetensors"
    save_weights(build_network(config, seed), weights)
    return VersionRegistry(home / "models" / config.name).publish(
        weights, config.to_json(), parent_sha256=None, run_id=f"seed-{seed}"
    )


def put_meta_model(info: VersionInfo, data: bytes, recorded: bytes | None = None) -> None:
    """Put a meta model beside a version; ``recorded`` is what the manifest knows, if another."""
    (info.path / META_MODEL).write_bytes(data)
    digest = hashlib.sha256(data if recorded is None else recorded).hexdigest()
    manifest = info.path / "manifest.json"
    write_json_durably(
        manifest, {**read_json(manifest), "details": {"meta_model": {"sha256": digest}}}
    )


def put_held_out(info: VersionInfo, home: Path, *people: str) -> None:
    """Say in a version's manifest that these people were kept out."""
    pseudonyms, manifest = Pseudonyms(load_or_create_key(home / "site.key")), "manifest.json"
    details = held_out_details([pseudonyms.of(person) for person in people], pseudonyms)
    write_json_durably(
        info.path / manifest, {**read_json(info.path / manifest), "details": details}
    )


def version_of(sha256: str, meta: str = "") -> VersionInfo:
    """What is served, for what asks only for digests: of the weights and of the meta model."""
    details = {"meta_model": {"sha256": meta}} if meta else {}
    return VersionInfo("v0001", sha256, "", None, "r", {}, Path("v0001"), "active", details)


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str, **options: Any) -> requests.Response:
        """GET."""
        return requests.get(self.url + path, timeout=60, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        """POST."""
        return requests.post(self.url + path, timeout=120, **options)

    def kill(self) -> None:
        """End it without any clean-up, as a power cut does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)


@contextmanager
def running_server(
    studies: str,
    home: Path,
    *,
    stock_launcher: bool = False,
    conf: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    path: str = "/info/",
) -> Iterator[Server]:
    """Start the server on a free port, until ``path`` answers; stopped by its pid at the end.

    ``stock_launcher`` starts it as MONAI Label's users do, with our ``monailabel_app``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = {"home": str(home), "labels": ",".join(LABELS), "refresh": "2", **(conf or {})}
    pairs = [word for key, value in options.items() for word in ("--conf", key, value)]
    where = ["--studies", studies, "--port", str(port), "--host", "127.0.0.1"]
    if stock_launcher:
        app = Path(__file__).parents[1] / "monailabel_app"
        command = ["-m", "monailabel.main", "start_server", "--app", str(app), *where, *pairs]
    else:
        pairs = pairs[3:]
        program = "from segunlearn.cli import main; main()"
        command = ["-c", program, "serve", "--home", str(home), *where, *pairs]
    home.mkdir(parents=True, exist_ok=True)
    settings = {"OMP_NUM_THREADS": "1", "MONAI_LABEL_TRACKING_ENABLED": "false"}
    log = home / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings, **(environment or {})},
            cwd=home,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until(lambda: _answers(server, path), 180, "the server answers", log)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


def _answers(server: Server, path: str) -> bool:
    if server.process.poll() is not None:
        raise RuntimeError("the server ended: " + server.log.read_text()[-3000:])
    try:
        return requests.get(server.url + path, timeout=5).status_code in (200, 401)
    except requests.ConnectionError:
        return False


def wait_until(condition: Any, seconds: float, what: str, log: Path | None = None) -> Any:
    """Ask until the condition is true; fail with the end of the log."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    tail = log.read_text()[-3000:] if log else ""
    raise AssertionError(f"within {seconds:.0f} s it did not come true that {what}\n{tail}")


def stock_client_module() -> ModuleType:
    """Load the unmodified client that ships for 3D Slicer in MONAI Label's wheel."""
    path = Path(sys.prefix) / "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py"
    spec = importlib.util.spec_from_file_location("stock_monailabel_client", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi
        spec.loader.exec_module(module)
    return module


def info_of(server: Server) -> dict[str, Any]:
    """``/info/``."""
    answer: dict[str, Any] = json.loads(server.get("/info/").text)
    return answer
