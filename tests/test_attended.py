"""Connections whose handlers work: what their peers get meanwhile, and what the handlers learn of the end.

Each test of a table opens a connection for each kind of work in each style at the same time, and ends all of them in
the same way.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from peer import TIMEOUT, Connect, Peer, connect, run_handler
from servers import wait_until
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request
from wire import client_frame

from wsthread import CloseCode, Connection, ConnectionClosed, ListenableManager, Manager, Opcode, SimpleManager, clock
from wsthread.connection import link_of
from wsthread.exceptions import HandshakeError
from wsthread.manager import hub_of
from wsthread.snapshot import Snapshot
from wsthread.testing import advance

__all__ = ["connect"]

PROMPT = 1.0  # Seconds within which all that this module is about has to happen.


# What handlers do


class Desk:
    """Where the handler of one connection works, and what it notes there.

    Attributes:
        begun: set when it works.
        released: set when the test lets it go, if it does not look at its connection.
        error: what the last send has raised.
        closes: what on_close has seen, each time.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()
        self.held = threading.Lock()
        self.held.acquire()
        self.error: ConnectionClosed | None = None
        self.closes: list[tuple[int | None, bool]] = []

    def release(self) -> None:
        """Let the handler go."""
        self.released.set()
        with suppress(RuntimeError):
            self.held.release()

    def work(self, conn: Connection, how: Callable[[Desk, Connection], None]) -> None:
        """Be the handler: work until the connection ends or the test wants it, then send."""
        self.begun.set()
        try:
            how(self, conn)
            conn.send("too late")
        except ConnectionClosed as error:
            self.error = error
            raise

    def note_close(self, conn: Connection) -> None:
        self.closes.append((conn.close_code, conn.connected))


def push(desk: Desk, conn: Connection) -> None:
    while not desk.released.wait(0.01):
        conn.send("tick")


def post(desk: Desk, conn: Connection) -> None:
    while not desk.released.wait(0.01):
        conn.post("tick")


def poll(desk: Desk, conn: Connection) -> None:
    while conn.connected:
        time.sleep(0.01)


def sleep(desk: Desk, conn: Connection) -> None:
    desk.released.wait(60)


def wait_for_a_lock(desk: Desk, conn: Connection) -> None:
    assert desk.held.acquire(timeout=60)
    desk.held.release()


def compute(desk: Desk, conn: Connection) -> None:
    while not desk.released.is_set():
        sum(range(100))


#: Those that learn of the end, and those that do not look.
LOOKING = (push, post, poll)
ABSENT = (sleep, wait_for_a_lock, compute)
STYLES = ("on_connect", "on_message", "handler")


class Noting(SimpleManager):
    """A SimpleManager that tells of ends as the other manager does."""

    def __init__(self, desk: Desk, how: Callable[[Desk, Connection], None], **options: Any) -> None:
        super().__init__(self._handle, **options)
        self._desk = desk
        self._how = how

    def _handle(self, conn: Connection) -> None:
        conn.receive()
        self._desk.work(conn, self._how)

    def report_close(self, conn: Connection) -> None:
        self._desk.note_close(conn)


def manager_of(style: str, desk: Desk, how: Callable[[Desk, Connection], None], **options: Any) -> Manager:
    """Return a manager whose handler works in one style."""
    if style == "handler":
        return Noting(desk, how, **options)
    manager = ListenableManager(on_close=desk.note_close, **options)
    if style == "on_connect":
        manager.on_connect = lambda conn: desk.work(conn, how)
    else:
        manager.on_message = lambda conn, opcode, payload: desk.work(conn, how)
    return manager


class Case:
    """A connection whose handler works."""

    def __init__(
        self, connect: Connect, how: Callable[[Desk, Connection], None], style: str, first: bytes, **options: Any,
    ) -> None:
        self.how = how
        self.desk = Desk()
        self.manager = manager_of(style, self.desk, how, **options)
        self.conn, self.peer = connect(self.manager)
        self.peer.socket.sendall(client_frame(Opcode.TEXT, b"go") + first)
        assert self.desk.begun.wait(TIMEOUT)

    def is_gone(self) -> bool:
        """Tell whether its thread has ended, and its slot is free."""
        names = {thread.name for thread in threading.enumerate()}
        return f"wsthread-{self.conn.id}" not in names and self.manager.stats()["threads"] == 0


