"""A million marks, and a hundred thousand runs of five hundred series.

``python tests/benchmarks/records.py [--quick] [--postgresql]`` writes ``results/records.json``.

The million marks are filled in by plain inserts; the marks that are timed go through the API, with
their sync to the disk. The runs go through the ledger's own append, a thousand in a transaction;
those that are timed each have their own. Two kinds of archives are measured: a *growing* one, where
consecutive runs share almost all series, and a *shuffled* one, the worst case, where each run draws
its series anew. All runs form one chain of parents, so that an early study shaped almost all
versions.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from report import ROOT, bar, write
from sqlalchemy import insert, text

from segunlearn.cases import Case
from segunlearn.records.coverage import Subject
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger, LedgerCase, LedgerEntry
from segunlearn.records.ledger_memory import forget_memory
from segunlearn.records.store import Store, open_store, utc_now
from segunlearn.records.tables import FORGET_HISTORY, FORGET_REQUEST

RUN_SERIES = 500
ARCHIVE = 20_000


def milliseconds(action: Callable[[int], object], repeats: int) -> dict[str, float]:
    """Run an action several times; median, 95th percentile and longest, in ms."""
    times = []
    for n in range(repeats):
        start = time.perf_counter()
        action(n)
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    return {
        "median": round(statistics.median(times), 2),
        "p95": round(times[int(0.95 * (len(times) - 1))], 2),
        "max": round(times[-1], 2),
        "repeats": repeats,
    }


def uid(root: int, number: int) -> str:
    """A UID as long as real ones, spread like real ones."""
    spread = int.from_bytes(hashlib.sha256(f"{root}.{number}".encode()).digest()[:14])
    return f"1.2.826.0.1.3680043.8.498.{root}.{spread}"


def fill_marks(store: Store, count: int) -> None:
    """Insert marks of studies (8 of 10), series and patients, with their histories."""
    kinds = ["study"] * 8 + ["series", "patient"]
    now = utc_now()
    for start in range(0, count, 50_000):
        requests, steps = [], []
        for n in range(start, min(count, start + 50_000)):
            kind = kinds[n % 10]
            requests.append(
                {
                    "seq": n + 1,
                    "id": uuid.uuid4().hex,
                    "target_kind": kind,
                    "target_id": f"P{n:08d}" if kind == "patient" else uid(1, n),
                    "issuer": "",
                    "model": "",
                    "study": uid(2, n) if kind == "series" else "",
                    "person_id": "",
                    "person_issuer": "",
                    "reason": "consent_withdrawn",
                    "note": "",
                    "state": "requested",
                    "is_open": 1,
                    "is_live": 1,
                    "needed": "unlearned",
                    "reached": "none",
                    "source": "person",
                    "marked_by": f"user{n % 50}",
                    "marked_role": "annotator",
                    "created": now,
                    "updated": now,
                }
            )
            steps.append(
                {
                    "request_seq": n + 1,
                    "time": now,
                    "actor": f"user{n % 50}",
                    "role": "annotator",
                    "from_state": "",
                    "to_state": "requested",
                    "needed": "unlearned",
                    "reached": "none",
                    "why": "",
                }
            )
        with store.write() as connection:
            connection.execute(insert(FORGET_REQUEST), requests)
            connection.execute(insert(FORGET_HISTORY), steps)
    if store.dialect == "postgresql":
        with store.write() as connection:
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence('forget_request', 'seq'), :n)"),
                {"n": count},
            )
        with store.read() as connection:
            connection.connection.dbapi_connection.commit()  # type: ignore[union-attr]
            connection.exec_driver_sql("ANALYZE")


def measure_marks(store: Store, count: int) -> dict[str, Any]:
    """Fill in marks, then time marking, status and the filter."""
    start = time.perf_counter()
    fill_marks(store, count)
    seconds = round(time.perf_counter() - start, 1)
    forget_set, rng = ForgetSet(store), random.Random(0)

    def study_list(_: int) -> None:
        listed = [
            Subject(study=uid(1 if i % 2 else 3, rng.randrange(count)), person=f"P{i:08d}")
            for i in range(200)
        ]
        assert len(forget_set.status(studies=listed)) > 190

    def bare_list(_: int) -> None:
        forget_set.status(studies=[uid(1, rng.randrange(count)) for _ in range(200)])

    cases = [
        Case(uid(4, i), uid(1, rng.randrange(2 * count)), f"P{i + 10**7:08d}", Path("x.nii.gz"))
        for i in range(5000)
    ]
    excluded = len(forget_set.exclude(cases)[1])
    assert 1000 < excluded < 3000, excluded
    return {
        "marks": count,
        "fill_seconds": seconds,
        "mark_ms": milliseconds(
            lambda n: forget_set.mark("study", uid(9, n), "quality", actor="anna"), 300
        ),
        "mark_again_ms": milliseconds(
            lambda n: forget_set.mark("study", uid(9, n), "quality", actor="anna"), 100
        ),
        "status_200_studies_with_patients_ms": milliseconds(study_list, 50),
        "status_200_studies_ms": milliseconds(bare_list, 50),
        "exclude_5000_cases_ms": milliseconds(lambda _: forget_set.exclude(cases), 20),
        "list_newest_50_ms": milliseconds(lambda _: forget_set.list(), 20),
    }


def growing(run: int) -> list[int]:
    """Series of a run in an archive that grows: a window that moves on by one in five runs."""
    first = run * (ARCHIVE - RUN_SERIES) // RUNS
    return list(range(first, first + RUN_SERIES))


def shuffled(run: int) -> list[int]:
    """Series of a run that draws them anew."""
    return random.Random(run).sample(range(ARCHIVE), RUN_SERIES)


RUNS = 100_000


def case_of(series: int, role: str) -> LedgerCase:
    """Two series a study, two studies a patient."""
    return LedgerCase(
        uid(5, series),
        uid(6, series // 2),
        f"P{series // 4:06d}",
        role,
        hashlib.sha256(f"image {series}".encode()).hexdigest(),
        hashlib.sha256(f"label {series}".encode()).hexdigest(),
    )


def version(run: int) -> str:
    """Digest of a run's weights."""
    return hashlib.sha256(f"weights {run}".encode()).hexdigest()


