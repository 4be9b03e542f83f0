"""Runs and their progress: written by the task, read by the server, the CLI and the viewers.

A run lives in its process. When the process is gone without having finished the run, whoever
opens the store next marks it ``interrupted``; nothing hangs in ``running`` for ever.

Every change of a run is an event with a number that grows by one within the run, so that a reader
of server-sent events asks for "newer than n" and misses nothing that still counts: of progress
reports that follow each other within ``COALESCE_SECONDS`` only the newest is kept.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

from sqlalchemy import Connection, and_, delete, insert, select, update

from segunlearn.errors import ConflictError, InvalidInputError, NotFoundError
from segunlearn.records.processes import ProcessIdentity, is_alive, this_process
from segunlearn.records.store import AnyRow, Store, canonical_json, storable, utc_now
from segunlearn.records.tables import RUN, RUN_EVENT

Outcome = Literal["done", "failed", "cancelled", "refused"]
State = Literal["running", "done", "failed", "cancelled", "refused", "interrupted"]

#: Progress of the same phase within this time replaces the report before it, in seconds.
COALESCE_SECONDS: Final = 0.5
#: A run on a machine that cannot be seen from here counts as dead after this silence.
SILENCE: Final = timedelta(days=1)
#: Longest message that is kept, in characters.
MESSAGE_LENGTH: Final = 4000


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Parameters
    ----------
    phase
        What it does now, e.g. ``"train"``, ``"validate"``.
    step, total
        Steps done and to do in all; ``total`` 0 means not known.
    metrics
        Latest figures, e.g. ``{"loss": 0.31, "val_dice": 0.84}``. Figures that are not finite are
        dropped, as JSON cannot say them.
    eta_seconds
        Expected seconds until the end, None while it is not known.
    """

    phase: str
    step: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    eta_seconds: float | None = None

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 to 1."""
        return min(1.0, max(0.0, self.step / self.total)) if self.total > 0 else 0.0

    def to_json(self) -> str:
        """Canonical JSON of the record."""
        values = asdict(self)
        values["metrics"] = {
            str(k): float(v) for k, v in self.metrics.items() if math.isfinite(float(v))
        }
        eta = self.eta_seconds
        values["eta_seconds"] = float(eta) if eta is not None and math.isfinite(eta) else None
        return canonical_json(values)

    @staticmethod
    def from_json(text: str) -> Progress:
        """Read what ``to_json`` wrote."""
        return Progress(**json.loads(text))


@dataclass(frozen=True)
class RunRecord:
    """One run as it stands.

    Parameters
    ----------
    run_id, kind, model, parameters, requested_by
        As given to :meth:`Runs.start`.
    state
        ``running``, an outcome, or ``interrupted``: its process died.
    message
        Why it failed or was refused; empty otherwise.
    progress
        Newest report, None before the first.
    started, updated, ended
        UTC ISO 8601; ``ended`` is None while it runs.
    cancel_requested
        A person asked it to stop.
    last_event
        Number of its newest event.
    """

    run_id: str
    kind: str
    model: str
    parameters: Mapping[str, Any]
    requested_by: str
    state: str
    message: str
    progress: Progress | None
    started: str
    updated: str
    ended: str | None
    cancel_requested: bool
    last_event: int

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.state == "running"


@dataclass(frozen=True)
class RunEvent:
    """One change of a run; ``seq`` grows within the run and is a server-sent event's id."""

    run_id: str
    seq: int
    time: str
    state: str
    progress: Progress | None
    message: str


