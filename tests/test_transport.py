"""The socket of a connection."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from peer import TIMEOUT

from wsthread.transport import Transport


class Pair(NamedTuple):
    """A transport and the socket of its peer, over TCP."""

    transport: Transport
    peer: socket.socket


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Open a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname(), TIMEOUT) as peer:
            ours, _ = listener.accept()
            with ours:
                yield Pair(Transport(ours), peer)


def test_reading(pair: Pair) -> None:
    transport, peer = pair
    peer.sendall(b"abc")
    assert transport.recv(2) == b"ab"
    buffer = bytearray(b"....")
    assert transport.recv_into(memoryview(buffer)) == 1
    assert buffer == b"c..."


def test_reading_what_is_there_now(pair: Pair) -> None:
    transport, peer = pair
    buffer = bytearray(b"....")
    assert transport.recv_now(10) is None
    assert transport.recv_into_now(memoryview(buffer)) is None
    peer.sendall(b"abcdef")
    assert transport.wait(readable=True, timeout=TIMEOUT)
    assert transport.recv_now(2) == b"ab"
    assert transport.recv_into_now(memoryview(buffer)) == 4
    assert buffer == b"cdef"
    peer.shutdown(socket.SHUT_WR)
    assert transport.wait(readable=True, timeout=TIMEOUT)
    assert transport.recv_now(10) == b""
    assert transport.recv_into_now(memoryview(buffer)) == 0
    assert transport.recv(10) == b""


def test_writing(pair: Pair) -> None:
    transport, peer = pair
    assert transport.send(b"ab") == 2
    assert transport.send(memoryview(b"cd")) == 2
    assert transport.send_both(b"e", b"f") == 2
    assert peer.recv(6, socket.MSG_WAITALL) == b"abcdef"


def test_waiting_for_room(pair: Pair) -> None:
    transport, peer = pair
    assert transport.wait(writable=True, timeout=0.0)
    while transport.send(bytes(1 << 20)):  # It takes nothing any more, and does not block.
        pass
    assert not transport.wait(writable=True, timeout=0.05)
    assert not transport.wait(readable=True, timeout=0.05)
    peer.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while peer.recv(1 << 20):
            pass
    assert transport.wait(writable=True, timeout=TIMEOUT)


def test_a_wait_ends_with_the_connection(pair: Pair) -> None:
    transport, peer = pair
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(transport.wait(readable=True))),
        threading.Thread(target=lambda: results.append(transport.recv(1))),
    ]
    for thread in threads:
        thread.start()
    transport.shutdown()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(map(str, results)) == ["True", "b''"]
    transport.shutdown()  # The peer was faster.
    assert peer.recv(1) == b""


def test_ending_one_direction(pair: Pair) -> None:
    transport, peer = pair
    transport.end_sending()
    assert peer.recv(1) == b""
    peer.sendall(b"a")
    assert transport.recv(1) == b"a"


def test_closing(pair: Pair) -> None:
    """What nobody read does not become a reset, which would take from the peer what it has not read yet."""
    transport, peer = pair
    peer.sendall(bytes(1000))
    assert transport.wait(readable=True, timeout=TIMEOUT)
    assert transport.fileno() == transport.raw_descriptor >= 0
    transport.send(b"last words")
    transport.close()
    assert (transport.fileno(), transport.raw_descriptor) == (-1, -1)
    assert peer.recv(100) == b"last words"
    assert peer.recv(100) == b""
    assert transport.wait(readable=True, timeout=0.0)  # Whoever waits has to see that it is closed.
    for use in (transport.recv, transport.recv_now):
        with pytest.raises(OSError):
            use(1)
    with pytest.raises(OSError):
        transport.send(b"a")
    transport.end_sending()
    transport.shutdown()
    transport.close()


def test_a_connection_that_was_reset(pair: Pair) -> None:
    transport, peer = pair
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert transport.wait(readable=True, timeout=TIMEOUT)
    with pytest.raises(ConnectionResetError):
        transport.recv_now(1)
    with pytest.raises(OSError):
        transport.send(b"a")
    transport.close()


def test_a_read_of_less_than_nothing() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.sendall(bytes(10_000))
        with pytest.raises(ValueError):
            Transport(ours).recv(-1)


def test_the_copy_of_a_fork_reaches_no_other_file() -> None:
    ours, peer = socket.socketpair()
    left, right = socket.socketpair()
    with peer, left, right:
        transport = Transport(ours)
        number = transport.fileno()
        transport.close_copy()
        os.dup2(left.fileno(), number)  # The child opens something.
        try:
            right.sendall(b"a")
            with pytest.raises(OSError):
                transport.send(b"b")
            with pytest.raises(OSError):
                transport.recv(1)
        finally:
            os.close(number)


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="Linux only lets bytes wait for the end")
def test_what_is_held_back_comes_with_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), TIMEOUT)
        ours, _ = listener.accept()
    with peer, contextlib.closing(Transport(ours)) as transport:
        transport.hold_back()
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 1
        assert transport.send(b"the last words") == 14
        transport.shutdown()
        assert peer.recv(99) == b"the last words"
        assert peer.recv(99) == b""


def test_nothing_is_held_back_in_a_unix_socket() -> None:
    ours, peer = socket.socketpair()
    with peer, contextlib.closing(Transport(ours)) as transport:
        transport.hold_back()
        transport.send(b"a")
        assert peer.recv(99) == b"a"
