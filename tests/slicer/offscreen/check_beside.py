"""What the server runs beside the run that is followed, whoever started it."""

from __future__ import annotations

from typing import Any

import pytest
from check_faults import known_study
from check_reconnect import RUN, turns
from check_states import listed, working
from check_unlearning import shown

MINE = {**RUN, "kind": "train", "progress": {"phase": "train", "fraction": 0.2}}
OTHER = {**RUN, "run_id": "b" * 32, "model": "segmentation", "requested_by": "ann"}


def run(fake: Any, *found: dict[str, Any]) -> None:
    """Have the server run these, the newest first."""
    fake.answers["/runs"] = list(found)
    fake.answers |= {f"/runs/{one['run_id']}": one for one in found}


def end(fake: Any, one: dict[str, Any], state: str = "done") -> None:
    fake.answers[f"/runs/{one['run_id']}"] = {**one, "state": state}
    fake.answers["/runs"] = [r for r in fake.answers["/runs"] if r["run_id"] != one["run_id"]]


def of(*requests: dict[str, Any]) -> dict[str, Any]:
    """An unlearning of these that was started elsewhere."""
    return {**OTHER, "parameters": {"requests": [one["request_id"] for one in requests]}}


def beside(panel: Any) -> str:
    """What is said of other runs, empty where nothing is."""
    told = panel.find("runBeside")
    return str(told.text()) if told.isVisible() else ""


def asked_for_runs(fake: Any) -> int:
    return len(fake.asked("GET", "/runs"))


def test_an_unlearning_that_was_started_elsewhere_beside_a_run(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    known_study(panel, scene)
    one, two = working(0, "none"), working(1, "none")
    cover = {k: one[k] for k in ("request_id", "state", "needed", "reached")}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [cover]}}
    run(fake, MINE)
    listed(panel, fake, loop, one, two)
    loop.until(lambda: "20 %" in panel.find("runPhase").text())
    assert beside(panel) == ""
    assert shown(panel, one["request_id"]) == "Not yet forgotten"

    run(fake, of(one), MINE)
    loop.until(lambda: shown(panel, one["request_id"]) == "Being unlearned", 5, "the table")
    loop.until(lambda: "taken out of the model now" in panel.find("studyState").text(), 5, "card")
    assert shown(panel, two["request_id"]) == "Not yet forgotten"
    assert panel.find("runTitle").text() == "Training"  # it is followed as before
    assert beside(panel) == "Also running: Unlearning of 1 request (ann) · forget · 50 %"
    panel.shot("beside")

    now = {**one, "state": "fulfilled", "reached": "unlearned"}
    fake.answers["/forget/requests"] = {"total": 2, "requests": [now, two]}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [{**cover, **now}]}}
    end(fake, of(one))
    loop.until(lambda: shown(panel, one["request_id"]) == "Forgotten", 5, "the list is asked for")
    loop.until(lambda: panel.logic.study.state == "fulfilled", 5, "and the study")
    assert beside(panel) == ""
    assert panel.find("runTitle").text() == "Training"


def test_what_begins_elsewhere_is_followed_at_once(panel: Any, fake: Any, loop: Any) -> None:
    one = working(0, "none")
    listed(panel, fake, loop, one)
    turns(loop)
    assert panel.logic.runs.view is None
    run(fake, of(one))
    loop.until(lambda: shown(panel, one["request_id"]) == "Being unlearned", 5, "the table")
    loop.until(lambda: "50 %" in panel.find("runPhase").text(), 5, "the run is followed")
    assert beside(panel) == ""
    assert panel.find("runCancel").isVisible()


