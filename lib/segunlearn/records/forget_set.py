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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from segunlearn.cases import Case
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    IllegalTransitionError,
    InvalidInputError,
)
from segunlearn.records.coverage import (
    Subject,
    agreements,
    covering,
    status_of,
    with_known_parents,
)
from segunlearn.records.forget_requests import (
    NEED_CHANGED,
    NOTE_LENGTH,
    ForgetRequest,
    HistoryEntry,
    MarkStatus,
    checked_actor,
    checked_level,
    filters_of,
    no_such_request,
    request_of,
    words_of_mark,
)
from segunlearn.records.forget_states import (
    CLOSED,
    LEVELS,
    LIVE,
    NEEDED_LEVEL,
    REASONS,
    STATES,
    TRANSITIONS,
    at_least,
)
from segunlearn.records.patient_studies import keep, kept_with, met_now, still_to_keep
from segunlearn.records.store import AnyRow, Store, utc_now
from segunlearn.records.tables import (
    FORGET_HISTORY,
    FORGET_REQUEST,
    FORGET_STUDY,
    LEDGER_CASE,
    LEDGER_ROW,
    RUN,
)
from segunlearn.records.targets import (
    Target,
    clean_text,
    instance_id,
    make_target,
    person_name,
    same_issuer,
    split_person,
)

__all__ = ["NOTE_LENGTH", "ForgetRequest", "ForgetSet", "HistoryEntry", "MarkStatus", "OnChange"]

Filtered = tuple[list[Case], list[tuple[Case, str]]]
"""Cases kept, and cases left out with the request that says so."""

OnChange = Callable[[Connection, ForgetRequest, HistoryEntry], None]


