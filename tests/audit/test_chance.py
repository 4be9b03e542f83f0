"""Models that never saw anybody must not be refused by chance, whatever the number of people."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from segunlearn.audit.chance import Chance
from segunlearn.audit.distillation import Distilled
from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.judge import judge
from segunlearn.audit.policy import Policy, ReferenceKind
from segunlearn.audit.relearning import RelearningSettings
from segunlearn.audit.scores import StudyScore

#: Spread from person to person of the difference of two trainings; tiny networks reach it.
SPREAD = 0.06
OUTPUTS = ("unseen_quality", "forget_level", "gap_excess", "worst_person")
MEMBERSHIP = ("membership", "structure_membership", "calibrated_membership")


KINDS: tuple[ReferenceKind, ...] = ("full", "short")

#: Spread of how hard people are, for every model alike.
DIFFICULTY = 0.1


def model(
    rng: np.random.Generator,
    people: int,
    unseen: int,
    memory: float = 0.0,
    who: int = 0,
    *,
    spread: float = SPREAD,
    shift: float = 0.0,
) -> ModelFigures:
    """Dice 0.8 and the luck of this training, with everybody and with each person."""
    hard = np.random.default_rng(who).normal(0, DIFFICULTY, people + unseen)
    luck = rng.normal(0, shift) if shift else 0.0

    def rows(prefix: str, count: int, lead: float) -> tuple[StudyScore, ...]:
        own = hard[:people] if prefix == "s" else hard[people:]
        dice = 0.8 + lead + luck + own + rng.normal(0, spread / np.sqrt(2), count)
        return tuple(
            StudyScore(f"{prefix}{i}", f"{prefix}{i}", float(d), float(1 - d))
            for i, d in enumerate(dice)
        )

    return ModelFigures(forget=rows("s", people, memory), test=rows("t", unseen, 0.0))


def failures(people: int, unseen: int, memory: float, draws: int = 200) -> dict[str, float]:
    """Share of audits with one reference in which each measure fails."""
    rng = np.random.default_rng((people, unseen))
    count = dict.fromkeys([*OUTPUTS, *MEMBERSHIP], 0)
    for who in range(draws):
        findings = judge(
            model(rng, people, unseen, memory, who),
            model(rng, people, unseen, 0.15, who),
            [model(rng, people, unseen, 0.0, who)],
            "full",
            Policy(),
            RelearningSettings(),
        )
        for finding in findings:
            if finding.name in count and finding.outcome == "fail":
                count[finding.name] += 1
    return {name: n / draws for name, n in count.items()}


@pytest.mark.parametrize("people", [1, 3, 6, 20])
@pytest.mark.parametrize("unseen", [10, 70])
def test_a_model_that_never_saw_anybody_is_seldom_refused(people: int, unseen: int) -> None:
    """The nominal rate is 2.5 to 5 % a measure; with ten unseen people the spread is guessed."""
    found = failures(people, unseen, 0.0)
    for name in OUTPUTS:
        assert found[name] <= (0.12 if unseen == 10 else 0.09), name
    for name in MEMBERSHIP:
        assert found[name] <= (0.06 if unseen == 10 else 0.035), name


@pytest.mark.parametrize("references", [2, 4])
def test_a_training_that_turned_out_worse_for_everybody_is_seldom_refused(references: int) -> None:
    """As the vessels of seven children: trainings differ by 0.012, which few of them tell."""
    rng, refused, damaged = np.random.default_rng(references), 0, 0
    for who in range(100):
        models = [
            model(rng, 2, 5, memory, who, spread=0.012, shift=0.012)
            for memory in (0.0, 0.2, *[0.0] * references)
        ]
        found = judge(*models[:2], models[2:], "full", Policy(), RelearningSettings())
        refused += any(f.outcome == "fail" for f in found)
        worse = worse_by(0.3, models[0])
        damaged += "fail" in [
            f.outcome
            for f in judge(worse, *models[1:2], models[2:], "full", Policy(), RelearningSettings())
            if f.name == "unseen_quality"
        ]
    assert refused <= 0.05 * 100
    assert damaged > 0.95 * 100


def worse_by(loss: float, model: ModelFigures) -> ModelFigures:
    """A model that lost as much on the unseen people."""
    test = tuple(dataclasses.replace(s, dice=s.dice - loss) for s in model.test)
    return dataclasses.replace(model, test=test)


def test_short_references_tell_nothing_of_the_luck_of_a_training() -> None:
    """They are worse than the original by what they cost less."""
    rng = np.random.default_rng(0)
    original, *short = (model(rng, 2, 30), *(worse_by(0.1, model(rng, 2, 30)) for _ in range(2)))
    chances = {kind: Chance(original, short, kind) for kind in KINDS}
    assert chances["full"].quality() > 0.1
    assert chances["short"].quality() < 0.05


def test_few_unseen_people_refuse_nobody_who_never_saw_anybody() -> None:
    """What two trainings differ by is then a guess; Student's t says how bad a one."""
    found = failures(1, 3, 0.0)
    for name in OUTPUTS:
        assert found[name] <= 0.06, name


