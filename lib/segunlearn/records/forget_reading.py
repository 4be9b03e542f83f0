"""What the forget set says: requests, their histories, and what is marked now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, func, literal_column, select

from segunlearn.errors import InvalidInputError
from segunlearn.records.coverage import Subject, agreements, covering, status_of
from segunlearn.records.forget_requests import (
    ForgetRequest,
    HistoryEntry,
    MarkStatus,
    filters_of,
    no_such_request,
    request_of,
)
from segunlearn.records.patient_studies import kept_with
from segunlearn.records.store import Store
from segunlearn.records.tables import FORGET_HISTORY, FORGET_REQUEST, FORGET_STUDY
from segunlearn.records.targets import Target, person_name


class ForgetReading:
    """Forget requests as they stand in the store.

    Parameters
    ----------
    store
        From :func:`segunlearn.records.store.open_store`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

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
