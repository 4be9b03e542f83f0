"""Documents that wait for the PACS, and what was seen there.

A row is written in the transaction of the change that it reports, so no change is without its
document. It is sent later, by whoever serves: in order within a lane (one study, or one patient),
again and again with growing pauses, under one SOPInstanceUID, so that a document that arrives
twice is one instance in the PACS.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, insert, not_, or_, select, update

from segunlearn.errors import InvalidInputError
from segunlearn.records.store import Store, canonical_json
from segunlearn.records.tables import OUTBOX, PACS_SEEN

#: First and longest pause between two attempts, in seconds; each is shortened by up to a half.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 3600.0
#: Longest error text that is kept.
_ERROR_LENGTH = 500


@dataclass(frozen=True)
class OutboxItem:
    """One document that waits, or was sent.

    Parameters
    ----------
    seq
        Place in the order.
    lane
        Documents of one lane go one after another.
    document_uid
        SOPInstanceUID, fixed when the row was written.
    request_id
        Forget request that it reports.
    payload
        What the document says; enough to build it while nothing else is known.
    created, due, sent
        UTC ISO 8601; ``sent`` is None while it waits.
    attempts, last_error
        Failed attempts, and why the last one failed.
    """

    seq: int
    lane: str
    document_uid: str
    request_id: str
    payload: Mapping[str, Any]
    created: str
    attempts: int
    due: str
    last_error: str
    sent: str | None


@dataclass(frozen=True)
class OutboxStatus:
    """State of the outbox: what a person must see to know whether the PACS is told.

    ``retrying`` of the ``waiting`` have failed at least once; ``oldest`` is when the first of
    them was written, ``next_due`` when the next attempt is due (UTC ISO 8601).
    """

    waiting: int
    retrying: int
    sent: int
    oldest: str | None
    next_due: str | None
    last_error: str


def _utc() -> datetime:
    return datetime.now(UTC)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Outbox:
    """Documents in order, with their attempts.

    Parameters
    ----------
    store
        The store, with the tables ``outbox`` and ``pacs_seen``.
    clock
        Current time with time zone.
    jitter
        Random numbers in [0, 1) that spread the attempts of several servers.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], datetime] = _utc,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._clock = clock
        self._jitter = jitter

    def enqueue(
        self,
        connection: Connection,
        *,
        lane: str,
        request_id: str,
        payload: Mapping[str, Any],
    ) -> str:
        """Write a document's row inside the caller's transaction.

        Parameters
        ----------
        connection
            An open write transaction, that of the change itself.
        lane
            For example ``study:1.2.3``.
        request_id, payload
            See :class:`OutboxItem`; the payload is a JSON object.

        Returns
        -------
        str
            SOPInstanceUID of the document (root 2.25, PS3.5 B.2).

        Raises
        ------
        InvalidInputError
            The lane is empty.
        """
        if not lane:
            raise InvalidInputError("a document waits in a lane; give its study or patient.")
        document_uid = f"2.25.{uuid.uuid4().int}"
        now = _text(self._clock())
        connection.execute(
            insert(OUTBOX).values(
                lane=lane,
                document_uid=document_uid,
                request_id=request_id,
                payload=canonical_json(dict(payload)),
                created=now,
                attempts=0,
                due=now,
                last_error="",
            )
        )
        return document_uid

    def claim(self, limit: int = 20, *, lease_seconds: float = 120.0) -> list[OutboxItem]:
        """Take documents that are due: the first of each lane, oldest first.

        Nobody else gets them until they are sent, failed or released, or the lease ends.
        """
        now = self._clock()
        earlier = OUTBOX.alias("earlier")
        blocked = (
            select(earlier.c.seq)
            .where(
                earlier.c.lane == OUTBOX.c.lane,
                earlier.c.sent.is_(None),
                earlier.c.seq < OUTBOX.c.seq,
            )
            .exists()
        )
        free = or_(OUTBOX.c.claimed_until.is_(None), OUTBOX.c.claimed_until <= _text(now))
        due = (
            select(OUTBOX)
            .where(OUTBOX.c.sent.is_(None), OUTBOX.c.due <= _text(now), free, not_(blocked))
            .order_by(OUTBOX.c.seq)
            .limit(limit)
        )
        with self._store.read() as connection:
            if connection.execute(due).first() is None:
                return []  # the usual case needs no write lock
        if self._store.dialect == "postgresql":
            due = due.with_for_update(skip_locked=True)
        with self._store.write() as connection:
            items = [_item(row) for row in connection.execute(due)]
            if items:
                connection.execute(
                    update(OUTBOX)
                    .where(OUTBOX.c.seq.in_([item.seq for item in items]))
                    .values(claimed_until=_text(now + timedelta(seconds=lease_seconds)))
                )
        return items

    def sent(self, item: OutboxItem) -> None:
        """Record that the PACS has the document."""
        self._settle(item, sent=_text(self._clock()), last_error="")

    def failed(self, item: OutboxItem, error: str, *, longest: float = LONGEST_PAUSE) -> None:
        """Record a failed attempt; the next one is due after a pause twice as long.

        Parameters
        ----------
        item, error
            What failed, and why.
        longest
            Bound of the pause in seconds; shorter while the PACS is down, which is no fault of
            the document.
        """
        pause = min(longest, FIRST_PAUSE * 2.0 ** min(item.attempts, 20))
        due = self._clock() + timedelta(seconds=pause * (1.0 - 0.5 * self._jitter()))
        self._settle(
            item, attempts=item.attempts + 1, due=_text(due), last_error=error[:_ERROR_LENGTH]
        )

    def release(self, item: OutboxItem) -> None:
        """Give a document back untried."""
        self._settle(item)

    def waits(self) -> bool:
        """Whether any document waits."""
        query = select(OUTBOX.c.seq).where(OUTBOX.c.sent.is_(None)).limit(1)
        with self._store.read() as connection:
            return connection.execute(query).first() is not None

    def retry_now(self) -> int:
        """Make all waiting documents due now, after a fault was repaired; returns how many."""
        with self._store.write() as connection:
            changed = connection.execute(
                update(OUTBOX)
                .where(OUTBOX.c.sent.is_(None))
                .values(due=_text(self._clock()), claimed_until=None)
            )
        return int(changed.rowcount)

    def status(self) -> OutboxStatus:
        """Count what waits and was sent, with ages and the newest error."""
        waits = OUTBOX.c.sent.is_(None)
        with self._store.read() as connection:
            total = connection.execute(select(func.count()).select_from(OUTBOX)).scalar_one()
            waiting, oldest, next_due = connection.execute(
                select(func.count(), func.min(OUTBOX.c.created), func.min(OUTBOX.c.due)).where(
                    waits
                )
            ).one()
            retrying = connection.execute(
                select(func.count()).where(waits, OUTBOX.c.attempts > 0)
            ).scalar_one()
            error = connection.execute(
                select(OUTBOX.c.last_error)
                .where(waits, OUTBOX.c.last_error != "")
                .order_by(OUTBOX.c.due.desc())
                .limit(1)
            ).scalar()
        return OutboxStatus(
            waiting=int(waiting),
            retrying=int(retrying),
            sent=int(total) - int(waiting),
            oldest=oldest,
            next_due=next_due,
            last_error=error or "",
        )

    def list(
        self, *, waiting: bool | None = None, limit: int = 50, offset: int = 0
    ) -> Sequence[OutboxItem]:
        """Page through the documents, oldest first; ``waiting`` picks those that wait, or not."""
        query = select(OUTBOX).order_by(OUTBOX.c.seq).limit(limit).offset(offset)
        if waiting is not None:
            is_waiting = OUTBOX.c.sent.is_(None)
            query = query.where(is_waiting if waiting else not_(is_waiting))
        with self._store.read() as connection:
            return [_item(row) for row in connection.execute(query)]

    def _settle(self, item: OutboxItem, **values: Any) -> None:
        with self._store.write() as connection:
            connection.execute(
                update(OUTBOX)
                .where(OUTBOX.c.seq == item.seq, OUTBOX.c.sent.is_(None))
                .values(claimed_until=None, **values)
            )


