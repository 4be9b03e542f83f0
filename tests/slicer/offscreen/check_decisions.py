"""What is decided about requests: proposals too, one thing at a time, and seen while it lasts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from check_faults import known_study
from check_reconnect import RUN, turns
from check_states import listed
from check_unlearning import select
from fake import request

from SegUnlearnLib import texts


def path_of(one: dict[str, Any], what: str) -> str:
    return f"/forget/requests/{one['request_id']}/{what}"


def test_proposals_are_dismissed(panel: Any, scene: Any, fake: Any, loop: Any) -> None:
    known_study(panel, scene)
    found = [request(0, "proposed"), request(1, "requested"), request(2, "proposed")]
    cover = {"request_id": "1", "state": "proposed", "needed": "unlearned", "reached": "none"}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [], "proposals": [cover]}}
    listed(panel, fake, loop, *found)
    assert not panel.find("dismissButton").isEnabled()
    select(panel, found[1]["request_id"])
    assert not panel.find("dismissButton").isEnabled()  # it is a mark: withdrawn, not dismissed
    panel.widget.forget.table.widget.selectAll()
    panel.click("dismissButton")
    asked = panel.widget.forget.confirm
    assert asked.text().startswith("Dismiss 2 proposals?")
    panel.shot("dismiss")
    for one in (found[0], found[2]):
        fake.answers[f"POST {path_of(one, 'dismiss')}"] = {**one, "state": "dismissed"}
    now = [{**found[0], "state": "dismissed"}, found[1], {**found[2], "state": "dismissed"}]
    fake.answers["/forget/requests"] = {"total": 3, "requests": now}
    fake.answers["/forget/status"] = {"1.2.3": {"covers": [], "proposals": []}}
    panel.confirm(asked, "2")
    loop.until(panel.banner)
    assert panel.banner() == "2 requests dismissed."
    bodies = [json.loads(b) for m, p, _, b in fake.seen if p.endswith("/dismiss")]
    assert bodies == [{"why": ""}] * 2
    states = lambda: [panel.logic.forget_set.requests[r["request_id"]]["state"] for r in now]  # noqa: E731
    loop.until(lambda: states() == ["dismissed", "requested", "dismissed"])
    loop.until(lambda: panel.logic.study.state == "free", 5, "so is the study that is shown")


def held(wait: threading.Event, answer: Any) -> Callable[[Any], Any]:
    return lambda _: wait.wait(30) and answer


DECIDING = [
    f"{name}Button"
    for name in ("approve", "dismiss", "withdraw", "restore", "purge", "unlearn", "dryRun")
]
ENDS = {
    "restore": ({"version": "v0001", "requests": ["0"], "lost": []}, "v0001 is in service"),
    "purge": ({"destroyed": ["v0001"], "requests": [], "places": []}, "Erased for good"),
}


def begun(panel: Any, fake: Any, loop: Any, what: str, answer: Any) -> dict[str, Any]:
    """Have the server begin to restore or purge something."""
    one = request(0, "fulfilled")
    listed(panel, fake, loop, one, request(1, "approved"), request(2, "requested"))
    fake.answers[f"GET {path_of(one, 'purge')}"] = {"destroyed": ["v0001"], "requests": []}
    fake.answers[f"POST {path_of(one, what)}"] = answer
    select(panel, one["request_id"])
    panel.click(f"{what}Button")
    asked = panel.widget.forget.confirm
    loop.until(asked.is_asking)
    panel.confirm(asked, what)
    loop.until(lambda: fake.asked("POST", path_of(one, what)))
    return one


@pytest.mark.parametrize("what", ["restore", "purge"])
def test_it_is_seen_while_it_lasts_and_done_once(
    panel: Any, fake: Any, loop: Any, what: str
) -> None:
    wait, (answer, words) = threading.Event(), ENDS[what]
    one = begun(panel, fake, loop, what, held(wait, answer))
    said, bar = panel.find("requestCount"), panel.find("forgetBusy")
    name = texts.target(one["target"])
    assert said.text().startswith({"restore": "Restoring", "purge": "Purging"}[what] + f" {name}:")
    assert bar.isVisible()
    for state in ("requested", "approved", "fulfilled"):
        (found,) = [i for i, r in panel.logic.forget_set.requests.items() if r["state"] == state]
        select(panel, found)
        assert [name for name in DECIDING if panel.find(name).isEnabled()] == []
    panel.shot(f"{what}-under-way")
    panel.logic.forget_set.load()  # the list may be asked for meanwhile
    loop.until(lambda: not panel.logic.forget_set.loading)
    assert name in said.text()
    getattr(panel.logic.forget_set, what)(one["request_id"], "")
    turns(loop)
    assert len(fake.asked("POST", path_of(one, what))) == 1
    wait.set()
    loop.until(panel.banner)
    assert words in panel.banner()
    assert not bar.isVisible()
    loop.until(lambda: "3 requests" in said.text())
    assert panel.find(f"{what}Button").isEnabled()


@pytest.mark.parametrize("what", ["restore", "purge"])
def test_a_refusal_ends_it(panel: Any, fake: Any, loop: Any, what: str) -> None:
    begun(panel, fake, loop, what, (409, {"detail": "a training runs"}))
    loop.until(panel.banner)
    assert panel.banner() == "A training runs."
    assert not panel.find("forgetBusy").isVisible()
    loop.until(lambda: panel.find(f"{what}Button").isEnabled())


@pytest.mark.parametrize("what", ["restore", "purge"])
def test_connecting_anew_says_that_its_end_is_not_known(
    panel: Any, fake: Any, loop: Any, what: str
) -> None:
    wait = threading.Event()
    begun(panel, fake, loop, what, held(wait, ENDS[what][0]))
    panel.connect(fake.url)
    assert "whether it was done" in panel.banner().lower()
    assert not panel.find("forgetBusy").isVisible()
    wait.set()
    turns(loop)
    assert ENDS[what][1] not in panel.banner()
    assert "3 requests" in panel.find("requestCount").text()


def test_many_decisions_are_counted(panel: Any, fake: Any, loop: Any) -> None:
    found, wait = [request(n, "requested") for n in range(3)], threading.Event()
    listed(panel, fake, loop, *found)
    for one in found:
        fake.answers[f"POST {path_of(one, 'approve')}"] = one
    fake.answers[f"POST {path_of(found[1], 'approve')}"] = held(wait, found[1])
    panel.logic.forget_set.approve([one["request_id"] for one in found])
    said = panel.find("requestCount")
    loop.until(lambda: said.text() == "Approving 2 of 3 …")
    panel.widget.forget.table.widget.selectAll()
    assert not panel.find("approveButton").isEnabled()
    wait.set()
    loop.until(lambda: "3 requests approved" in panel.banner())


@pytest.mark.parametrize(("kind", "stops"), [("purge", False), ("restore", False), ("train", True)])
def test_what_cannot_be_stopped_offers_no_stop(
    panel: Any, fake: Any, loop: Any, kind: str, stops: bool
) -> None:
    """A restore or purge takes no notice; to say it stops at its next step would be wrong."""
    run = {**RUN, "kind": kind, "progress": None}
    fake.answers |= {"/runs": [run], f"/runs/{run['run_id']}": run}
    panel.connect(fake.url)
    loop.until(lambda: panel.find("runTitle").isVisible())
    assert panel.find("runTitle").text() == texts.RUNS[kind]
    assert panel.find("runCancel").isVisible() == stops