@contextmanager
def cases(
    connect: Connect, works: tuple[Callable[[Desk, Connection], None], ...], first: bytes = b"", **options: Any,
) -> Iterator[dict[str, Case]]:
    """Open a connection for each work in each style.

    Args:
        connect: the fixture.
        works: what the handlers do.
        first: what the peer sends in the same segment as the message that lets some of the handlers work.
        **options: of the managers.
    """
    opened: dict[str, Case] = {}
    try:
        for style in STYLES:
            for how in works:
                if how is compute and style != "handler":
                    continue  # One makes all others wait for the GIL, the test included.
                opened[f"{style}: {how.__name__}"] = Case(connect, how, style, first, **options)
        yield opened
    finally:
        for case in opened.values():
            case.desk.release()


def read_to_close(peer: Peer) -> int:
    """Return the code of the next Close; skip what comes before it."""
    while True:
        opcode, payload = peer.read()
        if opcode == Opcode.CLOSE:
            return int.from_bytes(payload[:2], "big") if payload else 1005


def untimely(opened: dict[str, Case], done: Callable[[Case], object]) -> list[str]:
    """Return for which of the cases something does not happen promptly."""
    with suppress(AssertionError):
        wait_until(lambda: all(done(case) for case in opened.values()), PROMPT)
    return [name for name, case in opened.items() if not done(case)]


# Ends


def close_1000(peer: Peer) -> None:
    peer.close_frame(1000)


def close_4001(peer: Peer) -> None:
    peer.close_frame(4001, "enough")


def close_without_a_code(peer: Peer) -> None:
    peer.send(Opcode.CLOSE)


def close_in_a_torn_frame(peer: Peer) -> None:
    frame = client_frame(Opcode.CLOSE, (1000).to_bytes(2, "big"))
    peer.socket.sendall(frame[:3])
    time.sleep(0.01)  # So that it may be read by itself.
    peer.socket.sendall(frame[3:])


def close_behind_a_message(peer: Peer) -> None:
    peer.socket.sendall(
        client_frame(Opcode.BINARY, b"x" * 300_000) + client_frame(Opcode.CLOSE, (1000).to_bytes(2, "big")))


def close_and_fin(peer: Peer) -> None:
    peer.close_frame(1000)
    peer.socket.shutdown(1)


def fin(peer: Peer) -> None:
    peer.socket.shutdown(1)


def reset(peer: Peer) -> None:
    peer.reset()


def vanish(peer: Peer) -> None:
    """Stop to read and to write."""


@pytest.mark.parametrize(("end", "code"), [
    (close_1000, 1000), (close_4001, 4001), (close_without_a_code, 1005), (close_in_a_torn_frame, 1000),
    (close_behind_a_message, 1000), (close_and_fin, 1000), (fin, 1006), (reset, 1006), (vanish, 1006),
])
def test_end_while_the_handler_works(connect: Connect, end: Callable[[Peer], None], code: int) -> None:
    options = {"ping_interval": 0.2, "ping_timeout": 0.2} if end is vanish else {"ping_interval": None}
    with cases(connect, LOOKING + ABSENT, **options) as opened:
        for case in opened.values():
            end(case.peer)
        assert untimely(opened, lambda case: case.conn.closed and case.conn.close_code == code) == []
        assert untimely(opened, lambda case: not case.manager.connections) == []
        if end is not reset:
            for name, case in opened.items():  # The peer sees our Close, where it sent one, and EOF at once.
                case.peer.socket.settimeout(PROMPT)
                if end in (fin, vanish):
                    with pytest.raises(EOFError):
                        read_to_close(case.peer)
                else:
                    assert (name, read_to_close(case.peer)) == (name, code)
                    assert case.peer.at_eof()
        looking = {name: case for name, case in opened.items() if case.how in LOOKING}
        absent = {name: case for name, case in opened.items() if case.how in ABSENT}
        assert untimely(looking, Case.is_gone) == []
        for name, case in absent.items():
            stats = case.manager.stats()
            assert (name, stats["lingering"], stats["threads"], case.desk.closes) == (name, 1, 1, [])
            assert stats["connections"] == {"open": 0, "closing": 0}
            assert "lingering" in case.manager.dump()
            case.desk.release()
        assert untimely(absent, Case.is_gone) == []
        for name, case in opened.items():
            assert (name, case.desk.closes) == (name, [(code, False)])
            assert case.desk.error is not None, name
            assert (name, case.desk.error.code) == (name, code)
            assert (name, case.manager.stats()["closed"]) == (name, {str(code): 1})


