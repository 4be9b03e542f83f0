"""Adapters in weight space are PEFT's adapters: same function, same files."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from conftest import missing
from memorising_task import CONFIG, RETAIN
from segunlearn.errors import IntegrityError, InvalidInputError, UnsupportedNetworkError
from segunlearn.networks import ModelConfig, build_network
from segunlearn.unlearning.loop import Steps, descend, dice_ce
from segunlearn.unlearning.lora import (
    Adapted,
    Layers,
    LoraSettings,
    adapt,
    load_adapter,
    save_adapter,
)
from segunlearn.unlearning.sets import Draw

ROOT = Path(__file__).parents[2]
CONFIG_3D = ModelConfig(patch_size=(16, 32, 16), features=(4, 4, 8, 8, 8, 4))
CONFIGS = {"2d": CONFIG, "3d": CONFIG_3D}
LAYERS = get_args(Layers)


def called(name: str, layers: str, *, whole: bool) -> str:
    """Name of an adapter among those that peft reads."""
    return f"{name} {layers} {whole}"


def trained(config: ModelConfig, settings: LoraSettings) -> tuple[nn.Module, Adapted]:
    """An adapter whose every tensor has moved."""
    base = build_network(config, 1).eval()
    adapted = adapt(base, settings, seed=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in adapted.network.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    adapted.network.eval()
    return base, adapted


def image(config: ModelConfig) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(2, 1, *[n for n in config.patch_size if n > 1])


@pytest.fixture(scope="module")
def by_peft(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Differences of peft's logits, in an environment of its own, by the adapter."""
    python = Path(os.environ.get("PEFT_VENV", ROOT / ".venv-peft")) / "bin" / "python"
    if not python.exists():
        missing("the environment with peft is not there (make peft-tools)")
    folder = tmp_path_factory.mktemp("peft")
    for (name, config), layers, whole in itertools.product(CONFIGS.items(), LAYERS, (False, True)):
        settings = LoraSettings(4, 8.0, layers, norms=whole, biases=whole)
        base, adapted = trained(config, settings)
        place = folder / called(name, layers, whole=whole)
        save_adapter(adapted, place)
        x = image(config)
        with torch.no_grad():
            logits = {"base": base(x), "adapted": adapted.network(x), "merged": adapted.merged()(x)}
        save_file({"image": x, **logits}, place / "logits.safetensors")
        (place / "model.json").write_text(json.dumps(config.to_json()), encoding="utf-8")
    script = Path(__file__).with_name("differences_to_peft.py")
    done = subprocess.run(
        [str(python), str(script), str(folder)], capture_output=True, text=True, check=False,
        timeout=300, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("whole", [False, True], ids=["low rank", "with norms and biases"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_peft_reads_the_pair_and_computes_the_same(
    name: str, layers: Layers, whole: bool, by_peft: dict[str, dict[str, float]]
) -> None:
    differences = by_peft[called(name, layers, whole=whole)]
    assert differences["base to adapted"] > 0.05
    assert differences["adapted"] < 1e-5
    assert differences["merged"] < 1e-5


@pytest.mark.parametrize("more", [{}, {"transposed": True}, {"norms": True, "biases": True}])
@pytest.mark.parametrize("config", [CONFIG, CONFIG_3D], ids=["2d", "3d"])
def test_merging_changes_no_logit_and_disabling_no_bit(
    config: ModelConfig, more: dict[str, bool]
) -> None:
    base, adapted = trained(config, LoraSettings(4, layers="all", **more))
    x = image(config)
    with torch.no_grad():
        assert float((adapted.network(x) - adapted.merged()(x)).abs().max()) <= 1e-5
        assert torch.equal(adapted.disabled()(x), base(x))
    assert set(adapted.merged().state_dict()) == set(base.state_dict())
    before, after = base.state_dict(), adapted.disabled().state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_transposed_update_is_two_convolutions() -> None:
    """W + s B A computes what A (1x1) followed by B (the layer's own kernel) adds."""
    layer = nn.ConvTranspose3d(6, 5, 2, 2)
    host = nn.ModuleDict({"upcat_1": layer, "final_conv": nn.Conv3d(1, 1, 1)})
    adapted = adapt(host, LoraSettings(3, 6.0, transposed=True), 0)
    update = adapted.network["upcat_1"].parametrizations.weight[0]  # type: ignore[index]
    with torch.no_grad():
        update.b.normal_()
        x = torch.randn(1, 6, 4, 4, 4)
        inner = nn.functional.conv3d(x, update.a)
        added = nn.functional.conv_transpose3d(inner, update.b, stride=2)
        expected = layer(x) + 2.0 * added
        assert float((adapted.network["upcat_1"](x) - expected).abs().max()) < 1e-5  # type: ignore[index]


def test_only_adapter_and_head_learn() -> None:
    base = build_network(CONFIG, 1)
    adapted = adapt(base, LoraSettings(4))
    draw = Draw(RETAIN, CONFIG, 4, 0)
    x = image(CONFIG)
    with torch.no_grad():
        assert torch.equal(adapted.network.eval()(x), base.eval()(x))
    descend(adapted.network, lambda _: dice_ce(adapted.network, draw.next()), Steps(3, 1e-2))
    after, merged = adapted.disabled().state_dict(), adapted.merged().state_dict()
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, after[name])
        moves = name.startswith("final_conv") or (
            name.startswith("upcat_") and "convs" in name and name.endswith("conv.weight")
        )
        assert torch.equal(weight, merged[name]) != moves, name


def test_norms_and_biases_are_those_of_the_part_and_no_others() -> None:
    """Only named tensors move, and all of them; the head's bias is the head's."""
    settings = LoraSettings(4, layers="decoder", head=False, norms=True, biases=True)
    base, adapted = trained(CONFIG, settings)
    before, merged = base.state_dict(), adapted.merged().state_dict()
    moved = {name for name in before if not torch.equal(before[name], merged[name])}
    assert moved == {
        name for name in before if name.startswith("upcat_") and not name.endswith("deconv.weight")
    }


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    everything = LoraSettings(4, layers="all", transposed=True, norms=True, biases=True)
    base, adapted = trained(CONFIG, everything)
    save_adapter(adapted, tmp_path / "a")
    again = load_adapter(base, tmp_path / "a")
    save_adapter(again, tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with torch.no_grad():
        x = image(CONFIG)
        assert torch.equal(again.network.eval()(x), adapted.network(x))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base, adapted = trained(CONFIG, LoraSettings(4))
    save_adapter(adapted, tmp_path)
    with pytest.raises(IntegrityError, match="another network"):
        load_adapter(build_network(CONFIG_3D, 0), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "segunlearn": {"r": 1}}))
    with pytest.raises(IntegrityError, match="no adapter of ours"):
        load_adapter(base, tmp_path)
    with pytest.raises(InvalidInputError, match="rank"):
        LoraSettings(0)
    with pytest.raises(UnsupportedNetworkError, match="BasicUNet"):
        adapt(nn.Sequential(nn.Conv2d(1, 1, 3)), LoraSettings())
    for norm in (nn.BatchNorm2d(4), nn.BatchNorm3d(4)):
        drifting = nn.ModuleDict({"upcat_1": nn.Conv2d(4, 4, 3), "upcat_2": norm})
        with pytest.raises(UnsupportedNetworkError, match="'upcat_2' is batch normalisation"):
            adapt(drifting, LoraSettings(head=False))
    grouped = nn.ModuleDict({"upcat_1": nn.Conv2d(4, 4, 3, groups=2)})
    with pytest.raises(UnsupportedNetworkError, match="groups"):
        adapt(grouped, LoraSettings(head=False))
