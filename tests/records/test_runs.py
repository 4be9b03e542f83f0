"""Runs: progress, events, cancelling, and processes that die."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from segunlearn.errors import ConflictError, InvalidInputError, NotFoundError
from segunlearn.records import runs as runs_module
from segunlearn.records.processes import ProcessIdentity, is_alive, this_process
from segunlearn.records.runs import Progress, Runs
from segunlearn.records.store import Store, open_store


@pytest.fixture
def runs(store: Store) -> Runs:
    return Runs(store)


def test_a_run_from_start_to_end(runs: Runs) -> None:
    run_id = runs.start("train", "segmentation", {"epochs": 3}, requested_by="anna")
    assert runs.get(run_id).is_running
    assert runs.get(run_id).progress is None
    report = Progress("train", 1, 3, {"loss": 0.5}, 20.0)
    runs.update(run_id, report)
    assert runs.get(run_id).progress == report
    runs.finish(run_id, "done")
    record = runs.get(run_id)
    assert (record.state, record.parameters, record.requested_by) == ("done", {"epochs": 3}, "anna")
    assert record.ended is not None
    assert record.started <= record.ended
    assert record.progress == report, "the last report is still there"


def test_figures_that_are_not_finite_are_dropped() -> None:
    report = Progress("train", 1, 0, {"loss": float("nan"), "dice": 0.5}, float("inf"))
    assert Progress.from_json(report.to_json()) == Progress("train", 1, 0, {"dice": 0.5}, None)
    assert report.fraction == 0.0
    assert Progress("train", 3, 4).fraction == 0.75


def test_a_reader_asks_for_newer_than_n(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "COALESCE_SECONDS", 0.0)
    run_id = runs.start("train", "segmentation", {})
    seen = [e.seq for e in runs.events(run_id)]
    for step in range(5):
        runs.update(run_id, Progress("train", step, 5))
        new = runs.events(run_id, after=seen[-1])
        assert [e.progress.step for e in new if e.progress] == [step]
        seen += [e.seq for e in new]
    runs.finish(run_id, "failed", "out of memory")
    (last,) = runs.events(run_id, after=seen[-1])
    assert (last.state, last.message) == ("failed", "out of memory")
    seen.append(last.seq)
    assert seen == sorted(set(seen))
    assert runs.events(run_id, after=last.seq) == []
    assert len(runs.events(run_id, limit=2)) == 2


def test_reports_in_quick_succession_leave_the_newest(runs: Runs) -> None:
    run_id = runs.start("train", "segmentation", {})
    for step in range(200):
        runs.update(run_id, Progress("train", step, 200))
    runs.update(run_id, Progress("validate", 0, 10))
    reports = [e.progress for e in runs.events(run_id) if e.progress]
    assert [p.step for p in reports if p.phase == "train"][-1] == 199, "a phase's end stays"
    assert reports[-1].phase == "validate"
    assert len(reports) < 50


def test_cancelling(runs: Runs) -> None:
    run_id = runs.start("train", "segmentation", {})
    assert not runs.cancelled(run_id)
    runs.cancel(run_id, by="anna")
    runs.cancel(run_id, by="anna")
    assert runs.cancelled(run_id)
    assert runs.get(run_id).is_running, "it stops itself"
    runs.finish(run_id, "cancelled")
    with pytest.raises(ConflictError, match="has ended"):
        runs.cancel(run_id)


def test_what_has_ended_stays_so(runs: Runs) -> None:
    run_id = runs.start("train", "segmentation", {})
    runs.finish(run_id, "done")
    runs.finish(run_id, "done")
    with pytest.raises(ConflictError, match="ended as done"):
        runs.finish(run_id, "failed")
    with pytest.raises(ConflictError, match="no progress"):
        runs.update(run_id, Progress("train", 1, 1))
    assert runs.get(run_id).state == "done"
    assert [e.state for e in runs.events(run_id)] == ["running", "done"]


def test_wrong_input_changes_nothing(runs: Runs) -> None:
    with pytest.raises(InvalidInputError, match="kind and a model"):
        runs.start("", "segmentation", {})
    with pytest.raises(InvalidInputError, match="JSON"):
        runs.start("train", "segmentation", {"x": object()})
    assert runs.list() == []
    run_id = runs.start("train", "segmentation", {})
    with pytest.raises(InvalidInputError, match="no outcome"):
        runs.finish(run_id, "great")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="limit"):
        runs.list(limit=-1)
    calls = (runs.get, runs.events, runs.cancel, lambda r: runs.update(r, Progress("a", 1, 1)))
    for call in calls:
        with pytest.raises(NotFoundError, match="no run"):
            call("' OR 1=1 --")
    assert not runs.cancelled("nothing")


def test_listing_and_latest(runs: Runs) -> None:
    ids = [runs.start(k, "segmentation", {}) for k in ("train", "evaluate", "train")]
    assert [r.run_id for r in runs.list()] == ids[::-1]
    assert [r.run_id for r in runs.list(limit=1, offset=1)] == [ids[1]]
    assert [r.run_id for r in runs.list(kind="train", state="running")] == [ids[2], ids[0]]
    newest = runs.latest(model="segmentation", kind="evaluate")
    assert newest is not None
    assert newest.run_id == ids[1]
    assert runs.latest(model="other") is None


CHILD = """
import json, sys, time
from segunlearn.records.runs import Progress, Runs
from segunlearn.records.store import open_store
runs = Runs(open_store(sys.argv[1]))
run_id = runs.start("train", "segmentation", {})
print(run_id, flush=True)
time.sleep(60)
"""


def test_a_run_whose_process_was_killed_is_interrupted(runs: Runs, store_place: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, store_place], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    own = runs.start("train", "segmentation", {})
    assert runs.mark_dead() == [], "living processes' runs are left alone"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    again = open_store(store_place)
    opened = Runs(again)
    record = opened.get(run_id)
    again.close()
    assert record.state == "interrupted"
    assert "killed" in record.message
    assert runs.get(own).is_running
    assert runs.events(run_id)[-1].state == "interrupted"


def test_a_new_process_with_the_old_number_is_another_process() -> None:
    me = this_process()
    assert is_alive(me)
    assert is_alive(ProcessIdentity(me.host, me.boot, me.pid_space, me.pid, me.start + 1)) is False
    assert is_alive(ProcessIdentity(me.host, "before", me.pid_space, me.pid, me.start)) is False
    assert is_alive(ProcessIdentity("elsewhere", me.boot, me.pid_space, me.pid, 1)) is None
    assert is_alive(ProcessIdentity(me.host, me.boot, "container", me.pid, 1)) is None


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    try:
        deadline = time.monotonic() + 20
        me = this_process()
        while is_alive(ProcessIdentity(me.host, me.boot, me.pid_space, child.pid, 0)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.wait(20)


def test_a_run_on_a_machine_that_cannot_be_seen(
    runs: Runs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy import update

    from segunlearn.records.tables import RUN

    run_id = runs.start("train", "segmentation", {})
    with store.write() as connection:
        connection.execute(update(RUN).values(host="elsewhere"))
    assert runs.mark_dead() == []
    with store.write() as connection:
        connection.execute(update(RUN).values(updated="2020-01-01T00:00:00.000000Z"))
    assert runs.mark_dead() == [run_id]
    runs.update(run_id, Progress("train", 1, 2))
    assert runs.get(run_id).is_running, "it reports again, so it lives"


def test_readable_while_another_process_reports(runs: Runs, store_place: str) -> None:
    script = """
import sys
from segunlearn.records.runs import Progress, Runs
from segunlearn.records.store import open_store
runs = Runs(open_store(sys.argv[1]))
run_id = runs.start("train", "segmentation", {})
print(run_id, flush=True)
for step in range(1, 301):
    runs.update(run_id, Progress("train", step, 300, {"loss": 1 / step}))
runs.finish(run_id, "done")
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script, store_place], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    run_id, newest, steps = child.stdout.readline().strip(), 0, []
    deadline = time.monotonic() + 60
    while runs.get(run_id).is_running:
        assert time.monotonic() < deadline
        for event in runs.events(run_id, after=newest):
            newest = event.seq
            steps += [event.progress.step] if event.progress else []
    assert child.wait(20) == 0
    child.stdout.close()
    steps += [e.progress.step for e in runs.events(run_id, after=newest) if e.progress]
    assert steps == sorted(steps)
    assert json.loads(json.dumps(steps))[-1] == 300


def test_a_report_is_canonical_json() -> None:
    assert Progress("train", 2, 4, {"dice": 0.5}).to_json() == (
        '{"eta_seconds":null,"metrics":{"dice":0.5},"phase":"train","step":2,"total":4}'
    )
