"""Fixtures that several parts use: the real images and a real Orthanc."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import settings
from pydicom.dataset import Dataset

# One thread for each process, here and in the servers that tests start: on two busy cores torch's
# threads wait for each other, and equal weights need equal numbers of threads. Before torch loads.
os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("segunlearn", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("segunlearn")

_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc")


def missing(reason: str) -> None:
    """Skip, or fail where everything must be there (``SEGUNLEARN_REQUIRE=all``)."""
    if os.environ.get("SEGUNLEARN_REQUIRE") == "all":
        pytest.fail(f"required by SEGUNLEARN_REQUIRE=all: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real images; without it the test is skipped, for a public checkout has none."""
    named = os.environ.get("SEGUNLEARN_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not here; set SEGUNLEARN_DATA to their folder")
    return folder


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc that only this machine reaches.

    Parameters
    ----------
    rest, url
        Base URLs of its own REST interface and of DICOMweb.
    pid
        Process number.
    """

    rest: str
    url: str
    pid: int

    def upload(self, datasets: Iterable[Dataset]) -> None:
        """Put instances in through REST, apart from the code under test."""
        for dataset in datasets:
            buffer = BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            answer = requests.post(f"{self.rest}/instances", data=buffer.getvalue(), timeout=20)
            answer.raise_for_status()

    def clear(self) -> None:
        """Delete all patients."""
        for patient in requests.get(f"{self.rest}/patients", timeout=20).json():
            requests.delete(f"{self.rest}/patients/{patient}", timeout=20).raise_for_status()

    def statistics(self) -> dict[str, Any]:
        """Counts of patients, studies, series and instances."""
        answer: dict[str, Any] = requests.get(f"{self.rest}/statistics", timeout=20).json()
        return answer


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Start one Orthanc with DICOMweb for the session; use ``orthanc`` in tests."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugin = next(
        (p for f in _PLUGIN_FOLDERS for p in Path(f).glob("libOrthancDicomWeb.so*")), None
    )
    if program is None or plugin is None:
        missing("Orthanc with its DICOMweb plugin is not installed (orthanc, orthanc-dicomweb)")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    configuration = {
        "Name": "TEST",
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,  # 1.10 ignores HttpBindAddresses: this is the guard
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [str(program), str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
        )
    rest = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            if process.poll() is not None:
                break
            try:
                requests.get(f"{rest}/system", timeout=2).raise_for_status()
            except requests.RequestException:
                time.sleep(0.1)
            else:
                break
        else:
            pytest.fail("Orthanc did not answer within 15 seconds")
        if process.poll() is not None:
            pytest.fail("Orthanc ended: " + (folder / "orthanc.log").read_text()[-2000:])
        yield Orthanc(rest=rest, url=f"{rest}/dicom-web", pid=process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


@pytest.fixture
def orthanc(orthanc_server: Orthanc) -> Iterator[Orthanc]:
    """An Orthanc that is empty before and after the test."""
    orthanc_server.clear()
    yield orthanc_server
    orthanc_server.clear()
