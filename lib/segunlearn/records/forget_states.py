"""States, assurance levels and reasons of forget requests: the tables, nothing else.

Source: the design document, section 4. One addition: what other systems say (rejection notes,
deletions in the PACS) enters as ``proposed`` and becomes a request only when a person says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, get_args

State = Literal[
    "proposed",
    "dismissed",
    "requested",
    "approved",
    "withdrawn",
    "working",
    "refused",
    "fulfilled",
    "restored",
    "purged",
]
Level = Literal["none", "hidden", "unlearned", "retrained"]
Reason = Literal[
    "consent_withdrawn", "wrong_patient", "wrong_label", "quality", "retention_expired", "other"
]

STATES: Final[tuple[str, ...]] = get_args(State)
#: Assurance levels, from the weakest to the strongest.
LEVELS: Final[tuple[str, ...]] = get_args(Level)
REASONS: Final[tuple[str, ...]] = get_args(Reason)

#: Where a request may go from each state. ``approved -> fulfilled`` only when no recorded run
#: used the study ("never trained on"); ``working -> fulfilled`` only when the level that was
#: reached is at least the one that is needed.
TRANSITIONS: Final[Mapping[str, frozenset[str]]] = {
    "proposed": frozenset({"requested", "dismissed"}),  # addition, see above
    "dismissed": frozenset(),
    "requested": frozenset({"approved", "withdrawn"}),
    "approved": frozenset({"working", "fulfilled", "withdrawn"}),
    "withdrawn": frozenset(),
    "working": frozenset({"fulfilled", "refused"}),
    "refused": frozenset({"working", "withdrawn"}),  # withdrawn: addition, nothing was changed
    "fulfilled": frozenset({"restored", "purged"}),
    "restored": frozenset(),
    "purged": frozenset(),
}

#: States of requests that were closed; a new mark of the target makes a new request.
#: ``restored``: the model that knew the study is back on a person's word, so that the study may
#: be trained on again; whoever wants both, the old model and no further training, marks it anew.
CLOSED: Final = frozenset({"dismissed", "withdrawn", "restored"})

#: States that keep the target out of training, validation, active learning, scoring and
#: adaptation: all that are open, except a proposal, which changes nothing by itself.
#: ``fulfilled`` and ``purged`` are among them: what was forgotten must not be learned again.
LIVE: Final = frozenset(STATES) - CLOSED - {"proposed"}

#: Assurance that each reason needs, unless a person asks for another level. A wrong label or a
#: bad image is a matter of quality; the others are a matter of the patient's rights.
NEEDED_LEVEL: Final[Mapping[str, Level]] = {
    "consent_withdrawn": "unlearned",
    "wrong_patient": "unlearned",
    "wrong_label": "hidden",
    "quality": "hidden",
    "retention_expired": "unlearned",
    "other": "unlearned",
}


def at_least(reached: str, needed: str) -> bool:
    """Whether one assurance level is as strong as another.

    Examples
    --------
    >>> at_least("unlearned", "hidden"), at_least("hidden", "unlearned")
    (True, False)
    """
    return LEVELS.index(reached) >= LEVELS.index(needed)


def highest(levels: Iterable[str]) -> Any:
    """Find the strongest of some assurance levels; the weakest without any.

    Examples
    --------
    >>> highest(["hidden", "retrained", "unlearned"])
    'retrained'
    """
    return max(levels, key=LEVELS.index, default=LEVELS[0])
