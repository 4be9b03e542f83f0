"""What the gate counts against an address, and what strangers can cost the server."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from guarded_server import Place
from oidc_issuer import TestIssuer
from segunlearn.app.routes import datastore, tasks
from segunlearn.app.security import login, oidc
from segunlearn.app.security.failures import LIMIT
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
)
from segunlearn.records.access_tokens import AccessTokens

FORM = {"content-type": "application/x-www-form-urlencoded"}
RIGHT = {"username": "meyer", "password": "right"}


@pytest.mark.parametrize("path", ["/login", "/auth/token"])
def test_a_strangers_body_is_small(place: Place, path: str) -> None:
    """It is parsed before anybody is known: to memory, and files of a form to the disk."""

    def pieces() -> Iterator[bytes]:  # no length is announced
        yield from (b"token=", *[bytes(1 << 10)] * 17)

    short, much = {"token": "x", "password": "x"}, 17 << 10
    with place.client() as client:
        for answer in (
            client.post(path, data={**short, "more": "x" * much}),
            client.post(path, data=short, files={"file": ("x", bytes(much))}),
            client.post(path, content=pieces(), headers=FORM),
        ):
            assert answer.status_code == 413
            assert "larger than 16 KiB" in answer.json()["detail"]
        longest = {
            "token" if path == "/login" else "password": "x" * 8192,
            "next": "/" + "%" * 2000,
        }
        assert client.post(path, data=longest).status_code == 401


def test_a_wrong_password_stands_in_the_trail_and_is_counted(sso: Place) -> None:
    with sso.client() as client:
        wrong = [client.post("/auth/token", data={**RIGHT, "password": str(n)}) for n in range(31)]
        assert [a.status_code for a in wrong] == [401] * LIMIT + [429]
        assert client.post("/auth/token", data=RIGHT).status_code == 429
    assert sso.trail() == [("login_failure", "", "refused")] * LIMIT
    assert "meyer" not in str([*sso.records.trail.every()])


def test_an_outage_of_the_issuer_is_nobodys_failure(
    sso: Place, issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.down = True
    try:
        with sso.client(issuer.token()) as client:
            for _ in range(LIMIT + 1):
                answer = client.get("/whoami")
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) > 0
            assert client.get("/health/live").status_code == 200
            assert client.post("/auth/token", data=RIGHT).status_code == 503
    finally:
        issuer.down = False
    assert sso.trail() == []
    monkeypatch.setattr(oidc, "_PAUSE", -1.0)
    with sso.client() as client:
        assert client.post("/auth/token", data=RIGHT).status_code == 200


@pytest.mark.parametrize(
    ("status", "fault"), [(401, "invalid_client"), (400, "unauthorized_client"), (429, "")]
)
def test_what_the_issuer_does_not_let_the_server_do_is_nobodys_guess(
    sso: Place, issuer: TestIssuer, status: int, fault: str
) -> None:
    issuer.answer = (status, {"error": fault})
    try:
        with sso.client() as client:
            for _ in range(LIMIT + 1):
                answer = client.post("/auth/token", data=RIGHT)
                assert answer.status_code == 503
                assert fault in answer.json()["detail"]
    finally:
        issuer.answer = None
    assert sso.trail() == []


def test_what_has_expired_locks_nobody_out(
    sso: Place, issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a session that is over goes on asking; so does a program with an old token."""
    token = issuer.token()
    with sso.client() as browser, sso.client(token) as program:
        assert browser.post("/login", data={"token": token}).status_code == 303
        with monkeypatch.context() as later:
            later.setattr(oidc, "LEEWAY", -400.0)
            for _ in range(LIMIT + 1):
                assert browser.get("/whoami").status_code == 401
            assert sso.trail() == [("login", "meyer", "done")]
            for _ in range(LIMIT + 1):
                assert program.get("/whoami").status_code == 401
                assert browser.post("/login", data={"token": token}).status_code == 401
        assert sso.trail()[1:] == [("login_failure", "", "refused")]  # once a minute
        assert browser.post("/auth/token", data=RIGHT).status_code == 200


def test_a_revoked_token_locks_nobody_out(place: Place) -> None:
    tokens = AccessTokens(place.records.store)
    text, made = tokens.create("x", "user", 1)
    tokens.revoke(made.token_id)
    with place.client(text) as program, place.client() as browser:
        answers = [program.get("/whoami") for _ in range(LIMIT + 1)]
        assert {(a.status_code, "revoked" in a.text) for a in answers} == {(401, True)}
        done = browser.post("/login", data={"token": place.token("user")})
        assert done.status_code == 303
    assert [row[0] for row in place.trail()] == ["login_failure", "login"]


