"""What is said of a request's state is so, and what can be done in it is offered."""

from __future__ import annotations

import json
from typing import Any

import pytest
import qt
from check_faults import known_study
from check_reconnect import RUN, TASK
from check_unlearning import of, put, run_to_end, select, shown
from fake import request

from conftest import SLICER
from SegUnlearnLib import hierarchy, texts
from SegUnlearnLib.identity import Identity


def listed(panel: Any, fake: Any, loop: Any, *found: dict[str, Any]) -> None:
    """Show these requests."""
    fake.answers["/forget/requests"] = {"total": len(found), "requests": list(found)}
    panel.connect(fake.url)
    panel.widget.tabs.setCurrentIndex(1)
    loop.until(lambda: panel.widget.forget.table.count() == len(found))


def working(number: int, reached: str, needed: str = "unlearned") -> dict[str, Any]:
    return {**request(number, "working"), "reached": reached, "needed": needed}


def started(fake: Any) -> Any:
    """Body of the start of an unlearning."""
    (body,) = [b for m, p, _, b in fake.seen if m == "POST" and p.startswith("/train/unlearn")]
    return json.loads(body)


def test_what_is_in_work_can_be_unlearned(panel: Any, fake: Any, loop: Any) -> None:
    """Only hidden so far, or known by another model: the server takes both."""
    found = [
        working(0, "none"), working(1, "hidden"), working(2, "unlearned"),
        working(3, "unlearned", "retrained"),
    ]  # fmt: skip
    listed(panel, fake, loop, *found)
    words = [shown(panel, one["request_id"]) for one in found]
    assert words == [
        "Not yet forgotten", "Only hidden so far", "Another model knows it",
        "Only unlearned so far",
    ]  # fmt: skip
    fake.answers["/unlearning/plan"] = {
        "requests": [], "original": "v1", "studies": 1, "people": 1, "level": "unlearned",
        "lines": [],
    }  # fmt: skip
    fake.answers["POST /train/unlearn"] = TASK
    fake.answers["GET /train/"] = [TASK]
    select(panel, found[1]["request_id"])
    panel.click("unlearnButton")
    asked = panel.widget.forget.confirm
    loop.until(asked.is_asking)
    assert fake.asked("GET", "/unlearning/plan")[0]["request"] == [found[1]["request_id"]]
    panel.confirm(asked, "1")
    loop.until(lambda: fake.asked("POST", "/train/unlearn"))
    assert started(fake)["requests"] == [found[1]["request_id"]]
    panel.find("stateFilter").setCurrentIndex(2)
    assert panel.find("stateFilter").currentText() == "To unlearn"
    assert panel.widget.forget.table.count() == len(found)


def test_without_a_selection_the_server_chooses_what_waits(
    panel: Any, fake: Any, loop: Any
) -> None:
    """A name of what only another model knows would be refused, and all others with it."""
    listed(panel, fake, loop, working(0, "unlearned"), request(1, "fulfilled"))
    fake.answers["POST /train/unlearn"] = TASK
    fake.answers["GET /train/"] = [TASK]
    panel.click("dryRunButton")
    loop.until(lambda: fake.asked("POST", "/train/unlearn"))
    assert started(fake) == {"level": "auto", "dry_run": True}


def test_nothing_to_unlearn_is_not_called_an_unlearning(panel: Any, fake: Any, loop: Any) -> None:
    listed(panel, fake, loop, request(0, "approved"))
    fake.answers["/unlearning/plan"] = {
        "requests": [{"id": "0", "what": "no version was taught it: fulfilled at once"}],
        "original": "", "studies": 0, "people": 0, "level": "unlearned", "lines": ["x"],
    }  # fmt: skip
    panel.click("unlearnButton")
    asked = panel.widget.forget.confirm
    loop.until(asked.is_asking)
    assert "1 request: no version was taught it: fulfilled at once." in asked.text()
    assert "0 studies" not in asked.text()
    fake.answers["POST /train/unlearn"] = TASK
    fake.answers["GET /train/"] = [TASK]
    panel.confirm(asked, "unlearn")
    loop.until(lambda: fake.asked("POST", "/train/unlearn"))


