"""A structure leaves by training again: until then nothing is fulfilled, then old weights close."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audit_home import MODEL, Site
from segunlearn.adapters.site import SiteAdapter
from segunlearn.app import unlearn_make, unlearn_run
from segunlearn.app.activation import activate
from segunlearn.app.adapter_store import SiteAdapters
from segunlearn.app.audit_studies import sets_of
from segunlearn.app.checkpoints import SEALED, note
from segunlearn.app.structures import untaught, versions_that_know_structure
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.app.unlearn_watch import Watch
from segunlearn.errors import CancelledError, ConflictError, InvalidInputError
from segunlearn.unlearning import UnlearningSets
from unlearn_site import copy_of, everything, known_site, let_it_pass
from unlearn_storm import quick_make

LESION = "lesion"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return known_site(tmp_path_factory.mktemp("structures"))


@pytest.fixture
def site(built: Site, tmp_path: Path) -> Site:
    return copy_of(built, tmp_path)


def marked(site: Site, structure: str = LESION, model: str = "") -> str:
    request, _ = site.records.forget_set.mark(
        "structure", structure, "wrong_label", actor="test", model=model
    )
    site.records.forget_set.approve(request.request_id, actor="test")
    return request.request_id


def run(site: Site, *requests: str) -> dict[str, object]:
    order = UnlearnOrder(MODEL, requests, method="fine_tune", device="cpu")
    return UnlearnRun(order, site.home, site.records, "test").execute(site.cases)


def known(site: Site) -> list[str]:
    found = versions_that_know_structure(site.records, site.registry, LESION)
    return [v.version for v in found]


def test_who_knows_it_by_the_ledger(site: Site) -> None:
    (first,) = site.registry.versions()
    again = site.publish(2, site.retain, without=(LESION,))
    site.publish(3, site.retain, parent=again, without=(LESION,))
    site.publish(4, site.retain, parent=first, without=(LESION,))  # fine-tuned from one that does
    site.publish(5, site.retain, parent=again)  # taught it again
    site.publish(6, site.retain, without=(LESION,), row=False)  # nobody can say
    assert known(site) == ["v0001", "v0004", "v0005", "v0006"]
    assert untaught(site.records, again) == {LESION}
    assert versions_that_know_structure(site.records, site.registry, "heart") == []


def test_not_while_the_served_version_was_taught_it(site: Site) -> None:
    request = marked(site)
    before = everything(site)
    for named in ([request], []):
        with pytest.raises(InvalidInputError, match=r"lesion, which v0001 was taught.*train --aga"):
            run(site, *named)
    assert everything(site) == before


def test_it_does_not_stand_in_the_way_of_studies(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = marked(site)
    (study,) = site.mark(site.forget[:1])
    let_it_pass(monkeypatch)
    assert run(site)["outcome"] == "published"
    state = {r.request_id: r.state for r in site.records.forget_set.list()}
    assert state == {request: "approved", study: "fulfilled"}


def test_trained_again_the_older_ones_are_sealed_and_can_come_back(site: Site) -> None:
    request = marked(site)
    site.publish(2, site.retain, without=(LESION,))
    run(site, request)
    found = site.records.forget_set.get(request)
    assert (found.state, found.reached) == ("fulfilled", "retrained")
    first = site.registry.get("v0001")
    assert (first.state, first.weights_state) == ("retired", "sealed")
    Undo(site.home, site.records, MODEL, "test").restore(request, why="a mistake")
    first = site.registry.get("v0001")
    assert (first.state, first.weights_state) == ("available", "here")


@pytest.mark.parametrize("noted", [True, False])
def test_adapters_of_what_is_sealed_go_with_it(site: Site, noted: bool) -> None:
    """They hold tensors of it; one of another base stays, whoever can read whom it saw."""
    served = site.publish(2, site.retain, without=(LESION,))
    store, tensors = SiteAdapters(site.home.sites / MODEL), {"final_conv.weight": torch.ones(2)}
    for base in (site.registry.get("v0001"), served):
        made = SiteAdapter(base.sha256, tensors, {"k": 1})
        store.put(
            base.version, made, run_id="a" * 32,
            note=lambda folder: note(folder, site.unseen[:1], site.records.pseudonyms)
            if noted else None,
        )  # fmt: skip
    run(site, marked(site))
    kept = {info.base: (info.here, info.why) for info in store.all()}
    assert kept == {
        site.registry.get("v0001").sha256: (False, SEALED), served.sha256: (True, "")
    }  # fmt: skip


def test_trained_again_the_older_ones_are_sealed_and_can_be_purged(site: Site) -> None:
    request = marked(site)
    undo = Undo(site.home, site.records, MODEL, "test")
    site.publish(2, site.retain, without=(LESION,))
    site.records.forget_set.set_needed(request, "unlearned", actor="test")
    run(site, request)
    assert undo.would_destroy(site.records.forget_set.get(request)) == (("v0001",), ())
    found = undo.purge(request)
    assert (found["destroyed"], found["places"]) == (["v0001"], [])
    assert site.registry.get("v0001").weights_state == "destroyed"
    assert site.records.forget_set.get(request).state == "purged"


def test_what_came_back_by_another_request_is_not_served(site: Site) -> None:
    """A version that knows a withdrawn structure is closed, however it came to be there."""
    request = marked(site)
    site.publish(2, site.retain, without=(LESION,))
    run(site, request)
    site.publish(3, site.retain)  # an import that knows it
    site.registry.activate("v0002")
    with pytest.raises(ConflictError, match="knows what forget request"):
        activate(site.home, site.records, MODEL, "v0003")


def test_a_structure_of_another_model(site: Site) -> None:
    request = marked(site, model="another")
    with pytest.raises(InvalidInputError, match="of the model another"):
        run(site, request)
    assert site.records.forget_set.get(request).state == "approved"


def test_a_structure_no_version_knows_is_fulfilled_at_once(site: Site) -> None:
    request = marked(site, "heart")
    run(site, request)
    assert site.records.forget_set.get(request).state == "fulfilled"


def test_nobody_teaches_it_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a repair nor a look on the way nor an audit sees what the version never saw."""
    site.publish(2, [*site.forget, *site.retain], without=(LESION,))
    site.mark(site.forget[:1])
    given: list[UnlearningSets] = []

    def unlearn(_name: str, _original: object, sets: UnlearningSets, *_: object) -> None:
        given.append(sets)
        raise CancelledError("enough")

    monkeypatch.setattr(unlearn_make, "unlearn", unlearn)
    order = UnlearnOrder(MODEL, method="fine_tune", device="cpu")
    task = UnlearnRun(order, site.home, site.records, "test")
    chosen = task.prepare(site.cases).sets
    assert chosen is not None
    with pytest.raises(CancelledError, match="enough"):
        task.execute(site.cases)
    audited, notes = sets_of(chosen, site.records.pseudonyms)
    looked_at = [s for studies in Watch(chosen, print)._studies.values() for s in studies]
    read = [*given[0].retain, *audited.forget, *audited.retain, *audited.test, *looked_at]
    assert not any(bool(s.label.any()) for s in read)
    assert any("never taught lesion" in note for note in notes)


def test_what_is_unlearned_from_it_does_not_know_it_either(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish(2, [*site.forget, *site.retain], without=(LESION,))
    site.mark(site.forget[:1])
    let_it_pass(monkeypatch)
    monkeypatch.setattr(unlearn_run, "make", lambda *a: replace(quick_make(*a), exact=False))
    assert run(site)["outcome"] == "published"
    assert untaught(site.records, site.registry.active()) == {LESION}
