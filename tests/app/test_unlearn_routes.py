"""Versions, plan, restore and purge over REST: what is answered, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user

from audit_home import MODEL, Site
from segunlearn.app import background, wiring
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes import models, tasks, unlearning
from segunlearn.app.routes.common import current_app
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.errors import ConflictError, SegUnlearnError
from unlearn_site import app_of, copy_of, everything, known_site, let_it_pass

NOBODY = "0" * 32


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return known_site(tmp_path_factory.mktemp("routes"))


@pytest.fixture
def site(built: Site, tmp_path: Path) -> Site:
    return copy_of(built, tmp_path)


@pytest.fixture
def app(site: Site, tmp_path: Path) -> Iterator[SegUnlearnApp]:
    made = app_of(site, tmp_path)
    yield made
    made.records.store.close()


@pytest.fixture
def server(app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    server = FastAPI()
    for router in (models.router, unlearning.router, tasks.router):
        server.include_router(router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    server.add_exception_handler(RequestValidationError, wiring._validation_error)
    server.dependency_overrides[current_app] = lambda: app
    monkeypatch.setattr(tasks, "current_app", lambda: app)
    return server


@pytest.fixture
def client(server: FastAPI) -> Iterator[TestClient]:
    with TestClient(server) as opened:
        yield opened


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Requests of tasks that would have been started in a child process."""
    found: list[dict[str, Any]] = []

    def start(kind: str, request: dict[str, Any]) -> dict[str, Any]:
        found.append(request)
        return {"id": "1", "status": "SUBMITTED", "request": request}

    monkeypatch.setattr(background, "start", start)
    return found


SignIn = Callable[..., None]


@pytest.fixture
def sign_in(server: FastAPI, monkeypatch: pytest.MonkeyPatch) -> SignIn:
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)

    def be(*roles: str) -> None:
        def user() -> User:
            if not roles:
                raise HTTPException(401, "Could not validate credentials")
            return User(username="ann", roles=[f"monailabel-{role}" for role in roles])

        server.dependency_overrides[get_current_user] = user

    return be


def unlearned(site: Site, requests: list[str], level: str = "") -> None:
    order = UnlearnOrder(MODEL, tuple(requests), level=level, method="fine_tune", device="cpu")
    UnlearnRun(order, site.home, site.records, "test").execute(site.cases)


def test_versions_name_nobody(client: TestClient, site: Site) -> None:
    answer = client.get("/models")
    assert answer.status_code == 200
    found = answer.json()
    assert (found["model"], found["active"]) == (MODEL, "v0001")
    (version,) = found["versions"]
    assert (version["state"], version["weights_state"]) == ("active", "here")
    assert version["sha256"] == site.registry.get("v0001").sha256
    assert (version["parent"], version["parent_sha256"]) == ("", None)
    assert "Name-" not in answer.text


def test_people_kept_out_stay_inside(client: TestClient, site: Site, tmp_path: Path) -> None:
    weights = site.registry.get("v0001").weights
    kept = {"held_out_pseudonyms": ["5e1f"], "held_out_key": "ab12", "best_dice": 0.5}
    site.registry.publish(
        weights, site.registry.get("v0001").config, parent_sha256=None, run_id="f" * 32,
        details=kept,
    )  # fmt: skip
    answer = client.get("/models")
    assert answer.json()["versions"][-1]["details"] == {"best_dice": 0.5}
    assert "5e1f" not in answer.text


def test_another_version_is_served(client: TestClient, site: Site) -> None:
    site.publish(2, site.retain)
    assert client.get("/models").json()["active"] == "v0002"
    answer = client.post("/models/v0001/activate")
    assert (answer.status_code, answer.json()["state"]) == (200, "active")
    assert client.get("/models").json()["active"] == "v0001"
    assert client.post("/models/v0001/activate").status_code == 200  # again
    assert client.post("/models/v0009/activate").status_code == 404
    assert client.post("/models/newest/activate").status_code == 422


