"""A training from its record to the published version: what stands where, whatever happens."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segunlearn.app import watched_run
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.training_run import TrainingRun
from segunlearn.cases import Case
from segunlearn.errors import (
    CancelledError,
    ConflictError,
    InvalidInputError,
    SegUnlearnError,
    UnavailableError,
)
from segunlearn.networks import ModelConfig
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger, LedgerEntry
from segunlearn.records.runs import Progress, Runs
from segunlearn.records.versions import VersionRegistry
from segunlearn.training import TrainSettings
from tiny_training import QUICK, model_config, write_cases

CONFIG = model_config()
TWO = replace(QUICK, epochs=2)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return write_cases(tmp_path_factory.mktemp("data"), 4)


@pytest.fixture(autouse=True)
def _look_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_run, "WATCH_SECONDS", 0.0)


class Site:
    """A home with a store, and its trainings."""

    def __init__(self, root: Path, cases: Sequence[Case]) -> None:
        self.home, self.cases = Home(root), list(cases)
        self.records = Records(self.home)
        self.runs: list[TrainingRun] = []

    def run(
        self,
        settings: TrainSettings = TWO,
        during: Callable[[TrainingRun, Progress], None] | None = None,
        *,
        from_active: bool = False,
        chosen: Callable[[], Sequence[Case]] | None = None,
    ) -> TrainingRun:
        active = VersionRegistry(self.home.model("tiny")).active() if from_active else None
        run = TrainingRun("tiny", self.home, self.records, settings, parent=active)
        self.runs.append(run)
        if during is not None:
            run.on_progress = lambda progress: during(run, progress)

        def select(_: TrainingRun) -> tuple[Sequence[Case], ModelConfig]:
            return (chosen or (lambda: self.records.without_forgotten(self.cases)))(), CONFIG

        run.execute(select)
        return run

    @property
    def last(self) -> TrainingRun:
        return self.runs[-1]

    def state(self) -> str:
        return self.records.runs.get(self.last.run_id).state

    def versions(self) -> list[str]:
        return [v.version for v in VersionRegistry(self.home.model("tiny")).versions()]

    def folders(self) -> list[str]:
        return [p.name for p in self.home.runs.iterdir()] if self.home.runs.is_dir() else []


@pytest.fixture
def site(tmp_path: Path, cases: list[Case]) -> Site:
    return Site(tmp_path, cases)


def in_training(act: Callable[[TrainingRun], None]) -> Callable[[TrainingRun, Progress], None]:
    done: list[bool] = []

    def during(run: TrainingRun, progress: Progress) -> None:
        if progress.phase == "train" and not done:
            done.append(True)
            act(run)

    return during


def test_a_training_is_recorded_published_and_tidied_up(site: Site, cases: list[Case]) -> None:
    run = site.run()
    active = VersionRegistry(site.home.model("tiny")).active()
    assert active is not None
    assert site.state() == "done"
    row = site.records.ledger.row(run.run_id)
    assert (row.outcome, row.version_sha256, row.seed) == ("done", active.sha256, 0)
    used = site.records.ledger.cases_of(run.run_id)
    assert {c.series for c in used} == {c.series for c in cases}
    assert all(len(c.image_digest) == len(c.label_digest) == 64 for c in used)
    assert row.parameters["settings"]["epochs"] == 2
    assert site.records.ledger.verify() == []
    assert site.folders() == []  # checkpoints hold weights
    progress = site.records.runs.get(run.run_id).progress
    assert progress is not None
    assert progress.phase == "publish"
    assert progress.metrics["loss"] > 0


def test_the_next_version_knows_its_parent(site: Site) -> None:
    first = site.run()
    second = site.run(from_active=True)
    rows = [site.records.ledger.row(r.run_id) for r in (first, second)]
    assert rows[1].parent_sha256 == rows[0].version_sha256
    assert site.versions() == ["v0001", "v0002"]


def test_a_parent_that_was_changed_is_not_used(site: Site) -> None:
    site.run()
    weights = VersionRegistry(site.home.model("tiny")).get("v0001").weights
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(SegUnlearnError, match="SHA-256"):
        site.run(from_active=True)
    assert site.state() == "failed"


def test_what_was_marked_before_is_left_out(site: Site) -> None:
    site.records.forget_set.mark("series", "p001_0", "consent_withdrawn", actor="dpo", opaque=True)
    run = site.run()
    used = {c.series for c in site.records.ledger.cases_of(run.run_id)}
    assert used == {"p000_0", "p002_0", "p003_0"}


def test_a_marked_structure_is_left_out_of_the_labels(site: Site) -> None:
    """Of this model or of all; the ledger says so, and a later withdrawal brings it back."""
    mark = site.records.forget_set.mark
    mark("structure", "ball", "wrong_label", actor="dpo", model="another")
    mark("structure", "cube", "wrong_label", actor="dpo")
    run = site.run()
    assert site.records.ledger.row(run.run_id).parameters["settings"]["without"] == ["cube"]
    (request,) = [r for r in site.records.forget_set.list() if r.target.id == "cube"]
    site.records.forget_set.withdraw(request.request_id, actor="dpo", why="a mistake")
    again = site.run()
    assert site.records.ledger.row(again.run_id).parameters["settings"]["without"] == []


def test_a_structure_marked_meanwhile_is_never_published(site: Site) -> None:
    def mark(_: TrainingRun) -> None:
        site.records.forget_set.mark("structure", "cube", "wrong_label", actor="dpo")

    with pytest.raises(ConflictError, match="cube was marked for forgetting while"):
        site.run(during=in_training(mark))
    assert site.versions() == []
    assert site.folders() == []


def test_what_is_marked_meanwhile_is_never_published(site: Site) -> None:
    def mark(_run: TrainingRun) -> None:
        # another process: its own connection
        Records(site.home).forget_set.mark(
            "series", "p001_0", "consent_withdrawn", actor="dpo", opaque=True
        )

    with pytest.raises(ConflictError, match="1 of the cases were marked"):
        site.run(during=in_training(mark))
    assert site.versions() == []
    assert site.state() == "refused"
    assert site.records.ledger.row(site.last.run_id).outcome == "refused"
    assert site.records.ledger.row(site.last.run_id).version_sha256 is None
    assert site.folders() == []
    site.run()
    assert site.versions() == ["v0001"]
    assert site.records.ledger.verify() == []


def test_a_mark_after_the_last_question_is_as_one_after_the_training(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No version escapes it: the run goes on until its row, and from then on the row tells."""
    append, refused = Ledger.append, []

    def late(ledger: Ledger, entry: LedgerEntry) -> str:
        forget_set = Records(site.home).forget_set
        request, _ = forget_set.mark(
            "series", "p001_0", "consent_withdrawn", actor="dpo", opaque=True
        )
        forget_set.approve(request.request_id, actor="dpo")
        for check in (
            lambda: forget_set.transition(request.request_id, "fulfilled", actor="dpo"),
            lambda: forget_set.check_no_older_run(request.request_id),
        ):
            with pytest.raises(ConflictError, match="began before the mark"):
                check()
            refused.append(request.request_id)
        return append(ledger, entry)

    monkeypatch.setattr(Ledger, "append", late)
    site.run()
    (version,) = VersionRegistry(site.home.model("tiny")).versions()
    with pytest.raises(ConflictError, match="a recorded run used it"):
        site.records.forget_set.transition(refused[0], "fulfilled", actor="dpo")
    saw = site.records.ledger.versions_that_saw(series="p001_0")
    assert [s.version_sha256 for s in saw] == [version.sha256]


