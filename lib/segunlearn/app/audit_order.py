"""What is asked of an audit: versions, studies, and how hard it attacks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, cast, get_args

from segunlearn.app.audit_targets import NO_TARGETS, Targets
from segunlearn.audit.distillation import DistillationSettings
from segunlearn.audit.policy import Level, Policy
from segunlearn.audit.relearning import RelearningSettings
from segunlearn.audit.settings import AttackName, AuditSettings
from segunlearn.errors import InvalidInputError

#: People of R and of T that a quick audit measures.
QUICK_PEOPLE: Final = 40
#: Steps of a short reference, at least: a few epochs of a few studies teach nothing.
_LEAST_STEPS: Final = 400
_QUICK_STEPS: Final = 150
_QUICK_DISTILLATION: Final = 60
#: Of a distillation, in batches of four.
_STEPS_OF_AN_IMAGE: Final = 25
QUICK_NOTE: Final = (
    "A quick audit. Left out: relearning at other rates than 0.001, with 2 or 5 people and after "
    "20 steps; distillation after 60 steps; unseen studies beyond 12 in the attacks; retained and "
    "unseen people beyond 40. What it finds is found; what it does not find, a full audit may."
)


@dataclass(frozen=True)
class Order:
    """What is to be audited, and how.

    Parameters
    ----------
    model
        Name in the registry.
    candidate, original, targets, level
        See ``audit_choice.choose``.
    attacks
        None takes those of the policy.
    quick
        Fewer and shorter attacks.
    references
        Number of fully retrained references; 0 trains a short one.
    whole
        Score whole volumes instead of one window a study.
    pictures
        Pixels of patients in the report; the caller checks that an administrator asked.
    device
        See ``choose_device``.
    policy
        The bars.
    """

    model: str
    candidate: str = ""
    original: str = ""
    targets: Targets = NO_TARGETS
    level: Level | None = None
    attacks: tuple[AttackName, ...] | None = None
    quick: bool = False
    references: int = 0
    whole: bool = False
    pictures: bool = False
    device: str = "auto"
    policy: Policy = field(default_factory=Policy)

    def settings(
        self, needed: Level, retained: int, views: int = 0, images: int | None = None
    ) -> AuditSettings:
        """Choose the settings of the audit.

        Parameters
        ----------
        needed
            Assurance level.
        retained
            Studies of R: the fewer, the more often a short reference must see each.
        views
            How often the original's training drew a patch of each study; a short reference sees
            each at most half as often, or it would not be short. 0 where that is not known.
        images
            Studies of S and C, from which the student of a distillation learns: of few it sees
            each about a hundred times, and no more. None: the usual steps.

        Raises
        ------
        InvalidInputError
            An attack is none.
        """
        chosen = AuditSettings(policy=self.policy, needed=needed)
        if self.quick:
            chosen = replace(
                chosen,
                relearning=RelearningSettings(
                    people=(1, 3), rates=(1e-3,), steps=20, every=5, batch_size=2
                ),
                distillation=DistillationSettings(steps=_QUICK_DISTILLATION, batch_size=2),
                attacked_unseen=12,
                short_reference=replace(chosen.short_reference, batch_size=2),
            )
        short = chosen.short_reference
        steps = _QUICK_STEPS if self.quick else _LEAST_STEPS
        epochs = -(-steps * short.batch_size // max(1, retained))
        epochs = max(short.epochs, min(epochs, views // 2) if views else epochs)
        chosen = replace(chosen, short_reference=replace(short, epochs=epochs))
        if images is not None:
            student = chosen.distillation
            steps = min(student.steps, max(_QUICK_DISTILLATION, _STEPS_OF_AN_IMAGE * images))
            chosen = replace(chosen, distillation=replace(student, steps=steps))
        return chosen if self.attacks is None else replace(chosen, attacks=self.attacks)


def attacks_of(text: str) -> tuple[AttackName, ...] | None:
    """Read names of attacks separated by commas; None of an empty text.

    Raises
    ------
    InvalidInputError
        There is no such attack.
    """
    if not text.strip():
        return None
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := set(names) - set(get_args(AttackName)):
        raise InvalidInputError(
            f"there is no attack {', '.join(sorted(unknown))}; use "
            f"{', '.join(get_args(AttackName))}."
        )
    return cast(tuple[AttackName, ...], names)
