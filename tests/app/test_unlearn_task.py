"""``/train/unlearn`` in this process and in processes that die: plan, result, stop, settle."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from monailabel.utils.async_tasks import utils as platform

from app_sources import wait_until
from audit_home import MODEL, Site
from segunlearn.app import background, unlearn_run, watched_run
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_settle import PATIENCE
from segunlearn.app.unlearn_task import UNLEARN
from segunlearn.errors import CancelledError, ConflictError, InvalidInputError
from segunlearn.records.runs import Progress
from unlearn_site import app_of, copy_of, everything, known_site, let_it_pass

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return known_site(tmp_path_factory.mktemp("task"))


@pytest.fixture
def site(built: Site, tmp_path: Path) -> Site:
    return copy_of(built, tmp_path)


@pytest.fixture
def app(site: Site, tmp_path: Path) -> Iterator[SegUnlearnApp]:
    made = app_of(site, tmp_path)
    yield made
    made.records.store.close()


def test_without_a_word_it_only_plans(app: SegUnlearnApp, site: Site) -> None:
    (request,) = site.mark(site.forget[:1])
    before = everything(site)
    assert [task for task in app.ordinary_trainers()] == [MODEL]
    done = app.train({"model": UNLEARN})
    assert done["dry_run"] is True
    assert [r["id"] for r in done["plan"]["requests"]] == [request]
    assert everything(site) == before
    run = app.records.runs.get(done["run_id"])
    assert (run.kind, run.state) == ("plan", "done")
    assert run.parameters["plan"]["people"] == 1
    info = app.info()
    assert next(iter(info["trainers"])) == MODEL
    first = next(iter(info["train_stats"].values()))
    assert (first["kind"], first["plan"]["people"]) == ("plan", 1)
    assert first["total_epochs"] >= 1  # clients divide by it
    assert "Name-" not in json.dumps(info["train_stats"])
    task = app.last_run_as_task("train")
    assert task is not None
    assert (task["status"], task["request"]["model"]) == ("DONE", UNLEARN)


def test_options_are_what_clients_can_render(app: SegUnlearnApp) -> None:
    config = app.info()["trainers"][UNLEARN]["config"]
    assert config["dry_run"] is True
    assert config["method"][0] == config["level"][0] == "auto"
    assert all(isinstance(v, bool | int | float | str | list) for v in config.values())
    json.dumps(app.info())


def test_it_unlearns_what_is_marked(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forget set is measured, so that the studies it reads are not those of a training."""
    let_it_pass(monkeypatch)
    ids = site.mark(site.forget)
    asked = {"requests": ",".join(ids), "dry_run": "false", "method": "fine_tune"}
    done = app.train({"model": UNLEARN, **asked, "client_id": "ann"})
    assert (done["outcome"], done["version"]) == ("published", "v0002")
    assert {s["state"] for s in done["requests"].values()} == {"fulfilled"}
    assert app.model.version().version == "v0002"
    run = app.records.runs.get(done["run_id"])
    assert (run.kind, run.state, run.requested_by) == ("unlearn", "done", "ann")
    assert next(iter(app.info()["train_stats"].values()))["run_id"] == done["run_id"]


def test_what_cannot_begin_is_told_and_changes_nothing(app: SegUnlearnApp, site: Site) -> None:
    with pytest.raises(ConflictError, match="no forget request is approved"):
        app.train({"model": UNLEARN, "dry_run": False})
    site.mark([*site.forget, *site.retain])
    before = everything(site)
    for dry in (True, False):
        with pytest.raises(InvalidInputError, match="none of the other people"):
            app.train({"model": UNLEARN, "dry_run": dry, "method": "retrain"})
        stats = app.info()["train_stats"][UNLEARN]
        assert (stats["state"], stats["kind"]) == ("refused", "plan" if dry else "unlearn")
        assert "none of the other people" in stats["message"]
    assert everything(site) == before


def in_a_process(site: Site, folder: Path) -> Any:
    """Start the task as the platform does, but as a fork of this process."""

    def work() -> None:
        app = app_of(site, folder)
        try:
            app.train({"model": UNLEARN, "dry_run": False, "method": "fine_tune"})
        except CancelledError:
            os._exit(3)
        os._exit(0)

    process = FORK.Process(target=work)
    process.start()
    return process


def begun(site: Site) -> Callable[[], bool]:
    """Whether the task has a request in work."""
    return lambda: site.records.forget_set.count(states=("working",)) > 0


