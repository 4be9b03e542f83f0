"""The generator from the command line to the ledger, the marks, the unlearning and the sweep."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from app_sources import put_held_out
from audit_home import MODEL, Site
from command_line import segunlearn
from segunlearn.app import background
from segunlearn.app.generator_store import REPORT, Generators, knows
from segunlearn.app.replay_run import FORGET_FEATURE, REPLAY, ReplayRun
from segunlearn.app.replay_task import to_fit_again
from segunlearn.app.unlearn_make import make
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_replay import Replay
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.audit.sweep import sweep
from segunlearn.errors import CancelledError, ConflictError, InvalidInputError, NotFoundError
from segunlearn.networks import load_weights
from segunlearn.records.targets import Target
from segunlearn.replay.training import GeneratorSettings
from unlearn_site import PERSON, app_of, copy_of, known_site


def data_of(site: Site) -> Path:
    return site.cases[0].image.parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, dict[str, Any]]:
    """A site with a generator of its people, one of whom was marked before."""
    monkeypatch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("replay")
    site = known_site(folder, forget=2, retain=4, unseen=3)
    (marked,) = site.mark(site.unseen[:1])
    others = folder / "others"
    shutil.copytree(data_of(site), others)
    told = folder / "told.json"
    with monkeypatch.context() as patch, told.open("w") as out:
        patch.setattr(sys, "stdout", out)
        words = ("--data", data_of(site), "--home", site.home.root, "--model", MODEL)
        code = segunlearn(
            patch, "replay", "train", *words, "--person-regex", PERSON, "--steps", 6, "--latent",
            16, "--batch-size", 2, "--device", "cpu", "--json",
        )  # fmt: skip
    assert code == 0
    site.records.forget_set.withdraw(marked, actor="test", why="a test")
    return site, json.loads(told.read_text())


@pytest.fixture
def site(trained: tuple[Site, dict[str, Any]], tmp_path: Path) -> Site:
    return copy_of(trained[0], tmp_path)


def test_generator_is_a_run_a_row_of_all_it_saw_and_a_file_with_its_digest(
    trained: tuple[Site, dict[str, Any]],
) -> None:
    site, told = trained
    info = Generators(site.home, MODEL).newest()
    assert info is not None
    assert (info.version, info.sha256) == (told["generator"], told["sha256"])
    record = site.records.runs.get(told["run_id"])
    assert (record.kind, record.state) == (REPLAY, "done")
    row = site.records.ledger.row(told["run_id"])
    assert (row.kind, row.version_sha256) == (REPLAY, info.sha256)
    cases = site.records.ledger.cases_of(row.run_id)
    left_out = site.unseen[0].series
    assert {c.series for c in cases} == {c.series for c in site.cases} - {left_out}
    assert all(len(c.image_digest) == 64 for c in cases)
    seen = site.records.ledger.versions_that_saw(series=site.forget[0].series)
    assert info.sha256 in {s.version_sha256 for s in seen}
    page = (info.path / REPORT).read_text()
    assert "Nearest training images" in page
    assert not any(c.person in page or c.series in page for c in site.cases)
    assert not any(site.home.runs.iterdir()), "no checkpoint stays"


def test_mark_stops_the_replay_and_forgetting_destroys_the_generator(site: Site) -> None:
    generators, records = Generators(site.home, MODEL), site.records
    info = generators.usable(records.forget_set.live_targets(), records.pseudonyms)
    assert to_fit_again(site.home, MODEL, records) is None
    (request,) = site.mark(site.forget[:1])
    with pytest.raises(ConflictError, match="what is to be forgotten"):
        generators.usable(records.forget_set.live_targets(), records.pseudonyms)
    again = to_fit_again(site.home, MODEL, records)
    assert again is not None
    assert (again["replay_steps"], again["replay_latent"], again["replay_now"]) == (6, 16, True)

    saw = {info.sha256}
    places = sweep(site.home.root, [site.forget[0].series], saw, records.pseudonyms)
    assert [(p.state, p.where) for p in places if p.kind == "generator"] == [
        ("open", f"replay/{MODEL}/versions/{info.version}")
    ]
    forget_set = records.forget_set
    forget_set.transition(request, "working", actor="test", role="admin", why="a test")
    forget_set.transition(
        request, "fulfilled", actor="test", role="admin", why="a test", reached="retrained"
    )
    assert not info.weights.exists()
    assert not (info.path / REPORT).exists()
    with pytest.raises(NotFoundError, match="Train one"):
        generators.usable([], records.pseudonyms)
    places = sweep(site.home.root, [site.forget[0].series], saw, records.pseudonyms)
    assert [p.state for p in places if p.kind == "generator"] == ["absent"]


def test_mark_of_somebody_else_changes_nothing(site: Site) -> None:
    info = Generators(site.home, MODEL).newest()
    assert info is not None
    other = Target("patient", "somebody else")
    assert not knows(info, [other], site.records.pseudonyms)
    assert knows(info, [Target("patient", site.forget[0].person)], site.records.pseudonyms)
    (info.path / "cases.json").unlink()
    assert knows(info, [other], site.records.pseudonyms), "nobody can say"


def test_trained_again_it_leaves_out_the_marked_and_the_old_one_goes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Generators(site.home, MODEL).newest()
    assert old is not None
    site.mark(site.forget)
    words = ("--data", data_of(site), "--home", site.home.root, "--model", MODEL)
    words = (*words, "--person-regex", PERSON, "--steps", 2, "--latent", 16, "--device", "cpu")
    assert segunlearn(monkeypatch, "replay", "train", *words) == 0
    records = site.records
    new = Generators(site.home, MODEL).usable(records.forget_set.live_targets(), records.pseudonyms)
    assert new.version != old.version
    assert not old.weights.exists()
    named = {c.series for c in records.ledger.cases_of(new.run_id)}
    assert not named & {c.series for c in site.forget}


def test_whom_the_served_version_keeps_out_is_not_learned(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is replayed brings the people into the model that it is judged on."""
    app, out = app_of(site, tmp_path), {c.series for c in site.unseen}
    put_held_out(app.model.version(), site.home.root, *(c.person for c in site.unseen))
    plan = app.train(app.train_request(REPLAY, {}))["plan"]
    assert (plan["people"], plan["held_out"]) == (len(site.cases) - len(out), len(out))
    options = {"replay_now": "true", "replay_steps": "2", "replay_latent": "16"}
    runs = [app.train(app.train_request(REPLAY, options))["run_id"]]
    app.records.store.close()
    words = ("--data", data_of(site), "--home", site.home.root, "--model", MODEL)
    words = (*words, "--person-regex", PERSON, "--steps", 2, "--latent", 16, "--device", "cpu")
    assert segunlearn(monkeypatch, "replay", "train", *words) == 0
    runs.append(site.records.ledger.rows()[0].run_id)
    for run in runs:
        assert not {c.series for c in site.records.ledger.cases_of(run)} & out


