"""From figures to findings: each measure against its bar, its noise and its references."""

from __future__ import annotations

import dataclasses

import pytest

from judged_models import (
    CLEAN,
    ORIGINAL,
    REFERENCES,
    RELEARNING,
    by_name,
    figures,
    judged,
    outcomes,
    rows,
)
from segunlearn.audit.chance import Chance, noise_of
from segunlearn.audit.class_mode import ClassFigures
from segunlearn.audit.figures import ModelFigures, Variant
from segunlearn.audit.judge import judge
from segunlearn.audit.policy import Policy, ReferenceKind
from segunlearn.audit.relearning import Attack
from segunlearn.audit.scores import StudyScore
from segunlearn.audit.statistics import detectable_auc
from segunlearn.errors import InvalidInputError


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


def test_so_few_people_that_no_leak_could_show_are_not_a_pass() -> None:
    """Among three forgotten people an area of one half is no evidence."""
    few = [figures(seed=s, people=3) for s in (1, 2, 3)]
    leaks = [figures(0.0, people=3), figures(0.12, people=3)]
    for name in ("membership", "structure_membership"):
        found = by_name(judge(few[2], leaks[1], few[:2], "full", Policy(), RELEARNING))[name]
        assert (found.outcome, found.level) == ("reported", "hidden")
        assert "3 forgotten and 70 unseen people are too few" in found.words
        assert by_name(judged(CLEAN))[name].outcome == "pass"
        assert "too few" not in by_name(judged(CLEAN))[name].words


def test_noise_makes_a_figure_unclear_and_not_a_failure() -> None:
    """References that disagree by more than the bar cannot refuse at the bar."""
    noisy = [figures(forget=0.0, seed=1), figures(forget=0.08, seed=2)]
    assert noise_of(noisy, lambda r: r.gap) > 0.1
    assert noise_of(noisy[:1], lambda r: r.gap) == 0
    found = outcomes(judge(figures(0.09), ORIGINAL, noisy, "full", Policy(), RELEARNING))
    assert found["gap_excess"] == found["forget_level"] == "unclear"
    far = outcomes(judge(figures(0.4), ORIGINAL, noisy, "full", Policy(), RELEARNING))
    assert far["gap_excess"] == "fail"


def test_where_chance_reaches_beyond_dice_nothing_is_passed() -> None:
    """Two references that disagree on everything: no leak would have been found, so none is."""
    noisy = [figures(forget=0.0, seed=1), figures(forget=0.9, seed=2)]
    found = by_name(judge(figures(0.45), ORIGINAL, noisy, "full", Policy(), RELEARNING))
    for name in ("gap_excess", "worst_person"):
        assert (found[name].outcome, found[name].detectable) == ("unclear", 1.0)
        assert found[name].words.endswith(" It cannot be told from chance.")
    assert "chance" not in found["unseen_quality"].words


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


def test_changed_weights_are_held_against_references_changed_likewise() -> None:
    changed = {"int8": Variant(0.9, 0.8), "float16": Variant(0.8, 0.8)}
    model = dataclasses.replace(CLEAN, variants=changed)
    alike = [dataclasses.replace(r, variants=changed) for r in REFERENCES]
    found = by_name(judge(model, ORIGINAL, alike, "full", Policy(), RELEARNING))["artefacts"]
    assert (found.outcome, found.value) == ("pass", pytest.approx(0))
    found = by_name(judged(model))["artefacts"]
    assert found.outcome == "fail"
    assert "(int8)" in found.words


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


@pytest.mark.parametrize(
    ("best", "unseen", "full", "short"),
    [
        (0.80, 0.80, "pass", "pass"),
        (0.90, 0.80, "fail", "pass"),  # back for a moment; a short reference is too weak to say so
        (0.80, 0.70, "fail", "fail"),  # a lead over unseen people at the end
        (0.80, 0.76, "fail", "pass"),  # which may be larger against a short reference
    ],
)
def test_an_attack_is_judged_on_its_way_and_at_its_end(
    best: float, unseen: float, full: str, short: str
) -> None:
    attack = Attack(2, 1e-3, ((0, 0.8, best),), best, 0, 0.8, unseen)
    model = dataclasses.replace(CLEAN, relearning=(attack,))
    assert outcomes(judged(model))["relearning"] == full
    assert outcomes(judged(model, "short"))["relearning"] == short


def test_chance_is_of_the_people_whom_an_attack_looks_at() -> None:
    """The lead at the end was largest with one attacker; there seven others were looked at."""

    def attacked(model: ModelFigures, best: float, end: float) -> ModelFigures:
        one = Attack(1, 1e-3, ((0, 0.8, 0.8),), 0.8, 0, 0.8 + end, 0.8)
        most = Attack(6, 1e-3, ((0, 0.8, 0.8 + best),), 0.8 + best, 0, 0.8, 0.8)
        return dataclasses.replace(model, relearning=(one, most))

    references = [attacked(r, 0.0, 0.0) for r in REFERENCES]
    model = attacked(CLEAN, 0.001, 0.05)
    findings = judge(model, ORIGINAL, references, "full", Policy(), RELEARNING)
    found = by_name(findings)["relearning"]
    assert found.value == pytest.approx(0.05)
    assert found.noise == Chance(ORIGINAL, references).gap(7)


