"""Control frames of the peer (RFC 6455 5.5) and what they get."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peer import TIMEOUT, Connect, Half, Recorder, connect, fill, open_half, sender_of
from servers import wait_until
from wire import CLOSE, client_close, client_frame

from wsthread import CloseCode, ConnectionClosed, Opcode, State
from wsthread.control_frames import answer
from wsthread.wire.messages import Message
from wsthread.wire.protocol import Close

__all__ = ["connect", "open_half"]


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
    recorder = Recorder(max_outbox_size=1000, max_control_rate=None)
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


# Without a thread


@pytest.mark.parametrize(("event", "reply"), [
    (Message(Opcode.PING, b"hi"), (Opcode.PONG, b"hi")),
    (Message(Opcode.PING, b""), (Opcode.PONG, b"")),
    (Message(Opcode.PING, bytes(125)), (Opcode.PONG, bytes(125))),
])
def test_answer_to_a_ping(open_half: Callable[..., Half], event: Message, reply: tuple[int, bytes]) -> None:
    half = open_half()
    answer(event, half.sender)
    assert half.peer.read() == reply


def test_no_answer_to_a_ping_when_closing(open_half: Callable[..., Half]) -> None:
    """RFC 6455 5.5.2."""
    half = open_half()
    half.sender.close(Close(1000))
    answer(Message(Opcode.PING, b"hi"), half.sender)
    assert half.peer.read_close() == 1000
    half.sender.terminate("over")
    assert half.peer.at_eof()


@pytest.mark.parametrize(("payload", "is_ours"), [(b"1", True), (b"2", False), (b"", False)])
def test_a_pong_tells_the_latency(open_half: Callable[..., Half], payload: bytes, is_ours: bool) -> None:
    half = open_half(ping_interval=5)
    half.check(5)
    assert half.peer.read() == (Opcode.PING, b"1")
    answer(Message(Opcode.PONG, payload), half.sender)
    assert (half.sender.deadlines.latency is not None) is is_ours
    half.sender.terminate("over")
    assert half.peer.at_eof()  # It gets no answer.


@pytest.mark.parametrize(("frame", "code"), [(client_close(3000, b"bye"), 3000), (client_frame(CLOSE), 1005)])
def test_answer_to_a_close(open_half: Callable[..., Half], frame: bytes, code: int) -> None:
    """The same code comes back (RFC 6455 5.5.1)."""
    half = open_half()
    half.protocol.receive_data(frame)
    event = half.protocol.next_event()
    assert event is not None
    answer(event, half.sender)
    assert half.peer.read_close() == code
    assert half.sender.ending.state is State.CLOSING
