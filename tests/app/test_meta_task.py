"""``/train/meta_train`` in this process: a plan, the same version as the command's, and a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app_sources import (
    LABELS,
    Study,
    make_study,
    publish_tiny,
    put_held_out,
    write_dicom,
    write_segmentations,
)
from segunlearn.adaptation import LeaveOneOut, read_meta_model
from segunlearn.app import adapter_run, meta_run, training_run, watched_run
from segunlearn.app.adapter_run import SITE_ADAPT
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.meta_run import META_TRAIN
from segunlearn.cases import Case
from segunlearn.cli import app as command_line
from segunlearn.errors import CancelledError, ConflictError, InvalidInputError
from segunlearn.records.runs import Progress
from segunlearn.records.versions import file_sha256
from segunlearn.volumes import read_volume, write_volume

#: Two people of each; the second spelling is the same hospital by its alias.
HOSPITALS = ("North", "St. North", "South", "south")
ALIASES = {"institution": {"st. north": "north"}}
QUICK = {
    "meta_train_now": "true", "joint_recipe": "sample", "joint_epochs": "1", "iterations": "1",
    "maml_steps": "1", "maml_inner_set": "head",
}  # fmt: skip
WORDS = (
    "--recipe", "sample", "--epochs", "1", "--iterations", "1", "--inner-steps", "1",
    "--inner-set", "head", "--from-active", "--device", "cpu", "--json",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Study]]:
    """Studies with finished labels in DICOM, and a home with a version."""
    root, studies = tmp_path_factory.mktemp("meta-task"), []
    for number, hospital in enumerate(HOSPITALS):
        study = make_study(number)
        for dataset in study.datasets:
            dataset.InstitutionName, dataset.ManufacturerModelName = hospital, "CT 64"
            dataset.StationName = "CT1"
        studies.append(study)
    write_dicom(root / "studies", studies)
    write_segmentations(root / "studies", studies)
    publish_tiny(root / "home")
    (root / "home" / "sites").mkdir()
    (root / "home" / "sites" / "aliases.json").write_text(json.dumps(ALIASES))
    return root, studies


def app_of(root: Path, home: Path) -> SegUnlearnApp:
    conf = {"home": str(home), "labels": ",".join(LABELS), "device": "cpu"}
    return SegUnlearnApp(str(root), str(root / "studies"), conf)


@pytest.fixture
def app(built: tuple[Path, list[Study]], tmp_path: Path) -> Iterator[SegUnlearnApp]:
    shutil.copytree(built[0] / "home", tmp_path / "home")
    made = app_of(built[0], tmp_path / "home")
    yield made
    made.records.store.close()


def meta_train(app: SegUnlearnApp, **options: Any) -> dict[str, Any]:
    return app.train(app.train_request(META_TRAIN, {**QUICK, **options}))


def mark(app: SegUnlearnApp, study: Study) -> None:
    uid = str(study.datasets[0].StudyInstanceUID)
    app.records.forget_set.mark("study", uid, "consent_withdrawn", actor="tester")


def test_nothing_happens_unless_it_is_asked_for(
    app: SegUnlearnApp, built: tuple[Path, list[Study]]
) -> None:
    """Stock clients send every trainer's options along, and start trainers with the defaults."""
    assert app.ordinary_trainers() == ["segmentation"]
    others = {"dry_run": False, "adapt_now": True, "max_epochs": 1, "recipe": "long"}
    done = app.train(app.train_request(META_TRAIN, {**others, "client_id": "ann"}))
    assert done["planned"]
    sites = {site.split("|")[0]: people for site, people in done["plan"]["sites"].items()}
    assert sites == {"north": 2, "south": 1}, "one of four people validates"
    assert "max_epochs" not in app.train_request(META_TRAIN, others)
    assert [v.version for v in app.model.registry.versions()] == ["v0001"]
    info = app.info()
    stats = next(iter(info["train_stats"].values()))
    assert (stats["kind"], stats["state"], stats["plan"]) == (META_TRAIN, "done", done["plan"])
    assert app.trainer("segmentation").stats() == {}
    config = info["trainers"][META_TRAIN]["config"]
    assert config["meta_train_now"] is False
    assert all(isinstance(v, bool | int | float | str | list) for v in config.values())
    assert json.loads(json.dumps(info))["trainers"][META_TRAIN]["config"] == config
    task = app.last_run_as_task("train")
    assert task is not None
    assert (task["status"], task["request"]) == ("DONE", {"model": META_TRAIN})
    mark(app, built[1][3])
    plan = app.train(app.train_request(META_TRAIN, {"seed": 1}))["plan"]
    assert (list(plan["sites"].values()), plan["marked"]) == ([2], 1)


