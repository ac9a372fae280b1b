"""Deadlines of connections: peers that are silent, stuck or gone, with real sockets, processes and time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from peer import TIMEOUT, Connect, Peer, Recorder, connect, members
from servers import TESTS, wait_until

from wsthread import Connection, ConnectionClosed, Manager, Opcode, State, clock
from wsthread.connection import link_of
from wsthread.manager import hub_of

__all__ = ["connect"]


def work(conn: Connection, seconds: float) -> None:
    """Be busy for a while and answer."""
    time.sleep(seconds)
    conn.send("done")


def advance(manager: Manager, seconds: float) -> None:
    """Let time pass, and deadlines be looked at."""
    clock.advance(seconds)
    hub_of(manager).check(clock.now())


def test_read_timeout(connect: Connect) -> None:
    recorder = Recorder(read_timeout=50, ping_interval=None)
    conn, peer = connect(recorder.manager)
    wait_until(lambda: link_of(conn).receiver.waiting_since is not None)
    for number in 1, 2, 3:
        advance(recorder.manager, 40)
        assert conn.state is State.OPEN
        peer.send(Opcode.TEXT, b"here")
        wait_until(lambda: len(recorder.messages) == number and link_of(conn).receiver.waiting_since is not None)
    advance(recorder.manager, 40)
    peer.send(Opcode.PING)  # A sign of life, but no message.
    assert peer.read() == (Opcode.PONG, b"")
    advance(recorder.manager, 11)
    assert peer.read() == (Opcode.CLOSE, b"\x03\xe9no message for 50 s")
    peer.close_frame(1001)
    assert recorder.wait_closed() == (1001, "")


def test_read_timeout_while_a_callback_works(connect: Connect) -> None:
    recorder = Recorder(read_timeout=0.3)
    recorder.manager.on_message = lambda conn, opcode, payload: work(conn, 1.0)
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"work")
    assert peer.read() == (Opcode.TEXT, b"done")
    assert peer.read_close() == 1001


# Pings

CLIENT = """
import socket, sys
from wire import client_frame
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
while True:
    head = sock.recv(2, socket.MSG_WAITALL)
    if len(head) < 2 or head[0] == 0x88:
        break
    payload = sock.recv(head[1], socket.MSG_WAITALL) if head[1] else b""
    if head[0] == 0x89:
        sock.sendall(client_frame(0xA, payload))
"""


@contextmanager
def client_process(peer: Peer) -> Iterator[subprocess.Popen[bytes]]:
    """Let a process of its own answer the pings of a connection."""
    fd = peer.socket.fileno()
    process = subprocess.Popen([sys.executable, "-c", CLIENT, str(fd)], pass_fds=[fd], cwd=TESTS)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(TIMEOUT)


def test_a_stopped_client_is_found(connect: Connect) -> None:
    interval, timeout = 1.0, 3.0  # The client has to start within that.
    recorder = Recorder(ping_interval=interval, ping_timeout=timeout)
    (stopped, stopped_peer), (live, live_peer) = members(recorder.manager, connect, 2)
    assert (stopped.latency, live.latency) == (None, None)
    with client_process(stopped_peer) as process, client_process(live_peer):
        wait_until(lambda: stopped.latency is not None and live.latency is not None)
        assert stopped.latency is not None
        assert 0 < stopped.latency < timeout
        process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        while not recorder.closed.is_set() and time.monotonic() < started + TIMEOUT:
            recorder.manager.broadcast("what the kernel takes is no sign of life")
            time.sleep(0.05)
        took = time.monotonic() - started
        assert recorder.wait_closed() == (1006, "no pong within 3 s")
        assert took < interval + timeout + 2.0  # The machine may be busy.
        assert live.state is State.OPEN
        assert live.latency is not None


def test_without_ping_timeout_a_silent_client_stays(connect: Connect) -> None:
    recorder = Recorder(ping_interval=0.1, ping_timeout=None)
    conn, peer = connect(recorder.manager)
    assert [peer.read() for _ in range(3)] == [(Opcode.PING, b"1"), (Opcode.PING, b"2"), (Opcode.PING, b"3")]
    assert conn.state is State.OPEN
    assert conn.latency is None


def test_a_callback_that_takes_long_does_not_cost_the_connection(connect: Connect) -> None:
    recorder = Recorder(ping_interval=0.2, ping_timeout=0.2)
    recorder.manager.on_message = lambda conn, opcode, payload: work(conn, 2.0)
    conn, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"work")
    while True:
        opcode, payload = peer.read()
        if opcode != Opcode.PING:
            break
        peer.send(Opcode.PONG, payload)
    assert (opcode, payload) == (Opcode.TEXT, b"done")
    assert conn.state is State.OPEN


def test_a_peer_that_dies_while_a_callback_works_is_found(connect: Connect) -> None:
    recorder = Recorder(ping_interval=0.2, ping_timeout=0.2)
    release = threading.Event()
    recorder.manager.on_message = lambda conn, opcode, payload: release.wait(TIMEOUT)
    conn, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"work, and no Pong ever")
    wait_until(lambda: conn.state is State.CLOSING)
    assert recorder.closes == []
    release.set()
    assert recorder.wait_closed() == (1006, "no pong within 0.2 s")


def test_a_connection_stuck_in_a_send_is_found(connect: Connect) -> None:
    recorder = Recorder(ping_interval=0.3, ping_timeout=0.3, write_timeout=None)
    errors: list[Exception] = []

    def send_much(conn: Connection, opcode: Opcode, payload: str) -> None:
        try:
            conn.send(bytes(64 << 20))
        except ConnectionClosed as error:
            errors.append(error)
            raise

    recorder.manager.on_message = send_much
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"go")
    assert recorder.wait_closed() == (1006, "no pong within 0.3 s")
    assert len(errors) == 1
    assert recorder.errors == []
