"""Dice of forgotten, retained and unseen people in the progress of an unlearning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import memorising_task as task
from audit_home import MODEL, Site
from segunlearn.app import unlearn_watch
from segunlearn.app.unlearn_make import make
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_watch import LOOKS, SHARE, STUDIES, Watch
from segunlearn.cli.unlearn import _phase
from segunlearn.networks import build_network, load_weights
from segunlearn.records.runs import Progress
from segunlearn.unlearning import studies_of
from segunlearn.unlearning.loop import Steps, descend, mean_dice, watched
from unlearn_site import known_site
from unlearn_storm import passing_audit

NAMES = ["forget_dice", "retain_dice", "calibration_dice"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = known_site(tmp_path_factory.mktemp("watch"), retain=6, unseen=24)
    site.mark(site.forget)
    return site


def run_of(site: Site, **order: Any) -> UnlearnRun:
    return UnlearnRun(UnlearnOrder(MODEL, device="cpu", **order), site.home, site.records, "test")


class Clock:
    """Time that only passes when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("cost", "looks"), [(0.0, LOOKS), (1.0, 4), (99.0, 0)])
def test_looking_never_takes_more_than_its_share(
    site: Site, monkeypatch: pytest.MonkeyPatch, cost: float, looks: int
) -> None:
    """Of 100 steps of a second; what one look takes is known from the one before the work."""
    clock, asked = Clock(), []

    def slow(*_: Any) -> float:
        asked.append(clock.now)
        clock.now += cost / len(NAMES)
        return 0.5

    monkeypatch.setattr(unlearn_watch, "mean_dice", slow)
    choice = run_of(site).prepare(site.cases)
    assert choice.sets is not None
    found: list[Progress] = []
    watch = Watch(choice.sets, found.append, clock)
    network = build_network(task.CONFIG, 0)
    watch.look(network, "before")
    assert [(p.phase, p.step, list(p.metrics)) for p in found] == [
        ("before", 0, []), ("before", 1, NAMES),
    ]  # fmt: skip
    asked.clear()
    for step in range(1, 101):
        clock.now += 1.0
        assert list(watch(network, step, 100)) == NAMES
    assert len(asked) == looks * len(NAMES)
    if looks:
        assert (looks + 1) * cost <= SHARE * clock.now


def test_figures_are_those_of_the_network_on_the_way(site: Site) -> None:
    """By hand, of the very network that the report is about; and the descent stays the same."""
    choice = run_of(site).prepare(site.cases)
    assert choice.sets is not None
    watch = Watch(choice.sets, lambda _: None, Clock())
    people = studies_of(choice.sets.forget[:STUDIES], task.CONFIG)
    weights, reports = [], []
    for watching in (True, False):
        network = build_network(task.CONFIG, 3)
        start = mean_dice(network, people, task.CONFIG)

        def objective(_: int, network: torch.nn.Module = network) -> torch.Tensor:
            return sum((p**2).sum() for p in network.parameters())  # type: ignore[return-value]

        with watched(watch if watching else lambda *_: {}):
            watch._measure(network)
            assert watch._figures["forget_dice"] == pytest.approx(start)
            descend(network, objective, Steps(4, 0.05), report=reports.append)
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*weights)
    assert [sorted(p.metrics) for p in reports[:4]] == [sorted([*NAMES, "loss"])] * 4
    assert [list(p.metrics) for p in reports[4:]] == [["loss"]] * 4
    last = build_network(task.CONFIG, 3)
    torch.nn.utils.vector_to_parameters(weights[0], last.parameters())
    assert reports[3].metrics["forget_dice"] == pytest.approx(mean_dice(last, people, task.CONFIG))


@pytest.mark.parametrize("method", ["fine_tune", "erode_and_repair_lora", "retrain"])
def test_progress_shows_forget_retain_and_calibration(
    site: Site, tmp_path: Path, method: str
) -> None:
    settings = {"fine_tune": {"steps": 4}, "erode_and_repair_lora": {"epochs": 1, "inits": 1}}
    run = run_of(site, method=method, settings=settings.get(method, {}))
    choice = run.prepare(site.cases)
    assert choice.sets is not None
    found: list[Progress] = []
    made = make(method, run.order, choice.sets, site.records, tmp_path, found.append, lambda: False)
    first, last = found[1], found[-1]
    assert (first.phase, last.phase) == ("measure the original", "measure the candidate")
    assert list(first.metrics) == list(last.metrics) == NAMES
    people = studies_of(choice.sets.retain[:STUDIES], task.CONFIG)
    network = load_weights(made.weights, task.CONFIG, made.sha256)
    assert last.metrics["retain_dice"] == pytest.approx(mean_dice(network, people, task.CONFIG))
    if method != "retrain":
        steps = [p for p in found if "loss" in p.metrics]
        assert steps
        assert all(set(NAMES) <= set(p.metrics) for p in steps)


def test_the_store_has_figures_and_the_time_left(site: Site) -> None:
    run = run_of(site, method="fine_tune", settings={"steps": 5})
    told: list[Progress] = []
    run.on_progress = told.append
    with mock.patch.object(UnlearnRun, "_audited", passing_audit):
        run.execute(site.cases)
    steps = [p for p in told if "loss" in p.metrics]
    assert [p.eta_seconds is not None for p in steps] == [False, True, True, True, True]
    assert steps[-1].eta_seconds == 0.0
    events = site.records.runs.events(run.run_id)
    kept = [e.progress for e in events if e.progress is not None]
    assert any(set(NAMES) <= set(p.metrics) for p in kept)


def test_the_bar_shows_dice_before_all_else() -> None:
    progress = Progress("repair", 3, 9, {"loss": 0.3, "forget_dice": 0.91, "retain_dice": 0.875})
    assert _phase(progress) == "repair: Dice forget 0.91 retain 0.88"
    assert _phase(replace(progress, metrics={"loss": 0.25})) == "repair loss 0.25"
