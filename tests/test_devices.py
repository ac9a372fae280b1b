"""Devices whose libraries leave out what RFC 6455 asks for: what they send counts as life (docs/devices.rst)."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from wire import CONTINUATION, PING, PONG, TEXT, client_frame

from wsthread import ListenableManager, Upgrader, testing
from wsthread.connection import link_of
from wsthread.deadlines import Action, Deadlines
from wsthread.options import Options

HEARTBEAT = client_frame(TEXT, b'[2,"1","Heartbeat",{}]')


class Device:
    """A client that sends and reads nothing, so it answers no Ping either."""

    def __init__(self, **options: Any) -> None:
        self.closed = threading.Event()
        manager = ListenableManager(on_close=lambda conn: self.closed.set(), **options)
        self._ws = testing.connect(Upgrader(manager))
        assert self._ws.connection is not None
        self.connection = self._ws.connection

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *args: object) -> None:
        self._ws._socket.close()
        assert self.closed.wait(5)

    def send(self, data: bytes) -> None:
        """Send bytes and wait until the server has read them."""
        receiver = link_of(self.connection).receiver
        expected = receiver.bytes_received + len(data)
        self._ws._socket._socket.sendall(data)
        while receiver.bytes_received < expected or not receiver.is_idle:
            assert not self.closed.wait(0.001), self.connection.close_reason


@pytest.mark.parametrize("signs", [
    [HEARTBEAT],
    [client_frame(PING, b"alive?")],  # Its own Pings.
    [client_frame(PONG)],  # Unsolicited (RFC 6455 5.5.3).
    [client_frame(PONG, b"wrong")],  # Answers that are none.
    [client_frame(TEXT, b"a long", fin=False), *[client_frame(CONTINUATION, b" message", fin=False)] * 5],
    [HEARTBEAT[:1], HEARTBEAT[1:9], HEARTBEAT[9:]],
])
@pytest.mark.parametrize("options", [
    {"ping_timeout": 60},
    {"ping_timeout": None},
    {"ping_interval": None},
    {"ping_interval": 45, "ping_timeout": 300},
])
def test_without_pongs(options: dict[str, Any], signs: list[bytes]) -> None:
    """With one of the documented options, a device that says something every 55 s is kept."""
    with Device(**options, message_timeout=None) as device:  # Some tear a message over minutes.
        for data in (signs * 6)[:6]:
            testing.advance(55)
            device.send(data)
        assert device.connection.connected


@pytest.mark.parametrize(("options", "beats", "code", "reason"), [
    ({}, 0, 1006, "no pong within 20 s"),
    ({"ping_timeout": 60}, 0, 1006, "no pong within 60 s"),
    ({"ping_timeout": 60}, 3, 1006, "no pong within 60 s"),
    ({"ping_interval": None, "read_timeout": 120}, 3, 1006, "no answer to Close 1001: timeout of 10 s"),
])
def test_a_silent_device_is_found_out(options: dict[str, Any], beats: int, code: int, reason: str) -> None:
    """The options keep nobody for ever."""
    with Device(**options) as device:
        for _ in range(beats):
            testing.advance(55)
            device.send(HEARTBEAT)
        testing.advance(125)
        testing.advance(11)  # The closing handshake, which it does not answer either.
        assert device.closed.wait(5)
        assert (device.connection.close_code, device.connection.close_reason) == (code, reason)


def test_the_default_is_for_peers_that_answer() -> None:
    """Such a device is cut by default, after 30 to 40 s."""
    with Device() as device:
        testing.advance(29)
        assert device.connection.connected
        testing.advance(12)
        assert device.closed.wait(5)


@pytest.mark.parametrize("period", [5, 30, 55, 59, 60])
@pytest.mark.parametrize("phase", range(0, 60, 13))
@pytest.mark.parametrize("interval", [5, 20, 45, 90])
def test_a_ping_timeout_as_long_as_the_heartbeat(period: int, phase: int, interval: int) -> None:
    """It is enough, whenever the Pings come: what was received within it counts, a Pong or not."""
    deadlines = Deadlines(Options(ping_interval=interval, ping_timeout=60, write_timeout=None), 0.0)
    for tick in range(1, 4 * 900):
        now = tick / 4
        received = int((now + phase) // period)
        action, reason = deadlines.check(
            now, received=received, unread=False, sent=0, waiting=False, idle_since=None)
        assert action in (Action.NOTHING, Action.PING), (now, reason)
