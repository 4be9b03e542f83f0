"""A PACS that hangs: everybody waits for it, and the server still says that it lives."""

from __future__ import annotations

import threading
import time

import httpx
from fastapi import FastAPI

from live_server import live_server
from segunlearn.app.security import health


def test_it_lives_while_every_thread_waits() -> None:
    app, gate, waiting = FastAPI(), threading.Event(), threading.Semaphore(0)
    app.include_router(health.router)

    @app.get("/wait")
    def wait() -> None:
        waiting.release()
        gate.wait(30)

    with live_server(app) as url:
        callers = [
            threading.Thread(target=httpx.get, args=(f"{url}/wait",), kwargs={"timeout": 60})
            for _ in range(45)
        ]
        for caller in callers:
            caller.start()
        try:
            assert all(waiting.acquire(timeout=20) for _ in range(40))  # all threads of a server
            began = time.monotonic()
            assert httpx.get(f"{url}/health/live", timeout=10).json() == {"status": "live"}
            assert time.monotonic() - began < 5
        finally:
            gate.set()
            for caller in callers:
                caller.join()
