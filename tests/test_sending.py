"""What the extension sends by itself: short messages and broadcasts, to those whose way is clear."""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
from collections.abc import Iterator

import pytest
from peer import Connect, connect
from servers import wait_until
from wire import BINARY, client_frame

from wsthread import ConnectionClosed, Deflate, ListenableManager, Opcode, SimpleManager
from wsthread.sending import SendState, send_each, send_small
from wsthread.speedups import c
from wsthread.wire.deflate import Agreement, Inflater
from wsthread.wire.frames import Frame, encode_frame

__all__ = ["connect"]

needs_extension = pytest.mark.skipif(c is None, reason="what only the extension does, and it is off or not built")


class Stub(SendState):
    """A sending half that notes what it has to send by itself."""

    __slots__ = ("rests", "errors")

    def __init__(self, sock: socket.socket) -> None:
        self._send_lock = threading.Lock()
        self._clear = True
        self._compressed_from = sys.maxsize
        self._fd = sock.fileno()
        self._bytes_sent = self._messages_sent = 0
        self.rests: list[bytes] = []
        self.errors: list[str] = []

    def _break(self, error: OSError) -> None:
        assert self._send_lock.locked()
        self.errors.append(str(error))

    def _keep_rest(self, frame: bytes, sent: int) -> None:
        self._bytes_sent += sent
        self._clear = False
        self.rests.append(frame[sent:])
        assert self._send_lock.locked()

    def _send_rest(self, frame: bytes, sent: int, timeout: float | None) -> None:
        assert timeout == 2.5
        self._keep_rest(frame, sent)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours = socket.create_connection(server.getsockname())
        theirs = server.accept()[0]
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        theirs.settimeout(10)
        yield ours, theirs


def read(sock: socket.socket, size: int) -> bytes:
    """Read so many bytes."""
    parts = []
    while size:
        parts.append(sock.recv(size))
        size -= len(parts[-1])
    return b"".join(parts)


@needs_extension
@pytest.mark.parametrize("alone", [True, False])
def test_parts_of_frames(pair: tuple[socket.socket, socket.socket], alone: bool) -> None:
    ours, theirs = pair
    stub = Stub(ours)
    wire = b""
    whole = parts = refused = 0
    for number in range(5000):
        payload = random.randbytes(number % 2000)
        frame = encode_frame(Frame(Opcode.BINARY, payload))
        if alone:
            taken = send_small(stub, payload, 2.5)  # type: ignore[arg-type]
        else:
            got_all, others = send_each((stub,), frame)
            taken = not others
            assert others in ([], [stub])
            assert got_all == (taken and not stub.rests)
        assert not stub._send_lock.locked()
        whole += taken and not stub.rests
        parts += len(stub.rests)
        refused += not taken
        wire += frame if taken else b""
        if stub.rests or not taken:  # Now the peer reads, and what was kept is sent.
            missing = sum(map(len, stub.rests))
            assert (stub._bytes_sent, stub._messages_sent) == (len(wire) - missing, whole)
            assert read(theirs, len(wire) - missing) == wire[:len(wire) - missing]
            assert wire.endswith(b"".join(stub.rests))
            wire = b""
            stub.rests.clear()
            stub._bytes_sent, stub._clear = 0, True
    assert whole
    assert parts
    assert refused


