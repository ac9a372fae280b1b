"""The clock, which tests move: whoever asks it is further in time, and all that has deadlines with it."""

from __future__ import annotations

import time

import pytest

from wsthread import clock
from wsthread.deadlines import Action, Deadlines
from wsthread.options import Options


def test_moving() -> None:
    before = clock.now()
    clock.advance(100.0)
    clock.advance(0.5)
    assert 100.5 <= clock.now() - before < 110.0


def test_whoever_holds_the_old_function_is_not_moved() -> None:
    """So no thread sees time go back: it asks either this clock or the one before."""
    old = clock.now
    clock.advance(1000.0)
    assert clock.now() - old() >= 999.0


def test_it_goes_on_by_itself() -> None:
    clock.advance(10.0)
    first, begun = clock.now(), time.monotonic()
    while time.monotonic() == begun:
        pass
    assert clock.now() > first


@pytest.mark.parametrize("steps", [[20.0], [5.0, 5.0, 10.0], [0.25] * 80])
def test_deadlines_come_with_it(steps: list[float]) -> None:
    begun = clock.now()
    deadlines = Deadlines(Options(ping_interval=19.0, ping_timeout=30.0), begun)
    for step in steps:
        clock.advance(step)
    now = clock.now()
    action, _ = deadlines.check(now, received=0, unread=False, sent=0, waiting=False, idle_since=None)
    assert action is Action.PING
    clock.advance(29.0)
    deadlines.pong(clock.now(), b"1")
    assert deadlines.latency is not None and 29.0 <= deadlines.latency < 35.0
