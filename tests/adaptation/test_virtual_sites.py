"""Virtual sites: one look and one label convention for all images of an episode."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from segunlearn.adaptation.virtual_sites import VirtualSettings, VirtualSite
from segunlearn.errors import InvalidInputError

EVERYTHING = VirtualSettings(1, 1, 0.3, 1, 1, 1, 1, 1, 1)
IMAGES = torch.randn((3, 1, 16, 12), generator=torch.Generator().manual_seed(0))


def drawn(seed: int, settings: VirtualSettings = EVERYTHING) -> VirtualSite:
    return VirtualSite.draw(-2.0, 2.0, settings, np.random.default_rng(seed))


def test_the_same_seed_is_the_same_site_and_another_is_another() -> None:
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    one, two = (drawn(1).image(IMAGES, np.random.default_rng(4)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_site_without_anything_changes_nothing() -> None:
    plain = drawn(1, VirtualSettings(1, 0, 0, 0, 0, 0, 0, 0, 0))
    torch.testing.assert_close(plain.image(IMAGES, np.random.default_rng(0)), IMAGES)
    label = (IMAGES > 1).long()
    assert plain.label(label) is label


def test_every_image_of_a_site_gets_the_same_map_of_intensities() -> None:
    site = drawn(3, VirtualSettings(1, 1, 0, 0, 0, 0, 0, 0, 0))
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
        settings = VirtualSettings(1, 1, share, 0, 0, 0, 0, 0, 0)
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
    site = drawn(1)

    wide = dataclasses.replace(site, border=1).label(label)
    narrow = dataclasses.replace(site, border=-1).label(label)

    assert wide[0, 0, 1, 2] == 1
    assert wide[0, 0, 10, 2] == 2
    assert torch.equal(wide[label > 0], label[label > 0]), "no structure takes from another"
    assert int((narrow == 1).sum()) == int((narrow == 2).sum()) == 4


@pytest.mark.parametrize("values", [{"share": 1.5}, {"noise": -0.1}])
def test_shares_outside_0_to_1_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(values))):
        VirtualSettings(**values)