@needs_extension
def test_it_sends_only_when_the_way_is_clear(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    stub, other = Stub(ours), Stub(ours)
    stub._clear = False
    assert send_each((stub, other), b"\x82\x01a") == (1, [stub])
    assert not send_small(stub, "a", None)  # type: ignore[arg-type]
    stub._clear = True
    with stub._send_lock:
        assert send_each((other, stub), b"\x82\x01a") == (1, [stub])
        assert not send_small(stub, "a", None)  # type: ignore[arg-type]
    assert read(theirs, 6) == b"\x82\x01a" * 2
    assert (stub._messages_sent, other._messages_sent, other._bytes_sent) == (0, 2, 6)
    ours.shutdown(socket.SHUT_WR)
    assert send_each((stub, other), b"\x82\x01a") == (0, [stub, other])
    assert not send_small(stub, "a", None)  # type: ignore[arg-type]
    assert stub.errors == ["[Errno 32] Broken pipe"] * 2
    assert not stub._send_lock.locked()


@needs_extension
@pytest.mark.parametrize("payload", ["ä", "a" * 4097, bytes(4097), bytearray(b"a"), 1, None])
def test_what_is_not_short_is_left_to_python(pair: tuple[socket.socket, socket.socket], payload: object) -> None:
    stub = Stub(pair[0])
    assert not send_small(stub, payload, None)  # type: ignore[arg-type]
    assert stub._bytes_sent == 0


@needs_extension
def test_wrong_calls(pair: tuple[socket.socket, socket.socket]) -> None:
    stub = Stub(pair[0])
    for args in ((), ((stub,),), ([stub], b""), ((stub,), "")):
        with pytest.raises(TypeError):
            send_each(*args)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        send_each((stub, "x"), b"\x82\x01a")
    assert not stub._send_lock.locked()
    for args in ((), (stub, b""), ("x", b"", None)):
        with pytest.raises(TypeError):
            send_small(*args)  # type: ignore[arg-type]


@needs_extension
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_connection_ends_when_its_rest_is_lost(
    pair: tuple[socket.socket, socket.socket], error: type[BaseException],
) -> None:
    class Broken(Stub):
        def _keep_rest(self, frame: bytes, sent: int) -> None:
            raise error

    left, right = socket.socketpair()
    with left, right:
        ok, broken = Stub(left), Broken(pair[0])
        with pytest.raises(error):
            send_each((broken, ok), bytes(100_000))
        assert (broken._clear, broken._send_lock.locked()) == (False, False)
        assert (ok._clear, ok._send_lock.locked(), ok._messages_sent) == (True, False, 1)
        assert len(read(right, 100_000)) == 100_000
    pair[1].settimeout(10)
    while pair[1].recv(1 << 20):
        pass


@needs_extension
def test_a_connection_ends_when_the_rest_of_a_message_is_lost(pair: tuple[socket.socket, socket.socket]) -> None:
    class Broken(Stub):
        def _send_rest(self, frame: bytes, sent: int, timeout: float | None) -> None:
            raise KeyboardInterrupt

    ours, theirs = pair
    broken = Broken(ours)
    with pytest.raises(KeyboardInterrupt):
        while True:
            if not send_small(broken, bytes(random.randrange(2000)), None):  # type: ignore[arg-type]
                read(theirs, broken._bytes_sent)
                broken._bytes_sent = 0
    assert (broken._clear, broken._send_lock.locked()) == (False, False)
    while theirs.recv(1 << 20):
        pass


def test_a_large_broadcast_leaves_in_parts(connect: Connect) -> None:
    manager = ListenableManager(max_outbox_size=1 << 26)
    pairs = [connect(manager) for _ in range(3)]
    wait_until(lambda: len(manager.connections) == 3)
    payload = random.randbytes(16 << 20)
    assert manager.broadcast(payload).queued == 3
    assert manager.broadcast(b"more").queued == 3
    for _, peer in pairs:
        assert peer.read() == (Opcode.BINARY, payload)
        assert peer.read() == (Opcode.BINARY, b"more")
    wait_until(lambda: manager.stats()["queued_bytes"] == 0)
    # Its way is clear again.
    assert manager.broadcast("last").sent == 3
    assert manager.stats()["messages_sent"] == 9


@pytest.mark.parametrize("threshold", [126, 300, 1 << 16, 1 << 70])
def test_compression_begins_where_it_was_agreed(connect: Connect, threshold: int) -> None:
    manager = ListenableManager()
    agreement = Agreement(Deflate(threshold=threshold), False, False, 15, 15, "permessage-deflate")
    _, compressing = connect(manager, agreement=agreement)
    _, plain = connect(manager)
    wait_until(lambda: len(manager.connections) == 2)
    for size in (0, 1, 125, 126, 299, 300, (1 << 16) - 1, 1 << 16):
        payload = bytes(size)
        assert manager.broadcast(payload).sent == 2
        manager.connections[0].send(payload)
        assert plain.read() == (Opcode.BINARY, payload)
        for _ in range(2):
            opcode, octets = compressing.read()
            assert opcode == Opcode.BINARY
            assert (octets == payload) == (size < threshold)
            if size >= threshold:
                assert Inflater(15, False).inflate(octets, True, None) == payload


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_the_child_of_a_fork_reaches_no_other_file(connect: Connect) -> None:
    manager = ListenableManager()
    conn, peer = connect(manager)
    wait_until(lambda: manager.connections)
    child = os.fork()
    if child == 0:
        try:
            conn.flush()
            others = [end for _ in range(10) for end in socket.socketpair()]  # One gets the number of the socket.
            try:
                conn.send("a")
            except ConnectionClosed:
                os._exit(0 if others else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    conn.send("b")
    assert peer.read() == (Opcode.TEXT, b"b")


def test_a_connection_that_was_reset_says_so(connect: Connect) -> None:
    conns = []
    manager = SimpleManager(lambda conn: release.wait(10))
    release = threading.Event()
    for _ in range(2):
        conn, peer = connect(manager)
        conns.append(conn)
        wait_until(lambda: len(manager.connections) == len(conns))
        peer.reset()
        assert conn._transport is not None
        assert conn._transport.wait(readable=True, timeout=10)
    with pytest.raises(ConnectionClosed, match="Connection reset by peer"):
        conns[0].send("a")
    assert manager.broadcast("b") == (0, 0, 0, 2)
    release.set()
    wait_until(lambda: all(conn.closed for conn in conns))
    assert {conn.close_reason for conn in conns} == {"[Errno 104] Connection reset by peer"}


def test_the_way_is_not_clear_when_closing(connect: Connect) -> None:
    manager = ListenableManager()
    conn, peer = connect(manager)
    wait_until(lambda: manager.connections)
    assert conn._clear
    conn.close()
    assert not conn._clear
    assert manager.broadcast("a") == (0, 0, 0, 1)
    with pytest.raises(ConnectionClosed):
        conn.send("a")
    assert peer.read()[0] == Opcode.CLOSE


def test_a_reply_that_is_held_is_not_overtaken(connect: Connect) -> None:
    manager = ListenableManager()

    def reply(conn: object, opcode: Opcode, payload: bytes) -> None:
        manager.connections[0].send(payload)
        manager.broadcast(b"all " + payload)

    manager.on_message = reply  # type: ignore[assignment]
    _, peer = connect(manager)
    peer.socket.sendall(client_frame(BINARY, b"a") + client_frame(BINARY, b"b") + client_frame(BINARY, b"c"))
    assert [peer.read()[1] for _ in range(6)] == [b"a", b"all a", b"b", b"all b", b"c", b"all c"]