def test_it_makes_the_version_that_the_command_makes(
    app: SegUnlearnApp,
    built: tuple[Path, list[Study]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = meta_train(app, client_id="ann")
    version = app.model.version()
    assert (version.version, version.sha256) == (done["version"], done["sha256"])
    assert version.version == "v0002"
    meta = read_meta_model(version)
    assert meta is not None
    assert meta.methods == ("generator+maml", "generator", "generator+steps")
    run = app.records.runs.get(done["run_id"])
    assert (run.kind, run.state, run.requested_by) == (META_TRAIN, "done", "ann")
    assert run.progress is not None
    assert run.progress.phase == "publish"
    row = app.records.ledger.row(done["run_id"])
    assert (row.kind, row.version_sha256, row.cases_count) == ("train", version.sha256, 4)
    assert row.parameters["meta"]["iterations"] == 1
    assert row.parameters["meta_model"]["sites"] == 2
    assert app.records.ledger.verify() == []
    assert not any(app.home.runs.iterdir())
    monkeypatch.setattr(adapter_run, "leave_one_out", lambda *_: LeaveOneOut((1.0,), (0.5,)))
    order = {"adapt_now": True, "site": "North", "adapt_steps": 1}
    adapted = app.train(app.train_request(SITE_ADAPT, order))
    assert (adapted["outcome"], adapted["people"]) == ("adopted", 2)
    adapter = app.model.adapters.current(adapted["site"])
    assert adapter is not None
    assert adapter.about["method"] == "generator+maml"
    assert {n for n in adapter.load().tensors if ".adn.N." not in n} <= meta.film_rates.keys()
    reply = app.infer({"model": "segmentation", "image": built[1][0].series})
    Path(reply["file"]).unlink()
    assert reply["params"]["adapter"] == adapter.name

    other = tmp_path / "other"
    shutil.copytree(built[0] / "home", other)
    told = CliRunner().invoke(
        command_line,
        ["meta-train", "--studies", str(built[0] / "studies"), "--home", str(other), *WORDS],
    )
    assert told.exit_code == 0, told.output
    figures = json.loads(told.stdout)
    assert figures["sha256"] == version.sha256
    assert figures["meta_model"]["sha256"] == file_sha256(version.path / "meta.safetensors")


def test_a_stop_leaves_the_old_version_and_a_checkpoint_that_a_mark_deletes(
    app: SegUnlearnApp, built: tuple[Path, list[Study]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_run, "WATCH_SECONDS", 0.0)
    real = training_run.TrainingRun.report

    def report_and_stop(run: training_run.TrainingRun, progress: Progress) -> None:
        real(run, progress)
        if progress.phase == "generator":
            app.cancel_runs("train", lambda seconds: seconds)

    monkeypatch.setattr(training_run.TrainingRun, "report", report_and_stop)
    monkeypatch.setattr(app.records, "finish_cancelled", lambda asked: None)  # it lives on
    with pytest.raises(CancelledError):
        meta_train(app, iterations=50)
    run = app.records.runs.latest(kind=META_TRAIN)
    assert run is not None
    assert (run.state, app.model.version().version) == ("cancelled", "v0001")
    assert app.records.ledger.row(run.run_id).outcome == "cancelled"
    assert (app.home.runs / run.run_id).is_dir()
    mark(app, built[1][0])
    assert not (app.home.runs / run.run_id).exists()


def test_a_marked_structure_is_in_no_episode(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the joint training nor what goes on from it is taught what is to be forgotten."""
    seen: set[int] = set()

    def look(_network: object, by_site: dict[str, list[Any]], *_: object, **__: object) -> None:
        for studies in by_site.values():
            for study in studies:
                seen.update(study.label.unique().tolist())
        raise CancelledError("enough")

    monkeypatch.setattr(meta_run, "meta_train", look)
    app.records.forget_set.mark("structure", LABELS[0], "wrong_label", actor="tester")
    with pytest.raises(CancelledError, match="enough"):
        meta_train(app)
    assert seen == {0, *range(2, len(LABELS) + 1)}


def test_a_person_is_one_with_and_without_issuer(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same person could be in support and query of an episode."""
    seen: set[str] = set()

    def look(_network: object, by_site: dict[str, list[Any]], *_: object, **__: object) -> None:
        seen.update(study.person for studies in by_site.values() for study in studies)
        raise CancelledError("enough")

    real = StudiesDatastore.case_of

    def with_issuer(*given: Any) -> Case:
        case = real(*given)
        return replace(case, person=f"{case.person}^^^St. Anna")

    monkeypatch.setattr(meta_run, "meta_train", look)
    monkeypatch.setattr(StudiesDatastore, "case_of", with_issuer)
    with pytest.raises(CancelledError, match="enough"):
        meta_train(app)
    assert seen
    assert not any("^^^" in person for person in seen)


def test_what_cannot_be_meta_learned_is_told_before_a_process_is_started(
    app: SegUnlearnApp, built: tuple[Path, list[Study]]
) -> None:
    for options in ({"learn": "everything"}, {"iterations": 0}, {"train_ds": ["x"]}):
        with pytest.raises(InvalidInputError):
            app.train_request(META_TRAIN, {**QUICK, **options})
    for study in (built[1][0], built[1][2]):
        mark(app, study)
    with pytest.raises(InvalidInputError, match="none of 2 sites has 2 people"):
        app.train_request(META_TRAIN, QUICK)
    assert app.records.runs.latest(kind=META_TRAIN) is None


def test_who_validates_the_joint_training_is_not_counted(
    app: SegUnlearnApp, built: tuple[Path, list[Study]]
) -> None:
    """Of two people of one site one validates: nothing is left to learn to adapt from."""
    for study in built[1][2:]:
        mark(app, study)
    with pytest.raises(InvalidInputError, match="none of 1 sites has 2 people"):
        app.train_request(META_TRAIN, QUICK)
    assert app.records.runs.latest(kind=META_TRAIN) is None


def test_whom_the_active_version_kept_out_stays_out(
    app: SegUnlearnApp, built: tuple[Path, list[Study]]
) -> None:
    person = str(built[1][3].datasets[0].PatientID)
    put_held_out(app.model.version(), app.home.root, person)
    told = app.train(app.train_request(META_TRAIN, {"seed": 1}))
    assert (list(told["plan"]["sites"].values()), told["plan"]["held_out"]) == ([2], 1)
    assert "1 of the 1 people whom v0001 kept out" in " ".join(told["lines"])
    alone = app.train_request(META_TRAIN, {"from_active": False, "seed": 1})
    assert app.train(alone)["plan"]["held_out"] == 1
    done = meta_train(app, seed=1)
    used = {c.series for c in app.records.ledger.cases_of(done["run_id"])}
    assert used == {study.series for study in built[1][:3]}
    assert done["held_out_people"] == len(app.model.version().details["held_out_pseudonyms"]) == 1


def test_one_site_without_virtual_sites_is_refused_before_the_training(app: SegUnlearnApp) -> None:
    names = {"institution": {"st. north": "north", "south": "north"}}
    (app.home.sites / "aliases.json").write_text(json.dumps(names))
    plan = app.train(app.train_request(META_TRAIN, {}))["plan"]
    assert list(plan["sites"].values()) == [3], "the fourth validates"
    with pytest.raises(InvalidInputError, match="one site without virtual sites"):
        app.train_request(META_TRAIN, {"virtual_sites": False})


def test_reading_the_studies_is_told_and_can_be_stopped(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    real = training_run.TrainingRun.report

    def report_and_stop(run: training_run.TrainingRun, progress: Progress) -> None:
        real(run, progress)
        if progress.phase == "read":
            read.append((progress.step, progress.total))
            run.stopped = lambda: True

    monkeypatch.setattr(training_run.TrainingRun, "report", report_and_stop)
    with pytest.raises(CancelledError, match="while it read images"):
        meta_train(app)
    assert read == [(1, 3)]
    assert app.model.version().version == "v0001"


def test_a_label_that_was_replaced_during_the_joint_training_is_not_learned_from(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's row names what the joint model read: the meta model would know another one."""
    real = meta_run.read_sets

    def read_others(members: dict[str, list[Case]], *given: Any, **named: Any) -> Any:
        label = next(iter(members.values()))[0].label
        assert label is not None
        volume = read_volume(label, label=True)
        write_volume(replace(volume, array=volume.array[::-1].copy()), label)
        return real(members, *given, **named)

    monkeypatch.setattr(meta_run, "read_sets", read_others)
    with pytest.raises(ConflictError, match=r"^1 of the images or labels .* were replaced"):
        meta_train(app)
    run = app.records.runs.latest(kind=META_TRAIN)
    assert run is not None
    assert (run.state, app.model.version().version) == ("refused", "v0001")
