"""What an audit measures, and how hard it attacks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from segunlearn.audit.distillation import DistillationSettings
from segunlearn.audit.policy import Level, Policy
from segunlearn.audit.recovery import RecoverySettings
from segunlearn.audit.relearning import RelearningSettings
from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.retrain import RetrainSettings

AttackName = Literal["relearning", "distillation", "recovery", "artefacts"]


@dataclass(frozen=True)
class AuditSettings:
    """What is measured, and how hard.

    Parameters
    ----------
    policy
        The bars.
    needed
        Assurance level the reason of the request asks for.
    attacks
        Which attacks are made; those the policy requires and that are left out make the verdict
        inconclusive.
    relearning, distillation, recovery
        Of the attacks.
    attacked_unseen
        At most so many studies of T are scored in the attacks, for time.
    short_reference
        How the never-seen reference is trained where none is given.
    surfaces
        Also HD95 and surface Dice.
    """

    policy: Policy = field(default_factory=Policy)
    needed: Level = "unlearned"
    attacks: tuple[AttackName, ...] = ("relearning", "distillation", "artefacts")
    relearning: RelearningSettings = field(default_factory=RelearningSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    attacked_unseen: int = 40
    short_reference: RetrainSettings = field(default_factory=lambda: RetrainSettings(epochs=16))
    surfaces: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.attacks) - set(get_args(AttackName)):
            raise InvalidInputError(f"there is no attack {', '.join(sorted(unknown))}.")
        if self.attacked_unseen < 2:
            raise InvalidInputError("attacks need at least two unseen studies to compare with.")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        data = asdict(self)
        data["policy"] = self.policy.to_json()
        plain: dict[str, Any] = json.loads(json.dumps(data))
        return plain
