"""What a forget request says, and the checks of what people write into it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement

from segunlearn.errors import InvalidInputError, NotFoundError
from segunlearn.records.forget_states import (
    LEVELS,
    LIVE,
    REASONS,
    STATES,
    TRANSITIONS,
    at_least,
)
from segunlearn.records.store import AnyRow
from segunlearn.records.tables import FORGET_REQUEST
from segunlearn.records.targets import KINDS, Target, clean_text, person_name

#: Longest note and explanation, in characters.
NOTE_LENGTH: Final = 2000
_ACTOR_LENGTH: Final = 200
#: Begin the history's words on a change of the need alone, on who agreed to a proposal, and on one
#: more mark.
NEED_CHANGED: Final = "need changed"
_AGREED: Final = "agreed: "
_MARKED_TOO: Final = "marked, too: "
#: What is said of a request that one model has forgotten and another one knows.
KNOWN_ELSEWHERE: Final = (
    "One model forgot it, another model still knows it: it is not fulfilled. Its history names the "
    "model."
)


@dataclass(frozen=True)
class ForgetRequest:
    """A forget request as it stands.

    Parameters
    ----------
    request_id
        32 hexadecimal digits.
    target
        What shall be forgotten.
    study, person
        What the target belongs to, as far as the marker said or the ledger knows; else empty.
    reason, note
        Code of ``forget_states.REASONS``, and free text.
    state, needed, reached
        See :mod:`segunlearn.records.forget_states`.
    source
        ``"person"``, or where a proposal came from, e.g. ``"rejection_note"``.
    marked_by, marked_role, created, updated
        Who marked it, with which role, when (UTC ISO 8601), and its last change.
    covered_by
        Ids of live requests on its study or patient: the target is out of training on their
        account too.
    studies
        Of a patient: studies that stood under this number while the request was open. It covers
        them whatever number the archive gives them.
    agreed_by, agreed_why
        Who made another system's proposal a request, and what they said; empty where nobody did.
    """

    request_id: str
    target: Target
    study: str
    person: str
    reason: str
    note: str
    state: str
    needed: str
    reached: str
    source: str
    marked_by: str
    marked_role: str
    created: str
    updated: str
    covered_by: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    agreed_by: str = ""
    agreed_why: str = ""

    @property
    def targets(self) -> tuple[Target, ...]:
        """The target, and the studies that are kept with it."""
        return (self.target, *(Target("study", study) for study in self.studies))

    @property
    def stated_reason(self) -> str:
        """Reason in a person's word: of who agreed, where another system proposed it."""
        return agreed_reason(self.agreed_why) or self.reason

    @property
    def is_live(self) -> bool:
        """Whether it keeps its target out of training."""
        return self.state in LIVE

    @property
    def is_known_elsewhere(self) -> bool:
        """Whether one model forgot it as was asked, and another one still knows it."""
        enough = self.reached != "none" and at_least(self.reached, self.needed)
        return self.state == "working" and enough

    @property
    def next_states(self) -> frozenset[str]:
        """Where it may go from here."""
        return TRANSITIONS[self.state]


@dataclass(frozen=True)
class HistoryEntry:
    """One step of a request.

    ``from_state`` is empty for the first, and equal for a change of level and for one more mark.
    """

    time: str
    actor: str
    role: str
    from_state: str
    to_state: str
    needed: str
    reached: str
    why: str

    @property
    def is_one_more_mark(self) -> bool:
        """Whether somebody marked what was marked, and nothing else changed."""
        return self.from_state == self.to_state and self.why.startswith(_MARKED_TOO)

    @property
    def is_need_alone(self) -> bool:
        """Whether only the level that is needed changed."""
        return self.from_state == self.to_state and self.why.startswith(NEED_CHANGED)


def words_of_mark(reason: str, note: str) -> tuple[str, str, str]:
    """Write into the history what a mark of something that has a request says.

    Returns
    -------
    need, agreed, too
        Where it raises the level, makes a proposal a request, and changes nothing.

    Examples
    --------
    >>> words_of_mark("quality", "blurred")[1:]
    ('agreed: quality. blurred', 'marked, too: quality. blurred')
    """
    said = f"{reason}. {note}" if note else reason
    return f"{NEED_CHANGED}: {note or reason}", f"{_AGREED}{said}", f"{_MARKED_TOO}{said}"


