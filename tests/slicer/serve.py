"""A server with small DICOM studies, for tests in another Python; told what to do by its input.

``python serve.py FOLDER`` makes everything in FOLDER, starts the server and writes a line of JSON
about it. Lines of the input: ``kill`` ends the server as a power cut does, ``start`` starts it
again, ``seconds N`` sets how long an unlearning takes, ``seconds real`` makes it a real one. Each
is answered by a line. At the end of the input, everything is stopped. The server and its tasks are
forked from this process, which has imported everything.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: without threads it may be forked

import requests
from monailabel.config import settings

sys.path.insert(0, str(Path(__file__).parents[1]))

from forks import SOCKET, Forks

from app_sources import LABELS, TINY, Study, make_study, write_dicom
from segunlearn.app import application, child  # noqa: F401  the app, for all who are forked
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.training_run import TrainingRun
from segunlearn.cases import Case
from segunlearn.training import TrainSettings
from segunlearn.volumes import write_volume

#: Studies: those that the model knows, and those that it never saw; the last has no label yet.
KNOWN, UNSEEN = 6, 7
ORIENTATIONS = ("axial", "oblique", "sagittal")
CONFIG = replace(TINY, spacing=(3.0, 3.0, 3.0), patch_size=(32, 16, 16))
#: Hardly trained: a retraining of the same kind is over in a moment.
TRAINED = TrainSettings(
    epochs=2, batch_size=4, samples_per_case=1, learning_rate=8e-3, val_fraction=0, device="cpu"
)


def main(folder: Path) -> None:
    studies = [make_study(n, ORIENTATIONS[n % 3]) for n in range(KNOWN + UNSEEN)]
    for study in studies:
        for dataset in study.datasets:  # one of the fixed UIDs of a phantom is no study of its own
            dataset.InstitutionName = "St. Anna"
            dataset.Manufacturer = "Phantom"
    write_dicom(folder / "studies", studies)
    home = folder / "home"
    train_tiny(folder, home, studies[:KNOWN])
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
    commands = {
        "kill": lambda _: server.kill(),
        "start": lambda _: server.start(),
        "seconds": lambda words: (folder / "seconds").write_text(words[1]),
    }
    try:
        for line in server.lines():
            words = line.split()
            commands[words[0]](words)
            say({"done": words[0]})
    finally:
        server.kill()


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def train_tiny(folder: Path, home: Path, studies: Sequence[Study]) -> None:
    """Train the first version, as the command line does on files."""
    cases = []
    for study in studies:
        image, label = (folder / f"{kind}-{study.series}.nii.gz" for kind in ("image", "label"))
        write_volume(study.image, image)
        write_volume(study.label, label)
        header = study.datasets[0]
        person = str(header.PatientID)
        cases.append(Case(study.series, str(header.StudyInstanceUID), person, image, label, "CT"))
    home.mkdir()
    records = Records(Home(home))
    TrainingRun(CONFIG.name, Home(home), records, TRAINED).execute(lambda _: (cases, CONFIG))
    records.store.close()


def serve() -> None:
    """Be MONAI Label's own launcher, with the words of ``sys.argv``."""
    from monailabel.main import Main

    Main().run()


def work(kind: str) -> None:
    """Be a task of the server; the platform's settings are those of its environment."""
    for name, value in type(settings)():
        setattr(settings, name, value)
    sys.argv = ["segunlearn.app.child", kind]
    child.main()


class Server:
    """MONAI Label's own launcher with our app and its stand-ins."""

    def __init__(self, folder: Path, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._home = folder, home
        self.log = folder / "server.log"
        self._forks = Forks(folder / "forks", work)
        self._pid: int | None = None

    def lines(self) -> Iterator[str]:
        """Yield the lines of the input; who asks for a task meanwhile is served."""
        with selectors.DefaultSelector() as given:
            given.register(sys.stdin, selectors.EVENT_READ)
            while self._forks.until(lambda: bool(given.select(0)), 3600):
                line = sys.stdin.readline()
                if not line:
                    return
                yield line

    def start(self) -> None:
        app = self._folder / "app"
        app.mkdir(exist_ok=True)
        source = Path(__file__).parent / "app" / "main.py"
        (app / "main.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        options = {"home": str(self._home), "refresh": "1", "device": "cpu"}
        conf = [word for key, value in options.items() for word in ("--conf", key, value)]
        words = ["start_server", "--app", str(app), "--studies", str(self._folder / "studies"),
                 "--host", "127.0.0.1", "--port", str(self.port), *conf]  # fmt: skip
        env = {**os.environ, "MONAI_LABEL_TRACKING_ENABLED": "false",
               "SEGUNLEARN_TEST_SECONDS": str(self._folder / "seconds"),
               SOCKET: str(self._folder / "forks")}  # fmt: skip

        def call() -> None:
            os.chdir(self._home)
            sys.argv = ["monailabel", *words]
            serve()

        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            self._pid = self._forks.fork(call, log.fileno(), env, nothing.fileno(), self._ended)
        if not self._forks.until(self._answers, 120) or self._pid is None:
            self.kill()
            raise RuntimeError("the server does not answer: " + self.log.read_text()[-3000:])

    def _answers(self) -> bool:
        try:
            return self._pid is None or requests.get(f"{self.url}/info/", timeout=5).ok
        except requests.RequestException:
            return False

    def _ended(self, code: int) -> None:
        self._pid = None

    def kill(self) -> None:
        """End it without any clean-up."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
        if not self._forks.until(lambda: self._pid is None, 10):
            raise RuntimeError("the server does not end")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
