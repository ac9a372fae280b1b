"""200 clients that only listen to apps.hosts, those who send to them, and what must have come of it.

A message has 16 bytes: eight for its sender, eight digits for its number. A sender that loses its connection goes on
under another name, and a client that does is another client. So what a client gets of each sender has no hole and
nothing twice, from its first message to its last; what it may not have at the ends is told by :meth:`Crowd.check`.
"""

from __future__ import annotations

import base64
import http.client
import multiprocessing
import os
import queue
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from typing import NamedTuple

from deployments import WORKERS
from redis_servers import steadily
from servers import Server, wait_until

from wsthread.client import connect
from wsthread.exceptions import ConnectionClosed, HandshakeError
from wsthread.publisher import Publisher

CLIENTS = 200
#: Seconds that no local message takes unless something holds it up. They take some milliseconds, and what a test prints
#: is the figure; machines are shared.
HELD_UP = 0.5
_SIZE = 16
_FRAME = _SIZE + 2
_HEAD = bytes((0x81, _SIZE))
_CLOSE = 0x88
_LETTING_IN = 0.5  # Seconds from a client's greeting to when it surely gets what others get.


class Client:
    """One that only listens.

    Attributes:
        process: the worker that serves it.
        began: when it was greeted, in seconds on the monotonic clock.
        first: the number of the first message of each sender.
        last: likewise of the last one.
        faults: what was doubled, missing in between, or no message.
        is_over: whether the connection has ended.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        try:
            self._greet(port)
        except BaseException:
            self.socket.close()
            raise

    def _greet(self, port: int) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + _FRAME:
            more = self.socket.recv(1 << 16)
            if not more:
                raise ConnectionError(f"no greeting: {data!r}")
            data += more
        start = data.index(b"\r\n\r\n") + 4
        if data[start:start + 2] != _HEAD:
            raise ConnectionError(f"no greeting: {data!r}")
        self.process = int(data[start + 2:start + _FRAME])
        self._rest = data[start + _FRAME:]
        self.began = time.monotonic()
        self.first: dict[bytes, int] = {}
        self.last: dict[bytes, int] = {}
        self.faults: list[str] = []
        self.is_over = False
        self.socket.setblocking(False)

    def read(self) -> None:
        """Take what is there."""
        try:
            more = self.socket.recv(1 << 18)
        except OSError:  # It was cut.
            more = b""
        self.is_over = not more
        data = self._rest + more
        whole, last = len(data), self.last
        at = 0
        while whole - at >= _FRAME or whole > at and data[at] == _CLOSE:
            sender, number = data[at + 2:at + 10], data[at + 10:at + _FRAME]
            if data[at:at + 2] != _HEAD:
                self.is_over = True
                if data[at] != _CLOSE:
                    self.faults.append(f"no message: {data[at:at + _FRAME]!r}")
                break
            value = int(number)
            before = last.get(sender)
            if before is None:
                self.first[sender] = value
            elif value != before + 1 and len(self.faults) < 20:
                self.faults.append(f"{sender.decode()}: {value} after {before}")
            last[sender] = value
            at += _FRAME
        self._rest = data[at:]


class Sent(NamedTuple):
    """What one sender has sent.

    Attributes:
        process: the worker that it sent to; 0 for none.
        began: when, in seconds on the monotonic clock.
        sent: how many messages were taken.
        is_complete: whether there cannot be more.
    """

    process: int
    began: float
    sent: int
    is_complete: bool


class Crowd:
    """Clients, as many with each worker, and a thread that reads for all; another one replaces those that end.

    Attributes:
        clients: those that are connected.
        ended: those that were.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.clients: list[Client] = []
        self.ended: list[Client] = []
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
        self._new: queue.SimpleQueue[Client] = queue.SimpleQueue()
        self._missing = threading.Semaphore(0)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=one) for one in (self._read, self._replace)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for client in self.clients:
                selector.register(client.socket, selectors.EVENT_READ, client)
            while not self._stop.is_set():
                for key, _ in selector.select(0.1):
                    client = key.data
                    client.read()
                    if client.is_over:
                        selector.unregister(client.socket)
                        client.socket.close()
                        self.clients.remove(client)
                        self.ended.append(client)
                        self._missing.release()
                while not self._new.empty():
                    client = self._new.get()
                    self.clients.append(client)
                    selector.register(client.socket, selectors.EVENT_READ, client)
                time.sleep(0.02)  # Many messages at a time cost less, and the workers need the processor.

    def _replace(self) -> None:
        while not self._stop.is_set():
            if not self._missing.acquire(timeout=0.1):
                continue
            try:
                self._new.put(Client(self._port))
            except OSError:  # Its worker has ended meanwhile.
                self._missing.release()
                time.sleep(0.02)

    def is_complete(self) -> bool:
        """Tell whether all are connected."""
        return len(self.clients) == CLIENTS

    def check(self, sent: dict[bytes, Sent], killed: Collection[int] = ()) -> None:
        """Compare what was sent with what each client has got.

        Args:
            sent: what the senders say.
            killed: workers of which not all clients have the same last messages.
        """
        if self.ended:  # A worker may have ended between two views, and its last clients with it.
            sent = {name: one._replace(is_complete=one.is_complete and name[:1] != b"v") for name, one in sent.items()}

        def has_all() -> bool:
            return all(
                client.last.get(name) == one.sent for client in list(self.clients) for name, one in sent.items()
                if one.is_complete)

        with suppress(AssertionError):  # The comparisons below say more.
            wait_until(lambda: self.is_complete() and has_all(), timeout=20)
        assert self.is_complete()
        clients = [*self.clients, *self.ended]
        assert [client.faults for client in clients if client.faults] == []
        for name, one in sent.items():
            began = one.began - _LETTING_IN
            assert {client.first[name] for client in clients if client.began < began and name in client.first} <= {1}
            lasts = Counter(client.last.get(name, 0) for client in self.clients)
            print(name.decode(), *one, dict(lasts))
            if one.is_complete:
                assert set(lasts) == {one.sent}
            elif one.process not in killed:
                late = {client.last.get(name, 0) for client in self.clients if client.began < began}
                assert len(late) <= 1 and all(last >= one.sent for last in late)
                assert len(set(lasts) - {0}) <= 1

    def close(self) -> None:
        """Be gone."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self.clients:
            client.socket.close()


class _Life(NamedTuple):
    name: str
    sent: Sent


def _probe(port: int, number: int, rate: float, pipe: Pipe) -> None:
    """Send messages and measure how long each takes to come back; in a process of its own, so that others' work in
    this one does not count."""
    lives: list[_Life] = []
    times: list[float] = []
    begun = 0.0
    while not pipe.poll():
        name, began, count, process = f"c{number:03d}{len(lives):04d}", time.monotonic(), 0, 0
        is_complete = False
        try:
            with connect(f"ws://127.0.0.1:{port}/ws") as conn:
                process = int(conn.receive(10))
                if not begun:
                    pipe.send("connected")
                    pipe.recv()
                    begun = time.monotonic()
                began = time.monotonic()
                while not pipe.poll(max(0.0, begun + len(times) / rate - time.monotonic())):
                    text = f"{name}{count + 1:08d}"
                    sent = time.monotonic()
                    conn.send(text)
                    while conn.receive(10) != text:
                        pass
                    times.append(time.monotonic() - sent)
                    count += 1
                is_complete = True
        except (OSError, ConnectionClosed, HandshakeError):
            time.sleep(0.02)
        lives.append(_Life(name, Sent(process, began, count, is_complete)))
    pipe.send(([one for one in lives if one.sent.sent], times))


class Load:
    """What sends: two probes with connections, views, and a Publisher if there is a Redis.

    Args:
        server: the server.
        url: of the Redis.
        rate: messages of each per second.
    """

    def __init__(self, server: Server, url: str | None, rate: float = 85.0) -> None:
        self._stop = threading.Event()
        self._views: dict[bytes, Sent] = {}
        self._has_failed = False
        self._published = 0
        spawn = multiprocessing.get_context("spawn")
        self._probes = []
        for number in range(2):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_probe, args=(server.port, number, rate, theirs))
            process.start()
            ours.recv()
            self._probes.append((process, ours))
        acts = [lambda: self._view(server)]
        self._publisher = None if url is None else Publisher(url, "room", timeout=15.0)
        if url is not None:
            acts.append(self._publish)
        self.began = time.monotonic()
        self._threads = [threading.Thread(target=steadily, args=(act, rate, self._stop)) for act in acts]
        for _, pipe in self._probes:
            pipe.send("go")
        for thread in self._threads:
            thread.start()

    def _view(self, server: Server) -> None:
        began = time.monotonic()
        try:
            text = server.get("/publish")
        except (OSError, http.client.HTTPException):  # Its worker has ended. It may have published nevertheless.
            self._has_failed = True
            return
        name = text[:8].encode()
        began = self._views[name].began if name in self._views else began
        self._views[name] = Sent(int(name[1:]), began, int(text[8:]), False)

    def _publish(self) -> None:
        assert self._publisher is not None
        self._published += 1
        self._publisher.broadcast(f"p0000000{self._published:08d}")

    def stop(self) -> tuple[dict[bytes, Sent], list[float]]:
        """End it; return what each sender has sent, and the times of the probes in order."""
        self._stop.set()
        lives: list[_Life] = []
        times: list[float] = []
        for process, pipe in self._probes:
            pipe.send("stop")
            some_lives, some_times = pipe.recv()
            process.join(10)
            lives += some_lives
            times += some_times
        for thread in self._threads:
            thread.join()
        sent = {one.name.encode(): one.sent for one in lives} | {
            name: one._replace(is_complete=not self._has_failed) for name, one in self._views.items()}
        if self._publisher is not None:
            self._publisher.stop()
            sent[b"p0000000"] = Sent(0, self.began, self._published, True)
        return sent, sorted(times)


def print_times(sent: dict[bytes, Sent], times: list[float]) -> float:
    """Print how it went; return the 99th percentile of the times, in seconds."""
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    print(
        f"{sum(one.sent for one in sent.values())} messages, {len(times)} timed: p50 {p50 * 1000:.1f} ms, "
        f"p99 {p99 * 1000:.1f} ms")
    return p99
