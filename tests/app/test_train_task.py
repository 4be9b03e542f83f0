"""The training task in this process: what it trains on, and what it leaves behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app_sources import LABELS, Study, make_study, publish_tiny, put_held_out, write_files
from segunlearn.app.application import SegUnlearnApp
from segunlearn.errors import CancelledError, ConflictError, InvalidInputError
from segunlearn.records.runs import Progress
from segunlearn.training import TrainResult
from segunlearn.training.planning import RECIPES
from segunlearn.volumes import write_volume

OPTIONS = {"model": "segmentation", "max_epochs": 1, "val_split": 0.34}


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    found = [make_study(n) for n in range(4)]
    write_files(tmp_path / "studies", found, labelled=4)
    return found


@pytest.fixture
def app(tmp_path: Path, studies: list[Study]) -> Iterator[SegUnlearnApp]:
    publish_tiny(tmp_path / "home")
    made = make_app(tmp_path)
    yield made
    made.records.store.close()


def make_app(root: Path) -> SegUnlearnApp:
    conf = {"home": str(root / "home"), "labels": ",".join(LABELS)}
    return SegUnlearnApp(str(root), str(root / "studies"), conf)


def mark(app: SegUnlearnApp, series: str) -> None:
    _, created = app.records.forget_set.mark(
        "study", series, "consent_withdrawn", actor="tester", opaque=True
    )
    assert created


def rows(app: SegUnlearnApp, sha256: str) -> dict[str, str]:
    """Series and role of what a version was trained on."""
    return {row.study: str(row.roles) for row in app.records.ledger.studies_of(sha256)}


def roles(app: SegUnlearnApp, run_id: str) -> dict[str, set[str]]:
    """Series by role in a run's own row."""
    found: dict[str, set[str]] = {"train": set(), "validation": set()}
    for case in app.records.ledger.cases_of(run_id):
        found[case.role].add(case.series)
    return found


def test_a_forgotten_study_trains_nothing_and_validates_nothing(app: SegUnlearnApp) -> None:
    mark(app, "person2")
    assert "person2" not in str(app.datastore().datalist())
    done = app.train(OPTIONS)
    assert done["train_cases"] + done["val_cases"] == 3
    used = rows(app, done["sha256"])
    assert set(used) == {"person0", "person1", "person3"}
    assert app.records.ledger.verify() == []
    active = app.model.version()
    assert (active.version, active.sha256) == ("v0002", done["sha256"])
    run = app.records.runs.get(done["run_id"])
    assert run.state == "done"
    assert not any(app.home.runs.iterdir())


def test_whom_the_active_version_kept_out_stays_out(app: SegUnlearnApp) -> None:
    """Else nobody could say how well the next version does on people it never saw."""
    put_held_out(app.model.version(), app.home.root, "person2", "somebody else")
    kept_out = app.model.version().details
    done = app.train(OPTIONS)
    assert set(rows(app, done["sha256"])) == {"person0", "person1", "person3"}
    assert done["held_out_people"] == 2
    version = app.model.version()
    assert {k: version.details[k] for k in kept_out} == kept_out
    progress = app.records.runs.get(done["run_id"]).progress
    assert progress is not None
    assert progress.metrics["held_out"] == 1
    for number in (0, 1, 3):
        mark(app, f"person{number}")
    with pytest.raises(InvalidInputError, match="v0002 kept out every one of these people"):
        app.train(OPTIONS)


@pytest.mark.parametrize("seed", range(3))
def test_only_people_whom_the_weights_were_not_fitted_to_validate_the_next_version(
    app: SegUnlearnApp, tmp_path: Path, seed: int
) -> None:
    """Else its Dice, and the epoch that is taken, would rest on what it knows by heart."""
    options = {**OPTIONS, "seed": seed}
    first = roles(app, app.train(options)["run_id"])
    for number in (4, 5):
        study = make_study(number)
        write_volume(study.image, tmp_path / "studies" / f"a{number}.nii.gz")
        write_volume(study.label, tmp_path / "studies/labels/final" / f"a{number}.nii.gz")
    app.datastore().refresh()
    second = roles(app, app.train({**options, "seed": seed + 10})["run_id"])
    assert len(second["train"] | second["validation"]) == 6
    assert second["validation"]
    assert not second["validation"] & first["train"]


