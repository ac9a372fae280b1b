"""Who is one of a manager's connections: from when it is let in until it begins to close.

A *stranger* is a connection that is open and not let in. It reads nothing that is meant for the members.
"""

from __future__ import annotations

import functools
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from flask import Flask, abort, redirect
from peer import TIMEOUT, Connect, Peer, connect, run_handler
from servers import wait_until
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from wsthread import (
    Broadcast, Connection, ConnectionClosed, HandshakeError, ListenableManager, Manager, Opcode, SimpleManager, State,
    testing,
)
from wsthread.connection import link_of
from wsthread.flask import WebSockets
from wsthread.manager import hub_of
from wsthread.snapshot import Snapshot
from wsthread.transport import Transport
from wsthread.wire.protocol import Close

__all__ = ["connect"]


class Held:
    """A manager whose on_connect, or handler, waits."""

    def __init__(self, is_simple: bool = False, **options: Any) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.manager: Manager = (
            SimpleManager(self._wait, **options) if is_simple else ListenableManager(on_connect=self._wait, **options))

    def _wait(self, conn: Connection) -> None:
        self.entered.set()
        assert self.release.wait(TIMEOUT)


@pytest.fixture(params=[False, True], ids=["callbacks", "handler"])
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    one = Held(request.param)
    yield one
    one.release.set()


def test_a_stranger_is_nowhere(connect: Connect, held: Held) -> None:
    """Only the operator sees it."""
    manager = held.manager
    conn, peer = connect(manager)
    assert held.entered.wait(TIMEOUT)
    assert conn.connected and conn.state is State.OPEN
    assert manager.connections == ()
    assert manager.get(conn.id) is None
    assert conn.groups == frozenset()
    assert manager.broadcast("x") == Broadcast(0, 0, 0, 0)
    assert manager.broadcast("x", to=conn) == Broadcast(0, 0, 0, 1)
    assert manager.broadcast("x", to=[conn], exclude=conn) == Broadcast(0, 0, 0, 1)
    assert manager.close() == manager.close(to=conn) == manager.close_where(lambda conn: True) == 0
    assert conn.connected
    stats = manager.stats()
    assert stats["connections"] == {"open": 0, "closing": 0}
    assert (stats["accepted"], stats["threads"]) == (1, 1)
    assert conn.id in manager.dump()
    # Nothing of this has let it in, and nothing of it has reached the peer.
    assert manager.connections == ()
    conn.close(4001)
    assert peer.read_close() == 4001


@contextmanager
def expecting(*errors: type[Exception]) -> Iterator[None]:
    with pytest.raises(errors):
        yield


def receive_in_vain(conn: Connection) -> None:
    with expecting(TimeoutError):
        conn.receive(timeout=0)


def receive_json_in_vain(conn: Connection) -> None:
    with expecting(TimeoutError):
        conn.receive_json(timeout=0)


def refused(function: Callable[[Connection], Any]) -> Callable[[Connection, Manager], None]:
    def call(conn: Connection, manager: Manager) -> None:
        with expecting(TypeError, ValueError):
            function(conn)

    return call


