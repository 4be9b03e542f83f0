"""From figures to findings: a model held against its never-seen references, measure by measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from segunlearn.audit.chance import Chance, noise_of, person_noise, shift_among
from segunlearn.audit.class_mode import ClassMode, compare_classes
from segunlearn.audit.distillation import chance_of_students, distillation_excess
from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.gap import Gap, gap
from segunlearn.audit.membership_findings import membership_findings
from segunlearn.audit.policy import Finding, Outcome, Policy, ReferenceKind, outcome_of
from segunlearn.audit.relearning import RelearningSettings, relearning_excess
from segunlearn.audit.reported import reported
from segunlearn.audit.scores import people_in, person_means, set_mean
from segunlearn.audit.statistics import noise_among
from segunlearn.errors import InvalidInputError


def judge(
    model: ModelFigures,
    original: ModelFigures,
    references: Sequence[ModelFigures],
    kind: ReferenceKind,
    policy: Policy,
    relearning: RelearningSettings,
    distances: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Hold a model against its references.

    Parameters
    ----------
    model
        The candidate; the original itself when the audit is checked.
    original
        The model before.
    references
        Models that never saw S, at least one.
    kind
        Whether they were trained in full.
    policy
        The bars.
    relearning
        Settings the attacks were made with.
    distances
        Of each person of R and T to S (``collateral.distances_to``); None where not measured.

    Raises
    ------
    InvalidInputError
        No reference, or studies that do not agree.
    """
    if not references:
        raise InvalidInputError("every measure is read against a never-seen reference; give one.")
    against = gap(
        person_means(model.forget),
        person_means(model.test),
        [person_means(r.forget) for r in references],
        [person_means(r.test) for r in references],
    )
    chance = Chance(original, references, kind)
    findings = _output_findings(model, original, references, kind, policy, against, chance)
    findings += membership_findings(model, references, policy, chance)
    if model.relearning is not None:
        findings.append(_relearning(model, references, kind, policy, relearning, chance))
    if model.distilled is not None:
        findings.append(_distillation(model, original, references, policy, chance))
    findings += _artefacts(model, references, policy, chance)
    if model.withdrawn is not None:
        findings.append(_class_mode(model, references, policy))
    findings += reported(model, original, references, against, distances)
    return [_with_doubt(f) for f in findings]


def _of_dice(excess: float, bar: float, noise: float) -> Outcome:
    """Judge a lead in Dice: where even one of 1 may be chance, none could have been shown."""
    found = outcome_of(excess, bar, noise)
    return "unclear" if found == "pass" and bar + noise >= 1 else found


def _with_doubt(finding: Finding) -> Finding:
    """Say in words that a figure is unclear, where they do not tell of too few people."""
    few = finding.bar is None or "too few" in finding.words
    if finding.outcome != "unclear" or few:
        return finding
    return replace(finding, words=f"{finding.words} It cannot be told from chance.")


