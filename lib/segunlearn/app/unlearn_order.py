"""What is asked of an unlearning: which requests, by which method, to which level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, get_args

from segunlearn.audit.policy import Level, Policy
from segunlearn.errors import InvalidInputError
from segunlearn.records.forget_requests import NOTE_LENGTH
from segunlearn.records.forget_states import LEVELS
from segunlearn.records.targets import clean_text
from segunlearn.unlearning import method_named

#: What the retain terms of a method are computed on.
Retain = Literal["stored", "replay", "none"]
#: Images that are replayed where nobody says how many.
REPLAYED: Final = 96

#: Method that is tried for each level; the audit decides what it reaches.
BY_LEVEL: Final[Mapping[str, str]] = {
    "hidden": "calibrated",
    "unlearned": "erode_and_repair",
    "retrained": "retrain",
}


@dataclass(frozen=True)
class UnlearnOrder:
    """An order.

    Parameters
    ----------
    model
        Name in the registry.
    requests
        Ids of forget requests; empty: all that wait, approved or in work, that the model may know.
    level
        Assurance level to reach; empty: the highest that the requests need. A lower one than
        needed is served meanwhile, and fulfils nothing.
    method
        Key of ``METHODS``; empty: that of the level.
    settings
        Fields of the method's settings that differ from its defaults.
    retain
        ``"none"``: the method may not read the retain set; ``"replay"``: images of the model's
        generator stand for it.
    replayed
        Number of such images.
    quick, references
        Of the audit, see ``segunlearn.app.audit_order.Order``.
    policy
        The audit's bars.
    seed
        Of every random choice but the key.
    device
        See ``choose_device``.
    restore
        Id of a fulfilled forget request: the version that knew it is the start, and what is still
        forgotten is unlearned from that. Requests and level follow from it.
    why
        Text for the history of what is restored.
    expected
        Ids of the requests that a plan named; nothing is begun where others would be treated.

    Raises
    ------
    NotFoundError
        There is no such method.
    InvalidInputError
        There is no such level; a restore names requests or a level; or ``why`` is too long.
    """

    model: str
    requests: tuple[str, ...] = ()
    level: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    retain: Retain = "stored"
    replayed: int = REPLAYED
    quick: bool = False
    references: int = 0
    policy: Policy = field(default_factory=Policy)
    seed: int = 0
    device: str = "auto"
    restore: str = ""
    why: str = ""
    expected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method:
            method_named(self.method)
        if self.level and self.level not in LEVELS[1:]:
            raise InvalidInputError(
                f"{self.level!r:.40} is no level to reach; use {', '.join(LEVELS[1:])}."
            )
        clean_text(self.why, "the reason", NOTE_LENGTH, empty=True)  # not when all is done
        if self.retain not in get_args(Retain):
            raise InvalidInputError(
                f"retain {self.retain!r:.40}: use {', '.join(get_args(Retain))}."
            )
        if self.replayed < 2:
            raise InvalidInputError(f"replayed is {self.replayed}: replay at least 2 images.")
        if self.restore and (self.requests or self.level):
            raise InvalidInputError(
                "a restore forgets again what is still to be forgotten, at the level that it "
                "needs: name neither requests nor a level beside it."
            )

    def level_for(self, needed: str) -> Level:
        """Level to reach, where the requests need ``needed``."""
        return cast(Level, self.level or needed)

    def method_for(self, level: str) -> str:
        """Name of the method for a level."""
        return self.method or BY_LEVEL[level]
