"""The bars, and the verdict: what level of forgetting was shown, and with what power.

Every bar is a difference to models that never saw the forgotten people. A figure over its bar
refuses only when it is also over the run-to-run noise of those models; between the two it is
*unclear*, and so is what so few people could not have shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from segunlearn.errors import InvalidInputError

Level = Literal["none", "hidden", "unlearned", "retrained"]
Outcome = Literal["pass", "fail", "unclear", "reported"]
ReferenceKind = Literal["full", "short"]

#: Assurance levels, lowest first.
LEVELS: Final[tuple[Level, ...]] = ("none", "hidden", "unlearned", "retrained")

_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "hidden": ("unseen_quality", "gap_excess", "worst_person"),
    "unlearned": ("relearning", "calibrated_membership", "distillation", "artefacts"),
}


@dataclass(frozen=True)
class Policy:
    """Bars in units of Dice or of area under the curve. ``SOURCES`` says where each comes from.

    Parameters
    ----------
    unseen_quality, unseen_quality_short
        Least change of T: against the fully retrained reference; against the original, where the
        reference is a short one.
    forget_level
        Largest |dS| against a full reference.
    gap_excess
        Largest |(S - T) - (S - T of the reference)|: memory above, over-forgetting below.
    worst_person
        Largest difference to the reference for one forgotten person.
    membership
        Largest |AUC - AUC of the reference|.
    calibrated_membership
        Largest difference-calibrated AUC, and one minus it the smallest.
    relearning, relearning_short
        Largest excess of the relearning attack against a full, a short reference.
    distillation
        Largest excess of S - T of a distilled student.
    class_dice, class_divergence
        Class mode: largest Dice of the withdrawn structure, and largest divergence of its
        confusion row, in nats, from models trained without it.
    weakest_power
        A membership test that, at 5 %, could only have shown an AUC above this is unclear, not
        passed.
    required
        For each level, the measures without which it is not reached.
    """

    unseen_quality: float = -0.015
    unseen_quality_short: float = -0.02
    forget_level: float = 0.03
    gap_excess: float = 0.03
    worst_person: float = 0.08
    membership: float = 0.10
    calibrated_membership: float = 0.70
    relearning: float = 0.02
    relearning_short: float = 0.05
    distillation: float = 0.03
    class_dice: float = 0.02
    class_divergence: float = 0.05
    weakest_power: float = 0.95
    required: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(_REQUIRED))

    def __post_init__(self) -> None:
        numbers = {k: v for k, v in asdict(self).items() if k != "required"}
        if not all(math.isfinite(v) for v in numbers.values()):
            raise InvalidInputError("every bar of the policy must be a finite number.")
        if self.unseen_quality > 0 or self.unseen_quality_short > 0:
            raise InvalidInputError("the bars of unseen quality are losses; they must be <= 0.")
        if not 0.5 <= self.calibrated_membership <= 1 or not 0.5 <= self.weakest_power <= 1:
            raise InvalidInputError("areas under the curve lie between 0.5 and 1.")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        data = asdict(self)
        return {**data, "required": {k: list(v) for k, v in self.required.items()}}


#: Where each bar comes from; "pilot" is the pilot on the MSD hippocampus people.
SOURCES: Final[Mapping[str, str]] = {
    "unseen_quality": "pilot B1; two retrained models differ by 0.001 to 0.006",
    "unseen_quality_short": "pilot B1, and 0.004 that training without S costs by itself",
    "forget_level": "pilot B2; retrained models differ by 0.004",
    "gap_excess": "pilot B3; stable to 0.004, also against a short reference; original 0.120",
    "worst_person": "pilot B4; original 0.24 on its best remembered person",
    "membership": "pilot B7; with six people the interval alone is [0.18, 0.78]",
    "calibrated_membership": "pilot B6; never-trained models 0.44 to 0.56, original 1.00",
    "relearning": "pilot B5; retrained models within 0.001, intact weights 0.069 to 0.100",
    "relearning_short": "pilot B5, and 0.024 by which a short reference lies below a full one",
    "distillation": "M8 of the audit's definitions; not tried in the pilot",
    "class_dice": "convention: a model trained without the structure never draws it",
    "class_divergence": "convention; where two references differ by more, their difference",
    "weakest_power": "convention: four forgotten and seventy unseen people just reach it",
}


#: What each measure is called before people.
NAMES: Final[Mapping[str, str]] = {
    "unseen_quality": "Quality on unseen people",
    "forget_level": "Level on the forgotten people",
    "gap_excess": "Lead of the forgotten over unseen people",
    "worst_person": "Best remembered person",
    "membership": "Membership, by loss",
    "structure_membership": "Membership, by overlap",
    "calibrated_membership": "Membership, difficulty taken out",
    "relearning": "Relearning attack",
    "distillation": "Distillation attack",
    "artefacts": "Rounded and stripped weights",
    "class_mode": "The withdrawn structure",
    "reversibility": "The restored model",
    "surface_dice": "Surfaces that agree",
    "hd95": "Distance of surfaces",
    "conformal": "Ranks among never-trained studies",
    "kolmogorov_smirnov": "Losses drawn alike",
    "tug_of_war": "Tug-of-war",
    "collateral": "Worst-off unseen people",
    "nearest": "People most like the forgotten",
    "retained": "Retained people",
    "recovery": "Adversarial recovery",
    "two_versions": "Two versions compared",
}


@dataclass(frozen=True)
class Finding:
    """One measure with its bar.

    Parameters
    ----------
    name
        Its name in the policy.
    level
        Assurance level it belongs to; ``"none"`` for what does not bear on the verdict.
    outcome
        ``"pass"``, ``"fail"``, ``"unclear"``, or ``"reported"``.
    value, bar, noise
        The figure, what it may be, and the run-to-run noise of the references (0: not known).
    interval
        95 % over persons, where there is one.
    detectable
        Smallest leak of this kind that would have been found; 1: none.
    words
        For people.
    """

    name: str
    level: Level
    outcome: Outcome
    value: float | None
    bar: float | None
    noise: float
    interval: tuple[float, float] | None
    detectable: float | None
    words: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite bound becomes null."""
        data = asdict(self)
        if self.interval is not None:
            data["interval"] = [v if math.isfinite(v) else None for v in self.interval]
        return data


