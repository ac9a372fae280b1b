"""Locks that the calling thread may hold already: calls from ``__del__`` and signal handlers never hang."""

from __future__ import annotations

import ast
import gc
import io
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any, cast

import pytest
from layers import FILES, FLOORS
from peer import TIMEOUT, Connect, Peer, Recorder, connect, members, sender_of
from servers import wait_until
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Response

from wsthread import (
    Connection, ConnectionClosed, Deflate, History, ListenableManager, Manager, Opcode, Upgrader, locks, servers,
)
from wsthread.connection import link_of
from wsthread.locks import taking
from wsthread.manager import hub_of
from wsthread.upgrader import _Body
from wsthread.wire.deflate import agree

__all__ = ["connect"]


class Interrupting(dict[str, Connection]):
    """The members of a registry, which are interrupted when somebody looks at them under the registry's lock."""

    def __init__(self, members: dict[str, Connection], interrupt: Callable[[], object]) -> None:
        super().__init__(members)
        self.interrupt = interrupt

    def values(self) -> Any:
        """Be interrupted."""
        self.interrupt()
        return super().values()


class Doomed:
    """An object that calls something when the collector finds it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.itself = self

    def __del__(self) -> None:
        self.call()


CALLS: dict[str, Callable[[Manager, Connection], object]] = {
    "broadcast": lambda manager, conn: manager.broadcast("x"),
    "connections": lambda manager, conn: manager.connections,
    "close": lambda manager, conn: conn.close(),
    "terminate": lambda manager, conn: conn.terminate(),
    "join": lambda manager, conn: conn.join("x"),
    "stats": lambda manager, conn: manager.stats(),
    "dump": lambda manager, conn: manager.dump(),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", CALLS)
def test_a_finalizer_within_the_registry(connect: Connect, name: str) -> None:
    recorder = Recorder()
    manager = recorder.manager
    (conn, peer), (other, other_peer) = members(manager, connect, 2)
    results: list[object] = []

    def call() -> None:
        try:
            results.append(CALLS[name](manager, conn))
        except RuntimeError as error:
            results.append(error)

    def interrupt() -> None:
        vars(registry)["_members"] = plain
        Doomed(call)
        gc.collect()

    registry = hub_of(manager).registry
    plain = dict(vars(registry)["_members"])
    vars(registry)["_members"] = Interrupting(plain, interrupt)
    assert manager.broadcast("a")
    assert len(results) == 1
    if name not in ("stats", "close", "terminate"):  # Those need not wait for the registry's lock to do their work.
        assert isinstance(results[0], RuntimeError) and "let another thread" in str(results[0])
    assert other_peer.read() == (Opcode.TEXT, b"a")
    other.send("b")  # Nothing is left locked.
    assert other_peer.read() == (Opcode.TEXT, b"b")
    conn.close()
    peer.close_frame()
    other_peer.close_frame()
    assert recorder.closed.wait(TIMEOUT)


@pytest.mark.timeout(30)
def test_a_finalizer_within_a_send(connect: Connect) -> None:
    """The rest of the package may be interrupted anywhere, too."""
    manager = ListenableManager()
    (conn, peer), = members(manager, connect, 1)
    errors: list[BaseException] = []

    def call() -> None:
        for action in (lambda: conn.send("b"), lambda: conn.post("c"), conn.ping, conn.close, conn.terminate):
            try:
                action()
            except RuntimeError as error:
                errors.append(error)

    sender = sender_of(conn)
    write = sender.write_control

    def interrupted(data: bytes) -> None:
        Doomed(call)
        gc.collect()
        write(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sender), "write_control", lambda self, data: interrupted(data))
        conn.ping(b"a")
    assert len(errors) == 5
    assert peer.read() == (Opcode.PING, b"a")
    conn.send("d")
    assert peer.read() == (Opcode.TEXT, b"d")


def test_another_threads_lock_is_waited_for() -> None:
    """Also in a finalizer, for a moment."""
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(0.02, lock.release).start()
    with taking(lock):
        pass


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """Return an event that ends what a test has started."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.timeout(60)
def test_callbacks_are_no_interruptions(connect: Connect, stop: threading.Event) -> None:
    """Code that the library calls on purpose may call it, however much others hold its locks."""
    errors: list[BaseException] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(lambda: manager.broadcast("logged"))

    def note(action: Callable[[], object]) -> None:
        try:
            action()
        except RuntimeError as error:
            errors.append(error)

    manager = ListenableManager(
        on_connect=lambda conn: note(lambda: conn.join("all")),
        on_message=lambda conn, opcode, payload: note(lambda: manager.broadcast("all", to="all", exclude=conn)),
        on_slow=lambda conn: note(lambda: manager.broadcast("slow", exclude=conn)),
        on_close=lambda conn: note(lambda: manager.broadcast("gone")),
        max_outbox_size=10_000, overflow="drop_oldest")
    logger, handler = logging.getLogger("wsthread"), Handler()
    logger.addHandler(handler)
    try:
        pairs = members(manager, connect, 8)

        def hammer(peer: Any) -> None:
            while not stop.is_set():
                peer.send(Opcode.TEXT, b"go")

        threads = [threading.Thread(target=hammer, args=(peer,)) for _, peer in pairs]
        threads += [threading.Thread(
            target=lambda: [manager.close_where(lambda conn: not manager.connections) for _ in range(2000)])]
        for thread in threads:
            thread.start()
        stop.wait(1.0)
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
    finally:
        logger.removeHandler(handler)
    assert errors == []


