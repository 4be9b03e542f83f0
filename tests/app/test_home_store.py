"""A home and its store: a command that asks another one knows no forget request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import segunlearn
from segunlearn.app.home_store import NOTE, address
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError

PG = "postgresql+psycopg://app:secret@db.example:5433/records"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "segunlearn.db"),
        ("sqlite:///{home}/segunlearn.db", "segunlearn.db"),
        ("{home}", "segunlearn.db"),
        ("/elsewhere/r.db", "/elsewhere/r.db"),
        (PG, "postgresql://db.example:5433/records"),
        ("postgresql://db.example/r?password=secret", "postgresql://db.example:5432/r"),
        ("postgresql:///r?host=/run/pg", "postgresql:///run/pg:5432/r"),
        (f"{PG}?options=-csearch_path%3Da", "postgresql://db.example:5433/records?options=-csearch_path=a"),
    ],
)  # fmt: skip
def test_a_store_is_named_without_its_password(tmp_path: Path, url: str, expected: str) -> None:
    home = Home(tmp_path)
    assert address(home, url.format(home=tmp_path)) == expected


def test_records_are_asked_of_one_store_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    Records(home).runs.start("train", "segmentation", {})
    assert json.loads((home.root / NOTE).read_text()) == {"store": "segunlearn.db"}
    other = tmp_path / "other.db"
    with pytest.raises(ConflictError, match="Leave --store out"):
        _ = Records(home, str(other)).store
    assert not other.exists()
    home.root.rename(tmp_path / "moved")
    assert Records(Home(tmp_path / "moved")).runs.list() != []


def test_a_home_whose_records_are_in_postgresql_makes_no_store_of_its_own(tmp_path: Path) -> None:
    """Without --store a command would find no mark, and train on whoever was withdrawn."""
    (tmp_path / NOTE).write_text(json.dumps({"store": address(Home(tmp_path), PG)}))
    with pytest.raises(ConflictError, match=r"5433/records, not in segunlearn\.db") as told:
        _ = Records(Home(tmp_path)).store
    assert "secret" not in str(told.value)
    assert not (tmp_path / "segunlearn.db").exists()


def test_a_damaged_note_is_an_error(tmp_path: Path) -> None:
    (tmp_path / NOTE).write_text("{")
    with pytest.raises(IntegrityError):
        _ = Records(Home(tmp_path)).store


@pytest.mark.parametrize(
    "store", ["postgresql+psycopg//user@host/name", "postgresql:/u@h/x.db", "notaurl", "u@h.db"]
)
def test_a_mistyped_address_makes_no_new_store(tmp_path: Path, store: str) -> None:
    with pytest.raises(InvalidInputError, match="names no file") as told:
        _ = Records(Home(tmp_path / "home"), store).store
    assert store not in str(told.value)
    Records(Home(tmp_path / "home"), str(tmp_path / "new.db")).runs.list()  # meant so


def test_the_command_line_marks_nobody_in_another_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Records(Home(tmp_path)).runs.list()
    code = segunlearn(
        monkeypatch, "forget", "mark", "--patient", "p1", "--files",
        "--reason", "consent_withdrawn", "--home", tmp_path, "--store", tmp_path / "typo.db",
    )  # fmt: skip
    assert code == 2
    assert "Leave --store out" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "typo.db").exists()
