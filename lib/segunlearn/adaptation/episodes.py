"""Episodes: a few people of a site to adapt to, and other people of it to be judged on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from segunlearn.adaptation.sampling import patches_of
from segunlearn.adaptation.task_loss import Batch, values_of
from segunlearn.adaptation.virtual_sites import VirtualSettings, VirtualSite
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.training.settings import Augmentation
from segunlearn.unlearning.sets import Study

#: What it changes of a patch: places, no grey values.
PLACES: Final = Augmentation(noise=0, blur=0, brightness=0, contrast=0, gamma=0)


@dataclass(frozen=True)
class EpisodeSettings:
    """How episodes are drawn.

    Parameters
    ----------
    support_people
        Numbers of support people, one of which is drawn for each episode (k).
    query_people
        Most people of a query set.
    patches
        Patches of each study in a batch.
    spatial
        Share of patches that are rotated, scaled and bent, as in training. Their grey values are
        those of the site: only virtual sites change these.
    virtual
        Virtual sites; None: none.
    seed
        Of every choice.
    """

    support_people: tuple[int, ...] = (1, 2, 3, 5)
    query_people: int = 5
    patches: int = 1
    spatial: float = 0.7
    virtual: VirtualSettings | None = field(default_factory=VirtualSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.support_people or min(self.support_people) < 1:
            raise InvalidInputError("episodes need numbers of support people, each at least 1.")
        if self.query_people < 1 or self.patches < 1 or self.seed < 0:
            raise InvalidInputError("episodes need query_people and patches >= 1, and a seed >= 0.")
        if not 0 <= self.spatial <= 1:
            raise InvalidInputError("episodes: spatial is a share, must be in [0, 1].")


@dataclass(frozen=True)
class Task:
    """What is to be segmented, at one site.

    Parameters
    ----------
    site
        Its key.
    structures, values
        Names and label values; one structure, or all of the model's.
    people
        Studies of each person that show one of them.
    """

    site: str
    structures: tuple[str, ...]
    values: tuple[int, ...]
    people: tuple[tuple[Study, ...], ...]


@dataclass(frozen=True, eq=False)
class Episode:
    """One draw of a task.

    Parameters
    ----------
    task
        Of which.
    support
        One batch for each inner step, of k people.
    query
        Of other people.
    support_series, query_series
        The studies of both.
    """

    task: Task
    support: tuple[Batch, ...]
    query: Batch
    support_series: tuple[str, ...]
    query_series: tuple[str, ...]


def tasks_of(
    sites: Mapping[str, Sequence[Study]], config: ModelConfig, support_people: Sequence[int]
) -> tuple[Task, ...]:
    """List the tasks: each structure of each site, and all structures together.

    Parameters
    ----------
    sites
        Studies by their site's key.
    support_people
        Numbers of support people that are wanted; a task needs the least of them and one more.

    Raises
    ------
    InvalidInputError
        No site has people enough; the message counts what is there.
    """
    need, shown = min(support_people) + 1, list[int]()
    groups: list[tuple[str, ...]] = [(name,) for name in config.labels]
    if len(groups) > 1:
        groups.append(config.labels)
    tasks = []
    for site, studies in sorted(sites.items()):
        for structures in groups:
            values = values_of(structures, config)
            people: dict[str, list[Study]] = {}
            for study in sorted(studies, key=lambda s: s.series):
                if bool(torch.isin(study.label, torch.tensor(values)).any()):
                    people.setdefault(study.person, []).append(study)
            if len(people) >= need:
                tasks.append(Task(site, structures, values, tuple(map(tuple, people.values()))))
        shown.append(len(people))  # the last group is of every structure
    refuse_few_people(shown, need)
    return tuple(tasks)


def refuse_few_people(shown: Sequence[int], need: int) -> None:
    """Refuse sites of which none has people enough to learn from.

    Parameters
    ----------
    shown
        Of each site, the people whose labels show a structure.
    need
        People of an episode.

    Raises
    ------
    InvalidInputError
        As said; the message counts what is there.
    """
    if max(shown, default=0) < need:
        raise InvalidInputError(
            f"no site has {need} people with a structure: {need - 1} to adapt to and one to be "
            f"judged on. The {len(shown)} sites have {sorted(shown)} such people. Annotate more "
            "people of a site, or join sites of one scanner."
        )


class Episodes:
    """Endless episodes; the same seed and number give the same episode.

    Every task is drawn as often as every other: a small site counts as much as a large one.

    Parameters
    ----------
    sites
        Studies by their site's key.
    config
        Of the network.
    settings
        How.
    steps
        Inner steps: support batches of an episode.
    """

    def __init__(
        self,
        sites: Mapping[str, Sequence[Study]],
        config: ModelConfig,
        settings: EpisodeSettings,
        steps: int,
    ) -> None:
        self.tasks = tasks_of(sites, config, settings.support_people)
        self._config, self._settings, self._steps = config, settings, max(1, steps)

    def draw(self, number: int) -> Episode:
        """Return an episode by its number."""
        rng = np.random.default_rng((self._settings.seed, number))
        task = self.tasks[rng.integers(len(self.tasks))]
        many = [k for k in self._settings.support_people if k < len(task.people)]
        k = int(rng.choice(many))
        order = rng.permutation(len(task.people))
        picked = [task.people[i][rng.integers(len(task.people[i]))] for i in order]
        support, query = picked[:k], picked[k : k + self._settings.query_people]
        batches = [self._batch(support, rng) for _ in range(self._steps)]
        judged = self._batch(query, rng, foreground=0.5)
        virtual = self._settings.virtual
        if virtual is not None and rng.random() < virtual.share:
            edges = np.quantile(batches[0][0].numpy(), [0.005, 0.995])
            made_up = VirtualSite.draw(float(edges[0]), float(edges[1]), virtual, rng)
            batches = [(made_up.image(x, rng), made_up.label(y)) for x, y in batches]
            judged = made_up.image(judged[0], rng), made_up.label(judged[1])
        return Episode(
            task,
            tuple(batches),
            judged,
            tuple(s.series for s in support),
            tuple(s.series for s in query),
        )

    def _batch(
        self, studies: Sequence[Study], rng: np.random.Generator, foreground: float = 0.67
    ) -> Batch:
        share = self._settings.spatial
        return patches_of(
            studies, self._config, self._settings.patches, rng, foreground=foreground,
            augmentation=dataclasses.replace(PLACES, spatial=share) if share else None,
        )  # fmt: skip
