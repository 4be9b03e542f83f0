"""Virtual sites: one look and one label convention for all images of an episode."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from segunlearn.adaptation.virtual_sites import VirtualSettings, VirtualSite
from segunlearn.errors import InvalidInputError

EVERYTHING = VirtualSettings(1, 1, 0.3, 1, 1, 1, 1, 1, 1, 1)
IMAGES = torch.randn((3, 1, 16, 12), generator=torch.Generator().manual_seed(0))


def drawn(seed: int, settings: VirtualSettings = EVERYTHING) -> VirtualSite:
    return VirtualSite.draw(-2.0, 2.0, settings, np.random.default_rng(seed))


def test_the_same_seed_is_the_same_site_and_another_is_another() -> None:
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    one, two = (drawn(1).image(IMAGES, np.random.default_rng(4)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_site_without_anything_changes_nothing() -> None:
    plain = drawn(1, VirtualSettings(1, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    torch.testing.assert_close(plain.image(IMAGES, np.random.default_rng(0)), IMAGES)
    label = (IMAGES > 1).long()
    assert plain.label(label) is label


def test_every_image_of_a_site_gets_the_same_map_of_intensities() -> None:
    site = drawn(3, VirtualSettings(1, 1, 0, 0, 0, 0, 0, 0, 0, 0))
    one = site.image(IMAGES, np.random.default_rng(0))
    other = site.image(IMAGES.flip(0), np.random.default_rng(1)).flip(0)
    assert torch.equal(one, other)
    assert not torch.allclose(one, IMAGES, atol=0.1)
    assert one.min() >= -2
    assert one.max() <= 2


def test_maps_keep_the_order_of_grey_values_or_do_not() -> None:
    ramp = torch.linspace(-2, 2, 50).reshape(1, 1, 50, 1)
    kept = []
    for share in (1.0, 0.0):
        settings = VirtualSettings(1, 1, share, 0, 0, 0, 0, 0, 0, 0)
        maps = [drawn(s, settings).image(ramp, np.random.default_rng(0)) for s in range(20)]
        kept.append(sum(bool((m.diff(dim=2) >= -1e-6).all()) for m in maps))
    assert kept[0] == 20
    assert kept[1] < 5


@pytest.mark.parametrize("shape", [(2, 1, 12, 10), (1, 2, 12, 10, 8)])
def test_2d_and_3d_images_keep_their_shape_and_stay_finite(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for seed in range(10):
        changed = drawn(seed).image(image, np.random.default_rng(seed))
        assert changed.shape == image.shape
        assert changed.dtype == torch.float32
        assert bool(torch.isfinite(changed).all())


def test_labels_grow_or_shrink_by_one_voxel_and_never_overlap() -> None:
    label = torch.zeros((1, 1, 12, 12), dtype=torch.int64)
    label[..., 2:6, 2:6], label[..., 6:10, 2:6] = 1, 2
    site = VirtualSite()

    wide = dataclasses.replace(site, border=1).label(label)
    narrow = dataclasses.replace(site, border=-1).label(label)

    assert wide[0, 0, 1, 2] == 1
    assert wide[0, 0, 10, 2] == 2
    assert torch.equal(wide[label > 0], label[label > 0]), "no structure takes from another"
    assert int((narrow == 1).sum()) == int((narrow == 2).sum()) == 4


def test_one_side_of_every_structure_is_annotated_the_same_one_in_every_image() -> None:
    label = torch.zeros((2, 1, 12, 12), dtype=torch.int64)
    label[0, 0, 2:6, 2:6], label[0, 0, 6:10, 2:6], label[1, 0, 4:8, 5:9] = 1, 2, 1

    part = VirtualSite(part=(1.0, 0.0, 5.0)).label(label)

    expected = torch.zeros_like(label)
    expected[0, 0, 4:6, 2:6], expected[0, 0, 8:10, 2:6], expected[1, 0, 6:8, 5:9] = 1, 2, 1
    assert torch.equal(part, expected)
    other = VirtualSite(part=(-1.0, 0.0, 5.0)).label(label)
    assert torch.equal(part + other, label), "the middle lies between voxels: each is on one side"


@pytest.mark.parametrize("shape", [(1, 1, 9, 8), (2, 1, 9, 8, 7)])
def test_about_half_of_a_structure_stays_in_2d_and_3d(shape: tuple[int, ...]) -> None:
    label = torch.ones(shape, dtype=torch.uint8)
    found = [drawn(seed, VirtualSettings(1, *[0.0] * 8, 1)).label(label) for seed in range(10)]
    assert all(0.4 < float(f.float().mean()) < 0.65 for f in found)
    assert all(f.dtype == label.dtype for f in found)


def test_nothing_is_annotated_where_there_is_nothing() -> None:
    empty = torch.zeros((1, 1, 5, 5), dtype=torch.int64)
    assert torch.equal(VirtualSite(part=(1.0, 0.0, 0.0)).label(empty), empty)


@pytest.mark.parametrize("values", [{"share": 1.5}, {"noise": -0.1}])
def test_shares_outside_0_to_1_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(values))):
        VirtualSettings(**values)
