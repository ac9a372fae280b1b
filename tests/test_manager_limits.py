"""Limits, deadlines, callbacks that misbehave, and what an operator sees."""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from clients import RawClient, ask, handshake
from peer import TIMEOUT, Connect, Peer, Recorder, connect, run_handler
from servers import TESTS, serve, wait_until
from werkzeug.serving import make_server
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from wsthread import (
    Connection, ConnectionClosed, HandshakeError, ListenableManager, Manager, Opcode, SimpleManager, State, Upgrader,
)
from wsthread.connection import link_of
from wsthread.manager import hub_of
from wsthread.speedups import active

__all__ = ["connect"]


def open_all(manager: Manager, connect: Connect, number: int) -> list[tuple[Connection, Peer]]:
    """Open connections and wait until all of them are registered."""
    pairs = [connect(manager) for _ in range(number)]
    wait_until(lambda: len(manager.connections) == number)
    return pairs


def refused(manager: Manager) -> HandshakeError:
    """Return why no more connections are accepted."""
    environ = EnvironBuilder("/ws", environ_base={"REMOTE_ADDR": "127.0.0.1"}).get_environ()
    with pytest.raises(HandshakeError) as error:
        hub_of(manager).prepare(Request(environ), None, None)
    assert ("Retry-After", "5") in error.value.headers
    return error.value


# Limits


def work(conn: Connection, seconds: float) -> None:
    """Be busy for a while and answer."""
    time.sleep(seconds)
    conn.send("done")


def test_max_connections(connect: Connect) -> None:
    recorder = Recorder(max_connections=2)
    (_, peer), _ = open_all(recorder.manager, connect, 2)
    error = refused(recorder.manager)
    assert error.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "max_connections is 2" in error.reason
    peer.close_frame()
    recorder.wait_closed()
    wait_until(lambda: recorder.manager.stats()["threads"] == 1)
    connect(recorder.manager)
    refused(recorder.manager)


def test_max_connections_per_address(connect: Connect) -> None:
    recorder = Recorder(max_connections_per_address=2)
    open_all(recorder.manager, connect, 2)
    error = refused(recorder.manager)
    assert error.status == HTTPStatus.TOO_MANY_REQUESTS
    assert "max_connections_per_address is 2" in error.reason


@pytest.mark.parametrize("options", ['{"max_connections": 2}', '{"max_connections_per_address": 2}'])
def test_limits_on_a_server(options: str) -> None:
    status = 503 if "per_address" not in options else 429
    with serve("gthread", "apps.fleet:app", env={"MANAGER": options}) as server:
        with RawClient(server.port).open("/ws") as first, RawClient(server.port).open("/ws"):
            for _ in range(2):
                found, headers, body = ask(server.port, handshake("/ws", server.port))
                assert (found, headers["Retry-After"]) == (status, "5")
                assert body == f"No more connections: {options[2:options.index(':') - 1]} is 2.\n"
            first.reset()
            wait_until(lambda: server.stats()["threads"] == 1)
            with RawClient(server.port).open("/ws"):
                wait_until(lambda: server.stats()["accepted"] == 3)
                stats = server.stats()
        assert list(stats["refused"].values()) == [2]
        assert next(iter(stats["refused"])).startswith(f"{status} ")
        assert server.log().count("refused handshake: 'GET' '/ws' from '127.0.0.1': ") == 2
        assert server.errors() == []


def test_max_message_rate(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(max_message_rate=20)
    _, peer = connect(recorder.manager)
    peer.socket.sendall(b"\x81\x81\0\0\0\0a" * 20)  # One second's worth at once is fine, also in the beginning.
    wait_until(lambda: len(recorder.messages) == 20)
    started = time.monotonic()
    while not select.select([peer.socket], [], [], 0)[0]:
        peer.send(Opcode.TEXT, b"b")
    assert peer.read_close() == 1008
    peer.close_frame(1008)
    assert recorder.wait_closed() == (1008, "")
    assert len(recorder.messages) <= 20 + 20 * (time.monotonic() - started) + 1
    assert "more than 20 messages per second" in caplog.text


def test_a_slow_message_rate_lets_one_message_through(connect: Connect) -> None:
    recorder = Recorder(max_message_rate=0.01)
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"a")
    peer.send(Opcode.TEXT, b"b")
    assert peer.read_close() == 1008
    assert recorder.messages == [(Opcode.TEXT, "a")]