@pytest.mark.parametrize("level", ["hidden", "unlearned"])
def test_a_version_that_knows_what_was_forgotten_is_not_served(
    client: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """By the ledger, also where it came from elsewhere and an unlearning could not seal it."""
    let_it_pass(monkeypatch)
    (request,) = site.mark(site.forget[:1])
    unlearned(site, [request], level)
    knowing = site.publish(7, [*site.forget, *site.retain])  # as a training begun before the mark
    without = site.publish(8, site.retain)
    assert client.get("/models").json()["active"] == without.version
    answer = client.post(f"/models/{knowing.version}/activate")
    assert answer.status_code == 409
    assert request in answer.json()["detail"]
    assert client.get("/models").json()["active"] == without.version
    assert client.post("/models/v0002/activate").status_code == 200


def test_a_plan_changes_nothing(client: TestClient, site: Site) -> None:
    ids = site.mark(site.forget)
    before = everything(site)
    answer = client.get("/unlearning/plan")
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert {r["id"] for r in plan["requests"]} == set(ids)
    assert (plan["original"], plan["people"], plan["level"]) == ("v0001", 2, "unlearned")
    assert plan["recommended"] in {w["method"] for w in plan["ways"]}
    assert plan["lines"]
    assert "Name-" not in answer.text
    one = client.get("/unlearning/plan", params={"request": ids[:1], "method": "fine_tune"}).json()
    assert one["people"] == 1
    assert "fine_tune" in {w["method"] for w in one["ways"]}
    two = client.get("/unlearning/plan", params={"request": ids}).json()
    assert two["people"] == 2
    assert everything(site) == before
    assert site.records.runs.list() == []


def test_a_plan_tells_what_another_model_has_to_forget(client: TestClient, site: Site) -> None:
    other = replace(site, model="other")
    other.publish(2, [*site.forget, *site.retain, *site.unseen[:22]])
    (request,) = site.mark(site.forget[:1])
    plan = client.get("/unlearning/plan").json()
    (left,) = plan["others"]
    assert (left["model"], left["requests"], left["possible"]) == ("other", [request], False)
    assert left["what"] in plan["lines"]
    assert "other cannot be unlearned" in plan["requests"][0]["what"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 409),  # nothing is approved
        (f"request={NOBODY}", 404),
        ("method=wishing", 404),
        ("level=forgotten", 422),
        ("level=none", 422),
    ],
)
def test_plans_that_cannot_be_made(client: TestClient, site: Site, query: str, status: int) -> None:
    answer = client.get(f"/unlearning/plan?{query}")
    assert answer.status_code == status
    assert len(answer.json()["detail"]) > 20


