"""Findings of membership inference: how far an attacker tells the forgotten from unseen people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segunlearn.audit.chance import Chance
from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.membership import difference_calibrated, membership
from segunlearn.audit.policy import Finding, Policy, outcome_of
from segunlearn.audit.scores import attack_scores, people_in
from segunlearn.audit.statistics import REFUSED, detectable_auc, noise_among


def membership_findings(
    model: ModelFigures, references: Sequence[ModelFigures], policy: Policy, chance: Chance
) -> list[Finding]:
    """Judge membership by loss, by overlap, and with each study's difficulty taken out.

    Parameters
    ----------
    model, references, policy
        See ``judge.judge``.
    chance
        Of the audit.
    """
    people, unseen = people_in(model.forget), people_in(model.test)
    too_few = detectable_auc(people, unseen) > policy.weakest_power  # at 5 %, as it was chosen
    if min(people, unseen) < 2:
        words = (
            f"With {people} forgotten and {unseen} unseen person(s) there are not enough people to "
            f"show that they do not look trained on. {what_would_settle(people, unseen, policy)}"
        )
        return [
            Finding("membership", "none", "reported", None, None, 0.0, None, 1.0, words),
            Finding(
                "calibrated_membership", "unlearned", "unclear", None, None, 0.0, None, 1.0, words
            ),
        ]
    found = []
    for measure, name, what in (
        ("loss", "membership", "loss"),
        ("dice", "structure_membership", "overlap (Dice)"),
    ):
        raw = membership(
            attack_scores(model.forget, measure),  # type: ignore[arg-type]  # literal names
            attack_scores(model.test, measure),  # type: ignore[arg-type]
        )
        theirs = [
            membership(
                attack_scores(r.forget, measure),  # type: ignore[arg-type]
                attack_scores(r.test, measure),  # type: ignore[arg-type]
            ).area.value
            for r in references
        ]
        found_at = ""
        if raw.area.value >= 0.5:  # below, the attacker looks at the other end
            found_at = (
                f" Wrong about {max(0.01, raw.smallest_fpr):.0%} of unseen studies, an attacker "
                f"finds {raw.tpr_at_1_percent:.0%} of the forgotten."
            )
        difference = raw.area.value - float(np.mean(theirs))
        noise = max(
            noise_among([[area] for area in theirs]),
            chance.area(people, measure),  # type: ignore[arg-type]  # literal names
        )
        shown = max(raw.detectable, min(1.0, 0.5 + max(policy.membership, noise)))
        outcome = outcome_of(abs(difference), policy.membership, noise)
        few = ""
        if too_few and outcome == "pass":  # no evidence: no level asks for it, none gets it
            outcome, few = "reported", f" {_power(people, unseen, shown)}"
        found.append(
            Finding(
                name, "hidden", outcome, difference,
                policy.membership, noise, (raw.area.low, raw.area.high), shown,
                f"Told from unseen people by their {what}: AUC {raw.area.value:.2f} "
                f"[{raw.area.low:.2f}, {raw.area.high:.2f}], reference {np.mean(theirs):.2f} (may "
                f"differ by {policy.membership:.2f}).{found_at}{few}",
            )
        )  # fmt: skip
    sides = (
        attack_scores(model.forget),
        attack_scores(model.test),
        [attack_scores(r.forget) for r in references],
        [attack_scores(r.test) for r in references],
    )
    asked = difference_calibrated(*sides)
    area, shown, bar = asked.area, asked.detectable, policy.calibrated_membership
    outcome = "pass" if 1 - bar <= area.value <= bar else "unclear"
    if outcome == "unclear" and not difference_calibrated(*sides, 1 - REFUSED).area.holds(0.5):
        outcome = "fail"
    words = (
        f"With each study's difficulty taken out: AUC {area.value:.2f} [{area.low:.2f}, "
        f"{area.high:.2f}] (may be {1 - bar:.2f} to {bar:.2f})."
    )
    if too_few:
        outcome = "fail" if outcome == "fail" else "unclear"
        settles = what_would_settle(people, unseen, policy)
        words = f"{words} {_power(people, unseen, shown)} {settles}"
    found.append(
        Finding(
            "calibrated_membership", "unlearned", outcome, area.value, bar, 0.0,
            (area.low, area.high), shown, words,
        )
    )  # fmt: skip
    return found


def _power(people: int, unseen: int, shown: float) -> str:
    """Say that people are too few, and what they could have shown."""
    leak = (
        f"only an AUC above {shown:.2f} would have been found four times in five."
        if shown < 1
        else "no leak of this kind would have been found with confidence."
    )
    return f"{people} forgotten and {unseen} unseen people are too few: {leak}"


def what_would_settle(people: int, unseen: int, policy: Policy) -> str:
    """Say what to do where too few people were forgotten to judge their membership."""
    enough = next(
        (n for n in range(2, 200) if detectable_auc(n, unseen) <= policy.weakest_power), 0
    )
    together = ""
    if enough > people:
        together = f", or audit the request together with others, {enough} people at the least"
    return f"Ask for the level 'retrained'{together}."
