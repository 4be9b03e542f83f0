"""A server with the gate and the routes that matter to it, as people sign in to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from monailabel.config import settings

from live_server import live_server
from segunlearn.app import viewer, wiring
from segunlearn.app.forgetting import Forgetting
from segunlearn.app.inference_queue import InferenceQueue
from segunlearn.app.models import ActiveModel
from segunlearn.app.options import AppOptions, Home
from segunlearn.app.records import Records
from segunlearn.app.routes import audits, changes, forget
from segunlearn.app.security import health
from segunlearn.app.security.protection import protect, routers
from segunlearn.errors import SegUnlearnError
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.versions import VersionRegistry


@dataclass
class Place:
    """A server with the routes that matter here."""

    url: str
    records: Records
    server: FastAPI

    def client(self, token: str = "", **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def token(self, role: str, name: str = "") -> str:
        return AccessTokens(self.records.store).create(name or f"the {role}", role, 1)[0]

    def trail(self) -> list[tuple[str, str, str]]:
        return [(r.action, r.actor, r.outcome) for r in self.records.trail.every()]


class Reports:
    """Stands in for the audits; the report is what matters here."""

    def get(self, audit_id: str) -> dict[str, Any]:
        return {"audit_id": audit_id}

    def report(self, audit_id: str) -> tuple[dict[str, Any], str]:
        return {"about": {"pictures": True}}, "<p>a report"


@contextmanager
def serving(home: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Place]:
    """Serve on a free port; the options are those of ``AppOptions``."""
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", False)  # put back afterwards
    place = Home(home)
    records = Records(place)
    made: Any = SimpleNamespace(
        options=AppOptions(home=home, **options), records=records, home=place,
        model=ActiveModel(VersionRegistry(place.model("segmentation"))),
        inferences=InferenceQueue(2),
    )  # fmt: skip
    monkeypatch.setattr(health, "current_app", lambda: made)
    server = FastAPI()
    for router in (changes.router, forget.router, audits.router, *viewer.routers(), *routers()):
        server.include_router(router)
    found = Forgetting(records.forget_set, records.ledger, records.runs_unchecked)
    server.dependency_overrides[forget.forgetting] = lambda: found
    server.dependency_overrides[audits.audits] = Reports
    server.dependency_overrides[viewer.current_source] = lambda: "embedded"
    server.dependency_overrides[viewer.current_bundle] = lambda: viewer._BUNDLED
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    protect(server, made)
    with live_server(server) as url:
        yield Place(url, records, server)
