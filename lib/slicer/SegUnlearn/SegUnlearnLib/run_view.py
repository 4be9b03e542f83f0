"""What is shown of a run, as the server tells it. Plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunView:
    """What the panel shows of a run.

    Parameters
    ----------
    run_id
        Empty while the task waits for its turn.
    kind
        See ``texts.RUNS``.
    state
        ``waiting``, ``running``, or how it ended: ``done``, ``failed``, ``refused``,
        ``cancelled``, ``interrupted``, ``lost``.
    phase, fraction, eta_seconds
        Of its progress; the fraction is negative while nothing is known.
    text
        How it ended or why it waits.
    lines
        Of a plan.
    metrics
        Newest figures.
    requests
        What an unlearning is about.
    model, by
        Name of the model, and who started it; may be empty.
    """

    run_id: str
    kind: str
    state: str
    phase: str = ""
    fraction: float = -1.0
    eta_seconds: float | None = None
    text: str = ""
    lines: tuple[str, ...] = ()
    metrics: Mapping[str, float] | None = None
    requests: tuple[str, ...] = ()
    model: str = ""
    by: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.state not in ("waiting", "running")

    @property
    def can_stop(self) -> bool:
        """Whether it looks out for being asked to stop."""
        return bool(self.run_id) and not self.is_over and self.kind not in ("restore", "purge")

    @property
    def unlearned(self) -> frozenset[str]:
        """Requests that it is unlearning now."""
        runs = (self.kind, self.state) == ("unlearn", "running")
        return frozenset(self.requests) if runs else frozenset()


def view_of(run: Mapping[str, Any]) -> RunView:
    """Read a run as ``/runs`` tells it."""
    progress, parameters = run.get("progress") or {}, run.get("parameters") or {}
    state = str(run["state"])
    text = str(run.get("message") or "")
    if state == "running" and run.get("cancel_requested"):
        text = "It was asked to stop, and does so at its next step."
    return RunView(
        str(run["run_id"]),
        str(run["kind"]),
        state,
        str(progress.get("phase") or ""),
        float(progress.get("fraction", -1.0)),
        progress.get("eta_seconds"),
        text,
        tuple(map(str, parameters.get("lines") or ())),
        dict(progress.get("metrics") or {}),
        tuple(map(str, parameters.get("requests") or ())),
        str(run.get("model") or ""),
        str(run.get("requested_by") or ""),
    )