#: What on_connect, or a handler, does with its connection, and whether that lets it in.
DEEDS: dict[str, tuple[Callable[[Connection, Manager], Any], bool]] = {
    "nothing": (lambda conn, manager: None, False),
    "context": (lambda conn, manager: setattr(conn, "context", "Ada"), False),
    "looks": (lambda conn, manager: (
        str(conn), conn.state, conn.groups, conn.request.args, conn.latency, conn.queued_bytes, conn.connected,
        conn.close_code), False),
    "looks at others": (lambda conn, manager: (
        manager.connections, manager.in_group("a"), manager.get(conn.id), manager.stats(), manager.dump()), False),
    "leave": (lambda conn, manager: conn.leave("a"), False),
    "manager.close": (lambda conn, manager: manager.close(), False),
    "manager.close_where": (lambda conn, manager: manager.close_where(lambda conn: True), False),
    "join of no group": (refused(lambda conn: conn.join(7)), False),  # type: ignore[arg-type]
    "post of no payload": (refused(lambda conn: conn.post(7)), False),  # type: ignore[arg-type]
    "ping with a number": (refused(lambda conn: conn.ping(20)), False),  # type: ignore[arg-type]
    "send_json of a set": (refused(lambda conn: conn.send_json({1})), False),
    "close(1005)": (refused(lambda conn: conn.close(1005)), False),
    "close(reason=1000)": (refused(lambda conn: conn.close(reason=1000)), False),  # type: ignore[arg-type]
    "a broadcast of another thread": (lambda conn, manager: in_another_thread(manager.broadcast, "x"), False),
    "close": (lambda conn, manager: conn.close(), False),
    "terminate": (lambda conn, manager: conn.terminate(), False),
    "join": (lambda conn, manager: conn.join("a"), True),
    "send": (lambda conn, manager: conn.send("a"), True),
    "send of much": (lambda conn, manager: conn.send(bytes(40_000)), True),
    "send_json": (lambda conn, manager: conn.send_json({}), True),
    "post": (lambda conn, manager: conn.post("a"), True),
    "ping": (lambda conn, manager: conn.ping(), True),
    "receive": (lambda conn, manager: receive_in_vain(conn), True),
    "receive_json": (lambda conn, manager: receive_json_in_vain(conn), True),
    "broadcast": (lambda conn, manager: manager.broadcast("x"), True),
    "broadcast to others": (lambda conn, manager: manager.broadcast("x", to="a", exclude=conn), True),
    "send of another thread": (lambda conn, manager: in_another_thread(conn.send, "a"), True),
    "join of another thread": (lambda conn, manager: in_another_thread(conn.join, "a"), True),
}


def in_another_thread(function: Callable[..., Any], *args: Any) -> None:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


@pytest.mark.parametrize("is_simple", [False, True], ids=["callbacks", "handler"])
@pytest.mark.parametrize("deed", DEEDS)
def test_what_lets_a_connection_in(connect: Connect, deed: str, is_simple: bool) -> None:
    act, lets_in = DEEDS[deed]
    seen: list[tuple[Connection, ...]] = []
    done, release = threading.Event(), threading.Event()

    def callback(conn: Connection) -> None:
        act(conn, manager)
        seen.append(manager.connections)
        done.set()
        assert release.wait(TIMEOUT)

    manager: Manager = SimpleManager(callback) if is_simple else ListenableManager(on_connect=callback)
    conn, _ = connect(manager)
    assert done.wait(TIMEOUT)
    assert seen == [(conn,) if lets_in else ()]
    assert manager.connections == seen[0]
    assert manager.get(conn.id) is (conn if lets_in else None)
    conn.terminate()
    release.set()
    wait_until(lambda: conn.closed)
    assert manager.connections == ()


def test_ada_hears_that_she_joined(connect: Connect) -> None:
    manager = ListenableManager()
    results: list[Broadcast] = []

    @manager.on_connect
    def on_connect(conn: Connection) -> None:
        name = conn.request.args["name"]
        results.append(manager.broadcast(f"{name} joined"))
        conn.join("room")
        results.append(manager.broadcast(f"{name} is in the room", to="room"))

    peers = []
    for name in ("Ada", "Bob"):
        peers.append(connect(manager, f"/?name={name}")[1])
        for peer in peers:
            assert peer.read() == (Opcode.TEXT, f"{name} joined".encode())
            assert peer.read() == (Opcode.TEXT, f"{name} is in the room".encode())
    wait_until(lambda: len(results) == 4)
    assert [result.sent for result in results] == [1, 1, 2, 2]


# Strangers


class Lobby:
    """Threads that broadcast all the time."""

    def __init__(self, manager: Manager, threads: int = 3) -> None:
        self._manager = manager
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._broadcast) for _ in range(threads)]
        self.count = 0

    def __enter__(self) -> Lobby:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def _broadcast(self) -> None:
        while not self._over.is_set():
            self._manager.broadcast("for members only")
            self._manager.broadcast(bytes(300), exclude="nobody")
            self.count += 2
            time.sleep(0.0002)


