"""A few kills at random moments; ``tests/benchmarks/kills.py`` does two hundred, of every kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from audit_home import MODEL, site_in
from kill_storm import KillStorm
from segunlearn.adapters import deposit
from segunlearn.app.home_tidy import tidy
from segunlearn.app.options import Home
from segunlearn.app.unlearn_settle import settle
from segunlearn.app.unlearn_undo import Undo
from segunlearn.records.durable import write_durably
from segunlearn.volumes import Volume, write_volume
from unlearn_storm import unlearn_quickly


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    kinds = frozenset({"train", "publish", "adapt", "unlearn", "restore", "purge", "backup"})
    storm = KillStorm(tmp_path, kills=8, kinds=kinds)
    storm.run()
    assert storm.seen["kills"] == 8
    assert storm.marks > 20


@pytest.mark.parametrize("fault", ["a mark", "the weights", "the ledger", "an orphan"])
def test_the_check_can_fail(tmp_path: Path, fault: str) -> None:
    storm = KillStorm(tmp_path, kills=1)
    site = storm.learning
    storm.check(site, "before")
    active = site.registry.active()
    assert active is not None
    if fault == "a mark":
        (tmp_path / "learning" / "marked").write_text(f"{site.home.root.name}/{'0' * 32}\n")
    elif fault == "the weights":
        active.weights.write_bytes(b"half of them")
    elif fault == "the ledger":
        (site.home.root / "ledger.head").write_text("{}")
    else:
        (site.home.runs / "left").mkdir(parents=True)
        (site.home.runs / "left" / "model").write_bytes(bytes(1 << 24))
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one depends on the fault
        storm.check(site, fault)


class Killed(BaseException):
    """No handler of ours catches it."""


def test_a_purge_that_died_while_it_removed_the_old_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deposit has lost its name by then: whoever settles the purge removes the rest of it."""
    site = site_in(tmp_path, forget=1, retain=2, unseen=6)
    site.publish(1, [*site.forget, *site.retain])
    (request,) = site.mark(site.forget)
    unlearn_quickly(site, request)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patches:
        patches.setattr(deposit.shutil, "rmtree", die)
        with pytest.raises(Killed):
            Undo(site.home, site.records, MODEL, "test").purge(request)
    assert list(site.home.deposits.rglob("*.sealed"))
    settle(site.home, site.records)
    assert site.records.forget_set.get(request).state == "purged"
    assert [p.name for p in site.home.deposits.rglob("*") if p.is_file()] == [".lock"]


def test_what_was_left_is_removed_before_a_server_begins(tmp_path: Path) -> None:
    """Uploads of patients above all; checkpoints and versions stay."""
    site = site_in(tmp_path, forget=1, retain=1, unseen=1)
    version = site.publish(1, site.retain)
    home = Home(site.home.root)
    kept = [version.weights, home.runs / "r" / "checkpoint.safetensors", home.labels / "a.nii.gz"]
    left = [
        home.scratch() / "upload-x.nii.gz",
        home.scratch() / "session-x" / "00000.dcm",
        home.model(MODEL) / "versions" / ".staging-x" / "weights.safetensors",
        home.model(MODEL) / ".active.0123.part",
        home.sites / MODEL / "0123456789abcdef" / ".staging-x" / "adapter.safetensors",
        home.replay / MODEL / "versions" / ".staging-x" / "weights.safetensors",
        home.replay / MODEL / "versions" / "v0001" / ".report.html.0123.part",
        home.cache / "images" / ".1.2.3.part.nii.gz",
        home.labels / "original" / ".1.2.3.0123.part.nii.gz",
        home.labels / "of-folder" / "final" / ".a.0123.part.nii.gz",
        home.root / "images" / ".a.0123.part.nrrd",
        home.root / ".ledger.head.0123.part",
        home.root / ".trail.head.0123.part",
    ]
    for path in [*kept[1:], *left]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"pixels")
    assert tidy(home) == 8 * len(b"pixels")
    assert all(p.exists() for p in kept)
    assert not any(p.exists() for p in left)
    assert tidy(home) == 0
    assert tidy(Home(tmp_path / "nowhere")) == 0
    assert not (tmp_path / "nowhere").exists()


def test_what_is_being_written_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that starts while a command trains must not take a checkpoint from under it."""
    home, written = Home(tmp_path), tmp_path / "runs" / "r" / "state-000001.safetensors"
    flush, begun = os.fsync, []

    def begin_a_server(descriptor: int) -> None:
        if not begun:
            begun.append(tidy(home))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", begin_a_server)
    write_durably(written, b"weights")
    assert begun == [0]
    assert written.read_bytes() == b"weights"
    assert [p.name for p in written.parent.iterdir()] == [written.name]


def test_a_series_that_a_command_converts_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, written = Home(tmp_path), Home(tmp_path).cache / "images" / "1.2.3.nii.gz"
    save, begun = nib.save, []

    def begin_a_server(image: Any, part: Path) -> None:
        save(image, part)
        begun.append(tidy(home))

    monkeypatch.setattr(nib, "save", begin_a_server)
    write_volume(Volume(np.zeros((3, 4, 5), np.int16), np.eye(4)), written)
    assert begun == [0]
    assert [p.name for p in written.parent.iterdir()] == [written.name]