def hidden(site: Site, person: str = "p001") -> str:
    """Say that what is served only hides a person."""
    forget_set = site.records.forget_set
    request, _ = forget_set.mark("patient", person, "wrong_label", actor="dpo")
    for state in ("approved", "working"):
        forget_set.transition(request.request_id, state, actor="dpo")
    forget_set.transition(request.request_id, "fulfilled", actor="dpo", reached="hidden")
    return request.request_id


def test_no_training_goes_on_from_what_only_hides_a_study(site: Site) -> None:
    """Thirty steps on other people bring it back, and no audit would look."""
    site.run()
    request = hidden(site)
    prepared: list[Progress] = []
    with pytest.raises(ConflictError, match=f"{request}.*'pretrained' off"):
        site.run(from_active=True, during=lambda _, progress: prepared.append(progress))
    assert not prepared  # before any work
    assert (site.state(), site.versions()) == ("refused", ["v0001"])
    site.run()  # from random weights
    assert site.versions() == ["v0001", "v0002"]
    site.run(from_active=True)
    assert site.versions() == ["v0001", "v0002", "v0003"]


def test_nor_is_it_published_when_the_study_was_hidden_meanwhile(site: Site) -> None:
    site.run()
    rest = [case for case in site.cases if case.person != "p001"]
    with pytest.raises(ConflictError, match="at most hides"):
        site.run(
            from_active=True, during=in_training(lambda _: str(hidden(site))), chosen=lambda: rest
        )
    assert (site.state(), site.versions(), site.folders()) == ("refused", ["v0001"], [])


