"""Stopping a manager."""

from __future__ import annotations

import time

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, members, refused
from servers import wait_until

from wsthread import ListenableManager, Opcode, State, clock
from wsthread.shutdown import Shutdown, wait_ended
from wsthread.wire.protocol import Close

__all__ = ["connect"]


@pytest.mark.parametrize("where", ["on_connect", "on_message", "on_close"])
def test_shutdown_in_a_callback(connect: Connect, where: str) -> None:
    manager = ListenableManager(shutdown_timeout=TIMEOUT)
    results: list[bool] = []
    pairs = members(manager, connect, 2)
    started = time.monotonic()
    setattr(manager, where, lambda conn, *args: results.append(manager.shutdown()))
    _, peer = connect(manager)
    if where == "on_message":
        peer.send(Opcode.TEXT, b"stop")
    elif where == "on_close":
        peer.close_frame()
    for _, other in pairs:
        assert other.read_close() == 1001
        other.close_frame(1001)
    assert peer.read_close() == (1000 if where == "on_close" else 1001)
    if where != "on_close":
        peer.close_frame(1001)
    wait_until(lambda: results and manager.stats()["threads"] == 0)
    assert set(results) == {True}
    assert time.monotonic() - started < TIMEOUT
    assert manager.connections == ()
    assert refused(manager).reason == "No more connections: the server is stopping."


# Without a manager that stops


@pytest.mark.parametrize(("spread", "closed"), [(0.0, [4, 4, 4]), (4.0, [1, 3, 4])])
def test_closes_are_spread(connect: Connect, spread: float, closed: list[int]) -> None:
    """After 0, 2 and 4 seconds."""
    manager = ListenableManager()
    conns = [conn for conn, _ in members(manager, connect, 4)]
    shutdown = Shutdown()
    found = []
    began = shutdown.begin(Close(1012, "later"), spread, lambda: conns)
    for seconds in 0, 2, 4:
        shutdown.go_on(began + seconds)
        found.append(sum(conn.state is State.CLOSING for conn in conns))
    assert found == closed
    assert shutdown.close == Close(1012, "later")


def test_the_first_beginning_counts(connect: Connect) -> None:
    manager = ListenableManager()
    (conn, peer), = members(manager, connect, 1)
    shutdown = Shutdown()
    began = shutdown.begin(Close(1001), 0.0, lambda: [])
    assert shutdown.begin(Close(1012), 0.0, lambda: [conn]) == began
    assert (shutdown.close, conn.state) == (Close(1001), State.OPEN)
    shutdown.tell(conn)  # One that came meanwhile.
    assert peer.read_close() == 1001


def test_nobody_is_told_before_the_beginning(connect: Connect) -> None:
    manager = ListenableManager()
    (conn, _), = members(manager, connect, 1)
    shutdown = Shutdown()
    shutdown.tell(conn)
    shutdown.go_on(clock.now() + 1e6)
    assert conn.state is State.OPEN


@pytest.mark.parametrize(("ends", "result", "is_cut"), [
    ([True], True, False), ([False, True], True, True), ([False, False], False, True)])
def test_waiting_for_the_end(connect: Connect, ends: list[bool], result: bool, is_cut: bool) -> None:
    recorder = Recorder()
    (conn, _), = members(recorder.manager, connect, 1)
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return ends[len(waits) - 1]

    assert wait_ended(wait, lambda: [conn], 7.0) is result
    assert waits == [7.0, 0.5][:len(ends)]
    assert (conn.state is not State.OPEN) is is_cut
    if is_cut:
        assert recorder.wait_closed() == (1006, "no time is left for the closing handshake")
