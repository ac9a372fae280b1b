"""Publishers against a real Redis: what they publish comes once, or not at all, and they say so in time."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis_servers import Listener, RedisServer, free_port
from servers import wait_until

from wsthread import entries
from wsthread.bus.backplane import Entry
from wsthread.bus.redis_store import Store
from wsthread.exceptions import BackplaneFull
from wsthread.publisher import Publisher


def payloads(listener: Listener) -> list[bytes]:
    return [one.payload for one in listener.delivered]


def test_what_managers_get(own_redis: RedisServer, name: str, listening: Listener) -> None:
    with Publisher(own_redis.url, name) as publisher:
        publisher.broadcast("t\xe4xt")
        publisher.broadcast(b"\0", to="user:42")
        publisher.broadcast(memoryview(b"x"), to=["a", "b"])
        publisher.close(to="user:42", code=4401, reason="logged out")
        publisher.notify({"logout": 42})
        assert repr(publisher) == f"<Publisher {own_redis.url} {name!r}>"
    listening.wait(5)
    text, binary, other, close, notice = listening.delivered
    assert len({one.publisher for one in listening.delivered}) == 1
    assert [one.number for one in listening.delivered] == [1, 2, 3, 4, 5]
    assert [one.kind for one in listening.delivered] == ["m", "m", "m", "c", "n"]
    assert [entries.payload_of(one) for one in (text, binary, other)] == ["t\xe4xt", b"\0", b"x"]
    assert [entries.addressed(one).to for one in (text, binary, other, close)] == [
        None, {"user:42"}, {"a", "b"}, {"user:42"}]
    assert (entries.close_of(close), entries.data_of(notice)) == ((4401, "logged out"), {"logout": 42})


@pytest.mark.parametrize(("call", "error"), [
    (lambda one: one.broadcast(3), TypeError), (lambda one: one.broadcast("", to=3), TypeError),
    (lambda one: one.broadcast("", to=[3]), TypeError), (lambda one: one.close(code=1), ValueError),
    (lambda one: one.notify(object()), TypeError), (lambda one: one.broadcast("x" * 101), BackplaneFull)])
def test_refused(call: Callable[[Publisher], None], error: type[Exception]) -> None:
    with Publisher(f"redis://127.0.0.1:{free_port()}", max_entry_size=100) as publisher, pytest.raises(error):
        call(publisher)


def test_options() -> None:
    with pytest.raises(ValueError, match="timeout is 0"):
        Publisher("redis://h", timeout=0)


def test_no_server() -> None:
    begun = time.monotonic()
    with Publisher(f"redis://u:hush@127.0.0.1:{free_port()}", timeout=0.5) as publisher:
        with pytest.raises(TimeoutError, match="not taken within 0.5 s: .*refused") as caught:
            publisher.broadcast("x")
    assert time.monotonic() - begun < 1.5
    assert "hush" not in str(caught.value)


def test_killed_in_between(own_redis: RedisServer, name: str, listening: Listener) -> None:
    """What Redis has lost is published again along with the next message, and what failed is not."""
    with Publisher(own_redis.url, name, timeout=1.0) as publisher:
        publisher.broadcast("1")
        publisher.broadcast("2")
        listening.wait(2)
        own_redis.kill()
        with pytest.raises(TimeoutError):
            publisher.broadcast("failed")
        own_redis.start()
        publisher.broadcast("4")
        listening.wait(3)
        assert (payloads(listening), listening.gaps) == ([b"1", b"2", b"4"], [])
        assert own_redis.call("XLEN", f"wsthread:{{{name}}}") == 4


def test_stopped(own_redis: RedisServer, name: str, listening: Listener) -> None:
    """It cannot know whether Redis has taken the message. Nothing comes twice, and nothing that follows is lost."""
    with Publisher(own_redis.url, name, timeout=0.6) as publisher:
        publisher.broadcast("1")
        own_redis.pause()
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            publisher.broadcast("perhaps")
        assert time.monotonic() - begun < 1.2
        own_redis.resume()
        for number in range(20):
            publisher.broadcast(f"{number}")
        wait_until(lambda: payloads(listening)[-1:] == [b"19"])
        assert [one for one in payloads(listening) if one != b"perhaps"] == [
            b"1", *(b"%d" % number for number in range(20))]
        assert payloads(listening).count(b"perhaps") <= 1
        assert listening.gaps == []


def test_a_short_outage_is_not_noticed(own_redis: RedisServer, name: str, listening: Listener) -> None:
    with Publisher(own_redis.url, name) as publisher:
        publisher.broadcast("1")
        own_redis.kill()
        starting = threading.Timer(0.5, own_redis.start)
        starting.start()
        publisher.broadcast("2")
        starting.join()
        listening.wait(2)
        assert (payloads(listening), listening.gaps) == ([b"1", b"2"], [])


def test_threads(own_redis: RedisServer, name: str, listening: Listener) -> None:
    with Publisher(own_redis.url, name) as publisher:
        threads = [threading.Thread(target=publish_ten, args=(publisher, task)) for task in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        listening.wait(200)
        assert [one.number for one in listening.delivered] == list(range(1, 201))


def test_threads_share_the_time(own_redis: RedisServer, name: str) -> None:
    with Publisher(own_redis.url, name, timeout=0.5) as publisher:
        publisher.broadcast("1")
        own_redis.pause()
        results: list[float] = []

        def try_it() -> None:
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                publisher.broadcast("2")
            results.append(time.monotonic() - begun)

        threads = [threading.Thread(target=try_it) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        own_redis.resume()
        assert len(results) == 3 and max(results) < 1.5


def test_one_that_was_silent_for_long_is_another_one(own_redis: RedisServer, name: str, listening: Listener) -> None:
    """Redis has forgotten its number by then, and others may never have known it."""
    with Publisher(own_redis.url, name, stream_seconds=1) as publisher:
        publisher.broadcast("1")
        time.sleep(0.6)
        publisher.broadcast("2")
    listening.wait(2)
    assert [one.number for one in listening.delivered] == [1, 1]
    assert listening.gaps == []


def publish_ten(publisher: Publisher, task: int) -> None:
    for number in range(10):
        publisher.broadcast(f"{task}:{number}")


_shared: list[Publisher] = []


def work(task: int) -> int:
    publish_ten(_shared[0], task)
    return os.getpid()


def test_pool(own_redis: RedisServer, name: str, listening: Listener) -> None:
    """A pool of forked processes, as Celery has one, with a publisher that the parent has used before."""
    with Publisher(own_redis.url, name) as publisher:
        publish_ten(publisher, 99)
        _shared[:] = [publisher]
        with multiprocessing.get_context("fork").Pool(3) as pool:
            processes = set(pool.map(work, range(12), chunksize=1))
        publish_ten(publisher, 98)
    listening.wait(140)
    by_publisher: dict[str, list[Entry]] = {}
    for one in listening.delivered:
        by_publisher.setdefault(one.publisher, []).append(one)
    assert len(by_publisher) == len(processes) + 1
    assert all([one.number for one in some] == list(range(1, len(some) + 1)) for some in by_publisher.values())
    assert sorted(payloads(listening)) == sorted(
        f"{task}:{number}".encode() for task in (*range(12), 98, 99) for number in range(10))
    assert listening.gaps == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("call", [Publisher.stop, lambda one: one.broadcast("b")], ids=["stop", "broadcast"])
def test_a_signal_handler_within_it(
    own_redis: RedisServer, name: str, listening: Listener, call: Callable[[Publisher], None],
) -> None:
    """It is refused at once; waiting for the lock, it would be waiting for itself."""
    publisher = Publisher(own_redis.url, name, timeout=30.0)
    errors: list[str] = []

    def publish(*args: Any) -> Any:
        begun = time.monotonic()
        with pytest.raises(RuntimeError) as error:
            call(publisher)
        errors.append(str(error.value))
        assert time.monotonic() - begun < 10
        return original(*args)

    original = Store.publish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "publish", publish)
        publisher.broadcast("a")
    assert len(errors) == 1 and "let another thread" in errors[0]
    publisher.stop()
    wait_until(lambda: payloads(listening) == [b"a"])
