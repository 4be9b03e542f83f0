"""An archive changed PatientIDs after a training: what the ledger knows is still found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app.unlearn_choice import RENAMED
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError
from unlearn_site import let_it_pass

NEW = "NEW-7"


@pytest.fixture(autouse=True)
def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_pass(monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Series and studies of DICOM, all but the unseen trained on."""
    site = site_in(tmp_path, forget=2, retain=3, unseen=6)
    for cases in (site.forget, site.retain, site.unseen):
        cases[:] = [
            replace(c, series=f"1.2.3.{int(c.person[5:]) + 1}", study=f"1.2.{int(c.person[5:])}")
            for c in cases
        ]
    site.publish(1, [*site.forget, *site.retain])
    return site


def now(site: Site, changed: Sequence[Case]) -> list[Case]:
    """The cases, some of them under the new number."""
    return [replace(c, person=NEW) if c in changed else c for c in site.cases]


def run_of(site: Site, *requests: str) -> UnlearnRun:
    order = UnlearnOrder(MODEL, requests=requests, method="fine_tune", device="cpu")
    return UnlearnRun(order, site.home, site.records, "test")


def approved(site: Site, kind: Any, target: str) -> str:
    request, _ = site.records.forget_set.mark(kind, target, "consent_withdrawn", actor="test")
    return site.records.forget_set.approve(request.request_id, actor="test").request_id


def planned(run: UnlearnRun, site: Site, cases: Sequence[Case]) -> dict[str, str]:
    found = plan_of(run.prepare(cases), site.records, run.order)
    return {r["id"]: r["what"] for r in found.requests}


def test_a_mark_on_the_new_number_is_not_called_never_trained_on(site: Site) -> None:
    cases = now(site, site.forget[:1])
    renamed = approved(site, "patient", NEW)
    with pytest.raises(InvalidInputError, match="another PatientID"):
        run_of(site, renamed).prepare(cases)
    with pytest.raises(InvalidInputError, match="another PatientID"):
        run_of(site).execute(cases)
    assert site.records.forget_set.get(renamed).state == "approved"

    other = approved(site, "patient", site.forget[1].person)
    assert planned(run_of(site), site, cases) == {other: "is unlearned", renamed: RENAMED}
    result = run_of(site).execute(cases)
    assert result["requests"][renamed] == {
        "state": "approved", "needed": "unlearned", "reached": "none", "left": RENAMED,
    }  # fmt: skip
    assert result["requests"][other]["state"] == "fulfilled"

    study = approved(site, "study", site.forget[0].study)
    assert planned(run_of(site), site, cases) == {
        study: "is unlearned", renamed: "no version was taught it: fulfilled at once",
    }  # fmt: skip
    assert run_of(site).execute(cases)["requests"][study]["state"] == "fulfilled"


def test_a_number_that_was_trained_on_and_took_over_another(site: Site) -> None:
    """It is known for its own study; that it has another one now must not be passed over."""
    other, own = site.forget
    request = approved(site, "patient", own.person)
    cases = [replace(c, person=own.person) if c is other else c for c in site.cases]
    with pytest.raises(InvalidInputError, match="another PatientID"):
        run_of(site, request).prepare(cases)
    assert planned(run_of(site, request), site, site.cases) == {request: "is unlearned"}


def test_a_changed_number_does_not_stop_the_unlearning_of_others(site: Site) -> None:
    cases = now(site, [site.retain[0], site.unseen[0]])
    request = approved(site, "patient", site.forget[0].person)
    sets = run_of(site, request).prepare(cases).sets
    assert sets is not None
    assert site.retain[0].series in {c.series for c in sets.retain}
    unseen = {c.series for c in [*sets.calibration, *sets.test]}
    assert unseen == {c.series for c in site.unseen[1:]}  # who was trained on is nobody unseen
    assert any("2 images stand under another PatientID" in note for note in sets.notes)
