"""A PACS of 100,000 series: what start-up and each call ask of it, how long they take, and memory.

``python tests/benchmarks/large_pacs.py [--series 100000] [--cap 0]`` writes
``results/large_pacs.json``. The PACS is a stand-in that makes up its answers (tests/large_pacs.py),
in a process of its own; ``--cap`` lets it answer with so many rows at most. The marks are sent
while the list is being read in the background.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from report import ROOT, bar, write

sys.path.insert(0, str(ROOT / "tests"))
from app_sources import Server, publish_tiny, running_server, wait_until
from large_pacs import series_uid, study_uid

MARKS = 100
#: Studies with a segmentation.
LABELLED = 200


@contextmanager
def stand_in(series: int, cap: int) -> Iterator[str]:
    """Run the PACS; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(n) for n in (port, series, min(LABELLED, series // 5), cap)]
    process = subprocess.Popen([sys.executable, str(ROOT / "tests" / "large_pacs.py"), *words])
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return requests.get(f"{url}/asked", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        wait_until(answers, 60, "the PACS answers")
        yield url
    finally:
        process.terminate()
        process.wait(10)


def megabytes(server: Server) -> tuple[float, float]:
    """Resident memory now and at its peak, MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Vm")}
    return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024


def main() -> None:
    """Start a server on the PACS, and make each call once, the slow list last."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--cap", type=int, default=0)
    options = parser.parse_args()
    steps: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, stand_in(options.series, options.cap) as pacs:
        home = Path(folder) / "home"
        publish_tiny(home)
        with stand_in(10, 0) as few:
            began = time.monotonic()
            with running_server(f"{few}/dw", home, path="/health/live"):
                start_on_few = time.monotonic() - began

        def step(name: str, call: Callable[[], Any]) -> Any:
            requests.post(f"{pacs}/asked", timeout=60)
            began = time.monotonic()
            found = call()
            seconds = time.monotonic() - began
            if isinstance(found, requests.Response):
                found.raise_for_status()
            asked = requests.get(f"{pacs}/asked", timeout=60).json()
            steps[name] = {
                "seconds": round(seconds, 3),
                "questions": sum(asked["requests"].values()),
                "largest_answer_rows": asked["largest"],
            }
            return found

        began = time.monotonic()
        with running_server(
            f"{pacs}/dw", home, conf={"refresh": "10"}, path="/health/live"
        ) as server:
            start = time.monotonic() - began
            at_start = sum(requests.get(f"{pacs}/asked", timeout=60).json()["requests"].values())
            image = series_uid(options.series // 2)
            step("ready", lambda: server.get("/health/ready"))
            step("infer", lambda: server.post(f"/infer/segmentation?image={image}&output=json"))
            before = megabytes(server)[0]
            listed_from = time.monotonic()
            step("info", lambda: server.get("/info/"))
            page = "/datastore/?output=all&limit=100&offset=100"
            step("page of 100", lambda: server.get(page))
            viewer = "/proxy/dicom/qido/studies?limit=101&offset=0"
            step("list of the viewer", lambda: server.get(viewer))
            badges = [("study", study_uid(n)) for n in range(101)]
            step("badges of 101 studies", lambda: server.get("/forget/status", params=badges))
            last, milliseconds = options.series // 5 - 1, []
            session = requests.Session()
            reason = {"reason": "other", "note": "large PACS"}
            for number in range(MARKS):
                path = f"{server.url}/forget/studies/{study_uid(last - number)}"
                sent = time.monotonic()
                session.put(path, json=reason, timeout=60).raise_for_status()
                milliseconds.append((time.monotonic() - sent) * 1000)
            listing = server.get("/datastore/").json()
            during = bool(listing.get("listing"))
            listed = wait_until(
                lambda: "listing" not in server.get("/datastore/").json(), 600, "all is listed"
            )
            whole = time.monotonic() - listed_from
            step("next sample", lambda: server.post("/activelearning/random", json={}))
            step("next by name", lambda: server.post("/activelearning/first", json={}))
            step("30 seconds of looking", lambda: looking(server, 30))
            counted = server.get("/datastore/").json()
            grown = megabytes(server)[1] - before
            step("everything", lambda: server.get("/datastore/?output=all"))
            grown_by_everything = megabytes(server)[1] - before
    assert listed
    assert counted["total"] == options.series
    assert counted["completed"] == LABELLED
    p95 = statistics.quantiles(milliseconds, n=20)[-1]
    largest = max(s["largest_answer_rows"] for s in steps.values())
    first = max(steps[n]["seconds"] for n in ("info", "page of 100", "list of the viewer"))
    quiet = steps["30 seconds of looking"]["questions"]
    infer = steps["infer"]
    bars = [
        bar("series in the PACS", options.series, ">= 100000", options.series >= 100_000),
        bar(
            "start, seconds longer than with ten series",
            start - start_on_few,
            "< 5",
            start - start_on_few < 5,
        ),
        bar("questions to the PACS at the start", at_start, "<= 5", at_start <= 5),
        bar("questions for the first image", infer["questions"], "<= 15", infer["questions"] <= 15),
        bar("first image segmented, seconds", infer["seconds"], "< 5", infer["seconds"] < 5),
        bar("first numbers, page and study list, slowest, seconds", first, "< 5", first < 5),
        bar("marking while the list is read, p95 ms", p95, "< 250", p95 < 250),
        bar("everything is listed after seconds", whole, "< 120", whole < 120),
        bar("largest answer asked for, rows", largest, "<= 101", largest <= 101),
        bar("questions a second afterwards", quiet / 30, "< 1", quiet < 30),
        bar("memory for it at its peak, MiB", grown, "< 200", grown < 200),
    ]
    figures = {
        "start_seconds": round(start, 1),
        "start_seconds_with_ten_series": round(start_on_few, 1),
        "steps": steps,
        "marks_ms": {"median": round(statistics.median(milliseconds), 1), "p95": round(p95, 1)},
        "marked_before_the_list_was_read": during,
        "memory_at_start_megabytes": round(before),
        "memory_for_everything_at_once_megabytes": round(grown_by_everything),
        "labelled_studies": LABELLED,
        "rows_in_an_answer_at_most": options.cap,
    }
    write("large_pacs", figures, bars)


def looking(server: Server, seconds: float) -> None:
    """Ask for the numbers again and again, as open viewers do."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        server.get("/info/").raise_for_status()
        time.sleep(1.0)


if __name__ == "__main__":
    main()
