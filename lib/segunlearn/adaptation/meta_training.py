"""Meta-training: from joint weights and studies of several sites to a meta model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from segunlearn.adaptation.episodes import Episode, Episodes, EpisodeSettings
from segunlearn.adaptation.generator import Generator, film_layers, film_loss, modulated
from segunlearn.adaptation.inner import InnerSet, Weights, loss_with, refuse_batch_normalisation
from segunlearn.adaptation.maml import LearnedRates, MamlLearner, MamlSettings, stepped_loss
from segunlearn.adaptation.meta_model import MetaModel
from segunlearn.adaptation.plasticity import rescaled
from segunlearn.adaptation.task_loss import Batch
from segunlearn.errors import CancelledError, InvalidInputError, SegUnlearnError
from segunlearn.networks import ModelConfig
from segunlearn.records.runs import Progress
from segunlearn.training import learning_rate_at
from segunlearn.training.checkpoint import Checkpoint, TrainingState
from segunlearn.training.data import Throttle
from segunlearn.unlearning.loop import (
    Cancel,
    Report,
    copy_of,
    device_of,
    never,
    no_report,
    seeded,
)
from segunlearn.unlearning.sets import Study

Learned = Literal["maml", "generator", "generator+maml"]

#: Iterations whose mean loss is one row of the curve.
_ROW = 10


@dataclass(frozen=True)
class MetaSettings:
    """Everything that a meta-training depends on, beside weights, studies and network.

    Parameters
    ----------
    learn
        What is learned, one after the other: ``"maml"`` and ``"generator"`` each from the joint
        weights; ``"generator+maml"`` goes on from the generator, so that gradient steps on the
        weights start at what it gives.
    iterations
        Outer steps of MAML, and of the steps after the generator.
    generator_times
        The generator takes so many times as many: one of its outer steps costs a quarter.
    tasks
        Episodes of an outer step.
    learning_rate, rates_learning_rate, generator_learning_rate
        Peaks of Adam for the network, the logarithms of MAML's rates and the generator; half a
        cosine down to 0.
    stepped_learning_rate
        Peak for network and generator in ``"generator+maml"``, which find them trained already.
    gradient_clip
        Largest norm of the meta-gradient.
    train_network
        Whether the generator's training changes the network too. False: adapters by the generator
        change normalisation layers alone and stay small.
    start_norm
        Norm that convolutions before a normalisation have when the generator's training begins,
        see ``plasticity.rescaled``; None: as joint training left them.
    unstepped
        Weight of the loss before any step in ``"generator+maml"``: the generator stays good alone.
    checkpoint_every
        Iterations after which a killed run goes on.
    maml, episodes
        See ``MamlSettings`` and ``EpisodeSettings``.
    """

    learn: tuple[Learned, ...] = ("maml", "generator")
    iterations: int = 800
    generator_times: int = 4
    tasks: int = 4
    learning_rate: float = 3e-3
    rates_learning_rate: float = 2e-2
    generator_learning_rate: float = 3e-3
    stepped_learning_rate: float = 1e-3
    gradient_clip: float = 10.0
    train_network: bool = True
    start_norm: float | None = None
    unstepped: float = 0.5
    checkpoint_every: int = 50
    maml: MamlSettings = field(default_factory=MamlSettings)
    episodes: EpisodeSettings = field(default_factory=EpisodeSettings)

    def __post_init__(self) -> None:
        known = get_args(Learned)
        if not self.learn or not set(self.learn) <= set(known):
            raise InvalidInputError(f"meta-training learns {', '.join(known)}, not {self.learn}.")
        positive = (
            "iterations", "generator_times", "tasks", "learning_rate", "rates_learning_rate",
            "generator_learning_rate", "stepped_learning_rate", "gradient_clip", "checkpoint_every",
        )  # fmt: skip
        if faults := [f"{name} must be > 0" for name in positive if not getattr(self, name) > 0]:
            raise InvalidInputError(f"meta-training settings: {'; '.join(faults)}.")
        if self.start_norm is not None and not 0 < self.start_norm < math.inf:
            raise InvalidInputError("meta-training settings: start_norm must be > 0.")
        if self.start_norm is not None and not self.train_network:
            raise InvalidInputError(
                "start_norm changes the network's weights, and train_network=False fixes them. "
                "Give one of both."
            )
        if self.unstepped < 0:
            raise InvalidInputError("meta-training settings: unstepped must be >= 0.")
        if "generator+maml" in self.learn and self.maml.order == "reptile":
            raise InvalidInputError(
                "Reptile learns no rates, and none can start at a generator's weights. Choose "
                "first or second order, or learn maml alone."
            )
        if "generator+maml" in self.learn and not self.train_network:
            raise InvalidInputError(
                "generator+maml steps on the network's weights, and train_network=False fixes "
                "them. Let the network be trained, or learn the generator alone."
            )

    @property
    def phases(self) -> tuple[Learned, ...]:
        """What is trained, in this order."""
        both = "generator+maml" in self.learn
        wanted = {*self.learn, *(("generator",) if both else ())}
        return tuple(name for name in get_args(Learned) if name in wanted)

    def iterations_of(self, phase: Learned) -> int:
        """Outer steps of a phase."""
        return self.iterations * (self.generator_times if phase == "generator" else 1)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers, strings and nested mappings."""
        return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self))))