def outcome_of(excess: float, bar: float, noise: float) -> Outcome:
    """Judge a figure by its bar; over it, and within the noise, it is unclear."""
    if excess <= bar:
        return "pass"
    return "fail" if excess > noise else "unclear"


@dataclass(frozen=True)
class Verdict:
    """What the audit says.

    Parameters
    ----------
    outcome
        ``"passed"``: the level that is needed was reached. ``"refused"``: a measure failed.
        ``"inconclusive"``: nothing failed, and not enough could be shown.
    reached, needed
        Assurance levels.
    reference
        Which reference was used.
    reasons
        Why it is not more, in words; with the power where people were too few.
    """

    outcome: Literal["passed", "refused", "inconclusive"]
    reached: Level
    needed: Level
    reference: ReferenceKind
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def verdict(
    findings: Sequence[Finding],
    policy: Policy,
    *,
    needed: Level = "unlearned",
    reference: ReferenceKind,
    exact: bool = False,
    void: Sequence[str] = (),
) -> Verdict:
    """Draw the verdict from findings.

    Parameters
    ----------
    findings
        Of ``judge.judge``.
    needed
        Level that the reason of the request asks for.
    reference
        Kind of reference the findings were made with.
    exact
        The *ledger* says that the model was trained from random weights without the forget set;
        a claim of the caller is not enough.
    void
        Reasons why the audit itself could not have found a leak, e.g. an original that it passes.

    Raises
    ------
    InvalidInputError
        A level that is none, or no finding.
    """
    if needed not in LEVELS or not findings:
        raise InvalidInputError(f"needed level {needed!r} must be one of {', '.join(LEVELS)}.")
    by_name = {f.name: f for f in findings}
    failed = [f for f in findings if f.outcome == "fail" and f.level != "none"]
    open_: dict[str, list[str]] = {}
    for level in ("hidden", "unlearned"):
        open_[level] = [
            f"{NAMES.get(name, name)}: was not measured."
            if name not in by_name
            else by_name[name].words
            for name in policy.required.get(level, ())
            if name not in by_name or by_name[name].outcome in ("unclear", "reported")
        ]
        open_[level] += [
            f.words
            for f in findings
            if f.level == level
            and f.outcome == "unclear"
            and f.name not in policy.required.get(level, ())
        ]
    reached: Level = "none"
    if exact and not failed:
        reached = "retrained"
    elif not void and not open_["hidden"] and not any(f.level == "hidden" for f in failed):
        reached = "hidden"
        if not failed and not open_["unlearned"]:
            reached = "unlearned"
    rank = LEVELS.index
    wanted = LEVELS[1 : rank(needed) + 1]
    against = [f for f in failed if f.level in wanted]
    if rank(reached) >= rank(needed):
        return Verdict("passed", reached, needed, reference, ())
    if against:
        reasons = tuple(f.words for f in against)
        return Verdict("refused", reached, needed, reference, reasons)
    reasons = (*void, *(w for level in wanted for w in open_.get(level, [])))
    if needed == "retrained":
        reasons += ("the ledger does not show that the model was trained without the forget set.",)
    return Verdict("inconclusive", reached, needed, reference, reasons)
