"""Making a candidate: a method of ``unlearning.METHODS`` on the studies, or a training again."""

from __future__ import annotations

import dataclasses
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from segunlearn.app.audit_choice import Choice
from segunlearn.app.audit_references import reference_settings
from segunlearn.app.audit_studies import read_sets
from segunlearn.app.records import Records
from segunlearn.app.unlearn_check import settings_of
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_replay import ROLE, Replay
from segunlearn.app.unlearn_watch import Watch
from segunlearn.cases import Case
from segunlearn.errors import IntegrityError
from segunlearn.inference import choose_device
from segunlearn.networks import load_weights, save_weights, weights_as_bytes
from segunlearn.records.runs import Progress
from segunlearn.training import train
from segunlearn.unlearning import METHODS, UnlearningSets, unlearn
from segunlearn.unlearning.erode_and_repair_lora import repaired
from segunlearn.unlearning.erosion import restore_from
from segunlearn.unlearning.loop import device_of, watched

#: Method whose candidate leads back to the original by a small deposit.
SMALL: Final = "erode_and_repair_lora"
_HEADER: Final = struct.Struct("<32sd")


@dataclass(frozen=True)
class Made:
    """What a method made.

    Parameters
    ----------
    weights
        Safetensors file.
    sha256
        Of it.
    settings
        As used; without the key, which belongs under seal.
    seed
        Of the random choices.
    read
        Number of studies by set.
    cpu_seconds
        Process time.
    roles
        Cases by their role in the ledger.
    deposit
        Bytes that lead back to the original, see :func:`original_from`; empty: keep its weights.
    exact
        It cannot depend on the forget set.
    """

    weights: Path
    sha256: str
    settings: dict[str, Any]
    seed: int
    read: dict[str, int]
    cpu_seconds: float
    roles: dict[str, tuple[Case, ...]]
    deposit: bytes = b""
    exact: bool = False


def make(
    name: str,
    order: UnlearnOrder,
    sets: Choice,
    records: Records,
    folder: Path,
    report: Callable[[Progress], None],
    cancel: Callable[[], bool],
) -> Made:
    """Run a method on the studies of a choice.

    Parameters
    ----------
    name
        Key of ``METHODS``.
    order
        Settings that differ, device, seed.
    sets
        Original and sets.
    records
        For the settings of the original's training.
    folder
        Where the weights and, while they are made, checkpoints are written.
    report, cancel
        Progress, and whether to stop.

    Raises
    ------
    InvalidInputError
        The settings are wrong, or a set that the method reads is empty.
    CancelledError
        ``cancel`` said so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    watch = Watch(sets, report)
    device = choose_device(order.device)
    original = load_weights(sets.original.weights, sets.config, sets.original.sha256).to(device)
    watch.look(original, "measure the original")
    if name == "retrain":
        made = _retrained(order, sets, records, folder, report, cancel)
    else:
        with watched(watch):
            made = _unlearned(name, original, order, sets, records, folder, report, cancel)
    candidate = load_weights(made.weights, sets.config, made.sha256)
    watch.look(candidate.to(device), "measure the candidate")
    return made


def _unlearned(
    name: str,
    original: nn.Module,
    order: UnlearnOrder,
    sets: Choice,
    records: Records,
    folder: Path,
    report: Callable[[Progress], None],
    cancel: Callable[[], bool],
) -> Made:
    replay = Replay.of(order, records)
    method = METHODS[name]
    settings = settings_of(name, order)
    known = {f.name for f in dataclasses.fields(settings)}
    if "seed" in known and "seed" not in order.settings:
        settings = dataclasses.replace(settings, seed=order.seed)
    if "key" in known:
        settings = dataclasses.replace(settings, key=secrets.token_hex(32))
    reads = method.reads_with(settings)
    stored = [n for n in reads if replay is None or n != "retain"]
    members: dict[str, tuple[Case, ...]] = {
        str(n): method.read_of(n, getattr(sets, n), settings) for n in stored
    }
    studies = read_sets(
        members, sets.config, lambda n, total: report(Progress("read studies", n, total)), cancel,
        without=sets.untaught,
    )  # fmt: skip
    if replay is not None:
        studies["retain"] = replay.studies(original, sets.config, order)
    given = UnlearningSets(sets.config, **studies)
    weights = folder / "candidate.safetensors"
    started, deposit = time.process_time(), b""
    if name == SMALL:
        found = repaired(original, given, settings, report, cancel)
        network = found.network
        digest = save_weights(network.cpu(), weights)
        deposit = _HEADER.pack(bytes.fromhex(found.key), found.keep) + found.deposit.to_bytes()
    else:
        network = unlearn(name, original, given, settings, report, cancel).network
        digest = save_weights(network.cpu(), weights)
    cost = time.process_time() - started
    used = {k: v for k, v in dataclasses.asdict(settings).items() if k != "key"}
    if replay is not None:
        used |= replay.measured(original, network.to(device_of(original)), sets, order, cancel)
        members[ROLE], studies[ROLE] = replay.cases, studies.pop("retain")
    return Made(
        weights, digest, used, int(used.get("seed", 0)), {n: len(s) for n, s in studies.items()},
        cost, members, deposit,
    )  # fmt: skip


def original_from(deposit: bytes, candidate: nn.Module) -> bytes:
    """Bytes of the original's weights, from a deposit and the weights that replaced them.

    Raises
    ------
    IntegrityError
        The deposit is damaged, or belongs to other weights.
    """
    if len(deposit) <= _HEADER.size:
        raise IntegrityError("the deposit is too short to lead anywhere; it was damaged.")
    key, keep = _HEADER.unpack_from(deposit)
    return weights_as_bytes(restore_from(candidate, deposit[_HEADER.size :], key.hex(), keep))


def _retrained(
    order: UnlearnOrder,
    sets: Choice,
    records: Records,
    folder: Path,
    report: Callable[[Progress], None],
    cancel: Callable[[], bool],
) -> Made:
    """Train as the original was, without the forgotten; a stopped one goes on."""
    settings = dataclasses.replace(reference_settings(records, sets, order.device), seed=order.seed)
    cases = sorted(sets.retain, key=lambda c: c.series)
    started = time.process_time()
    result = train(
        cases, sets.config, settings, run_dir=folder / "training", progress=report, cancel=cancel
    )
    weights = folder / "candidate.safetensors"
    digest = save_weights(load_weights(result.weights, result.config, result.sha256), weights)
    roles = {"train": tuple(result.train_cases), "validation": tuple(result.val_cases)}
    return Made(
        weights, digest, settings.to_json(), settings.seed, {"retain": len(cases)},
        time.process_time() - started, roles, exact=True,
    )  # fmt: skip
