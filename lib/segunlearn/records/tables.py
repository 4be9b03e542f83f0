"""The tables as queries see them; ``migrations`` makes them, and a test compares the two."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, Table, Text

METADATA: Final = MetaData()


def _table(name: str, **columns: str) -> Table:
    kinds = {"text": Text, "int": BigInteger, "bytes": LargeBinary}
    return Table(name, METADATA, *(Column(c, kinds[k]) for c, k in columns.items()))


RUN: Final = _table(
    "run",
    seq="int",
    id="text",
    kind="text",
    model="text",
    parameters="text",
    requested_by="text",
    state="text",
    message="text",
    started="text",
    updated="text",
    ended="text",
    cancel_requested="int",
    last_event="int",
    host="text",
    boot="text",
    pid_space="text",
    pid="int",
    process_start="int",
)

RUN_EVENT: Final = _table(
    "run_event",
    run_id="text",
    seq="int",
    time="text",
    state="text",
    progress="text",
    message="text",
)

OUTBOX: Final = _table(
    "outbox",
    seq="int",
    lane="text",
    document_uid="text",
    request_id="text",
    payload="text",
    created="text",
    attempts="int",
    due="text",
    claimed_until="text",
    last_error="text",
    sent="text",
)

PACS_SEEN: Final = _table("pacs_seen", kind="text", uid="text", note="text", time="text")
