"""The life of a connection, and what it tells the operator of itself."""

from __future__ import annotations

import threading

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, members
from servers import wait_until

from wsthread import Opcode, SimpleManager
from wsthread.connection import link_of
from wsthread.wire.messages import MessageReader

__all__ = ["connect"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_closing_handshake_that_fails(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(reader: MessageReader) -> None:
        raise MemoryError

    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    thread = next(thread for thread in threading.enumerate() if conn.id in thread.name)
    monkeypatch.setattr(MessageReader, "room", fail)
    peer.send(Opcode.TEXT, b"a", fin=False)
    assert peer.read_close() == 1011
    assert peer.at_eof()
    assert recorder.wait_closed()[0] == 1006
    assert conn.closed
    thread.join(TIMEOUT)


def test_dump(connect: Connect) -> None:
    release = threading.Event()
    recorder = Recorder(ping_interval=0.1, ping_timeout=TIMEOUT)
    recorder.manager.on_message = lambda conn, opcode, payload: release.wait(TIMEOUT)
    assert recorder.manager.dump() == "0 connections"
    (busy, busy_peer), (idle, idle_peer) = members(recorder.manager, connect, 2)
    busy.join("red")
    busy.join("blue")
    busy_peer.send(Opcode.TEXT, b"work")
    idle_peer.send(Opcode.PONG, idle_peer.read()[1])
    wait_until(lambda: link_of(busy).callback is not None and idle.latency is not None)
    title, *lines = recorder.manager.dump().splitlines()
    assert title == "2 connections"
    by_id = {line.split()[0]: line for line in lines}
    assert " WebSocket 127.0.0.1 '/ws' OPEN, open for 0." in by_id[busy.id]
    assert ", in on_message for 0." in by_id[busy.id]
    assert ", no pong yet, groups: blue, red" in by_id[busy.id]
    assert ", waiting for a message for 0." in by_id[idle.id]
    assert ", 0 bytes queued, last pong 0." in by_id[idle.id]
    assert by_id[idle.id].endswith(", groups: none")
    release.set()


def test_dump_of_a_handler(connect: Connect) -> None:
    release = threading.Event()
    manager = SimpleManager(lambda conn: release.wait(TIMEOUT))
    connect(manager)
    wait_until(lambda: ", in handler for 0." in manager.dump())
    release.set()