class ForgetSet:
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

    def __init__(self, store: Store, *, on_change: OnChange | None = None) -> None:
        self._store = store
        self._on_change = on_change

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

    def _hold_off_runs(self, connection: Connection) -> None:
        """Let no run begin before others see the mark; one that began is older than it then.

        SQLite lets one write at a time, and the time of the mark is taken inside its transaction.
        """
        if self._store.dialect == "postgresql":
            connection.execute(text(f"LOCK TABLE {RUN.name} IN SHARE MODE"))

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

    def get(self, request_id: str) -> ForgetRequest:
        """Return one request.

        Raises
        ------
        NotFoundError
            No such request.
        """
        with self._store.read() as connection:
            found = self._requests(connection, [FORGET_REQUEST.c.id == request_id])
        if not found:
            raise no_such_request(request_id)
        return found[0]

    def history(self, request_id: str) -> Sequence[HistoryEntry]:
        """Return all steps of a request, oldest first.

        Raises
        ------
        NotFoundError
            No such request.
        """
        query = (
            select(FORGET_HISTORY)
            .join(FORGET_REQUEST, FORGET_REQUEST.c.seq == FORGET_HISTORY.c.request_seq)
            .where(FORGET_REQUEST.c.id == request_id)
            .order_by(FORGET_HISTORY.c.seq)
        )
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        if not rows:
            raise no_such_request(request_id)
        return [
            HistoryEntry(
                r.time, r.actor, r.role, r.from_state, r.to_state, r.needed, r.reached, r.why
            )
            for r in rows
        ]

    def last_change(self) -> int:
        """Return the number of the newest step of any request; it grows with every change."""
        with self._store.read() as connection:
            found: int | None = connection.scalar(select(func.max(FORGET_HISTORY.c.seq)))
        return found or 0

    def list(
        self,
        *,
        states: Collection[str] = (),
        target_kind: str | None = None,
        target_id: str | None = None,
        reason: str | None = None,
        marked_by: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> Sequence[ForgetRequest]:
        """Page through requests, newest first; each filter that is given must agree.

        Raises
        ------
        InvalidInputError
            Unknown state, kind or reason, or a limit outside 0..1000.
        """
        if not 0 <= limit <= 1000 or not 0 <= offset < 2**62:
            raise InvalidInputError(
                f"limit must lie in 0..1000 and offset be at least 0, got {limit} and {offset}."
            )
        where = filters_of(states, target_kind, target_id, reason, marked_by)
        with self._store.read() as connection:
            return self._requests(connection, where, limit, offset)

    def count(
        self,
        *,
        states: Collection[str] = (),
        target_kind: str | None = None,
        target_id: str | None = None,
        reason: str | None = None,
        marked_by: str | None = None,
    ) -> int:
        """Count the requests that :meth:`list` would page through."""
        where = filters_of(states, target_kind, target_id, reason, marked_by)
        query = select(func.count()).select_from(FORGET_REQUEST).where(*where)
        with self._store.read() as connection:
            return int(connection.execute(query).scalar_one())

    def transition(
        self,
        request_id: str,
        to_state: str,
        *,
        actor: str,
        role: str = "",
        why: str = "",
        reached: str | None = None,
    ) -> ForgetRequest:
        """Move a request to another state.

        Parameters
        ----------
        request_id, to_state
            See ``forget_states.TRANSITIONS``.
        actor, role, why
            Who, with which role, and a reason of at most ``NOTE_LENGTH`` characters.
        reached
            Assurance level that an audit found, for ``fulfilled`` and ``refused``.

        Raises
        ------
        NotFoundError
            No such request.
        IllegalTransitionError
            The state forbids it.
        ConflictError
            ``fulfilled`` below the needed level; or, from ``approved``, for a target that a
            recorded run used, or that a run going on now may be using.
        """
        if to_state not in STATES:
            raise InvalidInputError(f"{str(to_state)[:40]!r} is no state; use one of {STATES}.")
        actor, role = checked_actor(actor, role)
        why = clean_text(why, "the reason", NOTE_LENGTH, empty=True)
        reached = checked_level(reached) if reached is not None else None
        with self._store.write() as connection:
            if to_state == "requested":
                self._hold_off_runs(connection)
            row = self._locked(connection, request_id)
            return self._move(connection, row, to_state, actor, role, why, reached)

    def _move(
        self,
        connection: Connection,
        row: AnyRow,
        to_state: str,
        actor: str,
        role: str,
        why: str,
        reached: str | None,
    ) -> ForgetRequest:
        if to_state not in TRANSITIONS[row.state]:
            allowed = ", ".join(sorted(TRANSITIONS[row.state])) or "nothing: it is closed"
            raise IllegalTransitionError(
                f"forget request {row.id} is {row.state} and cannot become {to_state}; "
                f"from {row.state} it may become {allowed}."
            )
        level = reached or row.reached
        if to_state == "restored":
            level = "none"
        if (row.state, to_state) == ("approved", "fulfilled"):
            self._check_never_trained(connection, row)
            level, why = "retrained", why or "never trained on"
        if to_state == "fulfilled" and not at_least(level, row.needed):
            raise ConflictError(
                f"forget request {row.id} needs the level {row.needed!r} and has reached "
                f"{level!r}: it is not fulfilled. Go on working, or let it be refused."
            )
        return self._change(connection, row, to_state, row.needed, level, actor, role, why)

    def _check_never_trained(self, connection: Connection, row: AnyRow) -> None:
        """Refuse when a recorded run used the target, or one going on now may be using it."""
        case = LEDGER_CASE.c
        if row.target_kind == "structure":
            query = select(LEDGER_ROW.c.run_id).limit(1)
            if row.model:
                query = query.where(LEDGER_ROW.c.model == row.model)
            used = connection.execute(query).first() is not None
        elif row.target_kind == "patient":
            query = select(case.person_issuer).where(case.person_id == row.target_id).distinct()
            used = any(same_issuer(i, row.issuer) for i in connection.execute(query).scalars())
            kept = select(FORGET_STUDY.c.study).where(FORGET_STUDY.c.request_seq == row.seq)
            query = select(case.id).where(case.study.in_(kept)).limit(1)
            used = used or connection.execute(query).first() is not None
        else:
            query = select(case.id).where(case[row.target_kind] == row.target_id).limit(1)
            used = connection.execute(query).first() is not None
        if used:
            raise ConflictError(
                f"forget request {row.id}: a recorded run used it, so it is not fulfilled without "
                "unlearning. Start the unlearning (state working)."
            )
        self._check_no_older_run(connection, row)

    def check_no_older_run(self, request_id: str) -> None:
        """Refuse when a run that began before the mark goes on, as it may be using the target.

        A proposal is no mark: that is as old as the word of the person who agreed. A study that
        came to a marked patient later may be in use under another number: for it, what began before
        it came. Once there is no such run there never is again: what the ledger says of the target
        then stays.

        Raises
        ------
        NotFoundError
            No such request.
        ConflictError
            There is one.
        """
        with self._store.write() as connection:
            self._check_no_older_run(connection, self._locked(connection, request_id))

    @staticmethod
    def _check_no_older_run(connection: Connection, row: AnyRow) -> None:
        marked = connection.execute(
            select(FORGET_HISTORY.c.time)
            .where(FORGET_HISTORY.c.request_seq == row.seq, FORGET_HISTORY.c.to_state.in_(LIVE))
            .order_by(FORGET_HISTORY.c.seq)
            .limit(1)
        ).scalar()
        kept = connection.execute(
            select(func.max(FORGET_STUDY.c.added)).where(FORGET_STUDY.c.request_seq == row.seq)
        ).scalar()
        older = [RUN.c.started <= max(marked, kept or "")] if marked is not None else []
        running = connection.execute(
            select(RUN.c.id).where(RUN.c.state == "running", *older).limit(1)
        ).scalar()
        if running is not None:
            raise ConflictError(
                f"forget request {row.id}: run {running} began before the mark, or before "
                "a study came to it, and may be using it. Wait until it has ended, or stop it."
            )

    def approve(self, request_id: str, *, actor: str, role: str = "") -> ForgetRequest:
        """Approve a request; see :meth:`transition`."""
        return self.transition(request_id, "approved", actor=actor, role=role)

    def withdraw(
        self, request_id: str, *, actor: str, role: str = "", why: str = "", own_only: bool = False
    ) -> ForgetRequest:
        """Take a request back before any unlearning; see :meth:`transition`.

        Parameters
        ----------
        own_only
            The actor may withdraw only what they marked, or agreed to, themselves (annotators).

        Raises
        ------
        ForbiddenError
            ``own_only``, and someone else marked it, first or too, or asked for a higher level.
        """
        actor, role = checked_actor(actor, role)
        if own_only:
            asked = {
                h.actor
                for h in self.history(request_id)
                if h.to_state in ("requested", h.from_state)  # marked, agreed to, or raised
            }
            if asked != {actor}:
                raise ForbiddenError(
                    f"forget request {request_id} was marked by someone else, or someone else "
                    "asked for more; ask them or an administrator to withdraw it."
                )
        return self.transition(request_id, "withdrawn", actor=actor, role=role, why=why)

    def set_needed(
        self, request_id: str, level: str, *, actor: str, role: str = "", why: str = ""
    ) -> ForgetRequest:
        """Change the assurance level that a request needs, while it is being dealt with.

        Raises
        ------
        ConflictError
            The request is closed or fulfilled.
        """
        level, (actor, role) = checked_level(level), checked_actor(actor, role)
        why = clean_text(why, "the reason", NOTE_LENGTH, empty=True)
        with self._store.write() as connection:
            row = self._locked(connection, request_id)
            if row.state not in ("proposed", "requested", "approved", "working", "refused"):
                raise ConflictError(f"forget request {row.id} is {row.state}: its need is settled.")
            return self._change(
                connection, row, row.state, level, row.reached, actor, role, why or NEED_CHANGED
            )

    def set_reached(
        self, request_id: str, level: str, *, actor: str, role: str = "", why: str = ""
    ) -> ForgetRequest:
        """Record the level that an audit found; ``hidden`` may be served while work goes on.

        Raises
        ------
        ConflictError
            Nothing was unlearned yet, or a fulfilled request would fall below its need.
        """
        if level not in LEVELS:
            raise InvalidInputError(f"{str(level)[:40]!r} is no level; use one of {LEVELS}.")
        actor, role = checked_actor(actor, role)
        why = clean_text(why, "the reason", NOTE_LENGTH, empty=True)
        with self._store.write() as connection:
            row = self._locked(connection, request_id)
            if row.state not in ("working", "refused", "fulfilled"):
                raise ConflictError(f"forget request {row.id} is {row.state}: nothing to audit.")
            if row.state == "fulfilled" and not at_least(level, row.needed):
                raise ConflictError(
                    f"forget request {row.id} is fulfilled at {row.needed!r}; it cannot fall to "
                    f"{level!r}. Restore it or mark it anew."
                )
            return self._change(
                connection, row, row.state, row.needed, level, actor, role, why or "audited"
            )

    def _change(
        self,
        connection: Connection,
        row: AnyRow,
        state: str,
        needed: str,
        reached: str,
        actor: str,
        role: str,
        why: str,
    ) -> ForgetRequest:
        now = utc_now()
        connection.execute(
            update(FORGET_REQUEST)
            .where(FORGET_REQUEST.c.seq == row.seq)
            .values(
                state=state,
                needed=needed,
                reached=reached,
                updated=now,
                is_open=int(state not in CLOSED),
                is_live=int(state in LIVE),
            )
        )
        entry = HistoryEntry(now, actor, role, row.state, state, needed, reached, why)
        return self._add_history(connection, row, entry)

    def _add_history(
        self, connection: Connection, row: AnyRow, entry: HistoryEntry
    ) -> ForgetRequest:
        connection.execute(
            insert(FORGET_HISTORY).values(
                request_seq=row.seq,
                time=entry.time,
                actor=entry.actor,
                role=entry.role,
                from_state=entry.from_state,
                to_state=entry.to_state,
                needed=entry.needed,
                reached=entry.reached,
                why=entry.why,
            )
        )
        (request,) = self._requests(connection, [FORGET_REQUEST.c.seq == row.seq])
        if self._on_change is not None:
            self._on_change(connection, request, entry)
        return request

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

    def status(
        self,
        *,
        studies: Iterable[str | Subject] = (),
        series: Iterable[str | Subject] = (),
    ) -> dict[str, MarkStatus]:
        """Tell for many studies and series at once whether they are marked.

        Parameters
        ----------
        studies, series
            UIDs, or better :class:`Subject` with what they belong to: a patient's mark can be
            seen only where the patient is known (given here, or from the ledger).

        Returns
        -------
        dict
            Status by UID (unpadded as given).
        """
        whole = [s if isinstance(s, Subject) else Subject(study=s) for s in studies]
        single = [s if isinstance(s, Subject) else Subject(series=s) for s in series]
        with self._store.read() as connection:
            return status_of(self._store, connection, whole, single)

    def live_targets(self) -> Sequence[Target]:
        """List what the live requests name, in the order of the marks; then patients' studies."""
        row = FORGET_REQUEST.c
        live = (row.is_open == literal_column("1"), row.is_live == 1)
        query = select(row.target_kind, row.target_id, row.issuer, row.model).where(*live)
        kept = select(FORGET_STUDY.c.study).join(
            FORGET_REQUEST, row.seq == FORGET_STUDY.c.request_seq
        )
        with self._store.read() as connection:
            named = [Target(*found) for found in connection.execute(query.order_by(row.seq))]
            studies = connection.execute(kept.where(*live).distinct()).scalars()
            return [*named, *(Target("study", study) for study in sorted(studies))]

    def live_patients(self) -> Sequence[tuple[str, Target]]:
        """List the live requests about patients, by their id, in the order of the marks."""
        row = FORGET_REQUEST.c
        query = select(row.id, row.target_kind, row.target_id, row.issuer, row.model).where(
            row.is_open == literal_column("1"), row.is_live == 1, row.target_kind == "patient"
        )
        with self._store.read() as connection:
            found = connection.execute(query.order_by(row.seq))
            return [(request_id, Target(*named)) for request_id, *named in found]

    def structures(self, model: str) -> dict[str, str]:
        """Labels that a model must not be trained on, each with its live request's id."""
        query = select(FORGET_REQUEST.c.target_id, FORGET_REQUEST.c.id).where(
            FORGET_REQUEST.c.target_kind == "structure",
            FORGET_REQUEST.c.model.in_(["", model]),
            FORGET_REQUEST.c.is_open == literal_column("1"),
            FORGET_REQUEST.c.is_live == 1,
        )
        with self._store.read() as connection:
            return {label: request for label, request in connection.execute(query)}

    def _requests(
        self,
        connection: Connection,
        where: Sequence[ColumnElement[bool]],
        limit: int = 1,
        offset: int = 0,
    ) -> Sequence[ForgetRequest]:
        query = select(FORGET_REQUEST).where(*where).order_by(FORGET_REQUEST.c.seq.desc())
        rows = connection.execute(query.limit(limit).offset(offset)).all()
        wider = [
            Subject(
                study=r.target_id if r.target_kind == "study" else r.study,
                person=person_name(r.person_id, r.person_issuer) if r.person_id else "",
            )
            for r in rows
        ]
        covers = covering(self._store, connection, wider)
        patients = [r.seq for r in rows if r.target_kind == "patient"]
        kept = kept_with(self._store, connection, patients)
        agreed = agreements(self._store, connection, rows)
        return [
            request_of(r, found, kept.get(r.seq, ()), agreed.get(r.seq, ("", "")))
            for r, found in zip(rows, covers, strict=True)
        ]

    def _locked(self, connection: Connection, request_id: str) -> AnyRow:
        query = select(FORGET_REQUEST).where(FORGET_REQUEST.c.id == request_id)
        row = connection.execute(self._locking(query)).one_or_none()
        if row is None:
            raise no_such_request(request_id)
        return row

    def _locking(self, query: Any) -> Any:
        return query.with_for_update() if self._store.dialect == "postgresql" else query
