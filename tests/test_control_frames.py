"""Control frames of the peer (RFC 6455 5.5) and what they get."""

from __future__ import annotations

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, fill, sender_of
from servers import wait_until

from wsthread import CloseCode, ConnectionClosed, Opcode, State

__all__ = ["connect"]


def test_pings_are_answered_between_fragments(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"a", fin=False)
    peer.send(Opcode.PING, b"123")
    assert peer.read() == (Opcode.PONG, b"123")
    peer.send(Opcode.CONTINUATION, b"b")
    wait_until(lambda: recorder.messages)
    assert recorder.messages == [(Opcode.TEXT, "ab")]


def test_a_peer_that_pings_and_reads_nothing(connect: Connect) -> None:
    recorder = Recorder(max_outbox_size=1000)
    conn, peer = connect(recorder.manager)
    sender = fill(conn)
    peer.socket.sendall(b"".join([b"\x89\x84\0\0\0\0ping"] * 1000))
    peer.send(Opcode.TEXT, b"done")
    wait_until(lambda: recorder.messages)
    assert sender_of(conn).outbox.size <= (64 << 20) + 1000
    conn.terminate()
    sender.join(TIMEOUT)


def test_peer_closes(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    peer.close_frame(3000, "bye")
    assert peer.read_close() == 3000
    assert peer.at_eof()
    assert recorder.wait_closed() == (3000, "bye")
    assert conn.state is State.CLOSED
    with pytest.raises(ConnectionClosed) as closed:
        conn.send("too late")
    assert (closed.value.code, closed.value.reason) == (3000, "bye")
    with pytest.raises(ConnectionClosed):
        conn.ping()


def test_peer_closes_without_code(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.send(Opcode.CLOSE)
    assert peer.read_close() == 1005
    assert recorder.wait_closed() == (CloseCode.NO_STATUS_RCVD, "")


@pytest.mark.parametrize(("payload", "code"), [
    (b"\x03", 1002),
    (b"\x03\xec", 1002),  # 1004
    (b"\x03\xe8\xff", 1007),
])
def test_invalid_close_payload(connect: Connect, payload: bytes, code: int) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.send(Opcode.CLOSE, payload)
    assert peer.read_close() == code
    assert peer.at_eof()
    peer.socket.close()
    assert recorder.wait_closed()[0] == code