@pytest.mark.parametrize("unseen", [3, 30])
def test_students_that_differ_by_chance_refuse_nobody(unseen: int) -> None:
    """A student of a few images differs more from another than their teachers do."""
    rng, failed, memory = np.random.default_rng(unseen), 0, 0
    for _ in range(100):
        models = [model(rng, 1, unseen) for _ in range(3)]
        told = [taught(rng, m, 2 * SPREAD) for m in models]
        failed += outcome(told, "distillation") == "fail"
        memory += (
            outcome([taught(rng, models[0], SPREAD, 0.5), *told[1:]], "distillation") == "fail"
        )
    assert failed <= 0.06 * 100
    assert unseen == 3 or memory > 0.9 * 100


def taught(
    rng: np.random.Generator, model: ModelFigures, spread: float, memory: float = 0.0
) -> ModelFigures:
    """With a student that is worse, and less alike from person to person."""
    people = {s.person: 0.5 + float(rng.normal(0, spread / np.sqrt(2))) for s in model.test}
    own = 0.5 + memory + float(rng.normal(0, spread / np.sqrt(2)))
    student = Distilled(own, float(np.mean(list(people.values()))), people)
    return dataclasses.replace(model, distilled=student)


def outcome(models: list[ModelFigures], name: str) -> str:
    """Of the first, held against the second as the original and the third as reference."""
    found = judge(*models[:2], models[2:], "full", Policy(), RelearningSettings())
    return next(f.outcome for f in found if f.name == name)


@pytest.mark.parametrize("people", [3, 6])
def test_memory_well_above_chance_is_still_refused(people: int) -> None:
    found = failures(people, 70, 0.25)
    assert found["gap_excess"] > 0.95
    assert found["forget_level"] > 0.95
    # of three against seventy people, the attack cannot say much
    assert found["structure_membership"] > (0.7 if people == 3 else 0.9)
    assert found["calibrated_membership"] > 0.8


def test_the_spread_is_that_of_the_trainings() -> None:
    rng = np.random.default_rng(0)
    chance = Chance(model(rng, 5, 2000, 0.15), [model(rng, 5, 2000)])
    assert chance.spread == pytest.approx(SPREAD, rel=0.05)
    assert chance.gap(4) == pytest.approx(2 * SPREAD * np.sqrt(1 / 4 + 1 / 2000), rel=0.05)
    assert chance.worst(1) == pytest.approx(1.96 * SPREAD, rel=0.05)
    assert chance.worst(6) > chance.worst(1)


def test_with_one_unseen_person_nothing_is_known() -> None:
    rng = np.random.default_rng(0)
    chance = Chance(model(rng, 2, 1), [model(rng, 2, 1)])
    assert (chance.level(1), chance.gap(1), chance.worst(1)) == (0, 0, 0)


def test_so_few_people_that_nothing_is_rare_refuse_nobody_by_membership() -> None:
    """Two of five unseen people are drawn in ten ways; one in a hundred cannot be seen there."""
    rng = np.random.default_rng(0)
    few, enough = (Chance(model(rng, 2, n), [model(rng, 2, n)]) for n in (5, 30))
    assert few.area(2, "dice") == 1.0
    assert 0 < enough.area(2, "dice") < 1.0
    assert failures(2, 5, 0.0)["membership"] == 0
