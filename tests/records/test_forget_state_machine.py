"""Whatever is done in whatever order: no run uses a marked study, and no mark is lost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from records_entries import ledger_entry
from segunlearn.cases import Case
from segunlearn.errors import ConflictError, SegUnlearnError
from segunlearn.records.coverage import Subject
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.forget_states import LIVE, STATES, TRANSITIONS
from segunlearn.records.ledger import Ledger, LedgerCase
from segunlearn.records.store import Store, open_store

PATIENTS = 3
studies = st.integers(0, 5)
steps = st.sampled_from(STATES)


def person(study: int) -> str:
    return f"P{study % PATIENTS}"


def case(study: int, series: int) -> Case:
    return Case(f"1.{study + 1}.{series + 1}", f"1.{study + 1}", person(study), Path("x.nii.gz"))


@dataclass
class Model:
    """The slow and obvious forget set: a list of requests, and the archive beside it."""

    requests: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Request id -> (kind, target, state)."""
    archive: set[Case] = field(default_factory=set)

    def open_request(self, kind: str, target: str) -> str | None:
        closed = {"dismissed", "withdrawn", "restored"}
        found = [
            r
            for r, (k, t, s) in self.requests.items()
            if (k, t) == (kind, target) and s not in closed
        ]
        assert len(found) < 2
        return found[0] if found else None

    def is_forbidden(self, one: Case) -> bool:
        names = {("series", one.series), ("study", one.study), ("patient", one.person)}
        return any(s in LIVE and (k, t) in names for k, t, s in self.requests.values())


class ForgetSetMachine(RuleBasedStateMachine):
    """Marks, decisions, trainings, restarts, imports and deletions in any order."""

    make_forget_set: Callable[[Store], ForgetSet] = ForgetSet

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.model = Model()
        self.runs = 0
        self._open()

    def _open(self) -> None:
        self.store = open_store(Path(self._folder.name) / "segunlearn.db")
        self.forget_set, self.ledger = self.make_forget_set(self.store), Ledger(self.store)

    def teardown(self) -> None:
        self.store.close()
        self._folder.cleanup()

    @initialize()
    def fill(self) -> None:
        self.model.archive = {case(study, series) for study in range(4) for series in range(2)}

    def _mark(self, kind: str, target: str, study: int) -> None:
        before = self.model.open_request(kind, target)
        own = {"study": f"1.{study + 1}", "person": person(study)} if kind == "series" else {}
        request, created = self.forget_set.mark(kind, target, "quality", actor="anna", **own)
        assert created == (before is None)
        assert before in (None, request.request_id)
        state = self.model.requests[before][2] if before else "requested"
        if state == "proposed":
            state = "requested"
        assert request.state == state
        self.model.requests[request.request_id] = (kind, target, state)

    @rule(study=studies)
    def mark_study(self, study: int) -> None:
        self._mark("study", f"1.{study + 1}", study)

    @rule(study=studies, series=st.integers(0, 1))
    def mark_series(self, study: int, series: int) -> None:
        self._mark("series", case(study, series).series, study)

    @rule(study=studies)
    def mark_patient(self, study: int) -> None:
        self._mark("patient", person(study), study)

    @rule(study=studies)
    def propose(self, study: int) -> None:
        target = f"1.{study + 1}"
        before = self.model.open_request("study", target)
        request, created = self.forget_set.propose("study", target, "quality", "", "rejection_note")
        assert created == (before is None)
        if created:
            self.model.requests[request.request_id] = ("study", target, "proposed")

    @rule(pick=st.randoms(use_true_random=False), state=steps)
    def decide(self, pick: object, state: str) -> None:
        """Approve, withdraw, unlearn, refuse, restore, purge: whatever is allowed."""
        if not self.model.requests:
            return
        request_id = pick.choice(sorted(self.model.requests))  # type: ignore[attr-defined]
        kind, target, before = self.model.requests[request_id]
        try:
            self.forget_set.transition(request_id, state, actor="root", reached="retrained")
        except ConflictError:
            used = before == "approved" and state == "fulfilled"
            assert used or state not in TRANSITIONS[before]
            return
        assert state in TRANSITIONS[before]
        self.model.requests[request_id] = (kind, target, state)

    @rule(study=studies)
    def import_study(self, study: int) -> None:
        """A study arrives, or comes back under the same UIDs."""
        self.model.archive |= {case(study, series) for series in range(2)}

    @rule(study=studies)
    def delete_study(self, study: int) -> None:
        self.model.archive -= {case(study, series) for series in range(2)}

    @rule()
    def restart(self) -> None:
        self.store.close()
        self._open()

    @rule(outcome=st.sampled_from(["done", "failed", "cancelled"]))
    def train(self, outcome: str) -> None:
        cases = sorted(self.model.archive, key=lambda c: c.series)
        kept, excluded = self.forget_set.exclude(cases)
        assert kept == [c for c in cases if not self.model.is_forbidden(c)]
        for one, request_id in excluded:
            assert self.model.requests[request_id][2] in LIVE
            assert one not in kept
        self.runs += 1
        roles = ("train", "validation")
        self.ledger.append(
            ledger_entry(
                self.runs,
                version="own" if outcome == "done" else None,
                cases=[
                    LedgerCase(c.series, c.study, c.person, roles[n % 2])
                    for n, c in enumerate(kept)
                ],
                outcome=outcome,
            )
        )
        assert not any(
            self.model.is_forbidden(Case(c.series, c.study, c.person, Path()))
            for c in self.ledger.cases_of(f"run-{self.runs}")
        )

    @rule(text=st.text(max_size=70))
    def bad_mark(self, text: str) -> None:
        """Whatever is refused changes nothing (the invariants see it)."""
        try:
            self.forget_set.mark("study", f"x{text}", "quality", actor="anna")
        except SegUnlearnError:
            return
        raise AssertionError("not a UID, and marked")

    @invariant()
    def no_mark_is_lost(self) -> None:
        found = {r.request_id: r for r in self.forget_set.list(limit=1000)}
        assert {i: (r.target.kind, r.target.id, r.state) for i, r in found.items()} == (
            self.model.requests
        )

    @invariant()
    def badges_agree(self) -> None:
        cases = [case(study, series) for study in range(6) for series in range(2)]
        status = self.forget_set.status(
            series=[Subject(c.series, c.study, c.person) for c in cases]
        )
        assert {c.series for c in cases if status[c.series].marked} == {
            c.series for c in cases if self.model.is_forbidden(c)
        }


TestForgetSet = ForgetSetMachine.TestCase
TestForgetSet.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class ForgetfulSet(ForgetSet):
    """Overlooks the marks of patients."""

    def exclude(self, cases: Sequence[Case]) -> tuple[list[Case], list[tuple[Case, str]]]:
        return super().exclude([Case(c.series, c.study, c.series, c.image) for c in cases])


class ForgetfulMachine(ForgetSetMachine):
    make_forget_set = ForgetfulSet


def test_the_machine_itself_can_fail() -> None:
    quick = settings(TestForgetSet.settings, max_examples=100, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(ForgetfulMachine, settings=quick)