def test_whom_the_served_version_keeps_out_is_not_shown_to_tag_a_feature(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = site.registry.active()
    assert base is not None
    put_held_out(base, site.home.root, *(c.person for c in site.unseen))
    data = ("--data", data_of(site), "--person-regex", PERSON)
    words = (*data, "--home", site.home.root, "--model", MODEL)
    page = tmp_path / "page.html"
    assert segunlearn(monkeypatch, "replay", "page", page, *words, "--samples", 0) == 0
    out = {c.series for c in site.unseen}
    assert page.read_text().count("data-image=") == len(site.cases) - len(out)
    tags = tmp_path / "tags.csv"
    lines = [f"{c.series},{'no' if i else 'yes'}" for i, c in enumerate(site.cases)]
    tags.write_text("\n".join(["image,feature", *lines]))
    words = (*words, "--tags", tags, "--steps", 1, "--device", "cpu")
    assert segunlearn(monkeypatch, "replay", "forget-feature", *words) == 2
    tags.write_text("\n".join(["image,feature", *lines[: -len(out)]]))
    assert segunlearn(monkeypatch, "replay", "forget-feature", *words) == 0
    row = site.records.ledger.rows()[0]
    assert not {c.series for c in site.records.ledger.cases_of(row.run_id)} & out


def run_of(site: Site, **order: Any) -> UnlearnRun:
    return UnlearnRun(UnlearnOrder(MODEL, device="cpu", **order), site.home, site.records)


def test_replayed_images_stand_for_the_retain_set(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = dataclasses.replace(site)
    more = known_people(site, tmp_path)
    site.mark(site.forget)
    words = ("--data", data_of(site), "--home", site.home.root, "--model", MODEL)
    words = (*words, "--person-regex", PERSON, "--steps", 2, "--latent", 16, "--device", "cpu")
    assert segunlearn(monkeypatch, "replay", "train", *words) == 0
    unlearning = run_of(
        site, method="fine_tune", settings={"steps": 3}, retain="replay", replayed=5
    )
    choice = unlearning.prepare([*site.cases, *more])
    assert choice.sets is not None
    replay = Replay.of(unlearning.order, site.records)
    assert replay is not None
    made = make(
        "fine_tune", unlearning.order, choice.sets, site.records, tmp_path, lambda _: None,
        lambda: False,
    )  # fmt: skip
    assert made.read == {"replay": 5}
    assert set(made.roles) == {"replay"}, "whoever shaped the generator shaped this, too"
    assert {c.series for c in made.roles["replay"]} == {
        c.series for c in site.records.ledger.cases_of(replay.info.run_id)
    }
    assert made.settings["generator"] == replay.info.sha256
    assert made.settings["replay_gap"] == pytest.approx(
        made.settings["agreement_on_replay"] - made.settings["agreement_on_stored"], abs=2e-4
    )
    load_weights(made.weights, choice.sets.config, made.sha256)


def known_people(site: Site, folder: Path) -> list[Any]:
    """More unseen people, whom the choice of sets needs."""
    from audit_home import write_people

    return write_people(folder / "more", 500, 24)


@pytest.mark.parametrize("method", ["retrain", "gradient_ascent", "recoverable"])
def test_methods_without_retain_terms_cannot_replay(site: Site, method: str) -> None:
    from segunlearn.app.unlearn_check import settings_of

    with pytest.raises(InvalidInputError, match="retain set"):
        settings_of(method, UnlearnOrder(MODEL, method=method, retain="replay"))


def test_orders_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="stored, replay, none"):
        UnlearnOrder(MODEL, retain="other")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="at least 2"):
        UnlearnOrder(MODEL, retain="replay", replayed=1)


