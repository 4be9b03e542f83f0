"""Made-up figures of models, and what the audit's judge says of them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from segunlearn.audit.distillation import Distilled
from segunlearn.audit.figures import ModelFigures, Variant
from segunlearn.audit.judge import judge
from segunlearn.audit.policy import Finding, Policy
from segunlearn.audit.relearning import Attack, RelearningSettings
from segunlearn.audit.scores import StudyScore

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
        variants={"int8": Variant(0.8 + forget, 0.8 + test)},
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


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {f.name: f for f in findings}
