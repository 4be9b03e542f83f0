"""``segunlearn token`` and ``segunlearn trail``: what they print, and what they refuse."""

from __future__ import annotations

import errno
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.security import fhir
from segunlearn.cli import app
from segunlearn.errors import InvalidInputError, NotFoundError
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.trail import ACTIONS, TrailEntry


def run(home: Path, *words: str) -> Any:
    done = CliRunner().invoke(app, [*words, "--home", str(home)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_token_is_shown_once_and_taken_back(tmp_path: Path) -> None:
    made = run(tmp_path, "token", "create", "--role", "annotator", "--name", "Dr. Meyer")
    text = made.stdout.strip()
    assert re.fullmatch(r"segunlearn_[0-9a-f]{12}_[\w-]{43}", text)
    tokens = AccessTokens(Records(Home(tmp_path)).store)
    found = tokens.find(text)
    assert found is not None
    assert (found.name, found.role) == ("Dr. Meyer", "annotator")
    listed = run(tmp_path, "token", "list", "--json").stdout
    assert text.split("_", 2)[2] not in listed
    assert json.loads(listed)[0]["state"] == "good"
    assert "Dr. Meyer" in run(tmp_path, "token", "list").stdout
    assert run(tmp_path, "token", "revoke", found.token_id).exit_code == 0
    found = tokens.find(text)
    assert found is not None
    assert found.state == "revoked"
    rows = json.loads(run(tmp_path, "trail", "list", "--json").stdout)
    assert [(r["action"], r["what"]) for r in rows] == [
        ("token_revoke", found.token_id), ("token_create", found.token_id),
    ]  # fmt: skip
    with pytest.raises(NotFoundError):
        run(tmp_path, "token", "revoke", "0" * 12)
    with pytest.raises(InvalidInputError, match="--role root"):
        run(tmp_path, "token", "create", "--role", "root", "--name", "x")
    with pytest.raises(InvalidInputError, match="days"):
        run(tmp_path, "token", "create", "--role", "user", "--name", "x", "--days", "0")


def test_every_action_is_exported_as_an_audit_event(tmp_path: Path) -> None:
    """The fields that FHIR R4 demands of an AuditEvent, and their value sets."""
    trail = Records(Home(tmp_path)).trail
    for action in ACTIONS:
        trail.append(TrailEntry(action, "ann", "admin", "::1", "request", "a" * 32, note="why"))
    trail.append(TrailEntry("login_failure", "", outcome="refused"))
    trail.append(TrailEntry("backup", "bob", "", "command line", outcome="failed"))
    out = tmp_path / "trail.ndjson"
    assert run(tmp_path, "trail", "export", str(out)).exit_code == 0
    events = [json.loads(line) for line in out.read_text().splitlines()]
    rows = list(trail.every())
    assert len(events) == len(rows) == len(ACTIONS) + 2
    for event, row in zip(events, rows, strict=True):
        assert event["resourceType"] == "AuditEvent"
        assert re.fullmatch(r"[A-Za-z0-9\-.]{1,64}", event["id"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", event["recorded"])
        assert re.fullmatch(r"1101\d\d", event["type"]["code"])
        assert event["subtype"][0]["code"] == row.action
        assert event["action"] in "CRUDE"
        assert event["outcome"] in ("0", "4", "8", "12")
        assert event["agent"][0]["requestor"] is True
        assert event["agent"][0]["who"]["display"]
        assert event["source"]["observer"]["display"]
        assert event["entity"][0]["detail"][0]["valueString"] == row.digest
        for text in _texts(event):
            assert text.strip()  # FHIR allows no empty text
    assert (events[-2]["outcome"], events[-1]["outcome"]) == ("4", "8")
    piped = run(tmp_path, "trail", "export", "--since", rows[3].time).stdout.splitlines()
    assert [json.loads(line) for line in piped] == events[3:]
    with pytest.raises(FileExistsError):
        run(tmp_path, "trail", "export", str(out))


def test_half_an_export_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines are whole up to its end: it would pass for all there is."""
    trail, made = Records(Home(tmp_path)).trail, []

    def event(row: Any) -> dict[str, str]:
        made.append(row)
        if len(made) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return {}

    for name in ("ann", "bob", "eve"):
        trail.append(TrailEntry("backup", name))
    monkeypatch.setattr(fhir, "audit_event", event)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path, "trail", "export", str(tmp_path / "out.ndjson"))
    assert not (tmp_path / "out.ndjson").exists()


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [t for v in value.values() for t in _texts(v)]
    if isinstance(value, list):
        return [t for v in value for t in _texts(v)]
    return [value] if isinstance(value, str) else []


def test_verify_ends_with_1_where_something_was_changed(tmp_path: Path) -> None:
    trail = Records(Home(tmp_path)).trail
    for name in ("ann", "bob"):
        trail.append(TrailEntry("backup", name))
    whole = run(tmp_path, "trail", "verify")
    assert whole.exit_code == 0
    witness = whole.stdout.split()[4]
    assert run(tmp_path, "trail", "verify", "--witness", witness).exit_code == 0
    assert run(tmp_path, "trail", "verify", "--witness", f"2:{'0' * 64}").exit_code == 1
    with pytest.raises(InvalidInputError, match="ROWS:DIGEST"):
        run(tmp_path, "trail", "verify", "--witness", "2")
    with sqlite3.connect(tmp_path / "segunlearn.db") as connection:
        connection.execute("DROP TRIGGER trail_no_update")
        connection.execute("UPDATE trail SET actor = 'eve' WHERE seq = 1")
    connection.close()
    changed = run(tmp_path, "trail", "verify", "--json")
    assert changed.exit_code == 1
    assert json.loads(changed.stdout)["faults"][0]["kind"] == "row-changed"


@pytest.mark.parametrize("width", ["80", "100"])
def test_rows_are_readable_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    """Nine columns beside an id left three characters for a word."""
    monkeypatch.setenv("COLUMNS", width)
    trail, request, line = Records(Home(tmp_path)).trail, "ab" * 16, "command line"
    note, unknown = "needed unlearned, reached none", "the token is unknown. Ask for another."
    add = trail.append
    add(TrailEntry("mark", "Dr. Meyer", "annotator", "10.1.2.3", "request", request, note=note))
    add(TrailEntry("approve", f"bob ({line})", line, line, "request", request, note=note))
    add(TrailEntry("login_failure", "", "", "2001:db8::1", outcome="refused", note=unknown))
    add(TrailEntry("read_images", "ann", "admin", "127.0.0.1", "series", "c" * 90))
    lines = run(tmp_path, "trail", "list").stdout.splitlines()
    assert max(map(len, lines)) <= int(width)
    assert len(lines) <= 19
    words = " ".join(lines).split()
    for word in (
        request, "approve", "login_failure", "refused", "unlearned,", "annotator,", "10.1.2.3",
        "2001:db8::1", "Meyer", "(command", "another.", trail.rows()[0].time[:10],
    ):  # fmt: skip
        assert word in words
    assert "".join(w for w in words if set(w) == {"c"}) == "c" * 90  # nothing is cut off


def test_rows_are_found(tmp_path: Path) -> None:
    trail = Records(Home(tmp_path)).trail
    trail.append(TrailEntry("backup", "ann"))
    trail.append(TrailEntry("publish", "bob", kind="version", what="v0002"))
    assert "v0002" in run(tmp_path, "trail", "list", "--actor", "bob").stdout
    assert "v0002" not in run(tmp_path, "trail", "list", "--action", "backup").stdout
    with pytest.raises(InvalidInputError, match="--action"):
        run(tmp_path, "trail", "list", "--action", "stare")
