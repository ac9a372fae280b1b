"""Workers that share a Redis, as many hosts would: 200 clients over four workers, while Redis goes through everything.

All that clients, views and a Publisher send arrives at each client once and in the order of its sender, and what a
client sends comes back from its own worker as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deployments import WORKERS
from listeners import HELD_UP, Crowd, Load, print_times
from redis_servers import Proxy, RedisServer, running
from servers import Server, serve, wait_until
from test_redis_chaos import fill_memory, flush, kill, kill_clients, watched

pytestmark = pytest.mark.slow
HEALTHY_WITHIN = 5.0  # Seconds after an event.


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
    p99 = print_times(sent, times)
    assert crowd.ended == []
    crowd.check(sent)
    assert p99 < HELD_UP


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