def test_close_in_the_segment_of_the_message_that_is_handled(connect: Connect) -> None:
    """The parser has it already, so the socket tells nothing."""
    close = client_frame(Opcode.CLOSE, (4000).to_bytes(2, "big"))
    with cases(connect, LOOKING + ABSENT, first=close, ping_interval=None) as opened:
        assert untimely(opened, lambda case: case.conn.closed and case.conn.close_code == 4000) == []
        for case in opened.values():
            assert read_to_close(case.peer) == 4000
            assert case.peer.at_eof()
            case.desk.release()
        assert untimely(opened, Case.is_gone) == []
        assert {tuple(case.desk.closes) for case in opened.values()} == {((4000, False),)}


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "behind a message"])
def test_pings_are_answered(connect: Connect, behind: bool) -> None:
    with cases(connect, LOOKING + ABSENT, ping_interval=None) as opened:
        for case in opened.values():
            if behind:
                case.peer.send(Opcode.TEXT, b"for later")
            case.peer.send(Opcode.PING, b"are you there?")
            case.peer.socket.settimeout(PROMPT)
        for name, case in opened.items():
            while (frame := case.peer.read())[0] == Opcode.TEXT:
                pass
            assert (name, *frame) == (name, Opcode.PONG, b"are you there?")


def test_keepalive_and_latency(connect: Connect) -> None:
    """Pongs count while the handler works; a client with a keepalive of its own is content too."""
    with cases(connect, (push, poll, sleep, wait_for_a_lock), ping_interval=0.2, ping_timeout=PROMPT) as opened:
        peers = {case.peer.socket: case.peer for case in opened.values()}
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            for sock in select.select(list(peers), [], [], 0.05)[0]:
                opcode, payload = peers[sock].read()
                if opcode == Opcode.PING:
                    peers[sock].send(Opcode.PONG, payload)
        for name, case in opened.items():
            assert (name, case.conn.connected) == (name, True)
            assert case.conn.latency is not None, name
            assert 0 <= case.conn.latency < PROMPT, name


# Messages


def work_then_receive(connect: Connect, **options: Any) -> tuple[Connection, Peer, threading.Event, list[Any]]:
    """Open a connection whose handler works until it is released, and receives then."""
    released = threading.Event()
    received: list[Any] = []

    def handler(conn: Connection) -> None:
        released.wait(60)
        try:
            while True:
                received.append(conn.receive())
        except ConnectionClosed as error:
            received.append(error.code)

    return *run_handler(connect, handler, **options), released, received


@pytest.mark.parametrize(("end", "code"), [
    (close_1000, 1000), (close_4001, 4001), (close_and_fin, 1000), (fin, 1006)])
def test_messages_before_the_end_are_delivered(connect: Connect, end: Callable[[Peer], None], code: int) -> None:
    conn, peer, released, received = work_then_receive(connect)
    sent = [str(number) for number in range(100)]
    for number in sent:
        peer.send(Opcode.TEXT, number.encode())
    end(peer)
    wait_until(lambda: conn.closed, PROMPT)
    released.set()
    wait_until(lambda: received and received[-1] == code)
    assert received == [*sent, code]


def test_messages_that_a_reset_has_not_destroyed(connect: Connect) -> None:
    conn, peer, released, received = work_then_receive(connect)
    for number in range(100):
        peer.send(Opcode.TEXT, str(number).encode())
    wait_until(lambda: len(link_of(conn).receiver._inbox or ()) == 100, PROMPT)
    peer.reset()
    wait_until(lambda: conn.closed, PROMPT)
    released.set()
    wait_until(lambda: received and received[-1] == 1006)
    assert received == [*map(str, range(100)), 1006]


