"""Restoring in another order than it was forgotten: what is still forgotten never comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app import checkpoints, unlearn_run
from segunlearn.app.audit_files import Audits
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_reach import versions_that_know
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.errors import CancelledError, ConflictError, InvalidInputError, NotFoundError
from segunlearn.records.versions import file_sha256
from unlearn_site import copy_of, everything, known_site, let_it_pass
from unlearn_storm import passing_audit, quick_make


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return known_site(tmp_path_factory.mktemp("restore"), unseen=6)


@pytest.fixture
def site(built: Site, tmp_path: Path) -> Site:
    return copy_of(built, tmp_path)


@pytest.fixture(autouse=True)
def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_pass(monkeypatch)


def run_of(site: Site, **order: Any) -> UnlearnRun:
    order = {"method": "fine_tune", "device": "cpu", **order}
    return UnlearnRun(UnlearnOrder(MODEL, **order), site.home, site.records, "test")


def forgotten_in_turn(site: Site, count: int = 2, **order: Any) -> list[str]:
    """Forget one person after the other: each version is made from the one before."""
    found = []
    for case in [*site.forget, *site.retain][:count]:
        found += site.mark([case])
        assert run_of(site, requests=(found[-1],), **order).execute(site.cases)["version"]
    return found


def restored(site: Site, request: str, **order: Any) -> dict[str, Any]:
    return run_of(site, restore=request, **order).execute(site.cases)


def knows(site: Site, version: str, who: int) -> bool:
    """By the ledger and the audits."""
    audits, series = Audits(site.home), {site.cases[who].series}
    found = versions_that_know(audits, site.records, site.registry, series)
    return version in {v.version for v in found}


def served(site: Site) -> str:
    active = site.registry.active()
    assert active is not None
    assert file_sha256(active.weights) == active.sha256
    return active.version


def states(site: Site, requests: list[str]) -> list[str]:
    return [site.records.forget_set.get(r).state for r in requests]


def open_weights(site: Site) -> set[str]:
    """Digests of all files below the home; what is sealed is noise."""
    return {file_sha256(p) for p in site.home.root.rglob("*") if p.is_file()}


def test_what_was_forgotten_later_stays_forgotten(site: Site) -> None:
    original = site.registry.get("v0001")
    weights = original.weights.read_bytes()
    first, second = forgotten_in_turn(site)
    undo = Undo(site.home, site.records, MODEL, "test")
    before = everything(site)
    with pytest.raises(ConflictError, match=f"v0001, which would come back.*{second}.*--data"):
        undo.restore(first)
    assert everything(site) == before

    run = run_of(site, restore=first, why="by mistake")
    plan = plan_of(run.prepare(site.cases), site.records, run.order, ())
    assert [(r["id"], r["what"][:14]) for r in plan.requests] == [
        (first, "comes back"), (second, "stays forgotte"),
    ]  # fmt: skip
    assert (plan.original, plan.studies, plan.level) == ("v0001", 1, "unlearned")
    assert everything(site) == before

    found = run.execute(site.cases)
    assert (found["outcome"], found["version"]) == ("restored", "v0004")
    assert (found["restored"], found["lost"]) == ([first], ["v0003"])
    assert served(site) == "v0004"
    assert states(site, [first, second]) == ["restored", "fulfilled"]
    assert knows(site, "v0004", 0)
    assert not knows(site, "v0004", 1)
    assert original.sha256 not in open_weights(site)
    assert (original.version, "sealed") == ("v0001", site.registry.get("v0001").weights_state)
    history = site.records.forget_set.history(second)[-1]
    assert (history.to_state, "forgotten again beside a restore" in history.why) == (
        "fulfilled", True,
    )  # fmt: skip
    assert site.records.forget_set.history(first)[-1].why == "by mistake"
    assert not list(site.home.unlearning.iterdir())
    finisher = Finisher(site.home, site.records)
    assert not finisher.keys.has(first)
    (new, old) = finisher.deposits.of_request(second)
    assert finisher.deposits.open(new.deposit_id, "v0001") == weights
    assert [e.version for e in old.entries] == ["v0002"]

    # what was restored may be forgotten again, and the other restored after it
    assert undo.restore(second) == {"version": "v0001", "requests": [second], "lost": []}
    assert site.registry.get("v0001").weights.read_bytes() == weights
    assert not list(finisher.deposits.all())


def test_a_purge_after_it_leaves_nothing_that_knows_it(site: Site) -> None:
    first, second = forgotten_in_turn(site)
    old = {site.registry.get(v).sha256 for v in ("v0001", "v0002")}
    restored(site, first)
    # what a stopped training left and nobody has deleted, and what is made again when it is needed
    run_id = site.records.runs.start("train", MODEL, {})
    site.records.runs.finish(run_id, "cancelled")
    left = site.home.runs / run_id
    left.mkdir(parents=True)
    checkpoints.note(left, site.cases, site.records.pseudonyms)
    cached = [
        site.home.cache / "labels" / values / "1.2.3.nii.gz" for values in ("0" * 12, "f" * 12)
    ]
    copies = [left / "best.safetensors", *cached, site.home.audits / "work" / "b"]
    for path in copies:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = Undo(site.home, site.records, MODEL, "test").purge(second)
    assert not [path.name for path in copies if path.exists()]
    assert (found["destroyed"], found["requests"]) == (["v0001", "v0002"], [])
    assert served(site) == "v0004"
    assert not old & open_weights(site)
    finisher = Finisher(site.home, site.records)
    assert not list(finisher.deposits.all())
    assert not finisher.keys.has(second)
    assert {v.weights_state for v in site.registry.versions()[:2]} == {"destroyed"}
    with pytest.raises(ConflictError, match="is purged"):
        Undo(site.home, site.records, MODEL, "test").restore(second)


def test_of_three_each_comes_back_alone(site: Site) -> None:
    """Sealed together again, and yet nobody comes back with another."""
    one, two, three = forgotten_in_turn(site, 3)
    assert restored(site, one)["restored"] == [one]
    assert states(site, [one, two, three]) == ["restored", "fulfilled", "fulfilled"]
    back = restored(site, three)
    assert (back["restored"], served(site)) == ([three], back["version"])
    assert states(site, [two, three]) == ["fulfilled", "restored"]
    assert [knows(site, served(site), n) for n in range(3)] == [True, False, True]
    for version in site.registry.versions():
        if version.weights_state == "here":
            assert not knows(site, version.version, 1), version.version
    undo = Undo(site.home, site.records, MODEL, "test")
    assert undo.restore(two)["requests"] == [two]
    assert served(site) == "v0001"


def test_what_only_an_older_version_knew_is_sealed_again(site: Site) -> None:
    """The version that comes back does not know it, but another one of the deposit does."""
    first_people = [c for c in site.cases[:6] if c is not site.forget[1]]
    site.publish(2, first_people)
    (first,) = site.mark(site.forget[:1])
    run_of(site, requests=(first,)).execute(site.cases)
    (second,) = site.mark(site.forget[1:2])
    assert run_of(site, requests=(second,)).execute(site.cases)["outcome"] == "not needed"
    back = Undo(site.home, site.records, MODEL, "test").restore(first)
    assert (back["version"], served(site)) == ("v0002", "v0002")
    assert states(site, [first, second]) == ["restored", "fulfilled"]
    assert site.registry.get("v0001").weights_state == "sealed"
    back = Undo(site.home, site.records, MODEL, "test").restore(second)
    assert (back["version"], site.registry.get("v0001").weights_state) == ("v0002", "here")


def test_what_was_replaced_comes_back_though_older_versions_were_sealed_again_since(
    site: Site,
) -> None:
    """The newest deposit is that of another's restore, and holds what was never served for it."""
    site.publish(2, [site.forget[1], *site.retain])
    first, second = site.mark(site.forget)
    run_of(site, requests=(first,)).execute(site.cases)
    found = run_of(site, requests=(second,)).execute(site.cases)
    assert (found["outcome"], served(site)) == ("published", "v0003")
    undo = Undo(site.home, site.records, MODEL, "test")
    assert undo.restore(first)["version"] == "v0003"
    assert undo.restore(second) == {"version": "v0002", "requests": [second], "lost": []}
    assert served(site) == "v0002"
    assert {v.version: v.weights_state for v in site.registry.versions()} == dict.fromkeys(
        ("v0001", "v0002", "v0003"), "here"
    )