def test_read_timeout(connect: Connect) -> None:
    recorder = Recorder(read_timeout=0.5)
    _, peer = connect(recorder.manager)
    started = time.monotonic()
    for _ in range(3):
        time.sleep(0.3)
        peer.send(Opcode.TEXT, b"here")
    assert peer.read() == (Opcode.CLOSE, b"\x03\xe9no message for 0.5 s")
    assert time.monotonic() - started >= 0.9 + 0.5
    peer.close_frame(1001)
    assert recorder.wait_closed() == (1001, "")
    assert len(recorder.messages) == 3


def test_read_timeout_while_a_callback_works(connect: Connect) -> None:
    recorder = Recorder(read_timeout=0.3)
    recorder.manager.on_message = lambda conn, opcode, payload: work(conn, 1.0)
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"work")
    assert peer.read() == (Opcode.TEXT, b"done")
    assert peer.read_close() == 1001


# Threads that do not start


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that keeps threads from starting, or lets them start again."""
    start = threading.Thread.start
    allowed = True

    def try_to_start(thread: threading.Thread) -> None:
        if not allowed:
            raise RuntimeError("can't start new thread")
        start(thread)

    def forbid(forbidden: bool) -> None:
        nonlocal allowed
        allowed = not forbidden

    monkeypatch.setattr(threading.Thread, "start", try_to_start)
    return forbid


def test_a_thread_that_cannot_start(connect: Connect, no_threads: Callable[[bool], None]) -> None:
    recorder = Recorder(max_connections=2)
    open_all(recorder.manager, connect, 1)
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    no_threads(True)
    for _ in range(5):
        error = refused(recorder.manager)
        assert error.status == HTTPStatus.SERVICE_UNAVAILABLE
        assert "no thread can be started" in error.reason
    assert recorder.manager.stats()["threads"] == 1
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    no_threads(False)
    connect(recorder.manager)
    wait_until(lambda: len(recorder.manager.connections) == 2)


def test_a_server_that_cannot_start_threads(no_threads: Callable[[bool], None]) -> None:
    manager = ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload))
    server = make_server("127.0.0.1", 0, Upgrader(manager), threaded=False)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        no_threads(True)
        for _ in range(3):
            status, headers, body = ask(server.port, handshake("/", server.port))
            assert (status, headers["Retry-After"]) == (503, "5")
            assert body == "No more connections: no thread can be started (can't start new thread).\n"
        stats = manager.stats()
        assert stats["threads"] == stats["accepted"] == 0
        assert stats["refused"] == {"503 Service Unavailable": 3}
        no_threads(False)
        with RawClient(server.port).open("/") as client:
            client.send(b"\x81\x82\0\0\0\0hi")
            assert client.recv_frame() == (Opcode.TEXT, b"hi")
    finally:
        server.shutdown()
        serving.join(TIMEOUT)
        server.server_close()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_few_file_descriptors() -> None:
    with serve("gthread", "apps.fleet:app") as server:
        with RawClient(server.port).open("/ws"):
            wait_until(lambda: server.stats()["accepted"] == 1)
        wait_until(lambda: server.stats()["threads"] == 0)
        before = server.descriptors()
        resource.prlimit(server.worker(), resource.RLIMIT_NOFILE, (128, 128))
        clients: list[RawClient] = []
        refused = 0
        try:
            while refused < 6:
                client = RawClient(server.port)
                client.send(handshake("/ws", server.port))
                head = client.recv_head()
                if head.startswith(b"HTTP/1.1 101 "):
                    clients.append(client)
                    continue
                assert head.startswith(b"HTTP/1.1 503 ")
                assert b"Retry-After: 5\r\n" in head
                client.socket.close()
                refused += 1
            assert 40 <= len(clients) < 128
            lines = [line for line in server.log().splitlines() if line.startswith("refused handshake: 'GET' '/ws'")]
            assert len(lines) == 6
            assert all("of 128 file descriptors are in use. Raise the limit for open files" in line for line in lines)
            for _ in range(10):
                assert server.get("/") == "plain HTTP"
            stats = server.stats()
            assert (stats["accepted"], stats["threads"]) == (len(clients) + 1, len(clients))
            for client in clients:  # All that were accepted live.
                client.send(b"\x81\x82\0\0\0\0hi")
                assert client.recv_frame() == (Opcode.TEXT, b"hi")
        finally:
            for client in clients:
                client.socket.close()
        wait_until(lambda: server.stats()["threads"] == 0)
        wait_until(lambda: server.descriptors() <= before + 5)
        for _ in range(10):
            with RawClient(server.port).open("/ws") as client:
                client.send(b"\x81\x82\0\0\0\0hi")
                assert client.recv_frame() == (Opcode.TEXT, b"hi")
        assert server.errors() == []


# Keepalive

CLIENT = """
import socket, sys
from wire import client_frame
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
while True:
    head = sock.recv(2, socket.MSG_WAITALL)
    if len(head) < 2 or head[0] == 0x88:
        break
    payload = sock.recv(head[1], socket.MSG_WAITALL) if head[1] else b""
    if head[0] == 0x89:
        sock.sendall(client_frame(0xA, payload))
