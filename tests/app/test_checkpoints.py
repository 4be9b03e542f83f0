"""Checkpoints of trainings that did not finish go when a study that they saw is marked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from segunlearn.app import checkpoints
from segunlearn.app.datastores import FolderDatastore
from segunlearn.app.forget_service import ForgetService
from segunlearn.app.locks import audit_lock
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.cases import Case
from segunlearn.cli import forget_command
from segunlearn.records.runs import Runs

CASES = [
    Case("1.2.1", "1.1", "4711^^^St. Anna", Path("a"), Path("a"), "CT"),
    Case("1.2.2", "1.1", "4711^^^St. Anna", Path("b"), Path("b"), "CT"),
    Case("1.2.3", "1.3", "0815", Path("c"), Path("c"), "MR"),
]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(Home(tmp_path))


def ended_run(records: Records, home: Path, cases: list[Case] | None = None) -> Path:
    """Folder of a run that was stopped, with a checkpoint."""
    runs = records.runs_unchecked
    run_id = runs.start("train", "tiny", {})
    runs.finish(run_id, "cancelled")
    return with_checkpoint(home / "runs" / run_id, records, CASES if cases is None else cases)


def with_checkpoint(folder: Path, records: Records, cases: list[Case]) -> Path:
    folder.mkdir(parents=True)
    checkpoints.note(folder, cases, records.pseudonyms)
    (folder / "checkpoint.json").write_text("{}")
    (folder / "state-000001.safetensors").write_bytes(b"weights")
    return folder


Marking = tuple[str, str, bool]
TARGETS: dict[str, Marking] = {
    "its series": ("series", "1.2.2", True),
    "its study": ("study", "1.1", True),
    "its patient": ("patient", "4711", True),
    "its patient, with padding": ("patient", " 4711 ^^^St.  Anna", True),
    "the patient, and the issuer is not known of the case": ("patient", "0815^^^St. Anna", True),
    "the same number of another issuer": ("patient", "4711^^^St. Bernd", False),
    "another series": ("series", "1.2.9", False),
    "a study of the series' number": ("study", "1.2.2", False),
    "another patient": ("patient", "4712", False),
    "a structure": ("structure", "1.1", False),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_mark_deletes_the_checkpoints_that_saw_its_target(
    records: Records, tmp_path: Path, name: str
) -> None:
    kind, target, seen = TARGETS[name]
    folder = ended_run(records, tmp_path)
    other = ended_run(records, tmp_path, [Case("1.9", "1.8", "none", Path("d"), Path("d"))])
    records.forget_set.mark(kind, target, "consent_withdrawn", actor="dpo")
    assert folder.exists() is not seen
    assert other.exists()


def test_what_its_run_deletes_meanwhile_keeps_nothing_else_alive(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that begins removes old folders too; a mark must reach all the others."""
    first, second = sorted(ended_run(records, tmp_path) for _ in range(2))
    saw = checkpoints.saw

    def gone(folder: Path, *rest: Any) -> bool:
        found = saw(folder, *rest)
        if folder == first:
            shutil.rmtree(first)
        return found

    monkeypatch.setattr(checkpoints, "saw", gone)
    records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    assert not first.exists()
    assert not second.exists()


def test_a_mark_deletes_the_references_of_audits_that_saw_its_target(
    records: Records, tmp_path: Path
) -> None:
    saw = with_checkpoint(tmp_path / "audits" / "work" / "a", records, CASES)
    other = with_checkpoint(tmp_path / "audits" / "work" / "b", records, CASES[2:])
    busy = with_checkpoint(tmp_path / "audits" / "work" / "c", records, CASES)
    with audit_lock(Home(tmp_path), "c"):
        records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
        assert (saw.exists(), other.exists(), busy.exists()) == (False, True, True)
    records.drop_marked_checkpoints()  # with no folder of a run there
    assert not busy.exists()


def test_what_the_mark_did_not_meet_goes_at_the_next_start(
    records: Records, tmp_path: Path
) -> None:
    records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    folder = ended_run(records, tmp_path)
    fine = ended_run(records, tmp_path, CASES[2:])
    studies = FolderDatastore.__new__(FolderDatastore)
    service = ForgetService(Records(Home(tmp_path)), Home(tmp_path), lambda: studies, lambda: None)
    service.start()
    assert not folder.exists()
    assert fine.exists()


def test_a_start_without_checkpoints_touches_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "new")
    studies = FolderDatastore.__new__(FolderDatastore)
    ForgetService(Records(home), home, lambda: studies, lambda: None).start()
    assert not home.root.exists()