def test_what_is_only_hidden_is_not_shown_again(site: Site) -> None:
    """It is still in work, so that nothing of it was sealed."""
    first, second = *forgotten_in_turn(site, 1), *site.mark(site.forget[1:])
    hidden = run_of(site, requests=(second,), level="hidden").execute(site.cases)
    assert hidden["outcome"] == "hidden"
    with pytest.raises(ConflictError, match=second):
        Undo(site.home, site.records, MODEL, "test").restore(first)
    assert restored(site, first)["requests"][second]["state"] == "working"
    assert not knows(site, served(site), 1)


def refusing(run: UnlearnRun, *_: Any) -> dict[str, Any]:
    verdict = {"outcome": "refused", "reached": "none", "reasons": ["It relearns."]}
    return {**passing_audit(run), "verdict": verdict}


def stopped(*_: Any) -> None:
    raise CancelledError("the unlearning was stopped.")


def test_no_key_seals_a_version_that_does_not_know_its_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the served version know one, the second the other; the audit is refused."""
    site = site_in(tmp_path, forget=2, retain=4, unseen=6)
    for seed, who in enumerate((0, 1, 0)):
        site.publish(seed, [site.forget[who], *site.retain])
    served_one, old_one = site.mark(site.forget)
    monkeypatch.setattr(UnlearnRun, "_audited", refusing)
    found = run_of(site).execute(site.cases)["requests"]
    assert [found[r]["state"] for r in (served_one, old_one)] == ["refused", "fulfilled"]
    assert [v.weights_state for v in site.registry.versions()[:3]] == ["here", "sealed", "here"]
    purged = Undo(site.home, site.records, MODEL, "test").purge(old_one)
    assert purged["destroyed"] == ["v0002"]
    assert site.registry.get("v0001").weights_state == "here"


@pytest.mark.parametrize("how", ["refused", "stopped"])
def test_without_a_pass_nothing_changes(
    site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    requests = forgotten_in_turn(site)
    asked, versions, files = everything(site)
    digests = open_weights(site)
    if how == "refused":
        monkeypatch.setattr(UnlearnRun, "_audited", refusing)
        found = restored(site, requests[0])
        assert (found["outcome"], found["version"]) == ("refused", None)
        assert found["verdict"]["reasons"] == ["It relearns."]
        versions = [*versions, site.registry.get("v0004")]  # the refused candidate, destroyed
        assert versions[-1].weights_state == "destroyed"
    else:
        monkeypatch.setattr(unlearn_run, "make", stopped)
        with pytest.raises(CancelledError):
            restored(site, requests[0])
    assert everything(site) == (asked, versions, files)
    assert served(site) == "v0003"
    new = open_weights(site) - digests
    assert not new & {v.sha256 for v in versions}
    run = site.records.runs.latest(kind="unlearn")
    assert run is not None
    assert run.state == ("refused" if how == "refused" else "cancelled")
    finisher = Finisher(site.home, site.records)
    assert all(finisher.deposits.is_openable(d.deposit_id) for d in finisher.deposits.all())


def test_a_small_deposit_is_opened_through_the_one_after_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first version is sealed as what leads back from the second, and that is sealed too."""
    monkeypatch.undo()
    monkeypatch.setattr(UnlearnRun, "_audited", passing_audit)
    weights = site.registry.get("v0001").weights.read_bytes()
    way = {"method": "erode_and_repair_lora", "settings": {"epochs": 1, "inits": 1}}
    first, second = forgotten_in_turn(site, **way)
    finisher = Finisher(site.home, site.records)
    kinds = [e.kind for d in finisher.deposits.all() for e in d.entries]
    assert kinds.count("adapter") == 2
    restored(site, first, **way)
    new = finisher.deposits.of_request(second)[0]
    assert [e.version for e in new.entries] == ["v0001"]
    assert not list(site.home.unlearning.iterdir())
    Undo(site.home, site.records, MODEL, "test").restore(second)
    assert site.registry.get("v0001").weights.read_bytes() == weights