"""


@contextmanager
def client_process(peer: Peer) -> Iterator[subprocess.Popen[bytes]]:
    """Let a process of its own answer the pings of a connection."""
    fd = peer.socket.fileno()
    process = subprocess.Popen([sys.executable, "-c", CLIENT, str(fd)], pass_fds=[fd], cwd=TESTS)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(TIMEOUT)


def test_a_stopped_client_is_found(connect: Connect) -> None:
    interval, timeout = 1.0, 3.0  # The client has to start within that.
    recorder = Recorder(ping_interval=interval, ping_timeout=timeout)
    (stopped, stopped_peer), (live, live_peer) = open_all(recorder.manager, connect, 2)
    assert (stopped.latency, live.latency) == (None, None)
    with client_process(stopped_peer) as process, client_process(live_peer):
        wait_until(lambda: stopped.latency is not None and live.latency is not None)
        assert stopped.latency is not None
        assert 0 < stopped.latency < timeout
        process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        while not recorder.closed.is_set() and time.monotonic() < started + TIMEOUT:
            recorder.manager.broadcast("what the kernel takes is no sign of life")
            time.sleep(0.05)
        took = time.monotonic() - started
        assert recorder.wait_closed() == (1006, "no pong within 3 s")
        assert took < interval + timeout + 2.0  # The machine may be busy.
        assert live.state is State.OPEN
        assert live.latency is not None


def test_without_ping_timeout_a_silent_client_stays(connect: Connect) -> None:
    recorder = Recorder(ping_interval=0.1, ping_timeout=None)
    conn, peer = connect(recorder.manager)
    assert [peer.read() for _ in range(3)] == [(Opcode.PING, b"1"), (Opcode.PING, b"2"), (Opcode.PING, b"3")]
    assert conn.state is State.OPEN
    assert conn.latency is None


def test_a_callback_that_takes_long_does_not_cost_the_connection(connect: Connect) -> None:
    recorder = Recorder(ping_interval=0.2, ping_timeout=0.2)
    recorder.manager.on_message = lambda conn, opcode, payload: work(conn, 2.0)
    conn, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"work")
    while True:
        opcode, payload = peer.read()
        if opcode != Opcode.PING:
            break
        peer.send(Opcode.PONG, payload)
    assert (opcode, payload) == (Opcode.TEXT, b"done")
    assert conn.state is State.OPEN


def test_a_peer_that_dies_while_a_callback_works_is_found(connect: Connect) -> None:
    recorder = Recorder(ping_interval=0.2, ping_timeout=0.2)
    release = threading.Event()
    recorder.manager.on_message = lambda conn, opcode, payload: release.wait(TIMEOUT)
    conn, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"work, and no Pong ever")
    wait_until(lambda: conn.state is State.CLOSING)
    assert recorder.closes == []
    release.set()
    assert recorder.wait_closed() == (1006, "no pong within 0.2 s")


def test_a_connection_stuck_in_a_send_is_found(connect: Connect) -> None:
    recorder = Recorder(ping_interval=0.3, ping_timeout=0.3, write_timeout=None)
    errors: list[Exception] = []

    def send_much(conn: Connection, opcode: Opcode, payload: str) -> None:
        try:
            conn.send(bytes(64 << 20))
        except ConnectionClosed as error:
            errors.append(error)
            raise

    recorder.manager.on_message = send_much
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"go")
    assert recorder.wait_closed() == (1006, "no pong within 0.3 s")
    assert len(errors) == 1
    assert recorder.errors == []


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


# Callbacks


Misbehaviour = Callable[[Connection], object]


def spawn(conn: Connection) -> None:
    """Start a process that outlives the connection."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    conn.context = child
    conn.close(4000)


