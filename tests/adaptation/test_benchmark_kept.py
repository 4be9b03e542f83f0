"""What a stopped fold of the adaptation benchmark finds again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segunlearn.networks import ModelConfig, build_network

#: Searched during the test alone: it has modules named as some of the tests' own.
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CONFIG = ModelConfig(labels=("one",), spatial_dims=2, patch_size=(32, 32, 1), features=(4,) * 6)


def test_what_is_kept_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from adaptation_kept import Kept

    calls = []

    def network() -> torch.nn.Module:
        calls.append("network")
        return build_network(CONFIG, 3)

    def figures() -> dict[str, float]:
        calls.append("figures")
        return {"dice": 0.5}

    for _ in range(2):
        kept = Kept(tmp_path / "fold")
        found, seconds = kept.network("early", CONFIG, network)
        assert seconds >= 0
        assert all(
            torch.equal(a, b)
            for a, b in zip(found.parameters(), build_network(CONFIG, 3).parameters(), strict=True)
        )
        assert kept.figures("k-1", figures)["dice"] == 0.5
    assert calls == ["network", "figures"]
    Kept(None).network("early", CONFIG, network)
    assert calls[-1] == "network"
