"""Connecting anew, leaving the module and coming back: nothing is dead or out of date after it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from check_corrections import LABELS, box, nrrd
from check_faults import known_study
from fake import fake_server, mask, pages, request

from SegUnlearnLib import segmentation

TASK = {"id": "7", "status": "SUBMITTED", "details": []}
RUN = {"run_id": "a" * 32, "kind": "unlearn", "state": "running", "message": "",
       "progress": {"phase": "forget", "fraction": 0.5}, "parameters": {}}  # fmt: skip


def turns(loop: Any, times: int = 60) -> None:
    for _ in range(times):
        loop.turn()
        threading.Event().wait(0.005)


def queued(panel: Any, fake: Any, loop: Any) -> None:
    """Start an unlearning that waits behind another task."""
    fake.answers["POST /train/unlearn"] = TASK
    fake.answers["GET /train/"] = [TASK]
    panel.logic.runs.start("unlearn", {"dry_run": False})
    loop.until(lambda: "waits for its turn" in panel.find("runText").text())


def its_turn(fake: Any) -> None:
    fake.answers["GET /train/"] = [{**TASK, "status": "RUNNING"}]
    fake.answers["/runs"] = [RUN]
    fake.answers[f"/runs/{RUN['run_id']}"] = RUN


def is_followed(panel: Any, fake: Any, loop: Any) -> None:
    loop.until(lambda: "50 %" in panel.find("runPhase").text(), 5, "the run is followed")
    assert panel.find("runCancel").isVisible()
    fake.answers[f"/runs/{RUN['run_id']}"] = {**RUN, "state": "done"}
    loop.until(lambda: panel.logic.runs.view.is_over, 5, "its end is seen")


@pytest.mark.parametrize("what", ["segment", "submit"])
def test_connecting_anew_breaks_off_what_is_under_way(
    panel: Any, scene: Any, fake: Any, loop: Any, what: str
) -> None:
    volume, wait = known_study(panel, scene), threading.Event()
    content = nrrd(scene, box(1))
    fake.answers["POST /infer/segmentation"] = mask(content, LABELS, wait)
    fake.answers["PUT /datastore/label"] = lambda _: wait.wait(30) and {"label": "x"}
    panel.connect(fake.url)
    if what == "segment":
        panel.click("segmentButton")
    else:
        segmentation.show_mask(scene, volume, content, "x.nrrd", LABELS)
        panel.click("submitButton")
        panel.confirm(panel.widget.masks.confirm)
    loop.until(lambda: panel.logic.masks.is_busy)
    panel.connect(fake.url)
    assert panel.find("segmentButton").isEnabled()
    assert panel.find("submitButton").isEnabled()
    assert not panel.find("segmentCancel").isVisible()
    said = {"segment": "Press Segment again", "submit": "is not known"}[what]
    assert said in panel.find("maskState").text()
    wait.set()
    turns(loop)
    if what == "segment":  # what was broken off does not come all the same
        assert segmentation.found_segmentation(scene, volume) is None
        panel.click("segmentButton")
        loop.until(lambda: segmentation.found_segmentation(scene, volume), what="it works again")
    assert np.any(segmentation.would_replace(scene, volume, LABELS))


def test_a_waiting_run_is_found_after_coming_back(panel: Any, fake: Any, loop: Any) -> None:
    panel.connect(fake.url)
    queued(panel, fake, loop)
    panel.widget.exit()
    turns(loop)  # what was asked is answered
    fake.seen.clear()
    turns(loop)
    assert fake.seen == []  # nothing is asked while another module is shown
    its_turn(fake)
    panel.widget.enter()
    is_followed(panel, fake, loop)


@pytest.mark.parametrize("late", [False, True])
def test_the_server_answers_a_start_while_another_module_is_shown(
    panel: Any, fake: Any, loop: Any, late: bool
) -> None:
    wait = threading.Event()
    fake.answers["POST /train/unlearn"] = lambda _: wait.wait(30) and TASK
    fake.answers["GET /train/"] = [TASK]
    panel.connect(fake.url)
    panel.logic.runs.start("unlearn", {"dry_run": False})
    loop.until(lambda: fake.asked("POST", "/train/unlearn"))
    panel.widget.exit()
    if late:
        panel.widget.enter()
    wait.set()
    turns(loop)
    if not late:
        panel.widget.enter()
    its_turn(fake)
    is_followed(panel, fake, loop)


def test_a_waiting_run_is_found_after_connecting_anew(panel: Any, fake: Any, loop: Any) -> None:
    panel.connect(fake.url)
    queued(panel, fake, loop)
    panel.connect(fake.url)
    loop.until(lambda: panel.find("runText").isVisible(), 5, "it is shown")
    assert "waits for its turn" in panel.find("runText").text()
    its_turn(fake)
    is_followed(panel, fake, loop)


def test_a_run_that_was_started_elsewhere_meanwhile(panel: Any, fake: Any, loop: Any) -> None:
    panel.connect(fake.url)
    panel.widget.exit()
    its_turn(fake)
    panel.widget.enter()
    is_followed(panel, fake, loop)


def test_a_server_that_was_started_anew_knows_no_task(panel: Any, fake: Any, loop: Any) -> None:
    panel.connect(fake.url)
    for answer in ((404, {"detail": "No Train task was started since the server runs."}), []):
        queued(panel, fake, loop)
        fake.answers["GET /train/"] = answer
        loop.until(lambda: panel.logic.runs.view.is_over, 5, "it is given up")
        assert panel.logic.runs.view.state == "lost"
        assert "start it again" in panel.find("runText").text().lower()


def test_a_start_that_is_refused_leaves_no_run_behind(panel: Any, fake: Any, loop: Any) -> None:
    fake.answers["/forget/requests"] = pages(1)
    fake.answers["POST /train/unlearn"] = (409, {"detail": "nothing is approved"})
    panel.connect(fake.url)
    panel.widget.tabs.setCurrentIndex(1)
    loop.until(lambda: panel.find("dryRunButton").isEnabled())
    panel.click("dryRunButton")
    loop.until(panel.banner)
    assert not panel.widget.run.widget.isVisible()
    assert panel.find("dryRunButton").isEnabled()


def test_another_server_gets_no_answer_to_an_older_question(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    """A question, a run and a list belong to the server that they are about."""
    volume = known_study(panel, scene)
    fake.answers["/forget/requests"] = pages(1, ("fulfilled",))
    fake.answers["POST /infer/segmentation"] = mask(nrrd(scene, box(1)), LABELS)
    segmentation.show_mask(scene, volume, nrrd(scene, box(1, at=2)), "x.nrrd", LABELS)
    panel.connect(fake.url)
    panel.click("segmentButton")
    loop.until(panel.widget.masks.replace.is_asking)
    queued(panel, fake, loop)
    panel.click("markButton")
    panel.click("submitButton")
    fake.answers["GET /train/"] = [{**TASK, "status": "DONE"}]
    loop.until(lambda: panel.logic.runs.view.is_over)
    panel.widget.tabs.setCurrentIndex(1)
    loop.until(lambda: panel.widget.forget.table.count() == 1)
    panel.widget.forget.table.select(request(0)["request_id"])
    fake.answers[f"GET /forget/requests/{request(0)['request_id']}/purge"] = {
        "destroyed": ["v0001"], "requests": [],
    }  # fmt: skip
    panel.click("purgeButton")
    loop.until(panel.widget.forget.confirm.is_asking)
    asked = [part.confirm for part in (panel.widget.study, panel.widget.masks, panel.widget.forget)]
    asked.append(panel.widget.masks.replace)
    assert all(one.is_asking() for one in asked)
    with fake_server() as other:
        panel.connect(other.url)
        assert not any(one.is_asking() for one in asked)
        assert "was dropped" in panel.find("maskState").text()
        assert not panel.widget.run.widget.isVisible()
        assert panel.logic.runs.view is None


def test_coming_back_asks_what_others_changed(panel: Any, scene: Any, fake: Any, loop: Any) -> None:
    known_study(panel, scene)
    fake.answers["/forget/requests"] = pages(1, ("approved",))
    fake.answers["/forget/status"] = {"1.2.3": {"covers": []}}
    panel.connect(fake.url)
    loop.until(lambda: panel.logic.study.state == "free")
    panel.widget.exit()
    turns(loop)
    fake.seen.clear()
    fake.answers["/forget/requests"] = pages(1, ("fulfilled",))
    cover = {"request_id": "1", "state": "fulfilled", "needed": "unlearned", "reached": "unlearned"}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [cover]}}
    fake.answers["/audits"] = {"audits": [{"audit_id": "9", "outcome": "passed"}]}
    panel.widget.enter()
    loop.until(lambda: panel.logic.study.state == "fulfilled", 5, "the study's state is asked")
    loop.until(lambda: panel.logic.evidence.audits, 5, "the audits are asked")
    requests = panel.logic.forget_set.requests
    loop.until(
        lambda: {r["state"] for r in requests.values()} == {"fulfilled"}, 5, "so is the list"
    )
    assert fake.asked("GET", "/info/")  # what is served may be another version
    assert not fake.asked("GET", "/datastore/")  # a list as long as the archive
