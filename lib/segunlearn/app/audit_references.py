"""Fully retrained references of an audit: the original's training again, without the forgotten."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from segunlearn.app.audit_choice import Choice, seconds_of, settings_of
from segunlearn.app.records import Records
from segunlearn.cases import persons_of
from segunlearn.errors import InvalidInputError
from segunlearn.networks import load_weights, save_weights
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.records.runs import Progress
from segunlearn.training import Augmentation, TrainSettings, train

#: Seeds of the references begin so far after the original's.
_SEED_STEP = 1000


@dataclass(frozen=True)
class References:
    """Never-seen models of an audit.

    Parameters
    ----------
    networks
        On the CPU.
    digests
        SHA-256 of their weights.
    cpu_seconds
        Mean process time of one training.
    """

    networks: tuple[nn.Module, ...]
    digests: tuple[str, ...]
    cpu_seconds: float


def seconds_for(choice: Choice, count: int) -> float:
    """Wall time that ``count`` references will take, by what the original's training took."""
    cases = max(1, choice.row.cases_count)
    return count * seconds_of(choice.row) * len(choice.retain) / cases


def reference_settings(records: Records, choice: Choice, device: str) -> TrainSettings:
    """Take the settings of the original's training, or the defaults where the ledger has none.

    Raises
    ------
    InvalidInputError
        They were written by another version of the program.
    """
    recorded = settings_of(records.ledger, choice.row)
    changes: dict[str, Any] = {"device": device}
    if len(persons_of(choice.retain)) < 2:
        changes["val_fraction"] = 0.0
    return replace(_settings_from(recorded) if recorded else TrainSettings(), **changes)


def _settings_from(data: Mapping[str, Any]) -> TrainSettings:
    try:
        augmentation = dict(data["augmentation"])
        augmentation["flip_axes"] = tuple(augmentation["flip_axes"])
        values = {**data, "augmentation": Augmentation(**augmentation)}
        return TrainSettings(**{**values, "without": tuple(data.get("without", ()))})
    except (KeyError, TypeError) as error:
        raise InvalidInputError(
            f"the ledger's settings of the original's training cannot be used ({error}): they were "
            "written by another version of SegUnlearn. Audit without a full reference."
        ) from error


def train_references(
    choice: Choice,
    settings: TrainSettings,
    count: int,
    *,
    data_digest: str,
    folder: Path,
    report: Callable[[Progress], None],
    cancel: Callable[[], bool],
) -> References:
    """Train references, or take those that an earlier start of the same audit left.

    Parameters
    ----------
    choice
        R and the network.
    settings
        Of each training, but for the seed.
    count
        How many.
    data_digest
        Of the audit's sets: other data makes other references.
    folder
        Kept between starts.
    report, cancel
        Progress of each training, and whether to stop.

    Raises
    ------
    CancelledError
        ``cancel`` said so; finished references and the checkpoint of the one under way stay.
    """
    found: list[tuple[nn.Module, str, float]] = []
    for number in range(1, count + 1):
        own = replace(settings, seed=settings.seed + _SEED_STEP * number)
        wanted = json.loads(
            json.dumps(
                {
                    "data": data_digest,
                    "series": sorted(c.series for c in choice.retain),
                    "settings": own.to_json(),
                    "config": choice.config.to_json(),
                }
            )
        )
        found.append(_reference(choice, own, number, count, wanted, folder, report, cancel))
    cost = [seconds for _, _, seconds in found]
    return References(
        tuple(n for n, _, _ in found), tuple(d for _, d, _ in found), sum(cost) / len(cost)
    )


def _reference(
    choice: Choice,
    settings: TrainSettings,
    number: int,
    count: int,
    wanted: Mapping[str, Any],
    folder: Path,
    report: Callable[[Progress], None],
    cancel: Callable[[], bool],
) -> tuple[nn.Module, str, float]:
    weights, mark = folder / f"full-{number}.safetensors", folder / f"full-{number}.json"
    if weights.is_file() and mark.is_file():
        kept = read_json(mark)
        if {k: kept.get(k) for k in wanted} == wanted:
            network = load_weights(weights, choice.config, kept["sha256"])
            return network, str(kept["sha256"]), float(kept["cpu_seconds"])

    def named(progress: Progress) -> None:
        phase = f"full reference {number} of {count}: {progress.phase}"
        report(replace(progress, phase=phase))

    run_dir = folder / f"full-{number}"
    spent_file = folder / f"full-{number}-spent.json"
    before = float(read_json(spent_file)["cpu_seconds"]) if spent_file.is_file() else 0.0
    started = time.process_time()
    try:
        result = train(
            _sorted(choice), choice.config, settings, run_dir=run_dir, progress=named, cancel=cancel
        )
    finally:  # a stopped training is paid for too
        spent = before + time.process_time() - started
        write_json_durably(spent_file, {"cpu_seconds": spent})
    network = load_weights(result.weights, choice.config, result.sha256)
    sha256 = save_weights(network, weights)
    write_json_durably(mark, {**wanted, "sha256": sha256, "cpu_seconds": spent})
    spent_file.unlink(missing_ok=True)
    shutil.rmtree(run_dir, ignore_errors=True)
    return network, sha256, spent


def _sorted(choice: Choice) -> Sequence[Any]:
    return sorted(choice.retain, key=lambda c: c.series)
