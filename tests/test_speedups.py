"""The seam to C: the C version and the Python version of each function get the same inputs and do the same."""

from __future__ import annotations

import importlib
import inspect
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bounded, junk, masking_keys, payloads, streams
from wire import BINARY, MASK, RSV1, TEXT, client_frame, client_header, xor

from wsthread import speedups
from wsthread.wire.frames import Frame, Opcode, encode_frame
from wsthread.wire.messages import Message

PYTHON: Any = SimpleNamespace(**speedups.python_versions, handle=lambda sock: sock)
try:
    C: Any = importlib.import_module("wsthread._speedups")
except ImportError:
    C = None

needs_extension = pytest.mark.skipif(C is None, reason="the extension is not built")
VERSIONS = ["Python", pytest.param("C", marks=needs_extension)]
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Any:
    """Each version of the functions."""
    return PYTHON if request.param == "Python" else C


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a TCP connection with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours = socket.create_connection(server.getsockname())
        theirs = server.accept()[0]
    ours.settimeout(None)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        theirs.settimeout(10)
        yield ours, theirs


def handle(version: Any, sock: socket.socket) -> Any:
    """Return what a version takes for a socket."""
    return sock if version is PYTHON else sock.fileno()


def read(sock: socket.socket, size: int) -> bytes:
    """Read so many bytes."""
    parts = []
    while size:
        parts.append(sock.recv(size))
        assert parts[-1]
        size -= len(parts[-1])
    return b"".join(parts)


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returns, or the type of what it raises."""
    try:
        return function(*args)
    except Exception as error:
        return type(error)


# The seam itself


@pytest.mark.parametrize("name", sorted(speedups.python_versions))
def test_one_contract(name: str) -> None:
    """What is in use is the C version if there is one; the docstring of both is that of the Python version."""
    assert getattr(speedups, name) is getattr(C if speedups.active else PYTHON, name)
    assert speedups.python_versions[name].__doc__
    assert C is None or getattr(C, name).__doc__ == "See the Python version in wsthread/speedups.py."


@needs_extension
def test_c_has_nothing_else() -> None:
    assert {name for name in vars(C) if not name.startswith("__")} == set(speedups.python_versions)


@pytest.mark.parametrize(("value", "active"), [("0", False), ("1", C is not None), ("", C is not None)])
def test_the_environment_chooses(value: str, active: bool) -> None:
    code = "from wsthread import speedups; print(speedups.active, speedups.mask is speedups.python_versions['mask'])"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WSTHREAD_SPEEDUPS": value}, capture_output=True, text=True,
        cwd=Path(speedups.__file__).parent.parent, timeout=60)
    assert (result.stdout.split(), result.stderr) == ([str(active), str(not active)], "")


# Masking


@pytest.mark.parametrize("key", [MASK, bytes(4), b"\xff" * 4, b"\x00\xaa\x00\x55", b"\x80\x00\x00\x00"])
@pytest.mark.parametrize("size", [*range(11), 1022, 1023, 1024, 1025, 1026, 1027, 65536])
def test_mask(version: Any, size: int, key: bytes) -> None:
    """It is XOR with the key repeated (RFC 6455 5.3) on both sides of the size where the algorithm changes."""
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]
    masked = version.mask(payload, key)
    assert type(masked) is bytes
    assert masked == xor(payload, key)
    assert version.mask(masked, key) == payload


@bounded
@given(st.one_of(st.binary(max_size=64), st.binary(min_size=1020, max_size=1100)), masking_keys)
def test_mask_any(payload: bytes, key: bytes) -> None:
    """It agrees with the byte-by-byte definition, and twice is nothing."""
    for mask in filter(None, (PYTHON.mask, getattr(C, "mask", None))):
        assert mask(payload, key) == xor(payload, key)
        assert mask(mask(payload, key), key) == payload


@pytest.mark.parametrize("key", [MASK, bytes(4), b"\0\1\0\2"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4099, 200_001])
def test_mask_in_place(version: Any, size: int, key: bytes) -> None:
    octets = bytes(i & 0xFF for i in range(size))
    buffer = bytearray(b"<" + octets + b">")
    version.mask_in_place(memoryview(buffer)[1:-1], key)
    assert buffer == b"<" + xor(octets, key) + b">"
    version.mask_in_place(buffer, bytes(4))
    assert buffer == b"<" + xor(octets, key) + b">"
    buffer.append(0)  # Nobody holds the buffer any more.


@pytest.mark.parametrize(("name", "args", "error"), [
    ("mask", (b"abc", b"123"), ValueError),
    ("mask", (b"abc", b"12345"), ValueError),
    ("mask", (b"", b""), ValueError),
    ("mask", ("abc", b"1234"), TypeError),
    ("mask", (b"abc", None), TypeError),
    ("mask", (b"abc",), TypeError),
    ("mask_in_place", (bytearray(3), b"123"), ValueError),
    ("mask_in_place", (memoryview(b"abc"), b"1234"), BufferError),
    ("mask_in_place", (memoryview(bytearray(6))[::2], b"1234"), BufferError),
    ("mask_in_place", ("abc", b"1234"), TypeError),
    ("mask_in_place", (bytearray(3), 1234), TypeError),
    ("mask_in_place", (), TypeError),
])
def test_wrong_masking(version: Any, name: str, args: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        getattr(version, name)(*args)


# Messages

SPECIAL = [
    b"", b"\x82", b"\x82\xfe\0", b"\x82\xff\0", client_frame(Opcode.PING), client_frame(TEXT, fin=False),
    client_frame(TEXT, b"\xff"), client_frame(TEXT, b"\xed\xa0\x80"), client_frame(TEXT, rsv=RSV1),
    client_frame(BINARY, bytes(301)), client_frame(TEXT, b"a")[:-1], client_frame(TEXT, mask=None), client_frame(0),
    client_header(BINARY, 1 << 63), client_header(BINARY, (1 << 64) - 1) + b"a",
    client_header(BINARY, (1 << 32) + 1) + b"a", client_header(TEXT, (1 << 32) - 1), client_frame(Opcode.CLOSE),
]


def read_messages(version: Any, buffer: bytes, start: int = 0, max_size: Any = None) -> Any:
    """Call it with the usual arguments, and note the types of what it makes."""
    result = outcome(version.read_messages, buffer, start, max_size, Message, Opcode.TEXT, Opcode.BINARY)
    if isinstance(result, tuple):
        messages, end = result
        return messages, [(type(one), type(one.opcode), type(one.payload)) for one in messages], end
    return result


@pytest.mark.parametrize("behind", SPECIAL)
def test_read_messages_leaves_the_rest(version: Any, behind: bytes) -> None:
    text, binary = client_frame(TEXT, "\xe9".encode()), client_frame(BINARY, bytes(300))
    messages, types, end = read_messages(version, b"-" + text + binary + text + behind, 1, 300)
    assert messages == [(TEXT, "\xe9"), (BINARY, bytes(300)), (TEXT, "\xe9")]
    assert types == [(Message, Opcode, str), (Message, Opcode, bytes), (Message, Opcode, str)]
    assert end == 1 + len(text + binary + text)


@pytest.mark.parametrize("form", [None, 16, 64])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 4095, 4096, 4097, 65535, 65536])
def test_read_messages_of_all_sizes(version: Any, size: int, form: int | None) -> None:
    """Also in a longer form of the length than is needed, which the frame parser takes as well."""
    frame = client_frame(TEXT, b"a" * size, length_form=None if form == 16 and size > 65535 else form)
    for max_size in (None, size, size + 1, 1 << 63, 1 << 70):
        assert read_messages(version, frame, 0, max_size)[::2] == ([(TEXT, "a" * size)], len(frame))
    if size:
        assert read_messages(version, frame, 0, size - 1)[::2] == ([], 0)


def test_read_messages_some_at_a_time(version: Any) -> None:
    frame = client_frame(BINARY, b"a")
    assert read_messages(version, frame * 100)[::2] == ([(BINARY, b"a")] * 64, 64 * len(frame))


@needs_extension
@bounded
@given(
    st.one_of(streams().map(lambda stream: stream.data), junk), st.integers(-1, 40), st.sampled_from([None, 0, 2, 125]),
)
def test_read_messages_any(buffer: bytes, start: int, max_size: int | None) -> None:
    """Of any bytes, from any place on, both make the same."""
    assert read_messages(C, buffer, start, max_size) == read_messages(PYTHON, buffer, start, max_size)


GOOD = client_frame(BINARY, b"a")


@pytest.mark.parametrize(("args", "error"), [
    ((GOOD, -1, None, Message, 1, 2), ValueError),
    ((GOOD, len(GOOD) + 1, None, Message, 1, 2), ValueError),
    ((GOOD, 1 << 70, None, Message, 1, 2), ValueError),
    ((GOOD, -1 << 70, None, Message, 1, 2), ValueError),
    ((GOOD, 0, -1, Message, 1, 2), ValueError),
    ((GOOD, 0, -1 << 70, Message, 1, 2), ValueError),
    ((GOOD, 0, None, dict, 1, 2), TypeError),
    ((GOOD, 0, None, "tuple", 1, 2), TypeError),
    ((GOOD, 0, None, time.struct_time, 1, 2), TypeError),  # A tuple, but not one of any size.
    ((GOOD, "0", None, Message, 1, 2), TypeError),
    ((GOOD, 0, "1", Message, 1, 2), TypeError),
    ((None, 0, None, Message, 1, 2), TypeError),
    ((GOOD,), TypeError),
])
def test_wrong_reading(version: Any, args: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        version.read_messages(*args)


class Text(str):
    """A str that is none to the extension."""


class Data(bytes):
    """Bytes all the same."""


ENCODED = [
    *(bytes(size) for size in (0, 1, 125, 126, 4096, 65535)), *("a" * size for size in (0, 1, 125, 126, 65535)),
    Data(b"a"),
]
NOT_ENCODED = [bytes(65536), "a" * 65536, "\xe9", "\ud800", Text("a"), bytearray(b"a"), memoryview(b"a"), 1, None]


@pytest.mark.parametrize("payload", ENCODED, ids=lambda payload: f"{type(payload).__name__}-{len(payload)}")
def test_encode_message(version: Any, payload: str | bytes) -> None:
    opcode, octets = (Opcode.TEXT, payload.encode()) if isinstance(payload, str) else (Opcode.BINARY, payload)
    frame = version.encode_message(payload)
    assert type(frame) is bytes
    assert frame == encode_frame(Frame(opcode, octets))


@pytest.mark.parametrize("payload", NOT_ENCODED, ids=lambda payload: type(payload).__name__)
def test_what_is_not_encoded(version: Any, payload: object) -> None:
    assert version.encode_message(payload) is None


@needs_extension
@bounded
@given(st.one_of(st.text(), payloads, st.text(st.characters(max_codepoint=127), min_size=100)))
def test_encode_message_any(payload: str | bytes) -> None:
    assert C.encode_message(payload) == PYTHON.encode_message(payload)


# Sockets


@pytest.mark.parametrize("size", [1, 1088, 1089, 1 << 17])
@pytest.mark.parametrize("there", [1, 1087, 1088, 1089, 3000])
@pytest.mark.parametrize("name", ["recv", "recv_now"])
def test_receiving(version: Any, name: str, there: int, size: int) -> None:
    ours, theirs = socket.socketpair()
    data = random.randbytes(there)
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        received = b""
        while part := getattr(version, name)(handle(version, ours), size):
            assert type(part) is bytes
            assert len(part) == min(size, there - len(received)) or name == "recv_now"
            received += part
        assert part == b""
        assert received == data


def test_receiving_waits(version: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for size in (10, 9999):
            sender = threading.Timer(0.05, theirs.sendall, (b"abc",))
            sender.start()
            assert version.recv(handle(version, ours), size) == b"abc"
            sender.join()
        buffer = bytearray(5)
        sender = threading.Timer(0.05, theirs.sendall, (b"abc",))
        sender.start()
        assert version.recv_into(handle(version, ours), buffer) == 3
        sender.join()
        assert buffer == b"abc\0\0"
        theirs.close()
        assert version.recv_into(handle(version, ours), memoryview(buffer)[1:]) == 0


@pytest.mark.parametrize("size", [1, 1088, 1 << 17])
def test_receiving_now_does_not_wait(version: Any, size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert version.recv_now(handle(version, ours), size) is None
        theirs.sendall(b"a")
        assert version.recv_now(handle(version, ours), size) == b"a"
        assert version.recv_now(handle(version, ours), size) is None
        theirs.close()
        assert version.recv_now(handle(version, ours), size) == b""


@needs_extension
def test_receiving_now_keeps_the_gil() -> None:
    """Another thread, which waits for the GIL, does not get it in between."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("there is no GIL")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    ours, theirs = socket.socketpair()
    ran, stopping = [0], threading.Event()

    def count() -> None:
        while not stopping.is_set():
            ran[0] += 1
            time.sleep(0)

    with ours, theirs:
        other = threading.Thread(target=count)
        other.start()
        try:
            number = ours.fileno()
            before = ran[0]
            for _ in range(1000):
                C.recv_now(number, 1 << 17)
            assert ran[0] == before
        finally:
            sys.setswitchinterval(interval)
            stopping.set()
            other.join()


