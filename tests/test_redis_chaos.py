"""What Redis may go through while four processes speak over it: each has everything once and in order, or is told.

Each member of a room publishes, 150 entries a second, while the event happens. Then all are compared. What a control
that is written as most are does with the same event shows that the test would see a loss.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_servers import Listener, Proxy, RedisServer, free_port, running, steadily
from servers import wait_until

from wsthread.bus.redis import RedisBackplane

pytestmark = pytest.mark.slow
RATE = 150.0  # Entries per second and publisher.
HEALTHY_WITHIN = 5.0  # Seconds after an event.
KEY = "wsthread:{room}"


class Room:
    """Some backplanes; the first two publish all the time."""

    def __init__(self, url: str, **options: Any) -> None:
        self.backplanes = [RedisBackplane(url, **options) for _ in range(4)]
        self.listeners = [Listener() for _ in self.backplanes]
        self._stop = threading.Event()
        for backplane, listener in zip(self.backplanes, self.listeners):
            backplane.start("room", listener)
        self._threads = [
            threading.Thread(
                target=steadily, args=(partial(one.publish, "m", {"to": None}, b"x" * 200), RATE, self._stop))
            for one in self.backplanes[:2]]
        for thread in self._threads:
            thread.start()

    def is_healthy(self) -> bool:
        return all(one.health().healthy for one in self.backplanes)

    def finish(self) -> list[tuple[int, int]]:
        """Stop to publish; return how many entries of others each member missed, and of how many it was told."""
        wait_until(self.is_healthy, timeout=HEALTHY_WITHIN)
        time.sleep(0.3)
        self._stop.set()
        for thread in self._threads:
            thread.join()
        total = {one.publisher: one.health().published for one in self.backplanes[:2]}
        results = []
        for backplane, listener in zip(self.backplanes, self.listeners):
            others = {publisher: count for publisher, count in total.items() if publisher != backplane.publisher}
            listener.wait(sum(others.values()), timeout=15)
            missed = 0
            for publisher, count in others.items():
                got = listener.numbers(publisher)
                assert got == sorted(set(got)), "doubled, or in another order"
                missed += count - len(got)
            results.append((missed, listener.missing()))
        assert sum(total.values()) > 200
        return results

    def close(self) -> None:
        self._stop.set()
        for one in self.backplanes:
            one.close(0.2)


@contextmanager
def speaking(url: str, **options: Any) -> Iterator[Room]:
    room = Room(url, **options)
    try:
        time.sleep(0.7)
        yield room
    finally:
        room.close()


def kill(server: RedisServer, seconds: float = 0.5) -> None:
    server.kill()
    time.sleep(seconds)
    server.start()


def kill_clients(server: RedisServer) -> None:
    for _ in range(10):
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.1)


def stop(server: RedisServer) -> None:
    server.pause()
    time.sleep(10)
    server.resume()


def limit_output(server: RedisServer) -> None:
    server.call("CONFIG", "SET", "client-output-buffer-limit", "normal 20kb 20kb 1")
    time.sleep(1)
    server.call("CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0")


def delete(*keys: str) -> Callable[[RedisServer], None]:
    def act(server: RedisServer) -> None:
        for _ in range(3):
            server.call("DEL", *keys)
            time.sleep(0.2)
    return act


def flush(server: RedisServer) -> None:
    server.call("FLUSHALL")


def evict(server: RedisServer) -> None:
    used = server.call("INFO", "memory")["used_memory"]
    server.call("CONFIG", "SET", "maxmemory", used + (1 << 20), "maxmemory-policy", "allkeys-lru")
    with redis.Redis(port=server.port) as client:
        end, number = time.monotonic() + 2, 0
        while time.monotonic() < end:
            number += 1
            client.set(f"other:{number}", b"x" * 10_000)
            time.sleep(0.002)
    assert server.call("INFO", "stats")["evicted_keys"] > 100


def fill_memory(server: RedisServer) -> None:
    server.call("CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction")
    time.sleep(2)
    server.call("CONFIG", "SET", "maxmemory", "0")


def refuse_writes(server: RedisServer) -> None:
    server.call("REPLICAOF", "127.0.0.1", free_port())
    time.sleep(2)
    server.call("REPLICAOF", "NO", "ONE")


def set_clock_back(server: RedisServer) -> None:
    """The ids of a new stream begin an hour before those of the lost one: these were ahead, see the test."""
    server.call("FLUSHALL")


EVENTS: dict[str, tuple[Callable[[RedisServer], None], list[str]]] = {
    "killed": (kill, []),
    "killed, AOF every second": (kill, ["--appendonly", "yes", "--appendfsync", "everysec"]),
    "killed, AOF always": (kill, ["--appendonly", "yes", "--appendfsync", "always"]),
    "down 6 s": (lambda server: kill(server, 6), []),
    "clients killed": (kill_clients, []),
    "output limited": (limit_output, []),
    "stopped 10 s": (stop, []),
    "flushed": (flush, []),
    "stream deleted": (delete(KEY), []),
    "numbers deleted": (delete(f"{KEY}:at"), []),
    "publishers deleted": (delete(f"{KEY}:at", f"{KEY}:heard"), []),
    "evicting": (evict, []),
    "out of memory": (fill_memory, []),
    "read-only": (refuse_writes, []),
    "clock set back": (set_clock_back, []),
}


@pytest.mark.parametrize("event", EVENTS)
def test_nothing_is_lost_or_doubled(event: str, redis_program: str) -> None:
    act, options = EVENTS[event]
    with running(redis_program, *options) as server:
        if event == "clock set back":
            server.call("XADD", KEY, f"{int(time.time() + 3600) * 1000}-0", "x", "y")
        with speaking(server.url) as room:
            act(server)
            assert room.finish() == [(0, 0)] * 4


def plain(server: RedisServer) -> redis.Redis:
    """Return a client as redis-py has made it until version 5: it tells of errors."""
    return redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0))


def test_the_control_loses(redis_program: str) -> None:
    """A plain XADD and XREAD, which keeps its place: what most do."""
    with running(redis_program) as server:
        received: list[int] = []
        ended, published = threading.Event(), 0

        def read() -> None:
            place = b"$"
            while not ended.is_set():
                with suppress(redis.RedisError), plain(server) as client:
                    for _, some in client.xread({"control": place}, block=200) or []:
                        for place, fields in some:
                            received.append(int(fields[b"n"]))

        def publish() -> None:
            nonlocal published
            published += 1
            with suppress(redis.RedisError), plain(server) as client:
                client.xadd("control", {"n": published})

        threads = [
            threading.Thread(target=read), threading.Thread(target=steadily, args=(publish, RATE, ended))]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        kill(server)
        time.sleep(1)
        ended.set()
        for thread in threads:
            thread.join()
        assert len(received) > 50
        assert published - len(set(received)) > 20


def start_sentinel(program: str, port: int, primary: int, directory: Path) -> RedisServer:
    config = directory / "sentinel.conf"
    config.write_text(
        f"sentinel monitor main 127.0.0.1 {primary} 1\nsentinel down-after-milliseconds main 700\n"
        "sentinel failover-timeout main 3000\n")
    return RedisServer(program, sentinel=config, port=port)


@contextmanager
def watched(redis_program: str, sentinel: str, tmp_path: Path) -> Iterator[tuple[str, RedisServer, RedisServer, Proxy]]:
    """Give a URL, a primary, its replica, and what stands in front of the primary."""
    with running(redis_program, "--repl-diskless-sync-delay", "0") as primary:
        proxy = Proxy(primary)
        options = ("--replicaof", f"127.0.0.1 {proxy.port}")
        with running(redis_program, *options) as replica:
            wait_until(lambda: replica.call("INFO", "replication")["master_link_status"] == "up", timeout=20)
            port = free_port()
            watching = start_sentinel(sentinel, port, proxy.port, tmp_path)
            try:
                wait_until(lambda: watching.call("SENTINEL", "REPLICAS", "main"), timeout=20)
                yield f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/main", primary, replica, proxy
            finally:
                watching.close()
                proxy.close()


#: What publishers keep, and whether everything arrives. The tail that is lost has a second's worth of entries.
FAILOVERS = {"as it comes": (0.0, 5000), "with a lost tail": (1.0, 5000), "with a lost tail, too few kept": (1.0, 20)}


@pytest.mark.parametrize("way", FAILOVERS)
def test_failover(way: str, redis_program: str, need_program: Callable[[str], str], tmp_path: Path) -> None:
    held, kept = FAILOVERS[way]
    with watched(redis_program, need_program("redis-sentinel"), tmp_path) as (url, primary, replica, proxy):
        with speaking(url, max_kept=kept) as room:
            if held:
                proxy.flows.clear()
                time.sleep(held)
                behind = primary.call("XLEN", KEY) - replica.call("XLEN", KEY)
                assert behind > RATE * held
            if kept < 100:  # Somebody has not read the tail when it is lost.
                room.listeners[3].on_deliver = lambda entry: time.sleep(0.02)
                time.sleep(0.5)
            primary.kill()
            wait_until(lambda: replica.call("ROLE")[0] in (b"master", "master"), timeout=20)
            room.listeners[3].on_deliver = lambda entry: None
            results = room.finish()
            assert all(missed == told for missed, told in results)
            if kept == 5000:
                assert results == [(0, 0)] * 4
            else:
                assert results[3][0] > 0