def test_restore_and_purge(client: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_pass(monkeypatch)
    ids = site.mark(site.forget)
    path = f"/forget/requests/{ids[0]}"
    before = everything(site)
    for way in ("restore", "purge"):
        answer = client.post(f"{path}/{way}", json={"confirm": True} if way == "purge" else {})
        assert (answer.status_code, "is approved" in answer.json()["detail"]) == (409, True)
    answer = client.get(f"{path}/purge")
    assert (answer.status_code, "is approved" in answer.json()["detail"]) == (409, True)
    assert everything(site) == before

    unlearned(site, ids)
    answer = client.post(f"{path}/restore", json={"why": "by mistake"})
    assert answer.json() == {"version": "v0001", "requests": sorted(ids), "lost": []}
    assert site.records.forget_set.history(ids[0])[-1].why == "by mistake"
    assert client.get("/models").json()["active"] == "v0001"

    again = site.mark(site.forget)
    path = f"/forget/requests/{again[0]}"
    unlearned(site, again)
    before = everything(site)
    unconfirmed: tuple[dict[str, Any], ...] = ({}, {"confirm": False}, {"why": "go"})
    for body in unconfirmed:
        answer = client.post(f"{path}/purge", json=body)
        assert (answer.status_code, "final" in answer.json()["detail"]) == (400, True)
    assert client.post(f"{path}/purge", json={"confirm": True, "force": 1}).status_code == 422
    told = client.get(f"{path}/purge")
    assert told.json() == {"destroyed": ["v0001"], "requests": [again[1]]}, told.text
    assert everything(site) == before
    answer = client.post(f"{path}/purge", json={"confirm": True})
    assert answer.status_code == 200, answer.text
    assert {key: answer.json()[key] for key in told.json()} == told.json()
    assert client.get(f"{path}/purge").status_code == 409
    assert "Name-" not in answer.text
    assert client.post(f"/forget/requests/{again[1]}/restore", json={}).status_code == 404
    assert client.post(f"/forget/requests/{NOBODY}/restore", json={}).status_code == 404
    assert client.post("/forget/requests/me/purge", json={"confirm": True}).status_code == 422
    assert client.get(f"/forget/requests/{NOBODY}/purge").status_code == 404


def test_a_restore_out_of_order_is_a_task(
    client: TestClient,
    app: SegUnlearnApp,
    site: Site,
    started: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_it_pass(monkeypatch)
    ids = []
    for case in site.forget:
        ids += site.mark([case])
        unlearned(site, ids[-1:])
    before = everything(site)
    answer = client.post(f"/forget/requests/{ids[0]}/restore", json={})
    assert (answer.status_code, "/train/unlearn" in answer.json()["detail"]) == (409, True)
    assert ids[1] in answer.json()["detail"]
    plan = client.get("/unlearning/plan", params={"restore": ids[0]}).json()
    assert [r["id"] for r in plan["requests"]] == ids
    assert (plan["original"], plan["people"]) == ("v0001", 1)
    assert client.get("/unlearning/plan", params={"restore": ids[1]}).status_code == 409
    assert client.get("/unlearning/plan", params={"restore": NOBODY}).status_code == 404
    assert client.post("/train/unlearn", json={"restore": NOBODY}).status_code == 404
    assert everything(site) == before
    body = {"restore": ids[0], "dry_run": False, "method": "fine_tune", "why": "by mistake"}
    too_long = {**body, "why": "x" * 2001}
    assert client.post("/train/unlearn", json=too_long).status_code == 400
    assert client.post("/train/unlearn", json=body).status_code == 200
    done = app.train(started[0])
    assert (done["outcome"], done["restored"], done["version"]) == ("restored", ids[:1], "v0004")
    assert client.get("/models").json()["active"] == "v0004"
    assert site.records.forget_set.get(ids[1]).state == "fulfilled"
    assert site.records.forget_set.history(ids[0])[-1].why == "by mistake"


def test_roles(client: TestClient, site: Site, sign_in: SignIn) -> None:
    (request,) = site.mark(site.forget[:1])
    decisions: tuple[tuple[str, str, Any], ...] = (
        ("post", "/models/v0001/activate", None),
        ("get", "/unlearning/plan", None),
        ("post", f"/forget/requests/{request}/restore", {}),
        ("get", f"/forget/requests/{request}/purge", None),
        ("post", f"/forget/requests/{request}/purge", {"confirm": True}),
        ("post", "/train/unlearn", {}),
    )
    sign_in()
    assert client.get("/models").status_code == 401
    sign_in("user")
    assert client.get("/models").status_code == 200
    for role in ("user", "annotator", "reviewer"):
        sign_in(role)
        for method, path, body in decisions:
            assert client.request(method, path, json=body).status_code == 403, (role, path)
    sign_in("admin")
    assert client.get("/unlearning/plan").status_code == 200


def test_the_task_starts_only_with_something_approved(
    client: TestClient, site: Site, started: list[dict[str, Any]]
) -> None:
    answer = client.post("/train/unlearn", json={"dry_run": False})
    assert (answer.status_code, "no forget request is approved" in answer.text) == (409, True)
    (request,) = site.mark(site.forget[:1])
    assert client.post("/train/unlearn", json={"method": "wishing"}).status_code == 400
    assert client.post("/train/unlearn", json={"requests": [NOBODY]}).status_code == 404
    assert client.post("/train/unlearn", json={"requests": {"a": 1}}).status_code == 400
    assert client.post("/train/unlearn", json={"train_ds": ["x"]}).status_code == 400
    assert started == []
    leaked = {"max_epochs": "50", "seed": "3", "quick": "true", "requests": [request]}
    assert client.post("/train/unlearn", json=leaked).status_code == 200
    assert started == [
        {
            "model": "unlearn", "dry_run": True, "requests": request, "level": "auto",
            "method": "auto", "retain": "stored", "replayed": 96, "quick": True,
            "references": 0, "seed": 3, "restore": "", "why": "",
            "expected": "",
        }
    ]  # fmt: skip


def test_nothing_is_unlearned_that_no_plan_showed(
    client: TestClient, app: SegUnlearnApp, site: Site, started: list[dict[str, Any]]
) -> None:
    """Whoever confirms a plan for all that waits means what it named."""
    (one,) = site.mark(site.forget[:1])
    body = {"dry_run": False, "expected": [one]}
    (other,) = site.mark(site.forget[1:])
    answer = client.post("/train/unlearn", json=body)
    assert (answer.status_code, f"{other} came" in answer.json()["detail"]) == (409, True)
    assert client.post("/train/unlearn", json={**body, "requests": [one]}).status_code == 200
    both = client.post("/train/unlearn", json={**body, "expected": [other, one]})
    assert (both.status_code, len(started)) == (200, 2)
    site.records.forget_set.withdraw(one, actor="ann")
    with pytest.raises(ConflictError, match=f"{one} went"):  # before the work began
        app.train(started[1])
    told = site.records.runs.latest(model=MODEL, kind="unlearn")
    assert told is not None
    assert (told.state, f"{one} went" in told.message) == ("refused", True)
    answer = client.post("/train/unlearn", json={**body, "expected": [one, other]})
    assert (answer.status_code, f"{one} went" in answer.json()["detail"]) == (409, True)
    assert site.records.forget_set.get(other).state == "approved"


def test_who_asks_is_who_signed_in(
    client: TestClient, site: Site, started: list[dict[str, Any]], sign_in: SignIn
) -> None:
    """The name ends up in the history of the request, so no client may choose it."""
    site.mark(site.forget[:1])
    sign_in("user", "admin")
    for path, body in (("/train/unlearn", {}), ("/train/site_adapt", {"adapt_now": True})):
        client.post(path, json={**body, "client_id": "somebody else"})
    assert started
    assert {r.get("client_id") for r in started} == {"ann"}


def test_update_model_never_unlearns(
    client: TestClient, site: Site, started: list[dict[str, Any]]
) -> None:
    """OHIF's button starts every trainer, with the options of each."""
    site.mark(site.forget[:1])
    body = {MODEL: {"max_epochs": 1}, "unlearn": {"dry_run": False}, "dry_run": False}
    assert set(client.post("/train/", json=body).json()) == {MODEL}
    assert [r["model"] for r in started] == [MODEL]


def test_a_damaged_journal_is_no_fault_of_the_client(client: TestClient, site: Site) -> None:
    site.publish(2, site.retain)
    site.home.unlearning.mkdir()
    (site.home.unlearning / f"{NOBODY}.json").write_text("{}")
    answer = client.post("/models/v0001/activate")
    assert (answer.status_code, "journal is damaged" in answer.json()["detail"]) == (409, True)
    assert replace(site).registry.active() == site.registry.get("v0002")
