"""From figures to the verdict: what each outcome does, and how few people are too few."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from segunlearn.audit.distillation import Distilled
from segunlearn.audit.figures import ModelFigures, Variant
from segunlearn.audit.judge import judge, noise_of
from segunlearn.audit.policy import LEVELS, SOURCES, Finding, Policy, verdict
from segunlearn.audit.relearning import Attack, RelearningSettings
from segunlearn.audit.scores import StudyScore
from segunlearn.errors import InvalidInputError

RNG = np.random.default_rng(0)
PEOPLE = 8
HARD = RNG.normal(0.8, 0.05, 100)


def rows(prefix: str, shift: float, count: int, seed: int) -> tuple[StudyScore, ...]:
    noise = np.random.default_rng((seed, count)).normal(0, 0.003, count)
    dices = HARD[:count] + shift + noise
    return tuple(
        StudyScore(f"{prefix}{i}", f"{prefix}{i}", float(d), float(1 - d))
        for i, d in enumerate(dices)
    )


def figures(
    forget: float = 0.0,
    test: float = 0.0,
    *,
    relearned: float = 0.0,
    distilled: float = 0.0,
    seed: int = 0,
    people: int = PEOPLE,
) -> ModelFigures:
    """A model that is so much better on S and on T than a never-seen one."""
    others = None if people == 1 else 0.8 + relearned
    attack = Attack(
        2 if people > 1 else 1, 1e-3, ((0, 0.8, others),), others, 0, others, 0.8 + test
    )
    return ModelFigures(
        forget=rows("s", forget, people, seed),
        test=rows("t", test, 70, seed),
        relearning=(attack,),
        distilled=Distilled(0.8 + distilled, 0.8),
    )


ORIGINAL = figures(0.12, relearned=0.1, distilled=0.1)
REFERENCES = [figures(seed=1), figures(seed=2)]
CLEAN = figures(seed=4)
RELEARNING = RelearningSettings()


def judged(model: ModelFigures, kind: str = "full", policy: Policy | None = None) -> list[Finding]:
    return judge(
        model,
        ORIGINAL,
        REFERENCES,
        kind,  # type: ignore[arg-type]
        policy or Policy(),
        RELEARNING,
    )


def outcomes(findings: list[Finding]) -> dict[str, str]:
    return {f.name: f.outcome for f in findings}


def conclusion(model: ModelFigures, **options: object) -> tuple[str, str]:
    options = {"reference": "full", **options}
    found = verdict(judged(model), Policy(), **options)  # type: ignore[arg-type]
    return found.outcome, found.reached


def test_every_bar_has_a_source_and_its_direction() -> None:
    bars = {f.name for f in dataclasses.fields(Policy)} - {"required"}
    assert set(SOURCES) == bars
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy().gap_excess = 1  # type: ignore[misc]
    for wrong in ({"unseen_quality": 0.1}, {"gap_excess": np.nan}, {"weakest_power": 0.2}):
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


def test_what_was_not_measured_is_not_passed() -> None:
    model = dataclasses.replace(CLEAN, relearning=None)
    found = verdict(judged(model), Policy(), reference="full")
    assert (found.outcome, found.reached) == ("inconclusive", "hidden")
    assert found.reasons == ("relearning was not measured.",)


def test_an_audit_that_cannot_see_the_originals_memory_concludes_nothing() -> None:
    assert conclusion(CLEAN, void=("blind",)) == ("inconclusive", "none")
    assert conclusion(CLEAN, void=("blind",), exact=True) == ("passed", "retrained")


def test_one_person_is_too_few_and_the_report_says_so() -> None:
    original = figures(0.12, people=1)
    references = [figures(seed=s, people=1) for s in (1, 2)]
    findings = judge(figures(seed=3, people=1), original, references, "full", Policy(), RELEARNING)
    found = verdict(findings, Policy(), reference="full")
    assert (found.outcome, found.reached) == ("inconclusive", "hidden")
    assert any("nobody can say" in reason for reason in found.reasons)
    assert any("no others to bring back" in reason for reason in found.reasons)


def test_three_people_have_too_little_power_for_a_pass() -> None:
    references = [figures(seed=s, people=3) for s in (1, 2)]
    findings = judge(
        figures(seed=3, people=3), figures(0.12, people=3), references, "full", Policy(), RELEARNING
    )
    membership = next(f for f in findings if f.name == "calibrated_membership")
    assert membership.outcome == "unclear"
    assert membership.detectable is not None
    assert membership.detectable > 0.95
    assert "too few" in membership.words


def test_noise_makes_a_figure_unclear_and_not_a_failure() -> None:
    """References that disagree by more than the bar cannot refuse at the bar."""
    noisy = [figures(forget=0.0, seed=1), figures(forget=0.08, seed=2)]
    assert noise_of(noisy, lambda r: r.gap) > 0.1
    assert noise_of(noisy[:1], lambda r: r.gap) == 0
    found = outcomes(judge(figures(0.09), ORIGINAL, noisy, "full", Policy(), RELEARNING))
    assert found["gap_excess"] == "unclear"
    far = outcomes(judge(figures(0.4), ORIGINAL, noisy, "full", Policy(), RELEARNING))
    assert far["gap_excess"] == "fail"


def test_a_short_reference_is_weaker_on_everybody_and_that_is_not_held_against_the_model() -> None:
    """The level of a short retrain lies 0.025 lower, its S - T does not (pilot, section 2)."""
    short = [figures(-0.025, -0.025, seed=s, relearned=-0.02) for s in (1, 2)]
    findings = judge(CLEAN, ORIGINAL, short, "short", Policy(), RELEARNING)
    found = outcomes(findings)
    assert "forget_level" not in found
    assert set(found.values()) == {"pass", "reported"}
    worse = figures(-0.05, -0.05)
    quality = judge(worse, ORIGINAL, short, "short", Policy(), RELEARNING)[0]
    assert (quality.name, quality.outcome) == ("unseen_quality", "fail")
    assert "the original" in quality.words


def test_an_adapter_in_the_file_is_refused_even_when_its_outputs_are_clean() -> None:
    model = dataclasses.replace(
        CLEAN, variants={"adapter dropped": Variant(0.95, 0.8)}, adapter_keys=16
    )
    found = next(f for f in judged(model) if f.name == "artefacts")
    assert found.outcome == "fail"
    assert "16 tensors" in found.words


def test_figures_survive_json() -> None:
    model = dataclasses.replace(ORIGINAL, variants={"int8": Variant(0.9, 0.8)})
    assert ModelFigures.from_json(model.to_json()) == model


def test_levels_and_findings_are_needed() -> None:
    assert LEVELS == ("none", "hidden", "unlearned", "retrained")
    with pytest.raises(InvalidInputError):
        verdict([], Policy(), reference="full")
    with pytest.raises(InvalidInputError, match="reference"):
        judge(CLEAN, ORIGINAL, [], "full", Policy(), RELEARNING)
