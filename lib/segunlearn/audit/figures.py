"""What was measured on one model, as plain figures: the audit judges these and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segunlearn.audit.class_mode import ClassFigures
from segunlearn.audit.distillation import Distilled
from segunlearn.audit.recovery import Recovery
from segunlearn.audit.relearning import Attack
from segunlearn.audit.scores import StudyScore, scores_from_json, set_mean


@dataclass(frozen=True)
class Variant:
    """Mean Dice of a changed copy of the weights (float16, int8, adapter dropped)."""

    forgotten: float
    unseen: float

    @property
    def gap(self) -> float:
        """S - T."""
        return self.forgotten - self.unseen


@dataclass(frozen=True)
class ModelFigures:
    """Everything measured on one model; what was not measured is None or empty.

    Parameters
    ----------
    forget, retain, test
        Scores of S, R and T. R may be empty: it is memory itself and judges nothing.
    relearning
        Attacks of ``relearning.relearn``.
    distilled
        Of ``distillation.distil``.
    recovery
        Of ``recovery.recover``.
    variants
        ``"float16"``, ``"int8"`` and, where there is an adapter, ``"adapter dropped"``.
    adapter_keys
        Number of names in the weights that betray an adapter.
    calibration
        Scores of C, for the conformal ranks.
    withdrawn
        Class mode only: the structure that was withdrawn.
    """

    forget: tuple[StudyScore, ...]
    test: tuple[StudyScore, ...]
    retain: tuple[StudyScore, ...] = ()
    relearning: tuple[Attack, ...] | None = None
    distilled: Distilled | None = None
    recovery: Recovery | None = None
    variants: Mapping[str, Variant] = field(default_factory=dict)
    adapter_keys: int = 0
    calibration: tuple[StudyScore, ...] = ()
    withdrawn: ClassFigures | None = None

    @property
    def gap(self) -> float:
        """Mean Dice of S minus that of T, over persons."""
        return set_mean(self.forget) - set_mean(self.test)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "forget": [s.to_json() for s in self.forget],
            "test": [s.to_json() for s in self.test],
            "retain": [s.to_json() for s in self.retain],
            "relearning": None
            if self.relearning is None
            else [a.to_json() for a in self.relearning],
            "distilled": None if self.distilled is None else self.distilled.to_json(),
            "recovery": None if self.recovery is None else self.recovery.to_json(),
            "variants": {k: vars(v) for k, v in self.variants.items()},
            "adapter_keys": self.adapter_keys,
            "calibration": [s.to_json() for s in self.calibration],
            "withdrawn": None if self.withdrawn is None else self.withdrawn.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelFigures:
        """Read what ``to_json`` wrote."""
        withdrawn = data.get("withdrawn")
        return cls(
            forget=scores_from_json(data["forget"]),
            test=scores_from_json(data["test"]),
            retain=scores_from_json(data["retain"]),
            relearning=None
            if data["relearning"] is None
            else tuple(Attack.from_json(a) for a in data["relearning"]),
            distilled=None if data["distilled"] is None else Distilled(**data["distilled"]),
            recovery=None if data["recovery"] is None else Recovery(**data["recovery"]),
            variants={k: Variant(**v) for k, v in data["variants"].items()},
            adapter_keys=data["adapter_keys"],
            calibration=scores_from_json(data.get("calibration", ())),
            withdrawn=None if withdrawn is None else ClassFigures.from_json(withdrawn),
        )
