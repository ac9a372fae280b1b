"""The thread for what no connection's thread can do."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from peer import TIMEOUT
from servers import wait_until

from wsthread import clock
from wsthread.housekeeper import TICK, Housekeeper


class Checked:
    """Something with deadlines that notes when it was asked."""

    def __init__(self, action: Callable[[], None] = lambda: None) -> None:
        self.times: list[float] = []
        self._action = action

    def check(self, now: float) -> None:
        """Note it."""
        self.times.append(now)
        self._action()


class Stopped(BaseException):
    """Ends a housekeeper's thread, which otherwise ends with its process."""


@pytest.fixture
def housekeeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Housekeeper]:
    """Return a housekeeper whose thread ends after the test."""
    threads: list[threading.Thread] = []

    class Thread(threading.Thread):
        def run(self) -> None:
            threads.append(self)
            try:
                super().run()
            except Stopped:
                pass

    monkeypatch.setattr(threading, "Thread", Thread)
    keeper = Housekeeper()
    yield keeper

    def stop() -> None:
        raise Stopped

    if threads:
        stopper = Checked(stop)
        keeper.add(stopper, 0.05)
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
    keeper.close_after_fork()


@pytest.fixture
def full() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a socket that takes nothing more, and its other end."""
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                left.send(bytes(65536))
        yield left, right


def drain(sock: socket.socket) -> None:
    """Read what is there."""
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            sock.recv(1 << 20)


def thread_of(housekeeper: Housekeeper) -> threading.Thread:
    """Return the thread that runs."""
    assert housekeeper._thread is not None
    return housekeeper._thread


def test_nothing_starts_before_something_is_added(housekeeper: Housekeeper) -> None:
    before = threading.active_count()
    left, right = socket.socketpair()
    with left, right:
        housekeeper.watch(left.fileno(), lambda: None)
        housekeeper.unwatch(left.fileno())
    assert threading.active_count() == before


def test_deadlines_are_looked_at_each_tick(housekeeper: Housekeeper) -> None:
    checked = Checked()
    housekeeper.add(checked, 0.05)
    housekeeper.add(checked, 0.05)  # Twice is once.
    wait_until(lambda: len(checked.times) >= 3)
    assert checked.times[0] <= clock.now()
    assert all(later - earlier >= 0.05 for earlier, later in zip(checked.times, checked.times[1:]))


def test_the_shortest_tick_counts(housekeeper: Housekeeper) -> None:
    slow, quick = Checked(), Checked()
    housekeeper.add(slow, 100.0)
    wait_until(lambda: slow.times)
    assert TICK < 100.0
    housekeeper.add(quick, 0.02)
    started = time.monotonic()
    wait_until(lambda: len(quick.times) >= 20)
    assert time.monotonic() - started < 20 * TICK + 1.0
    assert len(slow.times) >= 20  # One tick for all.


def test_it_keeps_nothing_alive(housekeeper: Housekeeper) -> None:
    checked, other = Checked(), Checked()
    times = checked.times
    housekeeper.add(checked, 0.02)
    housekeeper.add(other, 0.02)
    wait_until(lambda: times)
    del checked
    gc.collect()
    before, others = len(times), len(other.times)
    wait_until(lambda: len(other.times) > others + 3)
    assert len(times) <= before + 1


def test_a_writable_socket_is_flushed(
    housekeeper: Housekeeper, full: tuple[socket.socket, socket.socket],
) -> None:
    left, right = full
    flushed = threading.Event()

    def flush() -> None:
        housekeeper.unwatch(left.fileno())
        flushed.set()

    housekeeper.add(keeping := Checked(), 0.02)
    housekeeper.watch(left.fileno(), flush)
    wait_until(lambda: len(keeping.times) >= 3)
    assert not flushed.is_set()
    drain(right)
    assert flushed.wait(TIMEOUT)


def test_unwatched_sockets_are_left_alone(
    housekeeper: Housekeeper, full: tuple[socket.socket, socket.socket],
) -> None:
    left, right = full
    calls: list[str] = []
    housekeeper.add(keeping := Checked(), 0.02)
    housekeeper.watch(left.fileno(), lambda: calls.append("flush"))
    housekeeper.unwatch(left.fileno())
    drain(right)
    ticks = len(keeping.times)
    wait_until(lambda: len(keeping.times) > ticks + 3)
    assert calls == []


def test_deadlines_are_looked_at_while_sockets_are_busy(housekeeper: Housekeeper) -> None:
    left, right = socket.socketpair()
    with left, right:
        checked = Checked()
        housekeeper.add(checked, 0.05)
        housekeeper.watch(left.fileno(), lambda: None)  # Writable all the time, and never unwatched.
        wait_until(lambda: len(checked.times) >= 5)
        housekeeper.unwatch(left.fileno())


def test_an_error_keeps_nothing_back(housekeeper: Housekeeper, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("a bug in flush")

    flushed = threading.Event()
    housekeeper.flush_soon(fail)
    housekeeper.flush_soon(flushed.set)
    housekeeper.add(Checked(), 0.05)
    assert flushed.wait(TIMEOUT)
    wait_until(lambda: "a bug in flush" in caplog.text)


def test_it_survives_errors(housekeeper: Housekeeper, caplog: pytest.LogCaptureFixture) -> None:
    left, right = socket.socketpair()
    fine = Checked()

    def fail() -> None:
        raise KeyError("a bug in check")

    def fail_to_flush() -> None:
        housekeeper.unwatch(left.fileno())
        raise KeyError("a bug in flush")

    failing = Checked(fail)
    with left, right:
        housekeeper.add(failing, 0.02)
        housekeeper.add(fine, 0.02)
        housekeeper.watch(left.fileno(), fail_to_flush)
        wait_until(lambda: len(failing.times) >= 2 and len(fine.times) >= 2)
        wait_until(lambda: "a bug in flush" in caplog.text)
    assert "a bug in check" in caplog.text
    assert {record.name for record in caplog.records} == {"wsthread"}


def test_a_thread_that_does_not_start_is_started_the_next_time(
    housekeeper: Housekeeper, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    checked = Checked()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            housekeeper.add(checked, 0.02)
    assert checked.times == []
    housekeeper.add(checked, 0.02)
    wait_until(lambda: checked.times)


def test_the_childs_copy_of_the_selector_is_closed(housekeeper: Housekeeper) -> None:
    assert housekeeper._selector.get_map() is not None
    housekeeper.close_after_fork()
    assert housekeeper._selector.get_map() is None


def test_a_thread_that_has_died_is_started_again(
    housekeeper: Housekeeper, caplog: pytest.LogCaptureFixture,
) -> None:
    def die() -> None:
        if not checked.times[1:]:
            raise Stopped

    checked = Checked(die)
    housekeeper.add(checked, 0.02)
    thread = thread_of(housekeeper)
    wait_until(lambda: not thread.is_alive())
    assert len(checked.times) == 1
    housekeeper.add(checked, 0.02)
    wait_until(lambda: len(checked.times) > 3)
    wait_until(lambda: "the housekeeper's thread had died" in caplog.text)


def test_it_stops_and_starts(housekeeper: Housekeeper, caplog: pytest.LogCaptureFixture) -> None:
    housekeeper.stop()  # Nothing to stop.
    checked = Checked()
    for _ in range(3):
        housekeeper.add(checked, 0.02)
        before = len(checked.times)
        wait_until(lambda: len(checked.times) > before)
        thread = thread_of(housekeeper)
        housekeeper.stop()
        assert not thread.is_alive()
    flushed = threading.Event()
    housekeeper.flush_soon(flushed.set)
    housekeeper.add(checked, 0.02)
    assert flushed.wait(TIMEOUT)
    assert "died" not in caplog.text


def test_stopping_waits_for_nobody_for_long(housekeeper: Housekeeper) -> None:
    """Nor does a thread that was told to stop while it was busy go on beside the next one."""
    go_on, busy = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        go_on.wait(TIMEOUT)

    stuck = Checked(block)
    housekeeper.add(stuck, 0.02)
    assert busy.wait(TIMEOUT)
    begun, thread = time.monotonic(), thread_of(housekeeper)
    housekeeper.stop()
    assert time.monotonic() - begun < 3
    housekeeper.add(fine := Checked(), 0.02)
    go_on.set()
    wait_until(lambda: fine.times)
    wait_until(lambda: not thread.is_alive())


def test_an_allocation_that_fails_loses_no_reply(
    housekeeper: Housekeeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    """The thread is woken for the first reply only, so it must not forget that there is one."""
    real, failures = time.sleep, [MemoryError(), MemoryError()]

    def sleep(seconds: float) -> None:
        if threading.current_thread().name == "wsthread-housekeeper" and failures:
            raise failures.pop()
        real(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    flushed = threading.Event()
    housekeeper.add(checked := Checked(), 0.02)
    housekeeper.flush_soon(flushed.set)
    assert flushed.wait(TIMEOUT)
    assert not failures
    wait_until(lambda: checked.times)