def unlearning(fake: Any, *found: dict[str, Any]) -> str:
    """Have the server unlearn these now; returns the run's path."""
    run = {**RUN, "parameters": {"requests": [one["request_id"] for one in found]}}
    path = f"/runs/{run['run_id']}"
    fake.answers |= {"/runs": [run], path: run}
    return path


def test_only_what_a_run_works_on_is_being_unlearned(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    """A process that was killed leaves requests in work that nothing works on."""
    known_study(panel, scene)
    found = [working(0, "none"), working(1, "hidden"), working(2, "none"), working(3, "hidden")]
    path = unlearning(fake, *found[:2])
    cover = {k: found[1][k] for k in ("request_id", "state", "needed", "reached")}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [cover]}}
    listed(panel, fake, loop, *found)
    words = lambda: [shown(panel, one["request_id"]) for one in found]  # noqa: E731
    study = panel.find("studyState")
    rest = ["Not yet forgotten", "Only hidden so far"]
    loop.until(lambda: words() == ["Being unlearned"] * 2 + rest, 5, "what the run works on")
    loop.until(lambda: "being taken out of the model now" in study.text(), 5, "so says the card")
    asked = len(fake.asked("GET", "/forget/status"))
    fake.answers[path] = {**fake.answers[path], "state": "interrupted"}
    fake.answers["/runs"] = []
    loop.until(lambda: words() == rest + rest, 5, "nothing works on them any more")
    loop.until(lambda: "only hidden so far" in study.text(), 5, "so says the card")
    loop.until(lambda: len(fake.asked("GET", "/forget/status")) > asked)


def test_a_study_whose_unlearning_begins_meanwhile(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    known_study(panel, scene)
    one = working(0, "hidden")
    cover = {k: one[k] for k in ("request_id", "state", "needed", "reached")}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [cover]}}
    fake.answers["PUT /forget/studies/1.2.3"] = one
    listed(panel, fake, loop, one)
    loop.until(lambda: "only hidden so far" in panel.find("studyState").text())
    unlearning(fake, one)
    panel.logic.runs.follow_running()
    loop.until(lambda: shown(panel, one["request_id"]) == "Being unlearned", 5, "the table")
    loop.until(lambda: "taken out of the model now" in panel.find("studyState").text(), 5, "card")
    panel.widget.tabs.setCurrentIndex(0)
    panel.click("markButton")
    panel.confirm(panel.widget.study.confirm)
    loop.until(panel.banner)
    assert "taken out of the model now" in panel.banner()


def test_a_dry_run_unlearns_nothing(panel: Any, fake: Any, loop: Any) -> None:
    one = working(0, "none")
    unlearning(fake, one)
    fake.answers["/runs"] = [{**fake.answers["/runs"][0], "kind": "plan"}]
    fake.answers[f"/runs/{RUN['run_id']}"] = fake.answers["/runs"][0]
    listed(panel, fake, loop, one)
    loop.until(lambda: panel.logic.runs.view)
    loop.until(lambda: not panel.widget.forget.table.is_busy())
    assert shown(panel, one["request_id"]) == "Not yet forgotten"


@pytest.mark.parametrize(
    ("state", "reached", "words"),
    [("fulfilled", "hidden", "hidden"), ("fulfilled", "unlearned", "forgotten"),
     ("working", "hidden", "only hidden so far"), ("working", "none", "not yet forgotten")],
)  # fmt: skip
def test_the_menu_of_the_tree_says_what_the_panel_says(
    panel: Any, scene: Any, fake: Any, loop: Any, state: str, reached: str, words: str
) -> None:
    volume = known_study(panel, scene)
    cover = {"request_id": "1", "state": state, "needed": "unlearned", "reached": reached}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [cover]}}
    panel.connect(fake.url)
    loop.until(lambda: panel.logic.study.state == state)
    tree = SLICER.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item, action = tree.GetItemByDataNode(volume), qt.QAction()
    identify = lambda item: panel.logic.identify(volume)  # noqa: E731
    hierarchy.MarkMenu(action, lambda: tree, identify, lambda *_: None).show_for(item)
    assert action.text() == f"Mark for forgetting… ({words})"


