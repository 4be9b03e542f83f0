"""Adapting a network to one site, from the annotated studies of a few of its people."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from torch import nn

from segunlearn.adaptation.generator import Generator, film_layers, film_loss, folded
from segunlearn.adaptation.inner import (
    InnerSet,
    Loss,
    Weights,
    inner_names,
    loss_with,
    rate_at,
    refuse_batch_normalisation,
)
from segunlearn.adaptation.meta_model import MetaModel, need
from segunlearn.adaptation.sampling import VOXELS_TOGETHER, parts_of, patches_of
from segunlearn.adaptation.task_loss import Batch, values_of
from segunlearn.adapters.site import with_tensors
from segunlearn.errors import CancelledError, InvalidInputError, LabelError, SegUnlearnError
from segunlearn.networks import ModelConfig, load_state
from segunlearn.records.runs import Progress
from segunlearn.training.settings import Augmentation
from segunlearn.unlearning.loop import Cancel, Report, device_of, never, no_report
from segunlearn.unlearning.sets import Study

AdaptMethod = Literal["generator+maml", "maml", "generator", "generator+steps", "fine_tune"]

#: Of Adam for fine_tune, and of the steps on a modulation.
_RATES: Final[dict[str, float]] = {"fine_tune": 1e-3, "generator+steps": 0.3}

#: What each method reads of the settings, beside structures, patches and seed: the rest is learned.
READS: Final[Mapping[str, tuple[str, ...]]] = {
    "generator+maml": ("steps",),
    "maml": ("steps",),
    "generator": (),
    "generator+steps": ("steps", "learning_rate"),
    "fine_tune": ("steps", "inner_set", "learning_rate"),
}


@dataclass(frozen=True)
class AdaptSettings:
    """How a site is adapted.

    Parameters
    ----------
    method
        ``"maml"``: steps from the meta-learned weights, with the learned rates. ``"generator"``:
        one forward pass, no step. ``"generator+steps"``: then steps on the modulation alone.
        ``"generator+maml"``: then steps on the weights, with rates learned for that.
        ``"fine_tune"``: Adam from the base's weights; needs no meta-training.
    steps
        Gradient steps; ``"generator"`` takes none.
    inner_set
        What fine_tune changes; MAML changes what it was trained for.
    learning_rate
        Of fine_tune and of the steps on a modulation; None takes 1e-3 and 0.3.
    structures
        Names of what the site annotates; none: everything that the support shows.
    patches
        Patches of each study at each step.
    augment
        Change the patches of fine_tune at random, as in training.
    seed
        Of the patches.
    """

    method: AdaptMethod = "maml"
    steps: int = 3
    inner_set: InnerSet = "decoder"
    learning_rate: float | None = None
    structures: tuple[str, ...] = ()
    patches: int = 1
    augment: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(AdaptMethod):
            known = ", ".join(get_args(AdaptMethod))
            raise InvalidInputError(f"no adapting method {self.method!r}: {known}.")
        if self.inner_set not in get_args(InnerSet):
            known = ", ".join(get_args(InnerSet))
            raise InvalidInputError(f"no inner set {self.inner_set!r}: {known}.")
        if self.steps < 0 or self.patches < 1 or self.seed < 0:
            raise InvalidInputError("adapting needs steps >= 0, patches >= 1 and a seed >= 0.")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise InvalidInputError(f"the learning rate is {rate}, must be above 0.")

    @property
    def used(self) -> dict[str, Any]:
        """Inner set and learning rate of the steps; None where the method reads none."""
        reads = READS[self.method]
        rate = self.learning_rate or _RATES.get(self.method)
        return {
            "inner_set": self.inner_set if "inner_set" in reads else None,
            "learning_rate": rate if "learning_rate" in reads else None,
        }


@dataclass(frozen=True, eq=False)
class Adapted:
    """A network that was fitted to a site.

    Parameters
    ----------
    network
        In evaluation mode; the given one is untouched.
    tensors
        What differs from the given one: the content of a site adapter.
    curve
        ``(step, loss on the support patches)`` before the first step and after each.
    structures
        What it was fitted for.
    """

    network: nn.Module
    tensors: dict[str, torch.Tensor]
    curve: tuple[tuple[int, float], ...]
    structures: tuple[str, ...]


def adapt(
    network: nn.Module,
    meta: MetaModel | None,
    support: Sequence[Study],
    config: ModelConfig,
    settings: AdaptSettings,
    report: Report = no_report,
    cancel: Cancel = never,
) -> Adapted:
    """Fit a network to the studies of one site.

    Parameters
    ----------
    network
        The base.
    meta
        What meta-training left beside it; None: only ``fine_tune`` is possible.
    support
        Annotated studies of the site, on the model's grid; their order changes nothing.
    config
        Of the network.
    settings
        How.
    report, cancel
        Called and asked at each step; phase ``adapt``.

    Raises
    ------
    InvalidInputError, LabelError
        The support cannot be used, see ``check_support``.
    NotFoundError
        The method needs a meta model and there is none, or one for other methods.
    UnsupportedNetworkError
        Batch normalisation.
    CancelledError
        ``cancel`` said so; nothing was kept.
    """
    steps = 0 if settings.method == "generator" else settings.steps
    way = adapt_along(network, meta, support, config, settings, {steps}, report, cancel)
    return next(adapted for _, adapted in way)


def adapt_along(
    network: nn.Module,
    meta: MetaModel | None,
    support: Sequence[Study],
    config: ModelConfig,
    settings: AdaptSettings,
    wanted: Collection[int],
    report: Report = no_report,
    cancel: Cancel = never,
) -> Iterator[tuple[int, Adapted]]:
    """Give what ``adapt`` gives after each number of steps that is ``wanted``, in one descent."""
    values = check_support(support, config, settings.structures)
    refuse_batch_normalisation(network)
    if settings.method != "fine_tune":
        meta = need(meta, settings.method)
    if settings.method.startswith("generator") and meta is not None:
        start, weights, tensors_of, update = _generated(
            network, meta, support, config, settings, values
        )
    elif meta is not None and settings.method == "maml":
        start, weights, tensors_of, update = _learned(network, meta)
    else:
        start, weights, tensors_of, update = _fine_tuned(network, settings)
    steps = max(wanted)
    loss = loss_with(start.network, values)
    loss = film_loss(loss, start.weights) if start.film else loss
    rng = np.random.default_rng(settings.seed)
    names = {value: name for name, value in config.label_values.items()}
    augmentation = Augmentation() if settings.augment and settings.method == "fine_tune" else None
    curve = []
    for step in range(steps + 1):
        if cancel():
            raise CancelledError(f"the adapting was stopped at step {step}; nothing was kept.")
        last = step == steps
        batch = patches_of(
            support, config, settings.patches, rng, augmentation=None if last else augmentation
        )
        value, gradients = gradient_of(loss, weights, batch, wanted=not last)
        if not math.isfinite(value):
            raise SegUnlearnError(
                f"adapting: the loss became {value} at step {step}. Take fewer steps or a smaller "
                "learning rate; the base stays."
            )
        curve.append((step, value))
        report(Progress("adapt", step, steps, {"loss": value}))
        if step in wanted:
            tensors = {k: v.detach().float().cpu().clone() for k, v in tensors_of(weights).items()}
            yield (
                step,
                Adapted(
                    network=with_tensors(network, tensors),
                    tensors=tensors,
                    curve=tuple(curve),
                    structures=tuple(names[v] for v in values),
                ),
            )
        if not last:
            weights = update(step, weights, gradients)


def check_support(
    support: Sequence[Study], config: ModelConfig, structures: Sequence[str] = ()
) -> tuple[int, ...]:
    """Refuse studies that a network cannot be fitted to; give the label values of the task.

    Raises
    ------
    InvalidInputError
        There is no study, one is given twice, its channels differ from the model's, or it holds
        numbers that are not finite; or a structure is unknown.
    LabelError
        A label value is not the model's, or no study shows any of the structures.
    """
    if not support:
        raise InvalidInputError("there is no study to adapt to. Annotate one of the site first.")
    if len({s.series for s in support}) != len(support):
        raise InvalidInputError("a series is given twice in the support; give each once.")
    shown: set[int] = set()
    for study in support:
        if study.image.shape[0] != config.in_channels:
            raise InvalidInputError(
                f"a support image has {study.image.shape[0]} channels, the model wants "
                f"{config.in_channels}. Give images of the model's kind."
            )
        if not bool(torch.isfinite(study.image).all()):
            raise InvalidInputError("a support image holds values that are not finite; check it.")
        found = {int(v) for v in torch.unique(study.label)}
        if unknown := sorted(found - {0, *config.label_values.values()}):
            raise LabelError(
                f"a support study holds label values {unknown}, which the model does not know; "
                f"it knows {config.label_values}. Correct its segmentation."
            )
        shown |= found
    asked = values_of(structures, config)
    values = asked if structures else tuple(v for v in asked if v in shown)
    if not shown & set(values):
        wanted = ", ".join(structures or config.labels)
        raise LabelError(
            f"no support study shows {wanted}: there is nothing to adapt to. Annotate it in at "
            "least one study."
        )
    return values


def gradient_of(
    loss: Loss,
    weights: Weights,
    batch: Batch,
    *,
    wanted: bool = True,
    together: int = VOXELS_TOGETHER,
) -> tuple[float, Weights]:
    """Loss of a batch and, if wanted, its gradient, added up over groups of patches.

    The loss is a mean over patches, so groups of ``together`` voxels change nothing but the memory.
    """
    total, count = 0.0, len(batch[0])
    gradients = {name: torch.zeros_like(w) for name, w in weights.items()} if wanted else {}
    for part in parts_of(batch, together):
        share = len(part[0]) / count
        with torch.set_grad_enabled(wanted):
            now = {name: w.detach().requires_grad_(wanted) for name, w in weights.items()}
            value = loss(now, part) * share
        total += value.item()
        if wanted:
            found = torch.autograd.grad(value, list(now.values()))
            for name, gradient in zip(now, found, strict=True):
                gradients[name] += gradient
    return total, gradients


@dataclass(frozen=True)
class _Start:
    """Network, and its weights, that the steps start from."""

    network: nn.Module
    weights: Weights
    film: bool = False


_Update = Callable[[int, Weights, Weights], Weights]
_Way = tuple[_Start, Weights, Callable[[Weights], Weights], _Update]


def _start(network: nn.Module, tensors: Mapping[str, torch.Tensor], *, film: bool) -> _Start:
    started = with_tensors(network, tensors)
    return _Start(started, {k: p.detach() for k, p in started.named_parameters()}, film)


def _descended(rate_of: Callable[[str, int], float | torch.Tensor]) -> _Update:
    def update(step: int, weights: Weights, gradients: Weights) -> Weights:
        return {n: w - rate_of(n, step) * gradients[n] for n, w in weights.items()}

    return update


def _by_learned_rates(rates: Mapping[str, torch.Tensor], device: torch.device) -> _Update:
    here = {name: rate.to(device) for name, rate in rates.items()}
    return _descended(lambda name, step: rate_at(here[name], step))


def _learned(network: nn.Module, meta: MetaModel) -> _Way:
    start = _start(network, meta.initial, film=False)
    weights = {name: start.weights[name] for name in meta.rates}
    initial = {name: start.weights[name] for name in meta.initial}
    update = _by_learned_rates(meta.rates, device_of(network))
    return start, weights, lambda w: {**initial, **w}, update


def _fine_tuned(network: nn.Module, settings: AdaptSettings) -> _Way:
    start = _start(network, {}, film=False)
    names = inner_names(network, settings.inner_set)
    weights = {name: start.weights[name].clone() for name in names}
    rate = settings.learning_rate or _RATES["fine_tune"]
    optimiser = torch.optim.Adam(list(weights.values()), lr=rate, fused=True)

    def update(_: int, now: Weights, gradients: Weights) -> Weights:
        for name, weight in now.items():
            weight.grad = gradients[name]
        optimiser.step()
        return now

    return start, weights, dict, update


def _generated(
    network: nn.Module,
    meta: MetaModel,
    support: Sequence[Study],
    config: ModelConfig,
    settings: AdaptSettings,
    values: Sequence[int],
) -> _Way:
    start = _start(network, meta.film_network, film=True)
    generator = Generator(config, film_layers(network))
    load_state(generator, meta.generator, "generator of the meta model")
    generator = generator.to(device_of(network)).eval()
    rng = np.random.default_rng((settings.seed, 1))
    batch = patches_of(support, config, settings.patches, rng)
    with torch.no_grad():
        film = generator(start.network, batch, values)
    initial = {name: start.weights[name] for name in meta.film_network}
    if settings.method == "generator+maml":
        fast = folded(start.weights, film)
        stepped = _start(start.network, fast, film=False)
        weights = {name: stepped.weights[name] for name in meta.film_rates}
        update = _by_learned_rates(meta.film_rates, device_of(network))
        return stepped, weights, lambda w: {**initial, **fast, **w}, update
    rate = settings.learning_rate or _RATES["generator+steps"]
    update = _descended(lambda _name, _step: rate)
    return start, film, lambda w: {**initial, **folded(start.weights, w)}, update
