"""From a mark to a forgotten study and back, pressed in the panel, on the real server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from conftest import CHILD, load_dicom
from SegUnlearnLib import texts


def get(place: Any, path: str) -> Any:
    with urllib.request.urlopen(f"{place.url}{path}", timeout=60) as answer:
        return json.loads(answer.read())


def put(place: Any, path: str, body: dict[str, Any]) -> Any:
    return _send(place, "PUT", path, body)


def post(place: Any, path: str, body: dict[str, Any] | None = None) -> Any:
    return _send(place, "POST", path, body or {})


def _send(place: Any, method: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{place.url}{path}", json.dumps(body).encode(), method=method,
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def of(panel: Any, request_id: str) -> str:
    return str(panel.logic.forget_set.requests.get(request_id, {}).get("state"))


def select(panel: Any, request_id: str) -> None:
    panel.loop.until(lambda: not panel.widget.forget.table.is_busy())
    panel.widget.forget.table.widget.clearSelection()
    panel.widget.forget.table.select(request_id)
    assert panel.widget.forget.table.selected() == [request_id]


def run_to_end(panel: Any, loop: Any, seconds: float = CHILD) -> list[Any]:
    """Follow the run; returns what the panel showed of it."""
    seen: list[Any] = []
    panel.logic.runs.changed.connect(seen.append)
    loop.until(lambda: panel.logic.runs.view and panel.logic.runs.view.is_over, seconds, "it ends")
    panel.logic.runs.changed.disconnect(seen.append)
    return seen


def test_approve_plan_unlearn_restore(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    study = place.known(0)
    load_dicom(scene, study)
    request = put(place, f"/forget/studies/{study['study']}", {"reason": "consent_withdrawn"})
    request_id = request["request_id"]
    panel.widget.enter()
    panel.connect(place.url)
    panel.widget.tabs.setCurrentIndex(1)
    loop.until(lambda: panel.logic.study.known_by >= 1, what="the ledger is asked")

    select(panel, request_id)
    assert not panel.find("unlearnButton").isEnabled()  # nothing is approved
    panel.click("approveButton")
    panel.confirm(panel.widget.forget.confirm, "1")
    loop.until(lambda: of(panel, request_id) == "approved", what="it is approved")

    # a dry run tells and changes nothing
    select(panel, request_id)
    panel.click("dryRunButton")
    run_to_end(panel, loop)
    view = panel.logic.runs.view
    assert (view.kind, view.state) == ("plan", "done")
    assert view.lines
    assert texts.squeeze(view.lines[0]) in panel.find("runText").text()
    panel.shot("dry-run")
    assert of(panel, request_id) == "approved"
    served = get(place, "/models")["active"]

    # the real one, with the number of studies typed
    place.tell("seconds 2")
    select(panel, request_id)
    panel.click("unlearnButton")
    asked = panel.widget.forget.confirm
    loop.until(asked.is_asking, what="the plan is there")
    assert "1 study of 1 person" in asked.text()
    panel.shot("unlearn-confirm")
    panel.confirm(asked, "1")
    loop.until(lambda: panel.logic.runs.view.fraction > 0.2, CHILD, "it shows progress")
    assert panel.find("runBar").value() > 0
    assert "forget" in panel.find("runPhase").text()
    assert panel.find("runCancel").isVisible()
    panel.shot("unlearning")
    shown = [v.fraction for v in run_to_end(panel, loop) if v.phase == "forget"]
    assert shown == sorted(shown)
    assert (panel.logic.runs.view.kind, panel.logic.runs.view.state) == ("unlearn", "done")
    loop.until(lambda: of(panel, request_id) == "fulfilled", what="the table follows")
    active = get(place, "/models")["active"]
    assert active != served
    loop.until(lambda: panel.logic.session.server.served == active, what="the panel says so")
    loop.until(lambda: panel.logic.study.state == "fulfilled")
    panel.shot("forgotten")

    # its audit and the report
    loop.until(lambda: panel.logic.evidence.audits, what="the audit is listed")
    panel.widget.tabs.setCurrentIndex(2)
    panel.shot("audits")
    panel.click("reportButton")
    loop.until(lambda: panel.opened, what="the report is opened")
    report = Path(panel.opened[0])
    assert "Audit report" in report.read_text(encoding="utf-8")

    # and back
    panel.widget.tabs.setCurrentIndex(1)
    select(panel, request_id)
    panel.click("restoreButton")
    panel.confirm(panel.widget.forget.confirm, "restore")
    loop.until(lambda: of(panel, request_id) == "restored", 60, "it is restored")
    assert get(place, "/models")["active"] == served
    panel.close()
    assert not report.exists()  # reports do not stay on the disk


def test_a_run_is_cancelled_tried_again_and_purged(
    panel: Any, scene: Any, place: Any, loop: Any
) -> None:
    study = place.known(1)
    mark = put(place, f"/forget/studies/{study['study']}", {"reason": "consent_withdrawn"})
    request_id = mark["request_id"]
    panel.widget.enter()
    panel.connect(place.url)
    panel.widget.tabs.setCurrentIndex(1)
    select(panel, request_id)
    panel.click("approveButton")
    panel.confirm(panel.widget.forget.confirm, "1")
    loop.until(lambda: of(panel, request_id) == "approved")
    place.tell("seconds 60")
    loop.until(lambda: not panel.widget.forget.table.is_busy())
    before = get(place, "/models")["active"]
    panel.logic.runs.start(
        "unlearn", {"requests": [request_id], "level": "unlearned", "dry_run": False}
    )
    loop.until(lambda: panel.logic.runs.view.phase == "forget", CHILD, "it runs")
    panel.click("runCancel")
    run_to_end(panel, loop)
    assert panel.logic.runs.view.state == "cancelled"
    assert "Cancelled" in panel.find("runTitle").text()
    assert get(place, "/models")["active"] == before
    loop.until(lambda: of(panel, request_id) in ("refused", "approved"))
    panel.click("runHide")
    assert not panel.find("runTitle").isVisible()

    # tried again, forgotten, and made final
    place.tell("seconds 0.2")
    select(panel, request_id)
    panel.click("unlearnButton")
    loop.until(panel.widget.forget.confirm.is_asking)
    panel.confirm(panel.widget.forget.confirm, "1")
    run_to_end(panel, loop)
    loop.until(lambda: of(panel, request_id) == "fulfilled")
    select(panel, request_id)
    panel.click("purgeButton")
    panel.shot("purge")
    panel.confirm(panel.widget.forget.confirm, "purge")
    loop.until(lambda: of(panel, request_id) == "purged", 60, "it is erased")
    loop.until(lambda: "Erased for good" in panel.banner())
