"""Calls of what C replaces, made of bytes: what ``make fuzz`` mutates, and what ``make sanitize`` makes at random.

:func:`check` makes some calls with the C version and with the Python version, and compares what they return, raise and
send. Arguments of wrong types are among them: C has to raise for those, and nothing else may happen. No call gets at a
file that is not a socket of its own.

``python tests/calls.py 20000`` makes so many at random.
"""

from __future__ import annotations

import importlib
import random
import socket
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from wsthread import speedups
from wsthread.wire.frames import Opcode
from wsthread.wire.messages import Message

PYTHON: Any = SimpleNamespace(**speedups.python_versions)
try:
    C: Any = importlib.import_module("wsthread._speedups")
except ImportError:
    C = PYTHON
MOST_CALLS = 20  # Of one input.


class Source:
    """Values made of bytes; when these are used up, they are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether bytes are left."""
        return self._at < len(self._data)

    def number(self, limit: int) -> int:
        """Return a number from 0 to below a limit of 65536 at most."""
        taken = self.taken(2 if limit > 256 else 1)
        return int.from_bytes(taken, "big") % limit

    def taken(self, size: int) -> bytes:
        """Return so many bytes."""
        found = self._data[self._at:self._at + size]
        self._at += size
        return found.ljust(size, b"\0")

    def some(self) -> bytes:
        """Return bytes, some of which may be many."""
        size = (0, 1, 4, 7, 125, 126, 300, 1023, 1024, 4096, 4097, 65535, 65536, 70_000)[self.number(14)]
        piece = self.taken(1 + self.number(24))
        return (piece * (size // len(piece) + 1))[:size]

    def integer(self) -> int:
        """Return an int of a size that matters."""
        return (
            0, 1, -1, 2, 125, 126, 300, 65536, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, -(1 << 63),
            1 << 64, 1 << 70)[self.number(16)]

    def anything(self) -> Any:
        """Return a value of any type that a call may get by mistake."""
        data = self.some()
        return (
            None, True, 1.5, "text", "\xe9\u20ac", "\ud800", data, bytearray(data), memoryview(data),
            memoryview(bytearray(data))[::2], (), (data,), [], {}, object(), int, self.integer(), -self.integer(),
            type("Bytes", (bytes,), {})(data), type("Str", (str,), {})("text"))[self.number(20)]


class _Noting:
    """What a sending half has to do by itself, noted."""

    def __init__(self, sock: socket.socket) -> None:
        self.send_lock = threading.Lock()
        self.clear = True
        self.fd = sock.fileno()
        self.compressed_from = sys.maxsize
        self.compression = 0
        self.bytes_sent = self.messages_sent = 0
        self.calls: list[str] = []
        self._socket = sock

    def write_now(self, frame: bytes) -> int:
        """Write what the kernel takes."""
        sent: int = PYTHON.send(self._socket, frame)
        return sent

    def broke(self, error: OSError) -> None:
        """Note it."""
        self.calls.append(f"broke {error.errno}")

    def keep_rest(self, frame: bytes, sent: int) -> None:
        """Note it."""
        self.clear = False
        self.calls.append(f"keep {len(frame) - sent}")

    def send_rest(self, frame: bytes, sent: int, timeout: float | None) -> None:
        """Note it."""
        self.clear = False
        self.calls.append(f"send {len(frame) - sent}")


class Outcome(NamedTuple):
    """What came of a call."""

    value: Any
    error: type[BaseException] | None


def _outcome(function: Callable[..., Any], *args: Any) -> Outcome:
    try:
        return Outcome(function(*args), None)
    except Exception as error:
        return Outcome(None, type(error))


def check(data: bytes) -> None:
    """Make the calls of an input; raises AssertionError when the versions differ."""
    source = Source(data)
    for _ in range(MOST_CALLS):
        if not source:
            break
        KINDS[source.number(len(KINDS))](source)


def _wrong(source: Source) -> None:
    """Call anything with anything. Only that it comes back counts; it must not write to a file that is not ours."""
    name = sorted(speedups.python_versions)[source.number(len(speedups.python_versions))]
    args = [source.anything() for _ in range(source.number(8))]
    if name in ("recv", "recv_into", "recv_now", "send", "send_both") and args:
        args[0] = (-1, -2, None, "text", 1 << 31, 1 << 70, -(1 << 70), object())[source.number(8)]
    _outcome(getattr(C, name), *args)


def _mask(source: Source) -> None:
    payload, key = source.some(), source.taken((4, 4, 4, 3, 5)[source.number(5)])
    assert _outcome(C.mask, payload, key) == _outcome(PYTHON.mask, payload, key)
    ours, theirs = bytearray(payload), bytearray(payload)
    start = source.number(9)
    views = memoryview(ours)[start:], memoryview(theirs)[start:]
    assert _outcome(C.mask_in_place, views[0], key) == _outcome(PYTHON.mask_in_place, views[1], key)
    assert ours == theirs


def _frame(source: Source) -> bytes:
    payload = source.some()
    first = (0x81, 0x82, 0x01, 0x02, 0x80, 0xC1, 0x88, 0x89)[source.number(2 if source.number(4) else 8)]
    length = len(payload) + (0 if source.number(4) else source.integer() % (1 << 64))
    form = source.number(4)
    if length < 126 and form < 2:
        header = bytes((first, 0x80 | length))
    elif length < 1 << 16 and form < 3:
        header = bytes((first, 0xFE)) + length.to_bytes(2, "big")
    else:
        header = bytes((first, 0xFF)) + (length % (1 << 64)).to_bytes(8, "big")
    return header + source.taken(4) + payload


def _read_messages(source: Source) -> None:
    buffer = b"".join(_frame(source) for _ in range(1 + source.number(6)))
    buffer = buffer[:len(buffer) - source.number(10)]
    start = source.number(4) if source.number(2) else source.integer()
    max_size = (None, source.number(400), source.integer())[source.number(3)]
    args = buffer, start, max_size, Message, Opcode.TEXT, Opcode.BINARY
    assert _same(_outcome(C.read_messages, *args), _outcome(PYTHON.read_messages, *args))


def _same(ours: Outcome, theirs: Outcome) -> bool:
    # A number that is too large for C is an OverflowError there.
    return ours == theirs or {ours.error, theirs.error} == {ValueError, OverflowError}


def _encode_message(source: Source) -> None:
    payload: Any = source.some()
    if source.number(2):
        payload = payload.decode("latin-1")
    assert _outcome(C.encode_message, payload) == _outcome(PYTHON.encode_message, payload)


def _send(source: Source) -> None:
    """Send through states of both versions, with sockets that may be full or broken, and compare what comes out."""
    sockets = [socket.socketpair() for _ in range(2)]
    if source.number(3) == 0:
        for sending, _ in sockets:
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    try:
        states = [
            type("State", (_Noting, version.SendState), {})(pair[0]) for version, pair in zip((C, PYTHON), sockets)]
        clear, fd, threshold, locked = source.number(4), source.number(8), source.number(3), source.number(8)
        way = source.number(3)
        for state, pair in zip(states, sockets):
            state.clear = clear > 0
            if fd == 0:
                state.fd = -1
            elif fd == 1:
                pair[1].close()
            state.compressed_from, state.compression = (sys.maxsize, 0, 100)[threshold], way
            if locked == 0:
                state.send_lock.acquire()
        outcomes: list[list[Outcome]] = [[], []]
        for _ in range(source.number(6)):
            payload: Any = source.some()
            if source.number(2):
                payload = payload.decode("latin-1")
            to_each, compression = source.number(2), source.number(3)
            for found, version, state in zip(outcomes, (C, PYTHON), states):
                if to_each:
                    frame = payload if isinstance(payload, bytes) else payload.encode()
                    found.append(_outcome(version.send_each, (state,), frame, len(frame), compression))
                else:
                    found.append(_outcome(version.send_small, state, payload, 0.1))
        assert outcomes[0] == outcomes[1], outcomes
        notes = [(one.calls, one.bytes_sent, one.messages_sent, one.clear, one.send_lock.locked()) for one in states]
        assert notes[0] == notes[1], notes
        if fd != 1:
            assert _rest(sockets[0]) == _rest(sockets[1])
    finally:
        for pair in sockets:
            for sock in pair:
                sock.close()


def _rest(pair: tuple[socket.socket, socket.socket]) -> bytes:
    pair[0].close()
    parts = []
    while data := pair[1].recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def _receive(source: Source) -> None:
    """Read what was sent, in pieces."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = source.some()[:60_000]
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        received = b""
        while True:
            size = 1 + source.number(5000)
            if source.number(2):
                piece = (C if C is not PYTHON else PYTHON).recv(_handle(ours), size)
            else:
                room = bytearray(size)
                piece = bytes(room[:C.recv_into(_handle(ours), room)])
            if not piece:
                break
            assert len(piece) <= size
            received += piece
            if not source:  # Otherwise an input of zeros would take one byte at a time.
                break
        assert data.startswith(received)
        for size in (0, -1, -(1 << 40)):
            assert _outcome(C.recv, _handle(ours), size).error is ValueError
        assert C.recv_now(_handle(ours), 1 << 16) is not None


def _handle(sock: socket.socket) -> Any:
    return sock if C is PYTHON else sock.fileno()


KINDS: list[Callable[[Source], None]] = [
    _wrong, _mask, _read_messages, _encode_message, _send, _receive, _send, _read_messages]


def main() -> None:
    """Make calls at random."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"{number} inputs, seed {seed}, {getattr(C, '__file__', 'without C')}", flush=True)
    generator = random.Random(seed)
    for _ in range(number):
        check(generator.randbytes(generator.randrange(400)))


if __name__ == "__main__":
    main()
