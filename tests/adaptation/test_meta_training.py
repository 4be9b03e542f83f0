"""Meta-training: it learns to adapt where joint training cannot, and goes on after a kill."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adaptation_sites import CONFIG as UNET
from adaptation_sites import site as unet_site
from segunlearn.adaptation import AdaptSettings, MetaModel, adapt
from segunlearn.adaptation.episodes import EpisodeSettings
from segunlearn.adaptation.maml import MamlSettings
from segunlearn.adaptation.meta_training import MetaSettings, meta_train
from segunlearn.adaptation.virtual_sites import VirtualSettings
from segunlearn.errors import CancelledError, InvalidInputError
from segunlearn.networks import ModelConfig, build_network
from segunlearn.records.runs import Progress
from segunlearn.unlearning.loop import Steps, descend, dice_by_person, dice_ce, seeded
from segunlearn.unlearning.sets import Draw, Study

BASE = "ab" * 32
CONFIG = ModelConfig(spatial_dims=2, patch_size=(32, 16, 1), labels=("lesion",))


def study(site: int, person: int) -> Study:
    """Grey values of a person, of which the site annotates a band of its own."""
    rule, rng = np.random.default_rng((site, 9)), np.random.default_rng((site, person))
    image = rng.uniform(-1, 1, (32, 16, 1)).astype(np.float32)
    label = np.abs(image - rule.uniform(-0.6, 0.6)) < 0.3
    names = (f"series-{site}-{person}", f"study-{site}-{person}", f"person-{site}-{person}")
    return Study(*names, torch.from_numpy(image)[None], torch.from_numpy(label.astype(np.uint8)))


SITES = {str(site): [study(site, person) for person in range(4)] for site in range(16)}
NEW_SITES = range(100, 108)
SETTINGS = MetaSettings(
    iterations=150,
    generator_times=1,
    tasks=2,
    learning_rate=1e-2,
    generator_learning_rate=5e-3,
    maml=MamlSettings(inner_set="all", initial_rate=0.3, first_order_share=0.2),
    # a voxel's grey value decides alone: bent between voxels, masks would no longer fit
    episodes=EpisodeSettings(support_people=(1,), query_people=2, spatial=0, virtual=None),
)
SHORT = dataclasses.replace(SETTINGS, iterations=6, checkpoint_every=2)


@functools.cache
def joint() -> nn.Module:
    """A network that sees one voxel at a time, trained on all sites together."""
    with seeded(0):
        network = nn.Sequential(
            nn.Conv2d(1, 16, 1), nn.InstanceNorm2d(16, affine=True), nn.Tanh(),
            nn.Conv2d(16, 16, 1), nn.InstanceNorm2d(16, affine=True), nn.Tanh(),
            nn.Conv2d(16, 2, 1),
        )  # fmt: skip
    draw = Draw([s for studies in SITES.values() for s in studies], CONFIG, 8, 0)
    descend(network, lambda _: dice_ce(network, draw.next()), Steps(100, 1e-2))
    return network.eval()


def trained(settings: MetaSettings = SHORT, **more: Any) -> MetaModel:
    return meta_train(joint(), SITES, CONFIG, settings, base_sha256=BASE, **more)


def dice(settings: AdaptSettings, made: MetaModel | None) -> float:
    """Mean over new sites after adapting to one study."""
    found: list[float] = []
    for site in NEW_SITES:
        support, query = [study(site, 0)], [study(site, n) for n in range(1, 4)]
        network = adapt(joint(), made, support, CONFIG, settings).network
        found += dice_by_person(network, query, CONFIG, (1,)).values()
    return float(np.mean(found))


def test_where_sites_disagree_it_beats_the_best_fine_tuning_in_as_many_steps() -> None:
    """Although the rate of fine-tuning is chosen on the test sites themselves."""
    rates = (3e-3, 1e-2, 3e-2, 1e-1)
    tuned = max(dice(AdaptSettings("fine_tune", 3, "all", learning_rate=r), None) for r in rates)
    zero_shot = dice(AdaptSettings("fine_tune", 0, "all"), None)
    meta = trained(SETTINGS)
    before, after = (dice(AdaptSettings("maml", steps=n), meta) for n in (0, 3))

    assert after > tuned + 0.05
    assert after > before + 0.3, "it adapts, it does not know the sites"
    assert dice(AdaptSettings("generator"), meta) > zero_shot + 0.1, "without any step"
    assert dice(AdaptSettings("generator+steps", 3), meta) > zero_shot + 0.3
    losses = [row["loss"] for row in meta.about["curve"]["maml"]]
    assert losses[-1] < losses[0]
    assert [row["iteration"] for row in meta.about["curve"]["generator"]][-1] == 150


def test_meta_training_never_changes_the_joint_weights() -> None:
    before = copy.deepcopy(joint().state_dict())
    made = trained()
    assert all(torch.equal(v, before[k]) for k, v in joint().state_dict().items())
    assert made.base == BASE
    assert set(made.initial) == set(made.film_network) == set(before), "they learned elsewhere"
    assert {len(rates) for rates in made.rates.values()} == {3}
    fixed = trained(dataclasses.replace(SHORT, learn=("generator",), train_network=False))
    assert not fixed.film_network
    assert fixed.methods == ("generator", "generator+steps")


def test_a_stopped_training_goes_on_to_the_same_result(tmp_path: Path) -> None:
    seen: list[Progress] = []
    asked = itertools.count()
    with pytest.raises(CancelledError, match=r"\(maml\) was stopped at iteration 5"):
        trained(run_dir=tmp_path, cancel=lambda: next(asked) == 5)

    again = trained(run_dir=tmp_path, report=seen.append)

    whole = trained()
    assert again.to_bytes() == whole.to_bytes()
    assert next(p.step for p in seen if p.phase == "maml") == 5, "from its last checkpoint"


def test_a_checkpoint_of_other_studies_is_not_used(tmp_path: Path) -> None:
    trained(run_dir=tmp_path)
    fewer = {site: studies for site, studies in SITES.items() if site != "3"}
    seen: list[Progress] = []
    meta_train(
        joint(), fewer, CONFIG, SHORT, base_sha256=BASE, run_dir=tmp_path, report=seen.append
    )
    assert next(p.step for p in seen if p.phase == "maml") == 1


def test_learning_begins_at_other_weights_than_it_stands_beside(tmp_path: Path) -> None:
    early, later = joint(), copy.deepcopy(joint())
    with torch.no_grad():
        for weight in later.parameters():
            weight.add_(0.1)
    own = trained(run_dir=tmp_path)
    seen: list[Progress] = []
    made = meta_train(
        later, SITES, CONFIG, SHORT, base_sha256=BASE, start=early, run_dir=tmp_path,
        report=seen.append,
    )  # fmt: skip
    assert next(p.step for p in seen if p.phase == "maml") == 1, "a checkpoint of another start"
    for network, meta in ((early, own), (later, made)):
        for part in (meta.initial, meta.film_network):
            assert set(part) <= set(dict(network.named_parameters()))
    for part in ("initial", "film_network"):
        learned = [
            {**dict(network.named_parameters()), **getattr(meta, part)}
            for network, meta in ((early, own), (later, made))
        ]
        assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])


def test_a_unet_learns_on_virtual_sites_of_a_single_real_one() -> None:
    network = build_network(UNET, 0)
    episodes = EpisodeSettings(virtual=VirtualSettings(share=1))
    settings = MetaSettings(iterations=1, tasks=1, episodes=episodes)
    made = meta_train(network, {"a": unet_site(1, 4)}, UNET, settings, base_sha256=BASE)
    assert made.inner_set == "decoder"
    assert all(name.startswith(("upcat_", "final_conv")) for name in made.rates)
    read = MetaModel.from_bytes(made.to_bytes(), BASE)
    adapted = adapt(network, read, unet_site(2, 2), UNET, AdaptSettings("maml", steps=5))
    assert len(adapted.curve) == 6, "beyond the trained steps it takes the last rate"


def test_one_site_without_virtual_sites_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="learns that site by heart"):
        meta_train(joint(), {"0": SITES["0"]}, CONFIG, SETTINGS, base_sha256=BASE)


@pytest.mark.parametrize("values", [{"learn": ()}, {"learn": ("x",)}, {"tasks": 0}])
def test_settings_that_mean_nothing_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        MetaSettings(**values)  # type: ignore[arg-type]