def everything(peer: Peer) -> list[tuple[int, bytes]]:
    """Return all that a peer reads, answering the Close."""
    frames = []
    with suppress(EOFError, ConnectionResetError):
        while True:
            frames.append(peer.read())
            if frames[-1][0] == Opcode.CLOSE:
                with suppress(OSError):
                    peer.send(Opcode.CLOSE, frames[-1][1])
    return frames


def check_user(conn: Connection) -> None:
    """Look the user up, as a database does that takes 2 ms."""
    time.sleep(0.002)


def refuse_by_close(conn: Connection) -> None:
    check_user(conn)
    conn.close(4403)


def refuse_by_exception(conn: Connection) -> None:
    check_user(conn)
    raise PermissionError


def refuse_by_cut(conn: Connection) -> None:
    check_user(conn)
    conn.terminate()


REFUSALS: dict[str, tuple[Callable[[Connection], None], list[bytes]]] = {
    "closes": (refuse_by_close, [b"\x11\x33"]),
    "raises": (refuse_by_exception, [b"\x03\xf3"]),
    "cuts": (refuse_by_cut, []),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("style", ["callbacks", "handler", "handler that returns"])
def test_strangers_read_no_broadcast(connect: Connect, style: str, refusal: str) -> None:
    refuse, close = REFUSALS[refusal]
    if style == "handler that returns":
        refuse, close = check_user, [b"\x03\xe8"]

    def admit_the_first(conn: Connection) -> None:
        if conn.request.path == "/member":
            conn.join("members")
            if style != "callbacks":
                list(conn)
        else:
            refuse(conn)

    manager: Manager = (
        ListenableManager(on_connect=admit_the_first) if style == "callbacks" else SimpleManager(admit_the_first))
    member, member_peer = connect(manager, "/member")
    wait_until(lambda: len(manager.connections) == 1)
    read: list[list[tuple[int, bytes]]] = []
    heard: list[list[tuple[int, bytes]]] = []

    def knock() -> None:
        for _ in range(8):
            read.append(everything(connect(manager, "/stranger")[1]))

    listener = threading.Thread(target=lambda: heard.append(everything(member_peer)))
    knocking = [threading.Thread(target=knock) for _ in range(5)]
    with Lobby(manager) as lobby:
        for thread in (listener, *knocking):
            thread.start()
        for thread in knocking:
            thread.join()
        assert list(manager.connections) == [member]
    member.close()
    listener.join()
    assert read == [[(Opcode.CLOSE, code) for code in close]] * 40
    assert len(heard[0]) > 10 and lobby.count > 10
    wait_until(lambda: manager.stats()["threads"] == 0)
    assert manager.connections == ()


def slow_check(refuse: Callable[[], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that refuses everybody, such as login_required."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def view(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0.002)
            return refuse()

        return view

    return decorate


@pytest.mark.parametrize("refuse, code", [
    (lambda: abort(403), 4403), (lambda: redirect("/login"), 4302), (lambda: ("no", 401), 4401),
    (lambda: "a page", 1000), (lambda: None, 1000), (lambda: 1 / 0, 1011),
], ids=["abort", "redirect", "tuple", "page", "nothing", "exception"])
def test_a_decorator_below_the_route_lets_nobody_read(refuse: Callable[[], Any], code: int) -> None:
    app = Flask(__name__)
    ws = WebSockets(app)

    @ws.route("/secret")
    @slow_check(refuse)
    def secret(conn: Connection) -> None:
        raise AssertionError("it was let through")

    @ws.route("/open")
    def open_to_all(conn: Connection) -> None:
        list(conn)

    ends: list[int | None] = []

    def knock() -> None:
        for _ in range(5):
            with testing.connect(app, "/secret") as client:
                with pytest.raises(ConnectionClosed) as caught:
                    client.receive()
                ends.append(caught.value.code)

    with testing.connect(app, "/open") as member, Lobby(ws.manager, threads=2):
        threads = [threading.Thread(target=knock) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert member.receive() == "for members only"
    assert ends == [code] * 20
    assert ws.manager.connections == ()


def test_a_mounted_manager_lets_nobody_read_before_its_on_connect_has_returned() -> None:
    app = Flask(__name__)
    closed: list[tuple[Any, int | None]] = []
    manager = ListenableManager(on_close=lambda conn: closed.append((conn.context, conn.close_code)))
    WebSockets(app).mount("/chat", manager)

    @manager.on_connect
    def on_connect(conn: Connection) -> None:
        check_user(conn)
        abort(403)

    with Lobby(manager):
        for _ in range(20):
            with testing.connect(app, "/chat") as client:
                with pytest.raises(ConnectionClosed) as caught:
                    client.receive()
            assert caught.value.code == 4403
    assert closed == [(None, 4403)] * 20


# Ends


def test_a_closed_peer_that_does_not_answer_leaves_at_once(connect: Connect, held: Held) -> None:
    manager = held.manager
    conn, peer = connect(manager)
    assert held.entered.wait(TIMEOUT)
    conn.join("room")
    assert manager.connections == manager.in_group("room") == (conn,)
    conn.close(4401, "who are you?")
    assert manager.connections == manager.in_group("room") == ()
    assert manager.get(conn.id) is None
    assert conn.groups == frozenset()
    assert (conn.connected, conn.closed, conn.state) == (False, False, State.CLOSING)
    assert (conn.close_code, conn.close_reason) == (None, None)
    assert manager.stats()["connections"] == {"open": 0, "closing": 1}
    assert not manager.broadcast("x")
    assert manager.broadcast("x", to=conn).failed == 1
    assert manager.close(to=conn) == manager.close() == 0
    assert peer.read() == (Opcode.CLOSE, b"\x11\x31who are you?")
    held.release.set()
    peer.close_frame(4402, "nobody")
    wait_until(lambda: conn.closed)
    assert (conn.close_code, conn.close_reason) == (4402, "nobody")


ENDS: dict[str, Callable[[Manager, Connection, Peer], Any]] = {
    "close": lambda manager, conn, peer: conn.close(),
    "terminate": lambda manager, conn, peer: conn.terminate(),
    "manager.close": lambda manager, conn, peer: manager.close(to=conn),
    "close_where": lambda manager, conn, peer: manager.close_where(lambda one: one is conn),
    "shutdown": lambda manager, conn, peer: manager.shutdown(timeout=0),
    "the peer's Close": lambda manager, conn, peer: peer.close_frame(),
    "a violation": lambda manager, conn, peer: peer.send(0x3, b"reserved"),
    "no UTF-8": lambda manager, conn, peer: peer.send(Opcode.TEXT, b"\xff"),
    "EOF": lambda manager, conn, peer: peer.socket.shutdown(socket.SHUT_WR),
    "a reset": lambda manager, conn, peer: peer.reset(),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_is_an_end_of_membership(connect: Connect, end: str) -> None:
    """A peer that does not answer stays in nothing until the closing handshake is over."""
    manager = ListenableManager()
    conn, peer = connect(manager)
    conn.join("room")
    ENDS[end](manager, conn, peer)
    wait_until(lambda: not manager.connections)
    assert not conn.connected
    assert manager.in_group("room") == () and conn.groups == frozenset()
    for call in (
        lambda: conn.join("room"), lambda: conn.send("x"), lambda: conn.post("x"), conn.ping,
        lambda: conn.send_json(1),
    ):
        with pytest.raises(ConnectionClosed):
            call()
    conn.leave("room")
    conn.close()
    assert manager.connections == manager.in_group("room") == ()
    assert not manager.broadcast("x")


def test_no_call_lets_in_what_is_closing(connect: Connect) -> None:
    errors: list[type[Exception]] = []
    results: list[object] = []

    def on_connect(conn: Connection) -> None:
        conn.close(4401)
        for call in (
            lambda: conn.join("room"), lambda: conn.send("x"), lambda: conn.post("x"), conn.ping, conn.receive,
            conn.receive_json, lambda: conn.send_json(1),
        ):
            try:
                call()
            except ConnectionClosed as error:
                errors.append(type(error))
        results.extend([list(conn), manager.broadcast("x"), manager.connections, manager.in_group("room")])

    manager = ListenableManager(on_connect=on_connect)
    conn, peer = connect(manager)
    assert peer.read_close() == 4401
    peer.close_frame(4401)
    assert peer.at_eof()
    assert errors == [ConnectionClosed] * 7
    assert results == [[], Broadcast(0, 0, 0, 0), (), ()]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_on_close_of_a_connection_that_was_refused(connect: Connect, refusal: str) -> None:
    """It comes once, and context is what on_connect left there."""
    calls: list[tuple[str, Any]] = []
    done = threading.Event()
    refuse, _ = REFUSALS[refusal]

    def on_connect(conn: Connection) -> None:
        calls.append(("connect", conn.context))
        if conn.request.path == "/known":
            conn.context = "Ada"
        refuse(conn)

    def on_close(conn: Connection) -> None:
        calls.append(("close", conn.context))
        assert conn.closed and conn.groups == frozenset()
        assert manager.connections == () and not manager.broadcast(f"{conn.context} left")
        done.set()

    manager = ListenableManager(on_connect=on_connect, on_close=on_close)
    for path, context in (("/unknown", None), ("/known", "Ada")):
        everything(connect(manager, path)[1])
        assert done.wait(TIMEOUT)
        wait_until(lambda: manager.stats()["threads"] == 0)
        assert calls == [("connect", None), ("close", context)]
        calls.clear()
        done.clear()


# Shutdown, and limits


def test_a_shutdown_reaches_strangers(connect: Connect, held: Held) -> None:
    conn, peer = connect(held.manager)
    assert held.entered.wait(TIMEOUT)
    assert held.manager.shutdown(timeout=0) is False
    assert peer.read_close() == 1001
    held.release.set()
    with suppress(OSError):  # No time was left for the handshake.
        peer.close_frame(1001)
    assert held.manager.shutdown(timeout=TIMEOUT) is True
    assert conn.closed and held.manager.connections == ()


def test_a_shutdown_reaches_who_arrives_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that opens while the others are being listed is told, or listed."""
    manager = ListenableManager()
    hub = hub_of(manager)
    ours, theirs = socket.socketpair()
    conn = hub.prepare(Snapshot(Request(EnvironBuilder("/").get_environ())), None, None)
    list_alive = hub.alive

    def list_and_let_arrive() -> list[Connection]:
        listed = list_alive()
        if conn.state is State.CONNECTING:
            link_of(conn).open(Transport(theirs), b"", b"")
            wait_until(list_alive)
        return listed

    monkeypatch.setattr(hub, "alive", list_and_let_arrive)
    with ours:
        hub.begin_shutdown(Close(4001))
        assert Peer(ours).read_close() == 4001


def test_strangers_count_against_the_limits(connect: Connect) -> None:
    """They have a thread and a socket like the others."""
    held = Held(max_connections=1)
    connect(held.manager)
    with pytest.raises(HandshakeError, match="max_connections is 1"):
        prepare(held.manager, None)
    held.release.set()


# Races


LETTING_IN: dict[str, Callable[[Manager, Connection], Any]] = {
    "join": lambda manager, conn: conn.join("room"),
    "send": lambda manager, conn: conn.send("x"),
    "post": lambda manager, conn: conn.post("x"),
    "broadcast": lambda manager, conn: manager.broadcast("x"),
    "return": lambda manager, conn: None,
}
CLOSING: dict[str, Callable[[Connection, Peer], Any]] = {
    "close": lambda conn, peer: conn.close(),
    "terminate": lambda conn, peer: conn.terminate(),
    "reset": lambda conn, peer: peer.reset(),
}


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_threads")
@pytest.mark.parametrize("closing", CLOSING)
@pytest.mark.parametrize("letting_in", LETTING_IN)
def test_letting_in_races_closing(connect: Connect, letting_in: str, closing: str) -> None:
    """Whoever is first, nobody stays who is closing."""
    let_in, close = LETTING_IN[letting_in], CLOSING[closing]
    at_once = threading.Barrier(2)

    def on_connect(conn: Connection) -> None:
        at_once.wait(TIMEOUT)
        let_in(manager, conn)

    errors: list[Exception] = []
    manager = ListenableManager(on_connect=on_connect, on_error=lambda conn, error: errors.append(error))
    for _ in range(200):
        conn, peer = connect(manager)
        with peer.socket:
            at_once.wait(TIMEOUT)
            close(conn, peer)
            if closing != "reset":
                assert manager.get(conn.id) is None and conn not in manager.in_group("room")
    wait_until(lambda: manager.stats()["threads"] == 0)
    assert manager.connections == manager.in_group("room") == ()
    assert errors == []


@pytest.mark.parametrize("end", [Connection.close, Connection.terminate])
def test_an_end_waits_for_letting_in(monkeypatch: pytest.MonkeyPatch, end: Callable[[Connection], None]) -> None:
    """The worst moment for it, each time."""
    over = threading.Event()
    manager = SimpleManager(lambda conn: conn.context.wait(TIMEOUT))
    conn, peer = prepare(manager, over)
    registry = hub_of(manager).registry
    add = registry.add
    ending = threading.Thread(target=end, args=(conn,))

    def end_and_add(key: str, member: Connection) -> None:
        ending.start()
        ending.join(0.05)  # It must not get far.
        add(key, member)

    monkeypatch.setattr(registry, "add", end_and_add)
    with peer.socket:
        with suppress(ConnectionClosed):
            conn.join("room")
        ending.join()
        assert manager.connections == manager.in_group("room") == ()
        over.set()


@pytest.mark.usefixtures("eager_threads")
def test_many_threads_race_for_one_connection() -> None:
    """Joins, sends and closes of several threads, for connections that nobody has let in."""
    manager = SimpleManager(lambda conn: conn.context.wait(TIMEOUT))
    for _ in range(100):
        at_once, over = threading.Barrier(5), threading.Event()

        def race(act: Callable[[], Any]) -> None:
            at_once.wait(TIMEOUT)
            with suppress(ConnectionClosed):
                act()

        with ExitStack() as stack:
            conn, peer = prepare(manager, over)
            stack.enter_context(peer.socket)
            acts: list[Callable[[], Any]] = [
                lambda: conn.join("a"), lambda: conn.join("b"), lambda: conn.post("x"), lambda: conn.leave("a"),
                lambda: conn.close(4001),
            ]
            threads = [threading.Thread(target=race, args=(act,)) for act in acts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert manager.connections == manager.in_group("a") == manager.in_group("b") == ()
            over.set()
    wait_until(lambda: manager.stats()["threads"] == 0)


def prepare(manager: Manager, context: Any) -> tuple[Connection, Peer]:
    """Open a connection that has a context before its thread runs."""
    conn = hub_of(manager).prepare(Snapshot(Request(EnvironBuilder("/").get_environ())), None, None)
    ours, theirs = socket.socketpair()
    conn.context = context
    link_of(conn).open(Transport(theirs), b"", b"")
    return conn, Peer(ours)


def test_a_broadcast_beside_arrivals_and_ends(connect: Connect) -> None:
    """Members come and go while others broadcast; each gets what was sent while it was one, and then its Close."""
    manager = ListenableManager(on_connect=lambda conn: conn.join("room"))
    with Lobby(manager, threads=2):
        for _ in range(100):
            conn, peer = connect(manager)
            conn.join("room")
            manager.broadcast("for all", to="room")
            conn.close()
            frames = everything(peer)
            assert (Opcode.TEXT, b"for all") in frames
            assert frames[-1] == (Opcode.CLOSE, b"\x03\xe8")
    wait_until(lambda: manager.stats()["threads"] == 0)
    assert manager.connections == manager.in_group("room") == ()


def test_the_handler_style_without_a_use(connect: Connect) -> None:
    """A handler that only looks is never let in, whatever happens around it."""
    looked = threading.Event()

    def handler(conn: Connection) -> None:
        while not conn.closed and conn.connected:
            looked.set()
            time.sleep(0.001)

    conn, peer = run_handler(connect, handler)
    assert looked.wait(TIMEOUT)
    conn.close(4000)
    assert everything(peer) == [(Opcode.CLOSE, b"\x0f\xa0")]
