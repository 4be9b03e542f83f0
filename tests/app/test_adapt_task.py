"""The train task, the routes and the commands of site adapters, in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from app_sources import put_meta_model
from audit_home import MODEL, Site
from segunlearn.adaptation import LeaveOneOut, MetaModel
from segunlearn.app import adapter_run, adapter_task, audit_studies, background, wiring
from segunlearn.app.adapter_list import AdapterControl
from segunlearn.app.adapter_run import SITE_ADAPT
from segunlearn.app.adapter_store import SiteAdapters, site_digest
from segunlearn.app.adapter_task import to_refit
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.checkpoints import MARKED
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.locks import training_lock
from segunlearn.app.routes import adapters, tasks
from segunlearn.app.routes.common import current_app
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.cases import Case
from segunlearn.cli import app as command_line
from segunlearn.cli import main
from segunlearn.errors import (
    ConflictError,
    InvalidInputError,
    LabelError,
    NotFoundError,
    SegUnlearnError,
    UnavailableError,
)
from segunlearn.networks import ModelConfig, load_weights
from segunlearn.records.durable import write_json_durably
from segunlearn.records.versions import VersionInfo
from unlearn_site import PERSON, copy_of, known_site

SITE = "south|||"
NOW = {
    "adapt_now": "true", "site": "South", "adapt_method": "fine_tune", "adapt_steps": "1",
    "inner_set": "head",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The datastore finds labels that are finished in ``labels/final``."""
    root = tmp_path_factory.mktemp("adapt-task")
    site = known_site(root, unseen=4)
    final = root / "studies" / "labels" / "final"
    final.mkdir(parents=True)
    for case in site.cases:
        assert case.label is not None
        (final / case.label.name).hardlink_to(case.label)
        (root / "studies" / case.image.name).hardlink_to(case.image)
    return site


@pytest.fixture
def site(built: Site, tmp_path: Path) -> Site:
    return copy_of(built, tmp_path)


@pytest.fixture
def app(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SegUnlearnApp]:
    # the gate's own figures are another test's matter: here somebody was held out and gained
    monkeypatch.setattr(
        adapter_run, "leave_one_out", lambda *_: LeaveOneOut((0.8, 0.6), (0.5, 0.5))
    )
    conf = {"home": str(site.home.root), "model": MODEL, "person_regex": PERSON, "device": "cpu"}
    made = SegUnlearnApp(str(tmp_path), str(studies_of(site)), conf)
    yield made
    made.records.store.close()


def studies_of(site: Site) -> Path:
    return site.cases[0].image.parents[2] / "studies"


def support(site: Site, count: int = 3) -> str:
    return ",".join(c.series for c in site.unseen[:count])


def adapt(app: SegUnlearnApp, site: Site, **options: Any) -> dict[str, Any]:
    request = {"model": SITE_ADAPT, **NOW, "support": support(site), **options}
    return app.train(app.train_request(SITE_ADAPT, request))


def served(site: Site) -> str:
    info = SiteAdapters(site.home.sites / MODEL).current(SITE)
    return info.version if info else "base"


def weights(site: Site) -> list[Path]:
    return sorted(site.home.sites.rglob("*.safetensors"))


# -- the task ------------------------------------------------------------------------------------


def test_nothing_happens_unless_it_is_asked_for(app: SegUnlearnApp, site: Site) -> None:
    """Stock clients send every trainer's options along, and start trainers with the defaults."""
    assert app.ordinary_trainers() == [MODEL]
    others = {"dry_run": False, "method": "retrain", "learning_rate": "0.1", "max_epochs": 1}
    options = {**others, "site": "South", "support": support(site)}
    result = app.train(app.train_request(SITE_ADAPT, options))
    assert result["planned"]
    assert result["plan"] == {
        "site": SITE, "width": "name", "studies": 3, "people": 3, "method": "fine_tune",
    }  # fmt: skip
    assert served(site) == "base"
    assert weights(site) == []
    stats = app.trainer(SITE_ADAPT).stats()
    assert (stats["kind"], stats["state"]) == (SITE_ADAPT, "done")
    assert "nothing was changed" in stats["message"]


