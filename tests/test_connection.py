"""Connections on real sockets: receiving, sending, and every way to end."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import tracemalloc

import pytest
from peer import TIMEOUT, Connect, Peer, Recorder, connect, run_handler, sender_of, transport_of
from servers import wait_until
from wire import client_frame

from wsthread import CloseCode, Connection, ConnectionClosed, Opcode, SimpleManager, State
from wsthread.transport import Transport
from wsthread.wire.messages import MessageReader

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


def test_bytes_read_with_the_handshake_are_messages(connect: Connect) -> None:
    recorder = Recorder()
    unread = client_frame(Opcode.TEXT, b"early") + client_frame(Opcode.TEXT, b"late")
    _, peer = connect(recorder.manager, unread=unread[:-2])
    peer.socket.sendall(unread[-2:])
    wait_until(lambda: len(recorder.messages) == 2)
    assert recorder.messages == [(Opcode.TEXT, "early"), (Opcode.TEXT, "late")]


def test_a_read_of_less_than_nothing() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.sendall(bytes(10_000))
        with pytest.raises(ValueError):
            Transport(ours).recv(-1)


def test_the_copy_of_a_fork_reaches_no_other_file() -> None:
    ours, peer = socket.socketpair()
    left, right = socket.socketpair()
    with peer, left, right:
        transport = Transport(ours)
        number = transport.fileno()
        transport.close_copy()
        os.dup2(left.fileno(), number)  # The child opens something.
        try:
            right.sendall(b"a")
            with pytest.raises(OSError):
                transport.send(b"b")
            with pytest.raises(OSError):
                transport.recv(1)
        finally:
            os.close(number)


def test_receive_with_timeout_loses_nothing(connect: Connect) -> None:
    timed_out = threading.Event()

    def handler(conn: Connection) -> None:
        with pytest.raises(TimeoutError):
            conn.receive(timeout=0.05)
        timed_out.set()
        conn.send(conn.receive(timeout=TIMEOUT))

    _, peer = run_handler(connect, handler)
    peer.send(Opcode.TEXT, b"one ", fin=False)
    assert timed_out.wait(TIMEOUT)
    peer.send(Opcode.CONTINUATION, b"message")
    assert peer.read() == (Opcode.TEXT, b"one message")
    assert peer.read_close() == 1000


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_receive_with_timeout_from_a_peer_that_sends_no_message(connect: Connect, timeout: float) -> None:
    timed_out = threading.Event()

    def handler(conn: Connection) -> None:
        with pytest.raises(TimeoutError):
            conn.receive(timeout)
        timed_out.set()

    _, peer = run_handler(connect, handler)
    pongs = client_frame(Opcode.PONG) * 10_000
    end = time.monotonic() + TIMEOUT
    while not timed_out.is_set() and time.monotonic() < end:
        peer.socket.sendall(pongs)
    assert timed_out.is_set()


@pytest.mark.parametrize("timeout", [1e9, math.inf])
def test_timeouts_that_are_no_limits(connect: Connect, timeout: float) -> None:
    conn, peer = run_handler(
        connect, lambda conn: conn.send(conn.receive(timeout), timeout=timeout), close_timeout=timeout)
    peer.send(Opcode.TEXT, b"a")
    assert peer.read() == (Opcode.TEXT, b"a")
    assert peer.read_close() == 1000
    peer.close_frame()
    assert peer.at_eof()


def test_an_idle_connection_keeps_no_message(connect: Connect) -> None:
    arrived = threading.Event()

    def discard(conn: Connection) -> None:
        for size in map(len, conn):
            assert size == 1 << 20
            arrived.set()

    recorder = Recorder()
    recorder.manager.on_message = lambda conn, opcode, payload: arrived.set()
    for manager in recorder.manager, SimpleManager(discard):
        arrived.clear()
        conn, peer = connect(manager)
        tracemalloc.start()
        try:
            peer.send(Opcode.BINARY, bytes(1 << 20))
            assert arrived.wait(TIMEOUT)
            wait_until(lambda: tracemalloc.get_traced_memory()[0] < 1 << 19)
        finally:
            tracemalloc.stop()
        conn.terminate()


def test_only_the_own_thread_receives(connect: Connect) -> None:
    recorder = Recorder()
    conn, _ = connect(recorder.manager)
    with pytest.raises(RuntimeError, match="own thread"):
        conn.receive()


def test_pings_are_answered_between_fragments(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"a", fin=False)
    peer.send(Opcode.PING, b"123")
    assert peer.read() == (Opcode.PONG, b"123")
    peer.send(Opcode.CONTINUATION, b"b")
    wait_until(lambda: recorder.messages)
    assert recorder.messages == [(Opcode.TEXT, "ab")]


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


# Replies to messages that came together


def test_replies_leave_together(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.manager.on_message = lambda conn, opcode, payload: conn.send(payload)
    conn, peer = connect(recorder.manager)
    writes: list[int] = []
    send = transport_of(conn).send

    def note(data: bytes | memoryview) -> int:
        writes.append(len(data))
        return send(data)

    monkeypatch.setattr(transport_of(conn), "send", note)
    peer.socket.sendall(b"".join(client_frame(Opcode.TEXT, b"%d" % (i % 10)) for i in range(20)))
    assert [peer.read() for _ in range(20)] == [(Opcode.TEXT, b"%d" % (i % 10)) for i in range(20)]
    # The last reply leaves with those before it; the housekeeper may have sent some of them on a slow machine.
    assert len(writes) < 10


def test_a_reply_does_not_wait_for_the_next_message(connect: Connect) -> None:
    recorder = Recorder()
    read = threading.Event()

    def reply(conn: Connection, opcode: Opcode, payload: str) -> None:
        conn.send(payload)
        assert read.wait(TIMEOUT)

    recorder.manager.on_message = reply
    _, peer = connect(recorder.manager)
    peer.socket.sendall(client_frame(Opcode.TEXT, b"a") + client_frame(Opcode.TEXT, b"b"))
    assert peer.read() == (Opcode.TEXT, b"a")
    read.set()
    assert peer.read() == (Opcode.TEXT, b"b")
    assert recorder.errors == []


def test_replies_before_terminate_leave(connect: Connect) -> None:
    recorder = Recorder()

    def reply_and_cut(conn: Connection, opcode: Opcode, payload: str) -> None:
        conn.send(payload)
        conn.terminate()

    recorder.manager.on_message = reply_and_cut
    _, peer = connect(recorder.manager)
    peer.socket.sendall(client_frame(Opcode.TEXT, b"a") + client_frame(Opcode.TEXT, b"b"))
    assert peer.read() == (Opcode.TEXT, b"a")
    assert peer.at_eof()
    assert recorder.wait_closed() == (1006, "terminated")


def test_replies_before_a_violation_leave_before_the_close(connect: Connect) -> None:
    recorder = Recorder()
    recorder.manager.on_message = lambda conn, opcode, payload: conn.send(payload)
    _, peer = connect(recorder.manager)
    peer.socket.sendall(client_frame(Opcode.TEXT, b"a") * 3 + b"\x83\x80\0\0\0\0")
    assert [peer.read() for _ in range(3)] == [(Opcode.TEXT, b"a")] * 3
    assert peer.read_close() == 1002


# The end. Each row of RFC 6455 7 gives one on_close with its code and reason.


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


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 1016, 2999, 5000])
def test_close_refuses_codes(connect: Connect, code: int) -> None:
    conn, peer = connect(Recorder().manager)
    with pytest.raises(ValueError):
        conn.close(code, "x")
    with pytest.raises(ValueError):
        conn.close(1000, "x" * 124)
    conn.send("open")
    assert peer.read() == (Opcode.TEXT, b"open")


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


def test_eof_without_close(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.socket.shutdown(socket.SHUT_WR)
    assert recorder.wait_closed() == (1006, "the TCP connection was closed without a Close frame")
    assert peer.at_eof()


def test_eof_in_the_middle_of_a_frame(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.socket.sendall(b"\x82\xfe\x01")
    peer.socket.close()
    assert recorder.wait_closed()[0] == 1006


def test_reset(connect: Connect) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.reset()
    code, reason = recorder.wait_closed()
    assert code == 1006
    assert reason is not None and "reset" in reason


def test_eof_after_our_close(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    conn.close(1001)
    assert peer.read_close() == 1001
    peer.socket.close()
    code, reason = recorder.wait_closed()
    assert code == 1006
    assert reason is not None and reason.startswith("no answer to Close 1001")


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


@pytest.mark.parametrize(("data", "code"), [
    (b"\x81\x02hi", 1002),  # not masked
    (b"\x83\x80\0\0\0\0", 1002),  # reserved opcode
    (b"\x81\x81\0\0\0\0\xff", 1007),
    (b"\x82\xff\0\0\0\0\x40\0\0\0", 1009),
])
def test_violations(connect: Connect, data: bytes, code: int, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    _, peer = connect(recorder.manager)
    peer.send(Opcode.PING, b"before")
    peer.socket.sendall(data + b"\x89\x80\0\0\0\0 and whatever follows")
    assert peer.read() == (Opcode.PONG, b"before")
    assert peer.read_close() == code
    assert peer.at_eof()
    peer.socket.close()
    assert recorder.wait_closed()[0] == code
    assert recorder.errors == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_violator_that_stays_is_cut(connect: Connect) -> None:
    recorder = Recorder(close_timeout=0.2)
    _, peer = connect(recorder.manager)
    peer.socket.sendall(b"\x83\x80\0\0\0\0")
    assert peer.read_close() == 1002
    assert recorder.wait_closed() == (1002, "reserved opcode 3")


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_closing_handshake_that_fails(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(reader: MessageReader) -> None:
        raise MemoryError

    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    thread = next(thread for thread in threading.enumerate() if conn.id in thread.name)
    monkeypatch.setattr(MessageReader, "room", fail)
    peer.send(Opcode.TEXT, b"a", fin=False)
    assert peer.read_close() == 1011
    assert peer.at_eof()
    assert recorder.wait_closed()[0] == 1006
    assert conn.closed
    thread.join(TIMEOUT)


# Slow peers


def fill(conn: Connection) -> threading.Thread:
    """Send more than the kernel takes, in a thread."""
    thread = threading.Thread(
        target=lambda: pytest.raises((ConnectionClosed, TimeoutError), conn.send, bytes(64 << 20)))
    thread.start()
    wait_until(lambda: sender_of(conn).outbox.size)
    return thread


def test_send_waits_for_a_slow_reader(connect: Connect) -> None:
    conn, peer = connect(Recorder(write_timeout=0.5).manager)
    payload = bytes(range(256)) * (8 << 12)
    sender = threading.Thread(target=conn.send, args=(payload,))
    sender.start()
    received = b""
    for _ in range(10):  # Slower altogether than write_timeout, but never for so long at a time.
        received += peer._take(64 << 10)
        time.sleep(0.1)
    while sender.is_alive() or len(received) < len(payload) + 10:
        received += peer._take(min(1 << 16, len(payload) + 10 - len(received)))
    sender.join(TIMEOUT)
    assert received[10:] == payload


def test_write_timeout(connect: Connect) -> None:
    recorder = Recorder(write_timeout=0.3)
    conn, _ = connect(recorder.manager)
    started = time.monotonic()
    with pytest.raises((TimeoutError, ConnectionClosed)):
        conn.send(bytes(64 << 20))
    assert time.monotonic() - started < TIMEOUT
    code, reason = recorder.wait_closed()
    assert code == 1006
    assert reason is not None and reason.startswith("the peer took")


def test_a_send_that_fails_leaves_the_rest_to_others(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    conn, peer = connect(Recorder().manager)
    send = transport_of(conn).send
    sent: list[int] = []

    def fail_once(data: bytes | memoryview) -> int:
        if len(sent) == 2:  # The header, a part of the payload, and now more of it by the thread that waits.
            sent.append(0)
            raise MemoryError
        sent.append(send(data))
        return sent[-1]

    monkeypatch.setattr(transport_of(conn), "send", fail_once)
    payload = bytes(20 << 20)
    raised: list[BaseException] = []

    def try_to_send() -> None:
        try:
            conn.send(payload)
        except MemoryError as error:
            raised.append(error)

    failing = threading.Thread(target=try_to_send)
    failing.start()
    wait_until(lambda: sender_of(conn)._is_polled)
    other = threading.Thread(target=conn.send, args=("behind it",))
    other.start()
    wait_until(lambda: sender_of(conn)._progress is not None)
    assert peer.read() == (Opcode.BINARY, payload)
    assert peer.read() == (Opcode.TEXT, b"behind it")
    for thread in failing, other:
        thread.join(TIMEOUT)
    assert len(raised) == 1


def test_send_timeout(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    with pytest.raises(TimeoutError):
        conn.send(bytes(64 << 20), timeout=0.1)
    assert recorder.wait_closed()[0] == 1006


def test_a_blocked_send_ends_with_the_connection(connect: Connect) -> None:
    for end in (Connection.terminate, lambda conn: None):
        recorder = Recorder()
        conn, peer = connect(recorder.manager)
        sender = fill(conn)
        end(conn)
        peer.reset()
        sender.join(TIMEOUT)
        assert not sender.is_alive()
        assert recorder.wait_closed()[0] == 1006


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


def test_read_timeout_closes_a_silent_connection(connect: Connect) -> None:
    recorder = Recorder(read_timeout=0.3)
    _, peer = connect(recorder.manager)
    peer.send(Opcode.PING)  # A sign of life, but no message.
    assert peer.read()[0] == Opcode.PONG
    assert peer.read_close() == 1001
    peer.close_frame(1001)
    assert recorder.wait_closed() == (1001, "")


def test_senders_never_mix(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    sizes = [0, 1, 125, 126, 5000, 70000]

    def send(number: int) -> None:
        for i in range(60):
            conn.send(bytes([number]) * sizes[(i + number) % len(sizes)])
            if i % 10 == 0:
                conn.ping(bytes([number]))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    binary = 0
    while binary < 16 * 60:
        opcode, payload = peer.read()
        assert len(set(payload)) <= 1
        assert len(payload) in sizes
        binary += opcode == Opcode.BINARY
    for thread in threads:
        thread.join(TIMEOUT)


def test_peer_helper_reads_frames() -> None:
    left, right = socket.socketpair()
    with left, right:
        right.sendall(b"\x82\x7e\x00\x80" + bytes(128))
        assert Peer(left).read() == (Opcode.BINARY, bytes(128))
