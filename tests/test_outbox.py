"""Bytes that wait, and a kernel that takes what the test lets it take."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from wsthread.outbox import Entry, Outbox


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
    assert outbox.drop(100) == 0
    assert outbox.drop(6) == 0
    assert outbox.drop(5) == 1
    assert outbox.size == 3
    assert outbox.drop(1) == 1
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
    st.tuples(st.just("drop"), st.integers(0, 30)),
))


@given(STEPS)
def test_any_course(steps: Iterable[tuple[str, int] | tuple[str, bytes, bool]]) -> None:
    outbox, kernel = Outbox(), Kernel()
    written: list[tuple[bytes, Entry]] = []
    dropped = 0
    for name, value, *droppable in steps:
        if name == "add":
            assert isinstance(value, bytes)
            written.append((value, Entry(value, 1, droppable[0])))
            outbox.add(written[-1][1])
        elif name == "take":
            assert isinstance(value, int)
            kernel.take(outbox, value)
        else:
            assert isinstance(value, int)
            dropped += outbox.drop(value)
        arrived = sum(len(data) for data, entry in written if entry.done)
        assert arrived <= len(kernel.taken)
    kernel.take(outbox, 1 << 20)
    assert outbox.size == 0
    arrived_data = [data for data, entry in written if entry.done]
    assert kernel.taken == b"".join(arrived_data)
    assert dropped == len(written) - len(arrived_data)
    assert kernel.messages == len(arrived_data)
