"""Bytes on their way out: replies that leave together, and threads that wait for a slow peer."""

from __future__ import annotations

import errno
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import pytest
from peer import TIMEOUT, Connect, Half, Recorder, connect, fill, ignoring, members, open_half, sender_of, transport_of
from servers import wait_until
from wire import BINARY, client_frame

from wsthread import Connection, ConnectionClosed, ListenableManager, Opcode
from wsthread.outbox import Outbox
from wsthread.transport import Transport
from wsthread.wire.messages import PreparedMessage

__all__ = ["connect", "open_half"]

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


def test_a_reply_that_is_held_is_not_overtaken(connect: Connect) -> None:
    manager = ListenableManager()

    def reply(conn: object, opcode: Opcode, payload: bytes) -> None:
        manager.connections[0].send(payload)
        manager.broadcast(b"all " + payload)

    manager.on_message = reply
    _, peer = connect(manager)
    peer.socket.sendall(client_frame(BINARY, b"a") + client_frame(BINARY, b"b") + client_frame(BINARY, b"c"))
    assert [peer.read()[1] for _ in range(6)] == [b"a", b"all a", b"b", b"all b", b"c", b"all c"]


# Slow peers


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
    recorder = Recorder(write_timeout=0.3, ping_interval=None)
    conn, _ = connect(recorder.manager)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="^the peer took too long to read; the connection is terminated$"):
        conn.send(bytes(64 << 20))
    assert 0.3 <= time.monotonic() - started < TIMEOUT
    assert recorder.wait_closed() == (1006, "the peer took too long to read")
    with pytest.raises(ConnectionClosed, match="the peer took too long to read"):
        conn.send("too late")


def test_write_timeout_while_nobody_waits(connect: Connect) -> None:
    """The housekeeper finds a peer that takes nothing of what was broadcast."""
    recorder = Recorder(write_timeout=0.3, ping_interval=None, max_outbox_size=64 << 20)
    members(recorder.manager, connect, 1)
    started = time.monotonic()
    assert recorder.manager.broadcast(bytes(64 << 20)).queued == 1
    assert recorder.wait_closed() == (1006, "the peer took nothing for 0.3 s")
    assert 0.3 <= time.monotonic() - started < TIMEOUT


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
    wait_until(lambda: sender_of(conn)._polled_by)
    other = threading.Thread(target=conn.send, args=("behind it",))
    other.start()
    wait_until(lambda: sender_of(conn)._progress is not None)
    assert peer.read() == (Opcode.BINARY, payload)
    assert peer.read() == (Opcode.TEXT, b"behind it")
    for thread in failing, other:
        thread.join(TIMEOUT)
    assert len(raised) == 1


