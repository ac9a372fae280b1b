"""The overflow policy: what becomes of a message that is too much for a peer, and of those that wait."""

from __future__ import annotations

import pytest

from wsthread.options import Options, Overflow
from wsthread.outbox import ENTRY_COST, Entry, Outbox
from wsthread.overflow import Posted, Verdict, is_overflowing, judge

LIMIT = 100
UNIT = 10 * ENTRY_COST  # Bytes; all sizes below are in these, so that the costs of three entries make no difference.


def outbox(*sizes: int) -> Outbox:
    """Return an outbox in which messages wait; a negative size is one that may not be dropped."""
    made = Outbox()
    for size in sizes:
        made.add(Entry(bytes(abs(size) * UNIT), 1, droppable=size > 0))
    return made


def options(overflow: Overflow) -> Options:
    """Return options with an outbox of :data:`LIMIT`, and the costs of three entries."""
    return Options(overflow=overflow, max_outbox_size=LIMIT * UNIT + 3 * ENTRY_COST)


@pytest.mark.parametrize(("waiting", "size", "expected"), [
    ((), 1, False),
    ((), LIMIT, False),
    ((), 1000 * LIMIT, False),  # An empty outbox takes a message of any size.
    ((60,), 40, False),
    ((60,), 41, True),
    ((LIMIT,), 0, False),
    ((LIMIT,), 1, True),
    ((10 * LIMIT,), 1, True),
])
def test_is_overflowing(waiting: tuple[int, ...], size: int, expected: bool) -> None:
    assert is_overflowing(outbox(*waiting), size * UNIT, options("close")) is expected


@pytest.mark.parametrize(("overflow", "waiting", "size", "verdict", "left"), [
    # All that may be dropped is, and the message itself.
    ("close", (60, 40), 1, Verdict(Posted.DROPPED, 3, close=True), 0),
    ("close", (-60, 40), 1, Verdict(Posted.DROPPED, 2, close=True), 60),
    # As few as make room, the oldest first.
    ("drop_oldest", (60, 40), 1, Verdict(None, 1), 40),
    ("drop_oldest", (60, 40), 60, Verdict(None, 1), 40),
    ("drop_oldest", (60, 40), 61, Verdict(None, 2), 0),
    ("drop_oldest", (-60, 40), 30, Verdict(None, 1), 60),
    ("drop_oldest", (-60, 40), 41, Verdict(Posted.DROPPED, 2), 60),  # There was no room for it after all.
    ("drop_oldest", (-100,), 1, Verdict(Posted.DROPPED, 1), 100),
    ("drop_oldest", (60, 40), 500, Verdict(None, 2), 0),  # Alone it may be as large as it likes.
    ("drop_newest", (60, 40), 1, Verdict(Posted.DROPPED, 1), 100),
    ("drop_newest", (-60, 40), 1, Verdict(Posted.DROPPED, 1), 100),
    ("block", (60, 40), 1, Verdict(Posted.FULL), 100),
])
def test_judge(overflow: Overflow, waiting: tuple[int, ...], size: int, verdict: Verdict, left: int) -> None:
    box = outbox(*waiting)
    assert judge(box, size * UNIT, options(overflow)) == verdict
    assert box.size == left * UNIT


def test_tiny_messages_count_with_what_they_cost() -> None:
    """An outbox of 1 MiB holds some thousands of them, not half a million."""
    box, given = Outbox(), Options()
    while not is_overflowing(box, 6, given):
        box.add(Entry(bytes(6), 1, droppable=True))
    assert 1000 * 6 < box.size < 10_000 * 6
