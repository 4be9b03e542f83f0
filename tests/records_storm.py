"""Processes that mark and train at once, and are killed at any moment.

Used by a test (small) and by ``tests/benchmarks/records_kill.py`` (full size). Markers write a line
to a file of their own, synced to the disk, after ``mark`` has returned: the acknowledgement.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segunlearn.cases import Case
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger, LedgerCase, LedgerEntry
from segunlearn.records.store import open_store, utc_now


def study_uid(number: int) -> str:
    return f"1.2.826.0.1.3680043.8.498.77.{number + 1}"


def acknowledged(path: Path) -> list[tuple[float, str]]:
    """(moment, study) of every complete line."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [(float(moment), study) for moment, study in (line.split() for line in lines)]


def mark_all(place: str, file: Path, first: int, step: int, studies: int) -> None:
    """Mark every ``step``-th study, going on after the last acknowledged one."""
    store = open_store(place)
    forget_set = ForgetSet(store)
    done = len(acknowledged(file))
    if file.exists():  # cut a line that the kill left half written
        whole = file.read_bytes()
        with file.open("r+b") as cut:
            cut.truncate(whole.rfind(b"\n") + 1)
    with file.open("a") as out:
        for number in itertools.islice(range(first, studies, step), done, None):
            forget_set.mark("study", study_uid(number), "consent_withdrawn", actor=f"user{first}")
            out.write(f"{time.monotonic()} {study_uid(number)}\n")
            out.flush()
            os.fsync(out.fileno())
    store.close()


def train_until(place: str, stop: Path, head: Path, studies: int) -> None:
    """Filter, wait a moment, append a row; until told to stop or orphaned."""
    store = open_store(place)
    forget_set, ledger = ForgetSet(store), Ledger(store, head_file=head)
    rng, parent = random.Random(os.getpid()), os.getppid()
    while not stop.exists() and os.getppid() == parent:
        chosen = rng.sample(range(studies), min(40, studies))
        cases = [Case(f"{study_uid(n)}.1", study_uid(n), f"P{n}", Path("x")) for n in chosen]
        moment, started = time.monotonic(), utc_now()
        kept, _ = forget_set.exclude(cases)
        time.sleep(0.02)
        entry = LedgerEntry(
            run_id=f"{os.getpid()}-{rng.random()}",
            kind="train",
            model="segmentation",
            version_sha256=f"{rng.getrandbits(256):064x}",
            parent_sha256=None,
            cases=[LedgerCase(c.series, c.study, c.person, "train") for c in kept],
            parameters={"filtered_at": moment},
            seed=0,
            versions={},
            machine={},
            started=started,
            ended=utc_now(),
            outcome="done",
        )
        ledger.append(entry)
    store.close()


@dataclass
class Storm:
    """One run of markers, trainers and kills against one store."""

    place: str
    folder: Path
    studies: int
    markers: int
    trainers: int
    kills: int
    seconds: float
    """Longest time that all of it may take."""
    killed: int = 0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def _start(self, name: str) -> None:
        kind, number = name.split("-")
        if kind == "marker":
            words = ["mark", self.place, self._file(name), number, self.markers, self.studies]
        else:
            words = ["train", self.place, self.folder / "stop", self._head(), self.studies]
        command = [sys.executable, __file__, *map(str, words)]
        self.processes[name] = subprocess.Popen(command)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def _head(self) -> Path:
        return self.folder / "ledger.head"

    def _acknowledged(self) -> dict[str, float]:
        files = [self._file(f"marker-{n}") for n in range(self.markers)]
        return {study: moment for file in files for moment, study in acknowledged(file)}

    def run(self) -> dict[str, Any]:
        """Let it blow over, then check what must hold; gives figures."""
        open_store(self.place).close()
        began, rng = time.monotonic(), random.Random(0)
        names = [f"marker-{n}" for n in range(self.markers)]
        names += [f"trainer-{n}" for n in range(self.trainers)]
        try:
            for name in reversed(names):
                self._start(name)
                if name == "trainer-0":  # on a busy machine the marks can be done before it begins
                    self._wait_for_a_row(began)
            while (count := len(self._acknowledged())) < self.studies:
                assert time.monotonic() - began < self.seconds, f"{count} marks in time"
                self._restart_finished(names)
                if count >= self.studies * (self.killed + 1) // (self.kills + 1):
                    self._kill(names, rng)
                time.sleep(0.02)
            (self.folder / "stop").touch()
            for process in self.processes.values():
                assert process.wait(60) == 0
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait(10)
        return {"seconds": round(time.monotonic() - began, 1), **self._check()}

    def _wait_for_a_row(self, began: float) -> None:
        while not self._head().exists():
            assert time.monotonic() - began < self.seconds, "a ledger row in time"
            time.sleep(0.02)

    def _restart_finished(self, names: list[str]) -> None:
        for name in names:
            code = self.processes[name].poll()
            assert code in (None, 0, -signal.SIGKILL), f"{name} failed by itself"
            if code == -signal.SIGKILL:
                self._start(name)

    def _kill(self, names: list[str], rng: random.Random) -> None:
        """Kill one process, or every third time all of them, as when the server dies."""
        if self.killed >= self.kills:
            return
        running = [n for n in names if self.processes[n].poll() is None]
        for name in running if self.killed % 3 == 2 else rng.sample(running, min(1, len(running))):
            self.processes[name].send_signal(signal.SIGKILL)
            self.processes[name].wait(10)
        self.killed += 1

    def _check(self) -> dict[str, Any]:
        store = open_store(self.place)
        forget_set, ledger = ForgetSet(store), Ledger(store, head_file=self._head())
        marks = self._acknowledged()
        status = forget_set.status(studies=list(marks))
        lost = [study for study, found in status.items() if not found.marked]
        faults = list(ledger.verify())
        rows = [row for page in self._pages(ledger) for row in page]
        wrong = sum(
            marks.get(case.study, float("inf")) < row.parameters["filtered_at"]
            for row in rows
            for case in ledger.cases_of(row.run_id)
        )
        twice = forget_set.count() - len(marks)
        store.close()
        return {
            "acknowledged": len(marks),
            "lost": len(lost),
            "marked_twice": twice,
            "kills": self.killed,
            "ledger_rows": len(rows),
            "ledger_faults": [f.message for f in faults],
            "trained_on_after_the_mark": wrong,
        }

    @staticmethod
    def _pages(ledger: Ledger) -> Any:
        for offset in itertools.count(0, 1000):
            page = ledger.rows(limit=1000, offset=offset)
            if not page:
                return
            yield page


if __name__ == "__main__":
    action, where, file_name, *rest = sys.argv[1:]
    if action == "mark":
        mark_all(where, Path(file_name), *map(int, rest))
    else:
        train_until(where, Path(file_name), Path(rest[0]), int(rest[1]))
