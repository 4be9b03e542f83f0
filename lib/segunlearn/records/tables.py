"""The tables as queries see them; ``migrations`` makes them, and a test compares the two."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, Table, Text

METADATA: Final = MetaData()


def _table(name: str, /, **columns: str) -> Table:
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

FORGET_REQUEST: Final = _table(
    "forget_request",
    seq="int",
    id="text",
    target_kind="text",
    target_id="text",
    issuer="text",
    model="text",
    study="text",
    person_id="text",
    person_issuer="text",
    reason="text",
    note="text",
    state="text",
    is_open="int",
    is_live="int",
    needed="text",
    reached="text",
    source="text",
    marked_by="text",
    marked_role="text",
    created="text",
    updated="text",
)

FORGET_HISTORY: Final = _table(
    "forget_history",
    seq="int",
    request_seq="int",
    time="text",
    actor="text",
    role="text",
    from_state="text",
    to_state="text",
    needed="text",
    reached="text",
    why="text",
)

FORGET_STUDY: Final = _table("forget_study", request_seq="int", study="text", added="text")

LEDGER_CASE: Final = _table(
    "ledger_case",
    id="int",
    digest="text",
    series="text",
    study="text",
    person_id="text",
    person_issuer="text",
    role="text",
    image_digest="text",
    label_digest="text",
)

LEDGER_SET: Final = _table("ledger_set", id="int", digest="text", size="int", members="bytes")

LEDGER_ROW: Final = _table(
    "ledger_row",
    seq="int",
    run_id="text",
    kind="text",
    model="text",
    version_sha256="text",
    parent_sha256="text",
    set_id="int",
    started="text",
    ended="text",
    outcome="text",
    body="text",
    digest="text",
)

LEDGER_HEAD: Final = _table(
    "ledger_head",
    id="int",
    rows="int",
    digest="text",
    cases="int",
    sets="int",
    sealed_blocks="int",
)

LEDGER_NODE: Final = _table(
    "ledger_node",
    seq="int",
    version_sha256="text",
    parent_sha256="text",
    set_id="int",
    parent_seq="int",
    twin_seq="int",
    hops="int",
)

LEDGER_POSTING: Final = _table("ledger_posting", case_id="int", block="int", sets="bytes")

LEDGER_LINEAGE: Final = _table("ledger_lineage", seq="int", members="bytes")

TRAIL: Final = _table(
    "trail",
    seq="int",
    time="text",
    action="text",
    actor="text",
    body="text",
    digest="text",
)

TRAIL_HEAD: Final = _table("trail_head", id="int", rows="int", digest="text")

ACCESS_TOKEN: Final = _table(
    "access_token",
    id="text",
    digest="text",
    name="text",
    role="text",
    created="text",
    expires="text",
    revoked="text",
)