def agreed_reason(why: str) -> str:
    """Reason of who agreed to a proposal; empty where they gave none.

    Examples
    --------
    >>> agreed_reason("agreed: quality. blurred"), agreed_reason("as a letter says")
    ('quality', '')
    """
    reason = why.removeprefix(_AGREED).partition(". ")[0]
    return reason if why.startswith(_AGREED) and reason in REASONS else ""


@dataclass(frozen=True)
class Cover:
    """A request that covers a study or series, as a viewer's badge needs it."""

    request_id: str
    target_kind: str
    state: str
    reason: str
    needed: str
    reached: str


@dataclass(frozen=True)
class MarkStatus:
    """Whether a study or series is marked.

    Parameters
    ----------
    marked
        It is out of training.
    covers
        Why: live requests on the series, the study, the patient, in this order.
    proposals
        Open proposals, which a person has to decide.
    series_marked
        For a study: live requests on single series of it.
    """

    marked: bool
    covers: tuple[Cover, ...]
    proposals: tuple[Cover, ...]
    series_marked: int = 0


def filters_of(
    states: Collection[str],
    target_kind: str | None,
    target_id: str | None,
    reason: str | None,
    marked_by: str | None,
) -> Sequence[ColumnElement[bool]]:
    """Conditions of a list of requests.

    Raises
    ------
    InvalidInputError
        Unknown state, kind or reason.
    """
    for value, known, what in (
        *((s, STATES, "state") for s in states),
        (target_kind, KINDS, "kind of target"),
        (reason, REASONS, "reason"),
    ):
        if value is not None and value not in known:
            raise InvalidInputError(f"{str(value)[:40]!r} is no {what}; use one of {known}.")
    where: list[ColumnElement[bool]] = []
    if states:
        where.append(FORGET_REQUEST.c.state.in_(sorted(states)))
    for column, wanted in (
        ("target_kind", target_kind),
        ("reason", reason),
        ("target_id", target_id),
        ("marked_by", marked_by),
    ):
        if wanted is not None:
            wanted = clean_text(wanted, "a filter", 400, empty=True)
            where.append(FORGET_REQUEST.c[column] == wanted)
    return where


def request_of(
    row: AnyRow,
    covers: Sequence[AnyRow],
    studies: tuple[str, ...] = (),
    agreed: tuple[str, str] = ("", ""),
) -> ForgetRequest:
    """Read a request from its row, what covers it, the studies kept with it, and who agreed."""
    return ForgetRequest(
        request_id=row.id,
        target=Target(row.target_kind, row.target_id, row.issuer, row.model),
        study=row.study,
        person=person_name(row.person_id, row.person_issuer) if row.person_id else "",
        reason=row.reason,
        note=row.note,
        state=row.state,
        needed=row.needed,
        reached=row.reached,
        source=row.source,
        marked_by=row.marked_by,
        marked_role=row.marked_role,
        created=row.created,
        updated=row.updated,
        covered_by=tuple(str(c.id) for c in covers if c.id != row.id),
        studies=studies,
        agreed_by=agreed[0],
        agreed_why=agreed[1],
    )


def checked_actor(actor: str, role: str) -> tuple[str, str]:
    """Return actor and role, or raise when they cannot be recorded."""
    return (
        clean_text(actor, "the acting person", _ACTOR_LENGTH),
        clean_text(role, "the role", _ACTOR_LENGTH, empty=True),
    )


def checked_level(level: str) -> str:
    """Return a level that may be asked for, or raise."""
    if level not in LEVELS or level == "none":
        raise InvalidInputError(
            f"{str(level)[:40]!r} is no level to ask for; use one of {LEVELS[1:]}."
        )
    return level


def no_such_request(request_id: str) -> NotFoundError:
    """Make the error for an id that no request has."""
    return NotFoundError(
        f"no forget request {str(request_id)[:40]!r}; list the requests to see their ids."
    )
