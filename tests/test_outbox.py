"""Bytes on their way, with a kernel that takes what the test lets it take."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsthread.outbox import Entry, Outbox


class Kernel:
    """A send buffer with so much room."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.taken = b""

    def send(self, data: bytes | memoryview, flags: int) -> int:
        """Take what there is room for."""
        part = bytes(data[:self.room])
        self.room -= len(part)
        self.taken += part
        return len(part)


def fill(outbox: Outbox, kernel: Kernel, *entries: tuple[bytes, bool]) -> list[Entry | None]:
    """Write entries given as data and whether they are droppable."""
    return [outbox.write(data, kernel.send, droppable=droppable) for data, droppable in entries]


def test_what_the_kernel_takes_at_once_does_not_wait() -> None:
    outbox, kernel = Outbox(), Kernel(100)
    assert outbox.write(b"hello", kernel.send) is None
    assert (outbox.size, outbox.sent) == (0, 5)
    assert kernel.taken == b"hello"


def test_the_rest_waits() -> None:
    outbox, kernel = Outbox(), Kernel(2)
    entry = outbox.write(b"hello", kernel.send)
    assert entry is not None
    assert not entry.done
    assert (outbox.size, outbox.sent) == (3, 2)
    kernel.room = 1
    outbox.flush(kernel.send)
    assert not entry.done
    assert (outbox.size, outbox.sent) == (2, 3)
    outbox.flush(kernel.send)  # No room: nothing changes.
    assert (outbox.size, outbox.sent) == (2, 3)
    kernel.room = 2
    outbox.flush(kernel.send)
    assert entry.done
    assert (outbox.size, outbox.sent) == (0, 5)
    assert kernel.taken == b"hello"


def test_nothing_overtakes() -> None:
    outbox, kernel = Outbox(), Kernel(1)
    first, second = fill(outbox, kernel, (b"ab", False), (b"cd", True))
    kernel.room = 100
    third = outbox.write(b"ef", kernel.send)  # There is room, but not before its turn.
    assert kernel.taken == b"a"
    assert first is not None and second is not None and third is not None
    kernel.room = 3
    outbox.flush(kernel.send)
    assert (first.done, second.done, third.done) == (True, True, False)
    kernel.room = 100
    outbox.flush(kernel.send)
    assert third.done
    assert kernel.taken == b"abcdef"
    assert outbox.write(b"gh", kernel.send) is None
    assert outbox.sent == len(kernel.taken)


def test_messages_count_when_they_have_left() -> None:
    outbox, kernel = Outbox(), Kernel(3)
    outbox.write(b"a", kernel.send, messages=1)
    outbox.write(b"b", kernel.send)
    assert outbox.messages == 1
    outbox.write(b"cd", kernel.send, messages=1)
    outbox.write(b"ef", kernel.send, messages=1, droppable=True)
    outbox.write(b"gh", kernel.send)
    outbox.write(b"ij", kernel.send, messages=1)
    assert outbox.messages == 1
    outbox.drop(0)
    kernel.room = 100
    outbox.flush(kernel.send)
    assert outbox.messages == 3


def test_flush_of_nothing() -> None:
    outbox, kernel = Outbox(), Kernel(1)
    outbox.flush(kernel.send)
    assert (outbox.size, outbox.sent) == (0, 0)


def test_drop_gives_up_the_oldest() -> None:
    outbox, kernel = Outbox(), Kernel()
    entries = fill(outbox, kernel, (b"aaa", True), (b"bb", True), (b"c", True))
    assert outbox.drop(100) == 0
    assert outbox.drop(6) == 0
    assert outbox.drop(5) == 1
    assert outbox.size == 3
    assert outbox.drop(1) == 1
    kernel.room = 100
    outbox.flush(kernel.send)
    assert kernel.taken == b"c"
    assert [entry is not None and entry.done for entry in entries] == [False, False, True]


def test_drop_keeps_what_somebody_waits_for_and_what_left_in_part() -> None:
    outbox, kernel = Outbox(), Kernel(1)
    fill(outbox, kernel, (b"aaa", True), (b"bbb", False), (b"ccc", True), (b"ddd", False), (b"eee", True))
    assert outbox.drop(0) == 2
    assert outbox.size == 8
    assert outbox.drop(0) == 0
    kernel.room = 100
    outbox.flush(kernel.send)
    assert kernel.taken == b"aaabbbddd"


def test_an_entry_that_leaves_in_part_while_flushing_is_kept() -> None:
    outbox, kernel = Outbox(), Kernel()
    fill(outbox, kernel, (b"aaa", True))
    kernel.room = 1
    outbox.flush(kernel.send)
    assert outbox.drop(0) == 0
    assert outbox.size == 2


def test_drop_of_everything_and_then_more() -> None:
    outbox, kernel = Outbox(), Kernel()
    fill(outbox, kernel, (b"aaa", True), (b"bbb", True))
    assert outbox.drop(0) == 2
    assert outbox.size == 0
    assert outbox.drop(0) == 0
    kernel.room = 3
    assert outbox.write(b"ccc", kernel.send) is None
    assert kernel.taken == b"ccc"


def test_clear() -> None:
    outbox, kernel = Outbox(), Kernel(1)
    entry, _ = fill(outbox, kernel, (b"aaa", False), (b"bbb", True))
    outbox.clear()
    assert (outbox.size, outbox.sent) == (0, 1)
    kernel.room = 100
    outbox.flush(kernel.send)
    assert kernel.taken == b"a"
    assert entry is not None
    assert not entry.done


def test_an_error_while_sending_leaves_the_rest_in_place() -> None:
    outbox, kernel = Outbox(), Kernel()
    fill(outbox, kernel, (b"aaa", True))

    def broken(data: bytes | memoryview, flags: int) -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        outbox.flush(broken)
    assert outbox.size == 3


STEPS = st.lists(st.one_of(
    st.tuples(st.just("write"), st.binary(min_size=1, max_size=9), st.booleans()),
    st.tuples(st.just("flush"), st.integers(0, 12)),
    st.tuples(st.just("drop"), st.integers(0, 30)),
))


@given(STEPS)
def test_any_course(steps: Iterable[tuple[str, int] | tuple[str, bytes, bool]]) -> None:
    outbox, kernel = Outbox(), Kernel()
    written: list[tuple[bytes, Entry | None, bool]] = []
    dropped = 0
    for name, value, *droppable in steps:
        if name == "write":
            assert isinstance(value, bytes)
            entry = outbox.write(value, kernel.send, messages=1, droppable=droppable[0])
            written.append((value, entry, droppable[0]))
        elif name == "flush":
            assert isinstance(value, int)
            kernel.room = value
            outbox.flush(kernel.send)
        else:
            assert isinstance(value, int)
            dropped += outbox.drop(value)
    assert outbox.sent == len(kernel.taken)
    kernel.room = 1 << 20
    outbox.flush(kernel.send)
    assert outbox.size == 0
    arrived = [data for data, entry, _ in written if entry is None or entry.done]
    assert kernel.taken == b"".join(arrived)
    assert dropped == len(written) - len(arrived)
    assert outbox.messages == len(arrived)
    assert all(droppable for _, entry, droppable in written if entry is not None and not entry.done)
