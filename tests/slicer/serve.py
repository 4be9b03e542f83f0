"""A server with small DICOM studies, for tests in another Python; told what to do by its input.

``python serve.py FOLDER`` makes everything in FOLDER, starts the server and writes a line of JSON
about it. Lines of the input: ``kill`` ends the server as a power cut does, ``start`` starts it
again, ``seconds N`` sets how long an unlearning takes. Each is answered by a line. At the end of
the input, everything is stopped.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parents[1]))

from app_sources import LABELS, TINY, Study, make_study, publish_tiny, write_dicom
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.records.ledger import LedgerCase, LedgerEntry
from segunlearn.volumes import write_volume

#: Studies: those that the model knows, and those that it never saw; the last has no label yet.
KNOWN, UNSEEN = 6, 7
ORIENTATIONS = ("axial", "oblique", "sagittal")


def main(folder: Path) -> None:
    studies = [make_study(n, ORIENTATIONS[n % 3]) for n in range(KNOWN + UNSEEN)]
    for study in studies:
        for dataset in study.datasets:  # one of the fixed UIDs of a phantom is no study of its own
            dataset.InstitutionName = "St. Anna"
            dataset.Manufacturer = "Phantom"
    write_dicom(folder / "studies", studies)
    home = folder / "home"
    version = publish_tiny(home)
    tell_ledger(home, version.sha256, studies[:KNOWN])
    (folder / "seconds").write_text("0.5")
    server = Server(folder, home)
    server.start()
    for study in studies[:-1]:
        path = folder / "label.nii.gz"
        write_volume(study.label, path)
        named = [{"name": name, "idx": i + 1} for i, name in enumerate(LABELS)]
        with path.open("rb") as file:
            answer = requests.put(
                f"{server.url}/datastore/label", params={"image": study.series, "tag": "final"},
                data={"params": json.dumps({"label_info": named})}, files={"label": file},
                timeout=60,
            )  # fmt: skip
        answer.raise_for_status()
    say(
        {
            "url": server.url,
            "studies": [
                {
                    "study": str(s.datasets[0].StudyInstanceUID),
                    "series": s.series,
                    "patient": str(s.datasets[0].PatientID),
                    "folder": str(folder / "studies" / s.series),
                    "known": number < KNOWN,
                }
                for number, s in enumerate(studies)
            ],
            "labels": {name: i + 1 for i, name in enumerate(LABELS)},
            "log": str(server.log),
        }
    )
    try:
        for line in sys.stdin:
            words = line.split()
            if words[0] == "kill":
                server.kill()
            elif words[0] == "start":
                server.start()
            elif words[0] == "seconds":
                (folder / "seconds").write_text(words[1])
            say({"done": words[0]})
    finally:
        server.stop()


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def tell_ledger(home: Path, sha256: str, studies: Sequence[Study]) -> None:
    """The ledger says that the model was trained on these."""
    cases = [
        LedgerCase(
            s.series, str(s.datasets[0].StudyInstanceUID), str(s.datasets[0].PatientID), "train"
        )
        for s in studies
    ]
    records = Records(Home(home))
    records.ledger.append(
        LedgerEntry(
            run_id="seed-1", kind="train", model=TINY.name, version_sha256=sha256,
            parent_sha256=None, cases=cases, parameters={}, seed=1, versions={"torch": "2"},
            machine={"host": "test"}, started="2026-01-01T00:00:00Z", ended="2026-01-01T01:00:00Z",
            outcome="done",
        )
    )  # fmt: skip
    records.store.close()


class Server:
    """MONAI Label's own launcher with our app and its stand-ins."""

    def __init__(self, folder: Path, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._home = folder, home
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        app = self._folder / "app"
        app.mkdir(exist_ok=True)
        source = Path(__file__).parent / "app" / "main.py"
        (app / "main.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        options = {"home": str(self._home), "refresh": "1", "device": "cpu"}
        conf = [word for key, value in options.items() for word in ("--conf", key, value)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app),
                 "--studies", str(self._folder / "studies"), "--host", "127.0.0.1",
                 "--port", str(self.port), *conf],
                stdout=log, stderr=subprocess.STDOUT, cwd=self._home,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MONAI_LABEL_TRACKING_ENABLED": "false",
                     "SEGUNLEARN_TEST_SECONDS": str(self._folder / "seconds")},
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if requests.get(f"{self.url}/info/", timeout=5).status_code == 200:
                    return
            except requests.ConnectionError:
                time.sleep(0.1)
        self.stop()
        raise RuntimeError("the server does not answer: " + self.log.read_text()[-3000:])

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