def test_callbacks_get_the_messages_before_the_end(connect: Connect) -> None:
    desk = Desk()
    seen: list[Any] = []
    manager = ListenableManager(on_close=lambda conn: seen.append(conn.close_code))

    @manager.on_message
    def message(conn: Connection, opcode: Opcode, payload: str) -> None:
        desk.begun.set()
        desk.released.wait(60)
        seen.append(payload)

    conn, peer = connect(manager)
    for number in range(10):
        peer.send(Opcode.TEXT, str(number).encode())
    peer.close_frame(4001)
    wait_until(lambda: conn.closed, PROMPT)
    assert seen == []
    desk.release()
    wait_until(lambda: seen and seen[-1] == 4001)
    assert seen == [*map(str, range(10)), 4001]


@pytest.mark.parametrize("how", ["handler", "elsewhere", "terminated"])
def test_after_our_own_close_no_message_is_delivered(connect: Connect, how: str) -> None:
    closing = threading.Event()
    received: list[Any] = []

    def handler(conn: Connection) -> None:
        closing.wait(60)
        if how == "handler":
            conn.close(4002)
        with pytest.raises(ConnectionClosed) as caught:
            received.append(conn.receive())
        received.append(caught.value.code)

    conn, peer = run_handler(connect, handler)
    peer.send(Opcode.TEXT, b"before")
    wait_until(lambda: link_of(conn).receiver.inbox_size > 0, PROMPT)
    if how == "elsewhere":
        conn.close(4002)
    elif how == "terminated":
        conn.terminate()
    closing.set()
    wait_until(lambda: received)
    assert received == [1006 if how == "terminated" else None]


def test_own_close_is_completed_while_the_handler_works_on(connect: Connect) -> None:
    released = threading.Event()

    def handler(conn: Connection) -> None:
        conn.close(4002)
        released.wait(60)

    conn, peer = run_handler(connect, handler)
    assert peer.read_close() == 4002
    peer.close_frame(4002)
    peer.socket.settimeout(PROMPT)
    assert peer.at_eof()
    wait_until(lambda: conn.closed, PROMPT)
    assert conn.close_code == 4002
    released.set()


def test_broken_protocol_while_the_handler_works(connect: Connect) -> None:
    """The peer is told at once; TCP ends with its EOF."""
    with cases(connect, LOOKING + ABSENT, ping_interval=None) as opened:
        for case in opened.values():
            case.peer.socket.sendall(b"\xff\xff\xff\xff\xff\xff\xff\xff")
        for name, case in opened.items():
            case.peer.socket.settimeout(PROMPT)
            assert (name, read_to_close(case.peer)) == (name, 1002)
            assert not case.conn.connected
            case.peer.socket.shutdown(1)
        assert untimely(opened, lambda case: case.conn.closed and case.conn.close_code == 1002) == []


def test_full_inbox_stops_reading_until_the_application_asks(connect: Connect) -> None:
    conn, peer, released, received = work_then_receive(
        connect, max_inbox_size=10_000, ping_interval=0.1, ping_timeout=0.1)
    peer.socket.settimeout(60)
    payloads = [b"%d" % number * 100 for number in range(30_000)]

    def send() -> None:
        for payload in payloads:
            peer.send(Opcode.BINARY, payload)
        peer.close_frame(4001)

    sending = threading.Thread(target=send)
    sending.start()
    wait_until(lambda: link_of(conn).receiver.is_deaf(), PROMPT)
    inbox_size = link_of(conn).receiver.inbox_size
    assert 10_000 <= inbox_size < 12_000
    time.sleep(0.6)  # Some ping_timeouts. The peer answers nothing, and may well have done so.
    assert conn.connected
    assert link_of(conn).receiver.inbox_size == inbox_size
    released.set()
    sending.join(60)
    wait_until(lambda: received and received[-1] == 4001)
    assert received == [*payloads, 4001]


# Sending to a peer that does not read

LARGE = 1 << 24  # Bytes of a message that no kernel takes in one go.
LARGE_FRAME = 10 + LARGE