def entry(run: int, series: list[int], known: dict[tuple[int, str], LedgerCase]) -> LedgerEntry:
    """A run, child of the one before; every fifth patient is validation."""
    cases = []
    for number in series:
        key = (number, "validation" if number // 4 % 5 == 0 else "train")
        if key not in known:
            known[key] = case_of(*key)
        cases.append(known[key])
    return LedgerEntry(
        run_id=f"{run:032x}",
        kind="train",
        model="segmentation",
        version_sha256=version(run),
        parent_sha256=version(run - 1) if run else None,
        cases=cases,
        parameters={"epochs": 40, "learning_rate": 0.0003, "batch_size": 2, "amp": False},
        seed=run,
        versions={"segunlearn": "0.1", "torch": "2.9.1", "monai": "1.6.0"},
        machine={"host": "benchmark", "device": "cpu"},
        started=utc_now(),
        ended=utc_now(),
        outcome="done",
    )


def measure_ledger(
    store: Store, runs: int, series_of: Callable[[int], list[int]]
) -> dict[str, Any]:
    """Append runs, then time both questions, cold (another process) and warm, and verify."""
    ledger, known = Ledger(store), dict[tuple[int, str], LedgerCase]()
    start = time.perf_counter()
    for first in range(0, runs, 1000):
        with store.write() as connection:
            for run in range(first, min(runs, first + 1000)):
                head = ledger._append(connection, entry(run, series_of(run), known))
        ledger._keep_head(head)
    seconds = round(time.perf_counter() - start, 1)
    known.clear()
    gc.collect()
    gc.freeze()  # what the filling left in this process is not searched while questions are timed
    if store.dialect == "postgresql":
        with store.read() as connection:
            connection.exec_driver_sql("ANALYZE")
    rng = random.Random(1)
    ledger.versions_that_saw(series=uid(5, 0))
    saw: list[int] = []
    shaped: list[int] = []

    def ask_versions(n: int) -> None:
        number = 0 if n == 0 else rng.randrange(ARCHIVE)  # the first study of all: the worst case
        saw.append(len(ledger.versions_that_saw(study=uid(6, number // 2))))

    def ask_cold(n: int) -> None:
        forget_memory(store)
        ask_versions(n)

    def ask_studies_cold(n: int) -> None:
        forget_memory(store)
        ask_studies(n)

    def ask_studies(n: int) -> None:
        run = runs - 1 if n == 0 else rng.randrange(runs)
        shaped.append(len(ledger.studies_of(version(run))))

    figures: dict[str, Any] = {
        "runs": runs,
        "series_a_run": RUN_SERIES,
        "series_in_all": ARCHIVE,
        "append_in_bulk_ms": round(seconds / runs * 1e3, 2),
        "versions_that_saw_cold_ms": milliseconds(ask_cold, 20),
        "versions_that_saw_ms": milliseconds(ask_versions, 50),
        "studies_of_cold_ms": milliseconds(ask_studies_cold, 20),
        "studies_of_ms": milliseconds(ask_studies, 50),
        "most_versions_in_an_answer": max(saw),
        "most_studies_in_an_answer": max(shaped),
        "append_ms": milliseconds(
            lambda n: ledger.append(entry(runs + n, series_of(runs - 1 - n), known)), 100
        ),
    }
    start = time.perf_counter()
    assert ledger.verify() == []
    figures["verify_seconds"] = round(time.perf_counter() - start, 1)
    figures["database_mb"] = round(size_of(store) / 1e6, 1)
    return figures


def size_of(store: Store) -> int:
    """Bytes of the database on the disk."""
    if store.path is not None:
        return sum(p.stat().st_size for p in store.path.parent.glob(f"{store.path.name}*"))
    with store.read() as connection:
        return int(
            connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        )


@contextlib.contextmanager
def stores(kind: str) -> Iterator[Callable[[str], Store]]:
    """Make empty stores of a kind; they are removed at the end."""
    opened: list[Store] = []
    with contextlib.ExitStack() as stack:
        if kind == "postgresql":
            import psycopg

            sys.path.insert(0, str(Path(__file__).parents[1]))
            from postgresql_server import programs, running_server

            found = programs()
            assert found is not None, "PostgreSQL is not installed"
            server = stack.enter_context(running_server(found, durable=True))

            def make(name: str) -> Store:
                address = server.replace("+psycopg", "")
                with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
                opened.append(open_store(f"{server}/{name}"))
                return opened[-1]
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

            def make(name: str) -> Store:
                opened.append(open_store(folder / name / "segunlearn.db"))
                return opened[-1]

        yield make
        for store in opened:
            store.close()


SHAPES = {"growing": growing, "shuffled": shuffled}
PARTS = [
    f"{kind}_{part}"
    for kind in ("sqlite", "postgresql")
    for part in ("forget_set", *(f"ledger_{shape}" for shape in SHAPES))
]


def bars_of(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the figures with what is asked of them."""
    bars = []
    for part, found in figures.items():
        if part.endswith("forget_set"):
            mark = found["mark_ms"]["median"]
            bars.append(bar(f"{part}: mark, median ms", mark, "< 20", mark < 20))
            listed = found["status_200_studies_with_patients_ms"]["median"]
            name = f"{part}: status of 200 studies, median ms"
            bars.append(bar(name, listed, "< 50", listed < 50))
            continue
        for question in ("versions_that_saw", "studies_of"):
            for how in ("_cold_ms", "_ms"):
                p95 = found[question + how]["p95"]
                name = f"{part}: {question}{how[:-3].replace('_', ', ')}, 95th percentile in ms"
                bars.append(bar(name, p95, "< 200", p95 < 200))
    return bars


def measured(part: str, marks: int) -> dict[str, Any]:
    """Measure one part in a store of its own."""
    kind, _, what = part.partition("_")
    with stores(kind) as make:
        store = make("measured")
        if what == "forget_set":
            figures = measure_marks(store, marks)
        else:
            figures = measure_ledger(store, RUNS, SHAPES[what.removeprefix("ledger_")])
    return {**figures, "load": round(os.getloadavg()[0], 1)}


def main() -> None:
    """Measure, print the bars and write the results; parts that were measured before stay."""
    global RUNS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and nothing is written")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    marks, RUNS = (20_000, 2_000) if options.quick else (1_000_000, 100_000)
    for part in options.parts:
        found = measured(part, marks)
        if options.quick:
            rows = bars_of({part: found})
            sys.stdout.write("".join(f"{b['name']}: {b['value']} ({b['target']})\n" for b in rows))
            sys.stdout.write(f"{found}\n")
            continue
        path = ROOT / "results" / "records.json"
        before = json.loads(path.read_text())["figures"] if path.exists() else {}
        figures = {p: {**before, part: found}[p] for p in PARTS if p in {*before, part}}
        write("records", figures, bars_of(figures), machine=platform.platform())


if __name__ == "__main__":
    main()