def _output_findings(
    model: ModelFigures,
    original: ModelFigures,
    references: Sequence[ModelFigures],
    kind: ReferenceKind,
    policy: Policy,
    against: Gap,
    chance: Chance,
) -> list[Finding]:
    findings, people = [], people_in(model.forget)
    d_t, noise, spread = _unseen_quality(model, original, references, kind, against)
    noise = max(noise, chance.quality())
    if kind == "full":
        bar, whom = policy.unseen_quality, "a fully retrained model"
    else:
        bar, whom = policy.unseen_quality_short, "the original"
    findings.append(
        Finding(
            "unseen_quality", "hidden", outcome_of(-d_t, -bar, noise), d_t, bar, noise, spread,
            None,
            f"On unseen people the model's Dice differs by {d_t:+.3f} from {whom} (no less than "
            f"{bar:+.3f}).",
        )
    )  # fmt: skip
    if kind == "full":
        d_s = against.forgotten.value
        noise = max(noise_of(references, lambda r: set_mean(r.forget)), chance.level(people))
        findings.append(
            Finding(
                "forget_level", "hidden", _of_dice(abs(d_s), policy.forget_level, noise), d_s,
                policy.forget_level, noise, (against.forgotten.low, against.forgotten.high), None,
                f"On the forgotten people Dice differs by {d_s:+.3f} from a model that never saw "
                f"them (may be {policy.forget_level:.3f} either way).",
            )
        )  # fmt: skip
    excess = against.excess
    noise = max(noise_of(references, lambda r: r.gap), chance.gap(people))
    side = "are still treated better" if excess > 0 else "are treated worse"
    findings.append(
        Finding(
            "gap_excess", "hidden", _of_dice(abs(excess), policy.gap_excess, noise), excess,
            policy.gap_excess, noise, None, min(1.0, policy.gap_excess + noise),
            f"Compared with unseen people, the forgotten {side} by {abs(excess):.3f} Dice than by a"
            f" model that never saw them (may be {policy.gap_excess:.3f} either way).",
        )
    )  # fmt: skip
    worst = against.worst - (against.unseen.value if kind == "short" else 0.0)
    noise = max(person_noise(references), chance.worst(people))
    findings.append(
        Finding(
            "worst_person", "hidden", _of_dice(worst, policy.worst_person, noise), worst,
            policy.worst_person, noise, None, min(1.0, policy.worst_person + noise),
            f"The best remembered person reaches {worst:+.3f} Dice against the never-seen level "
            f"(may be {policy.worst_person:+.3f}).",
        )
    )  # fmt: skip
    return findings


def _unseen_quality(
    model: ModelFigures,
    original: ModelFigures,
    references: Sequence[ModelFigures],
    kind: ReferenceKind,
    against: Gap,
) -> tuple[float, float, tuple[float, float] | None]:
    """Change on T, its noise and its interval; in class mode of the structures that stay."""
    if model.withdrawn is not None:
        others = _structure(model, references).others
        if others is None:
            return 0.0, 0.0, None  # no other structure can have suffered
        if kind == "full":
            return others, shift_among(original, references, _others), None
        return _others(model) - _others(original), 0.0, None
    if kind == "full":
        spread = (against.unseen.low, against.unseen.high)
        return against.unseen.value, 0.0, spread
    return set_mean(model.test) - set_mean(original.test), 0.0, None


def _relearning(
    model: ModelFigures,
    references: Sequence[ModelFigures],
    kind: ReferenceKind,
    policy: Policy,
    settings: RelearningSettings,
    chance: Chance,
) -> Finding:
    theirs = [r.relearning for r in references if r.relearning is not None]
    if len(theirs) != len(references):
        raise InvalidInputError("a reference was not attacked by relearning; attack all models.")
    excess = relearning_excess(model.relearning or (), theirs, settings.steps)
    if excess.best_others is None or excess.gap_after is None:
        ratio = excess.fewer_steps
        how = "was not reached" if ratio is None else f"took {ratio:.2f} times the steps"
        return Finding(
            "relearning", "unlearned", "unclear", ratio, None, 0.0, None, None,
            "With a single forgotten study there is no other one that an attack could bring back. "
            f"The old quality on the study itself {how}"
            + ("." if ratio is None else " it took on a model that never saw it (far below 1: the "
               "memory lies near)."),
        )  # fmt: skip
    bar = policy.relearning if kind == "full" else policy.relearning_short
    # under a short reference the level of "others" is not comparable, their lead over T is
    forgotten, alone = people_in(model.forget), excess.unit != "people"
    others = 1 if alone else forgotten - excess.people_after
    sides = [(excess.gap_after, max(excess.gap_noise, chance.gap(others)))]
    if kind == "full":
        others = 1 if alone else forgotten - excess.people
        sides.append((excess.best_others, max(excess.noise, chance.level(others))))
    order: tuple[Outcome, ...] = ("pass", "unclear", "fail")
    whose = "forgotten people" if excess.unit == "people" else "studies of the forgotten person"
    outcome, value, noise = max(
        ((_of_dice(v, bar, n), v, n) for v, n in sides), key=lambda s: (order.index(s[0]), s[1])
    )
    return Finding(
        "relearning", "unlearned", outcome, value, bar, noise, None, min(1.0, bar + noise),
        f"After fine-tuning on some {whose}, the others come to {excess.best_others:+.3f} "
        "Dice above what the reference gives back, and lead unseen people by "
        f"{excess.gap_after:+.3f} more at the end (either may be {bar:.3f}; worst of the attacks, "
        "the end averaged over the rates).",
    )  # fmt: skip


