"""Checkpoints that survive a kill at any line.

::

    run_dir/checkpoint.json              epoch, curve, digests of the tensors; replaced last
    run_dir/state-000012.safetensors     weights and optimiser state after epoch 12
    run_dir/best-000010.safetensors      the best weights until then

The JSON names its tensor files and their digests, and is replaced by one rename after they are on
the disk: it always describes a whole checkpoint. Older files are removed afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segunlearn.errors import IntegrityError, SegUnlearnError
from segunlearn.networks import load_state, read_tensors, save_weights
from segunlearn.records.durable import read_json, write_json_durably

_JSON = "checkpoint.json"
_TENSORS = re.compile(r"(state|best)-\d{6}\.safetensors")


@dataclass
class TrainingState:
    """What a run knows after an epoch, beside weights and optimiser.

    Parameters
    ----------
    epoch
        Epochs done.
    best_dice, best_epoch
        None and 0 before the first validation.
    curve
        See ``TrainResult.curve``.
    seconds
        Wall time of all attempts until then.
    stopped
        No more epochs: stopped early, or all done.
    scaler
        State of the gradient scaler of float16 training.
    """

    epoch: int = 0
    best_dice: float | None = None
    best_epoch: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False
    scaler: dict[str, Any] = field(default_factory=dict)


class Checkpoint:
    """The checkpoint of one run.

    Parameters
    ----------
    folder
        ``home/runs/<run_id>``.
    fingerprint
        Of cases, configuration and settings. A checkpoint with another one is never used: it may
        have seen a study that has since been marked to be forgotten.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = Path(folder)
        self._fingerprint = fingerprint

    def save(
        self,
        state: TrainingState,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        is_best: bool,
    ) -> None:
        """Write a checkpoint; before it is complete the older one stays the valid one."""
        tensors = {f"network/{k}": v for k, v in network.state_dict().items()}
        for name, values in zip(_names(network), _moments(network, optimiser), strict=True):
            tensors.update({f"optimiser/{k}/{name}": v for k, v in values.items()})
        record = self._read() if state.epoch and not is_best else None
        files = {"state": f"state-{state.epoch:06d}.safetensors"}
        digests = {files["state"]: save_weights(tensors, self._folder / files["state"])}
        if is_best:
            files["best"] = f"best-{state.epoch:06d}.safetensors"
            digests[files["best"]] = save_weights(network, self._folder / files["best"])
        elif record is not None and "best" in record["files"]:
            files["best"] = record["files"]["best"]
            digests[files["best"]] = record["sha256"][files["best"]]
        write_json_durably(
            self._folder / _JSON,
            {
                "fingerprint": self._fingerprint,
                "files": files,
                "sha256": digests,
                "state": vars(state),
            },
        )
        for path in self._folder.iterdir():
            older = _TENSORS.fullmatch(path.name) and path.name not in files.values()
            if older or path.name.endswith(".part"):  # half-written by one that was killed
                path.unlink()

    def load(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> TrainingState | None:
        """Put the run back where its last checkpoint was; None when there is nothing usable."""
        record = self._read()
        if record is None:
            return None
        try:
            state = TrainingState(**record["state"])
            tensors = self._tensors(record, "state")
            self._tensors(record, "best")  # needed at the end: better to learn now that it is gone
            load_state(network, _weights_in(tensors), record["files"]["state"])
        except (SegUnlearnError, KeyError, TypeError, AttributeError):
            return None
        _load_moments(network, optimiser, tensors)
        return state

    def finished(self) -> tuple[TrainingState, dict[str, torch.Tensor]]:
        """State and weights to keep: the best ones, or the last where none were validated.

        Raises
        ------
        IntegrityError
            There is no checkpoint, or a file of it was changed.
        """
        record = self._read()
        if record is None:
            raise IntegrityError(
                f"{self._folder.name}: the checkpoint of the run is gone or was changed while it "
                "was used. Start the training again."
            )
        best = self._tensors(record, "best")
        weights = best if best else _weights_in(self._tensors(record, "state"))
        return TrainingState(**record["state"]), weights

    def discard(self) -> None:
        """Remove the checkpoint; the JSON first, so that none is ever half there."""
        (self._folder / _JSON).unlink(missing_ok=True)
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if _TENSORS.fullmatch(path.name) or path.name.endswith(".part"):
                    path.unlink()

    def _tensors(self, record: Mapping[str, Any], kind: str) -> dict[str, torch.Tensor]:
        """Tensors of ``"state"`` or ``"best"``; none where the record names no such file."""
        if kind == "best" and kind not in record["files"]:
            return {}
        name = record["files"][kind]
        return read_tensors(self._folder / name, record["sha256"][name])

    def _read(self) -> dict[str, Any] | None:
        if not (self._folder / _JSON).is_file():
            return None
        try:
            record = read_json(self._folder / _JSON)
            matches = record["fingerprint"] == self._fingerprint
        except (SegUnlearnError, KeyError, TypeError):
            return None
        return record if matches else None


def _weights_in(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")}


def _names(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def _moments(
    network: nn.Module, optimiser: torch.optim.Optimizer
) -> list[Mapping[str, torch.Tensor]]:
    return [
        {k: v for k, v in optimiser.state.get(p, {}).items() if isinstance(v, torch.Tensor)}
        for p in network.parameters()
    ]


def _load_moments(
    network: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    for name, parameter in network.named_parameters():
        values = {}
        for key, tensor in tensors.items():
            if key.startswith("optimiser/") and key.endswith(f"/{name}"):
                kind = key.split("/")[1]
                values[kind] = tensor if kind == "step" else tensor.to(parameter.device)
        if values:
            optimiser.state[parameter] = values
