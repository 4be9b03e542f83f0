"""One training in several processes, by ``torch.distributed``: NCCL on GPUs, gloo on CPUs.

The first process prepared the cases and put them into files; each worker maps these files, takes
every n-th patch of each step, and ``DistributedDataParallel`` averages the gradients. Rank 0 alone
writes the checkpoint and reports. When one worker fails the others are ended: the checkpoint
survives that at any line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from segunlearn import errors
from segunlearn.cases import Case
from segunlearn.errors import CancelledError, InvalidInputError, SegUnlearnError
from segunlearn.inference import choose_device
from segunlearn.networks import ModelConfig, build_network, load_state, read_tensors
from segunlearn.records.runs import Progress
from segunlearn.training.checkpoint import Checkpoint
from segunlearn.training.data import open_stored
from segunlearn.training.loop import Trainer
from segunlearn.training.settings import CaseDigests, TrainSettings

#: How often the first process looks whether a person wants to stop, in seconds.
_WATCH = 0.2
#: How long workers may take to end by themselves after the last step, in seconds.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Parameters
    ----------
    config, settings
        Resolved.
    run_dir, fingerprint
        Of the checkpoint.
    resume
        Go on from the checkpoint.
    parent_weights
        File to start from, and its SHA-256.
    folder
        Of the stored cases.
    cases
        Case, foreground voxels and digests, in the order of the files.
    train_cases
        How many of them are trained on; the others are for validation.
    devices
        One for each process.
    threads
        Of each process.
    parent
        Process that waits for the workers; they stop when it is gone.
    """

    config: ModelConfig
    settings: TrainSettings
    run_dir: Path
    fingerprint: str
    resume: bool
    parent_weights: tuple[Path, str] | None
    folder: Path
    cases: Sequence[tuple[Case, list[np.ndarray[Any, Any]], CaseDigests]]
    train_cases: int
    devices: tuple[str, ...]
    threads: int
    parent: int


def devices_for(settings: TrainSettings) -> tuple[str, ...]:
    """Device of each process.

    With ``processes`` 0 and device ``"auto"`` there is one process for each GPU, as many as divide
    the batch evenly.

    Raises
    ------
    InvalidInputError
        The batch cannot be divided evenly, or there are fewer GPUs than processes.
    """
    device = choose_device(settings.device)
    # a number, as in cuda:1, means this one alone
    gpus = torch.cuda.device_count() if device.type == "cuda" and ":" not in settings.device else 0
    wanted = settings.processes
    if wanted == 0:
        most = gpus if settings.device == "auto" else 1
        wanted = max(
            (n for n in range(1, most + 1) if settings.batch_size % n == 0),
            default=1,
        )
    if settings.batch_size % wanted:
        raise InvalidInputError(
            f"a batch of {settings.batch_size} cannot be divided evenly among {wanted} processes. "
            f"Take a batch size that is a multiple of {wanted}."
        )
    if wanted == 1:
        return (str(device),)
    if device.type != "cuda":
        return (str(device),) * wanted
    if wanted > gpus:
        raise InvalidInputError(
            f"{wanted} processes need as many GPUs, {gpus} can be used. Take fewer processes."
        )
    return tuple(f"cuda:{i}" for i in range(wanted))


def train_in_processes(
    job: Job,
    *,
    report: Callable[[Progress], None],
    cancel: Callable[[], bool],
) -> None:
    """Train to the end; the result stands in the checkpoint.

    Raises
    ------
    CancelledError
        ``cancel`` said so.
    SegUnlearnError
        A worker failed; what it said.
    """
    context = multiprocessing.get_context("spawn")
    meeting = job.run_dir / f".meeting-{uuid.uuid4().hex}"
    stop = context.Event()
    workers: list[tuple[SpawnProcess, Connection]] = []
    try:
        for rank in range(len(job.devices)):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_work, args=(rank, job, str(meeting), theirs, stop), daemon=True
            )
            worker.start()
            theirs.close()
            workers.append((worker, ours))
        _follow(workers, stop, report, cancel)
    finally:
        for worker, _ in workers:
            worker.kill()
        for worker, connection in workers:
            worker.join()
            connection.close()
        meeting.unlink(missing_ok=True)


def _follow(
    workers: Sequence[tuple[SpawnProcess, Connection]],
    stop: Event,
    report: Callable[[Progress], None],
    cancel: Callable[[], bool],
) -> None:
    """Pass progress on until all workers are done, or one failed."""
    left = {connection: rank for rank, (_, connection) in enumerate(workers)}
    until: float | None = None
    while left:
        if not stop.is_set() and cancel():
            stop.set()
            until = time.monotonic() + _PATIENCE
        if until is not None and time.monotonic() > until:
            raise CancelledError("the training was stopped; start it again to go on.")
        for connection in wait(list(left), timeout=_WATCH):
            assert isinstance(connection, Connection)
            try:
                kind, *content = connection.recv()
            except EOFError:
                raise SegUnlearnError(
                    f"process {left[connection]} of the training ended without a word (out of "
                    "memory?). Start the training again, it goes on from its last checkpoint."
                ) from None
            if kind == "progress":
                report(content[0])
            elif kind == "done":
                del left[connection]
                connection.send("go")
            else:
                raise _error(*content)


def _error(name: str, message: str) -> SegUnlearnError:
    cls = getattr(errors, name, SegUnlearnError)
    error = cls(message)
    return error if isinstance(error, SegUnlearnError) else SegUnlearnError(message)


def _work(rank: int, job: Job, meeting: str, connection: Connection, stop: Event) -> None:
    """Train one share; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process decides
    torch.set_num_threads(job.threads)
    device = torch.device(job.devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=len(job.devices),
    )
    try:
        _trainer(rank, job, device, connection, stop).run(resume=job.resume)
        connection.send(("done",))
        connection.poll(_PATIENCE)
    except SegUnlearnError as error:
        connection.send(("error", type(error).__name__, str(error)))
        # the others wait for this one in a collective call, until they are ended
        connection.poll(_PATIENCE)
    finally:
        dist.destroy_process_group()


def _trainer(
    rank: int, job: Job, device: torch.device, connection: Connection, stop: Event
) -> Trainer:
    network = build_network(job.config, job.settings.seed)
    if job.parent_weights is not None:
        load_state(network, read_tensors(*job.parent_weights), "parent weights")
    ready = [
        open_stored(job.folder, number, case, [torch.from_numpy(v) for v in voxels], digests)
        for number, (case, voxels, digests) in enumerate(job.cases)
    ]

    def report(progress: Progress) -> None:
        if rank == 0:
            connection.send(("progress", progress))

    return Trainer(
        network,
        job.config,
        job.settings,
        ready[: job.train_cases],
        ready[job.train_cases :],
        Checkpoint(job.run_dir, job.fingerprint),
        device=device,
        report=report,
        cancel=lambda: stop.is_set() or os.getppid() != job.parent,
    )