def start_thread(conn: Connection) -> None:
    """Use the connection from a thread."""

    def work() -> None:
        conn.send("from a thread")
        conn.close(4000)

    threading.Thread(target=work).start()


def fail(conn: Connection) -> None:
    """Raise."""
    raise KeyError("a bug")


def close_twice(conn: Connection) -> None:
    """Change one's mind about the code."""
    conn.close(4000)
    conn.close(4001)


def close_and_send(conn: Connection) -> None:
    """Send when it is too late."""
    conn.close(4000)
    conn.send("too late")


MISBEHAVIOURS: dict[str, tuple[Misbehaviour, int]] = {
    "raises": (fail, 1011),
    "exits": (lambda conn: sys.exit(3), 1000),
    "closes": (lambda conn: conn.close(4000), 4000),
    "closes twice": (close_twice, 4000),
    "terminates": (Connection.terminate, 1006),
    "closes and sends": (close_and_send, 4000),
    "starts a thread": (start_thread, 4000),
    "spawns a process": (spawn, 4000),
    "sends what cannot be sent": (lambda conn: conn.send(1), 1011),  # type: ignore[arg-type]
    "receives in vain": (lambda conn: [conn.receive(timeout=0.1) for _ in range(2)], 1011),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # For SystemExit.
@pytest.mark.parametrize("where", ["on_connect", "on_message"])
@pytest.mark.parametrize("name", list(MISBEHAVIOURS))
def test_misbehaviour_costs_one_connection_at_most(connect: Connect, where: str, name: str) -> None:
    misbehave, code = MISBEHAVIOURS[name]
    recorder = Recorder(close_timeout=5)
    manager = recorder.manager
    (other, other_peer), = open_all(manager, connect, 1)
    manager.on_connect = (lambda conn: misbehave(conn)) if where == "on_connect" else None
    manager.on_message = (lambda conn, opcode, payload: misbehave(conn)) if where == "on_message" else None
    conn, peer = connect(manager)
    peer.send(Opcode.TEXT, b"go")
    ended = None
    while ended is None:
        try:
            opcode, payload = peer.read()
        except EOFError:
            ended = 1006
            break
        if opcode == Opcode.CLOSE:
            ended = int.from_bytes(payload[:2], "big")
            peer.close_frame(ended)
            assert peer.at_eof()  # Also when a child process was started: it does not hold the socket.
    assert ended == code
    assert recorder.wait_closed()[0] == code
    assert isinstance(conn.context, subprocess.Popen) is (name == "spawns a process")
    if conn.context is not None:
        conn.context.kill()
        conn.context.wait(TIMEOUT)
    manager.on_message = lambda conn, opcode, payload: conn.send(payload)
    other_peer.send(Opcode.TEXT, b"still here")
    assert other_peer.read() == (Opcode.TEXT, b"still here")
    assert manager.connections == (other,)
    wait_until(lambda: manager.stats()["threads"] == 1)


def test_a_blocked_callback_blocks_nobody_else(connect: Connect) -> None:
    release = threading.Event()
    recorder = Recorder()
    recorder.manager.on_message = lambda conn, opcode, payload: (
        release.wait(TIMEOUT) if payload == "block" else conn.send(payload))
    (blocked, blocked_peer), (_, peer) = open_all(recorder.manager, connect, 2)
    blocked_peer.send(Opcode.TEXT, b"block")
    blocked_peer.send(Opcode.TEXT, b"later")
    wait_until(lambda: link_of(blocked).callback is not None)
    peer.send(Opcode.TEXT, b"hi")
    assert peer.read() == (Opcode.TEXT, b"hi")
    assert recorder.manager.broadcast("to all").sent == 2
    assert peer.read() == (Opcode.TEXT, b"to all")
    assert blocked_peer.read() == (Opcode.TEXT, b"to all")
    release.set()
    assert blocked_peer.read() == (Opcode.TEXT, b"later")


@pytest.mark.parametrize("where", ["on_connect", "on_message", "on_close"])
def test_broadcasting_in_a_callback(connect: Connect, where: str) -> None:
    manager = ListenableManager()
    (_, other_peer), = open_all(manager, connect, 1)
    setattr(manager, where, lambda conn, *args: manager.broadcast(where))
    _, peer = connect(manager)
    peer.send(Opcode.TEXT, b"go")
    peer.close_frame()
    assert other_peer.read() == (Opcode.TEXT, where.encode())
    if where != "on_close":
        assert peer.read() == (Opcode.TEXT, where.encode())
    assert peer.read_close() == 1000


@pytest.mark.parametrize("where", ["on_connect", "on_message", "on_close"])
def test_shutdown_in_a_callback(connect: Connect, where: str) -> None:
    manager = ListenableManager(shutdown_timeout=TIMEOUT)
    results: list[bool] = []
    pairs = open_all(manager, connect, 2)
    started = time.monotonic()
    setattr(manager, where, lambda conn, *args: results.append(manager.shutdown()))
    _, peer = connect(manager)
    if where == "on_message":
        peer.send(Opcode.TEXT, b"stop")
    elif where == "on_close":
        peer.close_frame()
    for _, other in pairs:
        assert other.read_close() == 1001
        other.close_frame(1001)
    assert peer.read_close() == (1000 if where == "on_close" else 1001)
    if where != "on_close":
        peer.close_frame(1001)
    wait_until(lambda: results and manager.stats()["threads"] == 0)
    assert set(results) == {True}
    assert time.monotonic() - started < TIMEOUT
    assert manager.connections == ()
    assert refused(manager).reason == "No more connections: the server is stopping."


def test_a_handler_that_catches_everything_ends_all_the_same(connect: Connect) -> None:
    rounds = 0

    def handler(conn: Connection) -> None:
        nonlocal rounds
        for rounds in range(100):
            try:
                conn.receive()
            except Exception:
                pass

    conn, peer = run_handler(connect, handler)
    peer.close_frame()
    assert peer.read_close() == 1000
    wait_until(lambda: conn.closed)
    assert rounds == 99


# What an operator sees


def test_stats(connect: Connect) -> None:
    recorder = Recorder(max_connections=2)
    manager = recorder.manager
    assert manager.stats() == {
        "connections": {"open": 0, "closing": 0}, "threads": 0, "accepted": 0, "refused": {}, "closed": {}, "slow": 0,
        "speedups": active, "queued_bytes": 0, "messages_received": 0, "messages_sent": 0,
        "messages_dropped": 0, "bytes_received": 0, "bytes_sent": 0,
    }
    (ada, ada_peer), (bob, bob_peer) = open_all(manager, connect, 2)
    ada_peer.send(Opcode.TEXT, b"hello")  # 11 bytes: header, mask, payload.
    wait_until(lambda: recorder.messages)
    ada.send("hi")  # 4 bytes.
    manager.broadcast("all")  # 5 bytes each.
    ada.close(4000)  # 4 bytes.
    stats = manager.stats()
    assert stats["connections"] == {"open": 1, "closing": 1}
    assert (stats["threads"], stats["accepted"], stats["closed"]) == (2, 2, {})
    numbers = {
        "messages_received": 1, "messages_sent": 3, "messages_dropped": 0, "bytes_received": 11, "bytes_sent": 18}
    assert {name: stats[name] for name in numbers} == numbers
    ada_peer.close_frame(4000)  # 8 bytes.
    recorder.wait_closed()
    stats = manager.stats()
    assert (stats["accepted"], stats["closed"]) == (2, {"4000": 1})
    assert stats["connections"] == {"open": 1, "closing": 0}
    assert {name: stats[name] for name in numbers} == {**numbers, "bytes_received": 19}
    assert json.loads(json.dumps(stats)) == stats
    for _ in range(2):
        hub_of(manager).counters.refuse("403 Forbidden")
    assert manager.stats()["refused"] == {"403 Forbidden": 2}


def test_counts_never_go_back(connect: Connect) -> None:
    manager = ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload))
    names = "accepted", "messages_received", "messages_sent", "bytes_received", "bytes_sent"
    looked = [0]
    stop = threading.Event()
    errors: list[str] = []

    def look() -> None:
        before = manager.stats()
        while not stop.is_set():
            now = manager.stats()
            errors.extend(f"{name} {before[name]} {now[name]}" for name in names if now[name] < before[name])
            alive = sum(now["connections"].values())
            if alive > now["accepted"] - sum(now["closed"].values()):
                errors.append(str(now))
            before = now
            looked[0] += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    total = 60
    for _ in range(total):
        _, peer = connect(manager)
        peer.send(Opcode.TEXT, bytes(100))
        peer.read()
        peer.close_frame()
        assert peer.read_close() == 1000
    wait_until(lambda: manager.stats()["closed"] == {"1000": total})
    stop.set()
    watcher.join(TIMEOUT)
    assert errors == []
    assert looked[0] > 0
    assert manager.stats()["messages_sent"] == total


