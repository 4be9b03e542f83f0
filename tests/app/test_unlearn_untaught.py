"""What runs read and no version was taught: recorded in the ledger, and yet nothing to unlearn."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.cases import Case
from segunlearn.errors import ConflictError
from segunlearn.records.ledger import LedgerCase, LedgerEntry
from unlearn_site import let_it_pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    let_it_pass(monkeypatch)
    site = site_in(tmp_path, forget=2, retain=4, unseen=6)
    site.publish(1, site.retain)
    return site


def recorded(site: Site, case: Case, *, outcome: str, role: str = "train") -> None:
    site.records.ledger.append(
        LedgerEntry(
            run_id="f" * 32,
            kind="train",
            model=MODEL,
            version_sha256="7" * 64 if outcome == "done" else None,
            parent_sha256=None,
            cases=[LedgerCase(case.series, case.study, case.person, role)],
            parameters={"settings": {}},
            seed=0,
            versions={"torch": "2"},
            machine={"host": "test"},
            started="2026-01-01T00:00:00Z",
            ended="2026-01-01T01:00:00Z",
            outcome=outcome,
        )
    )


def unlearn(site: Site) -> dict[str, str]:
    order = UnlearnOrder(MODEL, method="fine_tune", device="cpu")
    UnlearnRun(order, site.home, site.records, "test").execute(site.cases)
    return {r.request_id: r.state for r in site.records.forget_set.list()}


@pytest.mark.parametrize(
    ("outcome", "role"),
    [("refused", "train"), ("cancelled", "validation"), ("done", "calibration")],
)
def test_it_is_fulfilled_and_blocks_nobody(site: Site, outcome: str, role: str) -> None:
    """A training that was refused as its study had been marked meanwhile, for one."""
    recorded(site, site.forget[0], outcome=outcome, role=role)
    requests = site.mark([site.forget[0], site.retain[0]])
    assert unlearn(site) == dict.fromkeys(requests, "fulfilled")
    assert site.records.forget_set.get(requests[0]).reached == "retrained"


def test_not_while_a_run_that_began_before_may_be_using_it(site: Site) -> None:
    recorded(site, site.forget[0], outcome="refused")
    run_id = site.records.runs.start("train", "other", {})
    (request,) = site.mark(site.forget[:1])
    with pytest.raises(ConflictError, match=f"{run_id} began before the mark"):
        unlearn(site)
    assert site.records.forget_set.get(request).state == "approved"
    site.records.runs.finish(run_id, "cancelled", "")
    assert unlearn(site) == {request: "fulfilled"}
