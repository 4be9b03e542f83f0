"""Where the forget set meets the PACS and the studies: documents, proposals, what is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sqlalchemy import Connection

from segunlearn.app.pacs_sync import PacsSync
from segunlearn.dicom.identifiers import is_uid
from segunlearn.dicom.rejection import Proposal
from segunlearn.dicom.retraction import TITLES
from segunlearn.errors import NotFoundError
from segunlearn.records.coverage import Subject
from segunlearn.records.forget_set import ForgetRequest, ForgetSet, HistoryEntry, OnChange
from segunlearn.records.outbox import Outbox, PacsSeen
from segunlearn.records.runs import Runs

if TYPE_CHECKING:
    from segunlearn.records.ledger import Ledger

#: Who acts while authentication is off.
UNKNOWN_ACTOR = "unknown (authentication is off)"
#: Kind under which ``PacsSeen`` keeps what other systems took back.
REVOCATIONS = "revocation"

Mark = Literal["forget", "keep"]


class Catalogue(Protocol):
    """What is known of the studies themselves."""

    def subject(self, kind: str, target_id: str) -> Subject | None:
        """Study and person of a study or series in the list of images; None when not listed."""

    def subjects(self, targets: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Subject]:
        """Those of many kinds and ids that are known, or can be learnt with few questions."""

    def holds(self, kind: str, target_id: str) -> bool | None:
        """Whether the studies hold a study or series; None when that cannot be said now."""

    def studies(self, patient_id: str, issuer: str) -> list[str] | None:
        """Studies that stand under a PatientID now; None when that cannot be said."""

    def issuers(self, patient_id: str) -> set[str]:
        """Issuers of a PatientID in the list of images, the empty one for studies without."""


@dataclass(frozen=True)
class Marked:
    """Outcome of a mark: the request, its state, whether it is new, and a sentence for a person."""

    request_id: str | None
    state: str
    created: bool
    message: str


class MarkStudy(Protocol):
    """Marks (or keeps) the study of an image; raises ``NotFoundError`` for unknown images."""

    def __call__(self, image_id: str, mark: Mark, reason: str, actor: str, admin: bool) -> Marked:
        """Do it; ``admin`` may take back what others marked."""


@dataclass(frozen=True)
class Forgetting:
    """Everything that the forget routes need.

    Parameters
    ----------
    forget_set, ledger, runs
        The records.
    outbox, seen, sync
        Documents for the PACS; None where the studies are files.
    catalogue
        The studies; None where only the records are at hand.
    opaque
        Ids of studies and series are file names, not UIDs.
    after
        Called after every change of a request.
    """

    forget_set: ForgetSet
    ledger: Ledger
    runs: Runs
    outbox: Outbox | None = None
    seen: PacsSeen | None = None
    sync: PacsSync | None = None
    catalogue: Catalogue | None = None
    opaque: bool = False
    after: Callable[[], None] | None = None

    def wake(self) -> None:
        """Send documents now, and let the server see to what else follows a change."""
        if self.after is not None:
            self.after()
        if self.sync is not None:
            self.sync.wake()


def reporting(outbox: Outbox) -> OnChange:
    """Make the hook that writes a document's row in the transaction of each change.

    Proposals are nobody's decision yet, structures have no instances, and ids that are not UIDs
    name nothing in a PACS: these have no documents.
    """

    def report(connection: Connection, request: ForgetRequest, entry: HistoryEntry) -> None:
        target = request.target
        if request.state not in TITLES or target.kind == "structure":
            return
        if entry.is_need_alone or entry.is_one_more_mark:
            return
        if target.kind != "patient" and not is_uid(target.id, strict=False):
            return
        lane = f"study:{request.study}" if request.study else f"{target.kind}:{target.id}"
        payload = {
            "target_kind": target.kind,
            "target_id": target.id,
            "issuer": target.issuer,
            "state": request.state,
            "reason": request.stated_reason,
            "needed": request.needed,
            "reached": request.reached,
            "changed": entry.time,
        }
        outbox.enqueue(connection, lane=lane, request_id=request.request_id, payload=payload)

    return report


def in_turn(*hooks: OnChange) -> OnChange:
    """Make one hook of several."""

    def all_of_them(connection: Connection, request: ForgetRequest, entry: HistoryEntry) -> None:
        for hook in hooks:
            hook(connection, request, entry)

    return all_of_them


def proposing(forget_set: ForgetSet, seen: PacsSeen) -> Callable[[Proposal], bool]:
    """Make the function that writes proposals of the PACS into the forget set.

    A document that takes something back makes no proposal of its own: it is kept beside the
    requests of its study, for the person who decides on them.
    """

    def propose(proposal: Proposal) -> bool:
        if proposal.kind == "withdraw":
            extent = proposal.extent()
            known = seen.notes(REVOCATIONS, [proposal.study_uid])
            note = json.dumps(
                {
                    "text": f"{proposal.text}. {extent}" if extent else proposal.text,
                    "source": proposal.source,
                    "document": proposal.source_document_uid,
                    "series": list(proposal.series_uids),
                }
            )
            seen.remember(REVOCATIONS, {proposal.study_uid: note})
            return known.get(proposal.study_uid) != note
        text = f"Document {proposal.source_document_uid or 'none'}."
        if proposal.purge:
            text += " The erasure should be made final (purge)."
        targets = [("series", uid, proposal.extent(uid)) for uid in proposal.series_uids]
        created = [
            forget_set.propose(
                kind,
                uid,
                proposal.reason,
                " ".join(part for part in (f"{proposal.text}.", extent, text) if part),
                proposal.source,
                study=proposal.study_uid if kind == "series" else "",
            )[1]
            for kind, uid, extent in targets or [("study", proposal.study_uid, "")]
        ]
        return any(created)

    return propose


def revocation_of(seen: PacsSeen | None, request: ForgetRequest) -> dict[str, Any] | None:
    """Look up what another system took back about the study of a request, None when nothing."""
    study = request.study if request.target.kind == "series" else request.target.id
    if seen is None or not study:
        return None
    note = seen.notes(REVOCATIONS, [study]).get(study)
    found: dict[str, Any] | None = json.loads(note) if note is not None else None
    return found


def marking(services: Callable[[], Forgetting]) -> MarkStudy:
    """Make the function with which stock clients mark the study of the image they show."""

    def mark(image_id: str, mark: Mark, reason: str, actor: str, admin: bool) -> Marked:
        records = services()
        catalogue = records.catalogue
        subject = catalogue.subject("series", image_id) if catalogue is not None else None
        if subject is None:
            raise NotFoundError(
                f"image {image_id!r:.80} is not among the studies, so it cannot be marked."
            )
        actor, role = actor or UNKNOWN_ACTOR, "admin" if admin else "annotator"
        if mark == "forget":
            request, created = records.forget_set.mark(
                "study", subject.study, reason, "Marked in the viewer", actor,
                role=role, person=subject.person, opaque=records.opaque,
            )  # fmt: skip
            records.wake()
            said = "is marked now" if created else f"was marked before (now {request.state})"
            return Marked(
                request.request_id,
                request.state,
                created,
                f"The study {said}: it is left out of training. Unlearning needs approval.",
            )
        found = records.forget_set.list(
            target_kind="study", target_id=subject.study, states=("requested", "approved"), limit=1
        )
        if not found:
            return Marked(None, "", False, "The study has no mark that can be taken back.")
        request = records.forget_set.withdraw(
            found[0].request_id, actor=actor, role=role, own_only=not admin
        )
        records.wake()
        return Marked(request.request_id, request.state, False, "The mark is taken back.")

    return mark


def subjects(
    catalogue: Catalogue | None, studies: Iterable[str], series: Iterable[str]
) -> tuple[list[Subject], list[Subject]]:
    """Studies and series with their persons, as far as the list of images knows them."""
    whole, parts = [("study", uid) for uid in studies], [("series", uid) for uid in series]
    known = catalogue.subjects([*whole, *parts]) if catalogue is not None else {}
    return (
        [known.get(target, Subject(study=target[1])) for target in whole],
        [known.get(target, Subject(series=target[1])) for target in parts],
    )
