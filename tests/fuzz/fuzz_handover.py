"""Fuzzes the hand-over of the receiving half between the connection's own thread and the attendant.

An input is one byte of options, one of limits, one that tells how many steps follow, these steps, and what comes from
the wire, as in fuzz_parser.py. A step lets some bytes come, or the attendant, or the connection's own thread for a
message. The same bytes also go to a connection of which only the own thread reads. Both have to hand over the same
messages, write the same answers, and end in the same way. Run it with ``make fuzz``, or on one input with
``python tests/fuzz/fuzz_handover.py FILE``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz_parser import BUILT, COMPRESSED, LIMITS, build, choose, make_agreement  # noqa: E402
from fuzz_parser import seeds as parser_seeds  # noqa: E402
from runner import run  # noqa: E402
from werkzeug.test import EnvironBuilder  # noqa: E402
from werkzeug.wrappers import Request  # noqa: E402
from wire import ServerFrame, server_frames  # noqa: E402

with atheris.instrument_imports(include=["wsthread"]):
    from wsthread.ending import State
    from wsthread.exceptions import ConnectionClosed
    from wsthread.link import Link
    from wsthread.options import Options
    from wsthread.registry import Registry
    from wsthread.snapshot import Snapshot
    from wsthread.wire.messages import Message
    from wsthread.wire.protocol import Close

HANDSHAKE = Snapshot(Request(EnvironBuilder("/").get_environ()))
INBOX_SIZES = (1, 300, 1000, 1 << 20)
PYTHON_ONLY, RESET, OURS = 0x04, 0x08, 0x10


class Wire:
    """A transport whose other end is an input. What has not come yet would block, which no test may."""

    raw_descriptor = -1

    def __init__(self, data: bytes, resets: bool) -> None:
        self._data = data
        self._resets = resets
        self._read = self._come = 0
        self._has_ended = self._is_shut = False
        self.written = b""
        self.closes = 0

    def let_come(self, count: int) -> None:
        """Let some more bytes come."""
        self._come = min(len(self._data), self._come + count)

    def end(self) -> None:
        """Let all come, and the end."""
        self._come, self._has_ended = len(self._data), True

    def recv_now(self, size: int) -> bytes | None:
        assert not self.closes, "a read after the end"
        data = self._data[self._read:min(self._come, self._read + size)]
        self._read += len(data)
        if data or self._is_shut:
            return data
        if self._has_ended and self._resets:
            raise ConnectionResetError("reset")
        return b"" if self._has_ended else None

    def recv(self, size: int) -> bytes:
        data = self.recv_now(size)
        assert data is not None, "a read that would wait for ever"
        return data

    def recv_into_now(self, buffer: memoryview) -> int | None:
        data = self.recv_now(len(buffer))
        if data is None:
            return None
        buffer[:len(data)] = data
        return len(data)

    def recv_into(self, buffer: memoryview) -> int:
        count = self.recv_into_now(buffer)
        assert count is not None, "a read that would wait for ever"
        return count

    def send(self, data: bytes | memoryview) -> int:
        assert not self.closes, "a write after the end"
        if self._is_shut:
            raise BrokenPipeError("shut")
        self.written += data
        return len(data)

    def wait(self, *, readable: bool = False, writable: bool = False, timeout: float | None = None) -> bool:
        return writable or self._read < self._come or self._has_ended or self._is_shut

    def is_hung_up(self) -> bool:
        return self._has_ended or self._is_shut

    def fileno(self) -> int:
        return -1

    def end_sending(self) -> None:
        pass

    def shutdown(self) -> None:
        self._is_shut = True

    def close(self) -> None:
        self.closes += 1


class Side:
    """A connection on a wire, and what becomes of it."""

    def __init__(self, wire: Wire, options: Options, agreement: Any, unread: bytes = b"") -> None:
        self.wire = wire
        # Nothing has to wait for such a wire, so there is nothing to do for a housekeeper.
        self.link = Link(HANDSHAKE, options, None, Registry(), agreement=agreement)  # type: ignore[arg-type]
        self.link.open(wire, b"", unread)  # type: ignore[arg-type]
        self.link.wait_opened()
        self.messages: list[Message] = []
        self.is_over = False

    def receive(self) -> bool:
        """Let the own thread look for a message; tell whether there was one."""
        if not self.is_over:
            try:
                self.messages.append(self.link.receiver.receive_message(0))
                return True
            except TimeoutError:
                pass
            except ConnectionClosed:
                self.is_over = True
        return False

    def finish(self) -> tuple[list[ServerFrame], Close | None]:
        """Let the own thread take what is left, and end; return what was written, and the outcome."""
        self.wire.end()
        while self.receive():
            pass
        assert self.is_over, "neither a message nor an end"
        self.link.finish()
        assert self.link.state is State.CLOSED
        outcome = self.link.outcome
        assert outcome is not None and "error while" not in outcome.reason, "an exception while it was attended"
        assert self.wire.closes == 1, f"the socket was closed {self.wire.closes} times"
        assert not self.link.receiver.inbox_size, "something stays in the inbox"
        return server_frames(self.wire.written), outcome


def test_one_input(data: bytes) -> None:
    """Check one input."""
    if len(data) < 4:
        return
    first, second, count = data[:3]
    steps, rest = data[3:3 + count % 64], data[3 + count % 64:]
    limit = LIMITS[first & 7]
    agreement = make_agreement(first & 0x78)
    stream = build(rest, agreement) if first & BUILT else rest
    choose(in_c=not second & PYTHON_ONLY)
    options = Options(max_message_size=limit or None, max_inbox_size=INBOX_SIZES[second & 3])

    plain = Side(Wire(stream, bool(second & RESET)), options, agreement)
    expected, expected_end = plain.finish()
    side = Side(Wire(stream, bool(second & RESET)), options, agreement)
    is_ours = _take(steps, side, len(stream), options.max_inbox_size, bool(second & OURS))
    written, end = side.finish()

    if is_ours:  # What comes then does not count, and how far it was is a matter of chance.
        assert side.messages == plain.messages[:len(side.messages)], "the hand-over changes the messages"
        return
    assert side.messages == plain.messages, "the hand-over changes the messages"
    assert end is not None and expected_end is not None
    if not (limit or first & COMPRESSED):
        # Otherwise a message may break two rules, and which of them is seen first depends on what has come.
        assert end == expected_end, f"it changes the ending: {end}, {expected_end}"
        assert written == expected, f"it changes the answers: {written}, {expected}"
    assert (end.code == 1006) == (expected_end.code == 1006), f"it changes the ending: {end}, {expected_end}"
    assert written[:-1] == expected[:-1], f"it changes the answers: {written}, {expected}"


def _take(steps: bytes, side: Side, size: int, inbox_limit: int, may_close: bool) -> bool:
    """Take steps; return whether one of them closed a connection that was open."""
    receiver, is_ours = side.link.receiver, False
    for step in steps:
        how_many = 1 + (size * (step >> 3) >> 6)
        match step & 7:
            case 0 | 1:
                side.wire.let_come(how_many)
            case 2 | 3:
                side.wire.let_come(how_many)
                receiver.attend()
            case 4:
                receiver.attend()
            case 5:
                side.receive()
            case 6:
                side.wire.let_come(step >> 3)
                side.receive()
            case 7 if may_close and step >> 3 == 31:
                is_ours = is_ours or side.link.state is State.OPEN
                side.link.sender.close(Close(4000))
            case 7 if may_close and step >> 3 == 30:
                is_ours = is_ours or side.link.state is State.OPEN
                side.link.sender.terminate("a step")
            case 7 if step >> 3 == 29:
                side.wire.end()
            case 7:
                side.wire.let_come(1)
                receiver.attend()
        assert not receiver.lock.locked()
    return is_ours


def _seeds() -> Iterator[bytes]:
    schedules = [
        b"", b"\x02\x02\x0a\x05\x12\x22\xfa", b"\xf8\x05\x04\x05\x05", b"\xfa", b"\xf8\x04\x05\xf8\xef\x04\x04",
        b"\x07" * 40, b"\x0e\x07" * 20, b"\x7a\xff\x04", b"\x7a\xf7\x05", b"\x06\x04\x08" * 10]
    for number, seed in enumerate(parser_seeds()):
        steps = schedules[number % len(schedules)]
        yield bytes((seed[0], number * 7 & 0xFF, len(steps))) + steps + seed[2:]


if __name__ == "__main__":
    logging.disable()
    run("handover", test_one_input, _seeds(), max_length=700)
