"""A structure leaves by training again: until then nothing is fulfilled, then old weights close."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_home import MODEL, Site
from segunlearn.app.activation import activate
from segunlearn.app.structures import untaught, versions_that_know_structure
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.errors import ConflictError, InvalidInputError
from unlearn_site import copy_of, everything, known_site, let_it_pass

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