#: What a thread may be interrupted in, with the options of its manager.
WORK: dict[str, tuple[dict[str, Any], Callable[[Manager, Connection], object]]] = {
    "broadcast": ({}, lambda manager, conn: manager.broadcast("x" * 2000)),
    "broadcast large": ({}, lambda manager, conn: manager.broadcast(bytes(1 << 20))),
    "broadcast to a group": ({}, lambda manager, conn: manager.broadcast("x", to=["group", conn], exclude=conn)),
    "broadcast, kept": (
        {"history": History(count=10)}, lambda manager, conn: manager.broadcast("x", to={"group"}, exclude=conn)),
    "send": ({}, lambda manager, conn: conn.send("x" * 2000)),
    "send large": ({}, lambda manager, conn: conn.send(bytes(1 << 20))),
    "post": ({}, lambda manager, conn: conn.post("x" * 2000)),
    "ping": ({}, lambda manager, conn: conn.ping(b"x")),
    "join": ({}, lambda manager, conn: conn.join("another", info={"name": "x"})),
    "leave": ({}, lambda manager, conn: conn.leave("group")),
    "notify": ({}, lambda manager, conn: manager.notify("x")),
    "close": ({}, lambda manager, conn: conn.close()),
    "close all": ({}, lambda manager, conn: manager.close()),
    "terminate": ({}, lambda manager, conn: conn.terminate()),
    "stats": ({}, lambda manager, conn: manager.stats()),
    "dump": ({}, lambda manager, conn: manager.dump()),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["alone", "bus", "compressed"])
@pytest.mark.parametrize("name", WORK)
def test_interrupted_at_each_step(connect: Connect, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    """Whichever of its functions the library is in, a signal handler that calls it gets a RuntimeError at worst.

    Python tells a profiler of each call and each return. It runs signal handlers there, too.
    """
    monkeypatch.setattr(locks, "_PATIENCE", 0.002)
    if kind == "bus":
        monkeypatch.setattr(servers, "room", lambda: (str(os.getpid()),))
    options, work = WORK[name]
    manager = ListenableManager(name=name, ping_interval=None, **options)
    deflate = Deflate(server_context_takeover=True)
    agreement = agree(deflate, "permessage-deflate") if kind == "compressed" else None
    pairs = [connect(manager, agreement=agreement) for _ in range(2)]
    wait_until(lambda: len(manager.connections) == 2)
    for conn, peer in pairs:
        conn.join("group")
        threading.Thread(target=_drain, args=(peer,), daemon=True).start()
    conn = pairs[0][0]
    calls: list[Callable[[], object]] = [
        manager.stats, lambda: manager.broadcast("y"), lambda: conn.post("y"), lambda: conn.send("y"),
        lambda: manager.notify("y"),
    ]
    steps = 0

    def interrupt(frame: FrameType, event: str, arg: object) -> None:
        nonlocal steps
        if not frame.f_globals.get("__name__", "").startswith("wsthread"):
            return
        sys.setprofile(None)
        try:
            for call in calls:
                try:
                    call()
                except (ConnectionClosed, RuntimeError):
                    pass
            steps += 1
        finally:
            sys.setprofile(interrupt)

    sys.setprofile(interrupt)
    try:
        work(manager, conn)
    finally:
        sys.setprofile(None)
    assert steps > 3
    manager.shutdown(timeout=0)


def _drain(peer: Peer) -> None:
    try:
        while peer.socket.recv(1 << 16):
            pass
    except OSError:  # The test is over.
        pass


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["compression", "origins", "to"])
def test_functions_of_options_are_no_interruptions(connect: Connect, name: str) -> None:
    """Another thread may hold a lock for longer than an interruption would be waited for."""
    manager = ListenableManager(backplane=None)
    members(manager, connect, 1)
    lock = vars(hub_of(manager).registry)["_lock"]

    def count(*args: Any) -> bool:
        lock.acquire()
        threading.Timer(5 * locks._PATIENCE, lock.release).start()
        return len(manager.connections) == 1

    if name == "to":
        assert manager.broadcast("x", to=(group for group in ("group", "other") if count()))._asdict() == {
            "sent": 0, "queued": 0, "dropped": 0, "failed": 0}
    else:
        headers = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Origin": "http://other",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions": "permessage-deflate"}
        options: dict[str, Any] = {
            "compression": lambda environ: Deflate() if count() else None, "origins": lambda origin: count()}
        upgrader = Upgrader(manager, **{"origins": "*", name: options[name]})
        ours, theirs = socket.socketpair()
        with ours, theirs:
            environ = EnvironBuilder("/", headers=list(headers.items())).get_environ()
            response = upgrader.upgrade({**environ, "werkzeug.socket": ours})
        assert (response.status_code, "Sec-WebSocket-Extensions" in response.headers) == (101, True)


