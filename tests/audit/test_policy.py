"""From figures to the verdict: what each outcome does, and how few people are too few."""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

import numpy as np
import pytest

from segunlearn.audit.chance import noise_of
from segunlearn.audit.class_mode import ClassFigures
from segunlearn.audit.distillation import Distilled
from segunlearn.audit.figures import ModelFigures, Variant
from segunlearn.audit.judge import judge
from segunlearn.audit.notes import void
from segunlearn.audit.policy import LEVELS, SOURCES, Finding, Policy, verdict
from segunlearn.audit.relearning import Attack, RelearningSettings
from segunlearn.audit.scores import StudyScore
from segunlearn.audit.statistics import detectable_auc
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
    unit: Literal["people", "studies"] = "people" if people > 1 else "studies"
    attack = Attack(
        2 if people > 1 else 1, 1e-3, ((0, 0.8, others),), others, 0, others, 0.8 + test, unit
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
    assert found.reasons == ("Relearning attack: was not measured.",)


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


def test_one_person_is_too_few_and_the_report_says_so() -> None:
    original = figures(0.12, people=1)
    references = [figures(seed=s, people=1) for s in (1, 2)]
    findings = judge(figures(seed=3, people=1), original, references, "full", Policy(), RELEARNING)
    found = verdict(findings, Policy(), reference="full")
    assert (found.outcome, found.reached) == ("inconclusive", "hidden")
    assert any("not enough people to show" in reason for reason in found.reasons)
    assert any("audit the request together with others, 4 people" in r for r in found.reasons)
    assert any("no other one that an attack could bring back" in r for r in found.reasons)


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


def test_the_power_that_is_told_is_of_the_test_that_refuses() -> None:
    """What is too few to be judged at all is another question, and is asked at 5 %."""
    few = [figures(seed=s, people=4) for s in (1, 2, 3)]
    findings = by_name(
        judge(few[2], figures(0.12, people=4), few[:2], "full", Policy(), RELEARNING)
    )
    for name in ("membership", "structure_membership", "calibrated_membership"):
        assert findings[name].detectable == detectable_auc(4, 70, level=0.01)
    assert detectable_auc(4, 70) < Policy().weakest_power < detectable_auc(4, 70, level=0.01)
    assert "too few" not in findings["calibrated_membership"].words


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
    with pytest.raises(InvalidInputError, match="reference"):
        judge(CLEAN, ORIGINAL, [], "full", Policy(), RELEARNING)


def one_person(relearned: float, seed: int) -> ModelFigures:
    """A person with two studies: one in the attacker's hands, the other looked at."""
    other = 0.8 + relearned
    attack = Attack(1, 1e-3, ((0, 0.8, other),), other, 3, other, 0.8, "studies")
    return dataclasses.replace(figures(seed=seed, people=1), relearning=(attack,))


@pytest.mark.parametrize(("relearned", "outcome"), [(0.0, "pass"), (0.1, "fail")])
def test_one_person_with_several_studies_is_judged_by_the_others(
    relearned: float, outcome: str
) -> None:
    references = [one_person(0.0, seed=s) for s in (1, 2)]
    original = one_person(0.1, seed=0)
    model = one_person(relearned, seed=3)
    findings = judge(model, original, references, "full", Policy(), RELEARNING)
    found = next(f for f in findings if f.name == "relearning")
    assert found.outcome == outcome
    assert "some studies of the forgotten person" in found.words


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {f.name: f for f in findings}


def test_ranks_are_shown_beside_the_references() -> None:
    def ranked(model: ModelFigures, seed: int) -> ModelFigures:
        return dataclasses.replace(model, calibration=rows("c", 0, 60, seed))

    references = [ranked(r, i) for i, r in enumerate(REFERENCES)]
    told = judge(ranked(ORIGINAL, 5), ORIGINAL, references, "full", Policy(), RELEARNING)
    clean = judge(ranked(CLEAN, 5), ORIGINAL, references, "full", Policy(), RELEARNING)
    for name in ("conformal", "kolmogorov_smirnov", "tug_of_war"):
        worse, better = by_name(told)[name], by_name(clean)[name]
        assert worse.outcome == better.outcome == "reported"
        assert worse.value is not None
        assert better.value is not None
        assert worse.value < better.value
        assert "reference" in worse.words
    assert by_name(clean)["tug_of_war"].value == pytest.approx(1, abs=0.01)
    few = [dataclasses.replace(r, calibration=r.calibration[:10]) for r in references]
    model = dataclasses.replace(CLEAN, calibration=rows("c", 0, 10, 5))
    found = by_name(judge(model, ORIGINAL, few, "full", Policy(), RELEARNING))
    assert "Fewer than 19" in found["conformal"].words


def surfaced(model: ModelFigures, surface: float, distance: float | None) -> ModelFigures:
    def add(scores: tuple[StudyScore, ...], s: float, d: float | None) -> tuple[StudyScore, ...]:
        return tuple(dataclasses.replace(x, surface_dice=s, hd95_mm=d) for x in scores)

    forget = add(model.forget, surface, distance)
    # a model that found nothing has no distance: that study is left out, and it is said
    forget = (dataclasses.replace(forget[0], hd95_mm=None), *forget[1:])
    return dataclasses.replace(model, forget=forget, test=add(model.test, 0.9, 2.0))


def test_surfaces_are_compared_where_every_model_has_one() -> None:
    references = [surfaced(r, 0.8, 3.0) for r in REFERENCES]
    found = by_name(
        judge(surfaced(CLEAN, 0.95, 1.0), ORIGINAL, references, "full", Policy(), RELEARNING)
    )
    assert found["surface_dice"].value == pytest.approx(0.15)
    assert found["hd95"].value == pytest.approx(-2.0)
    assert "1 studies" in found["hd95"].words
    assert "surface_dice" not in by_name(judged(CLEAN))
    nowhere = surfaced(CLEAN, 0.95, None)
    found = by_name(judge(nowhere, ORIGINAL, references, "full", Policy(), RELEARNING))
    assert "hd95" not in found


def test_the_people_nearest_to_the_forgotten_are_looked_at() -> None:
    distances = {s.person: float(i) for i, s in enumerate(CLEAN.test)}
    harmed = tuple(
        dataclasses.replace(s, dice=s.dice - 0.2) if distances[s.person] < 7 else s
        for s in CLEAN.test
    )
    model = dataclasses.replace(CLEAN, test=harmed)
    found = by_name(judge(model, ORIGINAL, REFERENCES, "full", Policy(), RELEARNING, distances))
    assert found["nearest"].value == pytest.approx(-0.2, abs=0.01)
    assert "nearest" not in by_name(judged(model))


def without(row: tuple[float, ...], dice: float = 0.0, others: float = 0.8) -> ClassFigures:
    return ClassFigures("liver", dice, others, row)


@pytest.mark.parametrize(
    ("mine", "failing"),
    [
        (without((0.30, 0.00, 0.70)), set()),
        (without((0.99, 0.00, 0.01)), {"class_mode"}),  # blindly background
        (without((0.30, 0.00, 0.70), dice=0.4), {"class_mode"}),
        (without((0.30, 0.00, 0.70), others=0.7), {"unseen_quality"}),
    ],
)
def test_a_withdrawn_structure_is_held_against_models_without_it(
    mine: ClassFigures, failing: set[str]
) -> None:
    references = [
        dataclasses.replace(r, withdrawn=without((0.29 + 0.01 * i, 0.001, 0.709 - 0.01 * i)))
        for i, r in enumerate(REFERENCES)
    ]
    original = dataclasses.replace(ORIGINAL, withdrawn=without((0.02, 0.96, 0.02), dice=0.95))
    for kind in ("full", "short"):
        model = dataclasses.replace(CLEAN, withdrawn=mine)
        found = judge(model, original, references, kind, Policy(), RELEARNING)  # type: ignore[arg-type]
        assert {f.name for f in found if f.outcome == "fail"} == failing, kind
        judgement = by_name(found)["class_mode"]
        if mine.dice > 0:  # the figure and the bar are those that it failed
            assert (judgement.value, judgement.bar) == (0.4, Policy().class_dice)
    with pytest.raises(InvalidInputError, match="was not measured for the withdrawn"):
        judge(model, original, REFERENCES, "full", Policy(), RELEARNING)


def test_a_restored_model_that_is_another_does_not_make_the_forgetting_fail() -> None:
    broken = Finding("reversibility", "none", "fail", 0.1, 1e-5, 0.0, None, None, "another")
    found = verdict([*judged(CLEAN), broken], Policy(), reference="full")
    assert (found.outcome, found.reached) == ("passed", "unlearned")
