"""Runs of every kind are killed -9 at random moments, and with each a process that marks studies.

Used by a test (few kills) and by ``tests/benchmarks/kills.py`` (200). Trainings, adaptations,
meta-trainings and audits are real ones on tiny networks; an unlearning has the stand-ins of
``unlearn_storm``, as what is tried is publishing. After each kill everything is looked at as the
next start of the server finds it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

from audit_home import MODEL, Site, site_in
from memorising_task import CONFIG
from segunlearn.adaptation import LeaveOneOut
from segunlearn.adaptation.episodes import EpisodeSettings
from segunlearn.adaptation.meta_training import MetaSettings
from segunlearn.app import adapter_run
from segunlearn.app.activation import activate
from segunlearn.app.adapter_run import AdaptRun
from segunlearn.app.adapter_store import SiteAdapters
from segunlearn.app.adapter_support import AdaptOrder
from segunlearn.app.audit_order import Order
from segunlearn.app.audit_run import AuditRun
from segunlearn.app.home_copy import MANIFEST, check_copy, copy_home
from segunlearn.app.home_tidy import tidy
from segunlearn.app.meta_run import MetaTrainingRun
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_journal import journals
from segunlearn.app.unlearn_settle import settle
from segunlearn.app.unlearn_undo import Undo
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import SegUnlearnError
from segunlearn.networks import load_weights
from segunlearn.records.versions import file_sha256
from segunlearn.training import TrainSettings
from tiny_training import PLAIN
from unlearn_storm import unlearn_quickly

#: What a killed run may leave: the checkpoint that the next training goes on from (weights, Adam's
#: two moments, a best state), and measures of an audit. In sizes of the weights.
ORPHANS = 16

TRAIN = TrainSettings(
    epochs=3, batch_size=4, samples_per_case=2, val_fraction=0.25, device="cpu", augmentation=PLAIN
)
META = MetaSettings(
    learn=("maml",), iterations=4, tasks=1, checkpoint_every=1,
    episodes=EpisodeSettings((1,), virtual=None),
)  # fmt: skip
#: Runs of one home, and of the other, how often each is chosen.
LEARNING = {"train": 4, "publish": 4, "adapt": 4, "meta_train": 3, "audit": 2, "backup": 3}
FORGETTING = {"unlearn": 5, "restore": 5, "purge": 5}
#: How a run ended that was not killed and met no error of ours.
ENDED = "ended"
SOUTH = SiteKey("south", "siemens", "avanto", "7")


@dataclass
class KillStorm:
    """Kill after kill; :meth:`check` looks at everything after each."""

    folder: Path
    kills: int
    seed: int = 0
    kinds: frozenset[str] = frozenset({*LEARNING, *FORGETTING})
    seen: Counter[str] = field(default_factory=Counter)
    largest_orphans: int = 0
    marks: int = 0
    slowest_check: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("learning", "template"):
            (self.folder / name).mkdir()
        self._rng = random.Random(self.seed)
        self.usual: dict[str, float] = {}
        self.learning = site_in(self.folder / "learning", forget=2, retain=6, unseen=12)
        everybody = [*self.learning.forget, *self.learning.retain]
        first = self.learning.publish(1, everybody)
        self.weights = first.weights.stat().st_size
        self.learning.mark(self.learning.forget)
        self.learning.train(everybody, TRAIN)
        self.template = site_in(self.folder / "template", forget=2, retain=4, unseen=6)
        self.template.publish(1, [*self.template.forget, *self.template.retain])
        self.learning, self.template = _fresh(self.learning), _fresh(self.template)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """After a purge nothing more can be forgotten there: another home."""
        root = self.folder / f"forgetting{self.seen['homes']}"
        self.seen["homes"] += 1
        shutil.copytree(self.template.home.root, root)
        self.forgetting = replace(self.template, home=Home(root))
        self._mark()

    def _mark(self) -> None:
        site = _fresh(self.forgetting)
        (self.request,) = site.mark(site.forget[:1])
        _fresh(site)

    def _state(self) -> str:
        records = Records(self.forgetting.home)
        state = records.forget_set.get(self.request).state
        records.store.close()
        return state

    def run(self) -> None:
        """Kill and check until it was done often enough."""
        while self.seen["kills"] < self.kills:
            state = self._state()
            if state == "restored":
                self._mark()
            elif state == "purged":
                self._begin_anew()
            after = ("restore", "purge") if state == "fulfilled" else ("unlearn",)
            chosen = {**LEARNING, **{k: FORGETTING[k] for k in after}}
            kinds = {k: n for k, n in chosen.items() if k in self.kinds}
            what = self._rng.choices(list(kinds), list(kinds.values()))[0]
            self._once(what, self.forgetting if what in after else self.learning)

    def _once(self, what: str, site: Site) -> None:
        # the first of each is left alone and says how long it takes
        usual = self.usual.get(what)
        alone = usual is None or (what == "unlearn" and self._killed(what) > self._undone() + 2)
        seconds = 120.0 if alone or usual is None else self._rng.uniform(0, 1.1 * usual)
        work = getattr(self, f"_{what}")
        began = time.monotonic()
        killed, said = self._in_processes(site, lambda: work(replace(site)), seconds)
        assert usual is not None or not killed, what
        if not killed and said == ENDED:  # on a busy machine the first may take long
            self.usual[what] = min(usual or 600.0, time.monotonic() - began)
        self.seen["kills"] += killed
        self.seen[f"{what}: {'killed' if killed else said}"] += 1
        began = time.monotonic()
        self.check(site, f"{what}, {'killed' if killed else said}, kill {self.seen['kills']}")
        self.slowest_check = max(self.slowest_check, time.monotonic() - began)

    def _killed(self, what: str) -> int:
        return self.seen[f"{what}: killed"]

    def _undone(self) -> int:
        """Kills of what an unlearning must have ended for."""
        return self._killed("restore") + self._killed("purge")

    # -- the runs ------------------------------------------------------------------------------

    def _train(self, site: Site) -> None:
        settings = replace(TRAIN, seed=random.SystemRandom().randrange(2**31))
        site.train(site.cases, settings)

    def _meta_train(self, site: Site) -> None:
        settings = replace(TRAIN, seed=random.SystemRandom().randrange(2**31))
        run = MetaTrainingRun(MODEL, site.home, site.records, settings, meta=META)
        cases = [replace(c, site=f"site{i % 2}") for i, c in enumerate(site.retain)]
        run.execute(lambda _: (site.records.without_forgotten(cases), CONFIG))

    def _adapt(self, site: Site) -> None:
        settings = {"steps": 2, "inner_set": "head", "learning_rate": 1e-3, "seed": 0}
        order = AdaptOrder(MODEL, site="south", settings=settings, method="fine_tune", device="cpu")
        passed = LeaveOneOut((0.8, 0.6), (0.5, 0.5))
        with mock.patch.object(adapter_run, "leave_one_out", return_value=passed):
            AdaptRun(order, site.home, site.records, "test").execute(
                site.unseen[:3], lambda _: SOUTH
            )

    def _publish(self, site: Site) -> None:
        there = [v.version for v in site.registry.versions() if v.state in ("available", "active")]
        for _ in range(5):
            activate(site.home, site.records, MODEL, random.SystemRandom().choice(there[1:]))

    def _audit(self, site: Site) -> None:
        order = Order(
            MODEL, candidate="v0002", original="v0001", quick=True, device="cpu",
            attacks=("artefacts",),
        )  # fmt: skip
        run = AuditRun(order, site.home, site.records, "test")
        run.prepare(site.cases)
        run.execute()

    def _backup(self, site: Site) -> None:
        copy_home(site.home, self.folder / f"copy{time.monotonic_ns()}")

    def _unlearn(self, site: Site) -> None:
        unlearn_quickly(site, self.request)

    def _restore(self, site: Site) -> None:
        Undo(site.home, site.records, MODEL, "test").restore(self.request)

    def _purge(self, site: Site) -> None:
        Undo(site.home, site.records, MODEL, "test").purge(self.request)

    # -- killing and looking -------------------------------------------------------------------

    def _in_processes(
        self, site: Site, work: Callable[[], None], seconds: float
    ) -> tuple[bool, str]:
        """Whether the run was killed before it ended, and how it ended; marks go on beside it."""
        fork = multiprocessing.get_context("fork")
        run = fork.Process(target=_quietly, args=(work, self.folder / "said"))
        marker = fork.Process(target=_mark_on, args=(site.home, site.home.root.parent / "marked"))
        (self.folder / "said").write_text("")
        for process in (run, marker):
            process.start()
        run.join(seconds)
        for process in (run, marker):
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join(30)
        assert run.exitcode in (0, -signal.SIGKILL), (run.exitcode, self._said())
        return run.exitcode != 0, self._said() or ENDED

    def _said(self) -> str:
        return (self.folder / "said").read_text()

    def check(self, site: Site, when: str) -> None:
        """See what the next start finds, before and after it settles."""
        self._served(site, when)
        records = Records(site.home)
        tidy(site.home)
        settle(site.home, records)
        records.drop_marked_checkpoints()
        self._served(site, when)
        assert not list(journals(site.home)), when
        assert not [v for v in site.registry.versions() if v.state == "candidate"], when
        assert not [r for r in records.runs.list(1000) if r.is_running], when
        assert list(records.ledger.verify()) == list(records.trail.verify()) == [], when
        self._adapters_are_whole(site, when)
        self._no_mark_is_lost(site, records, when)
        self._orphans(site.home, when)
        for copy in self.folder.glob("copy*"):
            if (copy / MANIFEST).exists():  # a copy is whole, or none
                check_copy(copy)
            shutil.rmtree(copy)
        records.store.close()

    def _served(self, site: Site, when: str) -> None:
        active = site.registry.active()
        assert active is not None, when
        load_weights(active.weights, CONFIG, active.sha256)  # raises where a byte differs

    def _adapters_are_whole(self, site: Site, when: str) -> None:
        adapters = SiteAdapters(site.home.sites / MODEL)
        for name in adapters.sites():
            adapters.current(name)  # raises where a pointer leads nowhere
            for info in adapters.versions(name):
                if info.file.exists():
                    assert file_sha256(info.file) == info.sha256, when

    def _no_mark_is_lost(self, site: Site, records: Records, when: str) -> None:
        marked = site.home.root.parent / "marked"
        acknowledged = marked.read_text().split() if marked.exists() else []
        kept = set()
        for offset in range(0, 100_000, 1000):
            page = records.forget_set.list(limit=1000, offset=offset)
            kept |= {r.request_id for r in page}
            if len(page) < 1000:
                break
        ours = [a for a in acknowledged if a.startswith(f"{site.home.root.name}/")]
        assert {a.partition("/")[2] for a in ours} <= kept, when
        self.marks = max(self.marks, len(acknowledged))

    def _orphans(self, home: Home, when: str) -> None:
        """Bytes that belong to nothing that is served, kept or recorded."""
        size = 0
        for path in (p for p in home.root.rglob("*") if p.is_file()):
            parts = path.relative_to(home.root).parts
            assert not path.name.endswith(".part"), (when, parts)
            assert parts[0] != "tmp", (when, parts)
            assert not any(p.startswith(".staging") for p in parts), (when, parts)
            if parts[0] in ("runs", "unlearning") or parts[:2] == ("audits", "work"):
                size += path.stat().st_size
        self.largest_orphans = max(self.largest_orphans, size)
        assert size <= ORPHANS * self.weights, (when, size, self.weights)


def _fresh(site: Site) -> Site:
    """Close the connections: a process that inherits one of SQLite's takes the log away."""
    site.records.store.close()
    return replace(site)


def _quietly(work: Callable[[], None], said: Path) -> None:
    try:
        work()
    except SegUnlearnError as error:  # e.g. the home is being published to
        said.write_text(type(error).__name__)
    except BaseException as error:  # noqa: BLE001
        said.write_text(repr(error)[:2000])
        os._exit(3)
    os._exit(0)  # without the parent's exit handlers


def _mark_on(home: Home, marked: Path) -> None:
    """Mark studies nobody was trained on, and note what was acknowledged."""
    records = Records(home)
    out = os.open(marked, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        request, _ = records.forget_set.mark(
            "study", f"1.9.{time.time_ns()}", "quality", actor="ann"
        )
        os.write(out, f"{home.root.name}/{request.request_id}\n".encode())
        time.sleep(0.02)
