"""The life of a connection, and what it tells the operator of itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, members
from servers import wait_until
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request
from wire import client_close

from wsthread import ConnectionClosed, Opcode, SimpleManager, State, clock
from wsthread.connection import link_of
from wsthread.housekeeper import Housekeeper
from wsthread.link import Link
from wsthread.options import Options
from wsthread.registry import Registry
from wsthread.snapshot import Snapshot
from wsthread.stats import Totals
from wsthread.transport import Transport
from wsthread.wire.messages import MessageReader
from wsthread.wire.protocol import Close

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


@pytest.fixture
def link() -> Iterator[Link]:
    """A link whose handshake is not over, and which has no thread."""
    housekeeper = Housekeeper()
    environ = EnvironBuilder("/ws", environ_base={"REMOTE_ADDR": "127.0.0.1"}).get_environ()
    yield Link(Snapshot(Request(environ)), Options(), housekeeper, Registry())
    housekeeper.close_after_fork()


def test_the_life_of_a_link(link: Link) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        assert (link.state, link.outcome, link.is_over) == (State.CONNECTING, None, False)
        link.open(Transport(ours), b"101", b"")
        assert theirs.recv(10) == b"101"
        assert link.wait_opened()  # This thread is the connection's own from now on.
        assert (link.state, link.outcome, link.is_over) == (State.OPEN, None, False)
        theirs.sendall(client_close(4000))
        with pytest.raises(ConnectionClosed):
            link.receiver.receive_message()
        assert (link.state, link.outcome, link.is_over) == (State.CLOSING, Close(4000), False)
        link.finish()
        assert theirs.recv(10) == b"\x88\x02\x0f\xa0"
        assert theirs.recv(10) == b""
        assert (link.state, link.outcome, link.is_over) == (State.CLOSED, Close(4000), True)
        assert link.totals() == Totals(bytes_received=8, bytes_sent=7)


def test_no_101(link: Link) -> None:
    link.abandon()
    assert not link.wait_opened()
    assert link.state is State.CONNECTING


def test_what_of_the_application_runs(link: Link) -> None:
    calls: list[object] = []

    @contextmanager
    def scope(conn: object) -> Iterator[None]:
        calls.append(f"enter {conn}")
        yield
        calls.append("leave")

    def callback(conn: object, *args: object) -> None:
        calls.append((conn, args, link.callback and link.callback[0]))

    link.call("on_message", callback, "conn", 1, 2)
    assert link.callback is None
    link.scope = scope
    link.call_aside(callback, "conn")
    assert calls == [("conn", (1, 2), "on_message"), "enter conn", ("conn", (), None), "leave"]


def test_description(link: Link) -> None:
    """It tells the state, what the connection does and since when, and how much waits."""
    assert str(link) == "WebSocket 127.0.0.1 '/ws'"
    now = clock.now() + 5
    known = f"{link.sender.id} WebSocket 127.0.0.1 '/ws' CONNECTING, open for 5.0 s, "
    assert link.describe(now) == f"{known}between callbacks, 0 bytes queued, no pong yet"
    link.callback = "on_message", now - 2
    link.sender.deadlines.last_pong = now - 3
    assert link.describe(now) == f"{known}in on_message for 2.0 s, 0 bytes queued, last pong 3.0 s ago"
    link.receiver.waiting_since = now - 1
    assert link.describe(now) == f"{known}waiting for a message for 1.0 s, 0 bytes queued, last pong 3.0 s ago"
    assert 0 <= link.age < 5


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