def test_adapting_by_the_task_serves_the_site(app: SegUnlearnApp, site: Site) -> None:
    result = adapt(app, site)
    assert (result["outcome"], result["site"], served(site)) == ("adopted", SITE, "v0001")
    image = site.unseen[3].series
    reply = app.infer({"model": MODEL, "image": image, "site": "South"})
    Path(reply["file"]).unlink()
    assert reply["params"]["adapter"] == result["adapter"]
    assert reply["params"]["site_rule"] == "override"
    reply = app.infer({"model": MODEL, "image": image})
    Path(reply["file"]).unlink()
    assert reply["params"]["adapter"] == "base"
    assert app.trainer(SITE_ADAPT).stats()["run_id"] == result["run_id"]


BAD: list[tuple[dict[str, Any], type[SegUnlearnError]]] = [
    ({"support": "nobody"}, LabelError),
    ({"support": {"a": 1}}, InvalidInputError),
    ({"site": "base"}, InvalidInputError),
    ({"site": "auto"}, InvalidInputError),
    ({"adapt_steps": "many"}, InvalidInputError),
    ({"adapt_steps": -1}, InvalidInputError),
    ({"adapt_method": "magic"}, InvalidInputError),
    ({"inner_set": "../../etc"}, InvalidInputError),
    ({"width": "planet"}, InvalidInputError),
    ({"train_ds": "/etc"}, InvalidInputError),
    ({"refit": "sometimes"}, InvalidInputError),
]


def test_bad_options_are_told_before_a_process_starts(app: SegUnlearnApp, site: Site) -> None:
    more: list[tuple[dict[str, Any], type[SegUnlearnError]]] = [
        ({"support": support(site, 1)}, InvalidInputError),
        ({"adapt_method": "maml"}, NotFoundError),
    ]
    for options, error in [*BAD, *more]:
        request = {**NOW, "support": support(site), **options}
        with pytest.raises(error):
            app.train_request(SITE_ADAPT, request)
    assert app.records.runs.latest(kind=SITE_ADAPT) is None


def test_the_model_may_not_have_the_name_of_the_task(site: Site, tmp_path: Path) -> None:
    conf = {"home": str(site.home.root), "model": SITE_ADAPT}
    with pytest.raises(InvalidInputError, match="name of a task"):
        SegUnlearnApp(str(tmp_path), str(studies_of(site)), conf)


# -- forgetting ----------------------------------------------------------------------------------


def refit(app: SegUnlearnApp, which: str = "forgotten") -> list[dict[str, Any]]:
    request = {"adapt_now": True, "refit": which}
    found: list[dict[str, Any]] = app.train(app.train_request(SITE_ADAPT, request))["sites"]
    return found


def test_what_a_mark_took_is_made_again_without_it(app: SegUnlearnApp, site: Site) -> None:
    adapt(app, site)
    assert refit(app) == []
    site.mark(site.unseen[:1], approve=False)
    assert (served(site), weights(site)) == ("base", [])
    (result,) = refit(app)
    assert (result["outcome"], result["people"], served(site)) == ("adopted", 2, "v0002")
    cases = app.records.ledger.cases_of(result["run_id"])
    assert {c.series for c in cases} == {c.series for c in site.unseen[1:3]}
    assert refit(app) == []


@pytest.mark.parametrize("which", ["forgotten", "all"])
def test_a_site_that_a_person_rolled_back_to_the_base_is_left_alone(
    app: SegUnlearnApp, site: Site, which: str
) -> None:
    """Also when the adapter that does not serve is taken by a mark."""
    adapt(app, site)
    AdapterControl(app.home, MODEL).roll_back("South")
    site.mark(site.unseen[:1], approve=False)
    assert weights(site) == []
    assert (refit(app, which), served(site)) == ([], "base")


def test_what_served_is_made_again_and_not_what_was_rolled_back(
    app: SegUnlearnApp, site: Site
) -> None:
    adapt(app, site)
    adapt(app, site, support=support(site, 2), adapt_steps="2")
    AdapterControl(app.home, MODEL).roll_back("South")
    site.mark(site.unseen[:1], approve=False)
    (result,) = refit(app)
    assert (result["replaces"][-5:], result["people"], served(site)) == ("v0001", 2, "v0003")


