"""The trail: who did what and when, append-only and hash-chained as the ledger is.

Each row's digest is the SHA-256 of its canonical JSON, which holds the digest of the row before it.
A row names staff, requests, versions and audits, never a patient. What a verification can and
cannot find is the same as for the ledger, see :mod:`segunlearn.records.ledger_verification`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import Connection, insert, select, update

from segunlearn.errors import IntegrityError, InvalidInputError, UnavailableError
from segunlearn.records.chain import ChainHead, HeadFile
from segunlearn.records.forget_set import ForgetRequest, HistoryEntry
from segunlearn.records.ledger_entries import GENESIS, row_digest
from segunlearn.records.ledger_verification import LedgerFault
from segunlearn.records.store import AnyRow, Store, canonical_json, utc_now
from segunlearn.records.tables import TRAIL, TRAIL_HEAD

logger = logging.getLogger(__name__)

Outcome = Literal["done", "refused", "failed"]

#: What is recorded, and what it means.
ACTIONS: Final[Mapping[str, str]] = {
    "login": "a person signed in",
    "login_failure": "a token or sign-in was not accepted",
    "forbidden": "the role did not allow what was asked for",
    "token_create": "an access token was made",
    "token_revoke": "an access token was revoked",
    "propose": "another system asked for forgetting",
    "dismiss": "a proposal was closed",
    "mark": "a forget request was made",
    "withdraw": "a forget request was taken back",
    "approve": "a forget request was approved",
    "unlearn": "an unlearning began to work on a request",
    "fulfil": "a request was fulfilled: the audit passed, and the result serves",
    "refuse": "an unlearning ended without what its request needs",
    "restore": "what was forgotten was brought back",
    "purge": "what leads back was destroyed",
    "look_back": "a version out of service made a mask, to be compared",
    "change_need": "the level that a request needs or has reached was changed",
    "train": "a training, an adaptation or an unlearning was started or stopped",
    "publish": "a version or site adapter was put into service",
    "delete": "an image or a label was deleted",
    "read_report": "an audit or its report was read",
    "read_images": "images, labels or weights were taken out as a whole",
    "read_log": "the server's log was read",
    "backup": "the home was copied",
    "restore_home": "the home was made from a copy",
}

#: What a request's new state says that somebody did.
_STEPS: Final[Mapping[str, str]] = {
    "proposed": "propose", "dismissed": "dismiss", "requested": "mark", "withdrawn": "withdraw",
    "approved": "approve", "working": "unlearn", "fulfilled": "fulfil", "refused": "refuse",
    "restored": "restore", "purged": "purge",
}  # fmt: skip

#: Longest text of a field.
_LONGEST: Final = 500
HEAD_FILE: Final = "trail.head"


@dataclass(frozen=True)
class TrailEntry:
    """Something that somebody did.

    Parameters
    ----------
    action
        One of ``ACTIONS``.
    actor
        Name of the person or program; empty when nobody is known.
    role
        Under which it was done; may be empty.
    source
        Address of the caller, or ``command line``.
    kind, what
        Kind and id of what it was done to: ``request``, ``version``, ``audit``, …
    outcome
        ``done``, ``refused`` (not allowed) or ``failed``.
    note
        A sentence, without identifiers of patients.
    """

    action: str
    actor: str
    role: str = ""
    source: str = ""
    kind: str = ""
    what: str = ""
    outcome: Outcome = "done"
    note: str = ""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise InvalidInputError(f"{self.action!r:.40} is no action of the trail.")

    def body(self) -> dict[str, str]:
        """Return the fields as plain texts, cut to a bounded length."""
        return {k: _plain(str(v)) for k, v in asdict(self).items()}


@dataclass(frozen=True)
class TrailRow:
    """A row as it was recorded; fields as in :class:`TrailEntry`."""

    seq: int
    digest: str
    previous: str
    time: str
    action: str
    actor: str
    role: str
    source: str
    kind: str
    what: str
    outcome: Outcome
    note: str


class Trail:
    """The trail in the store.

    Parameters
    ----------
    store
        From :func:`segunlearn.records.store.open_store`.
    head_file
        As for :class:`segunlearn.records.ledger.Ledger`; ``trail.head`` by default.
    """

    def __init__(self, store: Store, *, head_file: Path | None = None) -> None:
        self._store = store
        if head_file is None and store.path is not None:
            head_file = store.path.with_name(HEAD_FILE)
        self._head_file = HeadFile(head_file, "trail")

    def append(self, entry: TrailEntry) -> ChainHead:
        """Append a row; on return it survives a power cut.

        Raises
        ------
        UnavailableError
            The store cannot be written: do not do what was to be recorded.
        """
        with self._store.write() as connection:
            head = self.add(connection, entry)
        self._keep_head(head)
        return head

    def _keep_head(self, head: ChainHead) -> None:
        self._head_file.keep(head, self._store, TRAIL)

    def add(self, connection: Connection, entry: TrailEntry) -> ChainHead:
        """Append a row inside a write transaction of somebody else: both happen, or neither."""
        query = select(TRAIL_HEAD)
        if self._store.dialect == "postgresql":
            query = query.with_for_update()
        head = connection.execute(query).one()
        seq, now, body = int(head.rows) + 1, utc_now(), entry.body()
        text = canonical_json({**body, "seq": seq, "previous": head.digest, "time": now})
        digest = row_digest(text)
        connection.execute(
            insert(TRAIL).values(
                seq=seq, time=now, action=body["action"], actor=body["actor"], body=text,
                digest=digest,
            )
        )  # fmt: skip
        connection.execute(update(TRAIL_HEAD).values(rows=seq, digest=digest))
        return ChainHead(seq, digest)

    def on_change(
        self, connection: Connection, request: ForgetRequest, entry: HistoryEntry
    ) -> None:
        """Record a step of a forget request, in the transaction of the step.

        The step is done once that ends: a note of the chain's end that cannot be written then is
        logged, and the next row writes it.
        """
        same = entry.from_state == entry.to_state
        step = "mark" if entry.is_one_more_mark else "change_need" if same else ""
        head = self.add(
            connection,
            TrailEntry(
                step or _STEPS[entry.to_state], entry.actor, entry.role,
                kind="request", what=request.request_id,
                outcome="failed" if entry.to_state == "refused" else "done",
                note=f"needed {entry.needed}, reached {entry.reached}",
            ),
        )  # fmt: skip

        def keep() -> None:
            try:
                self._keep_head(head)
            except UnavailableError as error:
                logger.error("%s", error)

        self._store.after_commit(connection, keep)

    def head(self) -> ChainHead:
        """Return the chain's end; written down elsewhere, it witnesses all rows up to it."""
        with self._store.read() as connection:
            row = connection.execute(select(TRAIL_HEAD)).one()
        return ChainHead(int(row.rows), str(row.digest))

    def rows(
        self,
        *,
        action: str | None = None,
        actor: str | None = None,
        since: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> Sequence[TrailRow]:
        """Page through rows, newest first; ``since`` is a UTC time, ISO 8601."""
        if not 0 <= limit <= 1000 or not 0 <= offset < 2**62:
            raise InvalidInputError(
                f"limit must lie in 0..1000 and offset be at least 0, got {limit} and {offset}."
            )
        query = select(TRAIL).order_by(TRAIL.c.seq.desc()).limit(limit).offset(offset)
        for column, value in ((TRAIL.c.action, action), (TRAIL.c.actor, actor)):
            query = query.where(column == value) if value is not None else query
        query = query.where(TRAIL.c.time >= since) if since is not None else query
        with self._store.read() as connection:
            return [_row(row) for row in connection.execute(query).all()]

    def every(self) -> Iterator[TrailRow]:
        """All rows, the oldest first, a part at a time."""
        last = 0
        while True:
            query = select(TRAIL).where(TRAIL.c.seq > last).order_by(TRAIL.c.seq).limit(1000)
            with self._store.read() as connection:
                part = connection.execute(query).all()
            yield from (_row(row) for row in part)
            if len(part) < 1000:
                return
            last = int(part[-1].seq)

    def verify(self, *, witness: ChainHead | None = None) -> Sequence[LedgerFault]:
        """Recompute every digest; returns all faults, an empty list when there is none.

        Parameters
        ----------
        witness
            A head that was written down elsewhere: the chain must still go through it.
        """
        faults: list[LedgerFault] = []
        witnesses = [(witness, "a witness outside the store")] if witness else []
        try:
            kept = self._head_file.read()
            witnesses += [(kept, "the note beside the store")] if kept else []
        except IntegrityError:
            text = "the note of the chain's end beside the store is damaged."
            faults.append(LedgerFault("witness", 0, text))
        with self._store.read() as connection:
            head = connection.execute(select(TRAIL_HEAD)).one_or_none()
            if head is None:
                text = "the row that keeps the chain's end was removed."
                return [*faults, LedgerFault("truncated", 0, text)]
            witnesses.append((ChainHead(int(head.rows), str(head.digest)), "the store's own note"))
            digests = [GENESIS]
            rows = connection.execution_options(yield_per=1000).execute(
                select(TRAIL).order_by(TRAIL.c.seq)
            )
            for row in rows:
                fault = _fault(row, len(digests), digests[-1])
                if fault is not None:
                    faults.append(fault)
                digests.append(str(row.digest))
        for then, who in witnesses:
            if then.rows >= len(digests):
                text = f"{who} tells of {then.rows} rows, there are {len(digests) - 1}."
                faults.append(LedgerFault("truncated", len(digests), text))
            elif digests[then.rows] != then.digest:
                text = f"row {then.rows} is not the one that {who} tells of: it was rewritten."
                faults.append(LedgerFault("rewritten", then.rows, text))
        return faults


def _fault(row: AnyRow, place: int, previous: str) -> LedgerFault | None:
    seq = int(row.seq)
    try:
        body = json.loads(row.body)
        honest = (
            row_digest(row.body) == row.digest
            and canonical_json(body) == row.body
            and all(body[name] == row._mapping[name] for name in ("seq", "time", "action", "actor"))
        )
    except (ValueError, KeyError, TypeError, InvalidInputError):
        honest = False
    if not honest:
        return LedgerFault("row-changed", seq, f"row {seq} is not what was recorded.")
    if seq != place:
        return LedgerFault("row-removed", place, f"row {place} was removed or moved.")
    if body["previous"] != previous:
        return LedgerFault("chain-broken", seq, f"row {seq} does not follow row {seq - 1}.")
    return None


def _row(row: AnyRow) -> TrailRow:
    try:
        return TrailRow(digest=str(row.digest), **json.loads(row.body))
    except (ValueError, TypeError) as error:
        raise IntegrityError(
            f"row {row.seq} of the trail was changed; see 'segunlearn trail verify'."
        ) from error


def _plain(text: str) -> str:
    """Cut to a bounded length, without control characters that would forge lines of a listing."""
    kept = "".join(c if c.isprintable() else "�" for c in text[:_LONGEST])
    return kept.encode("utf-8", "replace").decode()
