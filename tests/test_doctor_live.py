"""What doctor finds from outside, where there is no WebSocket; test_doctor_planted has the real programs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from canned import answering, page
from servers import serve_here

from wsthread import ListenableManager
from wsthread.doctor import opened
from wsthread.doctor.live import judge_live
from wsthread.doctor.visit import Visit

NO_ROUTE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "AT_ONCE", 0.1)


def names(url: str, **options: object) -> list[tuple[str, str]]:
    return [(one.name, one.hop.value) for one in judge_live(Visit(url, {"timeout": 0.5, **options}))
            if one.name != "idle-unknown"]


def test_good() -> None:
    with serve_here(ListenableManager()) as port:
        assert names(f"ws://127.0.0.1:{port}/ws", timeout=5) == []


@pytest.mark.parametrize(("name", "hop", "data"), [
    ("not-found", "application", NO_ROUTE), ("no-http", "network", b"220 mail.example ESMTP\r\n"),
    ("tls-expected", "client", b"\x15\x03\x01\x00\x02\x02\x16"), ("no-answer", "network", b""),
    ("broken-101", "proxy", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
    ("broken-101", "proxy", b"HTTP/1.0 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
    ("asgi-wrapper", "WSGI server", page("403 Forbidden", "", "Server: hypercorn-h11")),
    ("asgi-wrapper", "WSGI server", b"HTTP/1.0 403 Forbidden\r\n\r\n"),
])
def test_answers(name: str, hop: str, data: bytes) -> None:
    with answering(data) as port:
        assert names(f"ws://127.0.0.1:{port}/ws") == [(name, hop)]


def test_wrong_slash() -> None:
    """The other path is tried with the query."""
    with serve_here(ListenableManager()) as port:
        found, = judge_live(Visit(f"ws://127.0.0.1:{port}/ws?a=b", {}))[:1]
        assert found.name == "idle-unknown"
        one, = judge_live(Visit(f"ws://127.0.0.1:{port}/nothing?a=b", {}))
        assert one.name == "no-websocket-here"  # The usual page of serve_here.


@pytest.mark.parametrize(("name", "get"), [("handshake-hangs", page("503 Busy", "")), ("all-hangs", b"")])
def test_hanging(name: str, get: bytes) -> None:
    with answering(lambda asked: b"" if b"Upgrade" in asked else get, stay=True) as port:
        assert names(f"ws://127.0.0.1:{port}/ws")[0][0] == name


def test_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as full:  # Its queue is full, so that packets to it are dropped.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        assert names(f"ws://127.0.0.1:{port}/") == [("unreachable", "network")]
        for sock in waiting:
            sock.close()


@pytest.mark.parametrize(("name", "url"), [
    ("connection-refused", "ws://127.0.0.1:1/"), ("name-unknown", "ws://nowhere.invalid/")])
def test_nobody(name: str, url: str) -> None:
    assert names(url) == [(name, "network")]


def test_no_unix_socket(tmp_path: Path) -> None:
    found, = judge_live(Visit("ws://a/", {"unix_path": str(tmp_path / "nowhere")}))
    assert found.name == "connection-refused" and str(tmp_path) in found.symptom


@pytest.mark.parametrize(("name", "data"), [
    ("tls-missing", page("400 Bad Request", "")), ("tls-missing", b"HTTP/1.0 200 OK\r\n\r\n"),
    ("tls-fails", b"220\r\n")])
def test_tls_to_a_plain_port(name: str, data: bytes) -> None:
    with answering(data) as port:
        assert names(f"wss://127.0.0.1:{port}/")[0][0] == name


def test_tls_to_a_plain_port_that_waits() -> None:
    """It takes the TLS handshake for the beginning of a request."""
    with answering(lambda asked: page("400 Bad Request", "") if asked.startswith(b"GET") else b"", stay=True) as port:
        assert names(f"wss://127.0.0.1:{port}/") == [("tls-missing", "client")]


def test_wrong_url() -> None:
    with pytest.raises(ValueError):
        names("http://127.0.0.1/")
