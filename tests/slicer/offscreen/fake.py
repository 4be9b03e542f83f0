"""A scripted server for what a good one never does: late, broken, foreign and endless answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

INFO = {
    "name": "SegUnlearn", "version": "0.1.0", "labels": ["core", "shell"],
    "models": {
        "segmentation": {
            "type": "segmentation", "labels": {"core": 1, "shell": 2}, "version": "v0001",
            "config": {"site": ["auto", "base"]},
        },
        "forget_study": {"type": "segmentation", "labels": {}, "config": {}},
    },
    "trainers": {"segmentation": {}, "unlearn": {}, "site_adapt": {}},
}  # fmt: skip
EMPTY: dict[str, Any] = {
    "/auth/": {"enabled": False}, "/info/": INFO, "/runs": [], "/audits": {"audits": []},
    "/adapters": {"adapters": []}, "/datastore/": {"objects": {}},
    "/forget/requests": {"total": 0, "requests": []}, "/forget/status": {},
    "/ledger/versions": [], "/dicomweb/studies": [],
}  # fmt: skip


def request(number: int, state: str = "approved") -> dict[str, Any]:
    """One forget request."""
    reasons = ("consent_withdrawn", "wrong_label", "quality", "retention_expired")
    kind = ("study", "series", "patient")[number % 3]
    return {
        "request_id": f"{number:032x}",
        "target": {"kind": kind, "id": f"1.2.826.0.1.3680043.8.498.{number:06d}", "issuer": "",
                   "model": ""},
        "reason": reasons[number % 4], "note": f"note {number}", "state": state,
        "needed": "unlearned", "reached": "unlearned" if state == "fulfilled" else "none",
        "marked_by": ("ann", "bob")[number % 2],
        "created": f"2026-{1 + number % 12:02d}-{1 + number % 28:02d}T08:{number % 60:02d}:00Z",
    }  # fmt: skip


class Script:
    """What the server answers: a value or a function of the handler, by method and path."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = dict(EMPTY)
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.delay = 0.0
        self.url = ""

    def asked(self, method: str, path: str) -> list[dict[str, list[str]]]:
        """Queries of the requests to a path."""
        return [
            parse_qs(urlsplit(p).query) for m, p, _, _ in self.seen
            if (m, urlsplit(p).path) == (method, path)
        ]  # fmt: skip


def pages(total: int, states: tuple[str, ...] = ("approved",)) -> Callable[[Any], Any]:
    """Answer ``/forget/requests`` with so many."""
    everything = [request(n, states[n % len(states)]) for n in range(total)]

    def page(handler: Any) -> Any:
        query = parse_qs(urlsplit(handler.path).query)
        offset, limit = int(query["offset"][0]), int(query["limit"][0])
        return {"total": total, "requests": everything[offset : offset + limit]}

    return page


@contextmanager
def fake_server() -> Iterator[Script]:
    """Serve a script while the block runs."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            script.seen.append((self.command, self.path, dict(self.headers), body))
            time.sleep(script.delay)
            path = urlsplit(self.path).path
            answer = script.answers.get(f"{self.command} {path}", script.answers.get(path))
            if callable(answer):
                answer = answer(self)
            if answer is Ellipsis:
                return  # the script wrote it
            status, value = answer if isinstance(answer, tuple) else (200, answer)
            if answer is None:
                status, value = 404, {"detail": "Not Found"}
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            """Write nothing."""

        def handle(self) -> None:
            with suppress(ConnectionError):  # the panel went away
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def mask(content: bytes, names: dict[str, int], wait: threading.Event | None = None) -> Any:
    """Answer ``/infer`` with a mask, after ``wait``."""

    def answer(handler: Any) -> Any:
        if wait is not None:
            wait.wait(30)
        params = json.dumps({"label_names": names, "version": "v0001", "adapter": "base"}).encode()
        body = (
            b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n' + params
            + b'\r\n--b\r\nContent-Disposition: form-data; name="image"; '
            b'filename="m.nrrd"\r\n\r\n' + content + b"\r\n--b--\r\n"
        )  # fmt: skip
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/form-data; boundary=b")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return ...

    return answer


def half_an_answer(handler: Any) -> Any:
    """Break off in the middle of a JSON text."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"total": 3, "requests": [{"request_id": "0')
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.close()
    return ...