@pytest.mark.parametrize(
    ("model", "name", "full", "short"),
    [
        # a short reference is weaker on everybody: what all people gained is taken off
        (figures(0.1, 0.05), "worst_person", "fail", "pass"),
        (figures(-0.0175, -0.0175), "unseen_quality", "fail", "pass"),
        (figures(-0.025, -0.025), "unseen_quality", "fail", "fail"),
    ],
)
def test_a_full_reference_has_the_narrower_bars(
    model: ModelFigures, name: str, full: str, short: str
) -> None:
    assert outcomes(judged(model))[name] == full
    assert outcomes(judged(model, "short"))[name] == short


def test_what_lies_on_its_bar_passes() -> None:
    model = figures(distilled=0.07)
    excess = by_name(judged(model))["distillation"].value
    assert excess is not None
    assert outcomes(judged(model, policy=Policy(distillation=excess)))["distillation"] == "pass"


def test_the_smallest_leak_that_would_be_found_lies_above_bar_and_noise() -> None:
    found = by_name(judged(CLEAN))
    for name in ("gap_excess", "worst_person", "relearning", "distillation"):
        assert found[name].bar is not None
        assert found[name].detectable == found[name].bar + found[name].noise, name


@pytest.mark.parametrize("attack", ["relearning", "distilled"])
def test_a_model_and_all_its_references_are_attacked(attack: str) -> None:
    half = [REFERENCES[0], dataclasses.replace(REFERENCES[1], **{attack: None})]  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="attack all models"):
        judge(CLEAN, ORIGINAL, half, "full", Policy(), RELEARNING)


def test_a_leak_within_the_bar_passes_however_many_people_show_it() -> None:
    many = [figures(seed=s, people=100) for s in (1, 2)]
    model, original = figures(0.002, people=100, seed=4), figures(0.12, people=100)
    findings = judge(model, original, many, "full", Policy(), RELEARNING)
    found = by_name(findings)["calibrated_membership"]
    assert found.interval is not None
    assert found.interval[0] > 0.5
    assert found.outcome == "pass"


def test_a_person_reads_on_which_side_the_forgotten_are() -> None:
    assert "are still treated better" in by_name(judged(ORIGINAL))["gap_excess"].words
    assert "are treated worse" in by_name(judged(figures(-0.12)))["gap_excess"].words


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
        (without((0.30, 0.00, 0.70), dice=0.02), set()),
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
    with_it = without((0.02, 0.96, 0.02), dice=0.95)
    original = dataclasses.replace(ORIGINAL, withdrawn=with_it)
    for kind in ("full", "short"):
        model = dataclasses.replace(CLEAN, withdrawn=mine)
        found = judge(model, original, references, kind, Policy(), RELEARNING)  # type: ignore[arg-type]
        assert {f.name for f in found if f.outcome == "fail"} == failing, kind
        judgement = by_name(found)["class_mode"]
        if mine.dice > Policy().class_dice:  # the figure and the bar are those that it failed
            assert (judgement.value, judgement.bar) == (0.4, Policy().class_dice)
    better = dataclasses.replace(original, withdrawn=dataclasses.replace(with_it, others=0.9))
    lost = dataclasses.replace(CLEAN, withdrawn=without((0.30, 0.00, 0.70)))
    full = judge(lost, better, references, "full", Policy(), RELEARNING)
    short = judge(lost, better, references, "short", Policy(), RELEARNING)
    # against those that were trained without it; of short ones that cannot be asked
    assert (outcomes(full)["unseen_quality"], outcomes(short)["unseen_quality"]) == ("pass", "fail")
    with pytest.raises(InvalidInputError, match="was not measured for the withdrawn"):
        judge(model, original, REFERENCES, "full", Policy(), RELEARNING)


@pytest.mark.parametrize("kind", ["full", "short"])
def test_the_only_structure_can_be_withdrawn(kind: ReferenceKind) -> None:
    """No other one can have suffered."""
    alone = ClassFigures("liver", 0.0, None, (1.0, 0.0))
    references = [dataclasses.replace(r, withdrawn=alone) for r in REFERENCES]
    original = dataclasses.replace(ORIGINAL, withdrawn=dataclasses.replace(alone, dice=0.95))
    model = dataclasses.replace(figures(-0.1, -0.1), withdrawn=alone)
    found = by_name(judge(model, original, references, kind, Policy(), RELEARNING))
    assert (found["unseen_quality"].outcome, found["unseen_quality"].value) == ("pass", 0)
    assert found["class_mode"].outcome == "pass"
    assert "other structures" not in found["class_mode"].words
