"""Backplanes over a real Redis: each publisher's entries come once and in order, whatever happens to the server."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis_servers import Listener, RedisServer, free_port, running, steadily
from servers import wait_until

from wsthread.bus.backplane import BackplaneUnavailable
from wsthread.bus.redis import RedisBackplane
from wsthread.bus.redis_store import Raw, Store
from wsthread.exceptions import BackplaneFull


@contextmanager
def room(url: str, count: int = 2, name: str = "room", history: int = 0, **options: Any) -> Iterator[
        list[tuple[RedisBackplane, Listener]]]:
    """Give backplanes that have started, with their listeners."""
    members = [(RedisBackplane(url, **options), Listener()) for _ in range(count)]
    try:
        for backplane, listener in members:
            backplane.start(name, listener, history)
        yield members
    finally:
        for backplane, _ in members:
            backplane.close(0.5)


@pytest.fixture
def name() -> str:
    return secrets.token_hex(4)


def publish(backplane: RedisBackplane, count: int) -> None:
    for _ in range(count):
        backplane.publish("m", {"to": None}, b"payload")


def hold(listener: Listener) -> tuple[threading.Event, threading.Event]:
    """Let a listener be stuck with its next entry; return what is set then, and what lets it go on."""
    blocked, goes_on = threading.Event(), threading.Event()

    def wait(entry: object) -> None:
        blocked.set()
        goes_on.wait(20)

    listener.on_deliver = wait
    return blocked, goes_on


def is_healthy(*backplanes: RedisBackplane) -> bool:
    return all(one.health().healthy for one in backplanes)


@pytest.mark.parametrize("protocol", [2, 3])
def test_entries_arrive(shared_redis: RedisServer, name: str, protocol: int) -> None:
    with room(f"{shared_redis.url}?protocol={protocol}", 3, name) as members:
        (one, own), (_, first), (_, second) = members
        assert one.publish("m", {"to": ["a"]}, b"\0") == 1
        publish(one, 499)
        for listener in (first, second):
            listener.wait(500)
            assert listener.numbers(one.publisher) == list(range(1, 501))
            assert listener.calls[0] == ("begin", (one.publisher, 0))
            assert listener.delivered[0] == (one.publisher, 1, "m", {"to": ["a"]}, b"\0")
            assert listener.gaps == []
        assert own.calls == []
        wait_until(lambda: one.health().queued == 0)
        health, theirs = one.health(), members[1][0].health()
        assert health[:1] + health[2:] == (True, None, 0, 500, 0, 0, health.resent, 0, health.peers, None)
        assert (theirs.received, theirs.published, theirs.gaps) == (500, 0, 0)
        assert theirs.lag is not None and 0 <= theirs.lag < 5
        wait_until(lambda: members[0][0].health().peers == 2)


def test_rooms_do_not_meet(shared_redis: RedisServer, name: str) -> None:
    with room(shared_redis.url, 1, name) as [(_, listener)], room(shared_redis.url, 1, f"{name}2") as [(other, _)]:
        publish(other, 1)
        wait_until(lambda: other.health().queued == 0)
        time.sleep(0.1)
        assert listener.calls == []


def test_history(shared_redis: RedisServer, name: str) -> None:
    """What stands before the start is remembered, and what comes after it delivered; nothing is both or neither."""
    with room(shared_redis.url, 1, name) as [(one, _)]:
        publish(one, 100)
        wait_until(lambda: one.health().queued == 0)
        stop = threading.Event()
        thread = threading.Thread(target=steadily, args=(lambda: publish(one, 1), 500, stop))
        thread.start()
        with room(shared_redis.url, 1, name, history=30) as [(_, listener)]:
            listener.wait(50)
            stop.set()
            thread.join()
            total = one.health().published
            wait_until(lambda: listener.numbers(one.publisher)[-1:] == [total])
            remembered = [what.number for call, what in listener.calls if call == "remember"]
            assert remembered == list(range(remembered[0], remembered[0] + 30))
            assert listener.numbers(one.publisher) == list(range(remembered[-1] + 1, total + 1))
            assert listener.calls[0] == ("begin", (one.publisher, remembered[0] - 1))


def test_what_is_published_during_a_start_is_there_at_its_end(
    shared_redis: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading the history may take a while, and then clients come that have seen what was published meanwhile."""
    read_back = Store.read_back
    with room(shared_redis.url, 1, name) as [(one, _)]:
        def read_slowly(store: Store, place: tuple[int, int], count: int) -> list[Raw]:
            found = read_back(store, place, count)
            if not is_late.is_set():
                is_late.set()
                publish(one, 300)
                wait_until(lambda: not one.health().queued)
            return found

        is_late = threading.Event()
        monkeypatch.setattr(Store, "read_back", read_slowly)
        publish(one, 1)
        wait_until(lambda: not one.health().queued)
        late, listener = RedisBackplane(shared_redis.url), Listener()
        listener.on_deliver = lambda entry: time.sleep(0.0005)
        late.start(name, listener, history=100)
        try:
            assert listener.numbers(one.publisher) == list(range(2, 302))
        finally:
            late.close(0.5)


