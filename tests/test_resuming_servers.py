"""Clients that come back to four workers while these, or the Redis that they share, go through everything.

Each text has its sender and a number. What a client gets of a sender has no hole and nothing twice, unless it was told
``recovered: false`` in between. What always lets clients recover is in the tables of events; for the others ``pytest
-rP`` shows how many did not. The clients are plain ones, and at last those of wsthread.js in Chromium.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from deployments import WORKERS, Deployment, deploy
from redis_servers import Proxy, RedisServer, running
from servers import Server, wait_until
from test_chat import browser
from test_many_hosts import kill_with_aof, stop_ten_seconds
from test_redis_chaos import fill_memory, flush, kill, kill_clients, watched
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from wsthread.wire.resume import SUBPROTOCOL

__all__ = ["browser"]
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
        complete_since: when it was told that it misses something, or has come at all, in seconds on the monotonic
            clock. It gets everything from senders who have begun later.
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
        self.complete_since = float("inf")
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
                    self.complete_since = time.monotonic()
                self.recovered.append(not self._has_lost)
                self._has_lost = False
                self.is_up_to_date.set()
            elif "recovered" in notice:
                self._has_lost = True
                self._may_have_holes = set(self.last)
                self.complete_since = time.monotonic()
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
            may_have_hole = began <= self.complete_since
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


def finish(senders: Sequence[Sender]) -> dict[str, dict[str, int]]:
    """Let them fall silent when all are connected; return the number of what each said last, by room."""
    before = [sender.now("b") for sender in senders]
    wait_until(lambda: all(sender.now("b") != one for sender, one in zip(senders, before)), timeout=30)
    for sender in senders:
        sender.is_over.set()
    for sender in senders:
        sender.join(20)
    return {room: dict(sender.now(room) for sender in senders) for room in "ab"}


def missing(senders: Sequence[Sender], clients: Sequence[Client]) -> list[str]:
    """Return what only some clients have got, though others cannot have missed it without having been told."""
    return [
        f"{room} {name}: {client.last.get(name, 0)} of {most}"
        for sender in senders for name, began in sender.began.items() for room in "ab"
        for most in [max(client.last.get(name, 0) for client in clients if client.room == room)] for client in clients
        if client.room == room and client.complete_since < began and client.last.get(name, 0) != most]


def come_and_go(server: Server, event: Callable[[], object], *, may_vanish: bool = False) -> list[bool]:
    """Let clients come and go while something happens, and check what they get.

    Args:
        server: the server.
        event: lets something happen.
        may_vanish: whether the last messages of a worker may have come to its own clients only.

    Returns:
        What the clients were told.
    """
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
        expected = finish(senders)
        wait_until(
            lambda: all(client.last.items() >= expected[client.room].items() for client in clients), timeout=30)
        if not may_vanish:
            with suppress(AssertionError):  # The comparison says more.
                wait_until(lambda: not missing(senders, clients))
            assert missing(senders, clients) == []
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
#: the only one to know what its clients have seen. Where workers begin, a client may have seen messages of a new one,
#: and come to another one before these, over Redis.
WORKER_EVENTS: dict[str, tuple[Callable[[Deployment], None], tuple[str, ...]]] = {
    "left alone": (leave_alone, ("local", "redis")),
    "killed": (kill_worker, ()),
    "stopped 3 s": (Deployment.stop, ("local", "redis")),
    "reloaded": (reload, ()),
    "ended by max_requests": (let_workers_end, ()),
    "replaced": (Deployment.replace, ()),
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
        told = come_and_go(deployment.server, lambda: act(deployment), may_vanish=act is kill_worker)
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


# Chromium

SWITCHES = 36  # How often it goes offline.
#: Clients of wsthread.js. It tells of a loss behind what has come since then, so a hole waits for that. The hole before
#: the first message of a sender is judged below: it is none if the client was complete only after that began.
PAGE = """
const [rooms, done] = arguments;
function listen(Socket, room, opened) {
    const last = {}, got = new Set(), faults = [], recovered = [];
    let heard = new Set(), mayHaveHoles = new Set(), holes = [], completeSince = Infinity;
    const socket = new Socket(`/ws/${room}`, { firstDelay: 100, lastDelay: 300 });
    const isUpToDate = () => socket.readyState === Socket.OPEN && !socket.recovering;
    socket.addEventListener("open", () => {
        completeSince = Date.now() + 1;
        opened();
    }, { once: true });
    socket.ondown = () => { heard = new Set(); };
    socket.onmessage = ({ data }) => {
        if (got.has(data)) faults.push(`twice: ${data}`);
        got.add(data);
        const [, , sender, digits] = data.split(" ");
        const number = Number(digits), before = last[sender] ?? 0;
        if (number !== before + 1 && !mayHaveHoles.has(sender)) {
            holes.push([sender, number, before, completeSince / 1000]);
        }
        last[sender] = number;
        heard.add(sender);
        mayHaveHoles.delete(sender);
    };
    socket.onrecovered = (event) => {
        recovered.push(event.recovered);
        if (event.recovered) return;
        holes = [];
        mayHaveHoles = new Set(Object.keys(last).filter((sender) => !heard.has(sender)));
        completeSince = Date.now() + 1;
    };
    return { isUpToDate, report: () => ({ room, last, faults, recovered, holes }) };
}
import("/_wsthread/wsthread.js").then(({ Socket }) => {
    let count = 0;
    window.clients = rooms.map((room) => listen(Socket, room, () => ++count === rooms.length && done()));
});
"""


def test_chromium(browser: Any, tmp_path: Path) -> None:
    def switch(offline: bool) -> None:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", {
            "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1})
        assert browser.execute_script("return navigator.onLine") is not offline

    def are_up_to_date() -> bool:
        found: bool = browser.execute_script("return clients.every((client) => client.isUpToDate())")
        return found

    def report() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = browser.execute_script("return clients.map((client) => client.report())")
        return found

    def kill_and_reload(deployment: Deployment) -> None:
        for _ in range(3):
            kill_worker(deployment)
            reload(deployment)

    rooms, chance = ["a", "b"] * 4, random.Random(1)
    with deploy("apps.resuming:app", tmp_path, env={"HISTORY": "30000"}) as deployment, ThreadPoolExecutor() as pool:
        server = deployment.server
        wait_for_workers(server)
        browser.execute_cdp_cmd("Network.enable", {})
        browser.set_script_timeout(60)
        browser.get(server.url("/pid"))
        browser.execute_async_script(PAGE, rooms)
        senders = [Sender(server, f"s{number}") for number in range(4)]
        for sender in senders:
            sender.start()
        try:
            happening = pool.submit(kill_and_reload, deployment)
            switches = 0
            while switches < SWITCHES or not happening.done():
                switches += 1
                switch(offline=True)
                time.sleep(chance.random() / 2)
                switch(offline=False)
                if switches % 2:
                    wait_until(are_up_to_date, timeout=30)
                time.sleep(chance.random() / 2)
            happening.result()
            wait_until(are_up_to_date, timeout=30)
            expected = finish(senders)
            wait_until(
                lambda: all(one["last"].items() >= expected[one["room"]].items() for one in report()), timeout=30)
        finally:
            for sender in senders:
                sender.is_over.set()
            found = report()
            told = [recovered for one in found for recovered in one["recovered"]]
            print(f"{switches} times offline: {len(told)} returns, {told.count(False)} not recovered")
            began = {name: at + time.time() - time.monotonic() for one in senders for name, at in one.began.items()}
            assert [one["faults"] for one in found if one["faults"]] == []
            assert [
                (sender, number, before) for one in found for sender, number, before, since in one["holes"]
                if before or began[sender] > since] == []
    assert len(told) >= SWITCHES / 2 * len(rooms)
    assert sum(told) > len(told) / 2
