"""How a forget request goes from state to state, with a history that only grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, func, insert, select, text, update

from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    IllegalTransitionError,
    InvalidInputError,
)
from segunlearn.records.forget_reading import ForgetReading
from segunlearn.records.forget_requests import (
    NEED_CHANGED,
    NOTE_LENGTH,
    ForgetRequest,
    HistoryEntry,
    checked_actor,
    checked_level,
    no_such_request,
)
from segunlearn.records.forget_states import CLOSED, LEVELS, LIVE, STATES, TRANSITIONS, at_least
from segunlearn.records.store import AnyRow, Store, utc_now
from segunlearn.records.tables import (
    FORGET_HISTORY,
    FORGET_REQUEST,
    FORGET_STUDY,
    LEDGER_CASE,
    LEDGER_ROW,
    RUN,
)
from segunlearn.records.targets import clean_text, same_issuer

OnChange = Callable[[Connection, ForgetRequest, HistoryEntry], None]


class ForgetSteps(ForgetReading):
    """Forget requests, and the steps that ``forget_states.TRANSITIONS`` allows.

    Parameters
    ----------
    store, on_change
        As of :class:`segunlearn.records.forget_set.ForgetSet`.
    """

    def __init__(self, store: Store, *, on_change: OnChange | None = None) -> None:
        super().__init__(store)
        self._on_change = on_change

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

    def _hold_off_runs(self, connection: Connection) -> None:
        """Let no run begin before others see the mark; one that began is older than it then.

        SQLite lets one write at a time, and the time of the mark is taken inside its transaction.
        """
        if self._store.dialect == "postgresql":
            connection.execute(text(f"LOCK TABLE {RUN.name} IN SHARE MODE"))

    def _locked(self, connection: Connection, request_id: str) -> AnyRow:
        query = select(FORGET_REQUEST).where(FORGET_REQUEST.c.id == request_id)
        row = connection.execute(self._locking(query)).one_or_none()
        if row is None:
            raise no_such_request(request_id)
        return row

    def _locking(self, query: Any) -> Any:
        return query.with_for_update() if self._store.dialect == "postgresql" else query