def test_sites_whose_names_were_joined_are_made_again_once(app: SegUnlearnApp, site: Site) -> None:
    """Two adapters of one hospital, as its scanners spell its name in two ways."""
    for name in ("Sud", "South"):
        options = {"model": SITE_ADAPT, **NOW, "site": name, "support": support(site)}
        app.train(app.train_request(SITE_ADAPT, options))
    write_json_durably(site.home.sites / "aliases.json", {"institution": {"Sud": "South"}})
    site.mark(site.unseen[:1], approve=False)
    results = refit(app)
    assert [r["outcome"] for r in results] == ["adopted"] * 2
    assert {r["site"] for r in results} == {SITE}
    assert refit(app) == refit(app, "all") == []


def test_where_too_few_are_left_the_base_serves_and_nothing_is_tried_again(
    app: SegUnlearnApp, site: Site
) -> None:
    adapt(app, site)
    site.mark(site.unseen[:2], approve=False)
    (result,) = refit(app)
    assert result["outcome"] == "not made again"
    assert "one person" in result["why"]
    assert (served(site), weights(site)) == ("base", [])
    assert refit(app) == []
    site.mark(site.unseen[2:3], approve=False)
    (result,) = refit(app, "all")
    assert "no study of its support is left" in result["why"]


def test_adapters_of_old_weights_are_made_again_only_when_all_are_asked_for(
    app: SegUnlearnApp, site: Site
) -> None:
    adapt(app, site)
    new = site.publish(2, site.retain)
    assert refit(app) == []
    (result,) = refit(app, "all")
    assert result["outcome"] == "adopted"
    info = SiteAdapters(site.home.sites / MODEL).current(SITE)
    assert info is not None
    assert (info.version, info.base) == ("v0002", new.sha256)