class GeneratorLearner(nn.Module):
    """What is learned with the generator: itself, and the network where that is wanted.

    Parameters
    ----------
    network
        From joint training; changed in place.
    config
        Of it.
    train_network
        See ``MetaSettings``.
    """

    def __init__(self, network: nn.Module, config: ModelConfig, *, train_network: bool) -> None:
        super().__init__()
        self.network = network.eval()
        self.generator = Generator(config, film_layers(network)).to(device_of(network))
        for weight in network.parameters():
            weight.requires_grad_(train_network)

    def accumulate(self, episode: Episode, *, share: float = 1.0, progress: float = 1.0) -> float:
        """Add ``share`` times the gradient of an episode's query loss; see ``MamlLearner``."""
        film = self.generator(self.network, episode.support[0], episode.task.values)
        weights: Weights = dict(self.network.named_parameters())
        loss = film_loss(loss_with(self.network, episode.task.values), weights)
        value = loss(film, episode.query)
        (share * value).backward()  # type: ignore[no-untyped-call]
        return value.item()


class SteppingLearner(nn.Module):
    """What is learned with the generator and the steps after it: both, their rates, the network.

    Parameters
    ----------
    learner
        Of the generator; changed in place.
    settings
        Of the steps.
    unstepped
        See ``MetaSettings``.
    """

    def __init__(self, learner: GeneratorLearner, settings: MamlSettings, unstepped: float) -> None:
        super().__init__()
        self.network, self.generator = learner.network, learner.generator
        self.settings, self.unstepped = settings, unstepped
        self.learned_rates = LearnedRates(self.network, settings)

    def rates(self) -> dict[str, torch.Tensor]:
        """Rate of each adapted weight at each step, ``(steps,)``."""
        return self.learned_rates.by_name()

    def accumulate(self, episode: Episode, *, share: float = 1.0, progress: float = 1.0) -> float:
        """Add ``share`` times the gradient of an episode's query losses; see ``MamlLearner``."""
        film = self.generator(self.network, episode.support[0], episode.task.values)
        weights = modulated(dict(self.network.named_parameters()), film)
        whole, rates = loss_with(self.network, episode.task.values), self.rates()
        stepped = {name: weights[name] for name in rates}

        def loss(now: Weights, batch: Batch) -> torch.Tensor:
            return whole({**weights, **now}, batch)

        total, last = stepped_loss(loss, stepped, rates, episode, self.settings, progress)
        if self.unstepped > 0:
            total = total + self.unstepped * whole(weights, episode.query)
        (share * total).backward()  # type: ignore[no-untyped-call]
        return last


Learner = MamlLearner | GeneratorLearner | SteppingLearner


