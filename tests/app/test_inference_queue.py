"""The queue of inferences: bounded, in turn, and stopped when nobody waits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from live_server import live_server
from segunlearn.app import inference_queue, wiring
from segunlearn.app.inference_queue import InferenceQueue
from segunlearn.app.routes import common, platform
from segunlearn.app.routes import infer as routes
from segunlearn.errors import SegUnlearnError, UnavailableError


class Gate:
    """Work that waits until it is let on, and notes what was done in which order."""

    def __init__(self) -> None:
        self.open, self.done = threading.Event(), list[str]()
        self.begun = threading.Semaphore(0)

    def work(self, name: str) -> Callable[[Callable[[], bool]], str]:
        def run(stop: Callable[[], bool]) -> str:
            self.begun.release()
            while not self.open.wait(0.005):
                if stop():
                    self.done.append(f"{name} stopped")
                    raise RuntimeError(name)
            self.done.append(name)
            return name

        return run


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_queue, "_THREADS", 1)


def ask(queue: InferenceQueue, gate: Gate, *names: str) -> list[Any]:
    return [queue.submit(gate.work(name), name.rstrip("0123456789")) for name in names]


def test_callers_take_turns(gate: Gate) -> None:
    queue = InferenceQueue(16)
    first = ask(queue, gate, "x")
    gate.begun.acquire()  # the thread is busy: the others wait
    jobs = first + ask(queue, gate, "a1", "a2", "a3", "a4", "b1", "c1", "b2")
    assert queue.figures() == (1, 7)
    gate.open.set()
    assert [j.future.result(10) for j in jobs][1] == "a1"
    assert gate.done == ["x", "a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_beyond_the_bound_it_says_when_to_come_back(gate: Gate) -> None:
    queue = InferenceQueue(3)
    ask(queue, gate, "a1")
    gate.begun.acquire()
    ask(queue, gate, "a2", "a3")
    with pytest.raises(UnavailableError, match="under way or wait") as refused:
        ask(queue, gate, "a4")
    assert 1 <= refused.value.retry_after <= 120


def test_who_has_most_waiting_gives_way(gate: Gate) -> None:
    """A script that asks for a hundred does not keep the others out."""
    queue = InferenceQueue(5)
    ask(queue, gate, "a1")
    gate.begun.acquire()
    greedy = ask(queue, gate, "a2", "a3", "a4", "a5")
    (other,) = ask(queue, gate, "b1")
    assert isinstance(greedy[-1].future.exception(10), UnavailableError)
    ask(queue, gate, "b2")  # a waits with three, b with one
    with pytest.raises(UnavailableError):
        ask(queue, gate, "b3")
    gate.open.set()
    assert other.future.result(10) == "b1"
    assert greedy[0].future.result(10) == "a2"


def test_what_nobody_waits_for_is_stopped(gate: Gate) -> None:
    queue = InferenceQueue(3)
    running, waiting, last = ask(queue, gate, "a", "b", "c")
    gate.begun.acquire()
    waiting.cancel()
    assert queue.figures() == (1, 1)  # there is room again
    running.cancel()
    assert isinstance(running.future.exception(10), RuntimeError)
    gate.open.set()
    assert last.future.result(10) == "c"
    assert gate.done == ["a stopped", "c"]
    assert waiting.future.cancelled()


def test_a_failing_one_stops_no_thread(gate: Gate) -> None:
    queue = InferenceQueue(3)

    def fail(_: Callable[[], bool]) -> None:
        raise SystemExit  # whatever it is

    assert isinstance(queue.submit(fail).future.exception(10), SystemExit)
    gate.open.set()
    assert ask(queue, gate, "a")[0].future.result(10) == "a"
    until(lambda: queue.figures() == (0, 0))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Gate, InferenceQueue]]:
    """The routes alone, on a queue of two, with work that waits."""
    gate, queue = Gate(), InferenceQueue(2)
    app = SimpleNamespace(
        submit_inference=queue.submit,
        uses_model=lambda strategy: strategy == "uncertainty",
        next_sample=lambda request: gate.work(request["strategy"])(request["cancel"]) and {},
        info=dict,
    )
    monkeypatch.setattr(routes, "current_app", lambda: app)
    monkeypatch.setattr(platform, "current_app", lambda: app)
    monkeypatch.setattr(common, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(
        routes, "_infer", lambda *given: (JSONResponse(gate.work(given[1])(given[-1])), [])
    )
    server = FastAPI()
    server.include_router(routes.router)
    server.include_router(platform.router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    with live_server(server) as url:
        yield url, gate, queue
        gate.open.set()


def hang_up_after(url: str, path: str) -> socket.socket:
    where = urlsplit(url)
    link = socket.create_connection((where.hostname or "", where.port or 0), timeout=10)
    link.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    return link


def test_a_caller_who_hangs_up_stops_the_inference(
    served: tuple[str, Gate, InferenceQueue],
) -> None:
    url, gate, queue = served
    running, waiting = hang_up_after(url, "/infer/a"), None
    assert gate.begun.acquire(timeout=10)
    waiting = hang_up_after(url, "/infer/b")
    until(lambda: queue.figures() == (1, 1))
    full = requests.post(f"{url}/infer/c", timeout=10)
    assert full.status_code == 503
    assert 1 <= int(full.headers["retry-after"]) <= 120
    waiting.close()
    until(lambda: queue.figures() == (1, 0))
    running.close()
    until(lambda: gate.done == ["a stopped"])
    until(lambda: queue.figures() == (0, 0))


def test_many_next_samples_by_the_model_stop_nothing_else(
    served: tuple[str, Gate, InferenceQueue],
) -> None:
    """A server has 40 threads for everything else."""
    url, gate, queue = served
    asking = [hang_up_after(url, "/activelearning/uncertainty") for _ in range(45)]
    until(lambda: queue.figures() == (1, 1))
    assert requests.get(f"{url}/info/", timeout=10).status_code == 200
    full = requests.post(f"{url}/activelearning/uncertainty", json={}, timeout=10)
    assert (full.status_code, "retry-after" in full.headers) == (503, True)
    for link in asking:
        link.close()
    until(lambda: queue.figures() == (0, 0))
    # one had waited, and may have begun before its own caller was seen to have gone
    assert set(gate.done) == {"uncertainty stopped"}
    gate.open.set()
    answer = requests.post(f"{url}/activelearning/first", json={"cancel": 1}, timeout=10)
    assert (answer.status_code, answer.json()) == (200, {})


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