def blocked(connect: Connect, **options: Any) -> tuple[Connection, Peer, list[BaseException]]:
    """Open a connection whose handler is blocked in a send."""
    errors: list[BaseException] = []

    def handler(conn: Connection) -> None:
        try:
            conn.send(b"x" * LARGE)
        except Exception as error:
            errors.append(error)

    conn, peer = run_handler(connect, handler, **options)
    wait_until(lambda: conn.queued_bytes)
    return conn, peer, errors


def read_bytes(peer: Peer, size: int) -> bytes:
    """Return so many bytes, or those up to EOF."""
    data = bytearray()
    while len(data) < size and (more := peer.socket.recv(size - len(data))):
        data += more
    return bytes(data)


def test_blocked_send_and_a_close(connect: Connect) -> None:
    """The peer reads on after its Close, as browsers do: the message it was in is complete, and ours comes behind."""
    conn, peer, errors = blocked(connect)
    peer.close_frame(4001)
    wait_until(lambda: not conn.connected, PROMPT)
    peer.socket.settimeout(PROMPT)
    data = read_bytes(peer, 2 * LARGE)
    assert len(data) == LARGE_FRAME + 4
    assert data.endswith(b"x\x88\x02" + (4001).to_bytes(2, "big"))
    wait_until(lambda: conn.closed, PROMPT)
    assert (conn.close_code, errors) == (4001, [])


def test_blocked_send_and_a_close_of_one_who_reads_nothing(connect: Connect) -> None:
    conn, peer, errors = blocked(connect, close_timeout=0.3)
    peer.close_frame(4001)
    wait_until(lambda: conn.closed and errors, PROMPT + 0.3)
    assert isinstance(errors[0], ConnectionClosed)
    assert errors[0].code == conn.close_code == 4001


@pytest.mark.parametrize("end", [close_and_fin, fin, reset, vanish])
def test_blocked_send_and_the_end_of_the_peer(connect: Connect, end: Callable[[Peer], None]) -> None:
    conn, peer, errors = blocked(connect, ping_interval=0.2, ping_timeout=0.2)
    end(peer)
    wait_until(lambda: conn.closed and errors, PROMPT)
    assert isinstance(errors[0], ConnectionClosed)
    assert errors[0].code == conn.close_code == (1000 if end is close_and_fin else 1006)


def test_pings_to_a_blocked_sender(connect: Connect) -> None:
    """The Pong stands in line behind what the peer has not read."""
    released = threading.Event()

    def handler(conn: Connection) -> None:
        conn.send(b"x" * LARGE)
        released.wait(60)

    conn, peer = run_handler(connect, handler, ping_interval=None)
    wait_until(lambda: conn.queued_bytes)
    for payload in (b"1", b"2"):
        peer.send(Opcode.PING, payload)
    receiver = link_of(conn).receiver
    wait_until(lambda: receiver.bytes_received == 2 * len(client_frame(Opcode.PING, b"1")), PROMPT)
    assert len(read_bytes(peer, LARGE_FRAME)) == LARGE_FRAME
    peer.socket.settimeout(PROMPT)
    assert peer.read() == (Opcode.PONG, b"2")  # More than the one to the last is not called for.
    released.set()


# What one busy connection does to the others


def pong_time(peer: Peer) -> float:
    """Return how many seconds the answer to a Ping takes."""
    begun = time.monotonic()
    peer.send(Opcode.PING, b"1")
    assert peer.read() == (Opcode.PONG, b"1")
    return time.monotonic() - begun


@pytest.mark.parametrize(("begin", "flood"), [
    (b"", client_frame(Opcode.PING)),
    (b"", client_frame(Opcode.PONG)),
    (client_frame(Opcode.TEXT, fin=False), client_frame(Opcode.CONTINUATION, fin=False)),
], ids=["Pings", "Pongs", "fragments"])
def test_visit_is_short_whatever_the_peer_sends(connect: Connect, begin: bytes, flood: bytes) -> None:
    conn, peer, released, received = work_then_receive(connect, ping_interval=None, max_control_rate=None)
    receiver = link_of(conn).receiver
    with receiver.lock:  # So that nobody reads yet.
        peer.socket.setblocking(False)
        peer.socket.send(begin + flood * 100_000)
        peer.socket.setblocking(True)
    begun = time.thread_time()
    receiver.attend()
    assert time.thread_time() - begun < 0.1
    released.set()
    peer.socket.shutdown(1)
    while peer.socket.recv(1 << 20):
        pass
    wait_until(lambda: received == [1006])  # The rest was read.


