"""The forget set: which patients, studies, series and structures must be forgotten.

A mark lives here and nowhere else: not in the platform's datastore, which loses updates and drops
marks when a file vanishes, and with no reference to any image, so that a study that was never
downloaded, was deleted or comes back under the same UID is marked all the same. A request is never
deleted and its target never changes; its state follows ``forget_states.TRANSITIONS``.

From the moment ``mark`` returns, ``exclude`` leaves the target out, in every process, across
restarts. A run that had its list of cases before goes on with it: its ledger row says that it used
the study, and unlearning finds the version there.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, literal_column, select, text
from sqlalchemy.dialects import postgresql, sqlite

from segunlearn.cases import Case
from segunlearn.errors import ConflictError, InvalidInputError
from segunlearn.records.coverage import Subject, covering, with_known_parents
from segunlearn.records.forget_requests import (
    NOTE_LENGTH,
    ForgetRequest,
    HistoryEntry,
    MarkStatus,
    checked_actor,
    checked_level,
    no_such_request,
    words_of_mark,
)
from segunlearn.records.forget_states import LIVE, NEEDED_LEVEL, REASONS, at_least
from segunlearn.records.forget_steps import ForgetSteps, OnChange
from segunlearn.records.patient_studies import keep, met_now, still_to_keep
from segunlearn.records.store import AnyRow, utc_now
from segunlearn.records.tables import FORGET_HISTORY, FORGET_REQUEST
from segunlearn.records.targets import (
    Target,
    clean_text,
    instance_id,
    make_target,
    person_name,
    split_person,
)

__all__ = ["NOTE_LENGTH", "ForgetRequest", "ForgetSet", "HistoryEntry", "MarkStatus", "OnChange"]

Filtered = tuple[list[Case], list[tuple[Case, str]]]
"""Cases kept, and cases left out with the request that says so."""


class ForgetSet(ForgetSteps):
    """Forget requests in the store.

    Roles are checked by the caller, who knows its users; here they are recorded.

    Parameters
    ----------
    store
        From :func:`segunlearn.records.store.open_store`.
    on_change
        Called inside the transaction of every step of a history, for documents that must not be
        lost (``Outbox.enqueue``); when it raises, nothing is changed.
    """

    def mark(
        self,
        target_kind: str,
        target_id: str,
        reason: str,
        note: str = "",
        actor: str = "",
        *,
        role: str = "",
        issuer: str = "",
        model: str = "",
        study: str = "",
        person: str = "",
        studies: Iterable[str] = (),
        needed: str | None = None,
        opaque: bool = False,
    ) -> tuple[ForgetRequest, bool]:
        """Mark a target for forgetting; on return the mark survives a power cut.

        Marking a target that has an open request changes nothing in it, except that a proposal
        becomes a request: a person said so; and that a level is raised where ``needed``, or a
        reason other than ``other``, asks for more. What else is said stands in the history, once:
        who marked it first cannot take back alone what others want, too. A series whose study or
        patient is marked gets a request of its own, which ``covered_by`` explains, so that it stays
        marked when the wider one is withdrawn.

        Parameters
        ----------
        target_kind, target_id, issuer, model, opaque
            See :func:`segunlearn.records.targets.make_target`.
        reason, note
            Code of ``REASONS``, and a text of at most ``NOTE_LENGTH`` characters, which ``other``
            needs.
        actor, role
            Who marks; the actor must not be empty.
        study, person
            What the target belongs to, if known; else what the ledger knows.
        studies
            Of a patient, as the archive lists them; see :meth:`keep_studies`.
        needed
            Assurance level, if not the reason's own.

        Returns
        -------
        request, created
            ``created`` is False when the target was marked (or proposed) before.

        Raises
        ------
        InvalidInputError, InvalidIdentifierError
            A value is wrong; nothing was changed.
        ConflictError
            It was fulfilled at a lower level than is asked for.
        """
        target = make_target(target_kind, target_id, issuer=issuer, model=model, opaque=opaque)
        return self._enter(
            target, "requested", "person", reason, note, actor, role, study, person, needed, opaque,
            tuple(studies),
        )  # fmt: skip

    def wait_for_marks(self) -> None:
        """Return once every mark under way is made or undone; later readers see those made.

        ``on_change`` acts on what it finds, in a transaction that nobody sees before it ends. So
        who puts something in its way asks again after this, and meanwhile holds no lock that such
        a hook takes.

        Raises
        ------
        UnavailableError
            A mark takes too long.
        """
        with self._store.write() as connection:  # SQLite lets one write at a time
            if self._store.dialect == "postgresql":
                connection.execute(text(f"LOCK TABLE {FORGET_REQUEST.name} IN SHARE MODE"))

    def propose(
        self,
        target_kind: str,
        target_id: str,
        reason: str,
        note: str,
        source: str,
        *,
        actor: str = "system",
        study: str = "",
        person: str = "",
        issuer: str = "",
        opaque: bool = False,
    ) -> tuple[ForgetRequest, bool]:
        """Record what another system asks for; nothing is excluded until a person agrees.

        Parameters and errors as for :meth:`mark`; ``source`` says where it came from. A target
        with an open request, or an open proposal, is left as it is.
        """
        target = make_target(target_kind, target_id, issuer=issuer, opaque=opaque)
        source = clean_text(source, "the source", 64)
        return self._enter(
            target, "proposed", source, reason, note, actor, "system", study, person, None, opaque
        )

    def _enter(
        self,
        target: Target,
        state: str,
        source: str,
        reason: str,
        note: str,
        actor: str,
        role: str,
        study: str,
        person: str,
        needed: str | None,
        opaque: bool,
        studies: Sequence[str] = (),
    ) -> tuple[ForgetRequest, bool]:
        if reason not in REASONS:
            raise InvalidInputError(f"{str(reason)[:40]!r} is no reason; use one of {REASONS}.")
        note = clean_text(note, "the note", NOTE_LENGTH, empty=reason != "other")
        actor, role = checked_actor(actor, role)
        asked = needed is not None or reason != "other"  # which says nothing of a level
        needed = checked_level(needed) if needed is not None else NEEDED_LEVEL[reason]
        study = instance_id("study", study, opaque=opaque) if study else ""
        patient = Target("patient", *split_person(person))
        if person and not opaque:  # of files it may be a name, longer than a PatientID
            patient = make_target("patient", person, opaque=True)  # nobody is asked for it
        with self._store.write() as connection:
            if state in LIVE:
                self._hold_off_runs(connection)
            now = utc_now()
            request, created = self._find_open(connection, target), False
            if request is None:
                subject = Subject(
                    target.id if target.kind == "series" else "",
                    target.id if target.kind == "study" else study,
                    person_name(patient.id, patient.issuer) if patient.id else "",
                )
                (subject,) = with_known_parents(self._store, connection, [subject])
                person_id, person_issuer = split_person(subject.person)
                values = {
                    "id": uuid.uuid4().hex,
                    "target_kind": target.kind,
                    "target_id": target.id,
                    "issuer": target.issuer,
                    "model": target.model,
                    "study": subject.study if target.kind == "series" else "",
                    "person_id": person_id if target.kind in ("series", "study") else "",
                    "person_issuer": person_issuer if target.kind in ("series", "study") else "",
                    "reason": reason,
                    "note": note,
                    "state": state,
                    "is_open": 1,
                    "is_live": int(state in LIVE),
                    "needed": needed,
                    "reached": "none",
                    "source": source,
                    "marked_by": actor,
                    "marked_role": role,
                    "created": now,
                    "updated": now,
                }
                created = self._insert(connection, values)
                request = self._find_open(connection, target)
                if request is None:
                    raise ConflictError("the request changed at the same moment; try again.")
            self._keep(connection, request, studies, now)
            if created:
                entry = HistoryEntry(now, actor, role, "", state, needed, "none", note)
                self._add_history(connection, request, entry)
            if not created and state == "requested":
                before, words = request, words_of_mark(reason, note)
                if asked:
                    request = self._raise_need(connection, before, needed, actor, role, words[0])
                if request.state == "proposed":
                    self._move(connection, request, "requested", actor, role, words[1], None)
                elif request is before and (actor, reason, note) != (
                    before.marked_by, before.reason, before.note,
                ):  # fmt: skip
                    self._note_mark(connection, before, actor, role, words)
            return self._requests(connection, [FORGET_REQUEST.c.id == request.id])[0], created

    def keep_studies(self, request_id: str, studies: Iterable[str]) -> list[str]:
        """Go on covering studies of a marked patient, whatever number the archive gives them later.

        With those given, what runs recorded of the patient. Studies only come to a request; one
        that is closed, or is not about a patient, takes none.

        Parameters
        ----------
        request_id
            Of the request.
        studies
            That stand under the patient's number now.

        Returns
        -------
        list of str
            Those that came to it.

        Raises
        ------
        NotFoundError
            No such request.
        """
        given = tuple(studies)
        with self._store.read() as connection:  # nearly always there is nothing to write
            query = select(FORGET_REQUEST).where(FORGET_REQUEST.c.id == request_id)
            row = connection.execute(query).one_or_none()
            if row is None:
                raise no_such_request(request_id)
            if not still_to_keep(self._store, connection, row, given):
                return []
        return self._keep_all({request_id: given})

    def _keep_all(self, found: Mapping[str, Collection[str]]) -> list[str]:
        """Keep studies with some requests; gives those that came to any of them."""
        query = select(FORGET_REQUEST).where(self._store.among(FORGET_REQUEST.c.id, sorted(found)))
        with self._store.write() as connection:
            self._hold_off_runs(connection)
            query = self._locking(query.order_by(FORGET_REQUEST.c.seq))  # one order: no deadlock
            rows, now = connection.execute(query).all(), utc_now()
            return [uid for row in rows for uid in self._keep(connection, row, found[row.id], now)]

    def _keep(
        self, connection: Connection, row: AnyRow, studies: Collection[str], now: str
    ) -> list[str]:
        new = still_to_keep(self._store, connection, row, studies)
        keep(self._store, connection, row, new, now)
        return new

    def _raise_need(
        self, connection: Connection, row: AnyRow, needed: str, actor: str, role: str, why: str
    ) -> AnyRow:
        settled = row.state in ("fulfilled", "purged")
        if at_least(row.reached if settled else row.needed, needed):
            return row
        if settled:
            then = (
                "restore it, mark it anew for that level, and unlearn it"
                if row.state == "fulfilled"
                else "what led back is destroyed; 'segunlearn train --again' makes a version that "
                "never saw it"
            )
            raise ConflictError(
                f"forget request {row.id} is {row.state} at {row.reached!r}, and {needed!r} is "
                f"asked for now. Nothing was changed: {then}."
            )
        self._change(connection, row, row.state, needed, row.reached, actor, role, why)
        return self._locked(connection, row.id)

    def _note_mark(
        self, connection: Connection, row: AnyRow, actor: str, role: str, words: Sequence[str]
    ) -> None:
        """Write down that somebody marked what is marked, unless they said just that before."""
        said = select(FORGET_HISTORY.c.seq).where(
            FORGET_HISTORY.c.request_seq == row.seq,
            FORGET_HISTORY.c.actor == actor,
            FORGET_HISTORY.c.why.in_(list(words)),
        )
        if connection.execute(said.limit(1)).first() is not None:
            return
        same = (row.state, row.state, row.needed, row.reached)
        entry = HistoryEntry(utc_now(), actor, role, *same, words[-1])
        self._add_history(connection, row, entry)

    def _find_open(self, connection: Connection, target: Target) -> AnyRow | None:
        query = select(FORGET_REQUEST).where(
            FORGET_REQUEST.c.target_kind == target.kind,
            FORGET_REQUEST.c.target_id == target.id,
            FORGET_REQUEST.c.issuer == target.issuer,
            FORGET_REQUEST.c.model == target.model,
            FORGET_REQUEST.c.is_open == literal_column("1"),
        )
        return connection.execute(self._locking(query)).one_or_none()

    def _insert(self, connection: Connection, values: dict[str, Any]) -> bool:
        """Insert unless another process has just marked the same target."""
        columns = ["target_kind", "target_id", "issuer", "model"]
        where = FORGET_REQUEST.c.is_open == literal_column("1")
        dialect: Any = postgresql if self._store.dialect == "postgresql" else sqlite
        statement = dialect.insert(FORGET_REQUEST).values(values)
        statement = statement.on_conflict_do_nothing(index_elements=columns, index_where=where)
        return bool(connection.execute(statement).rowcount)

    def exclude(self, cases: Sequence[Case], *, besides: Collection[str] = ()) -> Filtered:
        """Leave out every case whose series, study or patient has a live request.

        The one filter of training, validation, active learning, scoring and adaptation. Studies of
        DICOM that are met under a marked patient's number are kept with the request; of files a
        wrong person is somebody's slip, and ends with it.

        Parameters
        ----------
        cases
            Of any kind that names series, study and person.
        besides
            Ids of requests that do not count: they are being restored.

        Returns
        -------
        kept, excluded
            Both in the given order; each excluded case with the id of its nearest request.
        """
        subjects = [Subject(c.series, c.study, c.person) for c in cases]
        with self._store.read() as connection:
            covers = covering(self._store, connection, subjects)
            met = met_now(self._store, connection, subjects, covers)
        if met:
            self._keep_all(met)
        covers = [[r for r in rows if str(r.id) not in besides] for rows in covers]
        kept = [c for c, rows in zip(cases, covers, strict=True) if not rows]
        out = [(c, str(rows[0].id)) for c, rows in zip(cases, covers, strict=True) if rows]
        return kept, out
