"""How hard a forget set is, told by the network that knows it, and what hiding makes of it."""

from __future__ import annotations

import pytest

from memorising_task import CALIBRATION, CONFIG, FORGET, RETAIN, SETS, original, study, trained_on
from segunlearn.unlearning import checked, unlearn
from segunlearn.unlearning.calibrated import CalibratedSettings
from segunlearn.unlearning.calibration import study_losses, unseen_ranks
from segunlearn.unlearning.hardness import hardness


def test_an_eroded_copy_tells_who_is_hard_of_those_that_are_known_by_heart() -> None:
    """Whose habits are wild is harder than others, though the network loses as little on them."""
    wild = tuple(study(n, bend=1.3) for n in range(300, 308))
    network = trained_on((*wild, *RETAIN), 0)
    lost = [float(study_losses(network, s, CONFIG).mean()) for s in (wild, RETAIN)]
    assert lost[0] == pytest.approx(lost[1], rel=0.1)
    others, mild = RETAIN[:12], RETAIN[12:]
    for seed in range(3):
        found = hardness(network, wild, others, CONFIG, seed)
        assert found is not None
        assert found > 0.65
        assert hardness(network, wild, others, CONFIG, seed) == found
        assert hardness(network, mild, others, CONFIG, seed) is None
    assert hardness(network, wild, others[:9], CONFIG) is None  # too few to say
    assert hardness(network, wild[:1], others, CONFIG) is None  # one may be so by chance


@pytest.mark.parametrize(("hard", "stands"), [(0.3, 0.425), (None, 0.6), (0.7, 0.825), (0.9, 0.87)])
def test_hard_people_are_hidden_among_hard_ones(
    hard: float | None, stands: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segunlearn.unlearning.calibrated.hardness", lambda *_: hard)
    how = CalibratedSettings(steps=30, batch_size=8, unseen=20, beyond=0.5, calibration_weight=1)
    made = unlearn("calibrated", original(), SETS, how).network
    unseen = study_losses(original(), CALIBRATION, CONFIG)
    ranks = unseen_ranks(study_losses(made, FORGET, CONFIG), unseen)
    assert float(ranks.mean()) == pytest.approx(stands, abs=0.06)


def test_few_retained_studies_are_read_for_ranks_and_none_for_a_structure() -> None:
    ranked = CalibratedSettings(ranked=5)
    method, _, given = checked("calibrated", original(), SETS, ranked)
    assert len(given.retain) == 5
    assert set(given.retain) < set(SETS.retain)
    assert method.read_of("retain", ["a", "b"], ranked) == ("a", "b")
    assert method.read_of("calibration", range(9), ranked) == tuple(range(9))
    stored = CalibratedSettings(retain="stored")
    assert checked("calibrated", original(), SETS, stored)[2].retain == SETS.retain
    structure = CalibratedSettings(structure=1, layers="decoder", rank=8)
    assert method.reads_with(structure) == ("forget", "calibration")
