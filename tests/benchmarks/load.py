"""Twenty annotators at once: browse, segment, mark and save, on our server and on the stock one.

``python tests/benchmarks/load.py [--seconds 300] [--stock-seconds 60]`` writes
``results/load.json``. Both servers get the same images, network, calls and pauses, one after the
other, each on both cores. The stock server knows no forget requests: its mark is a note on the
image, ``{"forget": true}``. A 503 that says when to come back is waited for and counted, and is an
error only when it still is one after ten tries. ``while inference runs`` are the marks that were
sent while at least one inference was under way.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from report import ROOT, bar, write

sys.path.insert(0, str(ROOT / "tests"))
from app_sources import Server, publish_tiny, running_server, wait_until
from segunlearn.networks import ModelConfig, load_weights
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.store import open_store
from segunlearn.volumes import Volume, write_volume

PEOPLE = 20
#: Seconds between two steps of one person, at random.
PAUSE = (2.0, 6.0)
SHAPE = (48, 48, 24)
CONFIG = ModelConfig(
    labels=("core", "shell"), spacing=(2.0, 2.0, 2.0), patch_size=(32, 32, 16),
    features=(4, 4, 8, 16, 16, 4), overlap=0.25, normalisation="zscore",
)  # fmt: skip


class Crowd:
    """Annotators of one server, and what they met."""

    def __init__(self, url: str, ours: bool, tokens: list[str], seed: int) -> None:
        self.url, self.ours, self.tokens, self.seed = url, ours, tokens, seed
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self.marks_meanwhile: list[float] = []
        self.errors: Counter[str] = Counter()
        self.told_to_wait = 0
        self._inferring, self._lock = 0, threading.Lock()
        self._end = 0.0
        self._people = [requests.Session() for _ in range(PEOPLE)]

    def work(self, seconds: float) -> None:
        """Let all of them work for a while."""
        self._end = time.monotonic() + seconds
        people = [threading.Thread(target=self._person, args=(n,)) for n in range(PEOPLE)]
        for person in people:
            person.start()
        for person in people:
            person.join()

    def _person(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        session = self._people[number]
        if self.tokens:
            session.headers["Authorization"] = f"Bearer {self.tokens[number]}"
        time.sleep(rng.uniform(0, PAUSE[1]))
        while time.monotonic() < self._end:
            image = f"person{rng.randrange(PEOPLE)}"
            for step in (self._browse, self._infer, self._mark, self._save):
                step(session, image, rng)
                if time.monotonic() >= self._end:
                    return
                time.sleep(rng.uniform(*PAUSE))

    def _ask(
        self, session: requests.Session, what: str, method: str, path: str, **more: Any
    ) -> Any:
        for _ in range(10):
            began, meanwhile = time.perf_counter(), self._inferring > 0
            try:
                answer = session.request(method, self.url + path, timeout=120, **more)
            except requests.RequestException as error:
                self.errors[f"{what}: {type(error).__name__}"] += 1
                return None
            taken = (time.perf_counter() - began) * 1e3
            if answer.status_code == 503 and "Retry-After" in answer.headers:
                with self._lock:
                    self.told_to_wait += 1
                time.sleep(min(10, int(answer.headers["Retry-After"])))
                continue
            with self._lock:
                self.milliseconds[what].append(taken)
                if what == "mark" and meanwhile:
                    self.marks_meanwhile.append(taken)
                if answer.status_code >= 400:
                    self.errors[f"{what}: {answer.status_code} {answer.text[:80]}"] += 1
                    return None
            return answer
        self.errors[f"{what}: 503 ten times"] += 1
        return None

    def _browse(self, session: requests.Session, image: str, _: random.Random) -> None:
        for path in ("/info/", "/datastore/?output=stats", f"/datastore/image/info?image={image}",
                     f"/datastore/image?image={image}"):  # fmt: skip
            self._ask(session, "browse", "GET", path)

    def _infer(self, session: requests.Session, image: str, _: random.Random) -> None:
        with self._lock:
            self._inferring += 1
        try:
            path = f"/infer/segmentation?image={image}&output=image"
            answer = self._ask(session, "infer", "POST", path)
        finally:
            with self._lock:
                self._inferring -= 1
        if answer is not None:
            session.mask = answer.content  # type: ignore[attr-defined]

    def _mark(self, session: requests.Session, _image: str, _: random.Random) -> None:
        own = f"person{self._people.index(session)}"
        if self.ours:  # a mark and its withdrawal, so that each mark writes
            answer = self._ask(
                session, "mark", "PUT", f"/forget/studies/{own}", json={"reason": "quality"}
            )
            if answer is not None:
                request = answer.json()["request_id"]
                self._ask(session, "withdraw", "DELETE", f"/forget/requests/{request}")
        else:
            path = f"/datastore/image/info?image={own}"
            self._ask(session, "mark", "PUT", path, data={"info": json.dumps({"forget": True})})

    def _save(self, session: requests.Session, image: str, _: random.Random) -> None:
        mask = getattr(session, "mask", None)
        if mask is not None:
            path = f"/datastore/label?image={image}&tag=final"
            self._ask(session, "save", "PUT", path, files={"label": ("mask.nii.gz", mask)})

    def figures(self, seconds: float, memory: list[tuple[float, float]]) -> dict[str, Any]:
        """Return everything as JSON."""
        half = [m for t, m in memory if t > seconds / 2]
        early = [m for t, m in memory if seconds / 5 < t <= seconds / 2]
        return {
            "seconds": seconds,
            "answers": sum(map(len, self.milliseconds.values())),
            "errors": dict(self.errors),
            "told_to_wait": self.told_to_wait,
            "milliseconds": {k: _spread(v) for k, v in sorted(self.milliseconds.items())},
            "marks_while_inference_runs": _spread(self.marks_meanwhile),
            "memory_megabytes": {
                "begin": round(memory[0][1]), "end": round(memory[-1][1]),
                "median_early": round(statistics.median(early or half)),
                "median_late": round(statistics.median(half)),
            },
        }  # fmt: skip


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    return {
        "count": len(values),
        "median": round(statistics.median(ordered), 1),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 1),
        "slowest": round(ordered[-1], 1),
    }


def measure(server: Server, crowd: Crowd, seconds: float) -> dict[str, Any]:
    """Let a crowd work on a server while its memory is watched."""
    warm = f"{server.url}/infer/segmentation?image=person0&output=image"
    header = {"Authorization": f"Bearer {crowd.tokens[0]}"} if crowd.tokens else {}
    requests.post(warm, headers=header, timeout=120).raise_for_status()
    memory: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        began = time.monotonic()
        while not over.wait(1.0):
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            memory.append((time.monotonic() - began, int(resident.split()[1]) / 1024))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        crowd.work(seconds)
    finally:
        over.set()
        watcher.join()
    return crowd.figures(seconds, memory)


def write_studies(folder: Path) -> None:
    """Smooth blobs, one image for each person."""
    for number in range(PEOPLE):
        rng = np.random.default_rng(number)
        coarse = torch.from_numpy(rng.normal(size=(1, 1, *(n // 8 for n in SHAPE))))
        array = torch.nn.functional.interpolate(coarse, size=SHAPE, mode="trilinear")[0, 0].numpy()
        image = Volume((array * 400 + 500).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]), "MR")
        write_volume(image, folder / f"person{number}.nii.gz")


@contextmanager
def stock_server(folder: Path) -> Iterator[Server]:
    """Run MONAI Label's own server on an app of its own kind."""
    app = folder / "app"
    shutil.copytree(ROOT / "tests" / "benchmarks" / "stock_app", app)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app),
        "--studies", str(folder / "studies"), "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    settings = {"MONAI_LABEL_TRACKING_ENABLED": "false", "SEGUNLEARN_STOCK": str(folder)}
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=folder,
            env={**os.environ, **settings, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until(lambda: _answers(server), 180, "the stock server answers", log)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(server: Server) -> bool:
    try:
        return requests.get(f"{server.url}/info/", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def main() -> None:
    """Measure both, print the bars and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--stock-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        version = publish_tiny(folder / "home", config=CONFIG)
        for place in (folder / "studies", folder / "stock" / "studies"):
            write_studies(place)
        network = load_weights(version.weights, CONFIG, version.sha256).eval()
        example = torch.zeros(1, 1, *CONFIG.patch_size)
        with torch.inference_mode(False):
            torch.jit.trace(network, example).save(str(folder / "stock" / "model.ts"))
        (folder / "stock" / "config.json").write_text(json.dumps(dataclasses.asdict(CONFIG)))
        store = open_store(folder / "home" / "segunlearn.db")
        tokens = [AccessTokens(store).create(f"annotator {n}", "annotator", 1)[0]
                  for n in range(PEOPLE)]  # fmt: skip
        store.close()
        with running_server(
            str(folder / "studies"), folder / "home", conf={"login": "tokens"}
        ) as server:
            ours = measure(server, Crowd(server.url, True, tokens, options.seed), options.seconds)
        with stock_server(folder / "stock") as server:
            crowd = Crowd(server.url, False, [], options.seed)
            stock = measure(server, crowd, options.stock_seconds)
    errors = sum(ours["errors"].values())
    marking = ours["marks_while_inference_runs"]["p95"]
    memory = ours["memory_megabytes"]
    growth = memory["median_late"] / memory["median_early"] - 1
    bars = [
        bar("errors of all answers", errors, "= 0", errors == 0),
        bar("marking while inference runs, p95 ms", marking, "< 100", marking < 100),
        bar("memory, second half against first", growth, "< 0.05", growth < 0.05),
        bar("the stock server's marking, p95 ms", stock["marks_while_inference_runs"]["p95"],
            "above ours", stock["marks_while_inference_runs"]["p95"] > marking),
    ]  # fmt: skip
    write(
        "load", {"ours": ours, "stock": stock}, bars, seeds=[options.seed],
        machine=platform.platform(), people=PEOPLE, pause_seconds=PAUSE, image_voxels=SHAPE,
        load_average=os.getloadavg(), niceness=os.nice(0),
    )  # fmt: skip


if __name__ == "__main__":
    main()