def test_dump(connect: Connect) -> None:
    release = threading.Event()
    recorder = Recorder(ping_interval=0.1, ping_timeout=TIMEOUT)
    recorder.manager.on_message = lambda conn, opcode, payload: release.wait(TIMEOUT)
    assert recorder.manager.dump() == "0 connections"
    (busy, busy_peer), (idle, idle_peer) = open_all(recorder.manager, connect, 2)
    busy.join("red")
    busy.join("blue")
    busy_peer.send(Opcode.TEXT, b"work")
    idle_peer.send(Opcode.PONG, idle_peer.read()[1])
    wait_until(lambda: link_of(busy).callback is not None and idle.latency is not None)
    title, *lines = recorder.manager.dump().splitlines()
    assert title == "2 connections"
    by_id = {line.split()[0]: line for line in lines}
    assert " WebSocket 127.0.0.1 '/ws' OPEN, open for 0." in by_id[busy.id]
    assert ", in on_message for 0." in by_id[busy.id]
    assert ", no pong yet, groups: blue, red" in by_id[busy.id]
    assert ", waiting for a message for 0." in by_id[idle.id]
    assert ", 0 bytes queued, last pong 0." in by_id[idle.id]
    assert by_id[idle.id].endswith(", groups: none")
    release.set()


def test_dump_of_a_handler(connect: Connect) -> None:
    release = threading.Event()
    manager = SimpleManager(lambda conn: release.wait(TIMEOUT))
    connect(manager)
    wait_until(lambda: ", in handler for 0." in manager.dump())
    release.set()


