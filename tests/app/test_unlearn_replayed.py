"""What a generator brings into an unlearning: the people who shaped it, and its grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import memorising_task as task
from audit_home import MODEL, Site, write_people
from command_line import segunlearn
from segunlearn.app.replay_run import ReplayRun
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_plan import plan_of
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError
from segunlearn.records.versions import VersionInfo
from segunlearn.replay.training import GeneratorSettings
from unlearn_site import PERSON, known_site, let_it_pass


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


def run_of(site: Site, *requests: str, **order: Any) -> UnlearnRun:
    order = {"method": "fine_tune", "device": "cpu", **order}
    return UnlearnRun(UnlearnOrder(MODEL, requests, **order), site.home, site.records, "test")


def told(run: UnlearnRun, cases: list[Case]) -> dict[str, str]:
    plan = plan_of(run.prepare(cases), run.records, run.order, ())
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


def trained_on(site: Site, cases: Sequence[Case]) -> VersionInfo:
    """A generator of some people, made in a moment."""
    base, settings = site.registry.active(), GeneratorSettings(steps=1, batch_size=2)
    assert base is not None
    run = ReplayRun(
        base, MODEL, site.home, site.records, device="cpu", settings=settings, shape={"latent": 8}
    )
    return run.execute(lambda: cases)


def test_too_few_people_outside_the_generator_are_told_before_any_work(site: Site) -> None:
    """Whoever shaped the generator is seen by what it teaches: the audit would refuse it."""
    site.mark(site.forget[:1])
    trained_on(site, [*site.retain, *site.unseen[2:]])
    run = run_of(site, retain="replay")
    with pytest.raises(InvalidInputError, match=r"2 labelled people .* generator that is to be"):
        run.prepare(site.cases)
    assert run_of(site).prepare(site.cases).sets is not None
    trained_on(site, [*site.retain, *site.unseen[3:]])
    sets = run.prepare(site.cases).sets
    assert sets is not None
    assert {c.series for c in [*sets.calibration, *sets.test]} == {
        c.series for c in site.unseen[:3]
    }


def test_generator_of_another_grid_is_refused_before_any_work(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training again may choose another spacing at the same number of voxels."""
    site.mark(site.forget[:1])
    trained_on(site, site.retain)
    config = dataclasses.replace(task.CONFIG, spacing=(2.0, 1.0, 1.0))
    site.publish(9, [*site.forget, *site.retain], config=config)
    with pytest.raises(InvalidInputError, match="spacing"):
        run_of(site, retain="replay").prepare(site.cases)
    tags = tmp_path / "tags.csv"
    lines = [f"{c.series},{'no' if i else 'yes'}" for i, c in enumerate(site.retain)]
    tags.write_text("\n".join(["image,feature", *lines]))
    words = ("--data", site.cases[0].image.parents[1], "--person-regex", PERSON)
    words = (*words, "--home", site.home.root, "--model", MODEL)
    for command in (("page", tmp_path / "page.html"), ("forget-feature", "--tags", tags)):
        assert segunlearn(monkeypatch, "replay", *command, *words) == 2
        assert "spacing" in capsys.readouterr().err
