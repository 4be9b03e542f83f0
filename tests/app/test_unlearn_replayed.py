"""People whom a model knows from replayed images alone, which nobody may have labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site, write_people
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError
from unlearn_site import known_site, let_it_pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    let_it_pass(monkeypatch)
    return known_site(tmp_path, unseen=6)


@pytest.fixture
def replayed(site: Site, tmp_path: Path) -> Case:
    """Somebody who is among no labelled cases, and shaped the served version by replay."""
    (case,) = write_people(tmp_path / "replayed", 700, 1)
    base = site.registry.get("v0001")
    site.publish(2, [case, *site.retain], parent=base, kind="unlearn", role="replay")
    return case


def run_of(site: Site, *requests: str) -> UnlearnRun:
    order = UnlearnOrder(MODEL, requests, method="fine_tune", device="cpu")
    return UnlearnRun(order, site.home, site.records, "test")


def told(run: UnlearnRun, cases: list[Case]) -> dict[str, str]:
    plan = plan_of(run.prepare(cases), run.records, run.order)
    return {r["id"]: r["what"] for r in plan.requests}


def test_unlabelled_they_wait_for_a_training_again_and_stand_in_nobodys_way(
    site: Site, replayed: Case
) -> None:
    trained, left = site.mark([site.forget[0], replayed])
    run = run_of(site)
    what = told(run, site.cases)
    assert what[trained] == "is unlearned"
    assert "train --again" in what[left]
    found: dict[str, Any] = run.execute(site.cases)["requests"]
    assert (found[trained]["state"], "left" in found[trained]) == ("fulfilled", False)
    assert (found[left]["state"], found[left]["left"]) == ("approved", what[left])
    # what took its place was made from random weights: older versions are sealed, as was said
    assert run_of(site).execute(site.cases)["requests"][left]["state"] == "fulfilled"
    assert site.registry.get("v0002").weights_state == "sealed"


def test_named_or_alone_the_message_says_what_to_do(site: Site, replayed: Case) -> None:
    (request,) = site.mark([replayed])
    for named in ((), (request,)):
        with pytest.raises(InvalidInputError, match="train --again"):
            run_of(site, *named).prepare(site.cases)


def test_labelled_or_trained_on_they_are_unlearned(site: Site, replayed: Case) -> None:
    ids = site.mark([replayed, site.retain[0]])
    choice = run_of(site).prepare([*site.cases, replayed])
    assert ({r.request_id for r in choice.requests}, choice.unmeasured) == (set(ids), ())


def test_replayed_only_to_what_hides_they_stand_in_nobodys_way(site: Site, tmp_path: Path) -> None:
    """A version that hides is not unlearned from: its parent, which never saw them, is."""
    (case,) = write_people(tmp_path / "replayed", 700, 1)
    base = site.registry.get("v0001")
    hiding = site.publish(2, [case], parent=base, kind="unlearn", role="replay", hides=True)
    trained, left = site.mark([site.forget[0], case])
    choice = run_of(site).prepare(site.cases)
    assert site.registry.active() == hiding
    assert choice.original is not None
    assert choice.original.sha256 == base.sha256
    assert [r.request_id for r in choice.requests] == [trained]
    assert [r.request_id for r in choice.unmeasured] == [left]
