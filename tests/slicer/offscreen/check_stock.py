"""MONAI Label's own Slicer module, unmodified, against our server: no accident, right progress."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pythonqt
from check_unlearning import get, post, put

from conftest import CHILD, ROOT, SLICER

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # its client imports cgi
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]
TRAINERS = ["segmentation", "unlearn", "site_adapt"]


@pytest.fixture
def stock(scene: Any, place: Any, tmp_path: Path) -> Iterator[Any]:
    """The module's widget after its user entered our address."""
    python = Path(os.environ.get("SEGUNLEARN_PYTHON", ROOT / ".venv" / "bin" / "python"))
    folder = python.parents[1] / "monailabel" / "plugins" / "slicer" / "MONAILabel"
    settings = tmp_path / "stock.ini"
    util = dict(vars(SLICER.util))
    module, shown = pythonqt.install_stock(SLICER, folder, settings)
    widget = module.MONAILabelWidget()
    widget.parent.isEntered = True
    widget.setup()
    widget.ui.serverComboBox.addItem(place.url)
    widget.ui.serverComboBox.setCurrentIndex(0)
    widget.shown = shown
    try:
        widget.onClickFetchInfo()
        yield widget
    finally:
        if widget.timer is not None:
            widget.timer.stop()
        widget.cleanup()
        vars(SLICER.util).update(util)


def ended(place: Any, loop: Any) -> None:
    """No task of the server runs or waits."""
    loop.until(
        lambda: all(t["status"] not in ("SUBMITTED", "RUNNING") for t in tasks(place)),
        CHILD,
        "it ends",
    )


def tasks(place: Any) -> list[dict[str, Any]]:
    try:
        return list(get(place, "/train/?all=true"))
    except OSError:  # 404: none was started since the server runs
        return []


def options(widget: Any, name: str) -> dict[str, str]:
    """Show the options of a trainer; returns the rows of the table."""
    widget.ui.optionsSection.setCurrentIndex(1)
    names = [widget.ui.optionsName.itemText(i) for i in range(widget.ui.optionsName.count)]
    assert names[:3] == TRAINERS
    widget.ui.optionsName.setCurrentIndex(names.index(name))
    table, found = widget.ui.configTable, {}
    for row in range(table.rowCount):
        cell, box = table.item(row, 1), table.cellWidget(row, 1)
        value = cell.text() if cell else getattr(box, "checked", None)
        found[table.item(row, 0).text()] = box.currentText if value is None else value
    return found


def choose_trainer(widget: Any, name: str) -> None:
    widget.ui.trainerBox.setCurrentIndex(widget.ui.trainerBox.findText(name))
    widget.updateParameterNodeFromGUI()
    assert widget.ui.trainerBox.currentText == name


def test_what_it_shows(stock: Any) -> None:
    assert stock.shown == []
    assert stock.ui.appComboBox.currentText == "SegUnlearn"
    assert stock.ui.segmentationModelSelector.itemText(0) == "segmentation"
    count = stock.ui.segmentationModelSelector.count
    assert stock.ui.segmentationModelSelector.itemText(count - 1) == "forget_study"
    trainers = [stock.ui.trainerBox.itemText(i) for i in range(stock.ui.trainerBox.count)]
    assert trainers[:3] == TRAINERS
    assert stock.ui.trainerBox.currentText == "segmentation"  # the default is the harmless one
    unlearn = options(stock, "unlearn")
    assert unlearn["dry_run"] is True
    assert unlearn["level"] == "auto"
    assert options(stock, "site_adapt")["adapt_now"] is False


def test_unlearn_does_nothing_by_accident(stock: Any, place: Any, loop: Any) -> None:
    ended(place, loop)
    if get(place, "/forget/requests?state=approved")["total"]:
        pytest.fail("another test left an approved request behind")
    before = (get(place, "/models"), len(tasks(place)))
    choose_trainer(stock, "unlearn")
    stock.onTraining()  # the button "Train"
    assert "Failed to run training" in stock.shown[0]  # the server refuses: nothing is approved
    assert (get(place, "/models"), len(tasks(place))) == before

    request = put(
        place, f"/forget/studies/{place.known(3)['study']}", {"reason": "consent_withdrawn"}
    )
    post(place, f"/forget/requests/{request['request_id']}/approve")
    # options of other trainers leak into what is sent, numbers as texts
    options(stock, "unlearn")
    stock.onClickFetchInfo()
    options(stock, "site_adapt")
    stock.info["trainers"]["unlearn"]["config"].update({"max_epochs": "50", "adapt_now": True})
    choose_trainer(stock, "unlearn")
    stock.shown.clear()
    stock.onTraining()
    assert stock.shown == []
    sent = tasks(place)[-1]["request"]
    assert sent["model"] == "unlearn"
    assert sent["dry_run"] is True
    assert not {"max_epochs", "adapt_now", "pretrained"} & set(sent)
    words = "options that this trainer does not have are ignored"
    noted = [line for line in place.log.read_text().splitlines() if words in line]
    assert any("pretrained" in line for line in noted)  # the leak of the ordinary trainer was there
    stop = urllib.request.Request(
        f"{place.url}/train/", method="DELETE"
    )  # only what was sent counts
    urllib.request.urlopen(stop, timeout=60).close()
    ended(place, loop)
    assert get(place, "/models") == before[0]
    assert get(place, f"/forget/requests/{request['request_id']}")["state"] == "approved"


def test_progress_is_that_of_the_running_trainer(stock: Any, place: Any, loop: Any) -> None:
    """The stock module shows the first of ``train_stats``, whatever is selected."""
    ended(place, loop)
    place.tell("seconds 6")
    post(place, "/train/unlearn", {"dry_run": False})

    def running() -> bool:
        return any((r["state"], r["kind"]) == ("running", "unlearn") for r in get(place, "/runs"))

    loop.until(running, CHILD, "it runs")
    assert next(iter(get(place, "/info/")["train_stats"])) == "unlearn"
    seen: list[int] = []

    def looked() -> bool:
        time.sleep(0.3)
        stock.monitorTraining()
        seen.append(stock.ui.trainingProgressBar.value)
        return seen[-1] >= 50

    loop.until(looked, CHILD, "half of it is shown")
    assert seen == sorted(seen)
    ended(place, loop)
