"""Generated requests over the description of the forget routes find no 5xx."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segunlearn.app import wiring
from segunlearn.app.forgetting import Forgetting, reporting
from segunlearn.app.routes import forget, ledger, runs
from segunlearn.errors import SegUnlearnError
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger
from segunlearn.records.outbox import Outbox, PacsSeen
from segunlearn.records.runs import Runs
from segunlearn.records.store import open_store

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


def make_server(folder: Path) -> tuple[FastAPI, dict[str, str]]:
    """A server whose store holds one request and one run, and their ids."""
    store = open_store(folder / "store.db")
    outbox = Outbox(store)
    records = Forgetting(
        forget_set=ForgetSet(store, on_change=reporting(outbox)),
        ledger=Ledger(store),
        runs=Runs(store),
        outbox=outbox,
        seen=PacsSeen(store),
    )
    server = FastAPI(title="SegUnlearn", version="1")
    for router in (forget.router, ledger.router, runs.router):
        server.include_router(router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    server.add_exception_handler(RequestValidationError, wiring._validation_error)
    server.dependency_overrides[forget.forgetting] = lambda: records
    request, _ = records.forget_set.mark("study", "1.2.3", "quality", actor="anna")
    run = records.runs.start("train", "segmentation", {})
    records.runs.finish(run, "done")
    return server, {"request_id": request.request_id, "run_id": run}


def operations() -> list[tuple[str, str]]:
    server = FastAPI()
    for router in (forget.router, ledger.router, runs.router):
        server.include_router(router)
    return [
        (method.upper(), path)
        for path, methods in server.openapi()["paths"].items()
        for method in methods
    ]


@pytest.mark.parametrize(("method", "path"), operations())
def test_no_generated_request_breaks_a_route(tmp_path: Path, method: str, path: str) -> None:
    server, ids = make_server(tmp_path)
    schema = schemathesis.openapi.from_asgi("/openapi.json", server)
    strategy = schema[path][method].as_strategy
    statuses: list[int] = []

    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]

    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=st.sampled_from(modes).flatmap(lambda mode: strategy(generation_mode=mode)),
        real=st.booleans(),
    )
    def ask(case: schemathesis.Case, real: bool) -> None:
        for name, value in ids.items():
            if real and name in (case.path_parameters or {}):
                case.path_parameters[name] = value
        response = case.call()
        statuses.append(response.status_code)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert isinstance(response.json()["detail"], str)
        else:
            case.validate_response(
                response, checks=[schemathesis.checks.response_schema_conformance]
            )

    ask()
    assert len(statuses) >= 10
    assert set(statuses) != {422}, "no generated request came further than the first check"
