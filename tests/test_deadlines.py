"""What is due when, with driven time: no clock, no socket."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wsthread.deadlines import Action, Deadlines
from wsthread.options import Options

NOTHING = Action.NOTHING, ""
PING = Action.PING, ""


def options(**changed: Any) -> Options:
    """Return options without any deadline that is not asked for."""
    values: dict[str, Any] = {
        "max_message_size": None, "max_message_rate": None, "max_outbox_size": 1, "overflow": "close",
        "max_connections": None, "max_connections_per_address": None, "read_timeout": None, "write_timeout": None,
        "close_timeout": 10.0, "ping_interval": None, "ping_timeout": None,
    }
    return Options(**{**values, **changed})


def check(deadlines: Deadlines, now: float, **changed: Any) -> tuple[Action, str]:
    """Ask what is due for a connection on which nothing goes on but what is told."""
    state: dict[str, Any] = {"received": 0, "unread": False, "sent": 0, "waiting": False, "idle_since": None}
    return deadlines.check(now, **{**state, **changed})


def test_without_deadlines_nothing_is_ever_due() -> None:
    deadlines = Deadlines(options(), 100.0)
    assert deadlines.due == math.inf
    assert check(deadlines, 1e9) == NOTHING
    assert (deadlines.latency, deadlines.last_pong) == (None, None)


# Keepalive


def test_pings_come_at_each_interval() -> None:
    deadlines = Deadlines(options(ping_interval=20.0), 100.0, first_ping=0.5)
    assert deadlines.due == 110.0
    assert check(deadlines, 109.9) == NOTHING
    assert check(deadlines, 110.0) == PING
    assert deadlines.ping_payload == b"1"
    assert deadlines.due == 130.0
    assert check(deadlines, 129.9) == NOTHING
    assert check(deadlines, 131.0) == PING
    assert deadlines.ping_payload == b"2"
    assert deadlines.due == 151.0  # An interval after the last one, not two at once after a late look.


def test_a_pong_tells_the_latency() -> None:
    deadlines = Deadlines(options(ping_interval=20.0, ping_timeout=20.0), 100.0)
    deadlines.pong(110.0, b"0")  # Before any Ping, unsolicited (RFC 6455 5.5.3).
    assert (deadlines.latency, deadlines.last_pong) == (None, None)
    assert check(deadlines, 120.0) == PING
    deadlines.pong(120.1, b"other")
    assert (deadlines.latency, deadlines.last_pong) == (None, None)
    deadlines.pong(120.25, b"1")
    assert (deadlines.latency, deadlines.last_pong) == (0.25, 120.25)
    deadlines.pong(121.0, b"1")  # Once more.
    assert (deadlines.latency, deadlines.last_pong) == (0.25, 120.25)
    assert deadlines.due == 140.0


def test_a_pong_tells_the_latency_without_ping_timeout() -> None:
    deadlines = Deadlines(options(ping_interval=20.0), 100.0)
    assert check(deadlines, 120.0) == PING
    deadlines.pong(125.0, b"1")
    assert deadlines.latency == 5.0


def test_a_pong_tells_the_latency_when_other_bytes_came_first() -> None:
    deadlines = Deadlines(options(ping_interval=20.0, ping_timeout=5.0), 100.0)
    assert check(deadlines, 120.0) == PING
    assert check(deadlines, 125.0, received=1000) == NOTHING
    deadlines.pong(126.0, b"1")
    assert deadlines.latency == 6.0


def test_a_silent_peer_is_cut() -> None:
    deadlines = Deadlines(options(ping_interval=20.0, ping_timeout=10.0), 100.0)
    assert check(deadlines, 120.0, received=50, sent=70) == PING
    assert deadlines.due == 130.0
    # The kernel took the Ping and whatever was sent since; that is no sign of the peer.
    assert check(deadlines, 129.9, received=50, sent=5000) == NOTHING
    assert check(deadlines, 130.0, received=50, sent=5000) == (Action.CUT, "no pong within 10 s")


@pytest.mark.parametrize("sign", [
    {"received": 51},
    {"unread": True},  # A callback runs and nobody reads: the Pong may be among what waits in the kernel.
    {"waiting": True, "sent": 71},  # It takes what is before the Ping.
])
def test_signs_of_life(sign: dict[str, Any]) -> None:
    deadlines = Deadlines(options(ping_interval=20.0, ping_timeout=10.0), 100.0)
    seen = {"received": 50, "sent": 70}
    assert check(deadlines, 120.0, **seen) == PING
    assert check(deadlines, 130.0, **{**seen, **sign}) == NOTHING
    assert deadlines.due == 140.0
    assert check(deadlines, 140.0, **{**seen, **sign}) == PING
    # It has to be a new one after each Ping.
    again = check(deadlines, 150.0, **{**seen, **sign})
    assert again == (NOTHING if sign == {"unread": True} else (Action.CUT, "no pong within 10 s"))


def test_a_ping_that_cannot_leave_is_no_sign_of_life() -> None:
    deadlines = Deadlines(options(ping_interval=20.0, ping_timeout=10.0), 100.0)
    assert check(deadlines, 120.0, sent=70, waiting=True) == PING
    assert check(deadlines, 130.0, sent=70, waiting=True) == (Action.CUT, "no pong within 10 s")


@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 20.0), (20.0, 5.0), (5.0, 20.0), (5.0, 23.0), (1.0, 30.0)])
@pytest.mark.parametrize("heard_for", [0, 1, 7, 21, 26, 44])
def test_a_peer_that_dies_is_cut_within_interval_and_timeout(interval: float, timeout: float, heard_for: int) -> None:
    deadlines = Deadlines(options(ping_interval=interval, ping_timeout=timeout), 0.0)
    tick = 0.25
    now = 0.0
    while True:
        now += tick
        action, _ = check(deadlines, now, received=int(min(now, heard_for) / tick))
        if action is Action.CUT:
            break
    # Not before it was silent for the whole timeout, and not much later.
    assert heard_for + timeout <= now <= heard_for + interval + timeout + tick


# Stuck


def test_a_peer_that_takes_nothing_is_cut() -> None:
    deadlines = Deadlines(options(write_timeout=30.0), 100.0)
    assert deadlines.due == math.inf
    deadlines.waiting(200.0, sent=5)
    assert deadlines.due == 230.0
    assert check(deadlines, 229.9, waiting=True, sent=5) == NOTHING
    assert check(deadlines, 230.0, waiting=True, sent=5) == (Action.CUT, "the peer took nothing for 30 s")


def test_a_slow_peer_gets_another_write_timeout_for_each_byte() -> None:
    deadlines = Deadlines(options(write_timeout=30.0), 100.0)
    deadlines.waiting(200.0, sent=5)
    assert check(deadlines, 230.0, waiting=True, sent=6) == NOTHING
    assert deadlines.due == 260.0
    assert check(deadlines, 261.0, waiting=True, sent=6)[0] is Action.CUT


def test_a_peer_that_took_all_is_not_stuck() -> None:
    deadlines = Deadlines(options(write_timeout=30.0), 100.0)
    deadlines.waiting(200.0, sent=5)
    assert check(deadlines, 230.0, waiting=False, sent=9) == NOTHING
    assert deadlines.due == math.inf


def test_without_write_timeout_nobody_is_stuck() -> None:
    deadlines = Deadlines(options(), 100.0)
    deadlines.waiting(200.0, sent=5)
    assert deadlines.due == math.inf
    assert check(deadlines, 1e9, waiting=True, sent=5) == NOTHING


# Idle


def test_an_idle_peer_is_closed() -> None:
    deadlines = Deadlines(options(read_timeout=60.0), 100.0)
    assert deadlines.due == 160.0
    assert check(deadlines, 159.9, idle_since=100.0) == NOTHING
    assert check(deadlines, 160.0, idle_since=100.0) == (Action.CLOSE, "no message for 60 s")


def test_a_message_moves_the_read_timeout() -> None:
    deadlines = Deadlines(options(read_timeout=60.0), 100.0)
    assert check(deadlines, 160.0, idle_since=130.0) == NOTHING
    assert deadlines.due == 190.0
    assert check(deadlines, 190.0, idle_since=130.0)[0] is Action.CLOSE


def test_a_callback_that_takes_long_is_not_idleness() -> None:
    deadlines = Deadlines(options(read_timeout=60.0), 100.0)
    assert check(deadlines, 160.0, idle_since=None) == NOTHING
    assert deadlines.due == 220.0
    assert check(deadlines, 220.0, idle_since=219.0) == NOTHING
    assert deadlines.due == 279.0


# Closing


def test_a_closing_handshake_has_its_deadline() -> None:
    deadlines = Deadlines(options(ping_interval=20.0, ping_timeout=20.0, read_timeout=30.0), 100.0)
    deadlines.closing(110.0)
    assert deadlines.due == 120.0
    assert check(deadlines, 119.9) == NOTHING
    assert check(deadlines, 120.0) == (Action.CUT, "timeout of 10 s")
    assert check(deadlines, 121.0)[0] is Action.CUT  # As long as the connection has not ended.


def test_no_pings_and_no_read_timeout_while_closing() -> None:
    deadlines = Deadlines(options(ping_interval=1.0, read_timeout=1.0, close_timeout=100.0), 100.0)
    deadlines.closing(101.0)
    assert check(deadlines, 150.0) == NOTHING
    assert deadlines.due == 201.0


def test_a_peer_can_be_stuck_while_closing() -> None:
    deadlines = Deadlines(options(write_timeout=5.0), 100.0)
    deadlines.waiting(101.0, sent=0)
    deadlines.closing(102.0)
    assert deadlines.due == 106.0
    assert check(deadlines, 106.0, waiting=True) == (Action.CUT, "the peer took nothing for 5 s")


# Time that is made to pass


def test_a_close_that_waits_behind_bytes_the_peer_still_takes() -> None:
    """``close_timeout`` begins anew as long as they leave, and when the Close itself has left."""
    deadlines = Deadlines(options(close_timeout=10.0), 100.0)
    deadlines.closing(100.0, 500)
    assert check(deadlines, 110.0, sent=600, waiting=True) == NOTHING
    assert check(deadlines, 119.0, sent=600, waiting=True) == NOTHING
    assert check(deadlines, 120.0, sent=700, waiting=True) == NOTHING
    deadlines.closing(125.0, 800)  # All has left.
    assert check(deadlines, 134.0, sent=800) == NOTHING
    assert check(deadlines, 135.0, sent=800)[0] is Action.CUT