def test_a_password_for_a_proxy_is_no_token(place: Place) -> None:
    """A reverse proxy asks for it; browsers then send it along with the session's cookie."""
    basic = {"Authorization": "Basic dTpw"}
    with place.client() as browser:
        assert browser.post("/login", data={"token": place.token("annotator")}).status_code == 303
        for _ in range(LIMIT + 1):
            assert browser.get("/whoami", headers=basic).status_code == 200
        wrong = browser.get("/whoami", headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401  # who shows a token is asked for that one
    assert place.trail() == [("login", "the annotator", "done"), ("login_failure", "", "refused")]
    with place.client() as stranger:
        for _ in range(LIMIT + 1):
            assert stranger.get("/whoami", headers=basic).status_code == 401
        both = [("Authorization", "Basic dTpw"), ("Authorization", "Bearer wrong")]
        told = [stranger.get("/whoami", headers=both).status_code for _ in range(LIMIT + 1)]
    assert told[0] == 401
    assert told[-1] == 429


def test_strangers_push_out_nobodys_sign_in(sso: Place) -> None:
    with sso.client() as browser:
        to_issuer = browser.get("/login/oidc?next=/whoami")
        for _ in range(1000):
            login._pending.begin("/")
        back = browser.get(to_issuer.headers["location"]).headers["location"]
        done = browser.get(back)
        assert (done.status_code, done.headers["location"]) == (303, "/whoami")


def test_a_sign_in_under_way_is_sealed_in_its_browser(
    sso: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sso.client() as browser:
        to_issuer = browser.get("/login/oidc", params={"next": "/whoami"})
        header = to_issuer.headers["set-cookie"].lower()
        assert all(word in header for word in ("httponly", "samesite=lax", "max-age=600"))
        name, sealed = next(iter(browser.cookies.items()))
        opened = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
        state = parse_qs(urlsplit(to_issuer.headers["location"]).query)["state"][0]
        assert state.encode() not in opened
        assert b"whoami" not in opened
        back = browser.get(to_issuer.headers["location"]).headers["location"]
        for wrong in ("", "x", sealed[:-4] + "AAAA", login._Pending().begin("/")[2]):
            browser.cookies.set(name, wrong, domain="127.0.0.1")
            assert browser.get(back).status_code == 401
        browser.cookies.clear()
        browser.cookies.set(name, sealed)
        with monkeypatch.context() as later:
            later.setattr(login, "_PENDING_LIFE", -1)
            assert browser.get(back).status_code == 401
        assert browser.get(back).status_code == 303


def test_no_path_makes_the_cookie_too_large_for_browsers(sso: Place) -> None:
    with sso.client() as browser:
        for path in ("/" + "x" * 1999, "/" + "ä" * 1999, "/" + '"' * 1999):
            answer = browser.get("/login/oidc", params={"next": path})
            assert answer.status_code == 303
            assert len(answer.headers["set-cookie"]) < 4096


class Works:
    """An app whose trainings end as they are told to."""

    def __init__(self, place: Place, ends: Exception | None) -> None:
        self.records, self._ends, self.images = place.records, ends, ["Mustermann"]

    def ordinary_trainers(self) -> list[str]:
        return ["segmentation"]

    def train_request(self, model: str, params: dict[str, Any]) -> dict[str, Any]:
        if "wrong" in params:
            raise InvalidInputError("there is no such option.")
        return params

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._ends is not None:
            raise self._ends
        return {}

    def datastore(self) -> Works:
        return self

    def remove_image(self, name: str) -> None:
        if name not in self.images:
            raise NotFoundError("there is no such image.")

    def remove_label(self, name: str, tag: str) -> None:
        if tag != "final":
            raise ForbiddenError("not this one.")


@pytest.mark.parametrize("path", ["/train/segmentation", "/train/"])
@pytest.mark.parametrize(
    ("ends", "status", "outcome"),
    [(None, 200, "done"), (ConflictError("a study was marked."), 409, "failed"),
     (RuntimeError("no memory"), 500, "failed"), (ForbiddenError("not this."), 403, "refused")],
)  # fmt: skip
def test_a_training_in_the_foreground_is_recorded_however_it_ends(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    ends: Exception | None,
    status: int,
    outcome: str,
) -> None:
    monkeypatch.setattr(tasks, "current_app", lambda: Works(place, ends))
    place.server.include_router(tasks.router)
    with place.client(place.token("admin", "the chief")) as client:
        assert client.post(f"{path}?run_sync=true", json={"wrong": 1}).status_code == 400
        assert client.post(f"{path}?run_sync=true", json={}).status_code == status
    (row,) = place.records.trail.every()
    assert (row.action, row.actor, row.outcome) == ("train", "the chief", outcome)
    assert row.what == path.removeprefix("/train/")


def test_what_is_deleted_stands_in_the_trail_by_its_pseudonym(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastore, "current_app", lambda: Works(place, None))
    place.server.include_router(datastore.router)
    with place.client(place.token("admin", "the chief")) as client:
        for path, status in (
            ("image?id=nobody", 404), ("?id=Mustermann", 200), ("image?id=Mustermann", 200),
            ("label?id=Mustermann&tag=final", 200), ("label?id=Mustermann&tag=other", 403),
        ):  # fmt: skip
            assert client.delete(f"/datastore/{path}").status_code == status, path
    with place.client(place.token("annotator", "Dr. Meyer")) as client:
        assert client.delete("/datastore/image?id=Mustermann").status_code == 403
    rows = [*place.records.trail.every()]
    pseudonym = place.records.pseudonyms.of("Mustermann")
    assert [(r.action, r.actor, r.kind, r.what, r.outcome) for r in rows] == [
        ("delete", "the chief", "image", pseudonym, "done"),
        ("delete", "the chief", "image", pseudonym, "done"),
        ("delete", "the chief", "label", pseudonym, "done"),
        ("delete", "the chief", "label", pseudonym, "refused"),
        ("delete", "Dr. Meyer", "image", "", "refused"),
    ]
    assert "Mustermann" not in str(rows)


@pytest.mark.usefixtures("full_disk")
def test_what_was_done_before_it_could_be_recorded_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastore, "current_app", lambda: Works(place, None))
    place.server.include_router(datastore.router)
    with place.client(place.token("admin")) as client:
        gone = client.delete("/datastore/image?id=Mustermann")
        refused = client.delete("/datastore/label?id=Mustermann&tag=other")
    assert (gone.status_code, "this was done" in gone.text) == (503, True)
    assert (refused.status_code, "this was done" in refused.text) == (503, False)
