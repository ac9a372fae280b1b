"""Measure how a message gets from one worker process to the others: over the host's sockets, and over a Redis.

``make bench-bus``. It starts a redis-server of its own. One process publishes messages of 200 bytes and all others
receive; no WebSocket is involved. Each way is measured twice: at 300 messages a second, how long a message is under
way; and flat out, how many are delivered per second by all receivers together. With one worker nobody receives: what is
left is what publishing costs. Beside the two backplanes stand bare publish and subscribe, as redis-py has it, and the
Redis manager of python-socketio, which is built on that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any, Protocol

import machine
import programs
import report

from wsthread.bus.backplane import Backplane, Entry, Gap
from wsthread.bus.local import LocalBackplane
from wsthread.bus.redis import RedisBackplane
from wsthread.exceptions import BackplaneFull

SIZE = 200  # Bytes of a message.
RATE = 300.0  # Messages per second.
HEAD = [
    "way", "workers", "p50 ms", "p99 ms", "published/s", "delivered/s", "µs per publish", "lost"]
_TIME = struct.Struct("d")


class Way(Protocol):
    """How messages get from process to process."""

    def send(self, payload: bytes) -> None:
        """Publish a message."""

    def close(self) -> None:
        """End it."""


class OverBackplane:
    """A backplane of ours; it is the listener as well."""

    def __init__(self, backplane: Backplane, receive: Callable[[bytes], None]) -> None:
        self._backplane = backplane
        self._receive = receive
        backplane.start("bench", self)

    def send(self, payload: bytes) -> None:
        while True:
            try:
                self._backplane.publish("m", {"to": None}, payload)
                return
            except BackplaneFull:
                time.sleep(0.001)

    def close(self) -> None:
        self._backplane.close(1.0)

    def begin(self, publisher: str, number: int) -> None: ...
    def remember(self, entry: Entry) -> None: ...
    def note_gap(self, gap: Gap) -> None: ...
    def note_gone(self, publisher: str) -> None: ...

    def deliver(self, entry: Entry) -> None:
        self._receive(entry.payload)


class OverPubSub:
    """PUBLISH, one call each, and a thread that listens."""

    def __init__(self, url: str, receive: Callable[[bytes], None]) -> None:
        import redis

        self._client = redis.Redis.from_url(url)
        self._subscription = redis.Redis.from_url(url).pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe("bench")
        self._is_open = True
        self._thread = threading.Thread(target=self._listen, args=(receive,))
        self._thread.start()

    def _listen(self, receive: Callable[[bytes], None]) -> None:
        while self._is_open:
            message = self._subscription.get_message(timeout=0.2)
            if message:
                receive(message["data"])

    def send(self, payload: bytes) -> None:
        self._client.publish("bench", payload)

    def close(self) -> None:
        self._is_open = False
        self._thread.join()


class OverSocketIO:
    """python-socketio's manager, up to where it would give a message to its connections."""

    def __init__(self, url: str, receive: Callable[[bytes], None]) -> None:
        import socketio

        class Manager(socketio.RedisManager):  # type: ignore[misc, name-defined]
            def _handle_emit(self, message: Any) -> None:
                data = message["data"]
                while isinstance(data, (list, tuple)):  # Versions differ in how they wrap it.
                    data = data[0]
                receive(bytes.fromhex(data))

        self._manager = Manager(url, channel="bench")
        socketio.Server(async_mode="threading", client_manager=self._manager)
        self._manager.initialize()

    def send(self, payload: bytes) -> None:
        self._manager.emit("m", payload[:SIZE // 2].hex(), namespace="/")

    def close(self) -> None: ...


def open_way(way: str, url: str, receive: Callable[[bytes], None]) -> Way:
    """Return a way by its name."""
    match way:
        case "LocalBackplane":
            return OverBackplane(LocalBackplane(["bench", url]), receive)
        case "RedisBackplane":
            return OverBackplane(RedisBackplane(url), receive)
        case "bare PUBLISH/SUBSCRIBE":
            return OverPubSub(url, receive)
    return OverSocketIO(url, receive)


def take_part(way: str, url: str, pipe: Pipe) -> None:
    """Be a worker: do what the pipe tells, and answer."""
    times: list[float] = []
    arrived: list[float] = []

    def receive(payload: bytes) -> None:
        now = time.monotonic()
        times.append(now - _TIME.unpack_from(payload)[0])
        arrived.append(now)

    line = open_way(way, url, receive)
    pipe.send(None)
    while True:
        command, *arguments = pipe.recv()
        if command == "clear":
            times.clear()
            arrived.clear()
            pipe.send(None)
        elif command == "count":
            pipe.send(len(times))
        elif command == "tell":
            pipe.send((sorted(times), arrived[-1] if arrived else 0.0))
        elif command == "send":
            pipe.send(send(line, *arguments))
        else:
            break
    line.close()


def send(line: Way, count: int, rate: float | None) -> tuple[float, float]:
    """Send messages; return when that began and how long it took, without the waits between them."""
    begun, spent = time.monotonic(), 0.0
    for number in range(count):
        if rate is not None:
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        before = time.monotonic()
        line.send(_TIME.pack(before) + bytes(SIZE - _TIME.size))
        spent += time.monotonic() - before
    return begun, spent


class Workers:
    """Processes that take part; the first one publishes."""

    def __init__(self, way: str, url: str, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Pipe] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=take_part, args=(way, url, theirs), daemon=True)
            process.start()
            theirs.close()  # So that a process that dies is noticed.
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()
        time.sleep(1)

    def ask(self, *command: Any) -> list[Any]:
        """Return the answers of all that receive."""
        for pipe in self._pipes[1:]:
            pipe.send(command)
        return [pipe.recv() for pipe in self._pipes[1:]]

    def send(self, count: int, rate: float | None) -> tuple[float, float]:
        """Let the first one publish so many, and return what it tells."""
        self._pipes[0].send(("send", count, rate))
        told: tuple[float, float] = self._pipes[0].recv()
        return told

    def wait(self, count: int) -> None:
        """Wait until each has received so many, or nothing comes any more."""
        before: list[int] = []
        while True:
            counts = self.ask("count")
            if min(counts, default=count) >= count or counts == before:
                return
            before = counts
            time.sleep(0.5)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(("end",))
        for process in self._processes:
            process.join(3)
            process.kill()


def measure(way: str, url: str, count: int, seconds: float) -> list[str]:
    """Return a row of the table."""
    workers = Workers(way, url, count)
    try:
        steady = int(seconds * RATE)
        workers.ask("clear")
        workers.send(steady, RATE)
        workers.wait(steady)
        times = sorted(one for some, _ in workers.ask("tell") for one in some)
        workers.ask("clear")
        flood = int(seconds * 10_000)
        begun, spent = workers.send(flood, None)
        workers.wait(flood)
        if count == 1:
            return [way, "1", "-", "-", f"{flood / spent:,.0f}", "-", f"{spent / flood * 1e6:.1f}", "-"]
        told = workers.ask("tell")
        delivered = sum(len(some) for some, _ in told)
        took = max([last for _, last in told]) - begun
        lost = (count - 1) * (steady + flood) - len(times) - delivered
        return [
            way, str(count), f"{times[len(times) // 2] * 1000:.2f}", f"{times[len(times) * 99 // 100] * 1000:.2f}",
            f"{flood / took:,.0f}", f"{delivered / took:,.0f}", f"{spent / flood * 1e6:.1f}", str(lost)]
    finally:
        workers.close()


def main() -> int:
    """Measure all ways and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, about (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="processes (%(default)s)")
    arguments = parser.parse_args()
    programs.BUILD.mkdir(parents=True, exist_ok=True)
    program = shutil.which("redis-server")
    if program is None:
        print("there is no redis-server", file=sys.stderr)
        return 1
    rows = []
    with tempfile.TemporaryDirectory() as directory, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        server = subprocess.Popen(
            [program, "--port", str(port), "--save", "", "--dir", directory], stdout=subprocess.DEVNULL)
        try:
            time.sleep(1)
            for count in arguments.workers:
                for way in ("LocalBackplane", "RedisBackplane", "bare PUBLISH/SUBSCRIBE", "python-socketio"):
                    print(f"{way}, {count} workers ...", flush=True)
                    rows.append(measure(way, f"redis://127.0.0.1:{port}", count, arguments.seconds))
        finally:
            server.kill()
            server.wait()
    description = machine.describe()
    report.save("bus", [*report.grid([HEAD, *rows]), "", *description], {"machine": description, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