def _distillation(
    model: ModelFigures,
    original: ModelFigures,
    references: Sequence[ModelFigures],
    policy: Policy,
    chance: Chance,
) -> Finding:
    theirs = [r.distilled for r in references if r.distilled is not None]
    if model.distilled is None or len(theirs) != len(references):
        raise InvalidInputError("a reference was not distilled; attack all models.")
    excess = distillation_excess(model.distilled, theirs)
    people = people_in(model.forget)
    noise = max(
        noise_among([[t.gap] for t in theirs]),
        chance.gap(people),
        chance_of_students(original.distilled, theirs, people),
    )
    return Finding(
        "distillation", "unlearned", _of_dice(excess, policy.distillation, noise), excess,
        policy.distillation, noise, None, min(1.0, policy.distillation + noise),
        f"A fresh network taught by the model leads on the forgotten people by {excess:+.3f} Dice "
        f"over one taught by the reference (may be {policy.distillation:.3f}).",
    )  # fmt: skip


def _artefacts(
    model: ModelFigures, references: Sequence[ModelFigures], policy: Policy, chance: Chance
) -> list[Finding]:
    if not model.variants:
        return []
    excess = {}
    for name, variant in model.variants.items():
        # a reference has no adapter to drop: its own gap stands for it
        theirs = [r.variants[name].gap if name in r.variants else r.gap for r in references]
        excess[name] = variant.gap - float(np.mean(theirs))
    worst = max(excess, key=lambda n: excess[n])
    noise = max(noise_of(references, lambda r: r.gap), chance.gap(people_in(model.forget)))
    outcome = _of_dice(excess[worst], policy.gap_excess, noise)
    words = (
        f"With its weights changed ({worst}) the model leads on the forgotten people by "
        f"{excess[worst]:+.3f} Dice more than the reference does (may be {policy.gap_excess:.3f})."
    )
    if model.adapter_keys:
        outcome = "fail"
        words += (
            f" The file holds {model.adapter_keys} tensors of an adapter: dropping them gives the "
            "model before. Merge it."
        )
    return [
        Finding(
            "artefacts", "unlearned", outcome, excess[worst], policy.gap_excess, noise, None, None,
            words,
        )
    ]  # fmt: skip


def _class_mode(model: ModelFigures, references: Sequence[ModelFigures], policy: Policy) -> Finding:
    found = _structure(model, references)
    bar, noise = policy.class_divergence, found.noise or 0.0
    outcome = outcome_of(found.divergence, bar, noise)
    value = found.divergence
    if found.dice > policy.class_dice:
        outcome, value, bar, noise = "fail", found.dice, policy.class_dice, 0.0
    rest = "" if found.others is None else f" The other structures differ by {found.others:+.3f}."
    return Finding(
        "class_mode", "hidden", outcome, value, bar, noise, None, None,
        f"The model draws {found.label} with Dice {found.dice:.3f} (may be "
        f"{policy.class_dice:.3f}). What it says of these voxels instead differs by "
        f"{found.divergence:.3f} nats from models trained without {found.label} (may be "
        f"{policy.class_divergence:.3f})."
        f"{rest}",
    )  # fmt: skip


def _structure(model: ModelFigures, references: Sequence[ModelFigures]) -> ClassMode:
    theirs = [r.withdrawn for r in references if r.withdrawn is not None]
    if model.withdrawn is None or len(theirs) != len(references):
        raise InvalidInputError("a reference was not measured for the withdrawn structure.")
    return compare_classes(model.withdrawn, theirs)


def _others(figures: ModelFigures) -> float:
    """Dice of the structures that stay; 0 where there is none."""
    return (figures.withdrawn.others if figures.withdrawn is not None else None) or 0.0