def test_where_the_weights_were_fitted_to_everybody_nobody_validates(
    app: SegUnlearnApp, caplog: pytest.LogCaptureFixture
) -> None:
    assert app.train({**OPTIONS, "val_split": 0})["best_dice"] is None
    done = app.train(OPTIONS)
    assert (done["val_cases"], done["best_dice"]) == (0, None)
    assert "nobody validates" in caplog.text
    assert app.train({**OPTIONS, "pretrained": False})["val_cases"] == 1


def test_from_random_weights_they_stay_out_as_with_train_again(app: SegUnlearnApp) -> None:
    """After an unlearning that only hides, this is the way on: the figures must stay comparable."""
    put_held_out(app.model.version(), app.home.root, "person2")
    kept_out = app.model.version().details
    done = app.train({**OPTIONS, "pretrained": False})
    assert set(rows(app, done["sha256"])) == {"person0", "person1", "person3"}
    assert done["held_out_people"] == 1
    assert {k: app.model.version().details[k] for k in kept_out} == kept_out


def test_a_mark_during_the_training_keeps_its_result_out_of_service(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segunlearn.app import training_run

    real = training_run.train

    def train_and_be_marked(*arguments: Any, **options: Any) -> TrainResult:
        result = real(*arguments, **options)
        mark(app, "person1")
        return result

    monkeypatch.setattr(training_run, "train", train_and_be_marked)
    with pytest.raises(ConflictError, match="marked for forgetting"):
        app.train(OPTIONS)
    assert app.model.version().version == "v0001"
    run = app.records.runs.latest(kind="train")
    assert run is not None
    assert run.state == "refused"
    assert not any(app.home.runs.iterdir())  # its weights have seen the study


def test_everything_forgotten_is_nothing_to_train_on(app: SegUnlearnApp) -> None:
    for number in range(4):
        mark(app, f"person{number}")
    with pytest.raises(InvalidInputError, match="nothing to train on"):
        app.train(OPTIONS)
    assert app.model.version().version == "v0001"


def test_a_stopped_training_leaves_the_old_version_and_can_go_on(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segunlearn.app import training_run, watched_run

    monkeypatch.setattr(watched_run, "WATCH_SECONDS", 0.0)
    real = training_run.TrainingRun.report

    def report_and_stop(run: training_run.TrainingRun, progress: Progress) -> None:
        real(run, progress)
        if progress.phase == "train" and progress.metrics.get("epoch", 0) >= 3:
            app.records.cancel("train")

    options = {**OPTIONS, "max_epochs": 8}
    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainingRun, "report", report_and_stop)
        with pytest.raises(CancelledError):
            app.train(options)
    first = app.records.runs.latest(kind="train")
    assert first is not None
    assert (first.state, app.model.version().version) == ("cancelled", "v0001")
    assert (app.home.runs / first.run_id / "checkpoint.json").is_file()

    seen: list[float] = []

    def watch(run: training_run.TrainingRun, progress: Progress) -> None:
        real(run, progress)
        if progress.phase == "train":
            seen.append(progress.metrics["epoch"])

    monkeypatch.setattr(training_run.TrainingRun, "report", watch)
    app.train(options)
    assert min(seen) > 1  # not from the first epoch again
    assert app.model.version().version == "v0002"


def test_other_cases_start_afresh(app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that has seen a study never goes on without it."""
    from segunlearn.app import training_run, watched_run

    monkeypatch.setattr(watched_run, "WATCH_SECONDS", 0.0)
    real = training_run.TrainingRun.report

    def report_and_stop(run: training_run.TrainingRun, progress: Progress) -> None:
        real(run, progress)
        if progress.phase == "train" and progress.metrics.get("epoch", 0) >= 3:
            app.records.cancel("train")

    options = {**OPTIONS, "max_epochs": 6}
    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainingRun, "report", report_and_stop)
        with pytest.raises(CancelledError):
            app.train(options)
    mark(app, "person0")
    seen: list[float] = []

    def watch(run: training_run.TrainingRun, progress: Progress) -> None:
        real(run, progress)
        if progress.phase == "train":
            seen.append(progress.metrics["epoch"])

    monkeypatch.setattr(training_run.TrainingRun, "report", watch)
    done = app.train(options)
    assert min(seen) == 1
    assert "person0" not in rows(app, done["sha256"])


def test_the_first_training_plans_its_network(tmp_path: Path, studies: list[Study]) -> None:
    app = make_app(tmp_path)
    assert app.info()["models"]["segmentation"]["labels"] == {
        n: i + 1 for i, n in enumerate(LABELS)
    }
    done = app.train({**OPTIONS, "pretrained": True, "recipe": "sample"})
    version = app.model.version()
    assert (version.version, version.parent_sha256) == ("v0001", None)
    assert tuple(version.config["labels"]) == LABELS
    sample, settings = (
        RECIPES["sample"],
        app.records.runs.get(done["run_id"]).parameters["settings"],
    )
    assert tuple(version.config["features"]) == sample.features
    assert settings["learning_rate"] == sample.settings.learning_rate
    assert (settings["samples_per_case"], settings["epochs"]) == (12, 1)
    assert (
        app.infer({"model": "segmentation", "image": "person0"})["params"]["sha256"]
        == (done["sha256"])
    )
    app.records.store.close()


def test_only_one_training_at_a_time(app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch) -> None:
    from segunlearn.app import train
    from segunlearn.app.locks import exclusive

    monkeypatch.setattr(train, "LOCK_SECONDS", 0.1)
    with (
        exclusive(app.home.locks, "train-segmentation"),
        pytest.raises(ConflictError, match="another training"),
    ):
        app.train(OPTIONS)
    assert app.records.runs.latest(kind="train") is None


@pytest.mark.parametrize("what", ["train", "unlearn"])
def test_whoever_waits_for_a_server_that_is_gone_gives_up(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It must not begin hours later, and nothing was refused."""
    from segunlearn.app.child import STARTER
    from segunlearn.app.locks import exclusive

    monkeypatch.setenv(STARTER, "1")  # not the parent of this process
    request: dict[str, Any] = dict(OPTIONS)
    if what == "unlearn":
        found, _ = app.records.forget_set.mark(
            "study", "person1", "consent_withdrawn", actor="ann", opaque=True
        )
        app.records.forget_set.approve(found.request_id, actor="ann")
        request = {"model": "unlearn", "dry_run": False, "requests": found.request_id}
    began = time.monotonic()
    with (
        exclusive(app.home.locks, "train-segmentation"),
        pytest.raises(CancelledError, match="server is gone"),
    ):
        app.train(app.train_request(str(request["model"]), request))
    assert time.monotonic() - began < 30
    run = app.records.runs.latest(kind=what)
    assert (run.state if run else None) == (None if what == "train" else "cancelled")


def test_progress_in_the_shape_of_the_platform(app: SegUnlearnApp) -> None:
    runs = app.records.runs
    run_id = runs.start("train", "segmentation", {"settings": {"epochs": 50}})
    runs.update(run_id, Progress("train", 30, 500, {"epoch": 4, "loss": 0.5, "best_dice": 0.7}))
    stats = app.info()["train_stats"]["segmentation"]
    assert (stats["epoch"], stats["total_epochs"], stats["best_metric"]) == (3, 50, 0.7)
    assert "current_time" in stats
    assert stats["train"]["metrics"]["train_loss"] == 0.5
    runs.finish(run_id, "failed", "no reason")
    stats = app.info()["train_stats"]["segmentation"]
    assert ("total_time" in stats, stats["state"], stats["message"]) == (
        True,
        "failed",
        "no reason",
    )
