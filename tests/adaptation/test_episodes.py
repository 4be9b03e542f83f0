"""Episodes: by task, split by person, the same for the same number."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from adaptation_sites import CONFIG, site
from segunlearn.adaptation.episodes import Episodes, EpisodeSettings, tasks_of
from segunlearn.adaptation.virtual_sites import VirtualSettings
from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.sets import Study

SITES = {"a": site(1, 12), "b": site(2, 3)}
PLAIN = EpisodeSettings(virtual=None)


def person_of(series: str) -> str:
    return series.removeprefix("series-")


def test_nobody_is_in_support_and_query() -> None:
    twice = [dataclasses.replace(s, series=f"{s.series}-again") for s in SITES["a"]]
    episodes = Episodes({"a": [*SITES["a"], *twice]}, CONFIG, PLAIN, 1)
    for number in range(40):
        drawn = episodes.draw(number)
        support = [person_of(s.removesuffix("-again")) for s in drawn.support_series]
        query = [person_of(s.removesuffix("-again")) for s in drawn.query_series]
        assert not set(support) & set(query)
        assert len(set(support)) == len(support), "k people, one study of each"


def test_k_is_drawn_from_the_list_as_far_as_a_site_has_people() -> None:
    episodes = [Episodes(SITES, CONFIG, PLAIN, 1).draw(n) for n in range(300)]
    sizes = {
        name: {len(e.support_series) for e in episodes if e.task.site == name} for name in SITES
    }
    assert sizes == {"a": {1, 2, 3, 5}, "b": {1, 2}}
    assert all(1 <= len(e.query_series) <= 5 for e in episodes)


def test_a_small_site_is_drawn_as_often_as_a_large_one() -> None:
    episodes = Episodes(SITES, CONFIG, PLAIN, 1)
    counts = Counter(episodes.draw(n).task.site for n in range(400))
    assert 150 < counts["a"] < 250


def test_the_same_number_is_the_same_episode() -> None:
    settings = EpisodeSettings(virtual=VirtualSettings(share=1))
    one, two = (Episodes(SITES, CONFIG, settings, 3) for _ in range(2))
    two.draw(4)
    first, second = one.draw(7), two.draw(7)
    assert first.support_series == second.support_series
    assert len(first.support) == 3
    for x, y in zip((*first.support, first.query), (*second.support, second.query), strict=True):
        assert torch.equal(x[0], y[0])
        assert torch.equal(x[1], y[1])


def labelled(study: Study, *values: int) -> Study:
    label = torch.zeros_like(study.label)
    for place, value in enumerate(values):
        label[place] = value
    return dataclasses.replace(study, label=label)


def test_tasks_are_structures_of_sites_that_enough_people_show() -> None:
    config = dataclasses.replace(CONFIG, labels=("liver", "spleen"))
    both = [labelled(s, 1, 2) for s in site(1, 2)]
    one = [labelled(s, 1) for s in site(2, 3)]
    found = [(t.site, t.structures) for t in tasks_of({"x": both, "y": one}, config, (1, 2))]
    assert found == [
        ("x", ("liver",)), ("x", ("spleen",)), ("x", ("liver", "spleen")),
        ("y", ("liver",)), ("y", ("liver", "spleen")),
    ]  # fmt: skip


def test_sites_with_too_few_people_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"no site has 2 people .* The 2 sites have \[1, 1"):
        tasks_of({"a": site(1, 1), "b": site(2, 1)}, CONFIG, (1, 3))
    empty = [labelled(s) for s in site(2, 3)]
    with pytest.raises(InvalidInputError, match=r"The 2 sites have \[0, 1\] such people"):
        tasks_of({"a": site(1, 1), "b": empty}, CONFIG, (1, 3))


@pytest.mark.parametrize(
    "values", [{"support_people": ()}, {"support_people": (0, 1)}, {"query_people": 0}]
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        EpisodeSettings(**values)  # type: ignore[arg-type]
