"""The sending half of connections: broadcasts that leave in parts, compression, forks and ends."""

from __future__ import annotations

import os
import random
import socket
import threading

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, sender_of, transport_of
from servers import wait_until

from wsthread import Connection, ConnectionClosed, Deflate, ListenableManager, Opcode, SimpleManager
from wsthread.connection import link_of
from wsthread.wire.deflate import Agreement, Inflater

__all__ = ["connect"]


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
    conn, compressing = connect(manager, agreement=agreement)
    _, plain = connect(manager)
    wait_until(lambda: len(manager.connections) == 2)
    for size in (0, 1, 125, 126, 299, 300, (1 << 16) - 1, 1 << 16):
        payload = bytes(size)
        assert manager.broadcast(payload).sent == 2
        conn.send(payload)
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
            sender_of(conn).flush()
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
    release = threading.Event()

    def join_and_wait(conn: Connection) -> None:
        conn.join("all")
        release.wait(10)

    manager = SimpleManager(join_and_wait)
    for _ in range(2):
        conn, peer = connect(manager)
        conns.append(conn)
        wait_until(lambda: conn in manager.connections)
        link_of(conn).receiver.lock.acquire()  # So that nobody reads it before it is sent to.
        peer.reset()
        assert transport_of(conn).wait(readable=True, timeout=10)
    with pytest.raises(ConnectionClosed, match="Connection reset by peer"):
        conns[0].send("a")
    assert manager.broadcast("b") == (0, 0, 0, 1)  # The first has left.
    for conn in conns:
        link_of(conn).receiver.lock.release()
    release.set()
    wait_until(lambda: all(conn.closed for conn in conns))
    assert {conn.close_reason for conn in conns} == {"[Errno 104] Connection reset by peer"}


def test_the_way_is_not_clear_when_closing(connect: Connect) -> None:
    manager = ListenableManager()
    conn, peer = connect(manager)
    wait_until(lambda: manager.connections)
    assert sender_of(conn).clear
    conn.close()
    assert not sender_of(conn).clear
    assert manager.broadcast("a") == (0, 0, 0, 0)
    assert manager.broadcast("a", to=conn) == (0, 0, 0, 1)
    with pytest.raises(ConnectionClosed):
        conn.send("a")
    assert peer.read()[0] == Opcode.CLOSE


def test_senders_never_mix(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    sizes = [0, 1, 125, 126, 5000, 70000]

    def send(number: int) -> None:
        for i in range(60):
            conn.send(bytes([number]) * sizes[(i + number) % len(sizes)])
            if i % 10 == 0:
                conn.ping(bytes([number]))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    binary = 0
    while binary < 16 * 60:
        opcode, payload = peer.read()
        assert len(set(payload)) <= 1
        assert len(payload) in sizes
        binary += opcode == Opcode.BINARY
    for thread in threads:
        thread.join(TIMEOUT)
