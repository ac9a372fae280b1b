"""What a publisher sends, and sends again, after each answer that a server can give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsthread.bus.publishing import ITEM_COST, LOST, WITHDRAWN, Batch, Bounds, Outgoing
from wsthread.exceptions import BackplaneFull

MANY = 1 << 30


def outgoing(
    waiting: int = 100, size: int = MANY, kept: int = 100, kept_size: int = MANY, time: float = 60,
) -> Outgoing:
    return Outgoing(Bounds(waiting, size, kept, kept_size, time))


def fill(to: Outgoing, count: int, now: float = 0.0) -> None:
    for _ in range(count):
        to.add("m", b"{}", b"x", now, 0.0)


def asked(of: Outgoing, count: int = 100) -> tuple[int, bool, list[int]]:
    """Return what the next batch is: its base, whether it is forced, and its numbers."""
    base, is_forced, items = of.batch(count, MANY)
    return base, is_forced, [item.number for item in items]


def test_numbers_begin_with_one() -> None:
    one = outgoing()
    assert (asked(one), one.is_due) == ((0, False, []), False)
    assert [one.add("m", b"{}", b"", 0.0, 0.0) for _ in range(3)] == [1, 2, 3]
    assert (asked(one), one.is_due, one.waiting, one.published) == ((0, False, [1, 2, 3]), True, 3, 3)
    one.confirm(3, 0.0)
    assert (asked(one), one.is_due, one.waiting) == ((3, False, []), False, 0)


#: How many entries were confirmed before, how many of them are kept, how many wait; the server's answer; the next
#: batch, and what is confirmed then.
ANSWERS = [
    (0, 5, 3, 0, (0, False, [1, 2, 3]), 0),  # No news.
    (0, 5, 3, 2, (2, False, [3]), 2),
    (0, 5, 3, 3, (3, False, []), 3),
    (0, 5, 3, 9, (3, False, []), 3),  # More than there is.
    (4, 5, 1, 4, (4, False, [5]), 4),
    (4, 5, 1, 2, (2, False, [3, 4, 5]), 2),  # It has lost some.
    (4, 5, 1, 0, (0, False, [1, 2, 3, 4, 5]), 0),
    (4, 2, 1, 2, (2, False, [3, 4, 5]), 2),
    (4, 2, 1, 1, (2, True, [3, 4, 5]), 2),  # And more than was kept.
    (4, 0, 1, 0, (4, True, [5]), 4),
    (4, 0, 0, 0, (4, True, []), 4),
]


@pytest.mark.parametrize(("confirmed", "kept", "waiting", "have", "expected", "now_confirmed"), ANSWERS)
def test_answers(
    confirmed: int, kept: int, waiting: int, have: int, expected: tuple[int, bool, list[int]], now_confirmed: int,
) -> None:
    one = outgoing(kept=kept)
    fill(one, confirmed)
    one.confirm(confirmed, 0.0)
    fill(one, waiting)
    one.confirm(have, 0.0)
    assert (asked(one), one.confirmed, one.is_due) == (expected, now_confirmed, expected[1] or bool(expected[2]))
    one.confirm(one.published, 0.0)
    assert (asked(one), one.is_due) == ((one.published, False, []), False)


def test_a_batch_has_bounds() -> None:
    one = outgoing()
    fill(one, 3)
    assert asked(one, 2)[2] == [1, 2]
    assert [item.number for item in one.batch(9, 2 * ITEM_COST + 100).items] == [1, 2]
    assert [item.number for item in one.batch(9, 1).items] == [1]  # One always.


def test_what_is_sent_again_counts() -> None:
    one = outgoing()
    fill(one, 2)
    asked(one)
    assert one.resent == 0
    fill(one, 1)
    asked(one)
    assert one.resent == 2
    one.confirm(3, 0.0)
    one.confirm(1, 0.0)
    asked(one)
    assert one.resent == 4


@pytest.mark.parametrize(("waiting", "size"), [(2, MANY), (MANY, 2 * ITEM_COST + 10)])
def test_full(waiting: int, size: int) -> None:
    one = outgoing(waiting, size)
    fill(one, 2)
    with pytest.raises(BackplaneFull, match="2 messages, .* wait"):
        fill(one, 1)
    assert (one.published, asked(one)[2]) == (2, [1, 2])
    one.confirm(2, 0.0)
    fill(one, 2)
    one.confirm(0, 0.0)  # What the server has lost takes nobody's place.
    assert asked(one)[2] == [1, 2, 3, 4]
    with pytest.raises(BackplaneFull):
        fill(one, 1)
    one.confirm(3, 0.0)
    fill(one, 1)
    assert asked(one)[2] == [4, 5]


def test_one_always_fits() -> None:
    one = outgoing(size=1)
    fill(one, 1)
    with pytest.raises(BackplaneFull):
        fill(one, 1)


def test_what_is_dropped_keeps_its_number() -> None:
    one = outgoing(2)
    fill(one, 2)
    assert [one.drop(0.0, 0.0), one.drop(0.0, 0.0)] == [3, 4]
    assert [(item.number, item.kind) for item in one.batch(9, MANY).items] == [(1, "m"), (2, "m"), (4, LOST)]
    assert one.drop(0.0, 0.0) == 5  # The one before has been sent.
    one.confirm(4, 0.0)
    one.confirm(2, 0.0)
    fill(one, 1)
    one.drop(0.0, 0.0)
    assert [(item.number, item.kind) for item in one.batch(9, MANY).items] == [
        (4, LOST), (5, LOST), (6, "m"), (7, LOST)]
    assert one.dropped == 4


def test_drop_into_an_empty_queue() -> None:
    one = outgoing()
    assert (one.drop(0.0, 0.0), asked(one)[2]) == (1, [1])


def test_withdraw() -> None:
    one = outgoing(size=2 * ITEM_COST + 100)
    fill(one, 1)
    one.add("m", b"{}", b"x" * 50, 0.0, 0.0)
    one.withdraw(2)
    one.withdraw(7)
    assert [(item.number, item.kind, item.payload) for item in one.batch(9, MANY).items] == [
        (1, "m", b"x"), (2, WITHDRAWN, b"")]
    one.confirm(1, 0.0)
    one.add("m", b"{}", b"x" * 90, 0.0, 0.0)  # Its bytes are free again.
    one.confirm(3, 0.0)
    one.confirm(1, 0.0)
    one.withdraw(3)
    assert [(item.number, item.kind) for item in one.batch(9, MANY).items] == [(2, WITHDRAWN), (3, WITHDRAWN)]


#: Bounds of what is kept, and what is sent again of four entries of the times 0, 1, 2 and 3, at the time 5.
KEPT = [
    ({"kept": 2}, [3, 4]), ({"kept_size": 2 * ITEM_COST + 10}, [3, 4]), ({"time": 3}, [3, 4]), ({"time": 1}, []),
    ({}, [1, 2, 3, 4]),
]


@pytest.mark.parametrize(("bounds", "expected"), KEPT)
def test_kept(bounds: dict[str, int], expected: list[int]) -> None:
    one = outgoing(**bounds)
    for now in range(4):
        fill(one, 1, now)
    one.confirm(4, 5.0)
    one.confirm(0, 5.0)
    assert asked(one) == (4 - len(expected), len(expected) < 4, expected)


class Server:
    """What the script does."""

    def __init__(self) -> None:
        self.stream: list[int] = []
        self.have = 0

    def publish(self, batch: Batch) -> int:
        if self.have < batch.base:
            if not batch.is_forced:
                return self.have
            self.have = batch.base
        for item in batch.items:
            if item.number > self.have:
                self.stream.append(item.number)
                self.have = item.number
        return self.have


STEPS = st.tuples(st.sampled_from(["add", "send", "send without answer", "lose"]), st.integers(0, 20))


@given(st.lists(STEPS, max_size=60), st.integers(0, 20) | st.just(10_000))
def test_the_server_has_everything_in_the_end(steps: list[tuple[str, int]], kept: int) -> None:
    """In order and once; but for what it lost and nobody kept."""
    one, server = outgoing(waiting=10_000, kept=kept), Server()
    for step, number in steps:
        if step == "add":
            fill(one, number)
        elif step == "lose":
            server.stream = server.stream[:max(0, len(server.stream) - number)]
            server.have = server.stream[-1] if server.stream else 0
        else:
            have = server.publish(one.batch(5, MANY))
            if step == "send":
                one.confirm(have, 0.0)
    one.confirm(server.publish(one.batch(5, MANY)), 0.0)  # A sign of life.
    while one.is_due:
        one.confirm(server.publish(one.batch(5, MANY)), 0.0)
    assert (one.confirmed, server.have) == (one.published, one.published)
    assert server.stream == sorted(set(server.stream))
    if kept == 10_000:
        assert server.stream == list(range(1, one.published + 1))
