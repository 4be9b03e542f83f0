"""Site adapters: changed tensors in one file, bound to their base, which they never change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segunlearn.adapters.site import SiteAdapter, Start, differing
from segunlearn.errors import IntegrityError
from segunlearn.networks import ModelConfig, build_network

BASE = "ab" * 32
CONFIG = ModelConfig(
    spatial_dims=2, patch_size=(32, 32, 1), features=(4, 4, 4, 4, 4, 4), labels=("lesion",)
)


@pytest.fixture
def network() -> nn.Module:
    return build_network(CONFIG, 0)


def adapter(**about: object) -> SiteAdapter:
    values = torch.tensor([0.25, -1.5])
    return SiteAdapter(BASE, {"final_conv.bias": values}, {"method": "fine_tune", **about})


def test_a_file_gives_back_the_same_adapter() -> None:
    made = adapter(k=3, curve=[[0, 1.5], [1, 1.25]], leave_one_out={"adapted": None, "base": 0.5})

    read = SiteAdapter.from_bytes(made.content)

    assert read.base == BASE
    assert read.about == made.about
    assert torch.equal(read.tensors["final_conv.bias"], made.tensors["final_conv.bias"])


def test_the_same_adapter_is_the_same_bytes() -> None:
    """Safetensors alone writes several entries of its header in a random order."""
    assert len({adapter(k=1, j=2).content for _ in range(10)}) == 1


def test_putting_an_adapter_in_leaves_the_base_as_it_is(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())

    site = adapter().applied_to(network, BASE)

    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.training, "its mode too"
    changed = {k for k, v in site.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"final_conv.bias"}
    assert not site.training


def test_an_adapter_of_another_base_is_refused(network: nn.Module) -> None:
    with pytest.raises(IntegrityError, match="was made for weights abababababab"):
        adapter().applied_to(network, "cd" * 32)


@pytest.mark.parametrize(
    ("name", "shape"), [("final_conv.bias", 3), ("final_conv.scale", 2), ("bottom.weight", 2)]
)
def test_an_adapter_that_does_not_fit_is_refused(network: nn.Module, name: str, shape: int) -> None:
    with pytest.raises(IntegrityError, match="do not belong together"):
        SiteAdapter(BASE, {name: torch.zeros(shape)}).applied_to(network, BASE)


@pytest.mark.parametrize(
    "tensors",
    [{}, {"a": torch.tensor([float("nan")])}, {"a": torch.zeros(2, dtype=torch.float16)}],
    ids=["none", "nan", "half"],
)
def test_an_adapter_of_no_use_is_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(IntegrityError):
        SiteAdapter(BASE, tensors)


def test_an_adapter_goes_on_from_the_weights_that_its_steps_began_at(network: nn.Module) -> None:
    state = {n: p.detach() for n, p in network.named_parameters()}
    start = {n: p + 1 for n, p in state.items()}
    adapted = {**start, "final_conv.bias": torch.tensor([0.25, -1.5])}
    own = differing(adapted, network, start)
    assert own.keys() == {"final_conv.bias"}
    made = SiteAdapter(BASE, own, {"k": 1}, Start("initial", "cd" * 32))

    read = SiteAdapter.from_bytes(made.content)

    assert (read.start, read.about) == (made.start, {"k": 1})
    site = dict(read.applied_to(network, BASE, start).named_parameters())
    assert all(torch.equal(site[n], value) for n, value in adapted.items())
    for given, of in ((None, made), (start, adapter())):
        with pytest.raises(IntegrityError, match="meta model"):
            of.applied_to(network, BASE, given)


def test_a_tensor_that_the_steps_brought_back_to_the_base_is_kept(network: nn.Module) -> None:
    state = {n: p.detach() for n, p in network.named_parameters()}
    start = {"final_conv.bias": state["final_conv.bias"] + 1}
    assert differing(state, network, start).keys() == {"final_conv.bias"}
    assert differing(state, network, {}) == {}


def test_a_damaged_file_is_refused() -> None:
    data = adapter().content
    other = data.replace(b"site-adapter-2", b"site-adapter-9")
    for damaged in (b"", b"PK\x03\x04", data[:-1], data[:40], other):
        with pytest.raises(IntegrityError):
            SiteAdapter.from_bytes(damaged)


def test_any_safetensors_file_is_not_an_adapter() -> None:
    from safetensors.torch import save

    for metadata in (None, {"format": "pt"}, {"segunlearn": "[]"}, {"segunlearn": "no json"}):
        with pytest.raises(IntegrityError, match="no valid site adapter"):
            SiteAdapter.from_bytes(save({"a": torch.zeros(1)}, metadata))