def test_the_server_adapts_again_by_itself_after_a_mark(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(background, "start", lambda kind, request: started.append(request))
    app.forget_service.after_change = app._refit
    app.forgetting.wake()
    assert started == []
    adapt(app, site)
    app.forgetting.forget_set.mark(
        "study", site.unseen[0].study, "consent_withdrawn", actor="a", opaque=True
    )
    app.forgetting.wake()
    assert started == [{"model": SITE_ADAPT, "adapt_now": True, "refit": "forgotten"}]
    (result,) = app.train(started[0])["sites"]
    assert result["outcome"] == "adopted"
    app.forgetting.wake()
    assert len(started) == 1


@pytest.mark.parametrize("obstacle", ["training", "archive"])
def test_what_passes_does_not_end_the_adapting_again(
    app: SegUnlearnApp, site: Site, obstacle: str
) -> None:
    adapt(app, site)
    site.mark(site.unseen[:1], approve=False)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as held:
        if obstacle == "training":
            patch.setattr(adapter_task, "LOCK_SECONDS", 0.1)
            held.enter_context(training_lock(site.home, MODEL, "test", 1.0))
        else:
            patch.setattr(StudiesDatastore, "trainable", unreachable)
        (result,) = refit(app)
    assert result["outcome"] == "not made again"
    assert [line.why for line in AdapterControl(app.home, MODEL).lines()] == [MARKED]
    (result,) = refit(app)
    assert (result["outcome"], served(site)) == ("adopted", "v0002")


def unreachable(*_: Any, **__: Any) -> Any:
    raise UnavailableError("the archive does not answer.")


def test_a_mark_while_a_site_is_adapted_again_leads_to_another_adapter(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(background, "start", lambda kind, request: started.append(request))
    app.forget_service.after_change = app._refit
    adapt(app, site, support=support(site, 4))
    site.mark(site.unseen[:1], approve=False)
    app.forgetting.wake()

    def marked_meanwhile(*_: Any) -> LeaveOneOut:
        site.mark(site.unseen[1:2], approve=False)
        app.forgetting.wake()
        return LeaveOneOut((0.8, 0.6), (0.5, 0.5))

    with monkeypatch.context() as patch:
        patch.setattr(adapter_run, "leave_one_out", marked_meanwhile)
        (result,) = app.train(started[0])["sites"]
    assert "while the site was adapted" in result["why"]
    assert (len(started), served(site)) == (2, "base")
    (result,) = app.train(started[1])["sites"]
    assert (result["outcome"], result["people"], served(site)) == ("adopted", 2, "v0002")


def test_the_rest_of_a_support_goes_on_where_a_label_is_gone(
    app: SegUnlearnApp, site: Site
) -> None:
    adapt(app, site, support=support(site, 4))
    label = site.unseen[1].label
    assert label is not None
    final = studies_of(site) / "labels" / "final" / label.name
    site.mark(site.unseen[:1], approve=False)
    final.unlink()
    try:
        (result,) = refit(app)
    finally:
        final.hardlink_to(label)
    assert (result["outcome"], result["studies"], result["unlabelled"]) == ("adopted", 2, 1)


def test_a_label_that_goes_while_the_support_is_fetched_ends_the_adapting(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of the ledger, and the adapter's own record, would name a study that it never saw."""
    label = site.unseen[1].label
    assert label is not None
    final = studies_of(site) / "labels" / "final" / label.name
    trainable = StudiesDatastore.trainable

    def gone(studies: StudiesDatastore, *given: Any, **more: Any) -> Any:
        final.unlink()
        studies._label_index.invalidate()
        return trainable(studies, *given, **more)

    monkeypatch.setattr(StudiesDatastore, "trainable", gone)
    try:
        with pytest.raises(ConflictError, match="1 studies of the support have no finished label"):
            adapt(app, site)
    finally:
        final.hardlink_to(label)
    assert (served(site), weights(site)) == ("base", [])


@pytest.mark.parametrize("named", ["file", "study"])
def test_what_is_kept_of_a_failure_names_no_study(
    app: SegUnlearnApp,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    named: str,
) -> None:
    """The id of a study that is a file may be a name."""
    adapt(app, site)
    site.mark(site.unseen[:1], approve=False)

    def broken(case: Any, *_: Any, **__: Any) -> Any:
        text = "Name-0201_1.nii.gz" if named == "file" else "'Name-0201_1'"
        raise LabelError(f"{text}: is damaged in 1 place.")

    monkeypatch.setattr(audit_studies, "studies_of", broken)
    (result,) = refit(app)
    pseudonym = site.records.pseudonyms.of("Name-0201_1")
    assert f"{pseudonym}" in result["why"]
    (line,) = AdapterControl(app.home, MODEL).lines()
    assert "in 1 place" in line.why
    for text in (result["why"], line.why, caplog.text):
        assert "Name-" not in text


def test_the_pseudonym_of_a_series_is_not_that_of_its_study(site: Site) -> None:
    of = site.records.pseudonyms.of
    case = Case("1.2.840.1.1", "1.2.840.1", "p", Path("i"))
    text = adapter_task._without_ids("1.2.840.1.1 of 1.2.840.1: bad.", [case], site.records)
    assert text == f"{of(case.series)} of {of(case.study)}: bad."


def test_a_method_that_is_not_there_any_more_is_chosen_anew(app: SegUnlearnApp, site: Site) -> None:
    put_meta_model(app.model.version(), meta_model(app.model.version(), 1.01))
    adapt(app, site, adapt_method="maml", inner_set="decoder", adapt_steps=0)
    site.publish(2, site.retain)
    (result,) = refit(app, "all")
    assert result["outcome"] == "adopted", result["why"]
    info = SiteAdapters(site.home.sites / MODEL).current(SITE)
    assert info is not None
    about = {k: info.about[k] for k in ("method", "steps", "learning_rate")}
    assert about == {"method": "fine_tune", "steps": 5, "learning_rate": 1e-3}


@pytest.mark.parametrize("which", ["forgotten", "all"])
def test_a_refit_is_planned_unless_it_is_asked_for(
    app: SegUnlearnApp, site: Site, which: str
) -> None:
    adapt(app, site)
    site.publish(2, site.retain)
    request = app.train_request(SITE_ADAPT, {"refit": which})
    told = app.train(request)
    assert told["planned"]
    sites = [SITE] if which == "all" else []
    assert told["plan"] == {"refit": which, "sites": sites}
    assert told["lines"][-1] == f"{len(sites)} sites would be adapted again"
    assert ("other weights" in told["lines"][0]) == (which == "all")
    assert len(SiteAdapters(site.home.sites / MODEL).all()) == 1


@pytest.mark.parametrize("outdated", [False, True])
def test_a_site_whose_first_adapter_was_never_finished_is_passed_over(
    app: SegUnlearnApp, site: Site, outdated: bool
) -> None:
    """The key is written before the first adapter: a kill or a full disk may come between."""
    adapters = SiteAdapters(site.home.sites / MODEL)
    write_json_durably(adapters.root / site_digest(SITE) / "site.json", {"site": SITE})
    assert to_refit(adapters, app.model.version(), outdated=outdated) == []
    app.forget_service.after_change = app._refit
    app.forgetting.wake()
    with pytest.raises(NotFoundError, match="no adapter in service"):
        said(app, site.unseen[3].series)


@pytest.mark.parametrize("file", ["site.json", "current", "v0001/about.json"])
def test_a_damaged_site_keeps_no_other_from_being_made_again(
    app: SegUnlearnApp, client: TestClient, site: Site, file: str
) -> None:
    adapters = SiteAdapters(site.home.sites / MODEL)
    adapt(app, site)
    here = adapters.root / site_digest(SITE)
    damaged = adapters.root / site_digest("other")
    shutil.copytree(here, damaged)
    write_json_durably(damaged / "site.json", {"site": "other"})
    site.mark(site.unseen[:1], approve=False)
    (damaged / file).write_text("{")
    assert [i.site for i in to_refit(adapters, app.model.version(), outdated=False)] == [SITE]
    told = client.get("/adapters").json()
    assert {line["site"] for line in told["adapters"]} == {SITE}
    assert [damaged.name in what for what in told["damaged"]] == [True]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_a_lack_of_memory_at_one_site_is_told_and_tried_again(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It ends neither the refit of the sites after it, nor that of this one."""
    adapt(app, site)
    site.mark(site.unseen[:1], approve=False)

    def full(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(adapter_run, "adapt", full)
        (result,) = refit(app)
    assert result["outcome"] == "not made again"
    assert "not enough memory" in result["why"]
    (result,) = refit(app)
    assert result["outcome"] == "adopted"


def test_a_study_that_only_an_adapter_saw_is_forgotten_and_purged(
    app: SegUnlearnApp, site: Site
) -> None:
    """The unlearning finds by the ledger that a model was taught it, and that none is any more."""
    adapt(app, site)
    ids = site.mark(site.unseen[:1])
    order = UnlearnOrder(MODEL, tuple(ids), device="cpu")
    result = UnlearnRun(order, site.home, site.records, "test").execute(site.cases)
    assert result["outcome"] == "not needed"
    assert result["requests"][ids[0]]["state"] == "fulfilled"
    assert weights(site) == []
    purged = Undo(site.home, site.records, MODEL, "test").purge(ids[0])
    assert [p for p in purged["places"] if p["kind"] == "site adapter"] == []


def test_a_site_of_another_meta_model_gets_the_base_until_it_is_adapted_again(
    app: SegUnlearnApp, site: Site
) -> None:
    """The joint weights of a second meta-training are the same; what adapting goes on from not."""
    put_meta_model(app.model.version(), meta_model(app.model.version(), 1.01))
    result = adapt(app, site, adapt_method="maml", inner_set="decoder")
    image = site.unseen[3].series
    assert said(app, image) == result["adapter"]
    again = site.publish(1, site.retain, row=False)
    put_meta_model(again, meta_model(again, 1.02))
    assert said(app, image, site="auto") == "base"
    with pytest.raises(ConflictError, match="another meta model"):
        said(app, image)
    control = AdapterControl(app.home, MODEL)
    assert [line.serves for line in control.lines()] == [False]
    (info,) = SiteAdapters(site.home.sites / MODEL).all()
    record = json.loads((info.path / "about.json").read_text())
    record["about"] |= {"inner_set": "head", "learning_rate": 0.5}  # as older programs wrote
    write_json_durably(info.path / "about.json", record)
    (made,) = refit(app, "all")
    assert (made["outcome"], said(app, image)) == ("adopted", made["adapter"])
    assert [line.serves for line in control.lines()] == [False, True]


def meta_model(version: VersionInfo, factor: float) -> bytes:
    """Weights away from the joint ones, and rates for the head."""
    network = load_weights(version.weights, ModelConfig.from_json(version.config), version.sha256)
    away = {name: p.detach() * factor for name, p in network.named_parameters()}
    rates = {name: torch.full((1,), 0.01) for name in away if name.startswith("final_conv")}
    return MetaModel(version.sha256, "head", away, rates).to_bytes()


def said(app: SegUnlearnApp, image: str, site: str = "South") -> str:
    reply = app.infer({"model": MODEL, "image": image, "site": site})
    Path(reply["file"]).unlink()
    return str(reply["params"]["adapter"])


# -- routes --------------------------------------------------------------------------------------


@pytest.fixture
def client(app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    server = FastAPI()
    for router in (adapters.router, tasks.router):
        server.include_router(router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    server.add_exception_handler(RequestValidationError, wiring._validation_error)
    server.dependency_overrides[current_app] = lambda: app
    monkeypatch.setattr(tasks, "current_app", lambda: app)
    with TestClient(server) as opened:
        yield opened


def test_list_activate_and_roll_back_over_rest(
    client: TestClient, app: SegUnlearnApp, site: Site
) -> None:
    assert client.get("/adapters").json() == {
        "model": MODEL,
        "adapters": [],
        "damaged": [],
    }
    first, second = adapt(app, site), adapt(app, site, seed=1)
    answer = client.get("/adapters")
    assert "Name-" not in answer.text
    lines = answer.json()["adapters"]
    assert [(a["version"], a["state"], a["serves"]) for a in lines] == [
        ("v0001", "available", False), ("v0002", "current", True),
    ]  # fmt: skip
    key = lines[0]["key"]
    assert [first["adapter"], second["adapter"]] == [f"{key}/v0001", f"{key}/v0002"]
    rolled = client.post(f"/adapters/{key}/rollback").json()
    assert (rolled["adapter"]["version"], served(site)) == ("v0001", "v0001")
    assert client.post(f"/adapters/{key}/rollback").json()["adapter"] is None
    assert client.post(f"/adapters/{key}/rollback").status_code == 409
    assert client.post(f"/adapters/{key}/v0002/activate").json()["serves"]
    site.mark(site.unseen[:1], approve=False)
    answer = client.post(f"/adapters/{key}/v0002/activate")
    assert (answer.status_code, "retired" in answer.json()["detail"]) == (409, True)
    site.publish(2, site.retain)
    assert not any(a["serves"] for a in client.get("/adapters").json()["adapters"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/adapters/{'0' * 16}/rollback", 404),
        (f"/adapters/{'0' * 16}/v0001/activate", 404),
        ("/adapters/..%2f..%2fetc/rollback", 404),
        ("/adapters/south/rollback", 422),
        (f"/adapters/{'0' * 16}/latest/activate", 422),
    ],
)
def test_what_is_not_there_is_refused(client: TestClient, path: str, status: int) -> None:
    assert client.post(path).status_code == status


# -- commands ------------------------------------------------------------------------------------


def run(site: Site, *words: str) -> Any:
    return CliRunner().invoke(
        command_line, [*words, "--home", str(site.home.root), "--model", MODEL]
    )


def test_the_commands(app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--studies", str(studies_of(site)), "--person-regex", PERSON, "--device", "cpu"]
    ids = [w for c in site.unseen[:3] for w in ("--support", c.series)]
    order = ["adapt", *where, "--site", "South", *ids, "--steps", "1", "--inner-set", "head"]
    assert "base serves" in run(site, "adapters", "list").stderr
    plan = run(site, *order, "--plan")
    assert plan.exit_code == 0, plan.output
    assert "3 studies of 3 people" in plan.stdout
    assert "nothing was changed" in plan.stdout
    assert weights(site) == []
    done = run(site, *order, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["outcome"] == "adopted"
    listed = json.loads(run(site, "adapters", "list", "--json").stdout)["adapters"]
    assert [(a["site"], a["serves"]) for a in listed] == [(SITE, True)]
    assert SITE in run(site, "adapters", "list").stdout.replace("\n", "")
    assert "base serves" in run(site, "adapters", "rollback", "South").stdout
    assert "v0001 is in service" in run(site, "adapters", "activate", "South", "v0001").stdout
    by_hand = [r for r in site.records.trail.every() if r.source == "command line"]
    assert {(r.action, r.kind) for r in by_hand} == {("publish", "adapter")}
    assert [r.what for r in by_hand] == [site_digest(SITE), f"{site_digest(SITE)}/v0001"]
    site.mark(site.unseen[:1], approve=False)
    again = run(site, "adapt", *where, "--refit", "--json")
    assert [s["outcome"] for s in json.loads(again.stdout)["sites"]] == ["adopted"]
    monkeypatch.setattr(
        adapter_run, "leave_one_out", lambda *_: LeaveOneOut((0.4, 0.4), (0.5, 0.5))
    )
    left = [w for c in site.unseen[1:3] for w in ("--support", c.series)]
    kept = run(site, "adapt", *where, "--site", "South", *left, "--steps", "1")
    assert (kept.exit_code, "base kept" in kept.stdout) == (3, True)


def test_the_command_adapts_again_what_a_person_confirms(app: SegUnlearnApp, site: Site) -> None:
    where = ["--studies", str(studies_of(site)), "--person-regex", PERSON, "--device", "cpu"]
    adapt(app, site)
    site.mark(site.unseen[:2], approve=False)
    again = run(site, "adapt", *where, "--refit")
    assert (again.exit_code, "one person" in again.stdout) == (3, True)
    again = run(site, "adapt", *where, "--refit", "--json")
    assert (again.exit_code, len(json.loads(again.stdout)["sites"])) == (3, 1)
    chosen = ["--confirm-one", "--method", "fine_tune"]
    again = run(site, "adapt", *where, "--refit", *chosen)
    assert (again.exit_code, "adopted" in again.stdout) == (0, True), again.output
    again = run(site, "adapt", *where, "--refit")
    assert (again.exit_code, "0 sites" in again.stdout) == (0, True)


def test_the_command_refuses_what_means_nothing_with_refit(app: SegUnlearnApp, site: Site) -> None:
    for words in (
        ["--plan"], ["--site", "auto"], ["--support", "x"], ["--most", "5"], ["--steps", "5"],
        ["--width", "model"], ["--rate", "0.1"], ["--inner-set", "head"], ["--seed", "0"],
    ):  # fmt: skip
        told = run(site, "adapt", "--studies", str(studies_of(site)), "--refit", *words)
        assert isinstance(told.exception, InvalidInputError)
        assert words[0] in str(told.exception)


def test_a_mistake_is_one_sentence(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for words in (
        ["adapters", "rollback", "nowhere"],
        ["adapt", "--studies", str(studies_of(site)), "--site", "x", "--support", "nobody"],
        ["adapt", "--studies", str(studies_of(site)), "--refit", "--plan"],
    ):
        home = ["--home", str(site.home.root), "--model", MODEL]
        monkeypatch.setattr("sys.argv", ["segunlearn", *words, *home])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert "Traceback" not in said


def test_trainings_wait_for_each_other(app: SegUnlearnApp, site: Site) -> None:
    with pytest.MonkeyPatch.context() as patch, training_lock(site.home, MODEL, "test", 1.0):
        patch.setattr(adapter_task, "LOCK_SECONDS", 0.1)
        with pytest.raises(ConflictError, match="another training"):
            adapt(app, site)
