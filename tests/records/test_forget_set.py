"""Forget requests: marking, states, coverage, and what is refused."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError as DatabaseIntegrityError

from records_entries import ledger_entry
from segunlearn.cases import Case
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    IllegalTransitionError,
    InvalidIdentifierError,
    InvalidInputError,
    NotFoundError,
    SegUnlearnError,
)
from segunlearn.records.coverage import Subject
from segunlearn.records.forget_set import ForgetRequest, ForgetSet, HistoryEntry
from segunlearn.records.forget_states import (
    CLOSED,
    LEVELS,
    LIVE,
    NEEDED_LEVEL,
    REASONS,
    STATES,
    TRANSITIONS,
    at_least,
)
from segunlearn.records.ledger import Ledger
from segunlearn.records.runs import Runs
from segunlearn.records.store import Store, open_store, utc_now
from segunlearn.records.tables import RUN
from segunlearn.records.targets import make_target, person_name, same_issuer, split_person

STUDY, SERIES = "1.2.3", "1.2.3.4"
WHO = {"actor": "anna", "role": "annotator"}


@pytest.fixture
def forget_set(store: Store) -> ForgetSet:
    return ForgetSet(store)


def case(series: str = SERIES, study: str = STUDY, person: str = "P1") -> Case:
    return Case(series, study, person, Path("image.nii.gz"))


def mark(forget_set: ForgetSet, kind: str, target: str, **more: object) -> ForgetRequest:
    request, created = forget_set.mark(kind, target, "consent_withdrawn", **{**WHO, **more})  # type: ignore[arg-type]
    assert created
    return request


def bring_to(forget_set: ForgetSet, state: str, study: str) -> ForgetRequest:
    """Make a request in any state, by the shortest way."""
    paths = {
        "requested": (),
        "approved": ("approved",),
        "withdrawn": ("withdrawn",),
        "working": ("approved", "working"),
        "refused": ("approved", "working", "refused"),
        "fulfilled": ("approved", "working", "fulfilled"),
        "restored": ("approved", "working", "fulfilled", "restored"),
        "purged": ("approved", "working", "fulfilled", "purged"),
    }
    if state in ("proposed", "dismissed"):
        request, _ = forget_set.propose("study", study, "quality", "", "rejection_note")
        if state == "dismissed":
            request = forget_set.transition(request.request_id, "dismissed", actor="root")
        return request
    request = mark(forget_set, "study", study)
    for step in paths[state]:
        reached = "unlearned" if step == "fulfilled" else None
        request = forget_set.transition(request.request_id, step, actor="root", reached=reached)
    assert request.state == state
    return request


def test_a_mark_is_there_with_all_it_says(forget_set: ForgetSet, store_place: str) -> None:
    request, created = forget_set.mark(
        "study", STUDY, "wrong_label", "mirrored", **WHO, person="P1"
    )
    again = open_store(store_place)
    found = ForgetSet(again).get(request.request_id)
    again.close()
    assert created
    assert found == request
    assert (found.state, found.needed, found.reached) == ("requested", "hidden", "none")
    assert (found.reason, found.note, found.person) == ("wrong_label", "mirrored", "P1")
    assert (found.marked_by, found.marked_role, found.source) == ("anna", "annotator", "person")
    (entry,) = forget_set.history(request.request_id)
    assert (entry.from_state, entry.to_state, entry.actor) == ("", "requested", "anna")


def test_a_mark_that_is_half_made_can_be_waited_for(store: Store, forget_set: ForgetSet) -> None:
    """Until its transaction ends its hooks have run, and nobody reads it."""
    half_made, go_on = threading.Event(), threading.Event()

    def pause(*_: object) -> None:
        half_made.set()
        assert go_on.wait(30)

    slow = ForgetSet(store, on_change=pause)
    marking = threading.Thread(target=mark, args=(slow, "study", STUDY))
    marking.start()
    assert half_made.wait(30)
    assert forget_set.exclude([case()])[0] == [case()]
    threading.Timer(0.3, go_on.set).start()
    forget_set.wait_for_marks()
    assert forget_set.exclude([case()])[0] == []
    marking.join()
    forget_set.wait_for_marks()


def test_marking_twice_is_the_same_request(forget_set: ForgetSet) -> None:
    first = mark(forget_set, "study", STUDY)
    second, created = forget_set.mark("study", f"{STUDY}\0", "quality", "blurred", "bob")
    assert not created
    assert second == first, "nothing is overwritten"
    assert forget_set.count() == 1
    steps = [
        (h.actor, h.from_state, h.to_state, h.why) for h in forget_set.history(first.request_id)
    ]
    assert steps[1:] == [("bob", "requested", "requested", "marked, too: quality. blurred")]


@pytest.mark.parametrize("state", ["proposed", "requested", "approved", "working", "fulfilled"])
def test_the_same_mark_again_adds_nothing(forget_set: ForgetSet, state: str) -> None:
    request = bring_to(forget_set, state, STUDY)
    said = [("anna", "quality", ""), ("anna", "other", "see letter"), ("bob", "quality", "")]
    for actor, reason, note in said:
        forget_set.mark("study", STUDY, reason, note, actor)
    found = forget_set.history(request.request_id)
    assert {"anna", "bob"} <= {h.actor for h in found}
    for actor, reason, note in said:
        assert not forget_set.mark("study", STUDY, reason, note, actor)[1]
    assert forget_set.history(request.request_id) == found


def test_a_mark_again_after_a_raised_need_adds_nothing(forget_set: ForgetSet) -> None:
    request, _ = forget_set.mark("study", STUDY, "quality", actor="anna")
    for _ in range(2):
        forget_set.mark("study", STUDY, "consent_withdrawn", actor="bob")
    assert [h.actor for h in forget_set.history(request.request_id)] == ["anna", "bob"]


@pytest.mark.parametrize("state", ["proposed", "requested", "approved", "working", "refused"])
@pytest.mark.parametrize(
    ("reason", "needed", "then"),
    [
        ("quality", "unlearned", "unlearned"),
        ("consent_withdrawn", None, "unlearned"),
        ("other", None, "hidden"),
        ("wrong_label", None, "hidden"),
    ],
)
def test_a_mark_that_needs_more_raises_the_level(
    forget_set: ForgetSet, state: str, reason: str, needed: str | None, then: str
) -> None:
    request = bring_to(forget_set, state, STUDY)
    forget_set.set_needed(request.request_id, "hidden", actor="root")
    again, created = forget_set.mark(
        "study", STUDY, reason, "as a letter says", needed=needed, **WHO
    )
    assert (created, again.request_id, again.needed) == (False, request.request_id, then)
    assert again.state == ("requested" if state == "proposed" else state)
    found = [(s.actor, s.why) for s in forget_set.history(request.request_id) if s.needed == then]
    assert (("anna", "need changed: as a letter says") in found) == (then == "unlearned")


def test_nothing_is_lowered_by_a_second_mark(forget_set: ForgetSet) -> None:
    first = mark(forget_set, "study", STUDY)
    second, _ = forget_set.mark("study", STUDY, "quality", needed="hidden", **WHO)
    assert second == first


@pytest.mark.parametrize(("state", "advice"), [("fulfilled", "restore it"), ("purged", "--again")])
def test_what_was_fulfilled_at_less_is_told(forget_set: ForgetSet, state: str, advice: str) -> None:
    request = bring_to(forget_set, state, STUDY)
    assert forget_set.mark("study", STUDY, "consent_withdrawn", **WHO) == (request, False)
    with pytest.raises(ConflictError, match=f"at 'unlearned', and 'retrained'.*{advice}"):
        forget_set.mark("study", STUDY, "quality", needed="retrained", **WHO)
    assert forget_set.get(request.request_id) == request


def test_a_closed_request_makes_room_for_a_new_one(forget_set: ForgetSet) -> None:
    first = mark(forget_set, "study", STUDY)
    forget_set.withdraw(first.request_id, actor="anna", why="a mistake")
    assert forget_set.exclude([case()])[1] == []
    second = mark(forget_set, "study", STUDY)
    assert second.request_id != first.request_id
    assert [r.request_id for r in forget_set.list(target_id=STUDY)] == [
        second.request_id,
        first.request_id,
    ]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("wanted", STATES)
def test_every_pair_of_states(tmp_path: Path, state: str, wanted: str) -> None:
    store = open_store(tmp_path / "store.db")
    forget_set = ForgetSet(store)
    request = bring_to(forget_set, state, STUDY)
    before = forget_set.history(request.request_id)
    if wanted in TRANSITIONS[state]:
        after = forget_set.transition(
            request.request_id,
            wanted,
            actor="root",
            reached="retrained" if wanted != "restored" else None,
        )
        assert after.state == wanted
        assert forget_set.history(request.request_id)[-1].from_state == state
    else:
        with pytest.raises(IllegalTransitionError, match=f"is {state} and cannot become {wanted}"):
            forget_set.transition(request.request_id, wanted, actor="root")
        assert forget_set.get(request.request_id) == request
        assert forget_set.history(request.request_id) == before
    excluded = bool(forget_set.exclude([case()])[1])
    assert excluded == (forget_set.get(request.request_id).state in LIVE)
    store.close()


def test_the_table_is_that_of_the_design() -> None:
    design = """
    requested approved | approved working | working fulfilled | working refused | refused working
    fulfilled restored | fulfilled purged | requested withdrawn | approved withdrawn
    approved fulfilled | proposed requested | proposed dismissed | refused withdrawn
    """
    pairs = {tuple(pair.split()) for pair in design.replace("\n", " | ").split("|") if pair.strip()}
    assert pairs == {
        (a, b) for a, b in itertools.product(STATES, STATES) if b in TRANSITIONS[a]
    } | {p for p in pairs if len(p) != 2}
    assert set(TRANSITIONS) == set(STATES)
    quality = {"wrong_label", "quality"}  # the others are a matter of the patient's rights
    assert {r: "hidden" if r in quality else "unlearned" for r in REASONS} == NEEDED_LEVEL
    assert set(STATES) - LIVE == CLOSED | {"proposed"}
    assert all(not TRANSITIONS[s] for s in CLOSED | {"purged"})
    assert [at_least(a, b) for a in LEVELS for b in LEVELS] == [
        a >= b for a in range(4) for b in range(4)
    ]


def test_fulfilled_means_reached_is_at_least_needed(forget_set: ForgetSet) -> None:
    request = bring_to(forget_set, "working", STUDY)
    with pytest.raises(ConflictError, match="needs the level 'unlearned' and has reached 'none'"):
        forget_set.transition(request.request_id, "fulfilled", actor="root")
    hidden = forget_set.set_reached(request.request_id, "hidden", actor="root")
    assert (hidden.state, hidden.reached) == ("working", "hidden")
    with pytest.raises(ConflictError, match="has reached 'hidden'"):
        forget_set.transition(request.request_id, "fulfilled", actor="root")
    forget_set.set_needed(request.request_id, "hidden", actor="root", why="only a label")
    done = forget_set.transition(request.request_id, "fulfilled", actor="root")
    assert done.state == "fulfilled"
    with pytest.raises(ConflictError, match="need is settled"):
        forget_set.set_needed(request.request_id, "retrained", actor="root")
    with pytest.raises(ConflictError, match="cannot fall"):
        forget_set.set_reached(request.request_id, "none", actor="root")
    for change in (forget_set.set_reached, forget_set.set_needed):
        with pytest.raises(InvalidInputError, match="'erased' is no level"):
            change(request.request_id, "erased", actor="root")
    better = forget_set.set_reached(request.request_id, "retrained", actor="root")
    assert better.reached == "retrained"
    restored = forget_set.transition(request.request_id, "restored", actor="root")
    assert restored.reached == "none", "the old model is back"


def test_never_trained_on(forget_set: ForgetSet, store: Store) -> None:
    ledger = Ledger(store)
    ledger.append(ledger_entry(1, cases=[("9.1", "9", "P9", "val")]))
    unused = mark(forget_set, "study", STUDY)
    forget_set.approve(unused.request_id, actor="root")
    done = forget_set.transition(unused.request_id, "fulfilled", actor="root")
    assert done.reached == "retrained"
    assert forget_set.history(done.request_id)[-1].why == "never trained on"
    for kind, target in (("study", "9"), ("series", "9.1"), ("patient", "P9")):
        used = mark(forget_set, kind, target)
        forget_set.approve(used.request_id, actor="root")
        with pytest.raises(ConflictError, match="a recorded run used it"):
            forget_set.transition(used.request_id, "fulfilled", actor="root")
        assert forget_set.get(used.request_id).state == "approved"


@pytest.mark.parametrize(("issuer", "used"), [("A", True), ("B", True), ("", True), ("C", False)])
def test_one_image_of_the_patient_is_enough_to_have_been_trained_on(
    forget_set: ForgetSet, store: Store, issuer: str, used: bool
) -> None:
    """Whatever else bears the same number; without an issuer nobody can say that it is another."""
    cases = [(f"8.{n}", "8", f"P8^^^{name}", "train") for n, name in enumerate("AB")]
    Ledger(store).append(ledger_entry(1, cases=cases))
    request = mark(forget_set, "patient", "P8", issuer=issuer)
    forget_set.approve(request.request_id, actor="root")
    with pytest.raises(ConflictError) if used else nullcontext():
        forget_set.transition(request.request_id, "fulfilled", actor="root")
    assert forget_set.get(request.request_id).state == ("approved" if used else "fulfilled")


@pytest.mark.parametrize(("model", "used"), [("segmentation", True), ("", True), ("other", False)])
def test_a_structure_was_trained_on_by_every_run_of_its_model(
    forget_set: ForgetSet, store: Store, model: str, used: bool
) -> None:
    Ledger(store).append(ledger_entry(1))
    request = mark(forget_set, "structure", "liver", model=model)
    forget_set.approve(request.request_id, actor="root")
    with pytest.raises(ConflictError) if used else nullcontext():
        forget_set.transition(request.request_id, "fulfilled", actor="root")
    assert forget_set.get(request.request_id).state == ("approved" if used else "fulfilled")


def test_never_trained_on_waits_for_a_run_that_began_before(
    forget_set: ForgetSet, store: Store
) -> None:
    runs = Runs(store)
    run_id = runs.start("train", "segmentation", {})
    request = mark(forget_set, "study", STUDY)
    forget_set.approve(request.request_id, actor="root")
    with pytest.raises(ConflictError, match=f"run {run_id} began before the mark"):
        forget_set.transition(request.request_id, "fulfilled", actor="root")
    runs.finish(run_id, "done")
    runs.start("train", "segmentation", {})
    done = forget_set.transition(request.request_id, "fulfilled", actor="root")
    assert done.state == "fulfilled"


@pytest.mark.parametrize("agree", ["mark", "approve"])
def test_a_proposal_holds_no_run_off_before_a_person_agrees(
    forget_set: ForgetSet, store: Store, agree: str
) -> None:
    """Between the two a run takes the study: it began before the mark."""
    runs = Runs(store)
    proposal, _ = forget_set.propose("study", STUDY, "quality", "", "rejection_note")
    early = runs.start("train", "segmentation", {})
    assert forget_set.exclude([case()])[0] == [case()]
    with pytest.raises(ConflictError, match=f"run {early} began before the mark"):
        forget_set.check_no_older_run(proposal.request_id)
    if agree == "mark":
        mark_again, created = forget_set.mark("study", STUDY, "quality", **WHO)
        assert not created
        assert mark_again.request_id == proposal.request_id
    else:
        forget_set.transition(proposal.request_id, "requested", actor="root")
    forget_set.approve(proposal.request_id, actor="root")
    with pytest.raises(ConflictError, match=f"run {early} began before the mark"):
        forget_set.check_no_older_run(proposal.request_id)
    with pytest.raises(ConflictError, match=f"run {early} began before the mark"):
        forget_set.transition(proposal.request_id, "fulfilled", actor="root")
    runs.finish(early, "done")
    runs.start("train", "segmentation", {})
    forget_set.check_no_older_run(proposal.request_id)
    done = forget_set.transition(proposal.request_id, "fulfilled", actor="root")
    assert done.state == "fulfilled"


@pytest.mark.parametrize("proposed", [False, True])
def test_a_run_that_began_while_a_mark_waited_for_the_store_is_older(
    forget_set: ForgetSet, store: Store, proposed: bool
) -> None:
    if proposed:
        forget_set.propose("study", STUDY, "quality", "", "rejection_note")
    marking = threading.Thread(target=lambda: forget_set.mark("study", STUDY, "quality", **WHO))
    with store.write() as connection:
        connection.execute(text("UPDATE run SET message = message"))  # on PostgreSQL, too
        marking.start()
        time.sleep(0.3)
        connection.execute(insert(RUN).values(running("late", utc_now())))
    marking.join()
    (request,) = forget_set.list()
    with pytest.raises(ConflictError, match="run late began before the mark"):
        forget_set.check_no_older_run(request.request_id)


def test_no_run_begins_in_the_midst_of_a_mark(store: Store, forget_set: ForgetSet) -> None:
    """It would neither see the mark nor be older."""
    half_made, go_on = threading.Event(), threading.Event()

    def pause(*_: object) -> None:
        half_made.set()
        assert go_on.wait(30)

    slow, runs, started = ForgetSet(store, on_change=pause), Runs(store), []
    marking = threading.Thread(target=mark, args=(slow, "study", STUDY))
    starting = threading.Thread(target=lambda: started.append(runs.start("train", "tiny", {})))
    marking.start()
    assert half_made.wait(30)
    starting.start()
    time.sleep(0.3)
    begun = list(started)
    go_on.set()
    marking.join()
    starting.join()
    assert not begun
    assert forget_set.exclude([case()])[0] == []


def running(run_id: str, started: str) -> dict[str, object]:
    """Row of a run that goes on."""
    words = dict.fromkeys(("requested_by", "message", "boot", "pid_space"), "")
    numbers = dict.fromkeys(("cancel_requested", "last_event", "pid", "process_start"), 0)
    return {
        **words, **numbers, "id": run_id, "kind": "train", "model": "tiny", "parameters": "{}",
        "state": "running", "started": started, "updated": started, "host": "another",
    }  # fmt: skip


def test_exclude_by_series_study_and_patient(forget_set: ForgetSet) -> None:
    cases = [
        case("1.1", "1", "A"),
        case("1.2", "1", "A"),
        case("2.1", "2", "A"),
        case("3.1", "3", "B"),
        case("4.1", "4", "C"),
    ]
    assert forget_set.exclude(cases) == (cases, [])
    series = mark(forget_set, "series", "1.2")
    assert forget_set.exclude(cases)[1] == [(cases[1], series.request_id)]
    study = mark(forget_set, "study", "3")
    patient = mark(forget_set, "patient", " A ")
    kept, excluded = forget_set.exclude(cases)
    assert kept == [cases[4]]
    assert [(c.series, r) for c, r in excluded] == [
        ("1.1", patient.request_id),
        ("1.2", series.request_id),
        ("2.1", patient.request_id),
        ("3.1", study.request_id),
    ]
    later = case("7.1", "7", "A")
    assert forget_set.exclude([later])[0] == [], "a patient's mark covers what arrives later"
    assert forget_set.exclude([]) == ([], [])


def test_issuers_that_may_be_one_are_one(forget_set: ForgetSet) -> None:
    mark(forget_set, "patient", "7", issuer="North")
    persons = ["7", "7^^^North", "7^^^South", "8^^^North", " 7 "]
    kept, _ = forget_set.exclude([case(f"1.{i}", "1", p) for i, p in enumerate(persons)])
    assert [c.person for c in kept] == ["7^^^South", "8^^^North"]
    mark(forget_set, "patient", "8")
    assert forget_set.exclude([case(person="8^^^North")])[0] == []
    assert not forget_set.mark("patient", "7^^^North", "quality", actor="x")[1]


def test_a_patients_mark_holds_when_the_archive_changes_the_patients_number(
    forget_set: ForgetSet, store: Store
) -> None:
    recorded = [("1.1", "1", "A", "train"), ("2.1", "2", "B", "train")]
    Ledger(store).append(ledger_entry(1, cases=recorded))
    request = mark(forget_set, "patient", "A")
    moved = [
        case("1.1", "1", "9"),  # merged into another patient
        case("1.2", "1", "9"),  # a new series of a study that was
        case("1.1 ", "7", "9"),  # and its study, too
    ]
    other = [case("2.1", "2", "9"), case("3.1", "3", "9")]
    kept, excluded = forget_set.exclude([*moved, *other])
    assert kept == other
    assert excluded == [(c, request.request_id) for c in moved]
    assert forget_set.exclude(moved, besides=[request.request_id])[0] == moved
    status = forget_set.status(
        studies=[Subject(study="1", person="9"), Subject(study="3", person="9")],
        series=[Subject("1.1", "7", "9"), Subject("2.1", "2", "9")],
    )
    assert {uid for uid, s in status.items() if s.marked} == {"1", "1.1"}
    assert [c.request_id for c in status["1.1"].covers] == [request.request_id]


def test_either_of_two_recorded_persons_is_enough(forget_set: ForgetSet, store: Store) -> None:
    ledger = Ledger(store)
    for number, person in enumerate(("A^^^North", "B", "A"), 1):
        ledger.append(ledger_entry(number, cases=[("1.1", "1", person, "train")]))
    images = [case("1.1", "1", person) for person in ("A", "B", "C")]
    for person in ("A", "B"):
        request = mark(forget_set, "patient", person)
        assert forget_set.exclude(images)[1] == [(c, request.request_id) for c in images]
        covers = forget_set.status(series=[Subject("1.1", "1", "A")])["1.1"].covers
        assert [c.request_id for c in covers] == [request.request_id], "told once"
        forget_set.withdraw(request.request_id, actor="anna")
    assert forget_set.exclude(images)[0] == images


def test_a_series_whose_study_is_marked_says_so(forget_set: ForgetSet, store: Store) -> None:
    patient = mark(forget_set, "patient", "P1")
    study = mark(forget_set, "study", STUDY, person="P1")
    assert study.covered_by == (patient.request_id,)
    series = mark(forget_set, "series", SERIES, study=STUDY, person="P1")
    assert series.covered_by == (study.request_id, patient.request_id)
    forget_set.withdraw(study.request_id, actor="anna")
    forget_set.withdraw(patient.request_id, actor="anna")
    assert forget_set.get(series.request_id).covered_by == ()
    assert forget_set.exclude([case()])[0] == [], "its own mark was not lost with the wider one"
    Ledger(store).append(ledger_entry(1, cases=[("5.1", "5", "P5", "train")]))
    wider = mark(forget_set, "patient", "P5")
    told = mark(forget_set, "series", "5.1")
    assert (told.study, told.person) == ("5", "P5"), "known from the ledger"
    assert told.covered_by == (wider.request_id,)


def test_a_proposal_excludes_nothing_until_a_person_agrees(forget_set: ForgetSet) -> None:
    proposal, created = forget_set.propose(
        "study", STUDY, "quality", "Rejected for quality reasons", "rejection_note"
    )
    assert created
    assert (proposal.state, proposal.source) == ("proposed", "rejection_note")
    assert not proposal.is_live
    assert forget_set.exclude([case()])[1] == []
    assert not forget_set.propose("study", STUDY, "other", "again", "deletion")[1]
    with pytest.raises(IllegalTransitionError):
        forget_set.approve(proposal.request_id, actor="root")
    status = forget_set.status(studies=[STUDY])[STUDY]
    assert not status.marked
    assert [p.request_id for p in status.proposals] == [proposal.request_id]
    request, created = forget_set.mark("study", STUDY, "wrong_label", **WHO)
    assert not created
    assert (request.request_id, request.state) == (proposal.request_id, "requested")
    assert request.reason == "quality", "nothing is overwritten"
    assert forget_set.history(request.request_id)[-1].actor == "anna"
    assert forget_set.exclude([case()])[0] == []
    assert not forget_set.propose("study", STUDY, "quality", "", "deletion")[1]
    assert forget_set.get(request.request_id).state == "requested"


def test_status_of_a_study_list(forget_set: ForgetSet, store: Store) -> None:
    patient = mark(forget_set, "patient", "P2")
    single = mark(forget_set, "series", "1.1", study="1")
    study = mark(forget_set, "study", "3")
    status = forget_set.status(
        studies=["1", Subject(study="2", person="P2"), "3", "4"],
        series=["1.1", Subject("2.1", "2", "P2"), Subject("3.1", "3")],
    )
    assert {uid for uid, s in status.items() if s.marked} == {"2", "3", "1.1", "2.1", "3.1"}
    assert status["1"].series_marked == 1
    assert status["1.1"].covers[0].request_id == single.request_id
    assert status["2"].covers[0].target_kind == "patient"
    assert status["2.1"].covers[0].request_id == patient.request_id
    assert status["3.1"].covers[0].request_id == study.request_id
    assert status["4"].covers == ()
    Ledger(store).append(ledger_entry(1, cases=[("2.1", "2", "P2", "train")]))
    assert forget_set.status(studies=["2"])["2"].marked, "the ledger knows whose study it is"
    assert forget_set.status(series=["2.1"])["2.1"].marked
    forget_set.withdraw(single.request_id, actor="anna")
    assert forget_set.status(studies=["1"])["1"].series_marked == 0
    assert forget_set.status() == {}


def test_structures_are_of_a_model_or_of_all(forget_set: ForgetSet) -> None:
    mark(forget_set, "structure", "pancreas", model="abdomen")
    everywhere = mark(forget_set, "structure", "left atrium")
    assert set(forget_set.structures("abdomen")) == {"pancreas", "left atrium"}
    assert forget_set.structures("heart") == {"left atrium": everywhere.request_id}
    assert forget_set.exclude([case()])[1] == []


def test_annotators_withdraw_only_their_own(forget_set: ForgetSet) -> None:
    request = mark(forget_set, "study", STUDY)
    with pytest.raises(ForbiddenError, match="marked by someone else"):
        forget_set.withdraw(request.request_id, actor="bob", own_only=True)
    assert forget_set.get(request.request_id).state == "requested"
    forget_set.withdraw(request.request_id, actor="anna", own_only=True)


def test_nobody_takes_back_alone_what_another_asked_more_of(forget_set: ForgetSet) -> None:
    request, _ = forget_set.mark("study", STUDY, "quality", actor="anna")
    forget_set.mark("study", STUDY, "consent_withdrawn", actor="bob")
    for one in ("anna", "bob"):
        with pytest.raises(ForbiddenError, match="someone else asked for more"):
            forget_set.withdraw(request.request_id, actor=one, own_only=True)
    assert forget_set.withdraw(request.request_id, actor="root").state == "withdrawn"


def test_nobody_takes_back_alone_what_another_marked_too(forget_set: ForgetSet) -> None:
    """The second mark left no trace, as it asked for no more."""
    request, _ = forget_set.mark("study", STUDY, "consent_withdrawn", actor="anna")
    forget_set.mark("study", STUDY, "quality", actor="bob")
    for one in ("anna", "bob"):
        with pytest.raises(ForbiddenError, match="marked by someone else"):
            forget_set.withdraw(request.request_id, actor=one, own_only=True)
    assert forget_set.withdraw(request.request_id, actor="root").state == "withdrawn"


@pytest.mark.parametrize("note", ["", "as a letter says"])
def test_who_agrees_to_a_proposal_gives_their_own_reason(forget_set: ForgetSet, note: str) -> None:
    request, _ = forget_set.propose("study", STUDY, "quality", "rejected", "rejection_note")
    assert (request.agreed_by, request.agreed_why, request.stated_reason) == ("", "", "quality")
    agreed, _ = forget_set.mark("study", STUDY, "consent_withdrawn", note, "anna")
    assert (agreed.reason, agreed.marked_by, agreed.needed) == ("quality", "system", "unlearned")
    assert (agreed.agreed_by, agreed.stated_reason) == ("anna", "consent_withdrawn")
    assert forget_set.history(agreed.request_id)[-1].why == agreed.agreed_why
    assert agreed.agreed_why.endswith(note)
    assert forget_set.get(agreed.request_id) == agreed
    (cover,) = forget_set.status(studies=[STUDY])[STUDY].covers
    assert cover.reason == "consent_withdrawn"
    forget_set.mark("study", STUDY, "quality", actor="bob")  # a mark of what is agreed changes none
    assert forget_set.get(agreed.request_id) == agreed


def test_who_agrees_without_a_reason_agrees_to_the_proposals(forget_set: ForgetSet) -> None:
    request, _ = forget_set.propose("study", STUDY, "quality", "rejected", "rejection_note")
    agreed = forget_set.transition(request.request_id, "requested", actor="root")
    assert (agreed.agreed_by, agreed.agreed_why, agreed.stated_reason) == ("root", "", "quality")


def test_who_agrees_to_a_proposal_can_take_that_back(forget_set: ForgetSet) -> None:
    request, _ = forget_set.propose("study", STUDY, "quality", "rejected", "rejection_note")
    forget_set.mark("study", STUDY, "consent_withdrawn", actor="anna", role="annotator")
    with pytest.raises(ForbiddenError, match="marked by someone else"):
        forget_set.withdraw(request.request_id, actor="bob", own_only=True)
    forget_set.withdraw(request.request_id, actor="anna", own_only=True)


def test_filters_and_paging(forget_set: ForgetSet) -> None:
    requests = [mark(forget_set, "study", f"1.{i}") for i in range(5)]
    other, _ = forget_set.mark("patient", "P", "quality", actor="bob")
    forget_set.approve(requests[0].request_id, actor="root")
    assert [r.target.id for r in forget_set.list(limit=2, offset=1)] == ["1.4", "1.3"]
    assert forget_set.list(states=["approved"])[0].request_id == requests[0].request_id
    assert forget_set.list(target_kind="patient")[0] == other
    assert forget_set.list(marked_by="bob", reason="quality")[0] == other
    assert forget_set.count(states=["requested", "approved"]) == 6
    assert forget_set.count(marked_by="anna") == 5
    assert forget_set.list(target_id="' OR 1=1 --") == []
    for wrong in (
        {"states": ["lost"]},
        {"target_kind": "image"},
        {"reason": "because"},
        {"limit": 1001},
        {"offset": -1},
    ):
        with pytest.raises(InvalidInputError):
            forget_set.list(**wrong)  # type: ignore[arg-type]


BAD_MARKS: list[dict[str, object]] = [
    {"target_id": "1." + "2" * 63},
    {"target_id": ""},
    {"target_id": "1.2' OR '1'='1"},
    {"target_id": "../../etc/passwd"},
    {"target_id": "1.2.3\n"},
    {"target_id": 7},
    {"target_id": "a/b", "opaque": True},
    {"target_id": "..", "opaque": True},
    {"target_id": "x" * 129, "opaque": True},
    {"target_id": "x\0y", "opaque": True},
    {"target_kind": "image"},
    {"target_kind": "patient", "target_id": ""},
    {"target_kind": "patient", "target_id": "x" * 65},
    {"target_kind": "patient", "target_id": "a\\b"},
    {"target_kind": "patient", "target_id": "a\x1bb"},
    {"target_kind": "patient", "target_id": "SYN-*"},
    {"target_kind": "patient", "target_id": "4711?^^^North"},
    {"target_kind": "patient", "target_id": "7^^^North", "issuer": "South"},
    {"target_kind": "structure", "target_id": "liver/left"},
    {"target_kind": "structure", "target_id": "x" * 65},
    {"issuer": "North"},
    {"model": "abdomen"},
    {"reason": "because"},
    {"reason": ["quality"]},
    {"reason": "other", "note": " "},
    {"note": "x" * 2001},
    {"note": "nul \0"},
    {"note": "half a pair \ud800"},
    {"note": 5},
    {"actor": ""},
    {"actor": "x" * 201},
    {"role": "\x07"},
    {"needed": "certified"},
    {"needed": "none"},
    {"study": "not a uid"},
    {"person": "x" * 65},
]


def test_what_an_archive_holds_can_be_marked(forget_set: ForgetSet) -> None:
    """UIDs with leading zeros are against the standard, and are listed and trained on."""
    mark(forget_set, "study", "1.2.840.04.7")
    assert forget_set.status(studies=["1.2.840.04.7"])["1.2.840.04.7"].marked


@pytest.mark.parametrize("wrong", BAD_MARKS, ids=str)
def test_bad_marks_change_nothing(forget_set: ForgetSet, wrong: dict[str, object]) -> None:
    good: dict[str, object] = {"target_kind": "study", "target_id": STUDY, "reason": "quality"}
    with pytest.raises(InvalidInputError) as caught:
        forget_set.mark(**{**good, **WHO, **wrong})  # type: ignore[arg-type]
    assert str(caught.value).endswith((".", "header.", "]"))
    assert forget_set.count() == 0


def test_a_patients_id_stands_in_no_message() -> None:
    with pytest.raises(InvalidIdentifierError) as caught:
        make_target("patient", "Mueller\\Hans")
    assert "Mueller" not in str(caught.value)


def test_what_a_pacs_takes_for_a_pattern_is_marked_by_its_studies(forget_set: ForgetSet) -> None:
    with pytest.raises(InvalidIdentifierError, match="by their StudyInstanceUID") as caught:
        make_target("patient", "Mueller*")
    assert "Mueller" not in str(caught.value)
    request = mark(forget_set, "study", STUDY, person="Mueller*")
    assert request.state == "requested"
    # a folder of files asks no PACS
    assert make_target("patient", "Mueller*", opaque=True).id == "Mueller*"
    assert make_target("patient", "4711", issuer="North*").issuer == "North*"


def test_bad_steps_change_nothing(forget_set: ForgetSet) -> None:
    request = mark(forget_set, "study", STUDY)
    request_id = request.request_id
    for step in (
        lambda: forget_set.transition(request_id, "gone", actor="root"),
        lambda: forget_set.transition(request_id, "approved", actor=""),
        lambda: forget_set.transition(request_id, "approved", actor="root", why="x" * 2001),
        lambda: forget_set.transition(request_id, "approved", actor="root", reached="best"),
        lambda: forget_set.set_needed(request_id, "none", actor="root"),
        lambda: forget_set.set_reached(request_id, "hidden", actor="root"),
        lambda: forget_set.set_reached(request_id, "perfect", actor="root"),
    ):
        with pytest.raises(SegUnlearnError):
            step()
    assert forget_set.get(request_id) == request
    for unknown in ("nothing", "' OR 1=1 --", "x" * 500):
        for read in (forget_set.get, forget_set.history):
            with pytest.raises(NotFoundError):
                read(unknown)
        with pytest.raises(NotFoundError):
            forget_set.approve(unknown, actor="root")


def test_folder_studies_are_marked_by_name(forget_set: ForgetSet) -> None:
    mark(forget_set, "series", "hippocampus_001", opaque=True)
    kept, excluded = forget_set.exclude(
        [case("hippocampus_001", "hippocampus_001", "h1"), case("hippocampus_002", "x", "h2")]
    )
    assert [c.series for c in kept] == ["hippocampus_002"]
    assert len(excluded) == 1
    with pytest.raises(InvalidIdentifierError):
        forget_set.mark("series", "hippocampus_003", "quality", actor="anna")


@pytest.mark.parametrize("kind", ["study", "series"])
def test_a_file_whose_person_is_longer_than_a_patient_id(forget_set: ForgetSet, kind: str) -> None:
    """Without a rule for people a file's person is its name."""
    stem = "sub-0123456789_ses-2019-11-23_acq-mprage_run-01_desc-preproc_T1w_brain"
    assert len(stem) > 64
    more = {"study": stem} if kind == "series" else {}
    request = mark(forget_set, kind, stem, person=stem, opaque=True, **more)
    assert request.person == stem
    assert list(forget_set.list()) == [forget_set.get(request.request_id)] == [request]
    assert forget_set.exclude([case(stem, stem, stem)])[0] == []
    subject = Subject(stem, stem, stem)
    assert forget_set.status(series=[subject])[stem].marked
    forget_set.withdraw(request.request_id, actor="anna")
    assert forget_set.exclude([case(stem, stem, stem)])[1] == []
    with pytest.raises(InvalidIdentifierError):  # what is marked itself is one
        mark(forget_set, "patient", stem, opaque=True)