def test_flood_is_answered_in_full(connect: Connect) -> None:
    """What one visit leaves, the next ones take; and at last the handler, when it asks for messages."""
    conn, peer, released, received = work_then_receive(connect, ping_interval=None, max_control_rate=None)
    peer.socket.sendall(client_frame(Opcode.PING) * 10_000 + client_frame(Opcode.TEXT, b"end"))
    for _ in range(5_000):
        assert peer.read() == (Opcode.PONG, b"")
    released.set()
    for _ in range(5_000):
        assert peer.read() == (Opcode.PONG, b"")
    wait_until(lambda: received == ["end"])


class Raising(logging.Handler):
    """A broken handler of log lines."""

    def emit(self, record: logging.LogRecord) -> None:
        raise LookupError("a bug in a log handler")


def test_log_handler_that_raises_does_not_keep_others_from_being_attended(connect: Connect) -> None:
    released, handler = threading.Event(), Raising()
    manager = SimpleManager(lambda conn: released.wait(60))
    opened = [connect(manager) for _ in range(3)]
    logger = logging.getLogger("wsthread")
    logger.addHandler(handler)
    try:
        opened[0][1].socket.sendall(b"\xff" * 8)
        assert opened[0][1].read_close() == 1002
        for _, peer in opened[1:]:
            assert pong_time(peer) < PROMPT
    finally:
        logger.removeHandler(handler)
        released.set()


# For the operator