def test_a_cancelled_run_stands_in_the_ledger_and_is_resumed(site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path / "other", site.cases)
    other.run(QUICK)

    def cancel(run: TrainingRun, progress: Progress) -> None:
        if run.folder.joinpath("checkpoint.json").exists() and progress.phase == "train":
            site.records.runs.cancel(run.run_id)

    with pytest.raises(CancelledError):
        site.run(QUICK, during=cancel)
    assert site.state() == "cancelled"
    first = site.last.run_id
    row = site.records.ledger.row(first)
    assert (row.outcome, row.version_sha256) == ("cancelled", None)
    assert len(site.records.ledger.cases_of(first)) == 4
    assert site.folders() == [first]
    epochs: list[float] = []
    site.run(QUICK, during=lambda _, p: epochs.append(p.metrics.get("epoch", 0.0)))
    assert min(e for e in epochs if e) > 1  # the first epoch was not trained again
    assert site.folders() == []
    digests = [VersionRegistry(s.home.model("tiny")).get("v0001").sha256 for s in (site, other)]
    assert digests[0] == digests[1]


def stopped(site: Site) -> Path:
    """Stop a training after its first checkpoint; gives the run's folder."""

    def cancel(run: TrainingRun, progress: Progress) -> None:
        if run.folder.joinpath("checkpoint.json").exists() and progress.phase == "train":
            site.records.runs.cancel(run.run_id)

    with pytest.raises(CancelledError):
        site.run(QUICK, during=cancel)
    return site.last.folder


def test_the_checkpoint_of_a_stopped_run_goes_when_its_study_is_marked(site: Site) -> None:
    folder = stopped(site)
    assert folder.joinpath("checkpoint.json").exists()
    forget_set = site.records.forget_set
    request, _ = forget_set.mark("study", "p001_0", "quality", actor="dpo", opaque=True)
    assert not folder.exists()
    # not even when the mark was a mistake: then it is trained from the start
    forget_set.withdraw(request.request_id, actor="dpo")
    epochs: list[float] = []
    site.run(QUICK, during=lambda _, p: epochs.append(p.metrics.get("epoch", 0.0)))
    assert min(e for e in epochs if e) == 1
    assert len(site.records.ledger.cases_of(site.last.run_id)) == 4


def test_nor_does_the_next_training_use_what_a_mark_did_not_meet(site: Site) -> None:
    folder = stopped(site)
    # as when the mark was made on another machine, on a shared store
    ForgetSet(site.records.store).mark("study", "p001_0", "quality", actor="dpo", opaque=True)
    assert folder.exists()

    found: list[bool] = []

    def look(run: TrainingRun, progress: Progress) -> None:
        if progress.phase == "prepare":
            places = (folder, run.folder)
            found.append(any(list(place.glob("*.safetensors")) for place in places))

    site.run(during=look)
    assert found
    assert not any(found)
    assert len(site.records.ledger.cases_of(site.last.run_id)) == 3


def test_a_run_stopped_after_the_mark_leaves_no_checkpoint(site: Site) -> None:
    def mark_and_stop(run: TrainingRun, progress: Progress) -> None:
        if run.folder.joinpath("checkpoint.json").exists() and progress.phase == "train":
            site.records.forget_set.mark("series", "p001_0", "quality", actor="dpo", opaque=True)
            site.records.runs.cancel(run.run_id)

    with pytest.raises(CancelledError):
        site.run(QUICK, during=mark_and_stop)
    assert site.state() == "cancelled"
    assert site.folders() == []


def test_a_training_that_gives_the_retired_weights_again_is_refused(site: Site) -> None:
    registry = VersionRegistry(site.home.model("tiny"))
    site.run()
    site.run(replace(TWO, seed=1))
    registry.retire("v0001")
    with pytest.raises(ConflictError, match=r"v0001.*retired"):
        site.run()
    assert site.versions() == ["v0001", "v0002"]
    assert site.state() == "refused"
    row = site.records.ledger.row(site.last.run_id)
    assert (row.outcome, row.version_sha256) == ("refused", None)
    assert site.folders() == []


