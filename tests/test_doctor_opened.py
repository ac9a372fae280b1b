"""What doctor finds when a WebSocket is open."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from canned import answering
from servers import serve_here

from wsthread import Connection, ListenableManager, Opcode
from wsthread.doctor import opened
from wsthread.doctor.live import judge_live
from wsthread.doctor.visit import Visit
from wsthread.wire.handshake import encode_response, response_headers


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "AT_ONCE", 0.1)


def names(port: int, idle: float = 0, broadcast: str | None = None, timeout: float = 5) -> list[str]:
    visit = Visit(f"ws://127.0.0.1:{port}/ws", {"timeout": timeout}, None, idle, broadcast)
    return [one.name for one in judge_live(visit)]


def accepting(then: bytes) -> Callable[[bytes], bytes]:
    def accept(asked: bytes) -> bytes:
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", asked)
        assert key is not None
        return encode_response(response_headers(key[1].decode(), None)) + then

    return accept


@pytest.mark.parametrize(("name", "connect"), [
    ("closed-at-once", lambda conn: conn.close(4001, "no")), ("closed-at-once", lambda conn: conn.close(1013)),
    ("cut-at-once", lambda conn: conn.terminate())])
def test_closed(name: str, connect: Callable[[Connection], None]) -> None:
    with serve_here(ListenableManager(on_connect=connect)) as port:
        assert names(port) == [name]


@pytest.mark.parametrize(("name", "then"), [("broken-frames", b"<html>"), ("no-pong", b"")])
def test_nothing_passes(name: str, then: bytes) -> None:
    with answering(accepting(then), stay=True) as port:
        assert names(port, timeout=0.7) == [name]


def test_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "LONG", 0.5)
    with serve_here(ListenableManager(ping_interval=0.2)) as port:
        assert names(port, 0.6) == []
    with serve_here(ListenableManager(ping_interval=None)) as port:
        assert names(port, 0.6) == ["no-pings"]


def test_closed_while_idle() -> None:
    manager = ListenableManager(read_timeout=0.5)
    with serve_here(manager) as port:
        assert names(port, 5) == ["closed-idle"]


def test_broadcast() -> None:
    def to_all(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
        manager.broadcast(payload)

    manager = ListenableManager(on_connect=lambda conn: conn.send("welcome"), on_message=to_all)
    with serve_here(manager) as port:
        assert names(port, broadcast="hello") == ["idle-unknown"]
    manager = ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload))
    with serve_here(manager) as port:
        assert names(port, broadcast="hello", timeout=1) == ["broadcast-lost", "idle-unknown"]


def test_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "SLOW", 0.0)
    with serve_here(ListenableManager()) as port:
        assert names(port) == ["slow", "idle-unknown"]
