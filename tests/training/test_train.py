"""Training: it learns, it repeats, it goes on where it was, and it never mixes people."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segunlearn.cases import Case, persons_of
from segunlearn.errors import (
    CancelledError,
    IntegrityError,
    InvalidInputError,
    LabelError,
    SegUnlearnError,
)
from segunlearn.inference import Segmenter
from segunlearn.networks import build_network, load_weights, read_tensors, save_weights
from segunlearn.records.runs import Progress
from segunlearn.training import TrainResult, TrainSettings, loop, parallel, split, train
from segunlearn.training.data import Batches, prepare
from segunlearn.volumes import Volume, read_volume, write_volume
from tiny_training import PLAIN, QUICK, arrays, model_config, write_cases

CONFIG = model_config()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return write_cases(tmp_path_factory.mktemp("data"), 6, per_person=2)


def weights_of(result: TrainResult) -> dict[str, torch.Tensor]:
    return read_tensors(result.weights, result.sha256)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(epoch: int) -> Callable[[], bool]:
    """Say stop at the first step after an epoch was done."""

    def asked() -> bool:
        state = sys._getframe(1).f_locals.get("state")  # of the loop that asks
        return state is not None and bool(state.epoch >= epoch)

    return asked


def test_two_cases_are_learnt_by_heart(cases: list[Case], tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=60, batch_size=4, samples_per_case=4, learning_rate=1e-2)
    result = train(cases[:2], CONFIG, settings, run_dir=tmp_path)
    segmenter = Segmenter(load_weights(result.weights, CONFIG, result.sha256), CONFIG, "cpu")
    for case in cases[:2]:
        assert case.label is not None
        truth = read_volume(case.label, label=True).array
        found = segmenter.predict(read_volume(case.image, modality="MR")).array
        for value in (1, 2):
            both = ((truth == value) & (found == value)).sum()
            assert 2 * both / ((truth == value).sum() + (found == value).sum()) > 0.95
    assert result.curve[-1]["loss"] < 0.1 * result.curve[0]["loss"]
    assert result.epochs_done == 60
    assert result.best_dice is None


def test_the_same_seed_gives_the_same_weights(cases: list[Case], tmp_path: Path) -> None:
    first, again, other = (
        train(cases, CONFIG, replace(QUICK, epochs=1, seed=seed), run_dir=tmp_path / str(i))
        for i, seed in enumerate((3, 3, 4))
    )
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_a_label_taken_out_is_background_in_the_label_maps(
    cases: list[Case], tmp_path: Path, cache_gib: float
) -> None:
    """The same weights as from files that never held it; the class stays."""
    rewritten = []
    for case in cases:
        assert case.label is not None
        label = read_volume(case.label, label=True)
        path = tmp_path / "labels" / case.label.name
        write_volume(replace(label, array=np.where(label.array == 2, 0, label.array)), path)
        rewritten.append(replace(case, label=path))
    settings = replace(QUICK, epochs=2, cache_gib=cache_gib, without=("cube",))
    first = train(cases, CONFIG, settings, run_dir=tmp_path / "a")
    again = train(rewritten, CONFIG, settings, run_dir=tmp_path / "b")
    assert equal(weights_of(first), weights_of(again))
    with pytest.raises(LabelError, match="no training case shows cube"):
        train(rewritten, CONFIG, replace(settings, without=()), run_dir=tmp_path / "c")


def test_a_structure_that_only_validation_shows_is_told(cases: list[Case], tmp_path: Path) -> None:
    """It would never be learned, and every figure of it would be of a network that guesses."""
    settings = replace(QUICK, val_fraction=0.34)
    train_cases, _ = split(cases, settings)
    trained, rewritten = {c.series for c in train_cases}, []
    for case in cases:
        label = read_volume(case.label, label=True)
        if case.series in trained:
            label = replace(label, array=np.where(label.array == 2, 0, label.array))
        path = tmp_path / f"{case.series}.nii.gz"
        write_volume(label, path)
        rewritten.append(replace(case, label=path))
    with pytest.raises(LabelError, match=r"no training case shows cube.*validate"):
        train(rewritten, CONFIG, settings, run_dir=tmp_path / "a")


@pytest.mark.parametrize(
    ("without", "says"),
    [(("ball", "cube"), "every structure"), (("moon",), "no structure 'moon'")],
)
def test_a_label_that_cannot_be_taken_out_is_named(
    cases: list[Case], tmp_path: Path, without: tuple[str, ...], says: str
) -> None:
    with pytest.raises(LabelError, match=says):
        train(cases, CONFIG, replace(QUICK, without=without), run_dir=tmp_path)


def test_order_of_the_cases_and_memory_do_not_matter(cases: list[Case], tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=1)
    first = train(cases, CONFIG, settings, run_dir=tmp_path / "a")
    mapped = replace(settings, cache_gib=0.0)
    again = train(cases[::-1], CONFIG, mapped, run_dir=tmp_path / "b")
    assert equal(weights_of(first), weights_of(again))
    assert not (tmp_path / "b" / "cache").exists()


@pytest.mark.parametrize("seed", range(8))
def test_no_person_is_in_both_sets(cases: list[Case], seed: int) -> None:
    train_cases, val_cases = split(cases, TrainSettings(seed=seed, val_fraction=0.4))
    assert not set(persons_of(train_cases)) & set(persons_of(val_cases))
    assert sorted(c.series for c in [*train_cases, *val_cases]) == [c.series for c in cases]
    assert val_cases


@pytest.mark.parametrize("fitted", range(1, 4))
def test_whom_the_weights_were_fitted_to_validates_nothing(cases: list[Case], fitted: int) -> None:
    persons = persons_of(cases)
    known = set(persons[:fitted])
    marked = [replace(c, fitted=c.person in known) for c in cases]
    settings = TrainSettings(seed=1, val_fraction=0.4)
    train_cases, val_cases = split(marked, settings)
    assert not known & set(persons_of(val_cases))
    assert sorted(c.series for c in [*train_cases, *val_cases]) == [c.series for c in cases]
    left, share = len(persons) - len(known), round(0.4 * len(persons))
    assert len(persons_of(val_cases)) == min(left, share)
    assert [c.series for c in train_cases] == sorted(c.series for c in train_cases)


def test_the_best_weights_by_validation_are_kept(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dices = iter([0.2, 0.7, 0.5, 0.6])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(self: loop.Trainer, _state: object) -> np.ndarray:
        seen.append({k: v.clone() for k, v in self.network.state_dict().items()})
        return np.full(2, next(dices))

    monkeypatch.setattr(loop.Trainer, "_validate", validate)
    settings = replace(QUICK, val_fraction=0.34, val_interval=1)
    result = train(cases, CONFIG, settings, run_dir=tmp_path)
    assert result.best_dice == 0.7
    assert equal(weights_of(result), seen[1])
    assert [r["val_dice"] for r in result.curve] == [0.2, 0.7, 0.5, 0.6]


def test_training_stops_early_without_progress(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Trainer, "_validate", lambda *_: np.full(2, 0.5))
    settings = replace(QUICK, epochs=50, val_fraction=0.34, val_interval=1, patience=2)
    result = train(cases, CONFIG, settings, run_dir=tmp_path)
    assert result.epochs_done == 3
    assert train(cases, CONFIG, settings, run_dir=tmp_path).sha256 == result.sha256


def test_validation_measures_dice_on_the_models_grid(cases: list[Case], tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=2, val_fraction=0.34, val_interval=2)
    result = train(cases, CONFIG, settings, run_dir=tmp_path)
    segmenter = Segmenter(load_weights(result.weights, CONFIG), CONFIG, "cpu")
    dice = np.zeros((len(result.val_cases), 2))
    for row, case in zip(dice, result.val_cases, strict=True):
        assert case.label is not None
        truth = read_volume(case.label, label=True).array
        found = segmenter.predict(read_volume(case.image, modality="MR")).array
        for i in range(2):
            a, b = truth == i + 1, found == i + 1
            row[i] = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert result.curve[1]["val_dice_per_label"] == pytest.approx(dice.mean(axis=0))
    assert result.best_dice == pytest.approx(dice.mean())
    assert "val_dice" not in result.curve[0]


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_validation_cases_without_structures_measure_nothing(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Trainer, "_validate", lambda *_: np.full(2, np.nan))
    settings = replace(QUICK, epochs=2, val_fraction=0.34, val_interval=1, patience=1)
    result = train(cases, CONFIG, settings, run_dir=tmp_path)
    assert result.best_dice is None
    assert result.epochs_done == 2
    assert result.curve[-1]["val_dice"] is None
    json.dumps(result.curve, allow_nan=False)


@pytest.mark.parametrize("validated", [False, True])
def test_a_stopped_run_goes_on_to_the_same_weights(
    cases: list[Case], tmp_path: Path, validated: bool
) -> None:
    settings = replace(QUICK, val_fraction=0.34 if validated else 0, val_interval=2)
    whole = train(cases, CONFIG, settings, run_dir=tmp_path / "whole")
    for epoch in (1, 3):
        with pytest.raises(CancelledError, match="start it again"):
            train(cases, CONFIG, settings, run_dir=tmp_path / "parts", cancel=stop_after(epoch))
    phases: list[Progress] = []
    resumed = train(cases, CONFIG, settings, run_dir=tmp_path / "parts", progress=phases.append)
    assert equal(weights_of(resumed), weights_of(whole))
    assert resumed.sha256 == whole.sha256
    assert resumed.best_dice == whole.best_dice
    assert [r["loss"] for r in resumed.curve] == [r["loss"] for r in whole.curve]
    first = next(p for p in phases if p.phase == "train")
    assert first.metrics["epoch"] > 1


def test_a_checkpoint_of_other_cases_is_discarded_at_once(
    cases: list[Case], tmp_path: Path
) -> None:
    with pytest.raises(CancelledError):
        train(cases, CONFIG, QUICK, run_dir=tmp_path, cancel=stop_after(2))
    assert list(tmp_path.glob("*.safetensors"))
    fewer = [c for c in cases if c.person != "p001"]
    with pytest.raises(CancelledError):  # stopped before its first epoch ends
        train(fewer, CONFIG, QUICK, run_dir=tmp_path, cancel=stop_after(0))
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "checkpoint.json").exists()
    assert not (tmp_path / "cache").exists()
    clean = train(fewer, CONFIG, QUICK, run_dir=tmp_path / "clean")
    assert equal(weights_of(train(fewer, CONFIG, QUICK, run_dir=tmp_path)), weights_of(clean))


def test_a_checkpoint_of_images_normalised_otherwise_is_discarded(
    cases: list[Case], tmp_path: Path
) -> None:
    """Stopped because the warning was right: these MR images were not CT."""
    as_ct = [replace(c, modality="CT") for c in cases]
    with pytest.raises(CancelledError):
        train(as_ct, CONFIG, QUICK, run_dir=tmp_path, cancel=stop_after(2))
    clean = train(cases, CONFIG, QUICK, run_dir=tmp_path / "clean")
    assert train(cases, CONFIG, QUICK, run_dir=tmp_path).sha256 == clean.sha256


def test_resume_can_be_declined(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        train(cases, CONFIG, QUICK, run_dir=tmp_path, cancel=stop_after(2))
    with pytest.raises(CancelledError):
        train(cases, CONFIG, QUICK, run_dir=tmp_path, cancel=stop_after(0), resume=False)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("damage", ["state", "best", "json"])
def test_a_damaged_checkpoint_is_not_used(cases: list[Case], tmp_path: Path, damage: str) -> None:
    settings = replace(QUICK, val_fraction=0.34, val_interval=1, epochs=2)
    whole = train(cases, CONFIG, settings, run_dir=tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    (tmp_path / ".state-000001.safetensors.0.part").write_bytes(b"of one that was killed")
    if damage == "json":
        (tmp_path / "checkpoint.json").write_text('{"fingerprint": ')
    else:
        (path,) = tmp_path.glob(f"{damage}-*.safetensors")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert train(cases, CONFIG, settings, run_dir=tmp_path).sha256 == whole.sha256
    assert not list(tmp_path.glob(".*.part"))


def test_parent_weights_are_the_start(cases: list[Case], tmp_path: Path) -> None:
    parent = tmp_path / "parent.safetensors"
    sha256 = save_weights(build_network(CONFIG, seed=99), parent)
    settings = replace(QUICK, epochs=1, learning_rate=1e-12, weight_decay=0.0)
    result = train(
        cases, CONFIG, settings, run_dir=tmp_path / "r", parent_weights=parent, parent_sha256=sha256
    )
    for name, tensor in read_tensors(parent).items():
        torch.testing.assert_close(weights_of(result)[name], tensor, atol=1e-9, rtol=0)
    with pytest.raises(IntegrityError):
        train(
            cases, CONFIG, settings, run_dir=tmp_path / "s", parent_weights=parent,
            parent_sha256="0" * 64,
        )  # fmt: skip


def test_a_loss_that_is_no_number_is_a_clear_error(cases: list[Case], tmp_path: Path) -> None:
    settings = replace(QUICK, learning_rate=1e30, warmup=0.0, gradient_clip=1e30)
    with pytest.raises(SegUnlearnError, match=r"diverged.*learning rate.*1e\+30"):
        train(cases, CONFIG, settings, run_dir=tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_weights_that_the_last_step_spoils_are_not_kept(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.Trainer._step

    def spoil(self: loop.Trainer, *values: object) -> torch.Tensor:
        loss = step(self, *values)  # type: ignore[arg-type]
        with torch.no_grad():
            next(self.network.parameters())[0] = torch.inf
        return loss

    monkeypatch.setattr(loop.Trainer, "_step", spoil)
    one_step = replace(QUICK, epochs=1, batch_size=12)
    with pytest.raises(SegUnlearnError, match=r"weights became infinite.*diverged"):
        train(cases, CONFIG, one_step, run_dir=tmp_path)


def test_progress_grows_and_ends(cases: list[Case], tmp_path: Path) -> None:
    seen: list[Progress] = []
    settings = replace(QUICK, val_fraction=0.34, val_interval=2)
    train(cases, CONFIG, settings, run_dir=tmp_path, progress=seen.append)
    steps = [p.step for p in seen if p.phase == "train"]
    total = next(p.total for p in seen if p.phase == "train")
    assert steps == sorted(steps)
    assert steps[-1] == total
    assert {p.phase for p in seen} == {"prepare", "train", "validate"}
    assert all(p.eta_seconds is not None and p.eta_seconds >= 0 for p in seen if p.phase == "train")


def test_what_cannot_be_trained_on_is_named(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no cases"):
        train([], CONFIG, QUICK, run_dir=tmp_path)
    with pytest.raises(InvalidInputError, match="given twice"):
        train([cases[0], cases[0]], CONFIG, QUICK, run_dir=tmp_path)
    with pytest.raises(LabelError, match="without a label"):
        train([replace(cases[0], label=None)], CONFIG, QUICK, run_dir=tmp_path)
    with pytest.raises(InvalidInputError, match="1 persons cannot be divided"):
        train(cases[:2], CONFIG, replace(QUICK, val_fraction=0.2), run_dir=tmp_path)
    more = replace(CONFIG, labels=("ball", "cube", "cone"))
    with pytest.raises(LabelError, match="no training case shows cone"):
        train(cases, more, QUICK, run_dir=tmp_path)
    fewer = replace(CONFIG, labels=("ball",))
    with pytest.raises(LabelError, match=r"p000_0.*values from 0 to 2"):
        train(cases, fewer, QUICK, run_dir=tmp_path)
    image, label = arrays(0)
    moved = Volume(label.array, label.affine + np.eye(4), "MR")
    write_volume(moved, tmp_path / "moved.nii.gz")
    with pytest.raises(InvalidInputError, match=r"p000_0.*same voxel grid"):
        train([replace(cases[0], label=tmp_path / "moved.nii.gz")], CONFIG, QUICK, run_dir=tmp_path)
    assert image.shape == label.shape


def test_batches_of_two_processes_are_the_batch_of_one(cases: list[Case], tmp_path: Path) -> None:
    ready = prepare(
        cases, CONFIG, cache_gib=1, folder=tmp_path, report=lambda *_: None, cancel=lambda: False
    )
    settings = replace(QUICK, batch_size=4, augmentation=replace(PLAIN, noise=1.0))
    batches = Batches(ready, CONFIG, settings)
    whole = batches.batch(1, 2)
    halves = [batches.batch(1, 2, rank, 2) for rank in (0, 1)]
    for i in (0, 1):
        woven = torch.stack([halves[0][i], halves[1][i]], dim=1).flatten(0, 1)
        assert torch.equal(woven, whole[i])
    drawn = [batches.batch(0, s)[0] for s in range(batches.steps)]
    assert sum(map(len, drawn)) == len(cases) * settings.samples_per_case


def test_two_processes_train_to_the_weights_of_one(cases: list[Case], tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=2, batch_size=4, val_fraction=0.34, val_interval=2)
    one = train(cases, CONFIG, settings, run_dir=tmp_path / "one")
    half = train(cases, CONFIG, replace(settings, batch_size=2), run_dir=tmp_path / "half")
    seen: list[Progress] = []
    two = train(
        cases,
        CONFIG,
        replace(settings, processes=2),
        run_dir=tmp_path / "two",
        progress=seen.append,
    )
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = [load_weights(r.weights, CONFIG)(image) for r in (one, two, half)]
    torch.testing.assert_close(logits[1], logits[0], atol=5e-3, rtol=0)
    assert float((logits[2] - logits[0]).abs().max()) > 0.05  # another batch is another training
    for name, tensor in weights_of(one).items():
        # a bias before a normalisation has no gradient but noise, which AdamW makes large
        if not name.endswith("conv.bias"):
            torch.testing.assert_close(weights_of(two)[name], tensor, atol=1e-3, rtol=0)
    losses = [[r["loss"] for r in result.curve] for result in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert two.best_dice == pytest.approx(one.best_dice, abs=0.02)
    assert [p.step for p in seen if p.phase == "train"][-1] == 4
    assert not list((tmp_path / "two").glob(".meeting*"))
    assert not (tmp_path / "two" / "cache").exists()


def test_two_processes_are_stopped(cases: list[Case], tmp_path: Path) -> None:
    settings = replace(QUICK, batch_size=4, processes=2, epochs=10_000)
    seen: list[Progress] = []
    with pytest.raises(CancelledError):
        train(
            cases, CONFIG, settings, run_dir=tmp_path, progress=seen.append,
            cancel=lambda: any(p.phase == "train" for p in seen),
        )  # fmt: skip
    assert multiprocessing.active_children() == []


def follow(*messages: tuple[object, ...]) -> list[Progress]:
    """Let the first process hear what one worker says before it ends."""
    ours, theirs = multiprocessing.Pipe()
    for message in messages:
        theirs.send(message)
    theirs.close()
    seen: list[Progress] = []
    with contextlib.closing(ours):
        workers = [(None, ours)]
        parallel._follow(workers, multiprocessing.Event(), seen.append, lambda: False)  # type: ignore[arg-type]
    return seen


def test_the_error_of_a_worker_is_the_error_of_the_training() -> None:
    with pytest.raises(LabelError, match="no label"):
        follow(("progress", Progress("train", 1, 2)), ("error", "LabelError", "no label there."))
    with pytest.raises(SegUnlearnError, match="boom"):
        follow(("error", "NoSuchError", "boom"))
    with pytest.raises(SegUnlearnError, match=r"process 0 .* ended without a word"):
        follow(("progress", Progress("train", 1, 2)))


@pytest.mark.parametrize(("batch", "processes"), [(3, 2), (4, 3), (1, 2)])
def test_a_batch_is_divided_evenly_or_refused(
    cases: list[Case], tmp_path: Path, batch: int, processes: int
) -> None:
    settings = replace(QUICK, batch_size=batch, processes=processes)
    with pytest.raises(InvalidInputError, match="divided evenly"):
        train(cases, CONFIG, settings, run_dir=tmp_path)
