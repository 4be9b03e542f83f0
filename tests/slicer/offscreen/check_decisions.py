"""What is decided about requests: proposals too, one thing at a time, and seen while it lasts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from check_faults import known_study
from check_states import listed
from check_unlearning import select
from fake import Script, fake_server, request


@pytest.fixture
def fake() -> Iterator[Script]:
    with fake_server() as script:
        yield script


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
