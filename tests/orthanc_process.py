"""An Orthanc that a test stops and starts again on the same port and storage."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from io import BytesIO
from pathlib import Path

import pytest
import requests
from pydicom.dataset import Dataset

_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc")


class OrthancProcess:
    """One Orthanc with DICOMweb on 127.0.0.1.

    Parameters
    ----------
    folder
        For its configuration, index and storage.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
        plugin = next(
            (p for f in _PLUGIN_FOLDERS for p in Path(f).glob("libOrthancDicomWeb.so*")), None
        )
        if program is None or plugin is None:
            pytest.skip("Orthanc with its DICOMweb plugin is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self.rest = f"http://127.0.0.1:{port}"
        self.url = f"{self.rest}/dicom-web"
        self._log = folder / "orthanc.log"
        self._command = [program, str(folder / "orthanc.json")]
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "orthanc.json").write_text(
            json.dumps(
                {
                    "HttpPort": port,
                    "HttpBindAddresses": ["127.0.0.1"],
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomServerEnabled": False,
                    "StorageDirectory": str(folder / "storage"),
                    "IndexDirectory": str(folder / "index"),
                    "Plugins": [str(plugin)],
                    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                }
            )
        )

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        for _ in range(150):
            if self._process.poll() is not None:
                pytest.fail("Orthanc ended: " + self._log.read_text()[-2000:])
            try:
                requests.get(f"{self.rest}/system", timeout=2).raise_for_status()
                return
            except requests.RequestException:
                time.sleep(0.1)
        pytest.fail("Orthanc did not answer within 15 seconds")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
            self._process = None

    def upload(self, datasets: list[Dataset]) -> None:
        for dataset in datasets:
            buffer = BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            answer = requests.post(f"{self.rest}/instances", buffer.getvalue(), timeout=20)
            answer.raise_for_status()

    def delete_study(self, study: str) -> None:
        found = requests.post(f"{self.rest}/tools/lookup", data=study, timeout=20).json()
        for item in found:
            if item["Type"] == "Study":
                requests.delete(self.rest + item["Path"], timeout=20).raise_for_status()