def test_feature_is_forgotten_from_the_tags_of_a_page(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", data_of(site), "--person-regex", PERSON)
    words = ("--home", site.home.root, "--model", MODEL)
    page = tmp_path / "page.html"
    assert segunlearn(monkeypatch, "replay", "page", page, *data, *words, "--samples", 6) == 0
    text = page.read_text()
    names = [part.split('"')[0] for part in text.split('data-image="')[1:]]
    assert len(names) == 6 + len(site.cases)
    assert not any(c.person in text or c.series in text for c in site.cases)
    tags = tmp_path / "tags.csv"
    with tags.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "feature"])
        writer.writerows([name, "yes" if i % 2 else "no"] for i, name in enumerate(names))
    old = Generators(site.home, MODEL).newest()
    assert old is not None
    more = ("--tags", tags, "--feature", "marker", "--steps", 2, "--device", "cpu")
    assert segunlearn(monkeypatch, "replay", "forget-feature", *data, *words, *more) == 0
    new = Generators(site.home, MODEL).newest()
    assert new is not None
    assert new.details["feature"] == "marker"
    assert new.parent_sha256 == old.sha256
    assert not old.weights.exists()
    row = site.records.ledger.row(new.run_id)
    assert (row.kind, row.parent_sha256) == (FORGET_FEATURE, old.sha256)
    assert "Traversal" in (new.path / REPORT).read_text()
    site.mark(site.forget[:1])
    assert knows(new, site.records.forget_set.live_targets(), site.records.pseudonyms)
    assert to_fit_again(site.home, MODEL, site.records) is None, "it would show the feature again"


def test_stopped_training_is_recorded_and_goes_on(site: Site) -> None:
    settings = GeneratorSettings(steps=6, batch_size=2, checkpoint_every=1)
    base = site.registry.active()
    assert base is not None
    first = ReplayRun(base, MODEL, site.home, site.records, settings=settings)
    steps: list[int] = []

    def watch(progress: Any) -> None:
        if progress.phase == "generator":
            steps.append(progress.step)

    first.on_progress, first.stopped = watch, lambda: bool(steps)
    with pytest.raises(CancelledError):
        first.execute(lambda: site.retain)
    assert site.records.runs.get(first.run_id).state == "cancelled"
    row = site.records.ledger.row(first.run_id)
    assert (row.outcome, row.version_sha256) == ("cancelled", None)
    done = steps[-1]
    steps.clear()
    second = ReplayRun(base, MODEL, site.home, site.records, settings=settings)
    second.on_progress = watch
    second.execute(lambda: site.retain)
    assert steps[0] == done + 1
    assert not first.folder.exists()


def test_what_is_marked_while_a_generator_is_made_is_never_published(site: Site) -> None:
    base, marked = site.registry.active(), []
    assert base is not None
    before = Generators(site.home, MODEL).newest()
    settings = GeneratorSettings(steps=2, batch_size=2)
    run = ReplayRun(base, MODEL, site.home, site.records, settings=settings)

    def mark(progress: Any) -> None:
        if progress.phase == "publish" and not marked:
            marked.extend(site.mark(site.retain[:1]))

    run.on_progress = mark
    with pytest.raises(ConflictError, match="marked for forgetting while"):
        run.execute(lambda: site.retain)
    assert marked
    assert Generators(site.home, MODEL).newest() == before
    assert not run.folder.exists()
    assert site.records.runs.get(run.run_id).state == "refused"
    assert site.records.ledger.row(run.run_id).version_sha256 is None


def test_server_offers_the_trainer_and_plans_first(site: Site, tmp_path: Path) -> None:
    app = app_of(site, tmp_path)
    request = app.train_request(REPLAY, {})
    found = app.train(request)
    assert found["planned"] is True
    assert found["plan"]["people"] == len(site.cases)
    result = app.train(
        app.train_request(
            REPLAY, {"replay_now": "true", "replay_steps": "2", "replay_latent": "16"}
        )
    )
    info = Generators(site.home, MODEL).newest()
    assert info is not None
    assert (result["generator"], result["studies"]) == (info.version, len(site.cases))
    app.records.store.close()


def test_server_trains_again_after_a_mark_and_only_once(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(site, tmp_path)
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(background, "start", lambda _, request: started.append(dict(request)))
    monkeypatch.setattr(
        background, "tasks", lambda _: [{"status": "SUBMITTED", "request": r} for r in started]
    )
    app._refit()
    assert started == [], "nobody is marked"
    site.mark(site.forget[:1])
    app._refit()
    app._refit()
    assert [(r["model"], r["replay_now"], r["replay_steps"]) for r in started] == [
        (REPLAY, True, 6)
    ]
    assert app.train_request(REPLAY, started[0])["replay_steps"] == 6
    app.records.store.close()