@pytest.mark.parametrize("polite", [True, False])
def test_a_stop_leaves_the_old_version(
    app: SegUnlearnApp, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, polite: bool
) -> None:
    def until_cancelled(*arguments: Any) -> None:
        while not (polite and arguments[-1]()):
            time.sleep(0.02)
        raise CancelledError("the unlearning was stopped.")

    monkeypatch.setattr(watched_run, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(unlearn_run, "make", until_cancelled)
    (request,) = site.mark(site.forget[:1])
    (tmp_path / "child").mkdir()
    process = in_a_process(site, tmp_path / "child")
    wait_until(begun(site), 60, "the unlearning works")

    def stop(seconds: float) -> float:
        if not polite:
            process.kill()
        process.join(60)
        return seconds

    assert app.cancel_runs("train", stop) == PATIENCE
    assert process.exitcode == (3 if polite else -9)
    found = site.records.forget_set.get(request)
    assert found.state == "refused"
    why = site.records.forget_set.history(request)[-1].why
    assert ("stopped by a person" if polite else "interrupted") in why
    assert app.model.version().version == "v0001"
    run = app.records.runs.latest(kind="unlearn")
    assert run is not None
    assert run.state == "cancelled"
    assert not list(site.home.unlearning.iterdir())


@pytest.mark.parametrize("decided", [True, False])
def test_the_next_start_settles_what_was_killed(
    app: SegUnlearnApp, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decided: bool
) -> None:
    def die(*_: Any) -> None:
        os._exit(9)

    (request,) = site.mark(site.forget[:1])
    with monkeypatch.context() as patch:
        let_it_pass(patch)
        if decided:
            patch.setattr(Finisher, "finish", die)
        else:
            patch.setattr(unlearn_run, "make", die)
        (tmp_path / "child").mkdir()
        process = in_a_process(site, tmp_path / "child")
        process.join(60)
    assert process.exitcode == 9
    assert site.records.forget_set.get(request).state == "working"
    app.forget_service.start()
    assert site.records.forget_set.get(request).state == ("fulfilled" if decided else "refused")
    assert app.model.version().version == ("v0002" if decided else "v0001")
    run = app.records.runs.latest(kind="unlearn")
    assert run is not None
    assert run.state == ("done" if decided else "interrupted")
    assert not list(site.home.unlearning.iterdir())


def test_a_damaged_journal_does_not_stop_the_server(app: SegUnlearnApp, site: Site) -> None:
    site.home.unlearning.mkdir()
    (site.home.unlearning / f"{'0' * 32}.json").write_text("{}")
    app.forget_service.start()
    assert app.model.version().version == "v0001"


@pytest.mark.parametrize(("seconds", "code"), [(0.2, 0), (60.0, -9)])
def test_a_task_is_killed_only_when_it_does_not_end(
    monkeypatch: pytest.MonkeyPatch, seconds: float, code: int
) -> None:
    program = f"import time; time.sleep({seconds})"
    process = subprocess.Popen([sys.executable, "-c", program])
    task = {"id": "1", "status": "RUNNING", "request": {}}
    monkeypatch.setattr(platform, "background_tasks", {"train": [task]})
    monkeypatch.setattr(platform, "background_processes", {"train": {"1": process}})
    stopped = background.stop("train", 30.0 if code == 0 else 0.1)
    assert stopped is not None
    assert (stopped["status"], task["status"], process.returncode) == ("STOPPED", "STOPPED", code)
    assert background.stop("train", 30.0) is None


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the process of a task run a program instead."""
    for name in ("background_tasks", "background_processes", "background_executors"):
        monkeypatch.setattr(platform, name, {})
    popen = subprocess.Popen

    def runs(program: str) -> None:
        monkeypatch.setattr(
            background.subprocess,
            "Popen",
            lambda words, **more: popen([sys.executable, "-c", program], **more),
        )

    return runs


def test_a_task_that_says_what_is_no_text_ends(child: Callable[[str], None]) -> None:
    """Libraries print what they like; a task that never ends refuses every later one."""
    child("import os; os.write(1, b'caf\\xe9\\nlast'); raise SystemExit(3)")
    background.start("train", {})
    wait_until(lambda: not background.is_open("train"), 30, "the task ends")
    (task,) = background.tasks("train")
    assert (task["status"], task["details"]) == ("ERROR", ["caf\ufffd", "last"])


def test_a_task_that_is_stopped_while_it_begins_does_not_run(
    child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    child("import time; time.sleep(60)")
    begin, begun = background.subprocess.Popen, []
    stopping = threading.Thread(target=background.stop, args=("train",))

    def slowly(*words: Any, **more: Any) -> Any:
        stopping.start()
        time.sleep(0.3)
        begun.append(begin(*words, **more))
        return begun[0]

    monkeypatch.setattr(background.subprocess, "Popen", slowly)
    background.start("train", {})
    wait_until(lambda: begun and begun[0].poll() is not None, 20, "it is stopped")
    stopping.join()
    assert background.tasks("train")[0]["status"] == "STOPPED"


def test_who_stops_twice_waits_and_kills_nothing(child: Callable[[str], None]) -> None:
    """What a task undoes takes some seconds, in which somebody may ask again."""
    child("import sys, time; sys.stdin.read(); print('undo', flush=True); time.sleep(2)")
    background.start("train", {})
    wait_until(lambda: background.tasks("train")[0].get("details") == ["undo"], 30, "it runs")
    (process,) = platform.processes("train").values()
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(background.stop("train", 30.0)))
    first.start()
    wait_until(lambda: "stopping" in background.tasks("train")[0], 10, "it is asked to stop")
    assert background.is_open("train")  # nothing begins beside what it undoes
    found.append(background.stop("train", 30.0))
    first.join()
    assert process.returncode == 0
    assert [task["status"] for task in found] == ["STOPPED", "STOPPED"]
    assert not background.is_open("train")


def test_tasks_that_are_queued_at_once_run_one_after_the_other(
    child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    child("import time; time.sleep(20)")
    make = background.ThreadPoolExecutor

    def slowly(*given: Any) -> Any:
        time.sleep(0.2)
        return make(*given)

    monkeypatch.setattr(background, "ThreadPoolExecutor", slowly)
    together = [threading.Thread(target=background.start, args=("train", {})) for _ in range(4)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    time.sleep(0.5)
    states = [task["status"] for task in background.tasks("train")]
    background.stop("train")
    assert sorted(states) == ["RUNNING", "SUBMITTED", "SUBMITTED", "SUBMITTED"]


def test_a_running_training_is_shown_before_a_plan(app: SegUnlearnApp, site: Site) -> None:
    runs = app.records.runs
    training = runs.start("train", MODEL, {"settings": {"epochs": 5}})
    runs.update(training, Progress("train", 1, 5, {"epoch": 1}))
    runs.finish(runs.start("plan", MODEL, {}), "done")
    assert next(iter(app.info()["train_stats"])) == MODEL
