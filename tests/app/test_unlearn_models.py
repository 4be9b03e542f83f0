"""Two models in one home: a request is fulfilled when neither knows what it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site, site_in, write_people
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.errors import ConflictError, InvalidInputError
from segunlearn.unlearning.plan import Plan
from unlearn_site import copy_of, everything, let_it_pass

LESION = "lesion"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return site_in(tmp_path_factory.mktemp("models"), forget=2, retain=4, unseen=6)


@pytest.fixture(autouse=True)
def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_pass(monkeypatch)


@pytest.fixture
def site(empty: Site, tmp_path: Path) -> Site:
    return copy_of(empty, tmp_path)


@pytest.fixture
def other(site: Site) -> Site:
    return replace(site, model="other")


def run_of(site: Site, *requests: str, **order: Any) -> UnlearnRun:
    order = {"method": "fine_tune", "device": "cpu", **order}
    return UnlearnRun(UnlearnOrder(site.model, requests, **order), site.home, site.records, "test")


def unlearn(site: Site, *requests: str, **order: Any) -> dict[str, Any]:
    return run_of(site, *requests, **order).execute(site.cases)


def planned(site: Site, *requests: str) -> Plan:
    run = run_of(site, *requests)
    choice = run.prepare(site.cases)
    return plan_of(choice, site.records, run.order, run.left_in_others())


def weights(site: Site) -> list[str]:
    return [v.weights_state for v in site.registry.versions()]


def state(site: Site, request: str) -> tuple[str, str]:
    found = site.records.forget_set.get(request)
    return found.state, found.reached


def test_what_only_the_other_model_knows_is_unlearned_there(site: Site, other: Site) -> None:
    site.publish(1, site.retain)
    other.publish(2, [*site.forget, *site.retain])
    (request,) = site.mark(site.forget[:1])
    before = everything(site)
    for named in ((), (request,)):
        with pytest.raises(
            InvalidInputError, match=r"only other.*segunlearn unlearn --model other"
        ):
            unlearn(site, *named)
    assert everything(site) == before
    assert unlearn(other)["requests"][request]["state"] == "fulfilled"
    assert weights(other) == ["sealed", "here"]


def test_it_does_not_stand_in_the_way_of_others(site: Site, other: Site) -> None:
    site.publish(1, [site.forget[1], *site.retain])
    other.publish(2, [site.forget[0], *site.retain])
    there, here = site.mark(site.forget)
    plan = planned(site)
    what = {r["id"]: r["what"] for r in plan.requests}
    assert what[here] == "is unlearned"
    assert what[there] == "only other knows it: unlearn it there"
    (left,) = plan.others
    assert (left["model"], left["requests"], left["possible"]) == ("other", [there], True)
    found = run_of(site).execute(site.cases)["requests"]
    assert (found[here]["state"], "next" in found[here]) == ("fulfilled", False)
    assert (found[there]["state"], found[there]["next"]) == ("approved", ["other"])


def test_what_both_know_is_fulfilled_after_both(site: Site, other: Site) -> None:
    site.publish(1, [*site.forget, *site.retain])
    other.publish(2, [*site.forget, *site.retain])
    (request,) = site.mark(site.forget[:1])
    plan = planned(site)
    (line,) = plan.requests
    assert line["what"] == "is unlearned; then in other: fulfilled only after that"
    assert plan.others[0]["possible"]
    assert "1 request stays open after this: other has to forget, too" in plan.lines()[1]
    found = unlearn(site)
    assert found["outcome"] == "published"
    assert found["requests"][request] == {
        "state": "working", "needed": "unlearned", "reached": "unlearned", "next": ["other"],
    }  # fmt: skip
    assert "other still knows it. Unlearn it there" in (
        site.records.forget_set.history(request)[-1].why
    )
    assert site.records.forget_set.get(request).is_known_elsewhere
    assert weights(site) == ["sealed", "here"]
    undo = Undo(site.home, site.records, MODEL, "test")
    with pytest.raises(ConflictError, match="only a fulfilled one"):
        undo.purge(request)
    with pytest.raises(InvalidInputError, match="--model other"):
        unlearn(site)

    assert unlearn(other)["requests"][request]["state"] == "fulfilled"
    assert undo.would_destroy(site.records.forget_set.get(request))[0] == ("v0001", "other/v0001")
    assert undo.purge(request)["destroyed"] == ["v0001", "other/v0001"]
    assert weights(site) == weights(other) == ["destroyed", "here"]
    assert not list(Finisher(site.home, site.records).deposits.all())


def test_a_plan_says_where_the_other_model_cannot_be_unlearned(site: Site, other: Site) -> None:
    """It was found out when the first model's version was sealed already."""
    site.publish(1, [*site.forget, *site.retain])
    other.publish(2, [*site.forget, *site.retain, *site.unseen[:5]])
    requests = site.mark(site.forget)
    before = everything(site)
    plan = planned(site)
    assert everything(site) == before
    for line in plan.requests:
        assert line["what"].endswith("but other cannot be unlearned as things are")
    (left,) = plan.others
    assert (left["model"], set(left["requests"]), left["possible"]) == (
        "other", set(requests), False,
    )  # fmt: skip
    said = left["what"]
    assert said in plan.lines()
    assert said.startswith("2 requests stay open after this: other knows")
    assert "1 labelled people were never seen by v0001" in said
    assert "segunlearn train --again --model other" in said
    assert "seals its versions" in said
    # the way out leads out
    assert unlearn(site)["others"] == [left]
    with pytest.raises(InvalidInputError, match="never seen"):
        unlearn(other)
    other.publish(3, site.retain)
    assert {r["state"] for r in unlearn(other)["requests"].values()} == {"fulfilled"}
    assert weights(other) == ["sealed", "here"]


