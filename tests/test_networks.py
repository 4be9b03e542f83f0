"""The network's configuration is read strictly, and its weights are the ones that were written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from segunlearn.errors import IntegrityError, InvalidInputError, NotFoundError
from segunlearn.networks import (
    ModelConfig,
    build_network,
    load_weights,
    read_tensors,
    save_weights,
)

SMALL = ModelConfig(
    labels=("anterior", "posterior"), patch_size=(16, 16, 32), features=(4, 4, 4, 4, 4, 4)
)
SMALL_2D = dataclasses.replace(SMALL, spatial_dims=2, patch_size=(32, 1, 16))

sides = st.integers(2, 20).map(lambda n: 16 * n)
configs = st.builds(
    ModelConfig,
    name=st.sampled_from(["segmentation", "liver-2", "a_b"]),
    labels=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True).map(tuple),
    in_channels=st.integers(1, 4),
    spacing=st.tuples(*[st.floats(0.01, 20.0)] * 3),
    patch_size=st.tuples(sides, sides, sides),
    features=st.tuples(*[st.integers(1, 512)] * 6),
    normalisation=st.sampled_from(["auto", "zscore", "ct"]),
    ct_window=st.tuples(st.floats(-2000, -1), st.floats(0, 4000)),
    modalities=st.lists(st.sampled_from(["CT", "MR", "PT"]), unique=True).map(tuple),
    overlap=st.floats(0, 0.99),
    dropout=st.floats(0, 0.99),
)


# the configuration


@given(config=configs)
def test_a_configuration_survives_json(config: ModelConfig) -> None:
    text = json.dumps(config.to_json(), allow_nan=False)

    again = ModelConfig.from_json(json.loads(text))

    assert again == config
    assert hash(again) == hash(config), "tuples, not lists"


def test_whole_numbers_are_read_as_lengths() -> None:
    config = ModelConfig.from_json({**SMALL.to_json(), "spacing": [1, 1, 2], "overlap": 0})
    assert config.spacing == (1.0, 1.0, 2.0)
    assert all(isinstance(s, float) for s in (*config.spacing, config.overlap))


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(ModelConfig)])
def test_every_key_is_needed_and_of_its_type(key: str) -> None:
    data = SMALL.to_json()
    with pytest.raises(InvalidInputError, match=f"missing keys.*{key}"):
        ModelConfig.from_json({k: v for k, v in data.items() if k != key})
    wrong: list[Any] = [None, True, {"a": 1}]
    wrong += [[None], 5] if isinstance(data[key], list) else [[data[key]]]
    for value in wrong:
        with pytest.raises(InvalidInputError, match=key):
            ModelConfig.from_json({**data, key: value})


def test_unknown_keys_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown keys.*sapcing"):
        ModelConfig.from_json({**SMALL.to_json(), "sapcing": [1, 1, 1]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "../models"},
        {"labels": ()},
        {"labels": ("a", "a")},
        {"labels": ("a", "")},
        {"spatial_dims": 4},
        {"in_channels": 0},
        {"spacing": (1.0, 1.0)},
        {"spacing": (1.0, 1.0, 0.0)},
        {"spacing": (1.0, 1.0, math.nan)},
        {"spacing": (1.0, 1.0, math.inf)},
        {"features": (4, 4, 4, 4, 4)},
        {"features": (4, 4, 4, 4, 4, 0)},
        {"normalisation": "minmax"},
        {"ct_window": (250.0, -175.0)},
        {"ct_window": (0.0, 0.0)},
        {"ct_window": (-math.inf, 250.0)},
        {"ct_window": (0.0, math.nan)},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"overlap": math.nan},
        {"dropout": 1.0},
        {"dropout": math.nan},
        {"patch_size": (32, 32)},
        {"patch_size": (32, 32, 0)},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(InvalidInputError, match=key):
        dataclasses.replace(SMALL, **wrong)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(InvalidInputError, match=r"in_channels.*overlap"):
        ModelConfig(in_channels=0, overlap=2.0)


def test_values_and_classes() -> None:
    assert SMALL.label_values == {"anterior": 1, "posterior": 2}
    assert SMALL.num_classes == 3
    assert (SMALL.slice_axis, SMALL.roi_size) == (None, (16, 16, 32))
    assert (SMALL_2D.slice_axis, SMALL_2D.roi_size) == (1, (32, 16))


# the smallest patch: where the network itself fails in training is where it is refused


@pytest.mark.parametrize(
    ("dims", "patch"),
    [
        (3, (16, 16, 16)),
        (3, (16, 16, 31)),
        (3, (8, 64, 64)),
        (3, (32, 32, 1)),
        (2, (16, 16, 1)),
        (2, (1, 16, 31)),
        (2, (32, 32, 2)),
        (2, (32, 1, 1)),
    ],
)
def test_a_patch_that_is_too_small_is_refused(dims: int, patch: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInputError, match="patch_size"):
        dataclasses.replace(SMALL, spatial_dims=dims, patch_size=patch)


def test_the_refused_patch_is_one_that_the_network_cannot_be_trained_on() -> None:
    network = build_network(SMALL, seed=0).train()
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network(torch.zeros(1, 1, 16, 16, 16))
    network(torch.zeros(1, 1, *SMALL.roi_size))


# forward


@pytest.mark.parametrize(
    ("dims", "patch", "channels"),
    [
        (3, (16, 16, 32), 1),
        (3, (17, 32, 23), 2),
        (2, (1, 32, 16), 1),
        (2, (33, 1, 47), 2),
        (2, (32, 16, 1), 1),
    ],
)
def test_logits_have_the_shape_of_the_patch(
    dims: int, patch: tuple[int, int, int], channels: int
) -> None:
    config = dataclasses.replace(
        SMALL, spatial_dims=dims, patch_size=patch, in_channels=channels, dropout=0.1
    )
    network = build_network(config, seed=0).train()

    logits = network(torch.randn(2, channels, *config.roi_size))

    assert logits.shape == (2, 3, *config.roi_size)
    assert torch.isfinite(logits).all()
    logits.square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None]
    assert without == []


def test_the_seed_gives_the_weights_and_leaves_the_global_state() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (build_network(SMALL, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_without_a_seed_the_global_state_gives_the_weights() -> None:
    def weights() -> torch.Tensor:
        return next(build_network(SMALL).parameters()).detach()

    torch.manual_seed(7)
    first, second = weights(), weights()
    torch.manual_seed(7)
    assert torch.equal(weights(), first)
    assert not torch.equal(first, second)


def test_instance_normalisation_has_weights_of_its_own() -> None:
    names = [n for n, _ in build_network(SMALL, seed=0).named_parameters()]
    assert any(n.endswith("adn.N.weight") for n in names)
    assert not any("running" in n for n in build_network(SMALL, seed=0).state_dict())


# weights on the disk


def test_weights_round_trip(tmp_path: Path) -> None:
    network = build_network(SMALL, seed=3)
    path = tmp_path / "new" / "weights.safetensors"

    digest = save_weights(network, path)
    again = load_weights(path, SMALL, digest)

    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not again.training
    image = torch.randn(1, 1, *SMALL.roi_size)
    with torch.no_grad():
        assert torch.equal(again(image), network.eval()(image))
    assert load_file(path).keys() == network.state_dict().keys(), "another reader agrees"


def test_equal_weights_have_equal_digests(tmp_path: Path) -> None:
    state = build_network(SMALL, seed=3).state_dict()
    backwards = dict(reversed(list(state.items())))

    assert save_weights(state, tmp_path / "a") == save_weights(backwards, tmp_path / "b")


def test_tensors_that_share_memory_or_are_views_are_written(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    digest = save_weights({"a": matrix, "b": matrix, "c": matrix.T}, tmp_path / "w")

    read = read_tensors(tmp_path / "w", digest)

    assert torch.equal(read["a"], read["b"])
    assert torch.equal(read["c"], matrix.T)


@given(data=st.data())
def test_any_flipped_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    digest = save_weights({"layer": torch.arange(20.0)}, path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)

    with pytest.raises(IntegrityError, match=r"weights\.safetensors.*backup"):
        read_tensors(path, digest)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused_without_a_digest(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(build_network(SMALL, seed=0), path)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(IntegrityError, match="no valid safetensors"):
        load_weights(path, SMALL)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(build_network(SMALL, seed=0).state_dict(), tmp_path / "weights.safetensors")

    with pytest.raises(IntegrityError, match="no valid safetensors"):
        load_weights(tmp_path / "weights.safetensors", SMALL)


def test_missing_weights(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.safetensors"):
        with pytest.raises(NotFoundError, match=path.name):
            load_weights(path, SMALL)
    with pytest.raises(IntegrityError, match="Restore it from a backup, or activate"):
        load_weights(tmp_path / "gone.safetensors", SMALL, "0" * 64)  # it was published


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        ({"labels": ("a", "b", "c")}, r"final_conv\.bias \(file \(3,\), network \(4,\)\)"),
        ({"in_channels": 2}, r"conv_0\.conv_0\.conv\.weight"),
        ({"features": (8, 4, 4, 4, 4, 4)}, r"conv_0\.conv_0\.adn\.N\.bias"),
        ({"spatial_dims": 2, "patch_size": (32, 32, 1)}, r"conv_0\.conv_0\.conv\.weight"),
    ],
    ids=["labels", "channels", "features", "2D"],
)
def test_weights_of_another_configuration_are_refused_by_layer(
    tmp_path: Path, change: dict[str, Any], layer: str
) -> None:
    save_weights(build_network(SMALL, seed=0), tmp_path / "weights.safetensors")

    with pytest.raises(InvalidInputError, match=layer):
        load_weights(tmp_path / "weights.safetensors", dataclasses.replace(SMALL, **change))


def test_missing_and_additional_layers_are_refused(tmp_path: Path) -> None:
    state = build_network(SMALL, seed=0).state_dict()
    less = {k: v for k, v in state.items() if k != "final_conv.bias"}
    save_weights(less, tmp_path / "less")
    save_weights({**state, "lora_A": torch.zeros(2)}, tmp_path / "more")

    with pytest.raises(InvalidInputError, match=r"final_conv\.bias \(file None"):
        load_weights(tmp_path / "less", SMALL)
    with pytest.raises(InvalidInputError, match=r"lora_A \(file \(2,\), network None"):
        load_weights(tmp_path / "more", SMALL)
