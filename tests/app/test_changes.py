"""``/whoami`` and ``/changes``: roles, what is streamed, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user

from live_server import live_server
from segunlearn.app import wiring
from segunlearn.app.forgetting import Forgetting
from segunlearn.app.routes import changes, forget
from segunlearn.errors import SegUnlearnError
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger
from segunlearn.records.runs import Progress, Runs
from segunlearn.records.store import open_store


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Forgetting]:
    store = open_store(tmp_path / "store.db")
    yield Forgetting(forget_set=ForgetSet(store), ledger=Ledger(store), runs=Runs(store))
    store.close()


@pytest.fixture
def server(records: Forgetting, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setattr(changes, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(changes, "LONGEST_SECONDS", 3.0)
    server = FastAPI()
    server.include_router(changes.router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    server.dependency_overrides[forget.forgetting] = lambda: records
    return server


def mark(records: Forgetting, study: str = "1.2.3") -> str:
    return records.forget_set.mark("study", study, "consent_withdrawn", actor="t")[0].request_id


def events(url: str, during: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Events of one stream; ``during`` is called after each with how many there were."""
    with httpx.stream("GET", f"{url}/changes", timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        count = 0
        for line in answer.iter_lines():
            if line.startswith("data: "):
                count += 1
                yield json.loads(line[6:])
                during(count)


def test_a_run_whose_process_was_killed_is_told_as_ended(
    server: FastAPI, records: Forgetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The viewer follows this stream alone, and showed it as running for ever."""
    run = records.runs.start("train", "m", {})
    monkeypatch.setattr(Runs, "_is_dead", staticmethod(lambda row: True))
    with live_server(server) as url:
        first = next(events(url, lambda count: None))
    assert [(r["run_id"], r["state"]) for r in first["runs"]] == [(run, "interrupted")]


def test_marks_and_runs_are_told_as_they_change(server: FastAPI, records: Forgetting) -> None:
    run = records.runs.start("unlearn", "m", {})
    seen: list[float] = []

    def during(count: int) -> None:
        seen.append(time.monotonic())
        if count == 1:
            mark(records)
        elif count == 2:
            records.runs.update(run, Progress("repair", 3, 9, {"loss": 0.5}))
        elif count == 3:
            records.runs.finish(run, "done", "published")

    with live_server(server) as url:
        first, marked, moved, ended = events(url, during)
    assert [r["run_id"] for r in first["runs"]] == [run]
    assert (marked["forget"] > first["forget"], marked["runs"]) == (True, [])
    assert moved["runs"][0]["progress"]["step"] == 3
    assert (ended["runs"][0]["state"], ended["runs"][0]["message"]) == ("done", "published")
    assert moved["forget"] == marked["forget"]
    assert seen[1] - seen[0] < 1.0


def test_every_step_of_a_request_counts(records: Forgetting) -> None:
    counts = [records.forget_set.last_change()]
    request = mark(records)
    counts.append(records.forget_set.last_change())
    records.forget_set.approve(request, actor="t")
    counts.append(records.forget_set.last_change())
    mark(records)  # again: nothing changes
    assert counts[0] == 0
    assert counts[0] < counts[1] < counts[2] == records.forget_set.last_change()


def test_a_stream_ends_by_itself(server: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopping server would wait for it, and an expired session would go on."""
    monkeypatch.setattr(changes, "LONGEST_SECONDS", 0.2)
    began = time.monotonic()
    with live_server(server) as url:
        assert len(list(events(url, lambda _: None))) == 1
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("role", "may_mark", "may_decide"),
    [("user", False, False), ("annotator", True, False), ("reviewer", True, False),
     ("admin", True, True)],
)  # fmt: skip
def test_who_may_do_what(
    server: FastAPI, monkeypatch: pytest.MonkeyPatch, role: str, may_mark: bool, may_decide: bool
) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    user = User(username="ann", roles=[f"monailabel-{role}"])
    server.dependency_overrides[get_current_user] = lambda: user
    with TestClient(server) as client:
        assert client.get("/whoami").json() == {
            "name": "ann", "signed_in": True, "roles": [f"monailabel-{role}"],
            "may_mark": may_mark, "may_decide": may_decide,
            "pacs": False,
        }  # fmt: skip


def test_nobody_is_told_anything(server: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)

    def nobody() -> User:
        raise HTTPException(401, "Could not validate credentials")

    server.dependency_overrides[get_current_user] = nobody
    with TestClient(server) as client:
        assert client.get("/whoami").status_code == 401
        assert client.get("/changes").status_code == 401


def test_without_authentication_everybody_may(server: FastAPI) -> None:
    with TestClient(server) as client:
        found = client.get("/whoami").json()
    assert (found["signed_in"], found["name"]) == (False, "")
    assert found["may_mark"]
    assert found["may_decide"]
