"""Voxels that several segments have: a label map can give each to one of them only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from SegUnlearnLib import texts
from SegUnlearnLib.segmentation import exported, ids_of

#: Pairs of segments that are named; of more their number is.
_NAMED = 6


@dataclass(frozen=True)
class Overlaps:
    """What segments share, empty where a label map loses nothing.

    Parameters
    ----------
    names, sizes
        Name and number of voxels by segment id, of those that share some; in the segmentation's
        order.
    shared
        Number of voxels that exactly these segments have, by their ids.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    shared: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def pairs(self) -> list[tuple[str, str, int]]:
        """Ids of every two segments with the number of voxels that both have, most first."""
        found: Counter[tuple[str, str]] = Counter()
        for ids, voxels in self.shared.items():
            for pair in combinations(ids, 2):
                if self.names[pair[0]] != self.names[pair[1]]:
                    found[pair] += voxels
        return [(one, other, voxels) for (one, other), voxels in found.most_common()]

    def lost(self, order: Sequence[str]) -> dict[str, int]:
        """Count what segments lose when the first of an order keeps what several have."""
        place = {segment_id: n for n, segment_id in enumerate(order)}
        lost = dict.fromkeys(order, 0)
        for ids, voxels in self.shared.items():
            keeps = min(ids, key=lambda segment_id: place[segment_id])
            for segment_id in ids:
                lost[segment_id] += voxels * (self.names[segment_id] != self.names[keeps])
        return {segment_id: voxels for segment_id, voxels in lost.items() if voxels}

    def told(self, order: Sequence[str]) -> str:
        """Say what is shared, and what is lost in an order."""
        pairs = self.pairs()
        share = [
            f"{self.names[one]} and {self.names[other]} share "
            f"{texts.count(voxels, 'voxel', 'voxels')}"
            for one, other, voxels in pairs[:_NAMED]
        ]
        if len(pairs) > _NAMED:
            share.append(f"{len(pairs) - _NAMED} more pairs share some")
        lines = ["A label has one structure a voxel, and segments overlap:"]
        lines += [f"· {words}" for words in share]
        lines.append("The upper one of this list keeps what several have:")
        for segment_id, voxels in self.lost(order).items():
            name, size = self.names[segment_id], self.sizes[segment_id]
            if voxels == size:
                lines.append(f"· Nothing is left of {name}.")
            else:
                lines.append(f"· {name} loses {voxels} of its {size} voxels.")
        return "\n".join(lines)


def overlaps_of(scene: Any, node: Any, volume: Any) -> Overlaps:
    """Find the voxels of the volume that segments of several names have.

    Segments of one layer share none; where there is one layer nothing is counted.
    """
    inside = node.GetSegmentation()
    layers: dict[int, list[str]] = {}
    for segment_id in ids_of(node):
        layers.setdefault(int(inside.GetLayerIndex(segment_id)), []).append(segment_id)
    if len(layers) < 2:
        return Overlaps()
    sizes: dict[str, int] = {}
    once: Any = False
    several: Any = False
    for ids in layers.values():
        with exported(scene, node, volume, ids) as array:
            held = array > 0
            found = np.bincount(array[held], minlength=len(ids) + 1)
            sizes |= {segment_id: int(found[n]) for n, segment_id in enumerate(ids, start=1)}
            several |= once & held
            once |= held
    where = np.flatnonzero(several)
    values = []
    for ids in layers.values():
        with exported(scene, node, volume, ids) as array:
            values.append(array.ravel()[where])
    groups, counts = np.unique(np.stack(values), axis=1, return_counts=True)
    names = {i: str(inside.GetSegment(i).GetName()) for i in ids_of(node)}
    shared: dict[tuple[str, ...], int] = {}
    for group, voxels in zip(groups.T, counts, strict=True):
        there = {ids[n - 1] for ids, n in zip(layers.values(), group, strict=True) if n}
        if len({names[segment_id] for segment_id in there}) > 1:
            shared[tuple(i for i in names if i in there)] = int(voxels)
    at_stake = {segment_id for ids in shared for segment_id in ids}
    kept = [segment_id for segment_id in names if segment_id in at_stake]
    return Overlaps({i: names[i] for i in kept}, {i: sizes[i] for i in kept}, shared)
