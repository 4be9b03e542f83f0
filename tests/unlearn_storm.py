"""Unlearning and restoring in processes that are killed at any moment.

Used by a test (few kills) and by ``tests/benchmarks/unlearning_kill.py`` (a hundred). The method is
replaced by one that takes a moment, and the audit by one that passes: what is tried is publishing.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from audit_home import MODEL, Site, site_in
from memorising_task import CONFIG
from segunlearn.app import unlearn_run
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_journal import journals
from segunlearn.app.unlearn_make import Made
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_settle import settle
from segunlearn.app.unlearn_undo import Undo
from segunlearn.errors import SegUnlearnError
from segunlearn.networks import build_network, load_weights, save_weights

ORDER = UnlearnOrder(MODEL, method="fine_tune", device="cpu")


def quick_make(*arguments: Any) -> Made:
    """Random weights, written as a retraining would."""
    _, _, sets, _, folder, *_ = arguments
    folder.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(2**31)
    digest = save_weights(build_network(CONFIG, seed), folder / "candidate.safetensors")
    return Made(
        folder / "candidate.safetensors", digest, {"seed": seed}, seed, {"retain": 1}, 1.0,
        {"train": sets.retain}, exact=True,
    )  # fmt: skip


def passing_audit(run: UnlearnRun, *_: Any) -> dict[str, Any]:
    """Pass whatever comes."""
    verdict = {"outcome": "passed", "reached": run.choice.level, "needed": "", "reasons": []}
    return {"verdict": verdict, "about": {"audit_id": "0" * 32}}


def unlearn_quickly(site: Site, request: str) -> dict[str, Any]:
    """Unlearn with both stand-ins."""
    return _quickly(site, replace(ORDER, requests=(request,)))


def restore_quickly(site: Site, request: str) -> dict[str, Any]:
    """Restore what others were forgotten after, with both stand-ins."""
    return _quickly(site, replace(ORDER, restore=request))


def _quickly(site: Site, order: UnlearnOrder) -> dict[str, Any]:
    with (
        mock.patch.object(unlearn_run, "make", quick_make),
        mock.patch.object(UnlearnRun, "_audited", passing_audit),
    ):
        return UnlearnRun(order, site.home, site.records, "test").execute(site.cases)


@dataclass
class Storm:
    """Kill after kill on one home; :meth:`check` looks at everything after each."""

    folder: Path
    kills: int
    seed: int = 0
    site: Site = field(init=False)
    original: bytes = field(init=False)
    request: str = ""
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.site = site_in(self.folder, forget=2, retain=4, unseen=6)
        self.original = self.site.publish(
            1, [*self.site.forget, *self.site.retain]
        ).weights.read_bytes()

    def run(self) -> dict[str, int]:
        """Kill and check until it was done often enough; gives how often what was found."""
        rng = random.Random(self.seed)
        usual: dict[str, float] = {}
        while self.seen["kills"] < self.kills:
            if not self.request:
                (self.request,) = self.site.mark(self.site.forget[:1])
            state = self.site.records.forget_set.get(self.request).state
            what = "restore" if state == "fulfilled" else "unlearn"
            began = time.monotonic()
            # the first of each is left alone and says how long they take
            seconds = rng.uniform(0, 1.2 * usual[what]) if what in usual else 60.0
            killed = self._in_a_process(getattr(self, f"_{what}"), seconds)
            self.seen["kills"] += killed
            if not killed:
                usual[what] = time.monotonic() - began
            self.check(f"{what}, {'killed' if killed else 'left alone'}")
        return dict(self.seen)

    def _unlearn(self) -> None:
        unlearn_quickly(self.site, self.request)

    def _restore(self) -> None:
        Undo(self.site.home, self.site.records, MODEL, "test").restore(self.request)

    def _in_a_process(self, work: Callable[[], None], seconds: float) -> bool:
        """Whether it was killed before it ended."""
        process = multiprocessing.get_context("fork").Process(target=_quietly, args=(work,))
        process.start()
        process.join(seconds)
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        return process.exitcode != 0

    def check(self, when: str) -> None:
        """Before and after what was interrupted is settled, one whole version is served."""
        self._served(when)
        settle(self.site.home, self.site.records)
        active = self._served(when)
        site, finisher = self.site, Finisher(self.site.home, self.site.records)
        assert not list(journals(site.home)), when
        assert not [v for v in site.registry.versions() if v.state == "candidate"], when
        assert not [r for r in site.records.runs.list(100) if r.is_running], when
        old = site.registry.get("v0001")
        state = site.records.forget_set.get(self.request).state
        self.seen[f"{when}: {state}"] += 1
        if state == "fulfilled":
            assert active != "v0001", when
            assert (old.state, old.weights_state) == ("retired", "sealed"), when
            (deposit,) = finisher.deposits.of_request(self.request)
            assert finisher.deposits.open(deposit.deposit_id, "v0001") == self.original
        else:
            assert state in ("approved", "refused", "restored"), when
            assert active == "v0001", when
            assert old.weights.read_bytes() == self.original, when
        if state == "restored":
            assert not list(finisher.deposits.all()), when
            assert not finisher.keys.has(self.request), when
            self.request = ""

    def _served(self, when: str) -> str:
        active = self.site.registry.active()
        assert active is not None, when
        load_weights(active.weights, CONFIG, active.sha256)  # raises where a byte differs
        return active.version


def _quietly(work: Callable[[], None]) -> None:
    try:
        work()
    except SegUnlearnError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(3)
    os._exit(0)  # without the parent's exit handlers
