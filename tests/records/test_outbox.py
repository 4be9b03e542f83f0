"""The outbox: nothing is lost, order is kept, and pauses grow."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from pydicom.uid import UID

from segunlearn.errors import InvalidInputError
from segunlearn.records.outbox import FIRST_PAUSE, LONGEST_PAUSE, Outbox, OutboxItem, PacsSeen
from segunlearn.records.store import Store


@dataclass
class Clock:
    now: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(store: Store, clock: Clock) -> Outbox:
    return Outbox(store, clock=clock, jitter=lambda: 0.0)


def put(store: Store, outbox: Outbox, *lanes: str) -> list[str]:
    with store.write() as connection:
        return [
            outbox.enqueue(connection, lane=lane, request_id=f"r{i}", payload={"number": i})
            for i, lane in enumerate(lanes)
        ]


def drain(outbox: Outbox, limit: int = 3) -> list[OutboxItem]:
    sent = []
    while items := outbox.claim(limit):
        for item in items:
            outbox.sent(item)
            sent.append(item)
    return sent


def test_documents_have_valid_uids_that_never_change(store: Store, outbox: Outbox) -> None:
    uids = put(store, outbox, "a", "a", "b")
    assert len(set(uids)) == 3
    assert all(UID(uid).is_valid for uid in uids)
    assert [i.document_uid for i in outbox.list()] == uids
    (first, _) = outbox.claim()
    outbox.failed(first, "down")
    assert outbox.list()[0].document_uid == uids[0]


def test_a_change_that_is_undone_leaves_no_document(store: Store, outbox: Outbox) -> None:
    def mark_and_fail() -> None:
        with store.write() as connection:
            outbox.enqueue(connection, lane="a", request_id="r", payload={})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mark_and_fail()
    assert outbox.list() == []


def test_one_lane_keeps_its_order_and_holds_up_no_other(
    store: Store, outbox: Outbox, clock: Clock
) -> None:
    put(store, outbox, "a", "b", "a", "b", "a")
    first, second = outbox.claim()
    assert (first.lane, second.lane) == ("a", "b")
    outbox.failed(first, "refused")
    outbox.sent(second)
    assert [i.payload["number"] for i in drain(outbox)] == [3]
    assert outbox.claim() == []
    clock.forward(FIRST_PAUSE)
    assert [i.payload["number"] for i in drain(outbox)] == [0, 2, 4]


def test_pauses_double_up_to_an_hour(store: Store, outbox: Outbox, clock: Clock) -> None:
    put(store, outbox, "a")
    for attempt in range(14):
        (item,) = outbox.claim()
        assert item.attempts == attempt
        outbox.failed(item, "down")
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
        clock.forward(pause - 0.001)
        assert outbox.claim() == []
        clock.forward(0.001)
    assert pause == LONGEST_PAUSE


def test_jitter_shortens_a_pause_by_up_to_a_half(store: Store, clock: Clock) -> None:
    outbox = Outbox(store, clock=clock, jitter=lambda: 1.0)
    put(store, outbox, "a")
    outbox.failed(outbox.claim()[0], "down")
    clock.forward(FIRST_PAUSE / 2)
    assert len(outbox.claim()) == 1


def test_an_outage_has_a_shorter_bound(store: Store, outbox: Outbox, clock: Clock) -> None:
    put(store, outbox, "a")
    for _ in range(12):
        outbox.failed(outbox.claim()[0], "down", longest=300.0)
        clock.forward(300.0)
    assert len(outbox.claim()) == 1


def test_a_claim_ends_when_its_owner_dies(store: Store, outbox: Outbox, clock: Clock) -> None:
    put(store, outbox, "a", "a")
    assert len(outbox.claim(lease_seconds=60)) == 1
    assert outbox.claim() == []
    clock.forward(60)
    assert [i.payload["number"] for i in outbox.claim()] == [0]


def test_a_released_document_is_due_at_once(store: Store, outbox: Outbox) -> None:
    put(store, outbox, "a")
    (item,) = outbox.claim()
    outbox.release(item)
    assert [i.attempts for i in outbox.claim()] == [0]


def test_status(store: Store, outbox: Outbox, clock: Clock) -> None:
    empty = outbox.status()
    assert (empty.waiting, empty.sent, empty.oldest, empty.last_error) == (0, 0, None, "")
    assert not outbox.waits()
    put(store, outbox, "a", "b", "c")
    clock.forward(1)
    first, second, _ = outbox.claim()
    outbox.sent(first)
    outbox.failed(second, "the PACS is down" + "!" * 1000)
    status = outbox.status()
    assert (status.waiting, status.retrying, status.sent) == (2, 1, 1)
    assert status.oldest == "2026-01-01T00:00:00.000000Z"
    assert status.last_error.startswith("the PACS is down")
    assert len(status.last_error) == 500
    assert outbox.waits()
    assert [i.payload["number"] for i in outbox.list(waiting=True)] == [1, 2]
    assert [i.payload["number"] for i in outbox.list(waiting=False)] == [0]
    assert [i.payload["number"] for i in outbox.list(limit=1, offset=2)] == [2]


def test_retry_now(store: Store, outbox: Outbox) -> None:
    put(store, outbox, "a", "b")
    for item in outbox.claim():
        outbox.failed(item, "down")
    assert outbox.claim() == []
    assert outbox.retry_now() == 2
    assert len(outbox.claim()) == 2


def test_settling_twice_keeps_the_first(store: Store, outbox: Outbox) -> None:
    put(store, outbox, "a")
    (item,) = outbox.claim()
    outbox.sent(item)
    sent = outbox.list()[0].sent
    outbox.failed(item, "a late answer")
    assert outbox.list()[0].sent == sent
    assert outbox.list()[0].attempts == 0


def test_a_lane_is_needed(store: Store, outbox: Outbox) -> None:
    with pytest.raises(InvalidInputError), store.write() as connection:
        outbox.enqueue(connection, lane="", request_id="r", payload={})


_SENDER = """
import sys
from segunlearn.records.outbox import Outbox
from segunlearn.records.store import open_store
outbox = Outbox(open_store(sys.argv[1]))
while items := outbox.claim(4):
    for item in items:
        sys.stdout.write(f"{item.lane} {item.payload['number']}\\n")
        sys.stdout.flush()
        outbox.sent(item)
"""


def test_two_senders_send_each_document_once_and_in_order(
    store_place: str, store: Store, outbox: Outbox
) -> None:
    live = Outbox(store)
    put(store, live, *(["a", "b", "c"] * 20))
    command = [sys.executable, "-c", _SENDER, store_place]
    senders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for sender in senders for line in sender.communicate(timeout=60)[0].split("\n")]
    sent = [line for line in lines if line]
    assert len(sent) == len(set(sent)) == 60
    times = {(i.lane, i.payload["number"]): i.sent or "~" for i in live.list(limit=100)}
    for lane in "abc":
        order = [number for (which, number) in times if which == lane]
        assert order == sorted(order, key=lambda n: times[lane, n])


def test_what_was_seen(store: Store) -> None:
    seen = PacsSeen(store)
    assert seen.notes("document", []) == {}
    seen.remember("document", {})
    seen.remember("document", {"1.2": "read", "1.3": "ours"})
    seen.remember("study", {"1.2": "there"})
    seen.remember("document", {"1.2": "again"})
    assert seen.notes("document", ["1.2", "1.3", "1.4"]) == {"1.2": "again", "1.3": "ours"}
    assert seen.notes("study", ["1.2", "1.3"]) == {"1.2": "there"}
