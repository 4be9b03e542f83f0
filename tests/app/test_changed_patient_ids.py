"""An archive changed PatientIDs after a training: what the ledger knows is still found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app.training_run import refuse_hidden
from segunlearn.app.unlearn_choice import RENAMED
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.cases import Case
from segunlearn.errors import ConflictError, InvalidInputError, LabelError
from unlearn_site import let_it_pass

NEW = "NEW-7"


@pytest.fixture(autouse=True)
def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_pass(monkeypatch)


@pytest.fixture
def files(tmp_path: Path) -> Site:
    """The same of files, which bear names instead of UIDs."""
    site = site_in(tmp_path, forget=2, retain=3, unseen=6)
    site.publish(1, [*site.forget, *site.retain])
    return site


@pytest.fixture
def untrained(tmp_path: Path) -> Site:
    """Series and studies of DICOM."""
    site = site_in(tmp_path, forget=2, retain=3, unseen=6)
    for cases in (site.forget, site.retain, site.unseen):
        cases[:] = [
            replace(c, series=f"1.2.3.{int(c.person[5:]) + 1}", study=f"1.2.{int(c.person[5:])}")
            for c in cases
        ]
    return site


@pytest.fixture
def site(untrained: Site) -> Site:
    """All but the unseen trained on."""
    untrained.publish(1, [*untrained.forget, *untrained.retain])
    return untrained


def now(site: Site, changed: Sequence[Case]) -> list[Case]:
    """The cases, some of them under the new number."""
    return [replace(c, person=NEW) if c in changed else c for c in site.cases]


def run_of(site: Site, *requests: str) -> UnlearnRun:
    order = UnlearnOrder(MODEL, requests=requests, method="fine_tune", device="cpu")
    return UnlearnRun(order, site.home, site.records, "test")


def approved(site: Site, kind: Any, target: str, **more: Any) -> str:
    forget_set = site.records.forget_set
    request, _ = forget_set.mark(kind, target, "consent_withdrawn", actor="test", **more)
    return site.records.forget_set.approve(request.request_id, actor="test").request_id


def taken(run: UnlearnRun, cases: Sequence[Case]) -> Sequence[Case]:
    """What is forgotten."""
    sets = run.prepare(cases).sets
    assert sets is not None
    return sets.forget


def go_on(site: Site) -> None:
    """Ask whether a training may go on from what is served."""
    served = site.registry.active()
    assert served is not None
    refuse_hidden(site.records, site.registry, served, "Train again.")


def planned(run: UnlearnRun, site: Site, cases: Sequence[Case]) -> dict[str, str]:
    found = plan_of(run.prepare(cases), site.records, run.order, ())
    return {r["id"]: r["what"] for r in found.requests}


def test_a_mark_on_the_new_number_unlearns_what_was_trained_on_under_the_old(site: Site) -> None:
    cases = now(site, site.forget[:1])
    request = approved(site, "patient", NEW)
    assert planned(run_of(site), site, cases) == {request: "is unlearned"}
    assert site.records.forget_set.get(request).studies == (site.forget[0].study,)
    result = run_of(site, request).execute(cases)
    assert result["requests"][request]["state"] == "fulfilled"
    assert site.records.without_forgotten(site.forget) == site.forget[1:]


def test_a_study_without_its_label_is_not_called_never_trained_on(site: Site) -> None:
    """The archive lists it under the new number; nobody can measure what is known of it."""
    gone = site.forget[0]
    request = approved(site, "patient", NEW, studies=[gone.study])
    cases = [c for c in site.cases if c is not gone]
    with pytest.raises(LabelError, match="no labelled image"):
        run_of(site, request).execute(cases)
    assert site.records.forget_set.get(request).state == "approved"


def test_a_study_that_no_training_used_stays_out_under_another_number(site: Site) -> None:
    unused = site.unseen[0]
    request = approved(site, "patient", unused.person, studies=[unused.study])
    cases = now(site, [unused])
    assert unused.series not in {c.series for c in site.records.without_forgotten(cases)}
    assert planned(run_of(site), site, cases) == {
        request: "no version was taught it: fulfilled at once"
    }
    run_of(site, request).execute(cases)
    assert unused.series not in {c.series for c in site.records.without_forgotten(cases)}


def test_a_study_that_comes_after_the_unlearning_has_to_be_unlearned_too(site: Site) -> None:
    """The model still knows it, under another number: nothing may say that it is gone."""
    request = approved(site, "patient", site.forget[0].person)
    run_of(site, request).execute(site.cases)
    merged = site.forget[1]
    site.records.forget_set.keep_studies(request, [merged.study])
    undo = Undo(site.home, site.records, MODEL, "test")
    with pytest.raises(ConflictError, match="was taught by what is to be purged"):
        undo.purge(request)
    with pytest.raises(ConflictError, match="was taught what forget request"):
        go_on(site)
    single = approved(site, "study", merged.study)
    cases = [replace(c, person=site.forget[0].person) if c is merged else c for c in site.cases]
    assert run_of(site, single).execute(cases)["requests"][single]["state"] == "fulfilled"
    go_on(site)
    assert undo.purge(request)["destroyed"]


def test_a_number_whose_issuer_is_in_doubt_is_not_called_never_trained_on(untrained: Site) -> None:
    """It was trained on as another issuer's, so it is not kept; now its header names no issuer."""
    site, cases = untrained, now(untrained, untrained.forget[:1])
    known = replace(cases[0], person=f"{NEW}^^^South")
    site.publish(1, [known, site.forget[1], *site.retain])
    renamed = approved(site, "patient", f"{NEW}^^^North")
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
        study: "older versions that know it are sealed",
        renamed: "no version was taught it: fulfilled at once",
    }
    assert run_of(site).execute(cases)["requests"][study]["state"] == "fulfilled"


def test_a_number_that_was_trained_on_and_took_over_another(site: Site) -> None:
    """It is known for its own study; that it has another one now must not be passed over."""
    other, own = site.forget
    request = approved(site, "patient", own.person)
    assert {c.series for c in taken(run_of(site, request), site.cases)} == {own.series}
    cases = [replace(c, person=own.person) if c is other else c for c in site.cases]
    assert {c.series for c in taken(run_of(site, request), cases)} == {own.series, other.series}


def test_a_person_whose_files_were_trained_on_and_took_over_another(files: Site) -> None:
    other, own = files.forget
    request = approved(files, "patient", own.person)
    cases = [replace(c, person=own.person) if c is other else c for c in files.cases]
    with pytest.raises(InvalidInputError, match="another PatientID"):
        run_of(files, request).prepare(cases)
    assert planned(run_of(files, request), files, files.cases) == {request: "is unlearned"}


def test_a_changed_number_does_not_stop_the_unlearning_of_others(site: Site) -> None:
    cases = now(site, [site.retain[0], site.unseen[0]])
    request = approved(site, "patient", site.forget[0].person)
    sets = run_of(site, request).prepare(cases).sets
    assert sets is not None
    assert site.retain[0].series in {c.series for c in sets.retain}
    unseen = {c.series for c in [*sets.calibration, *sets.test]}
    assert unseen == {c.series for c in site.unseen[1:]}  # who was trained on is nobody unseen
    assert any("2 images stand under another PatientID" in note for note in sets.notes)
