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


def shown(panel: Any, request_id: str) -> str:
    """The state of a request as its row in the table says it."""
    model = panel.widget.forget.table.widget.model()
    (place,) = [i for i, row in enumerate(model.rows) if row.request_id == request_id]
    return str(model.data(model.index(place, 0)))


def select(panel: Any, request_id: str) -> None:
    panel.loop.until(lambda: not panel.widget.forget.table.is_busy())
    panel.widget.forget.table.widget.clearSelection()
    panel.widget.forget.table.select(request_id)
    assert panel.widget.forget.table.selected() == [request_id]


def in_phase(panel: Any, loop: Any, phase: str, fraction: float = 0.0) -> None:
    """Wait until the panel shows a phase; a run that ended before it fails at once."""
    run = panel.logic.runs
    there = lambda: run.view.phase == phase and run.view.fraction >= fraction  # noqa: E731
    loop.until(lambda: there() or run.view.is_over, CHILD, f"it comes to {phase}")
    assert there(), run.view


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

    # the real one: retrained without the study and audited; the number of studies is typed
    place.tell("seconds real")
    panel.choose("levelChoice", "retrained")
    select(panel, request_id)
    panel.click("unlearnButton")
    asked = panel.widget.forget.confirm
    loop.until(asked.is_asking, what="the plan is there")
    assert "1 study of 1 person" in asked.text()
    assert "to the level retrained?" in asked.text()  # what was chosen, not what is needed
    panel.shot("unlearn-confirm")
    panel.confirm(asked, "1")
    run = panel.logic.runs
    in_phase(panel, loop, "train", 0.2)
    assert panel.find("runBar").value() > 0
    assert "train" in panel.find("runPhase").text()
    assert panel.find("runCancel").isVisible()
    loop.until(lambda: shown(panel, request_id) == "Being unlearned", 5, "so does the table")
    panel.shot("unlearning")
    views = run_to_end(panel, loop)
    fractions: dict[str, list[float]] = {}
    for view in views:
        fractions.setdefault(view.phase, []).append(view.fraction)
    assert any(phase.startswith("audit: ") for phase in fractions)
    assert all(found == sorted(found) for found in fractions.values())
    assert (run.view.kind, run.view.state) == ("unlearn", "done"), run.view
    loop.until(lambda: shown(panel, request_id) == "Forgotten", 5, "the table follows")
    assert panel.find("restoreButton").isEnabled()
    active = get(place, "/models")["active"]
    assert active != served
    loop.until(lambda: panel.logic.session.server.served == active, what="the panel says so")
    loop.until(lambda: panel.logic.study.state == "fulfilled")
    panel.shot("forgotten")

    # its audit and the report
    loop.until(lambda: panel.logic.evidence.audits, what="the audit is listed")
    (audit,) = panel.logic.evidence.audits
    assert (audit["outcome"], audit["reached"]) == ("passed", "retrained")
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
    in_phase(panel, loop, "forget")
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
    loop.until(panel.widget.forget.confirm.is_asking)
    panel.shot("purge")
    panel.confirm(panel.widget.forget.confirm, "purge")
    loop.until(lambda: of(panel, request_id) == "purged", 60, "it is erased")
    loop.until(lambda: "Erased for good" in panel.banner())
