"""Which requests an unlearning is about, and what has to be done for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from segunlearn.app.audit_choice import Choice, choose
from segunlearn.app.audit_files import Audits
from segunlearn.app.audit_targets import (
    DECIDED,
    TAUGHT,
    People,
    Targets,
    cases_of,
    lineage_of,
    names_of,
    taught_cases,
)
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.structures import versions_that_know_structure
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_reach import (
    ledger_cases,
    models_that_know,
    show_what_was_forgotten,
    versions_that_know,
)
from segunlearn.app.unlearn_replay import ROLE, replayed_cases
from segunlearn.audit.policy import Level
from segunlearn.cases import Case
from segunlearn.errors import ConflictError, InvalidInputError
from segunlearn.records.coverage import Subject
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_states import highest
from segunlearn.records.ledger import LedgerCase
from segunlearn.records.targets import person_name, split_person, unpad
from segunlearn.records.versions import VersionInfo, VersionRegistry

#: Why a request waits for a training again, and what to do.
UNMEASURED: Final = (
    "the model knows images of it that were only replayed, and what it remembers of those without "
    "a label cannot be measured. Label them, or train from random weights (segunlearn train "
    "--again): the versions that know them are sealed then"
)
#: Why a request about a patient waits for others, and what to do.
RENAMED: Final = (
    "the patient has studies here that were trained on under another PatientID, which the archive "
    "has changed since: the ledger knows them by that alone. Mark and approve these studies, too, "
    "or the former PatientID"
)
#: States in which a request may be worked on.
OPEN = ("approved", "working", "refused")
_PAGE = 500

Known = tuple[ForgetRequest, list[LedgerCase], list[VersionInfo]]
"""A request, its cases in the ledger, and the versions that know one of them."""


@dataclass(frozen=True)
class UnlearnChoice:
    """What is to be done.

    Parameters
    ----------
    original
        The version that is unlearned from; None when no request needs it.
    sets
        Who is in which set, as the audit will choose them; None likewise.
    requests
        About what the served model knows.
    elsewhere
        Requests about what only older versions know: these are sealed, nothing is unlearned.
    never
        Requests about what no version of any model was taught.
    outdated
        Versions that know what ``elsewhere`` is about.
    there
        Requests about what only other models know: these have to be unlearned.
    unmeasured
        Requests about what the served model knows from replayed images without labels: no audit
        can measure it, and a training again has to take them out.
    renamed
        Requests about a patient whose studies were trained on under another PatientID, as far as no
        other request is about these.
    others
        By the id of a request, the other models that know its target: until they are unlearned,
        too, it is not fulfilled.
    know
        Versions that know what ``requests`` are about.
    level
        To reach.
    needed
        Highest level that the requests need.
    also
        Requests whose studies are forgotten with them, and whose states stay: they are only hidden
        in the original, and what is made from it could show them.
    back
        Requests that are restored, where ``requests`` are forgotten again beside them.
    stay
        Ids of requests whose keys then seal ``know``.
    """

    original: VersionInfo | None
    sets: Choice | None
    requests: tuple[ForgetRequest, ...]
    elsewhere: tuple[ForgetRequest, ...]
    never: tuple[ForgetRequest, ...]
    know: tuple[VersionInfo, ...]
    level: Level
    needed: Level
    also: tuple[ForgetRequest, ...] = ()
    back: tuple[ForgetRequest, ...] = ()
    stay: tuple[str, ...] = ()
    outdated: tuple[VersionInfo, ...] = ()
    there: tuple[ForgetRequest, ...] = ()
    unmeasured: tuple[ForgetRequest, ...] = ()
    renamed: tuple[ForgetRequest, ...] = ()
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_sealed(self) -> bool:
        """Whether weights are left to seal for ``elsewhere``."""
        return any(v.weights_state != "destroyed" for v in self.outdated)

    def check_expected(self, expected: Sequence[str]) -> None:
        """Compare every request that a plan of this names with those that one has named.

        Raises
        ------
        ConflictError
            They are others.
        """
        named = (
            *self.back, *self.requests, *self.also, *self.elsewhere, *self.there,
            *self.unmeasured, *self.renamed, *self.never,
        )  # fmt: skip
        ids, shown = {r.request_id for r in named}, set(expected)
        changes = ((ids - shown, "came to it"), (shown - ids, "went"))
        told = [f"{', '.join(sorted(which))} {what}" for which, what in changes if which]
        if told:
            raise ConflictError(
                f"this is not what the plan showed: {'; '.join(told)}. Nothing was begun. Look at "
                "the plan again, and confirm that."
            )


def choose_unlearning(
    order: UnlearnOrder,
    home: Home,
    records: Records,
    registry: VersionRegistry,
    cases: Sequence[Case],
) -> UnlearnChoice:
    """Sort the requests and choose the sets; nothing is changed.

    But studies at hand that stand under a marked patient's number are kept with its request.

    Parameters
    ----------
    order
        What is asked for.
    home, records, registry
        Of the installation.
    cases
        Every labelled case at hand, those marked for forgetting too.

    Raises
    ------
    ConflictError
        Nothing is approved, a named request is in another state, or the generator to replay knows
        what is to be forgotten.
    NotFoundError
        No such request, or no generator to replay.
    InvalidInputError, LabelError
        The served version knows a structure that is named; only other models know what is named;
        it is known from replayed images without labels, or by another PatientID; or the sets cannot
        be made, see
        ``audit_choice.choose``.
    """
    records.without_forgotten(cases)  # who was trained on under another number is found by study
    asked = asked_for(order.requests, records)
    audits = Audits(home)  # an audit's signature is verified once for all requests
    never, elsewhere, known, there = [], [], [], []
    model = registry.root.name
    others = {}
    for request in asked:
        models = models_that_know(audits, records, request)
        if models and model not in models:
            there.append(request)
        if left := tuple(m for m in models if m != model):
            others[request.request_id] = left
    active = registry.active()
    in_service = active.version if active is not None else ""
    here = [r for r in asked if r not in there]
    if there and (order.requests or not here):
        raise InvalidInputError(_only_there(there[0], model, others[there[0].request_id]))
    studies = [r for r in here if r.target.kind != "structure"]
    renamed = [r for r in studies if _is_renamed(records, r, cases)]
    studies = [r for r in studies if r not in renamed]
    served = versions_that_know_cases(audits, records, registry, studies)
    for request, cases_, versions in served:
        if not cases_:
            never.append(request)
        elif in_service in {v.version for v in versions}:
            known.append(request)
        else:
            elsewhere.append(request)
    for request in [r for r in here if r.target.kind == "structure"]:
        versions = versions_that_know_structure(records, registry, request.target.id)
        why_not = _not_here(request, registry, versions, in_service)
        if not why_not:
            elsewhere.append(request)
            served.append((request, [], versions))
        elif order.requests or not studies:
            raise InvalidInputError(why_not)
    if renamed and (order.requests or not [*never, *elsewhere, *known]):
        raise InvalidInputError(
            f"forget request {renamed[0].request_id} cannot be unlearned: {RENAMED}."
        )
    original, sets, also, unmeasured = None, None, [], []
    if known and active is not None:
        original = _original(registry, active)
        unmeasured = _unmeasured(known, records, original, cases)
        known = [r for r in known if r not in unmeasured]
        if unmeasured and (order.requests or not [*never, *elsewhere, *known]):
            raise InvalidInputError(
                f"forget request {unmeasured[0].request_id} cannot be unlearned: {UNMEASURED}."
            )
    needed: Level = highest(r.needed for r in [*never, *elsewhere, *known])
    if original is not None and known:
        ids = tuple(r.request_id for r in known)
        shown = show_what_was_forgotten(audits, records, registry, [original], hidden=True)
        also = [r for r, _ in shown if r.request_id not in ids]
        ids += tuple(r.request_id for r in also)
        sets = choose(
            records, registry, cases, candidate=original.version, original=original.version,
            targets=Targets(requests=ids), replayed=replayed_cases(order, records, original),
        )  # fmt: skip
    return UnlearnChoice(
        original=original if known else None,
        sets=sets,
        requests=tuple(known),
        elsewhere=tuple(elsewhere),
        never=tuple(never),
        know=_of(known, served),
        outdated=_of(elsewhere, served),
        level=order.level_for(needed),
        needed=needed,
        also=tuple(also),
        there=tuple(there),
        unmeasured=tuple(unmeasured),
        renamed=tuple(renamed),
        others=others,
    )


def _is_renamed(records: Records, request: ForgetRequest, cases: Sequence[Case]) -> bool:
    """Whether a patient has trained images that neither it nor another request is about."""
    if request.target.kind != "patient":
        return False
    person = People([names_of(request)[0][1]])
    own = [c for c in cases if person_name(*split_person(c.person)) in person]
    known = {c.series for c in ledger_cases(records.ledger, request)}
    left = [
        Subject(c.series, c.study, c.person)
        for c in own
        if unpad(c.series) not in known and taught_cases(records.ledger, [("series", c.series)])
    ]
    marks = records.forget_set.status(series=left)
    return any(
        not any(c.request_id != request.request_id and c.state in DECIDED for c in status.covers)
        for status in marks.values()
    )


def _unmeasured(
    requests: Sequence[ForgetRequest],
    records: Records,
    original: VersionInfo,
    cases: Sequence[Case],
) -> list[ForgetRequest]:
    """Find requests about a series that was only replayed to a version, and has no label."""
    labelled = {unpad(c.series) for c in cases if c.label is not None}
    taught = [c for c in lineage_of(records.ledger, original) if c.role in TAUGHT]
    trained = {c.series for c in taught if c.role != ROLE}
    found = []
    for request in requests:
        series = {c.series for c in cases_of(names_of(request), taught)}
        # none: it was replayed to a later version, which only hides and is not unlearned from
        if not series or series - trained - labelled:
            found.append(request)
    return found


def _of(requests: Sequence[ForgetRequest], found: Sequence[Known]) -> tuple[VersionInfo, ...]:
    """Versions that know what some of the requests are about, oldest first."""
    know = {v.version: v for r, _, versions in found if r in requests for v in versions}
    return tuple(know[v] for v in sorted(know, key=lambda n: int(n[1:])))


def versions_that_know_cases(
    audits: Audits,
    records: Records,
    registry: VersionRegistry,
    requests: Sequence[ForgetRequest],
    level: Level = "unlearned",
) -> list[Known]:
    """For each request: its cases in the ledger, and the versions that know one of them.

    Those know it that did not reach the level, or what the request needs where that is more.
    """
    found = []
    for request in requests:
        cases = ledger_cases(records.ledger, request)
        least = highest([level, request.needed])
        know = versions_that_know(audits, records, registry, {c.series for c in cases}, least)
        found.append((request, cases, know))
    return found


def asked_for(ids: Sequence[str], records: Records) -> list[ForgetRequest]:
    """Read the named requests; without names, every one that waits to be unlearned.

    Raises
    ------
    ConflictError
        Nothing is approved, or a named request is in another state.
    NotFoundError
        No such request.
    """
    if ids:
        asked = [records.forget_set.get(r) for r in dict.fromkeys(ids)]
        for request in asked:
            if request.state not in OPEN:
                raise ConflictError(
                    f"forget request {request.request_id} is {request.state}; only approved ones "
                    "are worked on." + _advice(request.state)
                )
    else:
        asked, offset = [], 0
        while page := records.forget_set.list(
            states=("approved", "working"), limit=_PAGE, offset=offset
        ):
            asked += page
            offset += len(page)
        if not asked:
            raise ConflictError(
                "no forget request is approved, so there is nothing to unlearn. Approve one "
                "(segunlearn forget approve), or name a refused one to try it again."
            )
    return asked


def _not_here(
    request: ForgetRequest,
    registry: VersionRegistry,
    know: Sequence[VersionInfo],
    active: str,
) -> str:
    """Say why a request about a structure cannot be fulfilled now; empty when it can."""
    structure, model = request.target.id, request.target.model
    if model not in ("", registry.root.name):
        return (
            f"forget request {request.request_id} is about a structure of the model {model}, not "
            f"of {registry.root.name}. Unlearn it there."
        )
    if active not in {v.version for v in know}:
        return ""
    return (
        f"forget request {request.request_id} is about the structure {structure}, which "
        f"{active} was taught: studies and people are taken out of weights here, a "
        "structure by training again. Every training takes it for background from its mark on: "
        "train from random weights (segunlearn train --again), then come back; the versions that "
        "know it are sealed then."
    )


def _only_there(request: ForgetRequest, model: str, others: Sequence[str]) -> str:
    """Say which model has to be unlearned for a request."""
    return (
        f"forget request {request.request_id} is about what only {', '.join(others)} knows by now, "
        f"not {model}. Unlearn it there: segunlearn unlearn --model {others[0]}."
    )


def _advice(state: str) -> str:
    if state in ("requested", "proposed"):
        return " Approve it first (segunlearn forget approve)."
    if state == "fulfilled":
        return " It can be restored or purged."
    return ""


def _original(registry: VersionRegistry, active: VersionInfo) -> VersionInfo:
    """Find the version to unlearn from: not one that only hides what is to be forgotten."""
    version = active
    while version.details.get("hides") and version.parent_sha256:
        parent = registry.get(version.parent_sha256)
        if parent.weights_state != "here":  # sealed: hiding it was all that was asked for
            break
        version = parent
    return version
