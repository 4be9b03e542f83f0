"""A small hospital for the viewer's tests: studies of made-up people, a model that saw some.

The server, the training and the unlearning are the product's, and so is the audit but for its
verdict, see ``APP``.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pydicom
import torch
from pydicom.dataset import Dataset

from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.training_run import TrainingRun
from segunlearn.cases import Case
from segunlearn.networks import ModelConfig
from segunlearn.training import TrainSettings

ROOT = Path(__file__).parents[1]
MODEL = "segmentation"
#: People that the model was trained on, and people it never saw.
TAUGHT, UNSEEN = 5, 6
#: Number of the person whose name would run code in a viewer that does not look out.
HOSTILE = 1
ATTACK = "<img src=x onerror=alert(1)>"
CONFIG = ModelConfig(
    labels=("liver", "spleen"), spacing=(12.0, 12.0, 12.0), patch_size=(32, 32, 16),
    features=(4, 8, 8, 16, 16, 4), name=MODEL,
)  # fmt: skip

#: What the server and its children load as the app: the product, with an audit that is short and
#: finds nothing, as a few small studies can prove nothing and what is tried here is the viewer.
APP = '''"""The product, with an audit of some seconds that always passes."""

from dataclasses import replace
from functools import partial

from segunlearn.app import audit_order, forget_service, unlearn_run
from segunlearn.app.application import SegUnlearnApp as SegUnlearnApp
from segunlearn.audit import run

verdict = run.verdict
run.verdict = lambda findings, policy, **options: verdict(
    [replace(f, outcome="pass") for f in findings],
    replace(policy, required={}),
    **{**options, "void": ()},
)
forget_service.REFRESH_SECONDS = forget_service.PAUSE_SECONDS = 0.5
audit_order._QUICK_STEPS = 30
unlearn_run.Order = partial(audit_order.Order, attacks=())
'''


@dataclass(frozen=True)
class Person:
    """One study of one person."""

    number: int
    study: str
    series: str
    case: Case

    @property
    def name(self) -> str:
        return self.case.person


@dataclass(frozen=True)
class Hospital:
    """Studies as DICOM files, and a home whose model was trained on the first of them."""

    dicom: Path
    home: Path
    people: tuple[Person, ...]

    def datasets(self) -> Iterator[Dataset]:
        for path in sorted(self.dicom.rglob("*.dcm")):
            yield pydicom.dcmread(path)

    def copy(self, folder: Path) -> Hospital:
        """The same with files of its own."""
        shutil.copytree(self.dicom, folder / "dicom")
        shutil.copytree(self.home, folder / "home")
        return replace(self, dicom=folder / "dicom", home=folder / "home")


def build_hospital(folder: Path) -> Hospital:
    """Write the studies and train for some seconds."""
    generate = _generator()
    people = tuple(_write(generate, folder, n) for n in range(1, TAUGHT + UNSEEN + 1))
    for path in (folder / "dicom" / people[HOSTILE].name).rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        if dataset.Modality == "CT":
            dataset.PatientName = f"{ATTACK}^Person"
            dataset.StudyDescription = f"Study {ATTACK}"
            dataset.save_as(path)
    home = Home(folder / "home")
    home.root.mkdir()
    settings = TrainSettings(
        epochs=50, batch_size=2, samples_per_case=2, learning_rate=8e-3, val_fraction=0.0,
        device="cpu",
    )  # fmt: skip
    records = Records(home)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = TrainingRun(MODEL, home, records, settings)
        run.execute(lambda _: ([p.case for p in people[:TAUGHT]], CONFIG))
    finally:
        torch.set_num_threads(threads)
        records.store.close()
    return Hospital(folder / "dicom", home.root, people)


def _generator() -> ModuleType:
    sys.path.insert(0, str(ROOT / "sample-data"))
    try:
        import generate
    finally:
        sys.path.remove(str(ROOT / "sample-data"))
    return generate


def _write(generate: Any, folder: Path, number: int) -> Person:
    study = generate.Study(number, "A")
    usual = generate.SITES["A"]
    generate.SITES["A"] = replace(
        usual, columns=64, rows=64, slices=16, pixel_mm=6.0, slice_mm=12.5
    )
    try:
        scan = generate.scan(study)
        generate.write_dicom(folder / "dicom", study, scan)
        generate.write_nifti(folder / "nifti", study, scan)
    finally:
        generate.SITES["A"] = usual
    found = (folder / "dicom" / f"SYNTHETIC-P{number:03d}").rglob("CT/*.dcm")
    header = pydicom.dcmread(next(found), stop_before_pixels=True)
    nifti = folder / "nifti"
    case = Case(
        str(header.SeriesInstanceUID), str(header.StudyInstanceUID), str(header.PatientID),
        nifti / "images" / f"{study.name}.nii.gz", nifti / "labels" / f"{study.name}.nii.gz", "CT",
    )  # fmt: skip
    return Person(number, case.study, case.series, case)


def _python_path() -> str:
    """Tests first, then what this process was told: a clone tests itself."""
    return os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))


class ViewerServer:
    """The server with a viewer, on a port that it keeps when it is stopped and started again."""

    def __init__(self, studies: str, home: Path, viewer: Path | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "server.txt"
        self._arguments = [studies, str(home), str(self.port), str(viewer or "")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, login: str = "off", issuer: str = "") -> None:
        code = (
            "import sys; from segunlearn.app import server; from ohif_site import APP; "
            "server._MAIN = APP; studies, home, port, viewer, login, issuer = sys.argv[1:]; "
            "conf = {'home': home, 'refresh': '1', 'poll': '2', 'viewer': viewer, "
            "'login': login, 'issuer': issuer}; "
            "server.serve(studies, conf, port=int(port))"
        )
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, *self._arguments, login, issuer],
                stdout=out, stderr=out,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
            )  # fmt: skip
        for _ in range(600):
            if self._process.poll() is not None:
                raise AssertionError("the server ended: " + self.log.read_text()[-3000:])
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/whoami", timeout=20).status_code in (200, 401):
                    return
            time.sleep(0.1)
        raise AssertionError("the server did not answer: " + self.log.read_text()[-3000:])

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
            self._process = None


@contextlib.contextmanager
def serving(studies: str, home: Path, viewer: Path | None = None) -> Iterator[ViewerServer]:
    """Serve while the block runs."""
    server = ViewerServer(studies, home, viewer)
    server.start()
    try:
        yield server
    finally:
        server.stop()


#: A hospital, and the server on its files.
Site = tuple[Hospital, ViewerServer]


def upload(rest: str, hospital: Hospital) -> None:
    """Put all studies into an Orthanc."""
    with httpx.Client(timeout=30) as client:
        for dataset in hospital.datasets():
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            client.post(f"{rest}/instances", content=buffer.getvalue()).raise_for_status()