def test_each_request_has_its_own_obstacle(site: Site, other: Site, tmp_path: Path) -> None:
    """One is known to the other model from unlabelled images that were only replayed to it."""
    (case,) = write_people(tmp_path / "replayed", 700, 1)
    site.publish(1, [case, *site.forget, *site.retain])
    site.publish(2, [*site.forget, *site.retain])
    base = other.publish(3, [*site.forget, *site.retain])
    other.publish(4, [case], parent=base, kind="unlearn", role="replay")
    both, replayed = site.mark([site.forget[0], case])
    left = {tuple(x["requests"]): x for x in planned(site).others}
    assert {ids: x["possible"] for ids, x in left.items()} == {(both,): True, (replayed,): False}
    assert "the request cannot be unlearned" in left[(replayed,)]["what"]
    assert "only replayed" in left[(replayed,)]["what"]
    what = {r["id"]: r["what"] for r in planned(site).requests}
    assert "cannot" not in what[both]
    assert what[replayed].endswith("but other cannot be unlearned as things are")


def test_the_weaker_of_two_levels_counts(site: Site, other: Site) -> None:
    site.publish(1, [*site.forget, *site.retain])
    other.publish(2, [*site.forget, *site.retain])
    (request,) = site.mark(site.forget[:1])
    unlearn(site)
    unlearn(other, level="retrained")
    assert state(site, request) == ("fulfilled", "unlearned")


def test_versions_out_of_service_count_too(site: Site, other: Site) -> None:
    site.publish(1, [*site.forget, *site.retain])
    site.publish(2, site.retain)
    other.publish(3, [*site.forget, *site.retain])
    (request,) = site.mark(site.forget[:1])
    assert unlearn(other)["requests"][request]["next"] == [MODEL]
    assert unlearn(site)["requests"][request]["state"] == "fulfilled"
    assert weights(site) == ["sealed", "here"]


def test_a_structure_of_every_model(site: Site, other: Site) -> None:
    site.publish(1, site.retain)
    site.publish(2, site.retain, without=(LESION,))
    other.publish(3, site.retain)
    mark = site.records.forget_set.mark
    request = mark("structure", LESION, "wrong_label", actor="test")[0].request_id
    site.records.forget_set.approve(request, actor="test")
    found = unlearn(site, request)
    assert (found["requests"][request]["state"], weights(site)) == ("working", ["sealed", "here"])
    with pytest.raises(InvalidInputError, match="--model other"):
        unlearn(site, request)
    other.publish(4, site.retain, without=(LESION,))
    assert unlearn(other, request)["requests"][request]["state"] == "fulfilled"
    assert weights(other) == ["sealed", "here"]


def test_no_purge_leaves_a_version_of_the_other_model(site: Site, other: Site) -> None:
    """Fulfilled, and then a version came back that nobody had sealed for it."""
    site.publish(1, [*site.forget, *site.retain])
    (request,) = site.mark(site.forget[:1])
    unlearn(site)
    other.publish(2, [*site.forget, *site.retain])
    before = everything(site)
    with pytest.raises(ConflictError, match="other/v0001"):
        Undo(site.home, site.records, MODEL, "test").purge(request)
    assert everything(site) == before
    other.publish(3, site.retain)
    found = Undo(site.home, site.records, "other", "test").purge(request)
    assert found["destroyed"] == ["v0001", f"{MODEL}/v0001"]
    assert (weights(site), weights(other)) == (["destroyed", "here"],) * 2


def test_each_model_is_restored_by_itself(site: Site, other: Site) -> None:
    kept = {
        s.model: s.publish(n, s.cases[:6]).weights.read_bytes() for n, s in enumerate((site, other))
    }
    (request,) = site.mark(site.forget[:1])
    unlearn(site)
    unlearn(other)
    for which, left in ((site, 1), (other, 0)):
        found = Undo(site.home, site.records, which.model, "test").restore(request)
        assert found["version"] == "v0001"
        assert which.registry.get("v0001").weights.read_bytes() == kept[which.model]
        assert state(site, request) == ("restored", "none")
        finisher = Finisher(site.home, site.records)
        assert len(list(finisher.deposits.all())) == left
        assert finisher.keys.has(request) == bool(left)
    with pytest.raises(ConflictError, match="is restored"):
        Undo(site.home, site.records, MODEL, "test").restore(request)
