"""Training: cases in, weights out, and back where it was after a kill at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from segunlearn.cases import Case, number_of, split_by_person
from segunlearn.errors import InvalidInputError
from segunlearn.networks import (
    ModelConfig,
    build_network,
    load_state,
    read_tensors,
    save_weights,
)
from segunlearn.records.runs import Progress
from segunlearn.records.versions import file_sha256
from segunlearn.training.checkpoint import Checkpoint
from segunlearn.training.data import PreparedCase, Throttle, prepare
from segunlearn.training.loop import Trainer, learning_rate_at, make_loss
from segunlearn.training.parallel import Job, devices_for, train_in_processes
from segunlearn.training.settings import (
    Augmentation,
    CaseDigests,
    TrainResult,
    TrainSettings,
)

__all__ = [
    "ASSUMED",
    "Augmentation",
    "CaseDigests",
    "TrainResult",
    "TrainSettings",
    "learning_rate_at",
    "make_loss",
    "split",
    "train",
]

#: Figure that counts the images for which a modality was assumed from their voxels.
ASSUMED = {"CT": "assumed_ct", "MR": "assumed_mr"}


def train(
    cases: Sequence[Case],
    config: ModelConfig,
    settings: TrainSettings,
    *,
    run_dir: Path,
    parent_weights: Path | None = None,
    parent_sha256: str | None = None,
    check: Callable[[Sequence[PreparedCase]], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    resume: bool = True,
) -> TrainResult:
    """Train a network.

    The persons are split into training and validation (``split``); the weights with the best
    validation Dice are kept. On a CPU the result is the same for the same cases, settings and
    number of threads, also when the run was killed and resumed.

    Parameters
    ----------
    cases
        With labels. The caller has taken out every case that a forget request covers.
    config
        The network.
    settings
        See ``TrainSettings``.
    run_dir
        Holds the checkpoint, and at the end ``weights.safetensors``.
    parent_weights
        Start from these weights (same configuration) instead of random ones.
    parent_sha256
        Digest that ``parent_weights`` must have.
    check
        Called before the first epoch with the cases that are trained on, as they were read; it may
        refuse them.
    progress
        Called with phases ``prepare``, ``train`` and ``validate``, at most twice a second. The
        last report of ``prepare`` counts images whose modality was assumed, see ``ASSUMED``.
    cancel
        Asked at every step.
    resume
        Go on from the checkpoint in ``run_dir`` if it is of the same cases, modalities, labels,
        configuration and settings; any other checkpoint there is discarded.

    Raises
    ------
    CancelledError
        ``cancel`` said so; a later call goes on from the last whole epoch.
    InvalidInputError, LabelError, GeometryError
        Cases, settings and configuration do not fit together.
    IntegrityError
        The parent's weights have another digest.
    """
    started = time.monotonic()
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda _: None)
    stop = cancel or (lambda: False)
    train_cases, val_cases = split(cases, settings)
    throttle = Throttle()

    def prepared(done: int, total: int) -> None:
        if throttle.due(last=done == total):
            report(Progress("prepare", done, total, {}, eta_seconds=None))

    devices = devices_for(settings)
    parent = _parent(parent_weights, parent_sha256)
    cache = run_dir / "cache"
    shutil.rmtree(cache, ignore_errors=True)  # of a run that was killed
    try:
        ready = prepare(
            [*train_cases, *val_cases],
            config,
            cache_gib=settings.cache_gib if len(devices) == 1 else 0,
            folder=cache,
            report=prepared,
            cancel=stop,
            without=settings.without,
            trained=len(train_cases),
        )
        if assumed := Counter(r.assumed.modality for r in ready if r.assumed is not None):
            figures = {ASSUMED[modality]: float(n) for modality, n in assumed.items()}
            report(Progress("prepare", len(ready), len(ready), figures))
        if check is not None:
            check(ready[: len(train_cases)])
        fingerprint = _fingerprint(ready, config, settings, parent)
        checkpoint = Checkpoint(run_dir, fingerprint)
        before = time.monotonic() - started
        if len(devices) > 1:
            job = Job(
                config=config,
                settings=settings,
                run_dir=run_dir,
                fingerprint=fingerprint,
                resume=resume,
                parent_weights=parent,
                folder=cache,
                cases=[(r.case, [v.numpy() for v in r.foreground], r.digests) for r in ready],
                train_cases=len(train_cases),
                devices=devices,
                threads=max(1, torch.get_num_threads() // len(devices)),
                parent=os.getpid(),
            )
            train_in_processes(job, report=report, cancel=stop)
        else:
            network = build_network(config, settings.seed)
            if parent is not None:
                load_state(network, read_tensors(*parent), "parent weights")
            Trainer(
                network,
                config,
                settings,
                ready[: len(train_cases)],
                ready[len(train_cases) :],
                checkpoint,
                device=torch.device(devices[0]),
                report=report,
                cancel=stop,
            ).run(resume=resume)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    state, best = checkpoint.finished()
    weights = run_dir / "weights.safetensors"
    return TrainResult(
        weights=weights,
        sha256=save_weights(best, weights),
        best_dice=state.best_dice,
        curve=state.curve,
        train_cases=train_cases,
        val_cases=val_cases,
        digests={r.case.series: r.digests for r in ready},
        config=config,
        settings=settings,
        seconds=state.seconds + before,
        epochs_done=state.epoch,
    )


def _parent(weights: Path | None, sha256: str | None) -> tuple[Path, str] | None:
    if weights is None:
        return None
    read_tensors(weights, sha256)  # a clear error before the cases are read
    return Path(weights), sha256 or file_sha256(weights)


def split(cases: Sequence[Case], settings: TrainSettings) -> tuple[list[Case], list[Case]]:
    """Divide into cases to train on and to validate on, by person, as ``train`` does.

    Whom the weights were fitted to (``Case.fitted``) is trained on; where that is everybody, nobody
    validates.

    Raises
    ------
    InvalidInputError
        There is none, one is given twice, or there are too few people.
    """
    cases = sorted(cases, key=lambda c: c.series)
    if not cases:
        raise InvalidInputError("no cases to train on. Annotate studies first.")
    if len({c.series for c in cases}) != len(cases):
        raise InvalidInputError("a series was given twice for training; give each once.")
    if settings.val_fraction == 0:
        return cases, []
    share = settings.val_fraction
    fitted = {number_of(c.person) for c in cases if c.fitted}
    others = [c for c in cases if number_of(c.person) not in fitted]
    if fitted:  # as many people as of all, as far as there are others
        if not others:
            return cases, []
        people, free = ({number_of(c.person) for c in some} for some in (cases, others))
        share = min(1.0, max(1, round(share * len(people))) / len(free))
    _, val_cases = split_by_person(others, (1 - share, share), settings.seed)
    validating = {c.series for c in val_cases}
    return [c for c in cases if c.series not in validating], val_cases


def _fingerprint(
    ready: Sequence[PreparedCase],
    config: ModelConfig,
    settings: TrainSettings,
    parent: tuple[Path, str] | None,
) -> str:
    content = {
        "cases": [
            [r.case.series, r.case.person, r.case.modality, r.digests.image, r.digests.label]
            for r in ready
        ],
        "config": config.to_json(),
        "settings": settings.to_json(),
        "parent": None if parent is None else parent[1],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
