"""The policy and the verdict: what each outcome does, and how few people are too few."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from judged_models import (
    CLEAN,
    ORIGINAL,
    REFERENCES,
    RELEARNING,
    figures,
    judged,
    outcomes,
    rows,
)
from segunlearn.audit.class_mode import ClassFigures
from segunlearn.audit.figures import ModelFigures, Variant
from segunlearn.audit.judge import judge
from segunlearn.audit.notes import void
from segunlearn.audit.policy import LEVELS, SOURCES, Finding, Level, Policy, verdict
from segunlearn.errors import InvalidInputError


def conclusion(model: ModelFigures, **options: object) -> tuple[str, str]:
    options = {"reference": "full", **options}
    found = verdict(judged(model), Policy(), **options)  # type: ignore[arg-type]
    return found.outcome, found.reached


def test_every_bar_has_a_source_and_its_direction() -> None:
    bars = {f.name for f in dataclasses.fields(Policy)} - {"required"}
    assert set(SOURCES) == bars
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy().gap_excess = 1  # type: ignore[misc]
    for wrong in (
        {"unseen_quality": 0.1},
        {"unseen_quality_short": 0.1},
        {"gap_excess": np.nan},
        {"calibrated_membership": 0.3},  # would swap its two ends
        {"calibrated_membership": 1.1},
        {"weakest_power": 0.2},
    ):
        with pytest.raises(InvalidInputError):
            Policy(**wrong)  # type: ignore[arg-type]


def test_a_clean_model_passes_and_only_the_ledger_calls_it_retrained() -> None:
    assert conclusion(CLEAN) == ("passed", "unlearned")
    assert conclusion(CLEAN, needed="hidden") == ("passed", "unlearned")
    assert conclusion(CLEAN, needed="retrained") == ("inconclusive", "unlearned")
    assert conclusion(CLEAN, needed="retrained", exact=True) == ("passed", "retrained")


def test_clean_models_are_rarely_refused() -> None:
    """At a 95 % interval one in twenty is expected to be; more would make the audit useless."""
    outcomes = [conclusion(figures(seed=s))[0] for s in range(3, 43)]
    assert outcomes.count("passed") >= 37


@pytest.mark.parametrize(
    ("model", "reached", "failing"),
    [
        (ORIGINAL, "none", {"gap_excess", "relearning", "calibrated_membership"}),
        (figures(-0.12), "none", {"gap_excess", "membership", "calibrated_membership"}),
        (figures(-0.05, -0.05), "none", {"unseen_quality"}),
        (figures(0.05, 0.05), "none", {"forget_level"}),
        (figures(relearned=0.07), "hidden", {"relearning"}),
        (figures(distilled=0.07), "hidden", {"distillation"}),
    ],
)
def test_each_fault_is_refused_for_itself(
    model: ModelFigures, reached: str, failing: set[str]
) -> None:
    assert conclusion(model) == ("refused", reached)
    found = outcomes(judged(model))
    assert failing <= {name for name, outcome in found.items() if outcome == "fail"}


def test_what_is_enough_for_hidden_is_not_for_unlearned() -> None:
    suppressed = figures(relearned=0.07)
    assert conclusion(suppressed, needed="hidden") == ("passed", "hidden")
    assert conclusion(suppressed, needed="unlearned") == ("refused", "hidden")
    # an exact retrain that fails a measure was not one
    assert conclusion(suppressed, needed="retrained", exact=True) == ("refused", "hidden")


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        ("relearning", "Relearning attack"),
        ("distilled", "Distillation attack"),
        ("variants", "Rounded and stripped weights"),
    ],
)
def test_what_was_not_measured_is_not_passed(attack: str, name: str) -> None:
    model = dataclasses.replace(CLEAN, **{attack: None})  # type: ignore[arg-type]
    found = verdict(judged(model), Policy(), reference="full")
    assert (found.outcome, found.reached) == ("inconclusive", "hidden")
    assert found.reasons == (f"{name}: was not measured.",)


@pytest.mark.parametrize(
    ("changed", "needed", "expected"),
    [
        ({"gap_excess": "unclear"}, "hidden", ("inconclusive", "none")),
        ({"worst_person": "reported"}, "hidden", ("inconclusive", "none")),
        ({"unseen_quality": None}, "hidden", ("inconclusive", "none")),
        # not among what the level cannot be reached without, and measured all the same
        ({"forget_level": "unclear"}, "hidden", ("inconclusive", "none")),
        ({"membership": "unclear"}, "unlearned", ("inconclusive", "none")),
        ({"distillation": "unclear"}, "hidden", ("passed", "hidden")),
        ({"distillation": "unclear"}, "unlearned", ("inconclusive", "hidden")),
        # what fails for a higher level than is asked for refuses nothing
        ({"gap_excess": "unclear", "relearning": "fail"}, "hidden", ("inconclusive", "none")),
        ({"gap_excess": "unclear", "relearning": "fail"}, "unlearned", ("refused", "none")),
    ],
)
def test_each_measure_counts_for_its_own_level(
    changed: dict[str, str | None], needed: Level, expected: tuple[str, str]
) -> None:
    """What is unclear or was not measured holds its level back; only what failed refuses."""
    findings = [
        dataclasses.replace(f, outcome=changed.get(f.name, f.outcome), words=f.name)  # type: ignore[arg-type]
        for f in judged(CLEAN)
        if changed.get(f.name, f.outcome) is not None
    ]
    found = verdict(findings, Policy(), needed=needed, reference="full")
    assert (found.outcome, found.reached) == expected
    # each reason is told once
    assert len(found.reasons) == (0 if found.outcome == "passed" else 1)


def test_an_audit_that_cannot_see_the_originals_memory_concludes_nothing() -> None:
    assert conclusion(CLEAN, void=("blind",)) == ("inconclusive", "none")
    assert conclusion(CLEAN, void=("blind",), exact=True) == ("passed", "retrained")


@pytest.mark.parametrize(
    ("original", "seen"),
    [
        (ORIGINAL, True),
        (figures(relearned=0.1), True),
        (CLEAN, False),
        (figures(-0.05, -0.05, relearned=-0.05), False),  # worse on everybody
        (figures(-0.12), False),  # worse on the forgotten
    ],
)
def test_only_memory_of_the_original_shows_that_an_audit_can_see_it(
    original: ModelFigures, seen: bool
) -> None:
    """Damage is refused as well, and says nothing of what the measures would find."""
    found = judge(original, original, REFERENCES, "full", Policy(), RELEARNING)
    reasons = void(found, REFERENCES, lambda *_: [])
    assert [("memory" in reason) for reason in reasons] == ([] if seen else [True])


def test_an_audit_that_refuses_a_model_that_never_saw_anybody_is_void() -> None:
    seen = judged(ORIGINAL)
    three = [*REFERENCES, CLEAN]

    def only_the_first(left_out: ModelFigures, others: Sequence[ModelFigures]) -> list[Finding]:
        assert [left_out in others, len(others)] == [False, 2]
        return seen if left_out is three[0] else judged(CLEAN)

    (reason,) = void(seen, three, only_the_first)
    assert "A model that never saw the studies fails 'Level on the forgotten people', " in reason
    assert "'Quality on unseen people'" not in reason, "which passes"
    assert void(seen, three, lambda *_: judged(CLEAN)) == ()
    assert void(seen, REFERENCES, lambda *_: seen) == (), "too few to leave one out"


def test_one_person_is_too_few_and_the_report_says_so() -> None:
    original = figures(0.12, people=1)
    references = [figures(seed=s, people=1) for s in (1, 2)]
    findings = judge(figures(seed=3, people=1), original, references, "full", Policy(), RELEARNING)
    found = verdict(findings, Policy(), reference="full")
    assert (found.outcome, found.reached) == ("inconclusive", "hidden")
    assert any("not enough people to show" in reason for reason in found.reasons)
    assert any("audit the request together with others, 4 people" in r for r in found.reasons)
    assert any("no other one that an attack could bring back" in r for r in found.reasons)
    assert any("took 0.00 times the steps it took" in r for r in found.reasons)


def test_figures_survive_json() -> None:
    model = dataclasses.replace(
        ORIGINAL,
        variants={"int8": Variant(0.9, 0.8)},
        calibration=rows("c", 0, 20, 0),
        withdrawn=ClassFigures("liver", 0.1, 0.8, (0.9, 0.1)),
    )
    assert ModelFigures.from_json(json.loads(json.dumps(model.to_json()))) == model
    # figures of an audit made before these were measured
    old = {k: v for k, v in model.to_json().items() if k not in ("calibration", "withdrawn")}
    assert ModelFigures.from_json(old).calibration == ()


def test_levels_and_findings_are_needed() -> None:
    assert LEVELS == ("none", "hidden", "unlearned", "retrained")
    with pytest.raises(InvalidInputError):
        verdict([], Policy(), reference="full")
    with pytest.raises(InvalidInputError, match="needed level"):
        verdict(judged(CLEAN), Policy(), needed="erased", reference="full")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="reference"):
        judge(CLEAN, ORIGINAL, [], "full", Policy(), RELEARNING)


def test_a_restored_model_that_is_another_does_not_make_the_forgetting_fail() -> None:
    broken = Finding("reversibility", "none", "fail", 0.1, 1e-5, 0.0, None, None, "another")
    found = verdict([*judged(CLEAN), broken], Policy(), reference="full")
    assert (found.outcome, found.reached) == ("passed", "unlearned")