class Runs:
    """Runs of every kind, in the store.

    Parameters
    ----------
    store
        From :func:`segunlearn.records.store.open_store`.
    check_dead
        Mark runs whose process died as ``interrupted`` now.
    """

    def __init__(self, store: Store, *, check_dead: bool = True) -> None:
        self._store = store
        if check_dead:
            self.mark_dead()

    def start(
        self, kind: str, model: str, parameters: Mapping[str, Any], *, requested_by: str = ""
    ) -> str:
        """Record that this process begins a run.

        Parameters
        ----------
        kind
            ``"train"``, ``"unlearn"``, ``"evaluate"``, …
        model
            Name of the model.
        parameters
            Resolved parameters; JSON values.
        requested_by
            User, empty when unknown.

        Returns
        -------
        str
            Run id, 32 hexadecimal digits.
        """
        if not kind or not model:
            raise InvalidInputError("a run needs a kind and a model; both are empty or missing.")
        run_id, now, process = uuid.uuid4().hex, utc_now(), this_process()
        values = {
            "id": run_id,
            "kind": kind,
            "model": model,
            "parameters": canonical_json(dict(parameters)),
            "requested_by": storable(requested_by),
            "state": "running",
            "message": "",
            "started": now,
            "updated": now,
            "cancel_requested": 0,
            "last_event": 0,
            "host": process.host,
            "boot": process.boot,
            "pid_space": process.pid_space,
            "pid": process.pid,
            "process_start": process.start,
        }
        with self._store.write() as connection:
            connection.execute(insert(RUN).values(values))
            self._add_event(connection, run_id, 1, now, "running")
        return run_id

    def update(self, run_id: str, progress: Progress) -> None:
        """Report progress; cheap enough for every step.

        Raises
        ------
        NotFoundError
            No such run.
        ConflictError
            The run has ended.
        """
        now, body = utc_now(), progress.to_json()
        with self._store.write(durable=False) as connection:
            row = self._locked(connection, run_id)
            if row.state not in ("running", "interrupted"):
                raise ConflictError(f"run {run_id} has ended ({row.state}): no progress any more.")
            recent = connection.execute(
                select(RUN_EVENT)
                .where(RUN_EVENT.c.run_id == run_id)
                .order_by(RUN_EVENT.c.seq.desc())
                .limit(2)
            ).all()
            if self._replaces_newest(recent, progress):
                connection.execute(
                    delete(RUN_EVENT).where(
                        RUN_EVENT.c.run_id == run_id, RUN_EVENT.c.seq == recent[0].seq
                    )
                )
            seq = int(row.last_event) + 1
            self._add_event(connection, run_id, seq, now, "running", progress=body)
            # A run thought dead that reports again is alive, e.g. on another machine.
            if row.state == "interrupted":
                connection.execute(
                    update(RUN)
                    .where(RUN.c.id == run_id)
                    .values(state="running", ended=None, message="")
                )

    @staticmethod
    def _replaces_newest(recent: Sequence[AnyRow], progress: Progress) -> bool:
        """Whether the newest event came so soon after the one before it that it may go."""
        if len(recent) < 2 or recent[0].progress is None:
            return False
        newest = Progress.from_json(recent[0].progress)
        gap = datetime.fromisoformat(recent[0].time) - datetime.fromisoformat(recent[1].time)
        return (
            newest.phase == progress.phase
            and set(newest.metrics) <= set(progress.metrics)
            and gap < timedelta(seconds=COALESCE_SECONDS)
        )

    def finish(self, run_id: str, outcome: Outcome, message: str = "") -> None:
        """Record how a run ended; the same outcome twice is one.

        Append the run's ledger row first: a version that is served must be in the ledger.

        Raises
        ------
        InvalidInputError
            Unknown outcome.
        NotFoundError
            No such run.
        ConflictError
            The run has ended otherwise.
        """
        if outcome not in get_args(Outcome):
            raise InvalidInputError(
                f"{outcome!r} is no outcome of a run; use one of {', '.join(get_args(Outcome))}."
            )
        now = utc_now()
        with self._store.write() as connection:
            row = self._locked(connection, run_id)
            if row.state == outcome:
                return
            if row.state not in ("running", "interrupted"):
                raise ConflictError(f"run {run_id} has ended as {row.state}, not {outcome}.")
            self._end(connection, row, outcome, storable(message)[:MESSAGE_LENGTH], now)

    def get(self, run_id: str) -> RunRecord:
        """Return one run.

        Raises
        ------
        NotFoundError
            No such run.
        """
        with self._store.read() as connection:
            row = connection.execute(select(RUN).where(RUN.c.id == run_id)).one_or_none()
            if row is None:
                raise _no_such_run(run_id)
            return self._record(connection, row)

    def latest(self, *, model: str | None = None, kind: str | None = None) -> RunRecord | None:
        """Newest run of a model and kind, None when there is none."""
        found = self.list(limit=1, model=model, kind=kind)
        return found[0] if found else None

    def list(
        self,
        limit: int = 50,
        offset: int = 0,
        *,
        model: str | None = None,
        kind: str | None = None,
        state: State | None = None,
    ) -> Sequence[RunRecord]:
        """Page through runs, newest first.

        Parameters
        ----------
        limit, offset
            0 to 1000 runs, after skipping ``offset``.
        model, kind, state
            Only runs that agree.
        """
        if not 0 <= limit <= 1000 or offset < 0:
            raise InvalidInputError(
                f"limit must lie in 0..1000 and offset be at least 0, got {limit} and {offset}."
            )
        wanted = {RUN.c.model: model, RUN.c.kind: kind, RUN.c.state: state}
        query = select(RUN).order_by(RUN.c.seq.desc()).limit(limit).offset(offset)
        query = query.where(*(c == v for c, v in wanted.items() if v is not None))
        with self._store.read() as connection:
            return [self._record(connection, row) for row in connection.execute(query).all()]

    def events(self, run_id: str, *, after: int = 0, limit: int = 500) -> Sequence[RunEvent]:
        """Events newer than number ``after``, oldest first: what a server-sent stream sends next.

        Raises
        ------
        NotFoundError
            No such run.
        """
        query = (
            select(RUN_EVENT)
            .where(RUN_EVENT.c.run_id == run_id, RUN_EVENT.c.seq > after)
            .order_by(RUN_EVENT.c.seq)
            .limit(limit)
        )
        with self._store.read() as connection:
            rows = connection.execute(query).all()
            if (
                not rows
                and connection.execute(select(RUN.c.seq).where(RUN.c.id == run_id)).first() is None
            ):
                raise _no_such_run(run_id)
        return [
            RunEvent(run_id, int(r.seq), r.time, r.state, _progress(r.progress), r.message)
            for r in rows
        ]

    def cancel(self, run_id: str, *, by: str = "") -> None:
        """Ask a run to stop; it does so at its next step.

        Raises
        ------
        NotFoundError
            No such run.
        ConflictError
            The run has ended.
        """
        now = utc_now()
        with self._store.write() as connection:
            row = self._locked(connection, run_id)
            if row.state != "running":
                raise ConflictError(f"run {run_id} has ended ({row.state}); nothing to stop.")
            if row.cancel_requested:
                return
            connection.execute(update(RUN).where(RUN.c.id == run_id).values(cancel_requested=1))
            message = f"{by or 'someone'} asked it to stop"
            self._add_event(
                connection, run_id, int(row.last_event) + 1, now, "running", message=message
            )

    def cancelled(self, run_id: str) -> bool:
        """Whether a person asked the run to stop; False for unknown runs."""
        with self._store.read() as connection:
            flag = connection.execute(
                select(RUN.c.cancel_requested).where(RUN.c.id == run_id)
            ).scalar()
        return bool(flag)

    def mark_dead(self) -> Sequence[str]:
        """Mark runs as ``interrupted`` whose process is gone; returns their ids.

        A process on another machine or in another container cannot be seen: its runs count as
        dead after ``SILENCE`` without a report, and live again when they report.
        """
        with self._store.read() as connection:
            running = connection.execute(select(RUN).where(RUN.c.state == "running")).all()
        dead = [row.id for row in running if self._is_dead(row)]
        marked = []
        for run_id in dead:
            with self._store.write() as connection:
                row = self._locked(connection, run_id)
                if row.state == "running":
                    why = "its process ended without a word (killed, or the machine stopped)"
                    self._end(connection, row, "interrupted", why, utc_now())
                    marked.append(run_id)
        return marked

    @classmethod
    def ended(
        cls, connection: Connection, kinds: Collection[str], run_ids: Sequence[str]
    ) -> Sequence[str]:
        """Those of some runs that are of these kinds and write no more: ended, or dead."""
        wanted = RUN.c.kind.in_(kinds), RUN.c.id.in_(run_ids)
        query = select(RUN).where(*wanted).order_by(RUN.c.seq)
        rows = connection.execute(query).all()
        return [row.id for row in rows if row.state != "running" or cls._is_dead(row)]

    @staticmethod
    def _is_dead(row: AnyRow) -> bool:
        process = ProcessIdentity(
            row.host, row.boot, row.pid_space, int(row.pid), int(row.process_start)
        )
        alive = is_alive(process)
        if alive is None:
            return datetime.now(UTC) - datetime.fromisoformat(row.updated) > SILENCE
        return not alive

    def _locked(self, connection: Connection, run_id: str) -> AnyRow:
        query = select(RUN).where(RUN.c.id == run_id)
        if self._store.dialect == "postgresql":
            query = query.with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            raise _no_such_run(run_id)
        return row

    def _end(self, connection: Connection, row: AnyRow, state: str, message: str, now: str) -> None:
        connection.execute(
            update(RUN).where(RUN.c.id == row.id).values(state=state, message=message, ended=now)
        )
        seq = int(row.last_event) + 1
        self._add_event(connection, row.id, seq, now, state, message=message)

    @staticmethod
    def _add_event(
        connection: Connection,
        run_id: str,
        seq: int,
        now: str,
        state: str,
        *,
        progress: str | None = None,
        message: str = "",
    ) -> None:
        connection.execute(
            insert(RUN_EVENT).values(
                run_id=run_id, seq=seq, time=now, state=state, progress=progress, message=message
            )
        )
        connection.execute(
            update(RUN).where(RUN.c.id == run_id).values(last_event=seq, updated=now)
        )

    @staticmethod
    def _record(connection: Connection, row: AnyRow) -> RunRecord:
        progress = connection.execute(
            select(RUN_EVENT.c.progress)
            .where(and_(RUN_EVENT.c.run_id == row.id, RUN_EVENT.c.progress.is_not(None)))
            .order_by(RUN_EVENT.c.seq.desc())
            .limit(1)
        ).scalar()
        return RunRecord(
            run_id=row.id,
            kind=row.kind,
            model=row.model,
            parameters=json.loads(row.parameters),
            requested_by=row.requested_by,
            state=row.state,
            message=row.message,
            progress=_progress(progress),
            started=row.started,
            updated=row.updated,
            ended=row.ended,
            cancel_requested=bool(row.cancel_requested),
            last_event=int(row.last_event),
        )


def _progress(text: str | None) -> Progress | None:
    return Progress.from_json(text) if text is not None else None


def _no_such_run(run_id: str) -> NotFoundError:
    return NotFoundError(f"no run {run_id[:40]!r} is recorded; list the runs to see their ids.")