def test_the_hook_is_part_of_the_change(store: Store) -> None:
    seen: list[tuple[str, str]] = []

    def note(connection: Connection, request: ForgetRequest, entry: HistoryEntry) -> None:
        assert connection.in_transaction()
        seen.append((request.state, entry.to_state))

    forget_set = ForgetSet(store, on_change=note)
    request = mark(forget_set, "study", STUDY)
    forget_set.mark("study", STUDY, "quality", actor="bob")
    forget_set.approve(request.request_id, actor="root")
    assert seen == [("requested", "requested")] * 2 + [("approved", "approved")]

    def refuse(*_: object) -> None:
        raise RuntimeError("the outbox is full")

    broken = ForgetSet(store, on_change=refuse)
    with pytest.raises(RuntimeError):
        mark(broken, "study", "9.9")
    with pytest.raises(RuntimeError):
        broken.transition(request.request_id, "working", actor="root")
    assert forget_set.count() == 1
    assert forget_set.get(request.request_id).state == "approved"


def test_the_database_itself_keeps_requests_and_history(
    forget_set: ForgetSet, store: Store
) -> None:
    mark(forget_set, "study", STUDY)
    for statement in (
        "DELETE FROM forget_request",
        "UPDATE forget_request SET target_id = '1'",
        "DELETE FROM forget_history",
        "UPDATE forget_history SET actor = 'x'",
    ):
        with pytest.raises(DatabaseIntegrityError), store.write() as connection:
            connection.execute(text(statement))
    assert forget_set.count() == 1


@given(st.text(max_size=80), st.text(max_size=20))
def test_persons_survive_being_written(patient: str, issuer: str) -> None:
    if "^^^" in patient or patient.endswith("^") or issuer.startswith("^"):
        return
    name = person_name(patient, issuer)
    assert split_person(name) == split_person(person_name(*split_person(name)))
    assert person_name(f"  {patient}\0", issuer) == name
    assert same_issuer(issuer, "")


@given(st.text(max_size=140), st.sampled_from(["patient", "study", "series", "structure"]))
def test_any_text_is_a_target_or_an_error(target_id: str, kind: str) -> None:
    for opaque in (False, True):
        try:
            target = make_target(kind, target_id, opaque=opaque)
        except InvalidInputError:
            continue
        assert 1 <= len(target.id) <= 128
        assert make_target(kind, target.id, issuer=target.issuer, opaque=opaque) == target