@pytest.mark.timeout(60)
def test_a_signal_handler_that_sends_while_its_thread_does(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is going to send what waits."""
    (conn, peer), = members(ListenableManager(write_timeout=None, ping_interval=None), connect, 1)
    wait, calls = Transport.wait, []

    def interrupted(transport: Transport, **how: Any) -> bool:
        calls.append(how)
        if len(calls) == 1:
            conn.send("of the handler")
        return wait(transport, **how)

    monkeypatch.setattr(Transport, "wait", interrupted)
    payload = bytes(20 << 20)
    read: list[tuple[int, bytes]] = []
    reader = threading.Thread(target=lambda: read.extend([peer.read(), peer.read()]))
    reader.start()
    conn.send(payload)
    reader.join(TIMEOUT)
    assert read == [(Opcode.BINARY, payload), (Opcode.TEXT, b"of the handler")]


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


def test_a_blocked_send_ends_when_the_peer_ends_its_side(connect: Connect) -> None:
    recorder = Recorder(write_timeout=None, ping_interval=None)
    conn, peer = connect(recorder.manager)
    errors: list[Exception] = []

    def send() -> None:
        try:
            conn.send(bytes(64 << 20))
        except ConnectionClosed as error:
            errors.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    wait_until(lambda: conn.queued_bytes)
    peer.socket.shutdown(socket.SHUT_WR)
    assert recorder.wait_closed()[0] == 1006
    sender.join(TIMEOUT)
    assert not sender.is_alive()
    assert len(errors) == 1


def test_a_send_returns_when_the_kernel_has_it_all(connect: Connect) -> None:
    size = 32 << 20
    for _ in range(3):
        conn, peer = connect(Recorder(write_timeout=TIMEOUT).manager)
        sender = threading.Thread(target=conn.send, args=(bytes(size),))
        sender.start()
        wait_until(lambda: conn.queued_bytes)
        while conn.queued_bytes:
            if select.select([peer.socket], [], [], 0.01)[0]:
                peer.socket.recv(20_000)
        sender.join(TIMEOUT / 2)  # Although the peer reads no more.
        assert not sender.is_alive()


def test_an_outbox_emptied_by_dropping_is_not_watched_any_more(
    connect: Connect, monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = ListenableManager()
    ((conn, peer),) = members(manager, connect, 1)
    full = True
    send = transport_of(conn).send
    monkeypatch.setattr(transport_of(conn), "send", lambda data: 0 if full else send(data))
    sender_of(conn).clear = False  # So that a broadcast goes this way, too.
    # The kernel took a message whole, but nothing of the next one.
    assert manager.broadcast(bytes(900)).queued == 1
    with sender_of(conn).send_lock:  # The kernel has room again, but the housekeeper did not come to use it.
        full = False
        sender_of(conn).outbox.drop(0)
        sender_of(conn).write(b"\x82\x01x")
    assert peer.read() == (Opcode.BINARY, b"x")
    wait_until(lambda: not sender_of(conn)._is_watched)  # Else it would be called again and again.


def test_broadcast_when_the_system_watches_no_more_sockets(
    connect: Connect, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def watch(fd: int, flush: object) -> None:
        raise OSError(errno.ENOSPC, "fs.epoll.max_user_watches")

    recorder = Recorder()
    ((conn, peer),) = members(recorder.manager, connect, 1)
    monkeypatch.setattr(sender_of(conn)._housekeeper, "watch", watch)
    outcome = recorder.manager.broadcast(bytes(20 << 20))
    assert outcome.queued + outcome.failed == 1  # The extension finds out later.
    assert recorder.wait_closed() == (1006, "[Errno 28] fs.epoll.max_user_watches")


# Interruptions: for want of memory, or by a signal handler that raises in the main thread


@pytest.mark.parametrize("where", ["wsthread.writing.Entry", "wsthread.outbox.Outbox.add"])
@pytest.mark.parametrize("size", [40_000, 8 << 20])
def test_a_frame_of_which_the_rest_is_lost(
    open_half: Callable[..., Half], monkeypatch: pytest.MonkeyPatch, where: str, size: int,
) -> None:
    """A part has left, so whatever came behind it would be taken for the rest."""
    half = open_half()

    def fail(*args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(MemoryError):
            for _ in range(100):
                half.sender.send("x" * size, 0.1)
    assert half.is_cut()
    with pytest.raises(ConnectionClosed):
        half.sender.send("more", None)


def test_a_failure_before_anything_was_sent_costs_that_message(
    open_half: Callable[..., Half], monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = open_half(max_outbox_size=16 << 20)

    def fail(*args: object) -> None:
        raise MemoryError

    half.sender.post(PreparedMessage(bytes(8 << 20)))
    with monkeypatch.context() as patch:
        patch.setattr("wsthread.writing.Entry", fail)
        with pytest.raises(MemoryError):
            half.sender.post(PreparedMessage("lost"))
    assert not half.is_cut()


def test_a_flush_that_is_interrupted_repeats_nothing(
    open_half: Callable[..., Half], monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = open_half()
    half.sender.post(PreparedMessage(bytes(8 << 20)))

    def fail(outbox: Outbox, count: int) -> int:
        raise KeyboardInterrupt

    half.peer.socket.recv(1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr("wsthread.outbox.Outbox.remove", fail)
        with pytest.raises(KeyboardInterrupt):
            half.sender.flush()
    assert half.is_cut()


@pytest.mark.parametrize("name", [
    "wsthread.outbox.Outbox.clear", "wsthread.transport.Transport.shutdown", "wsthread.ending.Ending.fail",
])
def test_a_cut_that_is_interrupted_is_made(connect: Connect, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As by a signal handler that raises, even if it did so before."""
    manager = ListenableManager(ping_interval=None)
    conn, peer = connect(manager)
    wait_until(lambda: manager.connections)
    owner, _, method = name.rpartition(".")
    real, calls = getattr(resolve_name(owner), method), []

    def interrupt_once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(name, interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        conn.terminate()
    assert peer.at_eof()
    wait_until(lambda: manager.stats()["threads"] == 0)


class Alarm(Exception):
    """Raised by a signal handler."""


@pytest.mark.parametrize("interval", [0.0003, 0.003, 0.03])
def test_signal_handlers_that_raise_within_send(connect: Connect, interval: float) -> None:
    """As those of a synchronous worker do whose time is over. Nothing is left behind: no lock, no flag, no message."""
    stop = threading.Event()
    manager = ListenableManager(ping_interval=None)
    conn, peer = connect(manager)
    wait_until(lambda: manager.connections)
    received = 0

    def read() -> None:
        nonlocal received
        while not stop.is_set() and (data := peer.socket.recv(1 << 18)):
            received += len(data)

    def on_alarm(*args: object) -> None:
        if armed:
            raise Alarm

    armed = False
    reader = threading.Thread(target=read)
    reader.start()
    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    alarms, end = 0, time.monotonic() + 2
    with ignoring(Alarm):
        try:
            while time.monotonic() < end and conn.connected:
                try:
                    armed = True
                    conn.send(bytes(5 << 20))
                    armed = False
                except Alarm:
                    armed = False
                    alarms += 1
                except ConnectionClosed:
                    break
        except Alarm:  # Between two statements.
            pass
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert alarms > 0
    lock = sender_of(conn).send_lock
    assert lock.acquire(timeout=5), "a lock was left behind"
    lock.release()
    if conn.connected:
        wait_until(lambda: conn.queued_bytes == 0, 5)  # The housekeeper sends what was left.
        conn.send("still here")
        conn.terminate()
    wait_until(lambda: manager.stats()["threads"] == 0)
    stop.set()
    reader.join(TIMEOUT)