def test_a_proposal_deletes_nothing_until_a_person_agrees(records: Records, tmp_path: Path) -> None:
    folder = ended_run(records, tmp_path)
    request, _ = records.forget_set.propose("study", "1.1", "quality", "", "rejection_note")
    assert folder.exists()
    records.forget_set.transition(request.request_id, "requested", actor="dpo")
    assert not folder.exists()


def test_the_folder_of_a_training_under_way_is_left_to_it(records: Records, tmp_path: Path) -> None:
    run_id = records.runs_unchecked.start("train", "tiny", {})
    folder = with_checkpoint(tmp_path / "runs" / run_id, records, CASES)
    records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    assert folder.exists()
    (run,) = records.cancel("train")
    Runs(records.store).finish(run.run_id, "cancelled")
    records.finish_cancelled([run])  # its process was killed: it could not tidy up itself
    assert not folder.exists()


def test_a_killed_run_counts_as_ended(records: Records, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from segunlearn.app.options import Home\n"
        "from segunlearn.app.records import Records\n"
        "print(Records(Home(Path(sys.argv[1]))).runs.start('train', 'tiny', {}))"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    run_id = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    folder = with_checkpoint(tmp_path / "runs" / run_id, records, CASES)
    records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    assert not folder.exists()


def test_weights_that_no_run_goes_on_from_go_without_a_mark(
    records: Records, tmp_path: Path
) -> None:
    """What a killed forgetting of a feature left is of no use to anybody."""
    runs, training = records.runs_unchecked, ended_run(records, tmp_path)
    ended, running = (runs.start("forget_feature", "tiny", {}) for _ in range(2))
    runs.finish(ended, "failed")
    for run_id in (ended, running):
        with_checkpoint(tmp_path / "runs" / run_id, records, CASES)
    records.drop_marked_checkpoints()
    assert {f.name for f in (tmp_path / "runs").iterdir()} == {running, training.name}


def test_folders_of_other_runs_are_left_alone(records: Records, tmp_path: Path) -> None:
    runs = records.runs_unchecked
    run_id = runs.start("audit", "tiny", {})
    runs.finish(run_id, "done")
    report = tmp_path / "runs" / run_id / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    assert report.exists()


def remove(path: Path) -> None:
    path.unlink()


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9])


def empty(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize("damage", [remove, tear, empty])
def test_a_checkpoint_of_unknown_cases_goes_with_any_mark(
    records: Records, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = ended_run(records, tmp_path, CASES[2:])
    damage(folder / "cases.json")
    records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    assert not folder.exists()


def test_so_does_one_whose_pseudonyms_cannot_be_read(records: Records, tmp_path: Path) -> None:
    folder = ended_run(records, tmp_path)
    (tmp_path / "site.key").write_bytes(bytes(32))
    records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    assert not folder.exists()


def test_a_mark_stands_though_the_checkpoint_cannot_be_removed(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ended_run(records, tmp_path)

    def refuse(_path: Path, **_how: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", refuse)
        _, created = records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    assert created
    assert folder.exists()
    records.drop_marked_checkpoints()
    assert not folder.exists()


def test_a_mark_stands_though_the_key_is_damaged(
    records: Records, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended_run(records, tmp_path)
    (tmp_path / "site.key").write_bytes(b"short")
    _, created = records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="dpo")
    assert created
    assert records.forget_set.exclude(CASES)[0] == CASES[2:]
    assert "site.key" in caplog.text


def test_the_list_of_cases_names_nobody(records: Records, tmp_path: Path) -> None:
    text = (ended_run(records, tmp_path) / "cases.json").read_text()
    for case in CASES:
        for name in (case.series, case.study, case.person, "4711", "St. Anna"):
            assert json.dumps(name) not in text


@pytest.mark.parametrize("words", [("--study", "1.1"), ("--series", "1.2.1", "--files")])
def test_the_command_line_deletes_too(
    records: Records, tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder = ended_run(records, tmp_path)
    root = typer.Typer()
    root.add_typer(forget_command.forget, name="forget")
    done = CliRunner().invoke(
        root,
        ["forget", "mark", "--even-if-unknown", *words, "--reason=quality", f"--home={tmp_path}"],
    )
    assert done.exit_code == 0, done.output
    assert not folder.exists()


def test_marking_does_not_load_torch() -> None:
    code = "import sys; import segunlearn.app.checkpoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
