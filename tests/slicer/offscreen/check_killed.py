"""The server is killed in mid-run, and comes back: last, see ``conftest``."""

from __future__ import annotations

from typing import Any

from check_unlearning import get, in_phase, of, put

from conftest import CHILD


def test_killed_and_back(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    study = place.known(2)
    mark = put(place, f"/forget/studies/{study['study']}", {"reason": "consent_withdrawn"})
    request_id = mark["request_id"]
    panel.widget.enter()
    panel.connect(place.url)
    panel.widget.tabs.setCurrentIndex(1)
    panel.logic.forget_set.approve([request_id])
    loop.until(lambda: of(panel, request_id) == "approved")
    panel.find("markNote").setText("half a sentence")
    place.tell("seconds 60")
    panel.logic.runs.start("unlearn", {"requests": [request_id], "dry_run": False})
    in_phase(panel, loop, "forget")
    run_id = panel.logic.runs.view.run_id

    place.tell("kill")
    loop.until(lambda: panel.find("runTrouble").isVisible(), 30, "the panel notices")
    assert "next look in" in panel.find("runTrouble").text()
    assert panel.logic.runs.view.state == "running"  # what it is, nobody can say now
    panel.click("refreshButton")
    loop.until(lambda: not panel.logic.forget_set.loading)
    assert "Is the server running" in panel.banner()
    assert panel.logic.forget_set.requests[request_id]  # what was known stays on the screen
    assert panel.find("markNote").text() == "half a sentence"
    panel.shot("killed")

    place.tell("start")
    loop.until(lambda: panel.logic.runs.view.is_over, CHILD, "the panel finds it again")
    assert panel.logic.runs.view.run_id == run_id
    assert panel.logic.runs.view.state in ("interrupted", "cancelled", "failed")
    assert not panel.find("runTrouble").isVisible()
    loop.until(lambda: of(panel, request_id) in ("approved", "refused"), CHILD)
    assert get(place, "/models")["active"]
    assert panel.find("markNote").text() == "half a sentence"
