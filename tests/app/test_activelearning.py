"""Which image comes next, and what is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app_sources import LABELS, TINY, make_study, publish_tiny, write_files
from segunlearn.app.activelearning import entropy, uncertain_mean, uncertainty
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.scoring import dice_of
from segunlearn.errors import ConflictError, InvalidInputError, NotFoundError
from segunlearn.evaluation import dice
from segunlearn.inference import Segmenter
from segunlearn.networks import build_network
from segunlearn.volumes import Volume


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


def test_the_least_sure_image_comes_first_and_is_scored_once(
    app: SegUnlearnApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segunlearn.app import activelearning

    publish_tiny(app.home.root)
    asked: list[float] = []

    def score(segmenter: Segmenter, volume: Volume, method: str) -> float:
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


def test_without_a_model_or_with_a_wrong_option(app: SegUnlearnApp) -> None:
    with pytest.raises(ConflictError, match="no trained version"):
        app.next_sample({"strategy": "uncertainty"})
    with pytest.raises(InvalidInputError, match="entropy, tta"):
        app.next_sample({"strategy": "uncertainty", "method": "guess"})
    with pytest.raises(NotFoundError, match="random, first, uncertainty"):
        app.next_sample({"strategy": "best"})


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