def test_lingering_handler_is_logged_once_with_its_stack(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    def linger_on_purpose(conn: Connection) -> None:
        released.wait(60)

    manager = SimpleManager(linger_on_purpose, ping_interval=None)
    (conn, peer), (_, other) = connect(manager), connect(manager)
    peer.close_frame()
    wait_until(lambda: conn.closed, PROMPT)
    advance(9)
    assert "linger_on_purpose" not in caplog.text
    advance(2)
    advance(60)
    wait_until(lambda: "linger_on_purpose" in caplog.text)  # Another thread tells.
    told = [line for line in (record.getMessage() for record in caplog.records) if "linger_on_purpose" in line]
    assert len(told) == 1
    assert "its handler goes on, 10 s after the connection has ended" in told[0]
    assert manager.stats()["lingering"] == 1
    assert [line for line in manager.dump().splitlines() if "lingering" in line and conn.id in line]
    other.close_frame()
    released.set()
    wait_until(lambda: manager.stats()["threads"] == 0, PROMPT)
    assert manager.stats()["lingering"] == 0


def test_many_lingering_handlers_are_logged_one_after_the_other(
    connect: Connect, caplog: pytest.LogCaptureFixture,
) -> None:
    """The stack of each takes a while, in which nobody else is attended."""
    released = threading.Event()
    manager = SimpleManager(lambda conn: released.wait(60), ping_interval=None)
    opened = [connect(manager) for _ in range(25)]
    for _, peer in opened:
        peer.reset()
    wait_until(lambda: manager.stats()["lingering"] == 25, PROMPT)
    hub_of(manager).check(clock.now())
    caplog.clear()
    hub_of(manager).check(clock.now() + 20)
    wait_until(lambda: caplog.text.count("goes on") >= 10)  # Other threads tell.
    assert caplog.text.count("goes on") < 25  # The housekeeper's own check may come in between.
    for _ in range(4):
        hub_of(manager).check(clock.now() + 20)
    wait_until(lambda: caplog.text.count("goes on") == 25)
    released.set()


def is_full(manager: Manager) -> bool:
    """Tell whether a manager refuses another connection."""
    try:
        link_of(hub_of(manager).prepare(Snapshot(Request(EnvironBuilder("/").get_environ())), None, None)).abandon()
    except HandshakeError as error:
        return "max_connections is" in str(error)
    return False


def test_departed_clients_free_their_slots(connect: Connect) -> None:
    """max_connections counts threads: of handlers that look at once, of the others as long as they live."""
    released = threading.Event()

    def handler(conn: Connection) -> None:
        if conn.request.args["name"] == "looks":
            while conn.connected:
                time.sleep(0.01)
        else:
            released.wait(60)

    manager = SimpleManager(handler, max_connections=3)
    clients = [connect(manager, "/?name=looks") for _ in range(3)]
    assert is_full(manager)
    for end, (_, peer) in zip((close_1000, fin, reset), clients):
        end(peer)
    wait_until(lambda: manager.stats()["threads"] == 0, PROMPT)
    for _, peer in [connect(manager, "/?name=sleeps") for _ in range(3)]:
        close_1000(peer)
    wait_until(lambda: manager.stats()["lingering"] == 3, PROMPT)
    assert is_full(manager)
    released.set()
    wait_until(lambda: manager.stats()["threads"] == 0, PROMPT)
    connect(manager, "/?name=looks")


# Shutdown


def test_shutdown_tells_handlers(connect: Connect) -> None:
    """Peers get their Close at once, and those that look are gone; those that do not are cut with the time."""
    with cases(connect, LOOKING, ping_interval=None) as opened:
        managers = [case.manager for case in opened.values()]
        threads = [
            threading.Thread(target=manager.shutdown, kwargs={"timeout": TIMEOUT}) for manager in managers]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for case in opened.values():
            assert read_to_close(case.peer) == CloseCode.GOING_AWAY
            case.peer.close_frame(CloseCode.GOING_AWAY)
        for thread in threads:
            thread.join(TIMEOUT)
        assert time.monotonic() - begun < 2
        assert [name for name, case in opened.items() if not case.is_gone()] == []


def test_shutdown_closes_the_peers_of_absent_handlers(connect: Connect) -> None:
    with cases(connect, ABSENT, ping_interval=None) as opened:
        for case in opened.values():
            hub_of(case.manager).begin_shutdown()
            assert not case.conn.connected
            assert case.peer.read_close() == CloseCode.GOING_AWAY
            case.peer.close_frame(CloseCode.GOING_AWAY)
        assert untimely(opened, lambda case: case.conn.closed) == []
        assert not case.manager.shutdown(timeout=0)  # Nobody can wake such a handler.


@pytest.mark.parametrize("leave", ["close", "eof", "reset"])
def test_peer_that_leaves_a_full_inbox(connect: Connect, leave: str) -> None:
    """What it said last lies behind messages that nobody asks for, but that it has left is known."""
    recorder: list[int | None] = []
    ended = threading.Event()

    def poll(conn: Connection) -> None:
        conn.join("all")
        while conn.connected:
            ended.wait(0.01)
        ended.set()

    manager = SimpleManager(poll, max_inbox_size=1000, ping_interval=None)
    conn, peer = connect(manager)
    wait_until(lambda: manager.connections)
    for _ in range(50):
        peer.send(Opcode.BINARY, bytes(200))
    wait_until(lambda: link_of(conn).receiver.inbox_size >= 1000, PROMPT)
    if leave == "close":
        peer.close_frame(4321)
        peer.socket.shutdown(1)
    elif leave == "eof":
        peer.socket.close()
    else:
        peer.reset()
    assert ended.wait(1.5)
    wait_until(lambda: conn.closed)
    recorder.append(conn.close_code)
    assert recorder == [4321 if leave == "close" else 1006]


def test_messages_of_a_peer_that_has_left_a_full_inbox(connect: Connect) -> None:
    received: list[object] = []
    released = threading.Event()

    def collect(conn: Connection) -> None:
        conn.join("all")
        released.wait(TIMEOUT)
        received.append(conn.connected)
        received.extend(conn)
        received.append(conn.close_code)

    manager = SimpleManager(collect, max_inbox_size=1000, ping_interval=None)
    conn, peer = connect(manager)
    wait_until(lambda: manager.connections)
    for number in range(50):
        peer.send(Opcode.TEXT, str(number).encode())
    wait_until(lambda: link_of(conn).receiver.inbox_size >= 1000, PROMPT)
    peer.close_frame(4321)
    peer.socket.shutdown(1)
    wait_until(lambda: not conn.connected, PROMPT)
    released.set()
    wait_until(lambda: len(received) == 52)
    assert received == [False, *map(str, range(50)), 4321]
