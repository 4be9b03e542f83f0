"""Audits of the server, and their reports."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from SegUnlearnLib.api import Api
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.signals import Signal

_SHOWN = 50


class Evidence:
    """The newest audits.

    Signals: ``changed()``; ``failed(Problem)``.

    Parameters
    ----------
    api
        Of the server.
    open_file
        Shows an HTML file to the user.
    """

    def __init__(self, api: Api, open_file: Callable[[str], Any]) -> None:
        self._api, self._open_file = api, open_file
        self.changed, self.failed = Signal(), Signal()
        self.audits: list[dict[str, Any]] = []
        self._folder: Any = None

    def load(self) -> None:
        """Ask the server."""

        def done(answer: Any) -> None:
            self.audits = [{**a, "audit_id": str(a["audit_id"])} for a in answer["audits"]]
            self.changed.emit()

        self._api.audits(_SHOWN, done, self._failed)

    def clear(self) -> None:
        """Forget what another server said."""
        self.audits = []
        self.changed.emit()

    def open_report(self, audit: str) -> None:
        """Fetch a report, with the login that a browser has not, and show it."""

        def done(page: bytes) -> None:
            if b"<html" not in page[:4096].lower():
                raise ValueError("no page")
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="segunlearn-reports-")
            path = Path(self._folder.name) / f"audit-{audit}.html"
            path.write_bytes(page)
            self._open_file(str(path))

        self._api.report(audit, done, self._failed)

    def close(self) -> None:
        """Delete the reports that were fetched; they may show patients."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _failed(self, problem: Problem) -> None:
        if problem.kind != "cancelled":
            self.failed.emit(problem)