@pytest.mark.parametrize("anew", [False, True])
def test_how_a_run_ended_stays_until_it_is_hidden(
    panel: Any, fake: Any, loop: Any, anew: bool
) -> None:
    one = working(0, "none")
    run(fake, MINE)
    listed(panel, fake, loop, one)
    loop.until(lambda: "20 %" in panel.find("runPhase").text())
    end(fake, MINE, "failed")
    loop.until(lambda: panel.logic.runs.view.is_over)
    if anew:
        panel.connect(fake.url)
        turns(loop)
        run(fake, of(one))
    else:
        run(fake, of(one))
        loop.until(lambda: "Unlearning" in beside(panel), 5, "it is told")
        assert panel.find("runTitle").text() == "Training: Failed"
        panel.click("runHide")
    loop.until(lambda: panel.find("runTitle").isVisible(), 5, "the other one is followed")
    loop.until(lambda: panel.find("runTitle").text() == "Unlearning", 5)
    assert beside(panel) == ""


def test_the_audit_of_an_unlearning_is_not_taken_for_it(panel: Any, fake: Any, loop: Any) -> None:
    """An unlearning's audit is a run of its own, and the newer one."""
    one = working(0, "none")
    audit = {**OTHER, "run_id": "c" * 32, "kind": "audit"}
    run(fake, audit, of(one))
    listed(panel, fake, loop, one)
    loop.until(lambda: shown(panel, one["request_id"]) == "Being unlearned", 5, "the table")
    loop.until(lambda: panel.find("runTitle").text() == "Unlearning", 5, "it is followed")
    turns(loop, 150)
    assert beside(panel) == ""
    run(fake, {**audit, "model": "another"}, of(one))
    loop.until(lambda: "Audit" in beside(panel), 5, "one of another model is none of its")


def test_what_ended_is_not_called_running_by_an_older_answer(
    panel: Any, fake: Any, loop: Any
) -> None:
    one = working(0, "none")
    run(fake, of(one))
    listed(panel, fake, loop, one)
    loop.until(lambda: shown(panel, one["request_id"]) == "Being unlearned")
    fake.answers[f"/runs/{OTHER['run_id']}"] = {**of(one), "state": "failed"}  # /runs is older
    loop.until(lambda: panel.logic.runs.view.is_over)
    panel.click("runHide")
    turns(loop, 150)
    assert shown(panel, one["request_id"]) == "Not yet forgotten"


@pytest.mark.parametrize("connects", [False, True])
def test_nothing_is_asked_while_another_module_is_shown(
    panel: Any, fake: Any, loop: Any, connects: bool
) -> None:
    panel.connect(fake.url)
    loop.until(lambda: asked_for_runs(fake) > 2, 5, "it looks again and again")
    if connects:  # and left before the server has answered
        panel.click("connectButton")
    panel.widget.exit()
    turns(loop)  # what was asked is answered
    assert panel.logic.session.server is not None
    before = asked_for_runs(fake)
    turns(loop, 200)
    assert asked_for_runs(fake) == before
    panel.widget.enter()
    loop.until(lambda: asked_for_runs(fake) > before + 2, 5, "it looks again")


def test_a_server_that_is_away_or_wants_a_login(panel: Any, fake: Any, loop: Any) -> None:
    """What is known stays, no sentence is repeated, and no login is tried again and again."""
    one = working(0, "none")
    run(fake, of(one), MINE)
    listed(panel, fake, loop, one)
    loop.until(lambda: shown(panel, one["request_id"]) == "Being unlearned")
    runs = fake.answers["/runs"]
    fake.answers["/runs"] = (503, {"detail": "the store is away"})
    before = asked_for_runs(fake)
    loop.until(lambda: asked_for_runs(fake) > before + 1, 10, "it looks again, later")
    assert shown(panel, one["request_id"]) == "Being unlearned"
    assert panel.banner() == ""
    fake.answers["/runs"] = runs
    end(fake, of(one))
    end(fake, MINE)
    loop.until(lambda: shown(panel, one["request_id"]) == "Not yet forgotten", 10, "it is back")
    fake.answers["/runs"] = (401, {"detail": "expired"})
    before = asked_for_runs(fake)
    loop.until(lambda: asked_for_runs(fake) > before, 10, "it is told")
    before = asked_for_runs(fake)
    turns(loop, 300)
    assert asked_for_runs(fake) == before