def test_the_line_in_the_log_for_each_end(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wsthread")
    recorder = Recorder()
    conn, peer = connect(recorder.manager, "/logged?secret=1")
    wait_until(lambda: recorder.manager.connections)
    peer.send(Opcode.TEXT, b"hello")
    wait_until(lambda: recorder.messages)
    conn.send("hi")
    assert peer.read() == (Opcode.TEXT, b"hi")
    peer.close_frame(4321, "bye")
    recorder.wait_closed()
    lines = [record.getMessage() for record in caplog.records if "/logged" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("WebSocket 127.0.0.1 '/logged': closed with 4321 'bye' after 0.")
    assert lines[0].endswith(" s; 1 messages of 22 bytes in, 1 of 8 out, 0 dropped")


def test_the_same_numbers_on_a_server() -> None:
    with serve("gthread", "apps.fleet:app") as server:
        with RawClient(server.port).open("/ws") as client:
            client.send(b"\x81\x82\0\0\0\0hi")
            assert client.recv_frame() == (Opcode.TEXT, b"hi")
            client.send(b"\x88\x80\0\0\0\0")
            assert client.recv_rest() == b"\x88\x00"
        wait_until(lambda: server.stats()["threads"] == 0)
        stats = server.stats()
        assert stats["closed"] == {"1005": 1}
        assert stats["callbacks"] == {"connected": 1, "closed": 1, "slow": 0}
        assert (stats["messages_received"], stats["messages_sent"]) == (1, 1)
        assert server.errors() == []
