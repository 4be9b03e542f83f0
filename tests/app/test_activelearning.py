"""Which image comes next, and what is compared."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app_sources import LABELS, TINY, make_study, publish_tiny, write_dicom, write_files
from segunlearn.app.activelearning import entropy, uncertain_mean, uncertainty
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes import platform
from segunlearn.app.scoring import dice_of
from segunlearn.errors import (
    CancelledError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from segunlearn.evaluation import dice
from segunlearn.inference import Segmenter
from segunlearn.networks import build_network
from segunlearn.volumes import Volume, write_volume


@pytest.fixture
def app(tmp_path: Path) -> Iterator[SegUnlearnApp]:
    write_files(tmp_path / "studies", [make_study(n) for n in range(4)], labelled=1)
    conf = {"home": str(tmp_path / "home"), "labels": ",".join(LABELS)}
    made = SegUnlearnApp(str(tmp_path), str(tmp_path / "studies"), conf)
    yield made
    made.records.store.close()


@pytest.mark.parametrize("strategy", ["random", "first", "uncertainty"])
def test_neither_labelled_nor_forgotten_images_are_proposed(
    app: SegUnlearnApp, strategy: str
) -> None:
    publish_tiny(app.home.root)
    app.records.forget_set.mark("study", "person2", "consent_withdrawn", actor="a", opaque=True)
    seen = Counter(app.next_sample({"strategy": strategy})["id"] for _ in range(12))
    assert set(seen) <= {"person1", "person3"}
    if strategy == "random":
        assert len(seen) == 2
    for left in ("person1", "person3"):
        app.records.forget_set.mark("patient", left, "consent_withdrawn", actor="a")
    assert app.next_sample({"strategy": strategy}) == {}


def test_lately_proposed_images_wait(app: SegUnlearnApp) -> None:
    import time

    for name in ("person1", "person2"):
        noted = {"random": {"ts": int(time.time()), "client_id": "me"}}
        app.datastore().update_image_info(name, {"strategy": noted})
    seen = Counter(app.next_sample({"strategy": "random"})["id"] for _ in range(30))
    assert seen["person3"] >= 28


@pytest.mark.parametrize(
    "noted", ["x", 5, ["x"], {"random": 5}, {"random": {"ts": "x"}}, {"random": {"ts": 10**400}}]
)
def test_what_a_client_notes_keeps_nobody_from_the_next_image(
    app: SegUnlearnApp, noted: object
) -> None:
    for name in ("person1", "person2", "person3"):
        app.datastore().update_image_info(name, {"strategy": noted})
    assert app.next_sample({"strategy": "random"})["id"] != "person0"
    found = platform._next_sample(app, "random", {}, "a", lambda: False)
    assert found["strategy"]["random"]["ts"] > 0


def test_the_least_sure_image_comes_first_and_is_scored_once(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segunlearn.app import activelearning

    publish_tiny(app.home.root)
    asked: list[float] = []

    def score(segmenter: Segmenter, volume: Volume, method: str, cancel: object) -> float:
        asked.append(float(volume.array.mean()) + 2000)
        return asked[-1]

    monkeypatch.setattr(activelearning, "uncertainty", score)
    means = {f"person{n}": make_study(n).image.array.mean() for n in (1, 2, 3)}
    for _ in range(3):
        found = app.next_sample({"strategy": "uncertainty"})
        assert found["id"] == max(means, key=lambda k: means[k])
    assert len(asked) == 3
    publish_tiny(app.home.root, seed=2)
    app.next_sample({"strategy": "uncertainty", "candidates": 1})
    assert len(asked) == 4  # another version, another opinion


def test_scoring_ends_in_time_and_when_nobody_waits_and_keeps_what_it_has(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segunlearn.app import activelearning

    publish_tiny(app.home.root)
    score, scored = activelearning.uncertainty, list[float]()

    def counted(*given: Any) -> float:
        scored.append(score(*given))
        return scored[-1]

    monkeypatch.setattr(activelearning, "uncertainty", counted)
    with pytest.raises(CancelledError):
        app.next_sample({"strategy": "uncertainty", "cancel": lambda: len(scored) == 1})
    assert len(scored) == 1
    monkeypatch.setattr(activelearning, "MAX_SECONDS", 0.0)
    for number in (2, 3, 3):
        app.next_sample({"strategy": "uncertainty", "seconds": 600})
        assert len(scored) == number


def test_without_a_model_or_with_a_wrong_option(app: SegUnlearnApp) -> None:
    with pytest.raises(ConflictError, match="no trained version"):
        app.next_sample({"strategy": "uncertainty"})
    with pytest.raises(InvalidInputError, match="entropy, tta"):
        app.next_sample({"strategy": "uncertainty", "method": "guess"})
    publish_tiny(app.home.root)
    with pytest.raises(InvalidInputError, match="must be numbers"):
        app.next_sample({"strategy": "uncertainty", "candidates": float("inf")})
    with pytest.raises(NotFoundError, match="random, first, uncertainty"):
        app.next_sample({"strategy": "best"})


@pytest.mark.parametrize("method", ["entropy", "tta"])
def test_an_image_that_the_model_cannot_take_keeps_no_other_from_being_proposed(
    app: SegUnlearnApp, tmp_path: Path, method: str
) -> None:
    publish_tiny(app.home.root)
    two = np.repeat(make_study(9).image.array[..., None], 2, axis=3)
    write_volume(Volume(two, np.eye(4)), tmp_path / "studies" / "two-channels.nii.gz")
    app.datastore().refresh()
    request = {"strategy": "uncertainty", "method": method}
    for _ in range(2):
        assert app.next_sample(request)["id"] in {"person1", "person2", "person3"}


def test_a_series_that_was_still_arriving_is_proposed_when_it_is_whole(tmp_path: Path) -> None:
    study = make_study(1)
    write_dicom(tmp_path / "studies", [study])
    file = tmp_path / "studies" / study.series / "009.dcm"
    held = file.read_bytes()
    file.unlink()
    for arrived in (False, True):
        if arrived:
            file.write_bytes(held)
        conf = {"home": str(tmp_path / "home"), "labels": ",".join(LABELS)}
        app = SegUnlearnApp(str(tmp_path), str(tmp_path / "studies"), conf)
        if not arrived:
            publish_tiny(app.home.root)
        for _ in range(2):
            found = app.next_sample({"strategy": "uncertainty"})
            assert found.get("id") == (study.series if arrived else None)
        app.records.store.close()


@pytest.mark.parametrize("strategy", ["random", "first"])
def test_neither_scouts_nor_mosaics_are_proposed(tmp_path: Path, strategy: str) -> None:
    studies = [make_study(n) for n in range(3)]
    for study, kind in zip(studies, ("LOCALIZER", "MOSAIC", "AXIAL"), strict=True):
        study.datasets = study.datasets[:1] if kind != "AXIAL" else study.datasets
        for ds in study.datasets:
            ds.ImageType = ["ORIGINAL", "PRIMARY", kind]
    write_dicom(tmp_path / "studies", studies)
    conf = {"home": str(tmp_path / "home"), "labels": ",".join(LABELS)}
    app = SegUnlearnApp(str(tmp_path), str(tmp_path / "studies"), conf)
    seen = {app.next_sample({"strategy": strategy})["id"] for _ in range(4)}
    assert seen == {studies[2].series}
    app.records.store.close()


def test_without_memory_nothing_is_scored_and_the_reason_is_told(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_tiny(app.home.root)

    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Segmenter, "_windowed", full)
    with pytest.raises(UnavailableError, match="not enough memory"):
        app.next_sample({"strategy": "uncertainty"})


@pytest.mark.parametrize("where", ["read_volume", "uncertainty"])
def test_an_image_too_large_for_the_memory_keeps_no_other_from_being_proposed(
    app: SegUnlearnApp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    from segunlearn.app import activelearning

    publish_tiny(app.home.root)
    does, tried = getattr(activelearning, where), []
    large = make_study(1).image.array.mean()

    def lacking(*given: Any, **more: Any) -> Any:
        found = does(*given, **more)
        image = found if where == "read_volume" else given[1]
        tried.append("person1" if np.isclose(image.array.mean(), large) else "another")
        if tried[-1] == "person1":
            raise MemoryError
        return found

    monkeypatch.setattr(activelearning, where, lacking)
    for _ in range(2):
        found = app.next_sample({"strategy": "uncertainty", "seconds": 600})
        assert found["id"] in {"person2", "person3"}
    assert "not enough memory" in caplog.text
    tried.clear()
    publish_tiny(app.home.root, seed=2)
    app.next_sample({"strategy": "uncertainty", "seconds": 600})
    assert tried == ["another", "another", "person1"], "what may end in nothing comes last"


@pytest.mark.parametrize("method", ["entropy", "tta"])
def test_scoring_a_fine_image_needs_memory_for_the_models_grid_only(method: str) -> None:
    fine = np.random.default_rng(0).normal(0, 300, (128, 112, 80)).astype(np.float32)
    volume = Volume(fine, np.diag([0.5, 0.5, 0.5, 1.0]), "CT")
    segmenter = Segmenter(build_network(TINY, 1), TINY, "cpu")
    uncertainty(segmenter, make_study(1).image, method)  # what is imported at the first time
    tracemalloc.start()
    try:
        assert uncertainty(segmenter, volume, method) > 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * fine.nbytes


def test_the_score_is_the_same_however_the_volume_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, volume = Segmenter(build_network(TINY, 1), TINY, "cpu"), make_study(3).image
    whole = [uncertainty(segmenter, volume, m) for m in ("entropy", "tta")]
    monkeypatch.setattr("segunlearn.app.activelearning._SLAB_VALUES", 1)
    cut = [uncertainty(segmenter, volume, m) for m in ("entropy", "tta")]
    assert cut == pytest.approx(whole, rel=1e-6)


def test_entropy_in_closed_form() -> None:
    p = np.array([[1.0, 0.5, 0.25], [0.0, 0.5, 0.25], [0.0, 0.0, 0.5]])
    expected = [0.0, np.log(2) / np.log(3), 1.5 * np.log(2) / np.log(3)]
    np.testing.assert_allclose(entropy(p), expected, atol=1e-9)
    assert uncertain_mean(entropy(p), p) == pytest.approx(np.mean(expected[1:]))
    assert uncertain_mean(entropy(p[:, :1]), p[:, :1]) == 0.0


def test_mutual_information_is_zero_only_where_mirroring_changes_nothing() -> None:
    """A network that answers by each voxel's own intensity is indifferent to mirroring."""
    import torch
    from torch import nn

    class ByVoxel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x * 0, x, -x], dim=1)

    volume = make_study(3).image
    indifferent = Segmenter(ByVoxel(), TINY, "cpu")
    assert uncertainty(indifferent, volume, "tta") == pytest.approx(0.0, abs=1e-3)
    assert uncertainty(indifferent, volume, "entropy") > 0.1
    assert uncertainty(Segmenter(build_network(TINY, 1), TINY, "cpu"), volume, "tta") > 1e-3


def test_dice_agrees_with_the_evaluation() -> None:
    truth, other = make_study(1).label, make_study(2).label
    score = dice_of(truth, other, {n: i + 1 for i, n in enumerate(LABELS)})
    for value, name in enumerate(LABELS, start=1):
        expected = dice(other.array == value, truth.array == value)
        assert score["dice_per_label"][name] == pytest.approx(expected)
    assert dice_of(truth, truth, {})["dice"] == 1.0
    empty = Volume(np.zeros_like(truth.array), truth.affine)
    assert dice_of(empty, empty, {"core": 1}) == {"dice": 1.0, "dice_per_label": {"core": None}}
