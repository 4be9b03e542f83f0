"""The training loop of one process; ``segunlearn.training`` starts one or several of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from monai.losses.dice import DiceCELoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segunlearn.errors import CancelledError, SegUnlearnError
from segunlearn.inference import Segmenter
from segunlearn.networks import ModelConfig
from segunlearn.records.runs import Progress
from segunlearn.training.checkpoint import Checkpoint, TrainingState
from segunlearn.training.data import Batches, PreparedCase, Throttle
from segunlearn.training.settings import TrainSettings
from segunlearn.transforms import Grid, Preprocessed


def learning_rate_at(step: int, total: int, peak: float, warmup: float) -> float:
    """Learning rate of a step: linear warm-up, then a half cosine down to 0.

    With ``w = round(warmup * total)`` steps of warm-up:
    ``peak * (step + 1) / w`` for ``step < w``, else
    ``peak * (1 + cos(pi * (step - w) / (total - w))) / 2``.

    Examples
    --------
    >>> [round(learning_rate_at(s, 8, 1.0, 0.25), 3) for s in (0, 1, 2, 5, 8)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm = round(warmup * total)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2


def make_loss() -> nn.Module:
    """Soft Dice of the structures plus cross-entropy, each a mean over the batch.

    The mean is over samples, so that a batch divided among processes gives the same gradient.
    """
    return cast(nn.Module, DiceCELoss(include_background=False, to_onehot_y=True, softmax=True))


class Trainer:
    """Trains one network in one process.

    Parameters
    ----------
    network
        On the CPU; moved to ``device``.
    config, settings
        Resolved.
    train_cases, val_cases
        Prepared; no person is in both.
    checkpoint
        Where the run is kept; only rank 0 writes.
    device
        Of this process.
    report
        Progress of rank 0.
    cancel
        Asked at every step.
    """

    def __init__(
        self,
        network: nn.Module,
        config: ModelConfig,
        settings: TrainSettings,
        train_cases: Sequence[PreparedCase],
        val_cases: Sequence[PreparedCase],
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        report: Callable[[Progress], None],
        cancel: Callable[[], bool],
    ) -> None:
        self.settings, self.config, self.device = settings, config, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        self.network = network.to(device)
        self.model: nn.Module = self.network
        if self.processes > 1:
            self.model = DistributedDataParallel(
                self.network, device_ids=[device.index] if device.type == "cuda" else None
            )
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.loss = make_loss()
        self.batches = Batches(train_cases, config, settings)
        self.val_cases = val_cases
        self.checkpoint = checkpoint
        self._report, self._cancel, self._throttle = report, cancel, Throttle()
        self._amp = settings.amp == "auto" and device.type == "cuda"
        half = device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self._amp_dtype = torch.float16 if half else torch.bfloat16
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._amp and half)

    def run(self, *, resume: bool) -> TrainingState:
        """Train to the end, from the last checkpoint when ``resume``.

        Raises
        ------
        CancelledError
            ``cancel`` said so; the checkpoint of the last whole epoch stays.
        SegUnlearnError
            The loss is no longer a number.
        """
        started = time.monotonic()
        state = self.checkpoint.load(self.network, self.optimiser) if resume else None
        if state is None:
            # one of other cases goes at once: it may have seen a study that must be forgotten
            if self.rank == 0:
                self.checkpoint.discard()
            state = TrainingState()
        if state.scaler:
            self._scaler.load_state_dict(state.scaler)
        seconds_before, steps_here = state.seconds, 0
        while state.epoch < self.settings.epochs and not state.stopped:
            epoch = state.epoch
            torch.manual_seed(self.settings.seed * 1_000_003 + epoch)  # dropout
            row: dict[str, Any] = {"epoch": epoch + 1}
            row.update(self._train_epoch(epoch, state, started, steps_here))
            steps_here += self.batches.steps
            state.epoch += 1
            is_best = False
            last = state.epoch == self.settings.epochs
            if self.val_cases and (last or state.epoch % self.settings.val_interval == 0):
                per_label = self._validate(state)
                known = [float(d) for d in per_label if not math.isnan(d)]
                # no structure is shown in the validation set: nothing is measured
                dice = sum(known) / len(known) if known else 0.0
                row["val_dice"] = dice if known else None
                row["val_dice_per_label"] = [None if math.isnan(d) else float(d) for d in per_label]
                if is_best := bool(known) and (state.best_dice is None or dice > state.best_dice):
                    state.best_dice, state.best_epoch = dice, state.epoch
                waited = (state.epoch - state.best_epoch) // self.settings.val_interval
                state.stopped = bool(known) and 0 < self.settings.patience <= waited
            state.curve.append(row)
            state.seconds = seconds_before + time.monotonic() - started
            state.scaler = self._scaler.state_dict()
            if self.rank == 0:
                self.checkpoint.save(state, self.network, self.optimiser, is_best=is_best)
        return state

    def _train_epoch(
        self, epoch: int, state: TrainingState, started: float, steps_here: int
    ) -> dict[str, float]:
        self.model.train()
        steps, total = self.batches.steps, self.settings.epochs * self.batches.steps
        losses = torch.zeros((), device=self.device)
        rate = 0.0
        for step, (image, label) in enumerate(self._prefetched(epoch)):
            if self._cancel():
                raise CancelledError(
                    f"the training was stopped in epoch {epoch + 1}; start it again to go on "
                    "from its last checkpoint."
                )
            at = epoch * steps + step
            rate = learning_rate_at(at, total, self.settings.learning_rate, self.settings.warmup)
            losses += self._step(image, label, rate)
            if self._throttle.due(last=step + 1 == steps):
                mean = float(losses) / (step + 1)
                if not math.isfinite(mean):
                    raise self._diverged(f"the loss became {mean}", epoch)
                pace = (time.monotonic() - started) / (steps_here + step + 1)
                metrics = {"loss": mean, "learning_rate": rate, "epoch": float(epoch + 1)}
                if state.best_dice is not None:
                    metrics["best_dice"] = state.best_dice
                    metrics["val_dice"] = next(
                        r["val_dice"]
                        for r in reversed(state.curve)
                        if r.get("val_dice") is not None
                    )
                self._report(
                    Progress("train", at + 1, total, metrics, eta_seconds=pace * (total - at - 1))
                )
        # the last step's gradient is seen by no loss any more
        if not all(bool(p.isfinite().all()) for p in self.network.parameters()):
            raise self._diverged("weights became infinite", epoch)
        if self.processes > 1:
            dist.all_reduce(losses)
        return {"loss": float(losses) / steps / self.processes, "learning_rate": rate}

    def _diverged(self, what: str, epoch: int) -> SegUnlearnError:
        return SegUnlearnError(
            f"{what} in epoch {epoch + 1}: training diverged. Lower the learning rate (it is "
            f"{self.settings.learning_rate:g})."
        )

    def _step(self, image: torch.Tensor, label: torch.Tensor, rate: float) -> torch.Tensor:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        image = image.to(self.device, non_blocking=True)
        label = label.to(self.device, non_blocking=True)
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self._amp_dtype, enabled=self._amp):
            logits = self.model(image)
        loss = self.loss(logits.float(), label)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        return cast(torch.Tensor, loss.detach())

    def _prefetched(self, epoch: int) -> Any:
        """Batches of an epoch; with a GPU, threads cut the next ones while it works."""
        steps = range(self.batches.steps)
        make = lambda s: self.batches.batch(epoch, s, self.rank, self.processes)  # noqa: E731
        if self.device.type != "cuda":
            yield from map(make, steps)
            return
        workers = 4
        with ThreadPoolExecutor(workers) as pool:
            waiting = [pool.submit(make, s) for s in steps[: 2 * workers]]
            for step in steps:
                batch = waiting.pop(0).result()
                if step + 2 * workers < self.batches.steps:
                    waiting.append(pool.submit(make, step + 2 * workers))
                yield batch

    def _validate(self, state: TrainingState) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Mean Dice of each label over the cases that show it, on the model's grid."""
        segmenter = Segmenter(self.network, self.config, self.device)
        scores = torch.full(
            (len(self.val_cases), len(self.config.labels)), float("nan"), dtype=torch.float64
        )
        for number in range(self.rank, len(self.val_cases), self.processes):
            if self._cancel():
                raise CancelledError("the training was stopped during a validation.")
            ready = self.val_cases[number]
            shape = (ready.label.shape[0], ready.label.shape[1], ready.label.shape[2])
            grid = Grid(shape, np.eye(4), (0, 1, 2), (False, False, False), shape)
            mask = segmenter.probabilities_of(Preprocessed(ready.image, grid)).argmax(0).cpu()
            for i, value in enumerate(self.config.label_values.values()):
                truth, found = ready.label == value, mask == value
                if truth.any():
                    both = float((truth & found).sum())
                    scores[number, i] = 2 * both / float(truth.sum() + found.sum())
            if self._throttle.due(last=number + 1 == len(self.val_cases)):
                self._report(
                    Progress(
                        "validate",
                        number + 1,
                        len(self.val_cases),
                        {"epoch": float(state.epoch)},
                        eta_seconds=None,
                    )
                )
        if self.processes > 1:
            known = (~scores.isnan()).double().to(self.device)
            summed = scores.nan_to_num(0.0).to(self.device)
            dist.all_reduce(known)
            dist.all_reduce(summed)
            scores = torch.where(known > 0, summed, torch.nan).cpu()
        return np.asarray(scores.nanmean(dim=0).numpy(), dtype=np.float64)