class PacsSeen:
    """What was seen in the PACS, by kind: documents, series of documents, studies.

    Forgetting it is harmless: documents would be read again, and give the same proposals.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def notes(self, kind: str, uids: Sequence[str]) -> dict[str, str]:
        """Note of each UID that was seen; the others are left out."""
        if not uids:
            return {}
        query = select(PACS_SEEN.c.uid, PACS_SEEN.c.note).where(
            PACS_SEEN.c.kind == kind, self._store.among(PACS_SEEN.c.uid, uids)
        )
        with self._store.read() as connection:
            return {row.uid: row.note for row in connection.execute(query)}

    def remember(self, kind: str, notes: Mapping[str, str]) -> None:
        """Write or replace the notes of some UIDs."""
        if not notes:
            return
        now = _text(_utc())
        rows = [{"kind": kind, "uid": u, "note": n, "time": now} for u, n in notes.items()]
        with self._store.write() as connection:
            connection.execute(
                PACS_SEEN.delete().where(
                    PACS_SEEN.c.kind == kind, self._store.among(PACS_SEEN.c.uid, list(notes))
                )
            )
            connection.execute(insert(PACS_SEEN), rows)


def _item(row: Row[Any]) -> OutboxItem:
    return OutboxItem(
        seq=int(row.seq),
        lane=row.lane,
        document_uid=row.document_uid,
        request_id=row.request_id,
        payload=json.loads(row.payload),
        created=row.created,
        attempts=int(row.attempts),
        due=row.due,
        last_error=row.last_error,
        sent=row.sent,
    )