@pytest.mark.timeout(30)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_finalizer_of_the_library(connect: Connect) -> None:
    """It has one itself, of a 101 that the server never got, and that calls what the application does at its end."""
    manager = ListenableManager()
    members(manager, connect, 1)
    errors: list[str] = []

    def broadcast() -> None:
        with pytest.raises(RuntimeError) as error:
            manager.broadcast("a new one")
        errors.append(str(error.value))

    response = Response()
    response.call_on_close(broadcast)

    class Gone:
        transport = io.BytesIO()

        def release(self) -> None:
            raise ConnectionError("there is no socket")

    registry = hub_of(manager).registry
    link = link_of(manager.connections[0])
    bodies = [_Body(response, link, cast(Any, Gone()), b"")]
    plain = vars(registry)["_members"]
    vars(registry)["_members"] = SimpleNamespace(values=bodies.clear)  # In C, so that no frame is in between.
    with pytest.raises(TypeError):
        manager.broadcast("a")
    vars(registry)["_members"] = plain
    assert len(errors) == 1 and "let another thread" in errors[0]


def test_the_places_where_the_application_is_called() -> None:
    """All modules from the floor of the manager on, the client, and some functions."""
    floors = FLOORS[next(number for number, floor in enumerate(FLOORS) if "manager" in floor):]
    above = {module.partition(".")[0] for floor in floors for module in floor}
    assert locks._OUTER == above | {"client", "client_socket"}
    for place in locks._ON_PURPOSE:
        module, _, function = place.rpartition(".")
        tree = ast.parse(FILES[module].read_text())
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, place


SIGNALS = """
import signal, socket, threading, time
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request
from wsthread import ListenableManager
from wsthread.connection import link_of
from wsthread.manager import hub_of
from wsthread.wire.deflate import agree
from wsthread.transport import Transport
from wsthread.snapshot import Snapshot

manager = ListenableManager(ping_interval=None, close_timeout=1.0)
ends = []
for _ in range(3):
    ours, theirs = socket.socketpair()
    ends.append(theirs)
    conn = hub_of(manager).prepare(Snapshot(Request(EnvironBuilder("/").get_environ())), None, None)
    link_of(conn).open(Transport(ours), b"", b"")
while len(manager.connections) < 3:
    time.sleep(0.01)

def drain():
    while all(end.recv(1 << 16) for end in ends):
        pass

threading.Thread(target=drain, daemon=True).start()
handled = refused = 0

def handle(*args):
    global handled, refused
    try:
        manager.broadcast("signal" * 2000)
        handled += 1
    except RuntimeError:
        refused += 1
    finally:
        if time.monotonic() < end:
            signal.setitimer(signal.ITIMER_REAL, 0.001)

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
end = time.monotonic() + 3
rounds = 0
while time.monotonic() < end:
    manager.broadcast("x" * 5000)
    manager.connections[0].send("y" * 5000)
    manager.stats()
    rounds += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(handled > 0, rounds > 0)
"""


def test_signal_handlers_that_broadcast() -> None:
    result = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=60)
    assert (result.stdout.split(), result.returncode) == (["True", "True"], 0), result.stderr
