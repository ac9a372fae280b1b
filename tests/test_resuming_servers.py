"""Clients that come back to four workers while these, or the Redis that they share, go through everything.

Each text has its sender and a number. What a client gets of a sender has no hole and nothing twice, unless it was told
``recovered: false`` in between. What always lets clients recover is in the tables of events; for the others ``pytest
-rP`` shows how many did not.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from deployments import WORKERS, Deployment, deploy
from redis_servers import Proxy, RedisServer, running
from servers import Server, wait_until
from test_many_hosts import kill_with_aof, stop_ten_seconds
from test_redis_chaos import fill_memory, flush, kill, kill_clients, watched
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from wsthread.wire.resume import SUBPROTOCOL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
CLIENTS, RECONNECTS = 16, 300
LONGEST_STAY = 0.5  # Seconds until a client leaves again.
LOST = (OSError, EOFError, ConnectionClosed, InvalidHandshake, TimeoutError)


class Sender(threading.Thread):
    """Somebody who talks in both rooms, by one connection as long as it lives; then it is somebody else.

    Attributes:
        began: when each of its lives has begun, in seconds on the monotonic clock.
        last: the last number in each room, of each of its lives.
    """

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(daemon=True)
        self.is_over = threading.Event()
        self.began: dict[str, float] = {}
        self.last: dict[str, dict[str, int]] = {"a": {}, "b": {}}
        self._server = server
        self._name = name

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                with connect(self._server.url(f"/ws/{self._name}", "ws"), open_timeout=10, close_timeout=0.1) as socket:
                    self._talk(socket, f"{self._name}.{len(self.began)}")
            except LOST:
                time.sleep(0.02)

    def _talk(self, socket: ClientConnection, name: str) -> None:
        number = 0
        self.began[name] = time.monotonic()
        while not self.is_over.is_set():
            number += 1
            for room, last in self.last.items():
                socket.send(f"say {room} {name} {number}")
                last[name] = number
            time.sleep(0.04)

    def now(self, room: str) -> tuple[str, int]:
        """Return who it is now, and the number of what it said last."""
        return list(self.last[room].items())[-1]


class Client(threading.Thread):
    """Somebody who listens in a room, and comes and goes.

    Attributes:
        recovered: what it was told, on each connection that lasted so long.
        faults: what it should have got and has not, or has got twice.
        last: the last number of each sender.
        stays: set to let it stay.
        is_up_to_date: whether it has got what it had missed.
        is_over: set to let it leave for good.
    """

    def __init__(self, server: Server, room: str, seed: int, senders: Sequence[Sender]) -> None:
        super().__init__(daemon=True)
        self.room = room
        self.recovered: list[bool] = []
        self.faults: list[str] = []
        self.last: dict[str, int] = {}
        self.stays = threading.Event()
        self.is_up_to_date = threading.Event()
        self.is_over = threading.Event()
        self._server = server
        self._senders = senders
        self._chance = random.Random(seed)
        self._seen: dict[str, int] | None = None
        self._has_lost = False
        self._got: set[str] = set()
        self._may_have_holes: set[str] = set()  # Senders of whom it does not know what came last.
        self._complete_since = float("inf")  # From senders who have begun later it gets everything.

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                with connect(
                    self._server.url(f"/ws/{self.room}", "ws"), subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                    open_timeout=10, close_timeout=0.1,
                ) as connection:
                    connection.send(json.dumps(self._seen))
                    self._listen(connection)
                    connection.socket.close()  # As when a network vanishes.
            except LOST:
                time.sleep(0.02)
            self.is_up_to_date.clear()

    def _listen(self, connection: ClientConnection) -> None:
        until = time.monotonic() + self._chance.random() * LONGEST_STAY
        while not self.is_over.is_set():
            left = until - time.monotonic()
            if left <= 0 and not self.stays.is_set():
                break
            try:
                self._take(str(connection.recv(timeout=min(left, 0.2) if left > 0 else 0.2)))
            except TimeoutError:
                pass

    def _take(self, message: str) -> None:
        if message.startswith("{"):
            notice = json.loads(message)
            self._seen = notice.get("seen", self._seen)
            if notice.get("recovered"):
                if not self.recovered:
                    self._complete_since = time.monotonic()
                self.recovered.append(not self._has_lost)
                self._has_lost = False
                self.is_up_to_date.set()
            elif "recovered" in notice:
                self._has_lost = True
                self._may_have_holes = set(self.last)
                self._complete_since = time.monotonic()
            return
        number, feed, text = message.partition("\n")
        if number:
            assert self._seen is not None
            publisher, _, digits = number.partition(":")
            self._seen[publisher] = int(digits)
        if feed:
            self._check(text)

    def _check(self, text: str) -> None:
        _, _, sender, digits = text.split()
        if text in self._got:
            self.faults.append(f"twice: {text}")
        self._got.add(text)
        number = int(digits)
        if sender not in self.last:
            (began,) = [one.began[sender] for one in self._senders if sender in one.began]
            may_have_hole = began <= self._complete_since
        else:
            may_have_hole = sender in self._may_have_holes
        before = self.last.get(sender, 0)
        if number != before + 1 and not may_have_hole:
            self.faults.append(f"{text} after {before}; {self.recovered[-3:]}")
        self._may_have_holes.discard(sender)
        self.last[sender] = number


def wait_for_workers(server: Server) -> None:
    """Wait until each has begun to speak with the others."""
    said: set[str] = set()

    def have_all() -> bool:
        said.add(server.get("/say/nobody/hello"))
        return len(said) == WORKERS

    wait_until(have_all, timeout=30)


def come_and_go(server: Server, event: Callable[[], object]) -> list[bool]:
    """Let clients come and go while something happens, and check what they get; return what they were told."""
    wait_for_workers(server)
    senders = [Sender(server, f"s{number}") for number in range(4)]
    clients = [Client(server, "ab"[number % 2], number, senders) for number in range(CLIENTS)]
    threads: list[Sender | Client] = [*senders, *clients]
    for thread in threads:
        thread.start()

    def told() -> list[bool]:
        return [one for client in clients for one in client.recovered]

    try:
        wait_until(lambda: all(client.last for client in clients), timeout=30)
        before, end = len(told()), time.monotonic() + 90
        while True:
            event()
            if len(told()) - before >= RECONNECTS or time.monotonic() > end:
                break
        reconnects = len(told()) - before
        for client in clients:
            client.stays.set()
        wait_until(lambda: all(client.is_up_to_date.is_set() for client in clients), timeout=30)
        for sender in senders:
            sender.is_over.set()
            sender.join(20)
        # What is said now is complete: the connections of who said it live.
        expected = {room: dict(sender.now(room) for sender in senders) for room in "ab"}
        wait_until(
            lambda: all(client.last.items() >= expected[client.room].items() for client in clients), timeout=30)
    finally:
        for thread in threads:
            thread.is_over.set()
        for thread in threads:
            thread.join(20)
        faults = [fault for client in clients for fault in client.faults]
        print(f"{len(told())} connections, {told().count(False)} not recovered; {len(faults)} faults")
        assert faults == []
    assert reconnects >= RECONNECTS
    return told()


def leave_alone(deployment: Deployment) -> None:
    time.sleep(0.2)


def kill_worker(deployment: Deployment) -> None:
    deployment.kill()
    time.sleep(1)


def reload(deployment: Deployment) -> None:
    deployment.reload()
    time.sleep(1)


def let_workers_end(deployment: Deployment) -> None:
    deployment.let_workers_end(requests=40)


#: What happens to workers, and the buses with which all clients recover from it. A worker that is killed may have been
#: the only one to know what its clients have seen.
WORKER_EVENTS: dict[str, tuple[Callable[[Deployment], None], tuple[str, ...]]] = {
    "left alone": (leave_alone, ("local", "redis")),
    "killed": (kill_worker, ()),
    "stopped 3 s": (Deployment.stop, ("local", "redis")),
    "reloaded": (reload, ("redis",)),
    "ended by max_requests": (let_workers_end, ("redis",)),
    "replaced": (Deployment.replace, ("redis",)),
}
#: What happens to the Redis. All clients recover from each of these.
REDIS_EVENTS: dict[str, Callable[[RedisServer], None]] = {
    "killed": kill,
    "killed with AOF": kill_with_aof,
    "stopped 10 s": stop_ten_seconds,
    "clients killed": kill_clients,
    "flushed": flush,
    "out of memory": fill_memory,
}


@pytest.mark.parametrize("bus", ["local", "redis"])
@pytest.mark.parametrize("event", WORKER_EVENTS)
def test_workers(event: str, bus: str, need_program: Callable[[str], str], tmp_path: Path) -> None:
    act, recovers = WORKER_EVENTS[event]
    env, options = {"HISTORY": "30000"}, []
    with ExitStack() as stack:
        if bus == "redis":
            env["REDIS"] = stack.enter_context(running(need_program("redis-server"))).url
            options.append("--preload")
        deployment = stack.enter_context(deploy("apps.resuming:app", tmp_path, *options, env=env))
        told = come_and_go(deployment.server, lambda: act(deployment))
    assert sum(told) > len(told) / 2
    assert bus not in recovers or all(told)


@pytest.mark.parametrize("event", REDIS_EVENTS)
def test_redis(event: str, redis_program: str, tmp_path: Path) -> None:
    with running(redis_program) as redis, deploy(
            "apps.resuming:app", tmp_path, env={"HISTORY": "30000", "REDIS": redis.url}) as deployment:
        def act() -> None:
            REDIS_EVENTS[event](redis)
            time.sleep(1)

        assert all(come_and_go(deployment.server, act))


def test_failover(redis_program: str, need_program: Callable[[str], str], tmp_path: Path) -> None:
    with watched(redis_program, need_program("redis-sentinel"), tmp_path) as (url, primary, replica, proxy):
        assert isinstance(proxy, Proxy)

        def fail_over() -> None:
            if primary.process.poll() is None:
                proxy.flows.clear()
                time.sleep(1)  # What is published now gets lost.
                primary.kill()
                wait_until(lambda: replica.call("ROLE")[0] in (b"master", "master"), timeout=30)
            time.sleep(1)

        with deploy("apps.resuming:app", tmp_path, env={"HISTORY": "30000", "REDIS": url}) as deployment:
            assert all(come_and_go(deployment.server, fail_over))
