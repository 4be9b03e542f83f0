"""Images uploaded for a while are gone when it is over, whatever a killed server left."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.interfaces.app import MONAILabelApp

from segunlearn.app.home_tidy import tidy
from segunlearn.app.options import Home
from segunlearn.app.routes import session as routes
from segunlearn.app.upload_sessions import UploadSessions
from segunlearn.errors import NotFoundError

LONG_AGO = time.time() - 11 * 86400


def upload(sessions: UploadSessions, folder: Path, expiry: int = 0) -> str:
    image = folder / "image00000.nii.gz"
    image.write_bytes(b"a patient")
    return sessions.add(image, expiry).name


def told(home: Home, name: str) -> Any:
    return json.loads((home.sessions / name / "meta.info").read_text())


def make_old(home: Home, name: str, when: float = LONG_AGO) -> None:
    old = {**told(home, name), "last_access_ts": int(when)}
    (home.sessions / name / "meta.info").write_text(json.dumps(old))


def clean(sessions: UploadSessions) -> None:
    """As the platform does every five minutes."""
    MONAILabelApp.cleanup_sessions(SimpleNamespace(_sessions=sessions))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_there_and_back(home: Home, tmp_path: Path) -> None:
    sessions = UploadSessions(home.sessions, 3600)
    name = upload(sessions, tmp_path, expiry=7200)
    info = UploadSessions(home.sessions, 3600).get(name)  # by a server that was started since
    assert info is not None
    assert Path(info.image).read_bytes() == b"a patient"
    assert info.expiry == 3600
    make_old(home, name, time.time() - 3000)
    assert sessions.get(name, touch=True) is not None
    assert told(home, name)["last_access_ts"] >= time.time() - 60
    assert set(told(home, name)) == {
        "name", "path", "image", "meta", "create_ts", "last_access_ts", "expiry",
    }  # fmt: skip
    sessions.remove(name)
    assert sessions.get(name) is None
    assert list(home.sessions.iterdir()) == []


def test_expired_ones_go_after_a_restart_too(home: Home, tmp_path: Path) -> None:
    first = UploadSessions(home.sessions, 3600)
    old, young = upload(first, tmp_path), upload(first, tmp_path)
    make_old(home, old)
    clean(UploadSessions(home.sessions, 3600))
    assert [p.name for p in home.sessions.iterdir()] == [young]


def test_a_clock_that_was_set_back_keeps_nobody_for_years(home: Home, tmp_path: Path) -> None:
    sessions = UploadSessions(home.sessions, 3600)
    name = upload(sessions, tmp_path)
    make_old(home, name, time.time() + 11 * 86400)
    assert sessions.get(name) is None
    clean(sessions)
    assert list(home.sessions.iterdir()) == []


DAMAGED = [None, "", "{", "[]", "{}", '{"expiry": "x", "last_access_ts": null}', "[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED)
def test_what_a_kill_left_stops_no_clean_up(
    home: Home, tmp_path: Path, content: str | None
) -> None:
    sessions = UploadSessions(home.sessions, 3600)
    expired = upload(sessions, tmp_path)
    make_old(home, expired)
    names = ("0" * 32, "f" * 32)  # found before the expired one, and after it
    for name in names:
        (home.sessions / name).mkdir()
        (home.sessions / name / "image00000.nii.gz").write_bytes(b"a patient")
        if content is not None:
            (home.sessions / name / "meta.info").write_text(content)
    clean(sessions)
    assert {p.name for p in home.sessions.iterdir()} == set(names)  # may be under way
    assert sessions.get(names[0]) is None
    for name in names:
        os.utime(home.sessions / name, (LONG_AGO, LONG_AGO))
    clean(sessions)
    assert list(home.sessions.iterdir()) == []


def test_nothing_is_left_of_one_that_cannot_be_begun(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        upload(UploadSessions(home.sessions, 3600), tmp_path)
    assert list(home.sessions.iterdir()) == []


def test_one_that_cannot_be_removed_stops_no_clean_up(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = UploadSessions(home.sessions, 3600)
    names = sorted(upload(sessions, tmp_path) for _ in range(3))
    for name in names:
        make_old(home, name)
    remove = shutil.rmtree

    def refuse(path: Path, **options: Any) -> None:
        if path.name == names[0]:
            raise PermissionError(13, "Permission denied")
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    clean(sessions)
    assert [p.name for p in home.sessions.iterdir()] == names[:1]
    assert "Permission denied" in caplog.text


def test_before_a_server_begins(home: Home, tmp_path: Path) -> None:
    """Nobody uploads then: what has no record yet is left from a kill."""
    sessions = UploadSessions(home.sessions, 3600)
    old, young = upload(sessions, tmp_path), upload(sessions, tmp_path)
    make_old(home, old)
    (home.sessions / "dead").mkdir()
    (home.sessions / "dead" / "image00000.nii.gz").write_bytes(b"a patient")
    assert tidy(home) > 2 * len(b"a patient")
    assert [p.name for p in home.sessions.iterdir()] == [young]


def test_an_expired_session_is_not_served(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = UploadSessions(home.sessions, 3600)
    app: Any = SimpleNamespace(sessions=lambda: sessions)
    monkeypatch.setattr(routes, "current_app", lambda: app)
    name = upload(sessions, tmp_path)
    user: Any = None
    assert routes.get_session(name, user)["name"] == name
    assert routes.session_image(app, name).read_bytes() == b"a patient"
    make_old(home, name)
    for ask in (
        lambda: routes.get_session(name, user, image=True),
        lambda: routes.get_session(name, user, update_ts=True),
        lambda: routes.session_image(app, name),
        lambda: routes.remove_session(name, user),
    ):
        with pytest.raises(NotFoundError, match="expired"):
            ask()


def test_a_long_series_is_taken_as_a_session(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starlette reads 1000 files of a form where nobody tells it otherwise."""
    home.scratch()
    app: Any = SimpleNamespace(sessions=lambda: UploadSessions(home.sessions, 3600), home=home)
    monkeypatch.setattr(routes, "current_app", lambda: app)
    server = FastAPI()
    server.include_router(routes.router)
    slices = [("files", (f"{n}.dcm", b"a slice")) for n in range(1001)]
    with TestClient(server) as client:
        made = client.put("/session/", files=slices)
        assert made.status_code == 200, made.text
        assert len(list(Path(made.json()["session_info"]["image"]).iterdir())) == 1001
        more = client.put("/session/", files=slices * 5)
        assert (more.status_code, "5000" in more.text) == (400, True)
