"""One Qt application, one scene that is cleared for each test, one real server for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import doubles

SLICER = doubles.install()

import numpy as np
import pytest
import qt
from fake import Script, fake_server

ROOT = Path(__file__).parents[3]
#: Seconds in which the server's child process has surely begun, on a machine with other work.
CHILD = 180.0
sys.path.insert(0, str(ROOT / "lib" / "slicer" / "SegUnlearn"))

from SegUnlearnLib.logic import Logic
from SegUnlearnLib.parameters import Parameters
from SegUnlearnLib.tokens import Tokens
from SegUnlearnLib.widget import Widget


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """First what is unlearned from the first version, which was really trained; the kill is last.

    Adapters come after the unlearnings, which would make them anew.
    """
    order = {"check_unlearning": -1, "check_site": 1, "check_killed": 2}
    items.sort(key=lambda item: order.get(item.path.stem, 0))


@pytest.fixture(scope="session")
def application() -> Any:
    return qt.QApplication.instance() or qt.QApplication([])


#: What failed within slots: Qt only prints it.
FAULTS: list[BaseException] = []
sys.excepthook = lambda kind, error, trace: FAULTS.append(error)


class Loop:
    """Runs the event loop until something is true, and notes how long it was held up.

    ``longest`` is the longest turn by the clock, ``busiest`` by the thread's own processor time,
    which other programs on the machine do not lengthen; both in seconds.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self.forget()

    def forget(self) -> None:
        """Measure anew."""
        self.longest = self.busiest = 0.0

    def until(self, condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.turn()
            value = condition()
            if value:
                return value
            time.sleep(0.002)
        raise AssertionError(f"within {seconds} s it did not come true: {what or condition}")

    def turn(self) -> None:
        """Let Qt do what waits."""
        self.hold(self._application.processEvents)
        if FAULTS:
            raise FAULTS.pop()

    def hold(self, call: Callable[[], Any]) -> Any:
        """Do what a click does; it counts as time in which the panel is held up."""
        wall, busy = time.perf_counter(), time.thread_time()
        value = call()
        self.longest = max(self.longest, time.perf_counter() - wall)
        self.busiest = max(self.busiest, time.thread_time() - busy)
        return value


@pytest.fixture
def loop(application: Any) -> Loop:
    return Loop(application)


@pytest.fixture
def scene(application: Any) -> Any:
    SLICER.mrmlScene.Clear(1)
    doubles.attach(SLICER)
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(SLICER.mrmlScene)
    tree.RemoveAllItems(False)  # a hierarchy to which a test held on is used again
    SLICER.dicomDatabase = doubles.Database({})
    SLICER.modules.__dict__.clear()
    return SLICER.mrmlScene


@pytest.fixture
def parameters(tmp_path: Path) -> Parameters:
    return Parameters(qt.QSettings(str(tmp_path / "settings.ini"), qt.QSettings.IniFormat))


class Panel:
    """The panel with what a test presses and reads."""

    def __init__(self, parameters: Parameters, loop: Loop, poll: float = 0.1) -> None:
        self.opened: list[str] = []
        self.loop = loop
        self.logic = Logic(
            parameters=parameters, tokens=Tokens(Store()), open_file=self.opened.append, poll=poll
        )
        self.widget = Widget(self.logic)
        self.root = self.widget.widget
        self.root.resize(520, 860)
        self.root.show()

    def find(self, name: str) -> Any:
        found = self.root.findChild(qt.QWidget, name)
        assert found is not None, name
        return found

    def click(self, name: str) -> None:
        button = self.find(name)
        assert button.isEnabled(), name
        self.loop.hold(button.click)

    def choose(self, name: str, data: str) -> None:
        combo = self.find(name)
        index = combo.findData(data)
        assert index >= 0, f"{name} offers no {data}"
        combo.setCurrentIndex(index)

    def connect(self, url: str) -> None:
        self.find("serverAddress").setText(url)
        self.click("connectButton")
        if self.widget.server.confirm.is_asking():
            self.confirm(self.widget.server.confirm)
        self.loop.until(
            lambda: not self.logic.session.connecting and not self.logic.forget_set.loading,
            what="it is connected",
        )

    def confirm(self, asked: Any, typed: str = "") -> None:
        assert asked.is_asking()
        yes = asked.widget.findChild(qt.QWidget, "confirmButton")
        if typed:
            assert not yes.isEnabled()
            asked.widget.findChild(qt.QWidget, "confirmWord").setText(typed)
        assert yes.isEnabled()
        self.loop.hold(yes.click)

    def banner(self) -> str:
        return self.widget.banner.text()

    def shot(self, name: str) -> None:
        """Save a picture where SEGUNLEARN_SHOTS says."""
        folder = os.environ.get("SEGUNLEARN_SHOTS")
        if folder:
            self.loop.until(lambda: not self.widget.forget.table.is_busy())
            self.loop.turn()
            self.root.grab().save(str(Path(folder) / f"{name}.png"))

    def close(self) -> None:
        self.widget.cleanup()
        self.root.close()
        self.root.deleteLater()
        self.loop.turn()


class Store:
    """A key store."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def get_password(self, service: str, user: str) -> str | None:
        return self.kept.get(user)

    def set_password(self, service: str, user: str, password: str) -> None:
        self.kept[user] = password

    def delete_password(self, service: str, user: str) -> None:
        self.kept.pop(user, None)


@pytest.fixture
def panel(scene: Any, parameters: Parameters, loop: Loop) -> Iterator[Panel]:
    made = Panel(parameters, loop)
    yield made
    made.close()


@pytest.fixture
def fake() -> Iterator[Script]:
    """A server that says what a test tells it to say."""
    with fake_server() as script:
        yield script


# -- the real server -----------------------------------------------------------------------------


@dataclass
class Place:
    """The server of ``serve.py``."""

    process: subprocess.Popen[str]
    url: str
    studies: list[dict[str, Any]]
    labels: dict[str, int]
    log: Path

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert json.loads(self.process.stdout.readline())["done"] == line.split()[0]

    def known(self, number: int) -> dict[str, Any]:
        return [s for s in self.studies if s["known"]][number]

    def unseen(self, number: int) -> dict[str, Any]:
        return [s for s in self.studies if not s["known"]][number]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("server")
    python = os.environ.get("SEGUNLEARN_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    process = subprocess.Popen(
        [python, str(ROOT / "tests" / "slicer" / "serve.py"), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the server did not start"
        about = json.loads(line)
        yield Place(process, about["url"], about["studies"], about["labels"], Path(about["log"]))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


# -- images --------------------------------------------------------------------------------------


def load_dicom(scene: Any, study: dict[str, Any], *, tree: bool = True) -> Any:
    """Load a series as Slicer's DICOM module does: storage node, hierarchy, instance UIDs."""
    import pydicom

    files = sorted(Path(study["folder"]).glob("*.dcm"))
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in files]
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "2: Abdomen")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(files[0]))
    storage.ResetFileNameList()
    for file in files:
        storage.AddFileName(str(file))
    storage.SetSingleFile(0)
    assert storage.ReadData(volume)
    uids = [str(h.SOPInstanceUID) for h in headers]
    volume.SetAttribute("DICOM.instanceUIDs", " ".join(uids))
    SLICER.dicomDatabase = doubles.Database(
        {
            uid: {"0020,000E": study["series"], "0020,000D": study["study"],
                  "0010,0020": study["patient"]}
            for uid in uids
        }
    )  # fmt: skip
    if tree:
        put_into_tree(scene, volume, study)
    return volume


def put_into_tree(scene: Any, volume: Any, study: dict[str, Any]) -> int:
    """Put a volume under its study, as the DICOM plugins do; returns its item."""
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    constants = SLICER.vtkMRMLSubjectHierarchyConstants
    item = tree.GetItemByDataNode(volume) or tree.CreateItem(tree.GetSceneItemID(), volume)
    tree.SetItemUID(item, constants.GetDICOMUIDName(), study["series"])
    tree.SetItemAttribute(item, constants.GetDICOMUIDName(), study["series"])
    SLICER.vtkSlicerSubjectHierarchyModuleLogic.InsertDicomSeriesInHierarchy(
        tree, study["patient"], study["study"], study["series"]
    )
    return int(item)


def load_file(scene: Any, name: str = "P-0815") -> Any:
    """Load an image whose origin nobody knows."""
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    SLICER.util.updateVolumeFromArray(volume, np.zeros((4, 5, 6), np.float32))
    return volume
