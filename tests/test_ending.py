"""How connections end: each row of the table of wsthread.ending, and what peers and applications see of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
from peer import TIMEOUT, Connect, Half, Recorder, connect, open_half, run_handler, sender_of
from servers import wait_until
from wire import client_close

from wsthread import Connection, ConnectionClosed, Opcode, ProtocolError, State
from wsthread.ending import Ending
from wsthread.wire.messages import PreparedMessage
from wsthread.wire.protocol import Close, Protocol

__all__ = ["connect", "open_half"]

# The table. An event prepares what has to be there while the connection is OPEN, yields, and happens.

Event = Callable[[Half], Iterator[None]]
MUCH = bytes(8 << 20)  # More than the kernel takes.


def close(half: Half) -> Iterator[None]:
    """The application closes, the handler returns, a callback raises, or the server stops."""
    yield
    half.sender.close(Close(4000, "bye"))


def be_too_slow(half: Half) -> Iterator[None]:
    half.sender.post(PreparedMessage(MUCH))
    yield
    with suppress(ConnectionClosed):
        half.sender.post(PreparedMessage(MUCH))


def be_idle(half: Half) -> Iterator[None]:
    yield
    half.check(11)


def peer_closes(half: Half) -> Iterator[None]:
    yield
    half.protocol.receive_data(client_close(3000, b"enough"))
    assert half.protocol.next_event() is not None
    half.sender.answer_close()


def peer_breaks_the_protocol(half: Half) -> Iterator[None]:
    yield
    half.sender.answer_violation(ProtocolError("reserved bits"))


def eof(half: Half) -> Iterator[None]:
    yield
    half.sender.lose("EOF")


def write_breaks(half: Half) -> Iterator[None]:
    yield
    with half.sender.send_lock:
        half.sender.broke(OSError("broken"))


def no_pong(half: Half) -> Iterator[None]:
    half.check(5)
    assert half.peer.read() == (Opcode.PING, b"1")
    yield
    half.check(9)


def take_nothing(half: Half) -> Iterator[None]:
    half.sender.post(PreparedMessage(MUCH))
    yield
    half.check(9)


def close_timeout(half: Half) -> Iterator[None]:
    yield
    half.check(31)


def terminate(half: Half) -> Iterator[None]:
    yield
    half.sender.terminate("enough")


class Row(NamedTuple):
    """What comes of an event: while OPEN, then while CLOSING.

    Attributes:
        event: the event.
        sent: the Close that it sends while OPEN.
        outcome: what the connection ends with then; None: that is up to the peer.
        later: the same while CLOSING.
        is_cut: whether the TCP connection is given up.
        options: of the manager.
    """

    event: Event
    sent: Close | None
    outcome: Close | None
    later: Close | None
    is_cut: bool = False
    options: dict[str, object] = {}


BEFORE = Close(4321, "before")  # Sent, where the connection is CLOSING.
NO_ANSWER = "no answer to Close 4321: "
TABLE = [
    Row(close, Close(4000, "bye"), None, None),
    Row(be_too_slow, Close(1013, "too slow"), None, None, options={"overflow": "close"}),
    Row(be_idle, Close(1001, "no message for 10 s"), None, None, options={"read_timeout": 10}),
    Row(peer_closes, Close(3000), Close(3000, "enough"), Close(3000, "enough")),
    Row(peer_breaks_the_protocol, Close(1002, "reserved bits"), Close(1002, "reserved bits"),
        Close(1002, "reserved bits")),
    Row(eof, None, Close(1006, "EOF"), Close(1006, f"{NO_ANSWER}EOF")),
    Row(write_breaks, None, Close(1006, "broken"), Close(1006, f"{NO_ANSWER}broken"), True),
    Row(no_pong, None, Close(1006, "no pong within 3 s"), Close(1006, f"{NO_ANSWER}no pong within 3 s"), True,
        {"ping_interval": 5, "ping_timeout": 3}),
    Row(take_nothing, None, Close(1006, "the peer took nothing for 3 s"),
        Close(1006, f"{NO_ANSWER}the peer took nothing for 3 s"), True, {"write_timeout": 3}),
    Row(close_timeout, None, None, Close(1006, f"{NO_ANSWER}timeout of 30 s"), True),
    Row(terminate, None, Close(1006, "enough"), Close(1006, f"{NO_ANSWER}enough"), True),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.event.__name__)
def test_while_open(open_half: Callable[..., Half], row: Row) -> None:
    half = open_half(close_timeout=30, **row.options)
    event = row.event(half)
    next(event)
    next(event, None)
    ending = half.sender.ending
    is_nothing = row.event is close_timeout
    assert ending.state is (State.OPEN if is_nothing else State.CLOSING)
    assert (half.protocol.close_sent, ending.outcome) == (row.sent, row.outcome)
    assert half.registry.snapshot() == ((half,) if is_nothing else ())  # It is no member any more.
    assert half.is_cut() is (row.is_cut and not is_nothing)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.event.__name__)
def test_while_closing(open_half: Callable[..., Half], row: Row) -> None:
    half = open_half(close_timeout=30, **row.options)
    event = row.event(half)
    next(event)
    half.sender.close(BEFORE)
    next(event, None)
    ending = half.sender.ending
    assert ending.state is State.CLOSING
    assert (half.protocol.close_sent, ending.outcome) == (BEFORE, row.later)  # The first Close counts.
    assert half.is_cut() is row.is_cut


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.event.__name__)
def test_when_closed(open_half: Callable[..., Half], row: Row) -> None:
    """Nothing changes any more."""
    half = open_half(close_timeout=30, **row.options)
    event = row.event(half)
    next(event)
    half.sender.terminate("over")
    transport = half.sender.transport
    assert transport is not None
    half.sender.finish(transport)
    if row.event is not peer_closes:  # What comes of the peer is not read any more.
        next(event, None)
    assert half.sender.ending.state is State.CLOSED
    assert (half.protocol.close_sent, half.sender.ending.outcome) == (None, Close(1006, "over"))


def test_the_states_of_an_ending() -> None:
    protocol = Protocol()
    ending = Ending(protocol)
    assert (ending.state, ending.outcome) == (State.CONNECTING, None)
    assert not ending.close(is_ours=True)  # Before the 101 there is nothing to close.
    ending.state = State.OPEN
    assert ending.close(is_ours=True)
    assert not ending.close(is_ours=False)
    assert ending.is_ours
    assert (ending.state, ending.outcome) == (State.CLOSING, None)
    ending.fail(1002, "the first failure counts")
    ending.fail(1006, "this one does not")
    assert ending.failure == ending.outcome == Close(1002, "the first failure counts")
    protocol.receive_data(client_close(4000, b"but the peer's Close"))
    assert protocol.next_event() is not None
    assert ending.outcome == Close(4000, "but the peer's Close")
    ending.finish()
    ending.fail(1006, "too late")
    assert (ending.state, ending.outcome) == (State.CLOSED, Close(4000, "but the peer's Close"))


# On the wire


def test_we_close_from_another_thread(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    conn.close(4001, "kicked")
    conn.close(4002, "the first one counts")
    assert conn.state is State.CLOSING
    assert peer.read() == (Opcode.CLOSE, b"\x0f\xa1kicked")
    peer.send(Opcode.TEXT, b"what comes now is dropped")
    peer.close_frame(4001)
    assert peer.at_eof()
    assert recorder.wait_closed() == (4001, "")
    assert recorder.messages == []


def test_we_close_by_returning(connect: Connect) -> None:
    conn, peer = run_handler(connect, lambda conn: None)
    assert peer.read_close() == 1000
    peer.close_frame()
    assert peer.at_eof()
    wait_until(lambda: conn.closed)
    assert conn.close_code == 1000


def test_both_close_at_once(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    conn.close(1001)
    peer.close_frame(4000, "me too")
    assert peer.read_close() == 1001
    assert peer.at_eof()
    assert recorder.wait_closed() == (4000, "me too")


def test_close_while_sending(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    payload = bytes(20 << 20)
    sender = threading.Thread(target=conn.send, args=(payload,))
    sender.start()
    wait_until(lambda: sender_of(conn).outbox.size)
    conn.close(1001)
    with pytest.raises(ConnectionClosed):
        conn.send("behind the Close")
    assert peer.read() == (Opcode.BINARY, payload)  # What was accepted arrives, then the Close.
    assert peer.read_close() == 1001
    sender.join(TIMEOUT)
    peer.close_frame(1001)
    assert recorder.wait_closed() == (1001, "")


def test_no_answer_to_our_close(connect: Connect) -> None:
    recorder = Recorder(close_timeout=0.2)
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    conn.close(4000)
    assert peer.read_close() == 4000
    code, reason = recorder.wait_closed()
    assert code == 1006
    assert reason is not None and reason.startswith("no answer to Close 4000")
    assert peer.at_eof()


def test_no_answer_to_our_close_while_a_callback_runs(connect: Connect) -> None:
    release = threading.Event()

    def handler(conn: Connection) -> None:
        conn.close(4000)
        release.wait(TIMEOUT)

    conn, peer = run_handler(connect, handler, close_timeout=0.2)
    assert peer.read_close() == 4000
    assert peer.at_eof()
    assert not conn.closed
    release.set()
    wait_until(lambda: conn.closed)
    assert conn.close_code == 1006


def test_terminate(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    conn.terminate("because")
    conn.terminate("again")
    assert peer.at_eof()
    assert recorder.wait_closed() == (1006, "because")
    conn.close()
    conn.terminate()


def test_terminate_in_a_callback(connect: Connect) -> None:
    recorder = Recorder()

    def cut(conn: Connection, opcode: Opcode, payload: str) -> None:
        recorder.messages.append((opcode, payload))
        conn.terminate()

    recorder.manager.on_message = cut
    _, peer = connect(recorder.manager)
    peer.socket.sendall(b"\x81\x81\0\0\0\0a" * 3)
    assert recorder.wait_closed() == (1006, "terminated")
    assert recorder.messages == [(Opcode.TEXT, "a")]
