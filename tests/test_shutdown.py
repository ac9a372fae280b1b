"""Stopping a manager."""

from __future__ import annotations

import time

import pytest
from peer import TIMEOUT, Connect, connect, members, refused
from servers import wait_until

from wsthread import ListenableManager, Opcode

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
