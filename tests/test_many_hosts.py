"""Workers that share a Redis, as many hosts would: 200 clients over four workers, while Redis goes through everything.

All that clients, views and a Publisher send arrives at each client once and in the order of its sender, and what a
client sends comes back from its own worker as if nothing had happened.
"""

from __future__ import annotations

import base64
import multiprocessing
import os
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import pytest
from redis_servers import Proxy, RedisServer, running, steadily
from servers import Server, serve, wait_until
from test_redis_chaos import fill_memory, flush, kill, kill_clients, watched

from wsthread.client import connect
from wsthread.publisher import Publisher

pytestmark = pytest.mark.slow
CLIENTS, WORKERS = 200, 4
HEALTHY_WITHIN = 5.0  # Seconds after an event.
LOCAL_P99 = 0.05  # Seconds.
SIZE = 16  # Bytes of each message: eight for its sender, eight digits for its number.
FRAME = SIZE + 2
HEAD = bytes((0x81, SIZE))


class Client:
    """One that only listens.

    Attributes:
        process: the worker that serves it.
        last: the number of the last message of each sender.
        faults: what was doubled, missing in between, or no message.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + FRAME:
            more = self.socket.recv(1 << 16)
            assert more, data
            data += more
        start = data.index(b"\r\n\r\n") + 4
        self.process = int(data[start + 2:start + FRAME])
        self._rest = data[start + FRAME:]
        self.last: dict[bytes, int] = {}
        self.faults: list[str] = []
        self.socket.setblocking(False)

    def read(self) -> None:
        """Take what is there."""
        data = self._rest + self.socket.recv(1 << 18)
        whole = len(data) // FRAME * FRAME
        self._rest = data[whole:]
        last = self.last
        for at in range(0, whole, FRAME):
            sender, number = data[at + 2:at + 10], data[at + 10:at + FRAME]
            if data[at:at + 2] != HEAD:
                raise AssertionError(f"no message: {data[at:at + FRAME]!r}")
            value = int(number)
            if value != last.get(sender, 0) + 1 and len(self.faults) < 20:
                self.faults.append(f"{sender.decode()}: {value} after {last.get(sender, 0)}")
            last[sender] = value


class Crowd:
    """Clients, as many with each worker, and a thread that reads for all."""

    def __init__(self, port: int) -> None:
        self.clients: list[Client] = []
        spread: Counter[int] = Counter()
        for _ in range(200 * CLIENTS):
            client = Client(port)
            if spread[client.process] < CLIENTS // WORKERS:
                spread[client.process] += 1
                self.clients.append(client)
            else:
                client.socket.close()
            if len(self.clients) == CLIENTS:
                break
        assert sorted(spread.values()) == [CLIENTS // WORKERS] * WORKERS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for client in self.clients:
                selector.register(client.socket, selectors.EVENT_READ, client)
            while not self._stop.is_set():
                for key, _ in selector.select(0.1):
                    key.data.read()
                time.sleep(0.02)  # Many messages at a time cost less, and the workers need the processor.

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for client in self.clients:
            client.socket.close()


def probe(port: int, number: int, rate: float, pipe: Pipe) -> None:
    """Send messages and measure how long each takes to come back; in a process of its own, so that others' work in
    this one does not count."""
    name = f"c{number:07d}"
    times: list[float] = []
    with connect(f"ws://127.0.0.1:{port}/ws") as conn:
        pipe.send(int(conn.receive(10)))
        pipe.recv()
        begun = time.monotonic()
        while not pipe.poll(max(0.0, begun + len(times) / rate - time.monotonic())):
            text = f"{name}{len(times) + 1:08d}"
            sent = time.monotonic()
            conn.send(text)
            while conn.receive(10) != text:
                pass
            times.append(time.monotonic() - sent)
    pipe.send(times)


class Load:
    """What sends: a probe with each of some workers, a view, and a Publisher."""

    def __init__(self, server: Server, url: str, rate: float = 85.0) -> None:
        self._stop = threading.Event()
        self._views = 0
        self._view_numbers: Counter[bytes] = Counter()
        self.failed: list[int] = []
        self._published = 0
        spawn = multiprocessing.get_context("spawn")
        self._probes = []
        for number in range(2):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=probe, args=(server.port, number, rate, theirs))
            process.start()
            ours.recv()
            self._probes.append((process, ours))
        self._publisher = Publisher(url, "room", timeout=15.0)
        self._threads = [
            threading.Thread(target=steadily, args=(act, rate, self._stop))
            for act in (lambda: self._view(server), self._publish)]
        for _, pipe in self._probes:
            pipe.send("go")
        for thread in self._threads:
            thread.start()

    def _view(self, server: Server) -> None:
        self._view_numbers[server.get("/publish")[:8].encode()] += 1

    def _publish(self) -> None:
        self._published += 1
        self._publisher.broadcast(f"p0000000{self._published:08d}")

    def stop(self) -> tuple[dict[bytes, int], list[float]]:
        """End it; return how many messages each sender has sent, and the times of the probes in order."""
        self._stop.set()
        sent: dict[bytes, int] = {}
        times: list[float] = []
        for number, (process, pipe) in enumerate(self._probes):
            pipe.send("stop")
            some = pipe.recv()
            process.join(10)
            sent[f"c{number:07d}".encode()] = len(some)
            times += some
        for thread in self._threads:
            thread.join()
        self._publisher.stop()
        return {**sent, **self._view_numbers, b"p0000000": self._published}, sorted(times)


@contextmanager
def crowded(url: str) -> Iterator[tuple[Server, Crowd]]:
    options = ("--workers", f"{WORKERS}", "--threads", "4")
    with serve("gthread", "apps.hosts:app", *options, env={"REDIS": url}) as server:
        crowd = Crowd(server.port)
        try:
            yield server, crowd
        finally:
            crowd.close()


def wait_healthy(server: Server) -> None:
    """Wait until each worker says that it is, and that nothing was missed."""
    told: dict[str, tuple[str, str]] = {}

    def all_are() -> bool:
        process, healthy, gaps = server.get("/").split()
        told[process] = (healthy, gaps)
        return len(told) == WORKERS and all(one == ("1", "0") for one in told.values())

    wait_until(all_are, timeout=HEALTHY_WITHIN)


def check(crowd: Crowd, load: Load) -> None:
    """Compare what was sent with what each client has got."""
    sent, times = load.stop()
    with suppress(AssertionError):  # The comparison below says more.
        wait_until(lambda: all(client.last == sent for client in crowd.clients), timeout=20)
    assert [client.faults for client in crowd.clients if client.faults] == []
    assert {tuple(sorted(client.last.items())) for client in crowd.clients} == {tuple(sorted(sent.items()))}
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    print(f"{sum(sent.values())} messages, {len(times)} timed: p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")
    assert p99 < LOCAL_P99


def stop_ten_seconds(server: RedisServer) -> None:
    server.pause()
    time.sleep(10)
    server.resume()


def kill_with_aof(server: RedisServer) -> None:
    server.call("CONFIG", "SET", "appendonly", "yes")
    time.sleep(1)
    server.kill()
    time.sleep(0.5)
    server.start("--appendonly", "yes")


#: What happens to Redis, one after the other.
EVENTS: list[Callable[[RedisServer], None]] = [
    kill, kill_clients, stop_ten_seconds, flush, fill_memory, kill_with_aof]


def test_redis_goes_through_everything(redis_program: str) -> None:
    with running(redis_program) as redis, crowded(redis.url) as (server, crowd):
        load = Load(server, redis.url)
        try:
            for event in EVENTS:
                time.sleep(2)
                event(redis)
                wait_healthy(server)
        finally:
            time.sleep(1)
            check(crowd, load)


def test_failover_with_a_lost_tail(
    redis_program: str, need_program: Callable[[str], str], tmp_path: Path,
) -> None:
    with watched(redis_program, need_program("redis-sentinel"), tmp_path) as (url, primary, replica, proxy):
        assert isinstance(proxy, Proxy)
        with crowded(url) as (server, crowd):
            load = Load(server, url)
            try:
                time.sleep(2)
                proxy.flows.clear()
                time.sleep(1)
                primary.kill()
                wait_until(lambda: replica.call("ROLE")[0] in (b"master", "master"), timeout=20)
                wait_healthy(server)
            finally:
                time.sleep(1)
                check(crowd, load)
