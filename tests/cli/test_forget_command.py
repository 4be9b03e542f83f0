"""``segunlearn forget`` and ``segunlearn ledger`` say what the records say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from records_entries import ledger_entry
from segunlearn.cli import forget_command
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger, LedgerCase, LedgerEntry
from segunlearn.records.outbox import Outbox
from segunlearn.records.store import Store, open_store
from segunlearn.records.trail import Trail

STUDY = "1.2.840.1"
MARK = ("forget", "mark", "--even-if-unknown")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "segunlearn.db")
    yield opened
    opened.close()


@pytest.fixture
def app() -> typer.Typer:
    root = typer.Typer()
    root.add_typer(forget_command.forget, name="forget")
    root.add_typer(forget_command.ledger, name="ledger")
    return root


class Shell:
    def __init__(self, app: typer.Typer, home: Path) -> None:
        self._app, self._home = app, home

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(self._app, [*words, "--home", str(self._home)])

    def json(self, *words: str) -> Any:
        result = self.run(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def shell(app: typer.Typer, store: Store, tmp_path: Path) -> Shell:
    return Shell(app, tmp_path)


def test_an_account_without_a_name_can_mark(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under any number."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("getpass.getuser", nameless)
    done = shell.run(*MARK, "--study", STUDY, "--reason", "quality")
    assert done.exit_code == 0, done.output
    assert shell.json("forget", "list")[0]["marked_by"] == "unknown account (command line)"


def test_life_of_a_request(shell: Shell, store: Store) -> None:
    first = shell.run(*MARK, "--study", STUDY, "--reason", "quality", "--note", "blur")
    assert first.exit_code == 0
    assert "marked" in first.stdout
    (request,) = shell.json("forget", "list")
    assert (request["state"], request["target"]["id"], request["live"]) == (
        "requested",
        STUDY,
        True,
    )
    assert "(command line)" in request["marked_by"]
    second = shell.run("forget", "mark", "--study", STUDY, "--reason", "other", "--note", "x")
    assert "before" in second.stdout
    name = request["request_id"]
    assert shell.run("forget", "approve", name).exit_code == 0
    shown = shell.json("forget", "show", name)
    states = [step["to_state"] for step in shown["history"]]
    assert states == ["requested", "requested", "approved"]
    assert shown["history"][1]["why"] == "marked, too: other. x"
    assert "approved" in shell.run("forget", "show", name).stdout
    assert shell.run("forget", "withdraw", name, "--why", "a mistake").exit_code == 0
    refused = shell.run("forget", "approve", name)
    assert refused.exit_code == 2
    assert "cannot become approved" in refused.stderr
    assert shell.json("forget", "list", "--state", "approved") == []
    assert [r["state"] for r in shell.json("forget", "list", "--state", "withdrawn")] == [
        "withdrawn"
    ]
    # what the command line does reaches the PACS like everything else
    states = [item.payload["state"] for item in Outbox(store).list()]
    assert states == ["requested", "approved", "withdrawn"]
    # and stands in the trail
    steps = [(row.action, row.role, row.what) for row in Trail(store).rows()]
    assert steps == [(a, "command line", name) for a in ("withdraw", "approve", "mark", "mark")]


def test_one_more_mark_stands_in_history_and_trail_and_is_no_document(
    shell: Shell, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.run(*MARK, "--study", STUDY, "--reason", "quality")
    monkeypatch.setattr(forget_command, "actor", lambda: "bob")
    for _ in range(2):
        assert shell.run(*MARK, "--study", STUDY, "--reason", "wrong_label").exit_code == 0
    (request,) = shell.json("forget", "list")
    history = shell.json("forget", "show", request["request_id"])["history"]
    assert [h["actor"] for h in history][1:] == ["bob"]
    assert next((row.action, row.actor) for row in Trail(store).rows()) == ("mark", "bob")
    assert len(Trail(store).rows()) == len(history)
    assert len(Outbox(store).list()) == 1


def test_what_another_model_still_knows_and_who_agreed_are_told(
    shell: Shell, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    forget_set = ForgetSet(store)
    request, _ = forget_set.propose("study", STUDY, "quality", "", "rejection_note")
    forget_set.mark("study", STUDY, "wrong_patient", "see letter", "anna")
    name = request.request_id
    forget_set.approve(name, actor="root")
    assert "wrong_patient" in shell.run("forget", "list").stdout
    assert shell.json("forget", "show", name)["agreed_why"] == "agreed: wrong_patient. see letter"
    forget_set.transition(name, "working", actor="root")
    known = "One model forgot it, another model still knows it"
    assert known not in shell.run("forget", "list").stdout
    forget_set.set_reached(name, "unlearned", actor="root")
    for words in (("list",), ("show", name)):
        assert known in shell.run("forget", *words).stdout


def test_a_patient_is_shown_with_the_studies_that_stay_covered(shell: Shell, store: Store) -> None:
    """No archive is asked: it knows what runs recorded, and what a server has listed."""
    cases = [("1.1.1", "1.1", "4711^^^St. Anna", "train")]
    Ledger(store).append(ledger_entry(1, cases=cases))
    words = ("forget", "mark", "--patient", "4711", "--reason", "quality", "--json")
    (made,) = json.loads(shell.run(*words).stdout)
    assert made["studies"] == ["1.1"]
    ForgetSet(store).keep_studies(made["request_id"], ["1.2"])
    assert shell.json("forget", "show", made["request_id"])["studies"] == ["1.1", "1.2"]
    printed = shell.run("forget", "show", made["request_id"]).stdout
    assert "1.2" in printed.splitlines()[-1]
    assert "study that stood under this number" in printed


def test_ids_of_files_have_no_documents(shell: Shell, store: Store) -> None:
    words = (*MARK, "--series", "hippocampus_001", "--reason", "quality")
    assert shell.run(*words).exit_code == 2
    assert shell.run(*words, "--files").exit_code == 0
    assert Outbox(store).list() == []
    assert [row.action for row in Trail(store).rows()] == ["mark"]


@pytest.mark.parametrize(
    "words",
    [
        ("mark", "--reason", "quality"),
        ("mark", "--reason", "quality", "--study", STUDY, "--patient", "P"),
        ("mark", "--reason", "because", "--study", STUDY),
        ("mark", "--reason", "other", "--study", STUDY),
        ("mark", "--reason", "quality", "--study", "../.."),
        ("mark", "--reason", "quality", "--study", "1." * 32 + "1"),
        ("mark", "--reason", "quality", "--study", STUDY, "--needed", "none"),
        ("show", "0" * 32),
        ("withdraw", "'; DROP TABLE run"),
        ("list", "--limit", "0"),
        ("list", "--state", "done"),
    ],
)
def test_bad_words_are_refused(shell: Shell, store: Store, words: tuple[str, ...]) -> None:
    result = shell.run("forget", *words)
    assert result.exit_code == 2
    assert result.stderr.strip()
    assert "Traceback" not in result.output
    assert ForgetSet(store).count() == 0


def test_a_home_without_a_store_is_not_made_one(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["forget", "list", "--home", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "no store is here" in result.stderr
    assert not (tmp_path / "nowhere").exists()


def test_ledger(shell: Shell, store: Store) -> None:
    Ledger(store).append(
        LedgerEntry(
            run_id="r" * 32,
            kind="train",
            model="segmentation",
            version_sha256="a" * 64,
            parent_sha256=None,
            cases=[LedgerCase("1.2.840.1.1", STUDY, "P9", "val", "b" * 64, "c" * 64)],
            parameters={},
            seed=1,
            versions={},
            machine={},
            started="2026-01-01T00:00:00Z",
            ended="2026-01-01T01:00:00Z",
            outcome="done",
        )
    )
    (row,) = shell.json("ledger", "show")
    assert row["version_sha256"] == "a" * 64
    whole = shell.json("ledger", "show", "--run", "r" * 32)
    assert [case["role"] for case in whole["cases"]] == ["validation"]
    assert "1 of 1 rows" in shell.run("ledger", "show").stdout
    for words in (("--study", STUDY), ("--series", "1.2.840.1.1"), ("--person", "P9")):
        (version,) = shell.json("ledger", "versions", *words)
        assert version["version_sha256"] == "a" * 64
    assert "1 versions" in shell.run("ledger", "versions", "--study", STUDY).stdout
    (study,) = shell.json("ledger", "studies", "a" * 64)
    assert study["study"] == STUDY
    assert shell.run("ledger", "studies", "a" * 64).exit_code == 0
    assert shell.run("ledger", "studies", "b" * 64).exit_code == 2
    unknown = shell.run("ledger", "studies", "v0001")
    assert unknown.exit_code == 2
    assert "has no version 'v0001'" in unknown.stderr
    assert shell.run("ledger", "versions").exit_code == 2
    verified = shell.run("ledger", "verify")
    assert verified.exit_code == 0
    assert "no faults" in verified.stdout


def test_a_changed_ledger_row_is_found(shell: Shell, store: Store) -> None:
    test_ledger(shell, store)
    with store.write() as connection:
        for trigger in connection.exec_driver_sql(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'ledger_row'"
        ).scalars():
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        connection.exec_driver_sql(
            """UPDATE ledger_row SET body = replace(body, '"seed":1', '"seed":2')"""
        )
    result = shell.run("ledger", "verify")
    assert result.exit_code == 1
    assert result.stderr.strip()
    assert shell.run("ledger", "verify", "--json").exit_code == 1


def test_a_number_of_several_issuers_needs_the_issuer(shell: Shell, store: Store) -> None:
    cases = [
        LedgerCase(f"1.7.{n}", f"1.8.{n}", f"4711^^^{issuer}", "train", "b" * 64, "c" * 64)
        for n, issuer in enumerate(("St. Anna", "St. Bernd"))
    ]
    Ledger(store).append(
        LedgerEntry(
            run_id="e" * 32, kind="train", model="m", version_sha256="a" * 64, parent_sha256=None,
            cases=cases, parameters={}, seed=1, versions={}, machine={},
            started="2026-01-01T00:00:00Z", ended="2026-01-01T01:00:00Z", outcome="done",
        )
    )  # fmt: skip
    words = ("forget", "mark", "--reason", "quality", "--patient")
    refused = shell.run(*words, "4711")
    assert refused.exit_code == 2
    assert "St. Anna, St. Bernd" in refused.stderr
    assert shell.json("forget", "list") == []
    assert shell.run(*words, "4711^^^St. Anna").exit_code == 0
    # a typing error would be "never trained on", and fulfilled at once
    refused = shell.run(*words, "4712")
    assert refused.exit_code == 2
    assert "no version was trained on this patient; nothing was marked" in refused.stderr
    assert "4712" not in refused.stderr
    assert len(shell.json("forget", "list")) == 1
    assert shell.run(*words, "4712", "--even-if-unknown").exit_code == 0
    assert "marked before" in shell.run(*words, "4712").stdout


@pytest.mark.parametrize("kind", ["study", "series", "structure"])
def test_what_no_version_was_trained_on_is_not_marked_by_mistake(shell: Shell, kind: str) -> None:
    words = ("forget", "mark", "--reason", "quality", f"--{kind}", "1.2.3.4")
    refused = shell.run(*words)
    assert refused.exit_code == 2
    assert f"no version was trained on this {kind}; nothing was marked" in refused.stderr
    assert shell.json("forget", "list") == []
    assert shell.run(*words, "--even-if-unknown").exit_code == 0
    assert "marked before" in shell.run(*words).stdout
