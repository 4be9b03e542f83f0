"""Streams end when the caller's token does: one that was revoked went on for an hour."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import httpx
import pytest

from guarded_server import Place
from segunlearn.app.routes import changes, runs, streams
from segunlearn.errors import UnavailableError
from segunlearn.records.access_tokens import AccessTokens


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "TOKEN_SECONDS", 0.2)
    monkeypatch.setattr(changes, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(changes, "LONGEST_SECONDS", 4.0)
    monkeypatch.setattr(runs, "LONGEST_SECONDS", 4.0)


@pytest.fixture(params=["changes", "run"])
def path(request: pytest.FixtureRequest, place: Place) -> str:
    place.server.include_router(runs.router)
    run = place.records.runs.start("unlearn", "m", {})
    return "/changes" if request.param == "changes" else f"/runs/{run}/events"


def listen(client: httpx.Client, path: str, meanwhile: Callable[[], object]) -> tuple[str, float]:
    """All of a stream, and how long it went on after ``meanwhile``, called at its first line."""
    text, since = "", 0.0
    with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        for part in answer.iter_text():
            if not since:
                meanwhile()
                since = time.monotonic()
            text += part
    return text, time.monotonic() - since


def test_a_stream_ends_when_its_token_is_revoked(place: Place, path: str) -> None:
    tokens = AccessTokens(place.records.store)
    text, made = tokens.create("x", "user", 1)
    with place.client(text) as client:
        told, seconds = listen(client, path, lambda: tokens.revoke(made.token_id))
        assert client.get(path).status_code == 401
    assert seconds < 2
    name, data = told.strip().split("\n\n")[-1].split("\n")
    assert name == "event: signed-out"
    assert "revoked" in json.loads(data.removeprefix("data: "))["detail"]


def test_a_stream_ends_with_its_session(place: Place) -> None:
    with place.client() as browser:
        assert browser.post("/login", data={"token": place.token("user")}).status_code == 303
        cookies = dict(browser.cookies)
        with place.client(cookies=cookies) as tab:
            told, seconds = listen(tab, "/changes", lambda: browser.post("/logout"))
    assert seconds < 2
    assert "signed-out" in told


def test_an_outage_ends_no_stream(place: Place, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can say then that the token is bad."""
    asked: list[str] = []

    def away(_: AccessTokens, text: str) -> None:
        asked.append(text)
        raise UnavailableError("the store is away")

    with place.client(place.token("user")) as client:
        stop = lambda: monkeypatch.setattr(AccessTokens, "find", away)  # noqa: E731
        told, seconds = listen(client, path, stop)
    assert seconds > 3
    assert len(asked) > 5
    assert "signed-out" not in told
