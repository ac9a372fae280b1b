"""Turns of peers whose messages pile up."""

from __future__ import annotations

import math
import threading
import time

import pytest
from clients import RawClient
from servers import serve_here, wait_until
from wire import RSV1, TEXT, client_frame, deflated

from wsthread import ListenableManager, pacing, receiving
from wsthread.pacing import LONGEST, Turn, wait_for_turn

DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


class Clock:
    """What stands for the module time: nothing but sleeping takes time."""

    def __init__(self) -> None:
        self.now = self.spent = 1000.0
        self.slept = 0.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def thread_time(self) -> float:
        """Return the processor time."""
        return self.spent

    def sleep(self, seconds: float) -> None:
        """Note it; the time goes on when a test says so."""
        assert seconds >= 0
        self.slept = seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return a clock that stands still, with nobody having a turn."""
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    monkeypatch.setattr(pacing, "_free_at", 0.0)
    monkeypatch.setattr(pacing, "_last", 0)
    return clock


def waited(clock: Clock, cost: float, limit: float = math.inf) -> float:
    """Return for how long another thread waits for its turn."""
    thread = threading.Thread(target=wait_for_turn, args=(cost, limit))
    clock.slept = 0.0
    thread.start()
    thread.join()
    pacing._last = -1  # The ids of threads that have ended come again.
    return clock.slept


def test_one_alone_does_not_wait(clock: Clock) -> None:
    waited(clock, 0.01)
    wait_for_turn(0.01, math.inf)
    assert clock.slept == pytest.approx(0.02)
    clock.slept = 0.0
    for _ in range(10):
        wait_for_turn(0.01, math.inf)
        assert clock.slept == 0
        clock.now += 0.01


def test_several_take_turns(clock: Clock) -> None:
    """Each waits until those before it are done, and for the time of the others."""
    assert [waited(clock, 0.01) for _ in range(4)] == pytest.approx([0, 0.02, 0.04, 0.06])
    clock.now += 0.08
    assert waited(clock, 0.01) == 0


def test_nobody_waits_for_long(clock: Clock) -> None:
    assert max(waited(clock, 0.1) for _ in range(1000)) <= LONGEST
    clock.now += LONGEST
    assert waited(clock, 0.1) == 0


@pytest.mark.parametrize(("limit", "expected"), [(math.inf, 0.2), (0.05, 0.05), (0.0, 0.0), (-1.0, 0.0)])
def test_a_limit(clock: Clock, limit: float, expected: float) -> None:
    waited(clock, 0.1)
    assert waited(clock, 0.1, limit) == pytest.approx(expected)


class Counts:
    """What a connection has got."""

    frames, inflated = 7, 70_000


@pytest.mark.parametrize(("spent", "frames", "inflated", "expected", "is_over"), [
    (0.002, 1000, 0, 0.002, True),
    (0.002, 1, 1 << 21, 0.002, True),
    (0.0009, 1000, 0, 0.0009, False),  # What nobody would wait for goes on.
    (5.0, 10, 0, 0.0002, False),  # The application computes.
    (5.0, 0, 100_000, 0.0008, False),
    (0.0, 10, 10, 0.0, False),
    (1.0, 0, 0, 0.0, False),
])
def test_cost(clock: Clock, spent: float, frames: int, inflated: int, expected: float, is_over: bool) -> None:
    counts = Counts()
    turn = Turn(counts)
    clock.spent += spent
    counts.frames += frames
    counts.inflated += inflated
    assert turn.cost() == pytest.approx(expected)
    assert turn.is_over == is_over


def test_short_turns_are_not_waited_for(clock: Clock) -> None:
    assert [waited(clock, 0.0009) for _ in range(4)] == [0, 0, 0, 0]
    waited(clock, 0.1)
    assert waited(clock, 0.0009) == 0


BOMB = client_frame(TEXT, deflated(bytes(500_000)), rsv=RSV1)


@pytest.mark.parametrize(("frame", "number", "paced"), [
    (client_frame(TEXT, b"x"), 200_000, True),
    (client_frame(TEXT, b"x"), 100, False),
    (client_frame(TEXT, bytes(100_000)), 20, False),
    (BOMB, 50, True),
    (client_frame(TEXT, deflated(b"x"), rsv=RSV1), 200, False),
], ids=["many", "few", "large", "bombs", "compressed"])
def test_who_takes_turns(monkeypatch: pytest.MonkeyPatch, frame: bytes, number: int, paced: bool) -> None:
    """Whose messages pile up, on the wire or by inflating; large ones cost next to nothing."""
    costs: list[float] = []
    monkeypatch.setattr(receiving, "wait_for_turn", lambda cost, limit: costs.append(cost))
    manager = ListenableManager(on_message=lambda conn, opcode, payload: None)
    with serve_here(manager) as port, RawClient(port).open("/ws", DEFLATE) as client:
        client.send(frame * number)
        wait_until(lambda: manager.stats()["messages_received"] == number or sum(costs) > 0.01)
        for conn in manager.connections:
            conn.terminate()
        wait_until(lambda: manager.stats()["threads"] == 0)
    assert (sum(costs) > 0.01) == paced


def test_floods_leave_time_for_others() -> None:
    """Eight of them; without turns somebody else waits some hundred milliseconds for an echo."""
    manager = ListenableManager(on_message=lambda conn, opcode, payload: None)
    is_over = threading.Event()
    flood = client_frame(TEXT, b"x") * 3000
    echoes = ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload))

    def attack() -> None:
        with RawClient(port).open("/ws") as client:
            while not is_over.is_set():
                client.send(flood)

    with serve_here(manager) as port, serve_here(echoes) as another, RawClient(another).open("/ws") as honest:
        threads = [threading.Thread(target=attack) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(manager.connections) == 8)
        times = []
        try:
            for _ in range(100):
                begun = time.monotonic()
                honest.send(client_frame(TEXT, b"honest"))
                assert honest.recv(8) == b"\x81\x06honest"
                times.append(time.monotonic() - begun)
                time.sleep(0.005)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        for conn in manager.connections:
            conn.terminate()  # Much of it is still to be handled.
        wait_until(lambda: manager.stats()["threads"] == 0)
    assert sorted(times)[50] < 0.3  # Generous: coverage slows the floods down, and machines are shared.
