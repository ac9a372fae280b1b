"""Bytes that wait, and a kernel that takes what the test lets it take."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from wsthread.outbox import ENTRY_COST, Entry, Outbox


class Kernel:
    """A send buffer."""

    def __init__(self) -> None:
        self.taken = b""
        self.messages = 0  # How many left altogether.

    def take(self, outbox: Outbox, room: int) -> None:
        """Take what waits, as long as there is room."""
        while outbox.size:
            data = outbox.first
            part = bytes(data[:room])
            room -= len(part)
            self.taken += part
            whole = len(part) == len(data)
            self.messages += outbox.remove(len(part))
            if not whole:
                break


def fill(*entries: tuple[bytes, bool]) -> tuple[Outbox, list[Entry]]:
    """Return an outbox with entries given as data and whether they are droppable."""
    outbox = Outbox()
    made = [Entry(data, 1, droppable) for data, droppable in entries]
    for entry in made:
        outbox.add(entry)
    return outbox, made


def test_it_leaves_in_order_and_in_parts() -> None:
    kernel = Kernel()
    outbox, entries = fill((b"abc", False), (b"de", True))
    assert outbox.size == 5
    kernel.take(outbox, 2)
    assert (kernel.taken, outbox.size, [entry.done for entry in entries]) == (b"ab", 3, [False, False])
    kernel.take(outbox, 0)  # No room: nothing changes.
    assert (kernel.taken, outbox.size) == (b"ab", 3)
    kernel.take(outbox, 2)
    assert (kernel.taken, outbox.size, [entry.done for entry in entries]) == (b"abcd", 1, [True, False])
    outbox.add(Entry(b"f"))
    kernel.take(outbox, 100)
    assert (kernel.taken, outbox.size, entries[1].done) == (b"abcdef", 0, True)
    outbox.add(Entry(b"g"))
    kernel.take(outbox, 100)
    assert (kernel.taken, outbox.size) == (b"abcdefg", 0)


def test_messages_count_when_they_have_left() -> None:
    outbox, kernel = Outbox(), Kernel()
    outbox.add(Entry(b"a", 3))
    outbox.add(Entry(b"bc"))
    outbox.add(Entry(b"d", 1, True))
    outbox.add(Entry(b"e", 1))
    kernel.take(outbox, 2)
    assert kernel.messages == 3
    outbox.drop(0)
    kernel.take(outbox, 100)
    assert (kernel.taken, kernel.messages) == (b"abce", 4)


def test_drop_gives_up_the_oldest() -> None:
    kernel = Kernel()
    outbox, entries = fill((b"aaa", True), (b"bb", True), (b"c", True))
    assert outbox.cost == 6 + 3 * ENTRY_COST
    assert outbox.drop(100 + 3 * ENTRY_COST) == 0
    assert outbox.drop(6 + 3 * ENTRY_COST) == 0
    assert outbox.drop(5 + 3 * ENTRY_COST) == 1
    assert outbox.size == 3
    assert outbox.drop(1 + ENTRY_COST) == 1
    kernel.take(outbox, 100)
    assert kernel.taken == b"c"
    assert [entry.done for entry in entries] == [False, False, True]


def test_drop_keeps_what_somebody_waits_for() -> None:
    kernel = Kernel()
    outbox, _ = fill((b"bbb", False), (b"ccc", True), (b"ddd", False), (b"eee", True))
    assert outbox.drop(0) == 2
    assert outbox.size == 6
    assert outbox.drop(0) == 0
    kernel.take(outbox, 100)
    assert kernel.taken == b"bbbddd"


def test_drop_keeps_what_left_in_part() -> None:
    kernel = Kernel()
    outbox, _ = fill((b"aaa", True), (b"bbb", True))
    kernel.take(outbox, 1)
    assert outbox.drop(0) == 1
    assert outbox.size == 2
    kernel.take(outbox, 100)
    assert kernel.taken == b"aaa"


def test_drop_of_everything_and_then_more() -> None:
    kernel = Kernel()
    outbox, _ = fill((b"aaa", True), (b"bbb", True))
    assert outbox.drop(0) == 2
    assert (outbox.size, outbox.drop(0)) == (0, 0)
    outbox.add(Entry(b"ccc"))
    kernel.take(outbox, 100)
    assert kernel.taken == b"ccc"


def test_drop_of_nothing() -> None:
    assert Outbox().drop(0) == 0


def test_clear() -> None:
    kernel = Kernel()
    outbox, entries = fill((b"aaa", False), (b"bbb", True))
    kernel.take(outbox, 1)
    outbox.clear()
    assert outbox.size == 0
    kernel.take(outbox, 100)
    assert kernel.taken == b"a"
    assert [entry.done for entry in entries] == [False, False]


STEPS = st.lists(st.one_of(
    st.tuples(st.just("add"), st.binary(min_size=1, max_size=9), st.booleans()),
    st.tuples(st.just("take"), st.integers(0, 12)),
    st.tuples(st.just("drop"), st.integers(0, 10 * ENTRY_COST)),
    st.tuples(st.just("control"), st.binary(min_size=1, max_size=9)),
))


@given(STEPS)
def test_any_course(steps: Iterable[tuple[str, int] | tuple[str, bytes] | tuple[str, bytes, bool]]) -> None:
    outbox, kernel = Outbox(), Kernel()
    written: list[tuple[bytes, Entry | None]] = []  # None: a control frame.
    dropped = 0
    for name, value, *droppable in steps:
        if name == "add":
            assert isinstance(value, bytes)
            entry = Entry(value, 1, droppable[0])
            written.append((value, entry))
            outbox.add(entry)
        elif name == "control":
            assert isinstance(value, bytes)
            written.append((value, None))
            outbox.add_control(value)
        elif name == "take":
            assert isinstance(value, int)
            kernel.take(outbox, value)
        else:
            assert isinstance(value, int)
            dropped += outbox.drop(value)
        arrived = sum(len(data) for data, entry in written if entry is not None and entry.done)
        assert arrived <= len(kernel.taken)
        assert outbox.size <= outbox.cost <= outbox.size + ENTRY_COST * len(written)
    kernel.take(outbox, 1 << 20)
    assert (outbox.size, outbox.cost) == (0, 0)
    arrived_data = [data for data, entry in written if entry is None or entry.done]
    assert kernel.taken == b"".join(arrived_data)
    assert dropped == len(written) - len(arrived_data)
    assert kernel.messages == sum(entry is not None and entry.done for _, entry in written)


def test_small_entries_leave_together() -> None:
    outbox, entries = fill(*[(b"%05d" % number, True) for number in range(30_000)])
    kernel, writes = Kernel(), 0
    while outbox.size:
        kernel.taken += bytes(outbox.first)
        outbox.remove(len(outbox.first))
        writes += 1
    assert writes == 3
    assert kernel.taken == b"".join(b"%05d" % number for number in range(30_000))
    assert all(entry.done for entry in entries)


def test_large_entries_are_not_copied() -> None:
    large = bytes(1 << 20)
    outbox, _ = fill((large, False), (b"a", False))
    assert outbox.first is large


def test_control_frames_share_entries() -> None:
    outbox, _ = fill((b"message", True))
    for number in range(10_000):
        outbox.add_control(b"%05d" % number)
    assert outbox.size == 50_007
    assert outbox.cost < outbox.size + 15 * ENTRY_COST
    kernel = Kernel()
    kernel.take(outbox, 1 << 20)
    assert kernel.taken == b"message" + b"".join(b"%05d" % number for number in range(10_000))


def test_dropping_among_many_entries_takes_one_pass() -> None:
    """With a look at each place for each drop it would take minutes."""
    outbox, _ = fill(*[(b"x", number % 2 == 0) for number in range(200_000)])
    assert outbox.drop(0) == 100_000
    assert outbox.size == 100_000