def test_what_is_published_after_a_start_without_a_server_is_delivered(redis_program: str) -> None:
    """Also if the reader is the last one to learn that the server is back."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    with room(url, 1) as [(reader, listener)], room(url, 1) as [(one, _)]:
        assert not is_healthy(reader) and "refused" in str(reader.health().error)
        publish(one, 10)
        with running(redis_program, port=port):
            listener.wait(10)
            assert listener.numbers(one.publisher) == list(range(1, 11))
            wait_until(lambda: is_healthy(reader, one))


@pytest.mark.parametrize("persistence", [[], ["--appendonly", "yes", "--appendfsync", "always"]])
def test_killed(redis_program: str, persistence: list[str]) -> None:
    with running(redis_program, *persistence) as server, room(server.url) as members:
        (one, heard_by_one), (other, heard_by_other) = members
        publish(one, 100)
        publish(other, 100)
        heard_by_other.wait(100)
        server.kill()
        wait_until(lambda: not is_healthy(one) and not is_healthy(other))
        publish(one, 100)
        server.start()
        heard_by_other.wait(200)
        heard_by_one.wait(100)
        wait_until(lambda: is_healthy(one, other), timeout=5)
        assert heard_by_other.numbers(one.publisher) == list(range(1, 201))
        assert heard_by_one.numbers(other.publisher) == list(range(1, 101))
        assert heard_by_one.gaps == heard_by_other.gaps == []


def test_a_process_that_starts_after_a_loss_hears_nothing_old(redis_program: str) -> None:
    with running(redis_program) as server, room(server.url, 1, max_kept=50) as [(one, _)]:
        publish(one, 100)
        wait_until(lambda: one.health().queued == 0)
        time.sleep(0.3)
        server.kill()
        server.start()
        with room(server.url, 1) as [(_, listener)]:
            wait_until(lambda: is_healthy(one) and one.health().resent >= 50)
            publish(one, 1)
            listener.wait(1)
            assert listener.numbers(one.publisher) == [101]
            assert listener.gaps == []


def test_queue_is_bounded(own_redis: RedisServer) -> None:
    with room(own_redis.url, max_waiting=50, max_entry_size=1000) as [(one, _), (other, listener)]:
        with pytest.raises(BackplaneFull, match="1001 bytes, 1000 may go"):
            one.publish("m", {}, b"x" * 999)
        own_redis.kill()
        accepted = 0
        for _ in range(100):
            try:
                publish(one, 1)
                accepted += 1
            except BackplaneFull:
                pass
        assert accepted == 50
        own_redis.start()
        listener.wait(50)
        assert (listener.numbers(one.publisher), listener.gaps) == (list(range(1, 51)), [])
        assert one.health().published == 50


def test_what_a_full_queue_drops_is_a_gap(own_redis: RedisServer) -> None:
    with room(own_redis.url, max_waiting=50, when_full="drop") as [(one, _), (other, listener)]:
        wait_until(lambda: is_healthy(one))
        own_redis.kill()
        publish(one, 80)
        own_redis.start()
        listener.wait(80)
        wait_until(lambda: is_healthy(one, other))
        publish(one, 1)
        listener.wait(81)
        assert (listener.numbers(one.publisher), listener.missing()) == ([*range(1, 51), 81], 30)
        assert (one.health().dropped, other.health().gaps) == (30, 30)


def test_too_few_kept(own_redis: RedisServer) -> None:
    """What a lagging reader has missed for good is told, exactly."""
    with room(own_redis.url, max_kept=20) as [(one, _), (other, listener)]:
        publish(one, 10)
        listener.wait(10)
        blocked, goes_on = hold(listener)
        publish(one, 1)
        blocked.wait(20)
        publish(one, 99)
        wait_until(lambda: one.health().queued == 0)
        own_redis.kill()
        own_redis.start()
        wait_until(lambda: is_healthy(one) and one.health().queued == 0)
        goes_on.set()
        listener.wait(110)
        got = listener.numbers(one.publisher)
        assert (got, listener.missing()) == (sorted(set(got)), 110 - len(got))
        assert got[-20:] == list(range(91, 111))


def test_trimmed(own_redis: RedisServer) -> None:
    """Likewise for a reader that was away for too long, also for a publisher that says nothing more."""
    with room(own_redis.url, 3, stream_length=100) as [(one, _), (two, _), (_, listener)]:
        publish(one, 1)
        publish(two, 1)
        listener.wait(2)
        blocked, goes_on = hold(listener)
        publish(one, 1)
        blocked.wait(20)
        publish(two, 500)
        wait_until(lambda: two.health().queued == 0)
        publish(one, 1500)
        wait_until(lambda: one.health().queued == 0)
        goes_on.set()
        listener.wait(2003)
        assert [gap.reason for gap in listener.gaps if gap.publisher is None] == [
            "the stream did not reach back to where this process had read"]
        for backplane, total in ((one, 1502), (two, 501)):
            got = listener.numbers(backplane.publisher)
            missing = sum(gap.missing or 0 for gap in listener.gaps if gap.publisher == backplane.publisher)
            assert (got, missing) == (sorted(set(got)), total - len(got))


#: What may stand in a stream.
BAD: list[list[bytes]] = [
    [b"x", b"y"], [b"v", b"1", b"p", b"nobody", b"n", b"1"], [b"v", b"2", b"p", b"f" * 16, b"n", b"1", b"k", b"m"],
    [b"v", b"1", b"p", b"f" * 16, b"n", b"2", b"k", b"m", b"h", b"[" * 100_000],
    [b"v", b"1", b"p", b"f" * 16, b"n", b"3", b"k", b"m", b"h", b"{}", b"d", bytes(32 << 20)],
]


def test_what_cannot_be_read_is_counted(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with room(own_redis.url) as [(one, _), (other, listener)]:
        for fields in BAD:
            own_redis.call("XADD", "wsthread:{room}", "*", *fields)
        publish(one, 1)
        wait_until(lambda: listener.numbers(one.publisher) == [1])
        assert (other.health().dropped, listener.missing()) == (len(BAD), 3)
        assert caplog.text.count("cannot be read") == 2  # One for each reader.
        assert is_healthy(other)


def test_a_listener_that_raises_does_no_harm(
    shared_redis: RedisServer, name: str, caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(entry: object) -> None:
        raise SystemExit("no")

    with room(shared_redis.url, 2, name) as [(one, _), (_, listener)]:
        listener.on_deliver = fail
        publish(one, 3)
        listener.wait(3)
        assert listener.numbers(one.publisher) == [1, 2, 3]
        wait_until(lambda: caplog.text.count("error in its listener") == 3)


def test_eviction_is_warned_of_once(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    own_redis.call("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru")
    with room(own_redis.url, 1):
        wait_until(lambda: "maxmemory-policy is allkeys-lru" in caplog.text)
        own_redis.call("CLIENT", "KILL", "TYPE", "normal")
        time.sleep(0.2)
        assert caplog.text.count("maxmemory-policy") == 1


def test_log(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """One line tells of trouble and one of its end, without a password."""
    caplog.set_level(logging.INFO)
    own_redis.call("ACL", "SETUSER", "u", "on", ">hush", "~*", "+@all")
    url = f"redis://u:hush@127.0.0.1:{own_redis.port}"
    with room(url, 1) as [(one, _)]:
        assert repr(one) == f"<RedisBackplane redis://127.0.0.1:{own_redis.port}>"
        wait_until(lambda: "connected after" in caplog.text)
        caplog.clear()
        own_redis.kill()
        time.sleep(0.5)
        own_redis.start()  # It knows nobody now.
        wait_until(lambda: "WRONGPASS" in str(one.health().error) or "invalid" in str(one.health().error))
        own_redis.call("ACL", "SETUSER", "u", "on", ">hush", "~*", "+@all")
        wait_until(lambda: "connected after" in caplog.text)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2 and "tried again" in lines[0]
        assert "hush" not in caplog.text


def test_close_sends_what_waits(shared_redis: RedisServer, name: str) -> None:
    with room(shared_redis.url, 1, name) as [(_, listener)]:
        before = set(threading.enumerate())
        with room(shared_redis.url, 1, name) as [(one, _)]:
            publish(one, 1000)
            begun = time.monotonic()
            one.close(5.0)
            assert time.monotonic() - begun < 3
            assert set(threading.enumerate()) == before
            with pytest.raises(BackplaneFull, match="closed"):
                publish(one, 1)
        listener.wait(1000)
        assert listener.numbers(one.publisher) == list(range(1, 1001))


def test_close_without_a_server_ends_in_time() -> None:
    with room(f"redis://127.0.0.1:{free_port()}", 1) as [(one, _)]:
        publish(one, 1)
        begun = time.monotonic()
        one.close(0.5)
        assert time.monotonic() - begun < 2


def test_start_and_stop_leave_nothing(own_redis: RedisServer) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with room(own_redis.url, 1, stream_seconds=100) as [(one, _)]:
            publish(one, 10)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    keys = own_redis.call("KEYS", "*")
    assert len(keys) == 3 and all(0 < own_redis.call("TTL", key) <= 200 for key in keys)


def test_fork(shared_redis: RedisServer, name: str) -> None:
    """The child is another publisher, with connections of its own; the parent notices nothing."""
    with room(shared_redis.url, 1, name) as [(_, listener)], room(shared_redis.url, 1, name) as [(one, heard)]:
        publish(one, 2)
        listener.wait(2)
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                before = len(os.listdir("/proc/self/fd"))
                one.reset_after_fork()
                closed = before - len(os.listdir("/proc/self/fd"))
                one.start(name, Listener())
                publish(one, 3)
                one.close(5.0)
                os.write(write, f"{one.publisher} {closed}".encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        child, closed_there = os.read(read, 100).decode().split()
        publish(one, 2)
        listener.wait(7)
        assert (listener.numbers(one.publisher), listener.numbers(child)) == ([1, 2, 3, 4], [1, 2, 3])
        assert heard.numbers(child) == [1, 2, 3]
        assert closed_there == "2"
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(("options", "message"), [
    ({"timeout": 0}, "timeout is 0"), ({"max_waiting": 0}, "max_waiting is 0"), ({"max_kept": -1}, "max_kept is -1"),
    ({"when_full": "wait"}, "when_full"), ({"stream_length": 0}, "stream_length")])
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RedisBackplane("redis://h", **options)


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(BackplaneUnavailable, match="no more threads"):
        RedisBackplane("redis://h").start("x", Listener())
