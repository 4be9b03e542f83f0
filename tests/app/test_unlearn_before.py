"""Masks of the version that served before something was forgotten: who sees them, and how long."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user

from audit_home import MODEL, Site
from segunlearn.app import wiring
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes import infer as infer_route
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    SegUnlearnError,
)  # fmt: skip
from segunlearn.inference import Segmenter
from segunlearn.volumes import read_volume
from unlearn_site import app_of, copy_of, known_site, let_it_pass
from unlearn_storm import passing_audit

ADMIN = frozenset({settings.MONAI_LABEL_AUTH_ROLE_ADMIN})

Mask = npt.NDArray[np.generic]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return known_site(tmp_path_factory.mktemp("before"))


@pytest.fixture
def site(built: Site, tmp_path: Path) -> Site:
    return copy_of(built, tmp_path)


@pytest.fixture
def app(site: Site, tmp_path: Path) -> Iterator[SegUnlearnApp]:
    made = app_of(site, tmp_path)
    yield made
    made.records.store.close()


def unlearned(site: Site, requests: list[str], method: str = "fine_tune", **settings: Any) -> None:
    order = UnlearnOrder(MODEL, tuple(requests), method=method, device="cpu", settings=settings)
    UnlearnRun(order, site.home, site.records, "test").execute(site.cases)


def mask_of(app: SegUnlearnApp, image: str, **options: Any) -> tuple[Mask, dict[str, Any]]:
    found = app.infer({"model": MODEL, "image": image, "actor": "ann", **options})
    path = Path(found["file"])
    try:
        return read_volume(path, label=True).array, found["params"]
    finally:
        path.unlink()


def files_with(site: Site, sha256: str) -> list[Path]:
    """Files of the home that are these weights."""
    files = (p for p in site.home.root.rglob("*") if p.is_file())
    return [p for p in files if hashlib.sha256(p.read_bytes()).hexdigest() == sha256]


def test_the_mask_of_before_until_the_purge(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_pass(monkeypatch)
    case = site.forget[0]
    old = site.registry.get("v0001")
    expected = Segmenter.from_version(old, "cpu").predict(
        read_volume(case.image, modality="MR")
    ).array  # fmt: skip
    requests = site.mark(site.forget)
    asked = {"before": requests[0], "roles": ADMIN}
    with pytest.raises(ConflictError, match="is approved"):
        mask_of(app, case.series, **asked)
    unlearned(site, requests)

    now, params = mask_of(app, case.series)
    assert (params["version"], np.array_equal(now, expected)) == ("v0002", False)
    before, params = mask_of(app, case.series, **asked)
    np.testing.assert_array_equal(before, expected)
    assert (params["version"], params["sha256"]) == ("v0001", old.sha256)
    assert (params["adapter"], params["site_rule"]) == ("base", "override")
    np.testing.assert_array_equal(mask_of(app, case.series)[0], now)  # it serves on
    assert files_with(site, old.sha256) == []
    (row,) = site.records.trail.rows(action="look_back")
    assert (row.actor, row.kind, row.what, row.note) == ("ann", "request", requests[0], "v0001")

    Undo(site.home, site.records, MODEL, "test").purge(requests[0])
    with pytest.raises(ConflictError, match="was purged"):
        mask_of(app, case.series, **asked)
    with pytest.raises(NotFoundError, match="a purge destroyed"):
        mask_of(app, case.series, before=requests[1], roles=ADMIN)
    assert len(site.records.trail.rows(action="look_back")) == 1


def test_a_small_deposit_leads_back_through_the_one_after_it(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnlearnRun, "_audited", passing_audit)
    old = site.registry.get("v0001")
    case = site.forget[0]
    expected = Segmenter.from_version(old, "cpu").predict(
        read_volume(case.image, modality="MR")
    ).array  # fmt: skip
    requests = []
    for each in site.forget[:2]:
        requests += site.mark([each])
        unlearned(site, requests[-1:], "erode_and_repair_lora", epochs=1, inits=1)
    assert site.registry.get("v0002").weights_state == "sealed"
    before, params = mask_of(app, case.series, before=requests[0], roles=ADMIN)
    np.testing.assert_array_equal(before, expected)
    assert params["version"] == "v0001"
    assert mask_of(app, case.series, before=requests[1], roles=ADMIN)[1]["version"] == "v0002"
    assert files_with(site, old.sha256) == []


def test_only_administrators_look(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over REST; a role that a client sends in its parameters is none."""
    let_it_pass(monkeypatch)
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(infer_route, "current_app", lambda: app)
    server = FastAPI()
    server.include_router(infer_route.router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    (request,) = site.mark(site.forget[:1])
    unlearned(site, [request])
    url = f"/infer/{MODEL}?image={site.forget[0].series}&output=json"
    data = {"params": f'{{"before": "{request}", "roles": ["monailabel-admin"]}}'}
    with TestClient(server) as client:
        for role, status in (("annotator", 403), ("reviewer", 403), ("admin", 200)):
            roles = [f"monailabel-{r}" for r in {"user", role}]
            server.dependency_overrides[get_current_user] = user_with(roles)
            answer = client.post(url, data=data)
            assert answer.status_code == status, answer.text
            if status == 403:
                assert "only administrators" in answer.json()["detail"]
    assert answer.json()["version"] == "v0001"
    assert [r.actor for r in site.records.trail.rows(action="look_back")] == ["ann"]


def test_who_may_only_look_saves_no_label(
    app: SegUnlearnApp, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(infer_route, "current_app", lambda: app)
    server, saved = FastAPI(), []
    server.include_router(infer_route.router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    monkeypatch.setattr(
        app.datastore(), "save_label", lambda *given: saved.append(given) or given[1]
    )
    url = f"/infer/{MODEL}?image={site.unseen[0].series}&output=json"
    with TestClient(server) as client:
        for role, asked, status in (
            ("user", "true", 403), ("user", '"YES"', 403), ("user", "false", 200),
            ("annotator", "true", 200),
        ):  # fmt: skip
            server.dependency_overrides[get_current_user] = user_with(
                sorted({"monailabel-user", f"monailabel-{role}"})
            )
            answer = client.post(url, data={"params": f'{{"save_label": {asked}}}'})
            assert answer.status_code == status, answer.text
            assert len(saved) == (role == "annotator")
    assert saved[0][3]["user"] == "ann", "and it has an author"


def user_with(roles: list[str]) -> Callable[[], User]:
    return lambda: User(username="ann", roles=roles)


def test_what_it_is_not_for(app: SegUnlearnApp, site: Site) -> None:
    image = site.forget[0].series
    (request,) = site.mark(site.forget[:1], approve=False)
    with pytest.raises(ForbiddenError):
        mask_of(app, image, before=request)
    with pytest.raises(InvalidInputError, match="labels nothing"):
        mask_of(app, image, before=request, roles=ADMIN, save_label=True)
    with pytest.raises(InvalidInputError, match="segments alone"):
        mask_of(app, image, before=request, roles=ADMIN, site="north")
    with pytest.raises(NotFoundError):
        mask_of(app, image, before="0" * 32, roles=ADMIN)
    with pytest.raises(ConflictError, match="is requested"):
        mask_of(app, image, before=request, roles=ADMIN)
    assert site.records.trail.rows(action="look_back") == []
