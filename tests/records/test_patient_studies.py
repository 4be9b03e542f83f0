"""A mark on a patient goes on covering the patient's studies, whatever number they get later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import IntegrityError as DatabaseIntegrityError

from records_entries import ledger_entry
from segunlearn.cases import Case
from segunlearn.errors import ConflictError, NotFoundError
from segunlearn.records import migrations
from segunlearn.records import store as store_module
from segunlearn.records.coverage import Subject
from segunlearn.records.forget_set import ForgetRequest, ForgetSet
from segunlearn.records.ledger import Ledger
from segunlearn.records.runs import Runs
from segunlearn.records.store import Store, open_store, utc_now
from segunlearn.records.tables import FORGET_REQUEST, LEDGER_CASE
from segunlearn.records.targets import Target


@pytest.fixture
def forget_set(store: Store) -> ForgetSet:
    return ForgetSet(store)


def case(series: str, person: str) -> Case:
    return Case(series, series.rpartition(".")[0], person, Path("image.nii.gz"))


def mark(forget_set: ForgetSet, patient: str = "X", **more: Any) -> ForgetRequest:
    return forget_set.mark("patient", patient, "consent_withdrawn", actor="anna", **more)[0]


def is_out(forget_set: ForgetSet, *cases: Case) -> bool:
    return not forget_set.exclude(cases)[0]


def test_what_was_listed_at_the_mark_is_covered_under_another_number(forget_set: ForgetSet) -> None:
    request = mark(forget_set, studies=["1.2 ", "1.1\0"])
    assert request.studies == ("1.1", "1.2")
    moved, other = [case("1.1.1", "Y"), case(" 1.2.1", "Y^^^North")], case("1.3.1", "Y")
    assert forget_set.exclude([*moved, other]) == (
        [other], [(c, request.request_id) for c in moved],
    )  # fmt: skip
    status = forget_set.status(
        studies=[Subject(study="1.1", person="Y"), "1.2", Subject(study="1.3", person="Y")],
        series=[Subject("1.1.1", "1.1", "Y")],
    )
    assert {uid for uid, s in status.items() if s.marked} == {"1.1", "1.2", "1.1.1"}
    single, _ = forget_set.mark("study", "1.1", "quality", actor="anna", person="Y")
    assert single.covered_by == (request.request_id,)
    assert forget_set.exclude(moved, besides=[request.request_id, single.request_id])[0] == moved


@pytest.mark.parametrize("end", ["withdrawn", "restored"])
def test_the_cover_ends_with_the_request(forget_set: ForgetSet, end: str) -> None:
    request = mark(forget_set, studies=["1.1"])
    moved = case("1.1.1", "Y")
    steps = {"withdrawn": (), "restored": ("approved", "working", "fulfilled")}[end]
    for step in (*steps, end):
        assert is_out(forget_set, moved)
        reached = "unlearned" if step == "fulfilled" else None
        forget_set.transition(request.request_id, step, actor="root", reached=reached)
    assert not is_out(forget_set, moved)
    assert forget_set.keep_studies(request.request_id, ["1.9"]) == []
    assert forget_set.get(request.request_id).studies == ("1.1",), "it stays readable"
    again = mark(forget_set)
    assert again.studies == ()
    assert not is_out(forget_set, moved)


def test_studies_come_to_a_request_and_never_go(forget_set: ForgetSet) -> None:
    request = mark(forget_set, studies=["1.1"])
    assert forget_set.keep_studies(request.request_id, ["1.1", "1.2"]) == ["1.2"]
    assert forget_set.keep_studies(request.request_id, []) == []
    assert mark(forget_set, studies=["1.3"]).studies == ("1.1", "1.2", "1.3")
    assert is_out(forget_set, *(case(f"1.{n}.1", "Y") for n in (1, 2, 3)))
    with pytest.raises(NotFoundError):
        forget_set.keep_studies("0" * 32, ["1.1"])
    single, _ = forget_set.mark("study", "1.1", "quality", actor="anna")
    assert forget_set.keep_studies(single.request_id, ["1.4"]) == []
    assert single.studies == ()


def test_what_is_met_under_the_number_is_covered_from_then_on(forget_set: ForgetSet) -> None:
    request = mark(forget_set)
    assert is_out(forget_set, case("1.1.1", "X"), case("1.2.1", " X "))
    assert is_out(forget_set, case("1.1.1", "Y"), case("1.2.1", "Y"))
    assert forget_set.get(request.request_id).studies == ("1.1", "1.2")


def test_a_file_with_a_wrong_person_is_in_again_with_the_right_one(forget_set: ForgetSet) -> None:
    mark(forget_set)
    wrong, right = (Case("scan_7", "scan_7", person, Path("x")) for person in ("X", "Y"))
    assert is_out(forget_set, wrong)
    assert not is_out(forget_set, right)
    mark(forget_set, studies=["scan_7"])  # as the server's folder listed it
    assert is_out(forget_set, right)


def test_what_runs_recorded_of_the_patient_comes_with_the_mark(
    forget_set: ForgetSet, store: Store
) -> None:
    cases = [
        ("1.1.1", "1.1", "X", "train"), ("1.2.1", "1.2", "X^^^North", "validation"),
        ("1.3.1", "1.3", "X^^^South", "train"), ("1.4.1", "1.4", "X4", "train"),
    ]  # fmt: skip
    Ledger(store).append(ledger_entry(1, cases=cases))
    assert mark(forget_set, issuer="North").studies == ("1.1", "1.2")
    assert mark(forget_set).studies == ("1.1", "1.2", "1.3")


def test_another_issuers_patient_is_not_kept(forget_set: ForgetSet, store: Store) -> None:
    Ledger(store).append(ledger_entry(1, cases=[("1.3.1", "1.3", "X^^^South", "train")]))
    request = mark(forget_set, issuer="North", studies=["1.3", "1.4"])  # its list names no issuer
    assert request.studies == ("1.4",)
    assert not is_out(forget_set, case("1.5.1", "X^^^South"))
    assert forget_set.get(request.request_id).studies == ("1.4",)
    assert is_out(forget_set, case("1.4.1", "Y"))


def test_a_study_that_was_trained_on_under_another_number_was_trained_on(
    forget_set: ForgetSet, store: Store
) -> None:
    Ledger(store).append(ledger_entry(1, cases=[("1.1.1", "1.1", "X", "train")]))
    request = mark(forget_set, "Y", studies=["1.1"])
    forget_set.approve(request.request_id, actor="root")
    with pytest.raises(ConflictError, match="a recorded run used it"):
        forget_set.transition(request.request_id, "fulfilled", actor="root")
    seen = Ledger(store).versions_that_saw(person="Y", studies=request.studies)
    assert [s.seq for s in seen] == [1]


def test_a_run_that_began_before_a_study_came_may_be_using_it(
    forget_set: ForgetSet, store: Store
) -> None:
    request = mark(forget_set, studies=["1.1"])
    forget_set.approve(request.request_id, actor="root")
    run = Runs(store).start("train", "segmentation", {})
    assert forget_set.keep_studies(request.request_id, ["1.2"])  # which it may know as Y's
    with pytest.raises(ConflictError, match=f"run {run} began before"):
        forget_set.transition(request.request_id, "fulfilled", actor="root")
    Runs(store).finish(run, "done")
    Ledger(store).append(ledger_entry(1, cases=[("1.2.1", "1.2", "Y", "train")]))
    with pytest.raises(ConflictError, match="a recorded run used it"):
        forget_set.transition(request.request_id, "fulfilled", actor="root")


def test_marked_studies_are_live_targets(forget_set: ForgetSet) -> None:
    request = mark(forget_set, studies=["1.1", "1.2"])
    named = [Target("patient", "X"), Target("study", "1.1"), Target("study", "1.2")]
    assert forget_set.live_targets() == named
    assert list(request.targets) == named
    assert forget_set.live_patients() == [(request.request_id, named[0])]
    forget_set.withdraw(request.request_id, actor="anna")
    assert forget_set.live_targets() == forget_set.live_patients() == []


def test_the_hook_of_a_mark_sees_the_studies(store: Store) -> None:
    seen: list[ForgetRequest] = []
    mark(ForgetSet(store, on_change=lambda _c, request, _e: seen.append(request)), studies=["1.1"])
    assert [r.studies for r in seen] == [("1.1",)]


@pytest.mark.parametrize("number", [1, 500])
def test_one_question_more_for_any_number_of_cases(
    forget_set: ForgetSet, store: Store, number: int
) -> None:
    for patient in range(number):
        mark(forget_set, f"P{patient}", studies=[f"1.{patient}"])
    asked: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "LOCK")):
            asked.append(statement)

    event.listen(store._engine, "before_cursor_execute", note)
    try:
        forget_set.exclude([case(f"1.{n}.1", f"Q{n}") for n in range(number)])
    finally:
        event.remove(store._engine, "before_cursor_execute", note)
    assert len(asked) == 7, "six for what covers them, one for what patients' requests keep"
    assert not any(a.startswith(("INSERT", "LOCK")) for a in asked)


@pytest.mark.parametrize(
    "change", ["UPDATE forget_study SET study = '9'", "DELETE FROM forget_study"]
)
def test_the_database_itself_keeps_the_studies(
    forget_set: ForgetSet, store: Store, change: str
) -> None:
    mark(forget_set, studies=["1.1"])
    with pytest.raises(DatabaseIntegrityError), store.write() as connection:
        connection.execute(text(change))
    assert is_out(forget_set, case("1.1.1", "Y"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Place of a store that was never opened."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return str(tmp_path / "segunlearn.db")


def test_an_older_store_gets_the_studies_that_runs_recorded(
    new_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for module in (migrations, store_module):
            patch.setattr(module, "MIGRATIONS", migrations.MIGRATIONS[:5])
        store = open_store(new_place)
    kinds = [("patient", "X", "North"), ("patient", "Y", ""), ("study", "Z", "")]
    recorded = [
        ("1.1", "X", "North"), ("1.2", "X", ""), ("1.3", "X", "South"), ("1.4", "Y", "South"),
        ("1.5", "Z", ""),
    ]  # fmt: skip
    with store.write() as connection:
        for seq, (kind, target, issuer) in enumerate(kinds, 1):
            connection.execute(
                insert(FORGET_REQUEST).values(
                    seq=seq, id=f"{seq:032x}", target_kind=kind, target_id=target, issuer=issuer,
                    model="", study="", person_id="", person_issuer="", reason="quality", note="",
                    state="requested", is_open=1, is_live=1, needed="hidden", reached="none",
                    source="person", marked_by="anna", marked_role="", created=utc_now(),
                    updated=utc_now(),
                )
            )  # fmt: skip
        for number, (study, person, issuer) in enumerate([*recorded, recorded[0]], 1):
            connection.execute(
                insert(LEDGER_CASE).values(
                    id=number, digest=str(number), series=f"{study}.1", study=study,
                    person_id=person, person_issuer=issuer, role="train", image_digest="",
                    label_digest="",
                )
            )  # fmt: skip
    store.close()
    store = open_store(new_place)
    forget_set = ForgetSet(store)
    kept = {r.target.id: r.studies for r in forget_set.list()}
    assert kept == {"X": ("1.1", "1.2"), "Y": ("1.4",), "Z": ()}
    assert is_out(forget_set, case("1.1.9", "W"))
    store.close()
