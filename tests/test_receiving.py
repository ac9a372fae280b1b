"""The receiving half: timeouts, limits of what may come, and what comes instead of messages."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
import tracemalloc
from typing import Any

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, run_handler
from servers import wait_until
from wire import RSV1, client_close, client_frame, deflated

from wsthread import Connection, Deflate, Opcode, SimpleManager
from wsthread.wire.deflate import Inflater

__all__ = ["connect"]


def test_bytes_read_with_the_handshake_are_messages(connect: Connect) -> None:
    recorder = Recorder()
    unread = client_frame(Opcode.TEXT, b"early") + client_frame(Opcode.TEXT, b"late")
    _, peer = connect(recorder.manager, unread=unread[:-2])
    peer.socket.sendall(unread[-2:])
    wait_until(lambda: len(recorder.messages) == 2)
    assert recorder.messages == [(Opcode.TEXT, "early"), (Opcode.TEXT, "late")]


def test_receive_with_timeout_loses_nothing(connect: Connect) -> None:
    timed_out = threading.Event()

    def handler(conn: Connection) -> None:
        with pytest.raises(TimeoutError):
            conn.receive(timeout=0.05)
        timed_out.set()
        conn.send(conn.receive(timeout=TIMEOUT))

    _, peer = run_handler(connect, handler)
    peer.send(Opcode.TEXT, b"one ", fin=False)
    assert timed_out.wait(TIMEOUT)
    peer.send(Opcode.CONTINUATION, b"message")
    assert peer.read() == (Opcode.TEXT, b"one message")
    assert peer.read_close() == 1000


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_receive_with_timeout_from_a_peer_that_sends_no_message(connect: Connect, timeout: float) -> None:
    timed_out = threading.Event()

    def handler(conn: Connection) -> None:
        with pytest.raises(TimeoutError):
            conn.receive(timeout)
        timed_out.set()

    _, peer = run_handler(connect, handler, max_control_rate=None)
    pongs = client_frame(Opcode.PONG) * 10_000
    end = time.monotonic() + TIMEOUT
    while not timed_out.is_set() and time.monotonic() < end:
        peer.socket.sendall(pongs)
    assert timed_out.is_set()


def test_bombs_are_not_inflated_for_nobody(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that wait when the application has closed, nor those that come then: it would take a second."""
    bomb = client_frame(Opcode.BINARY, deflated(bytes(1 << 20)), rsv=RSV1)
    inflate, inflated = Inflater.inflate, []

    def count(*args: Any) -> bytes:
        data = inflate(*args)
        inflated.append(len(data))
        return data

    monkeypatch.setattr(Inflater, "inflate", count)
    manager = SimpleManager(lambda conn: conn.close() if conn.receive() else None)
    _, peer = connect(manager, agreement=Deflate().negotiate([("permessage-deflate", [])]))
    peer.socket.sendall(bomb * 50)
    assert peer.read_close() == 1000
    peer.socket.sendall(bomb * 50 + client_close(1000))
    assert peer.at_eof()
    assert inflated == [1 << 20]


def test_an_idle_connection_keeps_no_message(connect: Connect) -> None:
    arrived = threading.Event()

    def discard(conn: Connection) -> None:
        for size in map(len, conn):
            assert size == 1 << 20
            arrived.set()

    recorder = Recorder()
    recorder.manager.on_message = lambda conn, opcode, payload: arrived.set()
    for manager in recorder.manager, SimpleManager(discard):
        arrived.clear()
        conn, peer = connect(manager)
        tracemalloc.start()
        try:
            peer.send(Opcode.BINARY, bytes(1 << 20))
            assert arrived.wait(TIMEOUT)
            wait_until(lambda: tracemalloc.get_traced_memory()[0] < 1 << 19)
        finally:
            tracemalloc.stop()
        conn.terminate()


def test_only_the_own_thread_receives(connect: Connect) -> None:
    recorder = Recorder()
    conn, _ = connect(recorder.manager)
    with pytest.raises(RuntimeError, match="own thread"):
        conn.receive()


# Limits


def test_max_message_rate(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(max_message_rate=20)
    _, peer = connect(recorder.manager)
    peer.socket.sendall(b"\x81\x81\0\0\0\0a" * 20)  # One second's worth at once is fine, also in the beginning.
    wait_until(lambda: len(recorder.messages) == 20)
    started = time.monotonic()
    while not select.select([peer.socket], [], [], 0)[0]:
        peer.send(Opcode.TEXT, b"b")
    assert peer.read_close() == 1008
    peer.close_frame(1008)
    assert recorder.wait_closed() == (1008, "")
    assert len(recorder.messages) <= 20 + 20 * (time.monotonic() - started) + 1
    assert "more than 20 messages per second" in caplog.text


def test_a_flood_is_looked_through_in_turns(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Close of a peer that goes on sending is looked for, but others have their turns."""
    costs: list[float] = []
    monkeypatch.setattr("wsthread.receiving.wait_for_turn", lambda cost, limit: costs.append(cost))
    recorder = Recorder(max_message_rate=20)
    _, peer = connect(recorder.manager)
    peer.socket.sendall(client_frame(Opcode.TEXT, b"a") * 50_000)
    peer.close_frame(4000)
    assert peer.read_close() == 1008
    assert recorder.wait_closed() == (4000, "")
    assert len(costs) > 3


def test_a_slow_message_rate_lets_one_message_through(connect: Connect) -> None:
    recorder = Recorder(max_message_rate=0.01)
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"a")
    peer.send(Opcode.TEXT, b"b")
    assert peer.read_close() == 1008
    assert recorder.messages == [(Opcode.TEXT, "a")]


# No more messages


def test_eof_without_close(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.socket.shutdown(socket.SHUT_WR)
    assert recorder.wait_closed() == (1006, "the TCP connection was closed without a Close frame")
    assert peer.at_eof()


def test_eof_in_the_middle_of_a_frame(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.socket.sendall(b"\x82\xfe\x01")
    peer.socket.close()
    assert recorder.wait_closed()[0] == 1006


def test_reset(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.reset()
    code, reason = recorder.wait_closed()
    assert code == 1006
    assert reason is not None and "reset" in reason


def test_eof_after_our_close(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    conn.close(1001)
    assert peer.read_close() == 1001
    peer.socket.close()
    code, reason = recorder.wait_closed()
    assert code == 1006
    assert reason is not None and reason.startswith("no answer to Close 1001")


@pytest.mark.parametrize(("data", "code"), [
    (b"\x81\x02hi", 1002),  # not masked
    (b"\x83\x80\0\0\0\0", 1002),  # reserved opcode
    (b"\x81\x81\0\0\0\0\xff", 1007),
    (b"\x82\xff\0\0\0\0\x40\0\0\0", 1009),
])
def test_violations(connect: Connect, data: bytes, code: int, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.send(Opcode.PING, b"before")
    peer.socket.sendall(data + b"\x89\x80\0\0\0\0 and whatever follows")
    assert peer.read() == (Opcode.PONG, b"before")
    assert peer.read_close() == code
    assert peer.at_eof()
    peer.socket.close()
    assert recorder.wait_closed()[0] == code
    assert recorder.errors == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_violator_that_stays_is_cut(connect: Connect) -> None:
    recorder = Recorder(close_timeout=0.2)
    _, peer = connect(recorder.manager)
    peer.socket.sendall(b"\x83\x80\0\0\0\0")
    assert peer.read_close() == 1002
    assert recorder.wait_closed() == (1002, "reserved opcode 3")