@pytest.mark.parametrize(
    ("state", "reached", "says", "says_not"),
    [
        ("working", "none", "not yet forgotten", "being taken out"),
        ("working", "hidden", "only hidden so far", "being taken out"),
        ("working", "unlearned", "another model", "being taken out"),
        ("refused", "none", "stopped, failed, or did not pass", "The audit found"),
        ("fulfilled", "hidden", "weights may still hold it", "Forgotten"),
        ("fulfilled", "unlearned", "unlearned together with it", ""),
    ],
)
def test_the_study_is_said_to_be_what_it_is(
    panel: Any, scene: Any, fake: Any, loop: Any, state: str, reached: str, says: str,
    says_not: str,
) -> None:  # fmt: skip
    known_study(panel, scene)
    needed = "hidden" if state == "fulfilled" and reached == "hidden" else "unlearned"
    cover = {"request_id": "1", "state": state, "needed": needed, "reached": reached}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [cover]}}
    panel.connect(fake.url)
    loop.until(lambda: panel.logic.study.state == state)
    text = panel.find("studyState").text()
    assert says in text
    assert not says_not or says_not not in text


def test_a_proposal_and_marked_series_of_a_study(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    known_study(panel, scene)
    cover = {"request_id": "1", "state": "proposed", "needed": "unlearned", "reached": "none"}
    fake.answers["/forget/status"] = {
        "1.2.3": {"covers": [], "proposals": [cover], "series_marked": 0}
    }
    panel.connect(fake.url)
    loop.until(lambda: panel.logic.study.state == "proposed")
    assert "nobody has decided" in panel.find("studyState").text()
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [], "series_marked": 2}}
    panel.logic.study.refresh()
    loop.until(lambda: panel.logic.study.state == "free")
    assert "2 of its series are marked" in panel.find("studyState").text()


@pytest.mark.parametrize(
    ("state", "says", "says_not"),
    [("requested", "approval is needed", "before"), ("approved", "was marked before", "approval"),
     ("fulfilled", "was marked before", "approval")],
)  # fmt: skip
def test_a_second_mark(
    panel: Any, scene: Any, fake: Any, loop: Any, state: str, says: str, says_not: str
) -> None:
    known_study(panel, scene)
    fake.answers["PUT /forget/studies/1.2.3"] = request(0, state)
    panel.connect(fake.url)
    panel.click("markButton")
    panel.confirm(panel.widget.study.confirm)
    loop.until(panel.banner)
    assert says in panel.banner()
    assert says_not not in panel.banner().replace("before it is", "")


def test_a_purge_takes_the_way_back_from_others(panel: Any, fake: Any, loop: Any) -> None:
    one = request(0, "fulfilled")
    listed(panel, fake, loop, one)
    path = f"/forget/requests/{one['request_id']}/purge"
    others = ["1" * 32, "2" * 32]
    fake.answers[f"GET {path}"] = {"destroyed": ["v0001"], "requests": others}
    fake.answers[f"POST {path}"] = {"destroyed": ["v0001"], "requests": others, "places": []}
    select(panel, one["request_id"])
    panel.click("purgeButton")
    asked = panel.widget.forget.confirm
    loop.until(asked.is_asking)
    assert "destroyed: v0001" in asked.text()
    assert "2 other requests unlearned together" in asked.text()
    panel.confirm(asked, "purge")
    loop.until(panel.banner)
    assert "2 other requests cannot be restored any more" in panel.banner()


