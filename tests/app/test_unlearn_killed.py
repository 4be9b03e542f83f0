"""Wherever a process is killed, one whole version is served and the request says what is true."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app import unlearn_run
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_journal import journals
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_settle import settle
from segunlearn.app.unlearn_undo import Undo
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.versions import VersionRegistry
from unlearn_storm import ORDER, Storm, quick_make, restore_quickly, unlearn_quickly


class Killed(BaseException):
    """No handler of ours catches it."""


def test_killed_processes(tmp_path: Path) -> None:
    found = Storm(tmp_path, kills=12).run()
    assert found["kills"] == 12


class Countdown:
    """Dies at the n-th rename, removal or change of a request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
        self.left = fatal
        for owner, name in ((os, "replace"), (Path, "unlink"), (ForgetSet, "_change")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, call: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise Killed
            return call(*arguments, **named)

        return counted


def deaths(
    tmp_path: Path, first: Site, act: Callable[[Site], object]
) -> Iterator[tuple[int, Site]]:
    """Copies where an act died at each durable change in turn and was settled, and a whole one.

    Yields
    ------
    fatal, site
        The number of the change it died at; the copy.
    """
    for fatal in range(1, 200):
        root = tmp_path / str(fatal)
        shutil.copytree(first.home.root, root)
        site = replace(first, home=replace(first.home, root=root))
        with pytest.MonkeyPatch.context() as patches:
            countdown = Countdown(patches, fatal)
            with contextlib.suppress(Killed):
                act(site)
        settle(site.home, site.records)
        yield fatal, site
        if countdown.left > 0:
            return  # it ended before it could die
    pytest.fail("it never came to an end")


def test_every_moment_of_a_restore_out_of_order(tmp_path: Path) -> None:
    """The first of two forgotten people comes back, or nothing changed; the other never does."""
    first = site_in(tmp_path, forget=2, retain=2, unseen=6)
    original = first.publish(1, [*first.forget, *first.retain])
    weights = original.weights.read_bytes()
    requests = []
    for case in first.forget:
        requests += first.mark([case])
        assert unlearn_quickly(first, requests[-1])["outcome"] == "published"
    for fatal, site in deaths(tmp_path, first, lambda site: restore_quickly(site, requests[0])):
        assert not list(site.home.unlearning.iterdir()), fatal
        active = site.registry.active()
        finisher = Finisher(site.home, site.records)
        states = [site.records.forget_set.get(r).state for r in requests]
        assert states[1] == "fulfilled", fatal
        sealed = {v.version: v.weights_state for v in site.registry.versions()[:2]}
        assert sealed == {"v0001": "sealed", "v0002": "sealed"}, fatal
        assert not any(site.registry.get(v).weights.exists() for v in sealed), fatal
        holding = [d for d in finisher.deposits.all() if d.entries[0].version == "v0001"]
        assert active is not None
        if states[0] == "fulfilled":
            assert active.version == "v0003", fatal
            assert [d.requests for d in holding] == [(requests[0],)], fatal
        else:
            assert (states[0], active.version) == ("restored", "v0004"), fatal
            assert [d.requests for d in holding] == [(requests[1],)], fatal
            assert not finisher.keys.has(requests[0]), fatal
        assert finisher.deposits.open(holding[0].deposit_id, "v0001") == weights, fatal


@pytest.mark.parametrize("what", ["unlearn", "restore", "purge"])
def test_every_moment(tmp_path: Path, what: str) -> None:
    """A death at each durable change in turn; then the next start settles it."""
    first = site_in(tmp_path, forget=1, retain=2, unseen=6)
    first.publish(1, [*first.forget, *first.retain])
    (request,) = first.mark(first.forget)
    if what != "unlearn":
        assert unlearn_quickly(first, request)["outcome"] == "published"

    def act(site: Site) -> None:
        if what == "unlearn":
            unlearn_quickly(site, request)
        else:
            getattr(Undo(site.home, site.records, MODEL, "test"), what)(request)

    for fatal, site in deaths(tmp_path, first, act):
        assert not list(journals(site.home)), fatal
        active, old = site.registry.active(), site.registry.get("v0001")
        state = site.records.forget_set.get(request).state
        finisher = Finisher(site.home, site.records)
        assert active is not None
        if state in ("approved", "refused", "restored"):
            assert (active.version, old.weights_state) == ("v0001", "here"), (fatal, state)
        elif state == "fulfilled":
            assert (old.state, old.weights_state) == ("retired", "sealed"), fatal
            (deposit,) = finisher.deposits.of_request(request)
            assert finisher.deposits.is_openable(deposit.deposit_id), fatal
        else:
            assert (state, old.weights_state) == ("purged", "destroyed"), fatal
            assert not list(finisher.deposits.all()), fatal
            assert not finisher.keys.has(request), fatal


def refused(site: Site, request: str) -> None:
    """An unlearning whose candidate goes on from the original, and does not pass."""
    verdict = {"outcome": "refused", "reached": "none", "needed": "", "reasons": ["remembered"]}
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(unlearn_run, "make", lambda *a: replace(quick_make(*a), exact=False))
        patches.setattr(
            UnlearnRun, "_audited", lambda *_: {"verdict": verdict, "about": {"audit_id": "0" * 32}}
        )
        order = replace(ORDER, requests=(request,))
        UnlearnRun(order, site.home, site.records, "test").execute(site.cases)


def test_every_moment_of_a_refusal(tmp_path: Path) -> None:
    """The weights of what was refused never stay, nor do they stand in the way of the next try."""
    first = site_in(tmp_path, forget=1, retain=2, unseen=6)
    first.publish(1, [*first.forget, *first.retain])
    (request,) = first.mark(first.forget)
    for fatal, site in deaths(tmp_path, first, lambda site: refused(site, request)):
        assert not list(journals(site.home)), fatal
        for version in site.registry.versions()[1:]:
            assert (version.state, version.weights_state) == ("retired", "destroyed"), fatal
            assert not version.weights.exists(), fatal
        assert unlearn_quickly(site, request)["outcome"] == "published", fatal


@pytest.mark.parametrize("left", [True, False])
def test_what_earlier_versions_left_of_a_refusal_goes_with_the_next_one(
    tmp_path: Path, left: bool
) -> None:
    """A discarded candidate whose manifest says that its weights are here, rightly or not."""
    site = site_in(tmp_path, forget=1, retain=2, unseen=6)
    site.publish(1, [*site.forget, *site.retain])
    (request,) = site.mark(site.forget)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(VersionRegistry, "discard", VersionRegistry.retire)
        refused(site, request)
    candidate = site.registry.get("v0002")
    assert (candidate.state, candidate.weights_state) == ("retired", "here")
    if not left:
        candidate.weights.unlink()
    assert unlearn_quickly(site, request)["outcome"] == "published"
    states = [(v.version, v.weights_state, v.weights.exists()) for v in site.registry.versions()]
    assert states[:2] == [("v0001", "sealed", False), ("v0002", "destroyed", False)]
    Undo(site.home, site.records, MODEL, "test").restore(request)
    active = site.registry.active()
    assert active is not None
    assert active.version == "v0001"
