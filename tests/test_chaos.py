"""Everything at once, from many threads: whatever the clients and the application do, nothing is lost or left over.

``CHAOS_SECONDS=60`` in the environment lets it last longer than it does by default.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from clients import RawClient, frame
from servers import serve_here, wait_until
from websockets.frames import Opcode

from wsthread import Connection, ConnectionClosed, ListenableManager
from wsthread.manager import hub_of

SECONDS = float(os.environ.get("CHAOS_SECONDS", "5"))
THREADS = 32
CLIENTS = 300  # At most.
BROADCASTS: list[str | bytes] = ["text", bytes(5000)]
MESSAGES: list[str | bytes] = ["text", b"binary", bytes(70_000)]
GROUPS = [f"group {number}" for number in range(5)]


class Application:
    """A manager that counts what happens to its connections, and threads that do things to them."""

    def __init__(self, **options: Any) -> None:
        self._lock = threading.Lock()  # Guards the two below.
        self.counts: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.manager = ListenableManager(
            on_connect=self._connected, on_message=self._received, on_error=self._failed, on_close=self._closed,
            close_timeout=2, ping_interval=1, ping_timeout=5, max_connections=None, **options)

    def count(self, event: str, number: int = 1) -> None:
        with self._lock:
            self.counts[event] += number

    def _connected(self, conn: Connection) -> None:
        self.count("connected")
        conn.context = ["connected"]
        conn.join(random.choice(GROUPS))

    def _received(self, conn: Connection, opcode: object, payload: str | bytes) -> None:
        self.count("received")
        conn.send(payload)
        self.count("sent")

    def _failed(self, conn: Connection, error: Exception) -> None:
        with self._lock:
            self.errors.append(error)

    def _closed(self, conn: Connection) -> None:
        self.count("closed")
        conn.context.append("closed")
        assert conn.context == ["connected", "closed"]
        assert not conn.groups
        assert self.manager.get(conn.id) is None

    def do(self) -> None:
        """Do one thing, to one connection or to many."""
        connections = self.manager.connections
        conn = random.choice(connections) if connections else None
        if conn is None or random.random() < 0.3:
            to = random.choice([None, random.choice(GROUPS), random.sample(GROUPS, 2)])
            result = self.manager.broadcast(random.choice(BROADCASTS), to=to, exclude=conn or ())
            self.count("posted", result.sent + result.queued)
            self.count("dropped", result.dropped)
            return
        with suppress(ConnectionClosed, TimeoutError):
            self._do_to(conn)

    def _do_to(self, conn: Connection) -> None:
        match random.randrange(12):
            case 0:
                conn.join(random.choice(GROUPS))
            case 1:
                conn.leave(random.choice(GROUPS))
            case 2:
                conn.close(random.choice([1000, 4000]), "enough")
            case 3:
                conn.terminate()
            case 4:
                assert self.manager.get(conn.id) in (conn, None)
            case 5:
                assert self.manager.close_where(lambda one: one is conn, 4001) <= 1
            case 6:
                self.manager.stats()
            case 7:
                self.manager.dump()
            case 8:
                conn.ping(b"chaos")
            case _:
                conn.send(random.choice(MESSAGES), timeout=5)
                self.count("sent")


class Crowd:
    """Clients that come and go at random, most of them without saying goodbye."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()  # Guards the clients; one that is taken out belongs to the thread.
        self.clients: list[RawClient] = []
        self.opened = 0

    def do(self) -> None:
        """Open a connection, or do one thing with one."""
        with self._lock:
            number = len(self.clients)
            client = self.clients.pop(random.randrange(number)) if number and random.random() < 0.8 else None
        if client is None:
            if number >= CLIENTS:
                return
            client = RawClient(self._port).open("/ws")
            self.count_opened()
        try:
            alive = self._do_with(client)
        except OSError:
            alive = False
        if alive:
            with self._lock:
                self.clients.append(client)
        else:
            client.socket.close()

    def count_opened(self) -> None:
        with self._lock:
            self.opened += 1

    @staticmethod
    def _do_with(client: RawClient) -> bool:
        """Return whether the connection may go on."""
        match random.randrange(20):
            case 0:
                return False
            case 1:
                client.reset()
                return False
            case 2:
                client.send(frame(Opcode.CLOSE, b"\x03\xe8"))
                client.recv_rest()
                return False
            case 3:
                client.send(frame(Opcode.BINARY, bytes(100_000))[:50_000])
                return False
            case number if number < 12:
                client.send(frame(Opcode.TEXT, "x" * random.randrange(3000)))
            case _:
                with suppress(BlockingIOError):
                    return bool(client.socket.recv(1 << 18, socket.MSG_DONTWAIT))
        return True

    def leave(self) -> None:
        for client in self.clients:
            client.socket.close()


def run(*actions: Callable[[], None]) -> list[BaseException]:
    """Repeat the actions in many threads for a while; return what they raised."""
    raised: list[BaseException] = []
    end = time.monotonic() + SECONDS

    def repeat(action: Callable[[], None]) -> None:
        try:
            while time.monotonic() < end:
                action()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=repeat, args=(actions[i % len(actions)],)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 60)
        assert not thread.is_alive(), "a deadlock"
    return raised


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("overflow", ["close", "drop_oldest", "drop_newest", "block"])
def test_chaos(overflow: str, caplog: pytest.LogCaptureFixture) -> None:
    threads = threading.active_count()
    application = Application(overflow=overflow, max_outbox_size=200_000, write_timeout=2)
    manager = application.manager
    with serve_here(manager) as port:
        crowd = Crowd(port)
        raised = run(application.do, crowd.do)
        crowd.leave()
        wait_until(lambda: manager.stats()["threads"] == 0, 30)
    assert raised == []
    assert application.errors == []
    counts, stats = application.counts, manager.stats()
    assert counts["connected"] == counts["closed"] == stats["accepted"] == sum(stats["closed"].values()) >= crowd.opened
    assert counts["received"] == stats["messages_received"]
    assert counts["dropped"] <= stats["messages_dropped"]
    # What waits in an outbox when its connection ends was posted and is not sent.
    assert counts["sent"] - stats["messages_sent"] <= counts["posted"]
    assert stats["messages_sent"] <= counts["sent"] + counts["posted"]
    assert manager.connections == ()
    assert stats["queued_bytes"] == 0
    registry = hub_of(manager).registry
    assert not (registry._members or registry._groups or registry._joined or registry._addresses)
    wait_until(lambda: threading.active_count() <= threads + 1)  # The housekeeper stays.
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
