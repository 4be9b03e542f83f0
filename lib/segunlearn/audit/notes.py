"""What the reader of an audit must know beside its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.membership_findings import what_would_settle
from segunlearn.audit.policy import NAMES, Finding, Policy, ReferenceKind, Verdict
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.sweep import Place

#: Of every audit.
NOT_PROVED: Final = (
    "The figures are measurements on the models named here, not a mathematical bound: a stronger "
    "attack than those tried may find more.",
    "Whoever holds the model before and after can see which studies changed; no method prevents "
    "this. Old versions must be locked away or destroyed.",
    "Copies of the old model that left this installation are not covered.",
    "A later training that uses the studies again, or starts from an old version, undoes it.",
    "While the old weights or a sealed deposit exist, processing is restricted (GDPR Art. 18); "
    "only their destruction is erasure (Art. 17).",
)


def void(
    original: Sequence[Finding],
    references: Sequence[ModelFigures],
    judged: Callable[[ModelFigures, Sequence[ModelFigures]], list[Finding]],
) -> tuple[str, ...]:
    """Check the audit itself: the original must show memory, a left-out reference must pass."""
    found = []
    if not any(_shows_memory(f) for f in original):
        found.append(
            "The original model passes every measure of memory: what it knows of these studies "
            "cannot be seen, so nothing can be shown to have gone."
        )
    if len(references) > 2:
        for i, left_out in enumerate(references):
            others = [*references[:i], *references[i + 1 :]]
            failed = [
                f"'{NAMES.get(f.name, f.name)}'"
                for f in judged(left_out, others)
                if f.outcome == "fail"
            ]
            if failed:
                found.append(
                    f"A model that never saw the studies fails {', '.join(failed)}: these bars "
                    "are below the noise of training here."
                )
    return tuple(found)


def _shows_memory(finding: Finding) -> bool:
    """Whether a figure is refused from above; one that is too low shows damage, not memory."""
    value, bar = finding.value, finding.bar
    return finding.outcome == "fail" and value is not None and bar is not None and value > bar


def notes(
    kind: ReferenceKind, references: int, sets: AuditSets, withdrawn: str | None = None
) -> tuple[str, ...]:
    """Say which reference was used, and how many people there are."""
    found = []
    if kind == "short":
        found.append(
            "No retrained model was there. The reference is a model trained for a short time on "
            "the retained studies alone. It never saw the forgotten ones, but is weaker on "
            "everybody: levels are not compared, only the lead over unseen people."
        )
    else:
        found.append(f"Fully retrained models without the studies, as reference: {references}.")
    if references == 1:
        found.append("With one reference the run-to-run noise of training is not known.")
    if withdrawn is not None:
        found.append(
            f"The structure {withdrawn} was withdrawn: references were trained without it, and "
            "quality is that of the other structures."
        )
    people, unseen = _people(sets)
    found.append(f"Forgotten persons: {people}; unseen persons they are compared with: {unseen}.")
    return tuple(found)


def advice(
    conclusion: Verdict, sets: AuditSets, policy: Policy, places: Sequence[Place]
) -> tuple[str, ...]:
    """Say what to do next; empty where nothing is left to do."""
    found = []
    people, unseen = _people(sets)
    if conclusion.outcome == "refused":
        found.append(
            "Do not release this model as one that forgot. Unlearn harder, or train again without "
            "the studies."
        )
    if conclusion.outcome == "inconclusive" and conclusion.needed == "retrained":
        found.append("Train the model again without the studies; nothing else reaches this level.")
    elif conclusion.outcome == "inconclusive" and people == 1:
        found.append(
            "One person alone cannot show by such measures that a model forgot: chance weighs too "
            f"much. {what_would_settle(people, unseen, policy)} A training without the study is "
            "proved by the ledger and needs no other people."
        )
    elif conclusion.outcome == "inconclusive":
        found.append(
            "More can be shown with more people, with fully retrained references, or by training "
            "the model again without the studies (level 'retrained')."
        )
    if still := sum(p.state == "open" for p in places):
        where = "one place" if still == 1 else f"{still} places"
        found.append(f"The studies may still be in {where} outside the model; see the list.")
    return tuple(found)


def _people(sets: AuditSets) -> tuple[int, int]:
    return len({s.person for s in sets.forget}), len({s.person for s in sets.test})