def test_a_submitted_label_can_be_adapted_to(panel: Any, fake: Any, loop: Any) -> None:
    panel.connect(fake.url)
    loop.until(lambda: fake.asked("GET", "/datastore/"))
    fake.answers["/datastore/"] = {"objects": {"1.2.3.4": {"labels": {"final": {}}}}}
    panel.logic.masks.saved.emit({"label": "1.2.3.4"})
    loop.until(lambda: panel.logic.site.labelled, 5, "it is listed")


def test_hidden_first_and_then_unlearned(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    study = place.known(4)  # nobody else marks it
    mark = put(place, f"/forget/studies/{study['study']}", {"reason": "consent_withdrawn"})
    request_id = mark["request_id"]
    place.tell("seconds 0.2")
    panel.widget.enter()
    panel.connect(place.url)
    panel.widget.tabs.setCurrentIndex(1)
    panel.logic.forget_set.approve([request_id])
    loop.until(lambda: of(panel, request_id) == "approved")
    for level, state, words, typed in (
        ("hidden", "working", "Only hidden so far", "1"),
        ("unlearned", "fulfilled", "Forgotten", "unlearn"),  # the older version is sealed
    ):  # fmt: skip
        loop.until(lambda: not panel.logic.forget_set.loading)
        panel.choose("levelChoice", level)
        select(panel, request_id)
        panel.click("unlearnButton")
        loop.until(panel.widget.forget.confirm.is_asking, what="the plan is there")
        panel.confirm(panel.widget.forget.confirm, typed)
        run_to_end(panel, loop)
        assert panel.logic.runs.view.state == "done", panel.logic.runs.view
        loop.until(lambda state=state: of(panel, request_id) == state, 20, state)
        loop.until(lambda words=words: shown(panel, request_id) == words, 5, words)


def test_every_state_has_a_sentence() -> None:
    assert set(texts.RANK) | {"free", "proposed"} <= set(texts.MEANING)


def test_a_label_is_submitted_for_the_image_that_was_asked_about(
    panel: Any, scene: Any, fake: Any, loop: Any
) -> None:
    known_study(panel, scene)
    panel.connect(fake.url)
    panel.click("submitButton")
    asked = panel.widget.masks.confirm
    panel.logic.session.refresh()
    loop.until(lambda: len(fake.asked("GET", "/info/")) == 2)
    for _ in range(20):
        loop.turn()
    assert asked.is_asking()  # nothing has changed
    panel.widget.propose_mark(Identity("1.9", "1.9.1", "0815", "1.9.1", "DICOM database"), "study")
    assert not asked.is_asking()


def test_what_is_known_of_nobody_is_not_blamed_on_the_connection(
    panel: Any, fake: Any, loop: Any
) -> None:
    """The server is not asked about a person's state."""
    panel.connect(fake.url)
    panel.widget.propose_mark(Identity(patient="4711", source="subject hierarchy"), "patient")
    assert panel.find("studyState").text() == "Its state is not known."


def test_a_mark_takes_adapters_along(panel: Any, scene: Any, fake: Any, loop: Any) -> None:
    known_study(panel, scene)
    panel.connect(fake.url)
    loop.until(lambda: fake.asked("GET", "/adapters"))
    fake.seen.clear()
    fake.answers["PUT /forget/studies/1.2.3"] = request(0, "requested")
    panel.click("markButton")
    panel.confirm(panel.widget.study.confirm)
    loop.until(lambda: fake.asked("GET", "/adapters"), 5, "which of them are left")


def test_a_restore_says_what_serves_no_more(panel: Any, fake: Any, loop: Any) -> None:
    one = request(0, "fulfilled")
    listed(panel, fake, loop, one)
    fake.answers[f"POST /forget/requests/{one['request_id']}/restore"] = {
        "version": "v0001", "requests": [one["request_id"]], "lost": ["v0003"],
    }  # fmt: skip
    select(panel, one["request_id"])
    panel.click("restoreButton")
    panel.confirm(panel.widget.forget.confirm, "restore")
    loop.until(panel.banner)
    assert panel.banner() == (
        "Version v0001 is in service; 1 request is restored. Made since, and not served any more: "
        "v0003."
    )
