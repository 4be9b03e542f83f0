"""Of each study only the newest audit of a version counts, and a request reaches what it showed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app.audit_files import ATTESTATION, Audits
from segunlearn.app.audit_order import Order
from segunlearn.app.audit_run import AuditRun
from segunlearn.app.unlearn_choice import choose_unlearning
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_reach import versions_that_know
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.cases import Case
from segunlearn.records.versions import VersionInfo

QUICK = Order(MODEL, quick=True, device="cpu", attacks=("artefacts",))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """v0001 was trained on everybody but the unseen; v0002, which is served, was made from it."""
    site = site_in(tmp_path, forget=2, retain=4, unseen=5)
    before = site.publish(1, [*site.forget, *site.retain])
    site.publish(2, site.retain, parent=before, kind="unlearn")
    return site


def names_of(site: Site, cases: list[Case]) -> list[str]:
    return sorted(site.records.pseudonyms.of(c.series) for c in cases)


def found(site: Site, number: int, reached: str, about: list[Case], hour: int) -> None:
    """Sign an audit of the served version that found this, at that hour."""
    signed(site, f"{number:032x}", reached, about, f"2026-01-01T{hour:02d}:00:00+00:00")


def signed(site: Site, audit_id: str, reached: str, about: list[Case], created: str) -> Path:
    result = {
        "format": 1,
        "created": created,
        "about": {"audit_id": audit_id},
        "verdict": {"reached": reached},
        "digests": {"candidate": served(site).sha256},
        "figures": {"original": {"forget": [{"series": n} for n in names_of(site, about)]}},
    }
    others = ("findings", "void", "notes", "not_proved", "sets", "provenance")
    others += ("settings", "versions")
    return Audits(site.home).write(audit_id, dict.fromkeys(others) | result, "report")


def served(site: Site) -> VersionInfo:
    info = site.registry.active()
    assert info is not None
    return info


def clean(site: Site, about: list[Case]) -> bool:
    series = {c.series for c in about}
    known = versions_that_know(Audits(site.home), site.records, site.registry, series)
    return served(site).version not in {v.version for v in known}


def test_a_refusal_takes_an_earlier_pass_back(site: Site) -> None:
    found(site, 1, "none", site.forget, 12)
    found(site, 2, "unlearned", site.forget, 11)  # made before, whenever it was written
    assert not clean(site, site.forget)
    found(site, 3, "none", site.forget[:1], 14)
    found(site, 4, "unlearned", site.forget, 13)
    # the one at 14 says nothing of the second person
    assert clean(site, site.forget[1:])
    assert not clean(site, site.forget[:1])
    assert not clean(site, site.forget)


def test_two_audits_of_a_person_each_pass_for_both(site: Site) -> None:
    found(site, 1, "unlearned", site.forget[:1], 11)
    assert not clean(site, site.forget)
    found(site, 2, "unlearned", site.forget[1:], 12)
    assert clean(site, site.forget)


@pytest.mark.parametrize("damage", ["changed", "gone", "another's"])
def test_a_damaged_audit_found_nothing(site: Site, damage: str) -> None:
    """Before, it was passed over, and the pass that it had taken back counted again."""
    found(site, 1, "unlearned", site.forget, 11)
    about = {"candidate_sha256": served(site).sha256, "forget": names_of(site, site.forget[:1])}
    run_id = site.records.runs.start("audit", MODEL, about)
    site.records.runs.finish(run_id, "done", "verdict: refused, reached none")
    at = site.records.runs.get(run_id).updated
    attestation = signed(site, run_id, "none", site.forget[:1], at) / ATTESTATION
    assert not clean(site, site.forget[:1])
    if damage == "gone":
        attestation.unlink()
    elif damage == "another's":
        shutil.copytree(site.home.audits / f"{1:032x}", attestation.parent, dirs_exist_ok=True)
    else:
        attestation.write_bytes(attestation.read_bytes()[:-5])
    assert not clean(site, site.forget[:1])
    assert clean(site, site.forget[1:])
    (line,) = (s for s in Audits(site.home).summaries([run_id]))
    assert line.outcome == "damaged"
    assert (f"{1:032x}" if damage == "another's" else ATTESTATION) in line.message
    assert run_id in Audits(site.home).ids()
    signed(site, "f" * 32, "unlearned", site.forget[:1], "2999-01-01T00:00:00+00:00")
    assert clean(site, site.forget[:1])


def test_an_audit_speaks_for_what_its_version_could_have_seen(tmp_path: Path) -> None:
    """Before, a study of the person that only an older training used could never be purged."""
    site = site_in(tmp_path, forget=3, retain=4, unseen=5)
    one, *others = site.forget
    one, two, three = (one, *(replace(c, person=one.person) for c in others))
    site.publish(1, [one, three, *site.retain])
    again = site.publish(2, [one, two, *site.retain])
    site.publish(3, site.retain, parent=again, kind="unlearn")
    found(site, 1, "unlearned", [one, two], 11)
    assert clean(site, [one, two, three])
    (request,) = site.mark([one])
    forget_set = site.records.forget_set
    forget_set.transition(request, "working", actor="test")
    forget_set.transition(request, "fulfilled", actor="test", reached="unlearned")
    for version in ("v0001", "v0002"):
        site.registry.retire(version)
    undo = Undo(site.home, site.records, MODEL, "test")
    assert undo.would_purge(request)["destroyed"] == ["v0001", "v0002"]
    places = undo.purge(request)["places"]
    assert not [p for p in places if p["kind"] == "version"]


def test_what_was_refused_after_a_pass_knows_the_study_again(site: Site) -> None:
    series = {site.forget[0].series}
    found(site, 1, "unlearned", site.forget, 11)
    known = versions_that_know(Audits(site.home), site.records, site.registry, series)
    assert [v.version for v in known] == ["v0001"]
    found(site, 2, "hidden", site.forget, 12)
    known = versions_that_know(Audits(site.home), site.records, site.registry, series)
    assert [v.version for v in known] == ["v0001", "v0002"]


def test_a_refusing_audit_does_not_list_its_candidate_as_replaced(site: Site) -> None:
    site.mark(site.forget)
    found(site, 1, "unlearned", site.forget, 11)
    run = AuditRun(QUICK, site.home, site.records, "test")
    run.prepare(site.cases)
    result = run.execute()
    assert result["verdict"]["reached"] in ("none", "hidden")
    (place,) = (p for p in result["places"] if p["where"].endswith("versions/v0002"))
    assert place["state"] == "open"


def approved(site: Site, case: Case, needed: str) -> str:
    forget_set = site.records.forget_set
    request, _ = forget_set.mark("patient", case.person, "quality", actor="test", needed=needed)
    return forget_set.approve(request.request_id, actor="test").request_id


def test_a_request_reaches_what_was_measured_of_the_served_version(site: Site) -> None:
    """Before, every one that needed no work was said to be retrained."""
    found(site, 1, "unlearned", site.forget, 11)
    measured = approved(site, site.forget[0], "unlearned")
    more = approved(site, site.forget[1], "retrained")
    order = UnlearnOrder(MODEL, device="cpu")
    choice = choose_unlearning(order, site.home, site.records, site.registry, site.cases)
    assert [r.request_id for r in choice.elsewhere] == [measured]
    assert [r.request_id for r in choice.requests] == [more]
    assert [v.version for v in choice.know] == ["v0001", "v0002"]
    order = UnlearnOrder(MODEL, (measured,), device="cpu")
    done = UnlearnRun(order, site.home, site.records, "test").execute(site.cases)
    assert done["requests"] == {
        measured: {"state": "fulfilled", "needed": "unlearned", "reached": "unlearned"}
    }


def test_by_the_ledger_it_is_retrained(site: Site) -> None:
    """Also beside one that was only measured, and with one audit for both."""
    again = site.publish(3, site.retain[:2])
    site.publish(4, site.retain[1:], parent=again, kind="unlearn")
    found(site, 1, "unlearned", site.retain[:1], 11)
    exact = approved(site, site.forget[0], "retrained")
    measured = approved(site, site.retain[0], "unlearned")
    order = UnlearnOrder(MODEL, (exact, measured), device="cpu")
    done = UnlearnRun(order, site.home, site.records, "test").execute(site.cases)
    assert {k: v["reached"] for k, v in done["requests"].items()} == {
        exact: "retrained", measured: "unlearned",
    }  # fmt: skip
    assert {v["state"] for v in done["requests"].values()} == {"fulfilled"}