def test_orders_that_cannot_be_followed(site: Site) -> None:
    (request,) = forgotten_in_turn(site, 1)
    with pytest.raises(ConflictError, match="can be restored at once"):
        restored(site, request)
    with pytest.raises(InvalidInputError, match="neither requests nor a level"):
        UnlearnOrder(MODEL, requests=(request,), restore=request)
    with pytest.raises(NotFoundError):
        restored(site, "0" * 32)
    Undo(site.home, site.records, MODEL, "test").restore(request)
    with pytest.raises(ConflictError, match="is restored"):
        restored(site, request)


@pytest.mark.parametrize("reason", ["wrong_label", "consent_withdrawn"])
def test_what_is_only_hidden_is_forgotten_with_the_next_one(
    site: Site, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Fulfilled by it (a wrong label), or still in work: made from such a version, it may show."""
    forget_set = site.records.forget_set
    hidden, _ = forget_set.mark("patient", site.forget[0].person, reason, actor="test")
    forget_set.approve(hidden.request_id, actor="test")
    with monkeypatch.context() as patch:  # as an adapter does it: made from what knows the study
        patch.setattr(unlearn_run, "make", lambda *given: replace(quick_make(*given), exact=False))
        run_of(site, requests=(hidden.request_id,), level="hidden").execute(site.cases)
    before = forget_set.get(hidden.request_id)
    assert (before.state == "fulfilled", before.reached) == (reason == "wrong_label", "hidden")
    (request,) = site.mark(site.forget[1:])
    run = run_of(site, requests=(request,))
    choice = run.prepare(site.cases)
    assert choice.original is not None
    assert choice.original.weights_state == "here"
    assert choice.sets is not None
    assert {c.person for c in choice.sets.forget} == {c.person for c in site.forget}
    plan = plan_of(choice, site.records, run.order, ())
    assert [r["id"] for r in plan.requests] == [request, hidden.request_id]
    assert run.execute(site.cases)["requests"][request]["state"] == "fulfilled"
    # viewers read here what is under way; who answers for the result stands in the ledger
    told = site.records.runs.get(run.run_id).parameters["requests"]
    assert told == [request, hidden.request_id]
    assert site.records.ledger.row(run.run_id).parameters["requests"] == [request]
    assert forget_set.get(hidden.request_id) == before
    assert not knows(site, served(site), 0)


def test_a_level_that_is_raised_while_it_is_unlearned(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hides it is served, the request stays in work and says so, and can be unlearned on."""
    forget_set = site.records.forget_set
    person = site.forget[0].person
    hidden, _ = forget_set.mark("patient", person, "wrong_label", actor="test")
    forget_set.approve(hidden.request_id, actor="test")

    def raising(run: UnlearnRun, *given: Any) -> dict[str, Any]:
        forget_set.mark("patient", person, "consent_withdrawn", actor="dpo")
        return passing_audit(run, *given)

    with monkeypatch.context() as patch:
        patch.setattr(unlearn_run, "make", lambda *given: replace(quick_make(*given), exact=False))
        patch.setattr(UnlearnRun, "_audited", raising)
        run_of(site, requests=(hidden.request_id,)).execute(site.cases)
    found = forget_set.get(hidden.request_id)
    assert (found.state, found.needed, found.reached) == ("working", "unlearned", "hidden")
    assert served(site) == "v0002"
    run_of(site, requests=(hidden.request_id,)).execute(site.cases)
    found = forget_set.get(hidden.request_id)
    assert (found.state, found.reached) == ("fulfilled", "unlearned")
