"""The hand-over of the receiving half between the connection's own thread and the attendant, see wsthread.receiving."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from peer import TIMEOUT, Connect, connect, run_handler
from servers import wait_until
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request
from wire import BINARY, PING, TEXT, client_close, client_frame, server_frames

from wsthread import Connection, ConnectionClosed, Opcode, SimpleManager, State, clock, speedups
from wsthread.connection import link_of
from wsthread.housekeeper import Housekeeper
from wsthread.inbox import Inbox
from wsthread.link import Link
from wsthread.options import Options
from wsthread.receiving import Receiver
from wsthread.registry import Registry
from wsthread.snapshot import Snapshot
from wsthread.transport import Transport
from wsthread.wire.messages import Message
from wsthread.wire.protocol import Close

__all__ = ["connect"]

TESTS = Path(__file__).parent


OpenLink = Callable[..., "tuple[Link, socket.socket]"]


@pytest.fixture
def open_link() -> Iterator[OpenLink]:
    """Return a function that opens a connection of no manager, which nobody else attends, and its peer's socket.

    The test is the connection's own thread.
    """
    housekeeper = Housekeeper()
    sockets: list[socket.socket] = []

    def open_one(unread: bytes = b"") -> tuple[Link, socket.socket]:
        ours, peer = socket.socketpair()
        sockets.extend((ours, peer))
        peer.settimeout(TIMEOUT)
        options = Options(max_control_rate=None)
        link = Link(Snapshot(Request(EnvironBuilder("/ws").get_environ())), options, housekeeper, Registry())
        link.open(Transport(ours), b"", unread)
        assert link.wait_opened()
        return link, peer

    yield open_one
    for sock in sockets:
        sock.close()
    housekeeper.close_after_fork()


# Each piece of it


def test_one_visit_of_the_attendant_is_short(open_link: OpenLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends Pings without end is no reason to let others wait."""
    pings = 1000
    link, peer = open_link(b"".join(client_frame(PING, b"%d" % number) for number in range(pings)))
    now = itertools.count(clock.now(), 0.001)  # Each look at the clock takes a millisecond.
    monkeypatch.setattr(clock, "now", lambda: next(now))
    link.receiver.attend()
    answered = [frame.payload for frame in server_frames(peer.recv(1 << 16))]
    assert 0 < len(answered) < 50
    assert link.receiver.is_deaf()  # The peer is alive, whatever is found behind these.
    while len(answered) < pings:
        link.receiver.attend()
        answered += [frame.payload for frame in server_frames(peer.recv(1 << 16))]
    assert answered == [b"%d" % number for number in range(pings)]


@pytest.mark.parametrize("unit", [client_frame(PING), client_frame(TEXT, b"a")], ids=["Pings", "messages"])
def test_one_visit_is_short_when_we_have_closed(
    open_link: OpenLink, monkeypatch: pytest.MonkeyPatch, unit: bytes,
) -> None:
    link, peer = open_link()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    peer.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += peer.send(unit * 1000)
    link.sender.close(Close(1000))
    now = itertools.count(clock.now(), 0.004)
    monkeypatch.setattr(clock, "now", lambda: next(now))
    link.receiver.attend()
    assert 0 < link.receiver.bytes_received < sent // 2
    assert link.state is State.CLOSING


def test_an_inbox_that_empties_while_somebody_looks(open_link: OpenLink) -> None:
    """stats(), dump() and the deadlines look at the inbox without the lock."""
    looks: list[Inbox | None] = []
    full = Inbox(5)
    full.add(Message(Opcode.BINARY, b"a"))

    class Emptied(Receiver):
        """The connection's thread takes what there is after each look."""

        __slots__ = ()

        @property
        def _inbox(self) -> Inbox | None:
            return looks.pop(0)

        @_inbox.setter
        def _inbox(self, inbox: Inbox | None) -> None:
            pass

    link, _ = open_link()
    receiver = Emptied(link.snapshot.environ, Options(), link.sender, 0.0)
    looks[:] = full, None
    assert receiver.inbox_size == 201
    looks[:] = full, None
    assert receiver.is_deaf()


