"""The public face of a connection, on real sockets."""

from __future__ import annotations

import math
import socket

import pytest
from peer import Connect, Peer, Recorder, connect, run_handler

from wsthread import Connection, Opcode, State

__all__ = ["connect"]


def test_echo(connect: Connect) -> None:
    def echo(conn: Connection) -> None:
        for message in conn:
            conn.send(message)

    conn, peer = run_handler(connect, echo)
    peer.send(Opcode.TEXT, "é".encode())
    assert peer.read() == (Opcode.TEXT, "é".encode())
    peer.send(Opcode.BINARY, b"\x00\xff")
    assert peer.read() == (Opcode.BINARY, b"\x00\xff")
    assert conn.state is State.OPEN
    assert not conn.closed
    peer.close_frame()
    assert peer.read_close() == 1000
    assert peer.at_eof()


def test_what_a_connection_knows(connect: Connect) -> None:
    recorder = Recorder()
    conn, _ = connect(recorder.manager, "/ws?name=Ada")
    assert conn.request.args["name"] == "Ada"
    assert conn.request.path == "/ws"
    assert conn.remote_address == "127.0.0.1"
    assert conn.context is None
    assert conn.subprotocol is None
    assert str(conn) == "WebSocket 127.0.0.1 '/ws'"


@pytest.mark.parametrize("timeout", [1e9, math.inf])
def test_timeouts_that_are_no_limits(connect: Connect, timeout: float) -> None:
    conn, peer = run_handler(
        connect, lambda conn: conn.send(conn.receive(timeout), timeout=timeout), close_timeout=timeout)
    peer.send(Opcode.TEXT, b"a")
    assert peer.read() == (Opcode.TEXT, b"a")
    assert peer.read_close() == 1000
    peer.close_frame()
    assert peer.at_eof()


def test_ping(connect: Connect) -> None:
    conn, peer = connect(Recorder().manager)
    conn.ping(b"hello")
    assert peer.read() == (Opcode.PING, b"hello")
    with pytest.raises(ValueError, match="125"):
        conn.ping(bytes(126))


def test_send_refuses_other_types(connect: Connect) -> None:
    conn, peer = connect(Recorder().manager)
    with pytest.raises(TypeError):
        conn.send(1)  # type: ignore[arg-type]
    conn.send(bytearray(b"still fine"))
    assert peer.read() == (Opcode.BINARY, b"still fine")


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 1016, 2999, 5000])
def test_close_refuses_codes(connect: Connect, code: int) -> None:
    conn, peer = connect(Recorder().manager)
    with pytest.raises(ValueError):
        conn.close(code, "x")
    with pytest.raises(ValueError):
        conn.close(1000, "x" * 124)
    conn.send("open")
    assert peer.read() == (Opcode.TEXT, b"open")


def test_peer_helper_reads_frames() -> None:
    left, right = socket.socketpair()
    with left, right:
        right.sendall(b"\x82\x7e\x00\x80" + bytes(128))
        assert Peer(left).read() == (Opcode.BINARY, bytes(128))
