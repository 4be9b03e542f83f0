"""What a plan says: from the ledger's own times, and honest about what an audit can show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app.unlearn_choice import choose_unlearning
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.unlearning.plan import Plan, Way, advise

ORDER = UnlearnOrder(MODEL)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = site_in(tmp_path, forget=4, retain=8, unseen=16)
    site.publish(1, [*site.forget, *site.retain])
    return site


def plan(site: Site, order: UnlearnOrder = ORDER) -> Plan:
    choice = choose_unlearning(order, site.home, site.records, site.registry, site.cases)
    return plan_of(choice, site.records, order, ())


def test_a_retraining_takes_its_share_of_what_the_training_took(site: Site) -> None:
    """The made-up training took an hour for twelve studies; eight are left."""
    site.mark(site.forget)
    found = plan(site)
    ways = {w.method: w for w in found.ways}
    assert ways["retrain"].seconds == pytest.approx(3600 * 8 / 12)
    assert (found.people, found.retained, found.original) == (4, 8, "v0001")
    seconds = ways["calibrated"].seconds
    assert seconds is not None
    assert 0 < seconds < 3600 * 40  # one epoch of twelve studies in an hour is a slow machine
    assert all(w.memory_bytes > 0 for w in found.ways)
    assert [w.level for w in found.ways][:3] == ["hidden", "unlearned", "retrained"]


def test_one_person_is_advised_a_retraining(site: Site) -> None:
    """No audit of one person can show the level 'unlearned'."""
    site.mark(site.forget[:1])
    found = plan(site)
    assert found.recommended == "retrain"
    assert "cannot show" in found.why
    assert any("advised: retrain" in line for line in found.lines())


def test_a_study_no_run_used_needs_nothing(site: Site) -> None:
    site.mark(site.unseen[:1])
    found = plan(site)
    assert (found.original, found.ways) == ("", ())
    assert "fulfilled at once" in found.lines()[0]


@pytest.mark.parametrize(
    ("needed", "again", "people", "wanted"),
    [
        ("unlearned", 600.0, 20, "retrain"),  # minutes: exact is better
        ("unlearned", 36000.0, 20, "erode_and_repair"),
        ("hidden", 36000.0, 1, "calibrated"),
        ("retrained", 36000.0, 20, "retrain"),
        ("unlearned", 36000.0, 3, "retrain"),
    ],
)
def test_advice(needed: str, again: float, people: int, wanted: str) -> None:
    way = Way("retrain", "retrained", again, 1, ("retain",), False, "")
    ways = [
        way,
        replace(way, method="erode_and_repair", level="unlearned", seconds=again / 5),
        replace(way, method="calibrated", level="hidden", seconds=again / 30),
    ]
    assert advise(needed, ways, people=people, least=4)[0] == wanted  # type: ignore[arg-type]