def test_an_error_of_the_attendant_ends_that_connection_and_no_other(
    connect: Connect, monkeypatch: pytest.MonkeyPatch,
) -> None:
    release, closed = threading.Event(), threading.Event()
    codes: list[int | None] = []

    def handler(conn: Connection) -> None:
        release.wait(TIMEOUT)
        try:
            conn.receive()
        except ConnectionClosed as error:
            codes.append(error.code)
            closed.set()

    manager = SimpleManager(handler)
    broken, broken_peer = connect(manager)
    wait_until(lambda: manager.stats()["accepted"] == 1)
    _, other_peer = connect(manager)  # It is attended after the first.
    attended, next_event = link_of(broken).receiver, Receiver._next_event

    def fail(self: Receiver) -> Any:
        if self is attended:
            raise MemoryError
        return next_event(self)

    monkeypatch.setattr(Receiver, "_next_event", fail)
    broken_peer.send(Opcode.TEXT, b"this one was lost, so nothing may come behind it")
    other_peer.send(Opcode.PING, b"?")
    assert other_peer.read() == (Opcode.PONG, b"?")
    assert broken_peer.at_eof()
    wait_until(lambda: broken.closed)
    assert (broken.close_code, broken.close_reason) == (1006, "an error while it was attended")
    release.set()
    assert closed.wait(TIMEOUT)
    assert codes == [1006]


@pytest.mark.parametrize(("end", "left"), [("ours", 0), ("the peer's", 2)])
def test_an_inbox_is_kept_as_long_as_it_can_be_asked_for(open_link: OpenLink, end: str, left: int) -> None:
    link, peer = open_link()
    peer.sendall(client_frame(TEXT, b"a") + client_frame(BINARY, b"b"))
    link.receiver.attend()
    assert link.receiver.inbox_size == 402
    if end == "ours":
        link.sender.close(Close(1000))
    peer.sendall(client_close(1000))
    link.receiver.attend()
    assert link.is_over
    assert link.receiver.inbox_size == 201 * left
    payloads = []
    with pytest.raises(ConnectionClosed):
        while True:
            payloads.append(link.receiver.receive_message().payload)
    assert payloads == ["a", b"b"][:left]


def test_a_fork_while_the_attendant_is_there(connect: Connect) -> None:
    """The child has nobody who would give the locks back."""
    exits: list[int] = []
    started, locked, forked = threading.Event(), threading.Event(), threading.Event()

    def handler(conn: Connection) -> None:
        started.set()
        locked.wait(TIMEOUT)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                conn.receive()
            except ConnectionClosed:
                try:
                    conn.send("a")
                except ConnectionClosed:
                    status = 0
            finally:
                os._exit(status)
        forked.set()
        end = time.monotonic() + TIMEOUT / 2
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.01)
        if done == (0, 0):
            os.kill(child, 9)
            done = os.waitpid(child, 0)
        exits.append(os.waitstatus_to_exitcode(done[1]))

    conn, peer = run_handler(connect, handler)
    link = link_of(conn)
    assert started.wait(TIMEOUT)
    with link.receiver.lock, link.sender.send_lock:
        locked.set()
        assert forked.wait(TIMEOUT)
    assert peer.read_close() == 1000
    assert exits == [0]


# All of it at once


def soak(seconds: float, connections: int, speedups: bool) -> dict[str, Any]:
    """Run tests/soak.py in a process of its own: it makes the ticks short, and the threads switch often."""
    seed = str(random.randrange(1 << 32))
    print(f"seed {seed}")
    result = subprocess.run(
        [sys.executable, str(TESTS / "soak.py"), "--seed", seed, "--seconds", str(seconds), "--connections",
         str(connections)],
        env={**os.environ, **({} if speedups else {"WSTHREAD_SPEEDUPS": "0"})}, capture_output=True, text=True,
        timeout=seconds + 200)
    print(result.stdout, result.stderr)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[0])
    return figures


@pytest.mark.parametrize("active", [True, False], ids=["extension", "python"])
def test_nothing_is_lost_or_reordered(active: bool) -> None:
    figures = soak(1.5, 40, active)
    assert figures["speedups"] is (active and speedups.active)
    assert figures["messages"] > 100 and figures["pings"] > 100


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("active", [True, False], ids=["extension", "python"])
def test_nothing_is_lost_or_reordered_for_a_minute(active: bool) -> None:
    soak(60, 200, active)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_herd_of_sleepers_is_answered_in_time() -> None:
    """Without the extension a handler that computes is in the way: each read of the attendant waits for the GIL."""
    root = TESTS.parent
    subprocess.run([sys.executable, str(root / "benchmarks" / "sleepers.py")], check=True, timeout=280)
    for row in json.loads((root / "build" / "bench" / "sleepers.json").read_text())["rows"]:
        assert [len(row[name]) for name in ("pongs", "closes", "ends")] == [2000, 1000, 1000]
        if not row["computes"] or row["extension"] and speedups.active:
            assert max(row["pongs"] + row["closes"] + row["ends"]) < 1.5