def test_a_failed_run_says_why(site: Site) -> None:
    hot = replace(TWO, learning_rate=1e30, warmup=0.0, gradient_clip=1e30)
    with pytest.raises(SegUnlearnError, match="diverged"):
        site.run(hot)
    assert site.state() == "failed"
    assert "diverged" in site.records.runs.get(site.last.run_id).message
    assert site.records.ledger.row(site.last.run_id).outcome == "failed"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidInputError("no labels."), "no labels."),
        (RuntimeError("a bug"), "a bug"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full. Nothing that is"),
    ],
)
def test_a_run_that_finds_no_cases_is_recorded_too(site: Site, error: Exception, told: str) -> None:
    def chosen() -> Sequence[Case]:
        raise error

    with pytest.raises(type(error)):
        site.run(chosen=chosen)
    assert site.state() == "failed"
    assert site.records.ledger.row(site.last.run_id).outcome == "failed"
    assert told in site.records.runs.get(site.last.run_id).message
    assert site.records.ledger.verify() == []


def test_a_ledger_that_refuses_leaves_no_run_as_running(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object, *_: object) -> None:
        raise UnavailableError("the store is away.")

    monkeypatch.setattr(Ledger, "append", refuse)
    with pytest.raises(UnavailableError):
        site.run()
    assert site.state() == "failed"
    assert site.versions() == []  # never served without a row


def test_progress_that_cannot_be_stored_does_not_end_a_training(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object, *_: object) -> None:
        raise UnavailableError("the store is busy.")

    monkeypatch.setattr(Runs, "update", refuse)
    monkeypatch.setattr(Runs, "cancelled", refuse)
    site.run()
    assert site.versions() == ["v0001"]


def test_an_orphan_stops_and_can_be_resumed(site: Site) -> None:
    run = TrainingRun("tiny", site.home, site.records, TWO, orphan=lambda: True)
    with pytest.raises(CancelledError):
        run.execute(lambda _: (site.cases, CONFIG))
    # only when its process is gone does it count as interrupted
    assert site.records.runs.get(run.run_id).state == "running"


def test_folders_of_older_runs_are_removed(site: Site) -> None:
    hot = replace(TWO, learning_rate=1e30, warmup=0.0, gradient_clip=1e30)
    for seed in (0, 1):
        with pytest.raises(SegUnlearnError):
            site.run(replace(hot, seed=seed))
    assert len(site.folders()) == 1
    site.run()
    assert site.folders() == []


CHILD = """
import sys
import torch; torch.set_num_threads(1)
from pathlib import Path
from dataclasses import replace
from tiny_training import QUICK, model_config
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.training_run import TrainingRun
from segunlearn.cases import People, cases_from_folder
cases = cases_from_folder(Path(sys.argv[1]), People(regex='^(p...)'), modality='MR')
home = Home(Path(sys.argv[2]))
run = TrainingRun('tiny', home, Records(home), replace(QUICK, epochs=6))
run.on_progress = lambda p: print(p.phase, p.step, flush=True)
run.execute(lambda _: (cases, model_config()))
"""


def test_killed_at_random_moments_it_is_finished_by_the_next(site: Site, tmp_path: Path) -> None:
    home = Home(tmp_path / "killed")
    data = site.cases[0].image.parents[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", CHILD, str(data), str(home.root)]
    rng = np.random.default_rng(11)
    for awaited in ("prepare", "train", "publish 0"):
        child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(awaited):
                break
        time.sleep(float(rng.uniform(0, 0.05)))
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        child.stdout.close()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment, timeout=100)
    records = Records(home)
    states = [r.state for r in records.runs.list(10, kind="train")]
    assert states[0] == "done"
    assert set(states[1:]) <= {"interrupted", "done"}
    assert "interrupted" in states
    active = VersionRegistry(home.model("tiny")).active()
    assert active is not None
    assert records.ledger.verify() == []
    saw = {c.series for c in records.ledger.lineage_cases(active.sha256)}
    assert saw == {c.series for c in site.cases}
    assert list(home.runs.iterdir()) == []
    site.run(replace(QUICK, epochs=6))
    whole = VersionRegistry(site.home.model("tiny")).active()
    assert whole is not None
    assert whole.sha256 == active.sha256