def meta_train(
    network: nn.Module,
    sites: Mapping[str, Sequence[Study]],
    config: ModelConfig,
    settings: MetaSettings,
    *,
    base_sha256: str,
    start: nn.Module | None = None,
    run_dir: Path | None = None,
    report: Report = no_report,
    cancel: Cancel = never,
) -> MetaModel:
    """Learn to adapt.

    Parameters
    ----------
    network
        Joint weights, which adapters stand beside; never changed.
    start
        Joint weights that learning begins at; None: ``network``'s. What serves unadapted sites best
        was trained longer than what learns best to adapt: on simulated sites that disagree, the
        generator is two points better after 4500 joint steps than after 12,000. From random
        weights, meta-training learns little.
    sites
        Labelled studies on the model's grid, by their site's key. The caller has taken out every
        study that a forget request covers.
    config
        Of the network.
    settings
        How.
    base_sha256
        Digest of the weights' file.
    run_dir
        Holds checkpoints; None: a killed run begins again.
    report, cancel
        Called and asked at each iteration; a phase for each of ``settings.phases``.

    Raises
    ------
    InvalidInputError
        Too few people or sites.
    UnsupportedNetworkError
        Batch normalisation.
    CancelledError
        ``cancel`` said so; a later call goes on from the last checkpoint.
    """
    refuse_batch_normalisation(network)
    refuse_one_site(len(sites), settings)
    phases = settings.phases
    steps = 1 if phases == ("generator",) else settings.maml.steps
    episodes = Episodes(sites, config, settings.episodes, steps)
    fingerprint = _fingerprint(sites, config, settings, base_sha256, start)
    parts: dict[str, Any] = {}
    curves: dict[str, list[dict[str, Any]]] = {}
    learner: Learner | None = None
    for name in phases:
        with seeded(settings.episodes.seed):
            learner = _learner(name, learner, start or network, config, settings)
        folder = None if run_dir is None else Path(run_dir) / name.replace("+", "-")
        curves[name] = _learn(
            learner, name, episodes, settings, _checkpoint(folder, fingerprint), report, cancel
        )
        changed = _differing(learner.network, network)
        if isinstance(learner, MamlLearner):
            parts |= {"initial": changed, "rates": _kept(learner.rates())}
        else:
            parts |= {"film_network": changed, "generator": _kept(learner.generator.state_dict())}
        if isinstance(learner, SteppingLearner):
            parts["film_rates"] = _kept(learner.rates())
    about = {
        "settings": settings.to_json(),
        "curve": curves,
        "sites": len(sites),
        "tasks": len(episodes.tasks),
        "people": len({s.person for studies in sites.values() for s in studies}),
    }
    inner_set: InnerSet = settings.maml.inner_set
    return MetaModel(base_sha256, inner_set, about=about, **parts)


def refuse_one_site(sites: int, settings: MetaSettings) -> None:
    """Refuse a number of sites that is too small.

    Raises
    ------
    InvalidInputError
        It is one, and there are no virtual sites.
    """
    if sites < 2 and settings.episodes.virtual is None:
        raise InvalidInputError(
            "meta-training on one site without virtual sites learns that site by heart. Give "
            "studies of several sites, or leave virtual sites on."
        )


def _learner(
    name: Learned,
    before: Learner | None,
    network: nn.Module,
    config: ModelConfig,
    settings: MetaSettings,
) -> Learner:
    """Make what a phase trains; ``before`` is what the last one trained."""
    if name == "generator+maml" and isinstance(before, GeneratorLearner):
        learner: Learner = SteppingLearner(before, settings.maml, settings.unstepped)
    elif name == "maml":
        learner = MamlLearner(copy_of(network), settings.maml)
    else:
        norm, train_network = settings.start_norm, settings.train_network
        mine = copy_of(network) if norm is None else rescaled(network, norm)
        learner = GeneratorLearner(mine, config, train_network=train_network)
    return learner.to(device_of(network))