def test_sending(version: Any, pair: Pair) -> None:
    """They send what the kernel takes, down to nothing."""
    ours, theirs = pair
    data = random.randbytes(100_000)
    sends: list[Callable[[int], int]] = [
        lambda start: version.send(handle(version, ours), memoryview(data)[start:]),
        lambda start: version.send(handle(version, ours), data[start:start + 100]),
        lambda start: version.send_both(handle(version, ours), data[start:start + 7], data[start + 7:]),
    ]
    for send in sends:
        sent = 0
        while count := send(sent):
            sent += count
        assert 0 < sent < len(data)
        assert read(theirs, sent) == data[:sent]
    assert version.send(handle(version, ours), b"") == 0
    assert version.send_both(handle(version, ours), b"", b"") == 0


CALLS = [
    ("recv", (10,)), ("recv", (10_000,)), ("recv_into", (bytearray(1),)), ("recv_now", (10,)), ("recv_now", (10_000,)),
    ("send", (b"a",)), ("send", (bytes(10_000),)), ("send_both", (b"a", b"b")),
]


@pytest.mark.parametrize(("name", "args"), CALLS)
def test_closed_sockets(version: Any, name: str, args: tuple[Any, ...]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            getattr(version, name)(handle(version, ours), *args)


@pytest.mark.parametrize(("name", "args"), CALLS)
def test_connections_that_were_reset(version: Any, pair: Pair, name: str, args: tuple[Any, ...]) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    with pytest.raises(ConnectionResetError):
        getattr(version, name)(handle(version, ours), *args)


@pytest.mark.parametrize(("name", "args", "error"), [
    ("recv", (0,), ValueError), ("recv", (-1,), ValueError), ("recv", (-1 << 70,), ValueError),
    ("recv", ("1",), TypeError), ("recv", (), TypeError),
    ("recv_now", (0,), ValueError), ("recv_now", (-1,), ValueError), ("recv_now", (None,), TypeError),
    ("recv_into", (bytearray(),), ValueError), ("recv_into", (3,), TypeError), ("recv_into", (), TypeError),
    ("send", ("abc",), TypeError), ("send", (1,), TypeError), ("send", (), TypeError),
    ("send_both", ("abc", b""), TypeError), ("send_both", (b"", 1), TypeError), ("send_both", (b"",), TypeError),
])
def test_wrong_calls_of_sockets(version: Any, name: str, args: tuple[Any, ...], error: type[Exception]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"a")
        with pytest.raises(error):
            getattr(version, name)(handle(version, ours), *args)


@needs_extension
@pytest.mark.parametrize(("number", "error"), [
    (-1, OSError), (1 << 31, OSError), (1 << 70, OSError), (-1 << 70, OSError), ("0", TypeError), (None, TypeError),
    (0.5, TypeError),
])
@pytest.mark.parametrize(("name", "args"), CALLS)
def test_wrong_numbers(number: Any, error: type[Exception], name: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(error):
        getattr(C, name)(number, *args)


# The usual case of sending


class Noting:
    """What a sending half has to do by itself, noted. The SendState of a version is its other base class."""

    def __init__(self, sock: socket.socket) -> None:
        self.send_lock = threading.Lock()
        self.clear = True
        self.fd = sock.fileno()
        self.compressed_from = sys.maxsize
        self.compression = 0
        self.bytes_sent = self.messages_sent = 0
        self.rests: list[bytes] = []
        self.errors: list[str] = []
        self._socket = sock

    def write_now(self, frame: bytes) -> int:
        assert self.send_lock.locked()
        sent: int = PYTHON.send(self._socket, frame)
        return sent

    def broke(self, error: OSError) -> None:
        assert self.send_lock.locked()
        self.errors.append(repr(error))

    def keep_rest(self, frame: bytes, sent: int) -> None:
        assert self.send_lock.locked()
        self.bytes_sent += sent
        self.clear = False
        self.rests.append(frame[sent:])

    def send_rest(self, frame: bytes, sent: int, timeout: float | None) -> None:
        assert timeout == 2.5
        self.keep_rest(frame, sent)


def send_plain(version: Any, states: tuple[Any, ...], frame: bytes) -> Any:
    """Send a frame that is not compressed to each."""
    header = 2 if len(frame) < 2 + 126 else 4 if len(frame) < 4 + (1 << 16) else 10
    return version.send_each(states, frame, len(frame) - header, 0)


def new_state(version: Any, sock: socket.socket, **methods: Any) -> Any:
    """Return a sending half of a version, with some methods changed."""
    return type("State", (Noting, version.SendState), methods)(sock)


@pytest.mark.parametrize("alone", [True, False])
def test_parts_of_frames(version: Any, pair: Pair, alone: bool) -> None:
    ours, theirs = pair
    state = new_state(version, ours)
    wire = b""
    whole = parts = refused = 0
    for number in range(5000):
        payload = random.randbytes(number % 2000)
        frame = encode_frame(Frame(Opcode.BINARY, payload))
        if alone:
            taken = version.send_small(state, payload, 2.5)
        else:
            got_all, missed = send_plain(version, (state,), frame)
            taken = not missed
            assert missed in ([], [0])
            assert got_all == (taken and not state.rests)
        assert not state.send_lock.locked()
        whole += taken and not state.rests
        parts += len(state.rests)
        refused += not taken
        wire += frame if taken else b""
        if state.rests or not taken:  # Now the peer reads, and what was kept is sent.
            missing = sum(map(len, state.rests))
            assert (state.bytes_sent, state.messages_sent) == (len(wire) - missing, whole)
            assert read(theirs, len(wire) - missing) == wire[:len(wire) - missing]
            assert wire.endswith(b"".join(state.rests))
            wire = b""
            state.rests.clear()
            state.bytes_sent, state.clear = 0, True
    assert whole
    assert parts
    assert refused


@pytest.mark.parametrize("change", [
    {"clear": False}, {"fd": -1}, {"compressed_from": 1}, {"compressed_from": 0}, {"locked": True},
])
def test_a_way_that_is_not_clear(version: Any, change: dict[str, Any]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        states = [new_state(version, ours) for _ in range(5)]
        for state in states[1:4:2]:
            if "locked" in change:
                state.send_lock.acquire()
            else:
                for name, value in change.items():
                    setattr(state, name, value)
        assert send_plain(version, tuple(states), b"\x82\x01a") == (3, [1, 3])
        assert [version.send_small(state, "a", None) for state in states] == [True, False, True, False, True]
        assert read(theirs, 18) == b"\x82\x01a" * 3 + b"\x81\x01a" * 3
        assert [(state.messages_sent, state.bytes_sent) for state in states] == [(2, 6), (0, 0)] * 2 + [(2, 6)]
        locked = "locked" in change
        assert [state.send_lock.locked() for state in states] == [False, locked, False, locked, False]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_compression_begins_where_it_was_agreed(version: Any, size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        states = [new_state(version, ours), new_state(version, ours)]
        states[0].compressed_from, states[1].compressed_from = size, size + 1
        frame = encode_frame(Frame(Opcode.BINARY, bytes(size)))
        assert send_plain(version, tuple(states), frame) == (1, [0])
        assert read(theirs, len(frame)) == frame
        if size <= 4096:
            assert [version.send_small(state, bytes(size), None) for state in states] == [False, True]


@pytest.mark.parametrize("compression", [0, 5, 6])
def test_each_gets_the_form_that_it_wants(version: Any, compression: int) -> None:
    """Five that differ in how they want a message of 100 bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        states = [new_state(version, ours) for _ in range(5)]
        for state, shortest, way in zip(states, (100, 100, 101, 100, 1000), (5, 6, 5, 0, 0)):
            state.compressed_from, state.compression = shortest, way
        wanting = {0: [2, 4], 5: [0], 6: [1]}[compression]
        whole, others = version.send_each(tuple(states), b"\xc2\x01a", 100, compression)
        assert (whole, others) == (len(wanting), [index for index in range(5) if index not in wanting])
        assert read(theirs, 3 * whole) == b"\xc2\x01a" * whole
        assert [state.messages_sent for state in states] == [index in wanting for index in range(5)]


def test_a_peer_that_is_gone(version: Any) -> None:
    ours, theirs = socket.socketpair()
    left, right = socket.socketpair()
    with ours, left, right:
        theirs.close()
        states = [new_state(version, sock) for sock in (ours, left, ours)]
        assert send_plain(version, tuple(states), b"\x82\x01a") == (1, [0, 2])
        assert not version.send_small(states[0], "a", None)
        assert states[0].errors == ["BrokenPipeError(32, 'Broken pipe')"] * 2
        assert (states[0].messages_sent, states[0].bytes_sent, states[1].errors) == (0, 0, [])
        assert not any(state.send_lock.locked() for state in states)


@pytest.mark.parametrize("size", [1, 5000, 1 << 19])
def test_many(version: Any, size: int) -> None:
    """More than are served at once, some of them not clear, in order."""
    with socket.socket() as unused:
        pairs = [socket.socketpair() for _ in range(150)]
        frame = encode_frame(Frame(Opcode.BINARY, bytes(size)))
        states = [new_state(version, ours) for ours, _ in pairs]
        missed = [*range(0, 150, 7), 148, 149]
        for index in missed:
            states[index].clear = False
        whole, others = send_plain(version, (*states, new_state(version, unused)), frame)
        assert others == [*missed, 150]  # That one is not connected.
        assert whole == sum(not state.rests for state in states) - len(missed)
        for index, (ours, theirs) in enumerate(pairs):
            if index not in missed:
                assert states[index].bytes_sent + sum(map(len, states[index].rests)) == len(frame)
                assert read(theirs, states[index].bytes_sent) == frame[:states[index].bytes_sent]
            ours.close()
            theirs.close()


def test_none(version: Any) -> None:
    assert send_plain(version, (), b"\x82\0") == (0, [])


@pytest.mark.parametrize("payload", ["ä", "a" * 4097, bytes(4097), bytearray(b"a"), 1, None, Text("a")])
def test_what_is_not_short_is_left_to_the_caller(version: Any, pair: Pair, payload: object) -> None:
    state = new_state(version, pair[0])
    assert version.send_small(state, payload, None) is False
    assert state.bytes_sent == 0
    assert not state.send_lock.locked()


Step = tuple[str, int]
STEPS = st.lists(st.one_of(
    st.tuples(st.just("small"), st.integers(0, 5000)), st.tuples(st.just("each"), st.integers(0, 70_000)),
    st.tuples(st.just("read"), st.integers(1, 30_000)), st.tuples(st.just("unlock"), st.just(0)),
    st.tuples(st.sampled_from(["lock", "fd", "clear", "compress", "break"]), st.integers(0, 1)),
), max_size=25)


def run(version: Any, steps: list[Step]) -> list[Any]:
    """Return all that can be seen of two connections while the same things happen to them."""
    pairs = [socket.socketpair() for _ in range(2)]
    seen: list[Any] = []
    try:
        for ours, theirs in pairs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
            theirs.setblocking(False)
        states = [new_state(version, ours) for ours, _ in pairs]
        for step, number in steps:
            state = states[number % 2]
            if step == "small":
                seen.append([version.send_small(each, bytes(number), 2.5) for each in states])
            elif step == "each":
                seen.append(send_plain(version, tuple(states), encode_frame(Frame(Opcode.BINARY, bytes(number)))))
            elif step == "read":
                seen.append([outcome(theirs.recv, number) for _, theirs in pairs])
            elif step == "lock":
                state.send_lock.acquire(False)
            elif step == "unlock":
                for each in states:
                    if each.send_lock.locked():
                        each.send_lock.release()
                    each.clear = True
            elif step == "fd":
                state.fd = -1
            elif step == "clear":
                state.clear = not state.clear
            elif step == "compress":
                state.compressed_from = 300
            else:
                pairs[number][1].shutdown(socket.SHUT_RD)
            seen.append([
                (each.clear, each.bytes_sent, each.messages_sent, tuple(each.rests), tuple(each.errors),
                 each.send_lock.locked()) for each in states])
    finally:
        for one in pairs:
            for end in one:
                end.close()
    return seen


@needs_extension
@bounded
@given(STEPS)
def test_both_send_the_same(steps: list[Step]) -> None:
    assert run(C, steps) == run(PYTHON, steps)


# Errors


def fail(error: type[BaseException]) -> Callable[..., None]:
    """Return a method that fails."""

    def method(*args: Any) -> None:
        raise error

    return method


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_connection_ends_when_its_rest_is_lost(version: Any, pair: Pair, error: type[BaseException]) -> None:
    """The others get the frame all the same."""
    pairs = [socket.socketpair() for _ in range(70)]
    broken = new_state(version, pair[0], keep_rest=fail(error))
    states = [new_state(version, ours) for ours, _ in pairs]
    with pytest.raises(error):
        send_plain(version, (broken, *states), bytes(100_000))
    assert (broken.clear, broken.send_lock.locked()) == (False, False)
    for state, (ours, theirs) in zip(states, pairs):
        assert (state.clear, state.send_lock.locked(), state.messages_sent) == (True, False, 1)
        assert len(read(theirs, 100_000)) == 100_000
        ours.close()
        theirs.close()
    while pair[1].recv(1 << 20):
        pass


def test_the_first_error_is_raised(version: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        errors = KeyError, KeyboardInterrupt, IndexError
        states = tuple(new_state(version, ours, broke=fail(error)) for error in errors)
        with pytest.raises(KeyError):
            send_plain(version, states, b"\x82\x01a")
        assert not any(state.clear or state.send_lock.locked() for state in states)
        states[1].clear = True
        with pytest.raises(KeyboardInterrupt):
            version.send_small(states[1], b"a", None)
        assert not states[1].send_lock.locked()


def test_a_connection_ends_when_the_rest_of_a_message_is_lost(version: Any, pair: Pair) -> None:
    ours, theirs = pair
    broken = new_state(version, ours, send_rest=fail(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        while True:
            if not version.send_small(broken, bytes(random.randrange(2000)), None):
                read(theirs, broken.bytes_sent)
                broken.bytes_sent = 0
    assert (broken.clear, broken.send_lock.locked()) == (False, False)
    while theirs.recv(1 << 20):
        pass


def test_a_state_that_is_not_ready(version: Any) -> None:
    """Nothing but an error comes of a state that misses something."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bare = version.SendState()
        bare.compressed_from, bare.compression = 1000, 0
        ready = new_state(version, ours)
        for _ in range(2):
            with pytest.raises(AttributeError):
                send_plain(version, (bare, ready), b"\x82\x01a")
            with pytest.raises(AttributeError):
                version.send_small(bare, "a", None)
            bare.send_lock, bare.clear = 5, True  # That is no lock.
        assert ready.messages_sent == 2
        for frame in (b"", b"\x82"):
            with pytest.raises(ValueError):
                send_plain(version, (version.SendState(),), frame)
            with pytest.raises(ValueError):
                send_plain(version, (), frame)


def test_a_lock_that_is_taken_away(version: Any) -> None:
    """The lock that was taken is given back, whatever the state says then."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        locks = []

        def broke(self: Any, error: OSError) -> None:
            locks.append(self.send_lock)
            self.send_lock = threading.Lock()

        def broke_for_good(self: Any, error: OSError) -> None:
            locks.append(self.send_lock)
            del self.send_lock

        for method in (broke, broke_for_good):
            state = new_state(version, ours, broke=method)
            assert send_plain(version, (state,), b"\x82\x01a") == (0, [0])
        assert not any(lock.locked() for lock in locks)


def test_wrong_calls_of_sending(version: Any, pair: Pair) -> None:
    state = new_state(version, pair[0])
    wrong: list[tuple[Any, ...]] = [
        (), ((state,), b"\x82\x01a"), ((state,), "ab", 1, 0), ((state, "x"), b"\x82\x01a", 1, 0),
        (5, b"\x82\x01a", 1, 0), ((state,), b"\x82\x01a", "1", 0)]
    for args in wrong:
        with pytest.raises((TypeError, AttributeError)):
            version.send_each(*args)
    wrong = [(), (state, b""), ("x", b"", None)]
    for args in wrong:
        with pytest.raises((TypeError, AttributeError)):
            version.send_small(*args)
    assert not state.send_lock.locked()


@needs_extension
def test_what_c_does_not_take(pair: Pair) -> None:
    """Values that do not fit are refused when they are set, not when they are used."""
    state = new_state(C, pair[0])
    for name, value, error in [
        ("fd", 1 << 31, OverflowError), ("fd", 1 << 70, OverflowError), ("fd", -2, OverflowError),
        ("fd", "1", TypeError), ("bytes_sent", 1 << 63, OverflowError), ("messages_sent", "1", TypeError),
        ("compressed_from", 1 << 63, OverflowError), ("clear", 1, TypeError), ("compression", "1", TypeError),
    ]:
        with pytest.raises(error):
            setattr(state, name, value)
    for name in ("fd", "clear", "bytes_sent"):
        with pytest.raises(TypeError):
            delattr(state, name)
    state = new_state(C, pair[0])
    with pytest.raises(TypeError):
        C.send_each([state], b"\x82\x01a", 1, 0)
    with pytest.raises(TypeError):
        C.send_each((state, "x"), b"\x82\x01a", 1, 0)
    assert state.messages_sent == 0
    for name in ("bytes_sent", "messages_sent"):  # Who counts on in Python gets an error.
        setattr(state, name, sys.maxsize)
        assert not C.send_small(state, "a", None)
        assert send_plain(C, (state,), b"\x82\x01a") == (0, [0])
        setattr(state, name, 0)
    assert C.send_small(state, "a", None)


def test_attributes_are_the_same() -> None:
    names = {"send_lock", "clear", "fd", "compressed_from", "compression", "bytes_sent", "messages_sent"}
    assert set(PYTHON.SendState.__slots__) == names
    assert inspect.isclass(PYTHON.SendState)
    if C is not None:
        assert {name for name in vars(C.SendState) if not name.startswith("__")} == names


@pytest.mark.parametrize(("value", "tells"), [("0", False), ("1", True)])
def test_an_extension_that_is_turned_off_is_not_missing(value: str, tells: bool) -> None:
    source = "import sys; sys.modules['wsthread._speedups'] = None; import wsthread; print(wsthread.speedups.missing)"
    result = subprocess.run(
        [sys.executable, "-c", source], env={**os.environ, "WSTHREAD_SPEEDUPS": value},
        capture_output=True, text=True, timeout=60)
    assert ("wsthread._speedups" in result.stdout, result.stderr) == (tells, "")
