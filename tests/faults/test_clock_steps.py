"""The machine's clock is set back or forward by years while everything goes on."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.runs import Progress


class Clock:
    """Sets what every module of the records takes for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def step(self, days: float) -> None:
        def now() -> str:
            return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

        for name, module in list(sys.modules.items()):
            if name.startswith("segunlearn.") and hasattr(module, "utc_now"):
                self._monkeypatch.setattr(module, "utc_now", now)


@pytest.mark.parametrize("days", [-3650.0, -0.01, 0.01, 3650.0])
def test_nothing_is_lost_and_nothing_forks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float
) -> None:
    """Rows stand in the order in which they were written; times are told, never compared."""
    clock, records = Clock(monkeypatch), Records(Home(tmp_path))
    before, _ = records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="ann")
    run = records.runs.start("train", "m", {})
    records.runs.update(run, Progress("train", 1, 3))
    clock.step(days)
    after, _ = records.forget_set.mark("study", "1.2", "consent_withdrawn", actor="ann")
    approved = records.forget_set.approve(before.request_id, actor="ann")
    assert approved.state == "approved"
    events = records.runs.get(run).last_event
    records.runs.update(run, Progress("validate", 2, 3))
    assert records.runs.get(run).is_running, "a living run is not taken for a dead one"
    assert records.runs.get(run).last_event > events
    assert {t.id for t in records.forget_set.live_targets()} == {"1.1", "1.2"}
    assert [r.what for r in records.trail.every()] == [
        before.request_id, after.request_id, before.request_id,
    ]  # fmt: skip
    assert list(records.trail.verify()) == list(records.ledger.verify()) == []
    steps = records.forget_set.history(before.request_id)
    assert [s.to_state for s in steps] == ["requested", "approved"]
    records.runs.finish(run, "done")
    records.store.close()


def test_tokens_follow_the_clock_and_revoked_ones_stay_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, records = Clock(monkeypatch), Records(Home(tmp_path))
    tokens = AccessTokens(records.store)
    text, _ = tokens.create("x", "user", 1)
    revoked, made = tokens.create("y", "user", 1)
    tokens.revoke(made.token_id)
    for days, good in ((0.5, True), (2.0, False), (-30.0, True), (2.0, False)):
        clock.step(days)
        found, never = tokens.find(text), tokens.find(revoked)
        assert found is not None
        assert (found.state == "good") is good, days
        assert never is not None
        assert never.state == "revoked"
    records.store.close()