def _kept(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def _learn(
    learner: Learner,
    phase: Learned,
    episodes: Episodes,
    settings: MetaSettings,
    checkpoint: Checkpoint | None,
    report: Report,
    cancel: Cancel,
) -> list[dict[str, Any]]:
    """Descend on the query loss; give the curve."""
    groups, peaks = _groups(learner, settings)
    optimiser = torch.optim.Adam(groups)
    state = checkpoint.load(learner, optimiser) if checkpoint is not None else None
    state = state or TrainingState()
    throttle, started, first = Throttle(), time.monotonic(), state.epoch
    weights = [w for group in groups for w in group["params"]]
    total = settings.iterations_of(phase)
    for number in range(first, total):
        if cancel():
            raise CancelledError(
                f"the meta-training ({phase}) was stopped at iteration {number}; start it again "
                "to go on from its last checkpoint."
            )
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = learning_rate_at(number, total, peak, 0.0)
        optimiser.zero_grad(set_to_none=True)
        losses = [
            learner.accumulate(
                episodes.draw(number * settings.tasks + task),
                share=1 / settings.tasks,
                progress=number / total,
            )
            for task in range(settings.tasks)
        ]
        norm = nn.utils.clip_grad_norm_(weights, settings.gradient_clip)
        if not (math.isfinite(losses[-1]) and bool(torch.isfinite(norm))):
            raise SegUnlearnError(
                f"{phase}: the loss became {losses[-1]} at iteration {number}, its gradient "
                f"{float(norm)}. Lower the learning rate or MAML's initial rate."
            )
        optimiser.step()
        done = number + 1
        mean = sum(losses) / len(losses)
        if throttle.due(last=done == total):
            pace = (time.monotonic() - started) / (done - first)
            report(Progress(phase, done, total, {"loss": mean}, pace * (total - done)))
        state.curve.append({"iteration": done, "loss": mean})
        state.epoch = done
        if checkpoint is not None and (done % settings.checkpoint_every == 0 or done == total):
            checkpoint.save(state, learner, optimiser, is_best=False)
    rows = (state.curve[first : first + _ROW] for first in range(0, total, _ROW))
    return [
        {"iteration": r[-1]["iteration"], "loss": sum(x["loss"] for x in r) / len(r)} for r in rows
    ]


def _groups(learner: Learner, settings: MetaSettings) -> tuple[list[dict[str, Any]], list[float]]:
    """Parameters that are learned, and the peaks of their learning rates."""
    network, generator = settings.learning_rate, settings.generator_learning_rate
    if isinstance(learner, SteppingLearner):
        network = generator = settings.stepped_learning_rate
    found = [([w for w in learner.network.parameters() if w.requires_grad], network)]
    if not isinstance(learner, MamlLearner):
        found.append((list(learner.generator.parameters()), generator))
    if not isinstance(learner, GeneratorLearner):
        found.append((list(learner.learned_rates.parameters()), settings.rates_learning_rate))
    found = [(weights, peak) for weights, peak in found if weights]
    return [{"params": weights} for weights, _ in found], [peak for _, peak in found]


def _differing(network: nn.Module, before: nn.Module) -> dict[str, torch.Tensor]:
    old = dict(before.named_parameters())
    return {
        name: weight.detach().cpu()
        for name, weight in network.named_parameters()
        if not torch.equal(weight, old[name])
    }


def _checkpoint(folder: Path | None, fingerprint: str) -> Checkpoint | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return Checkpoint(folder, fingerprint)


def _fingerprint(
    sites: Mapping[str, Sequence[Study]],
    config: ModelConfig,
    settings: MetaSettings,
    base: str,
    start: nn.Module | None,
) -> str:
    """Of everything that shapes the result: a checkpoint of other studies is never used."""
    content = hashlib.sha256()
    facts = {"config": config.to_json(), "settings": settings.to_json(), "base": base}
    content.update(json.dumps(facts, sort_keys=True).encode())
    for weight in start.state_dict().values() if start is not None else ():
        content.update(weight.cpu().numpy().tobytes())
    for site, studies in sorted(sites.items()):
        for study in sorted(studies, key=lambda s: s.series):
            content.update(f"\n{site}\0{study.series}\0{study.person}\0".encode())
            content.update(study.image.numpy().tobytes())
            content.update(study.label.numpy().tobytes())
    return content.hexdigest()
