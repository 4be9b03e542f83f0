"""Requests about what nothing in service knew: fulfilled at once, and they can be taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_task import UNLEARN
from segunlearn.app.unlearn_undo import Undo
from segunlearn.cases import Case
from segunlearn.errors import ConflictError
from unlearn_site import app_of, known_site, let_it_pass


@pytest.fixture(autouse=True)
def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_pass(monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return known_site(tmp_path, unseen=3)


def run_of(site: Site, request: str) -> UnlearnRun:
    order = UnlearnOrder(MODEL, requests=(request,), method="fine_tune", device="cpu")
    return UnlearnRun(order, site.home, site.records, "test")


def planned(run: UnlearnRun, site: Site) -> str:
    return plan_of(run.prepare(site.cases), site.records, run.order, ()).requests[0]["what"]


def undone(site: Site, request: str) -> dict[str, Any]:
    return Undo(site.home, site.records, MODEL, "test").restore(request)


def is_left_out(site: Site, case: Case) -> bool:
    return not site.records.without_forgotten([case])


def test_a_mark_by_mistake_on_what_was_never_trained_on_is_taken_back(site: Site) -> None:
    (request,) = site.mark(site.unseen[:1])
    run = run_of(site, request)
    assert planned(run, site) == "no version was taught it: fulfilled at once"
    assert run.execute(site.cases)["requests"][request]["state"] == "fulfilled"
    assert is_left_out(site, site.unseen[0])
    order = UnlearnOrder(MODEL, restore=request, device="cpu")
    with pytest.raises(ConflictError, match="can be restored at once"):
        UnlearnRun(order, site.home, site.records, "test").prepare(site.cases)
    assert undone(site, request) == {"version": "v0001", "requests": [request], "lost": []}
    assert site.records.forget_set.get(request).state == "restored"
    assert not is_left_out(site, site.unseen[0])


def test_what_was_destroyed_before_is_not_said_to_be_sealed(site: Site) -> None:
    site.publish(2, site.retain)
    first, second = site.mark(site.forget)
    assert planned(run_of(site, first), site) == "older versions that know it are sealed"
    run_of(site, first).execute(site.cases)
    undo = Undo(site.home, site.records, MODEL, "test")
    assert undo.purge(first)["destroyed"] == ["v0001"]
    run = run_of(site, second)
    assert planned(run, site).startswith("the versions that knew it are destroyed already")
    run.execute(site.cases)
    latest = site.records.runs.latest(model=MODEL, kind="unlearn")
    assert latest is not None
    assert latest.message == "nothing was left to seal"
    assert undo.would_purge(second)["destroyed"] == []
    assert undone(site, second)["version"] == "v0002"
    assert not is_left_out(site, site.forget[1])


def test_a_home_without_a_version(tmp_path: Path) -> None:
    site = site_in(tmp_path, forget=1, retain=2, unseen=2)
    (request,) = site.mark(site.forget)
    app = app_of(site, tmp_path)
    try:
        order = UnlearnOrder(MODEL, device="cpu")
        plan, _ = app.trainer(UNLEARN).plan(order)
        assert plan["requests"][0]["what"] == "no version was taught it: fulfilled at once"
        found = app.train({"model": UNLEARN, "dry_run": False})
    finally:
        app.records.store.close()
    assert found["requests"][request]["state"] == "fulfilled"
    assert undone(site, request) == {"version": "", "requests": [request], "lost": []}
