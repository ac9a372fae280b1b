"""The inside of a manager: how many connections it accepts, what it counts and what it logs."""

from __future__ import annotations

import json
import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

import pytest
from clients import RawClient, ask, handshake
from peer import TIMEOUT, Connect, Recorder, connect, members, refused
from servers import serve, wait_until
from werkzeug.serving import make_server
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from wsthread import ListenableManager, Opcode, Upgrader, testing
from wsthread.manager import hub_of
from wsthread.snapshot import Snapshot
from wsthread.speedups import active

__all__ = ["connect"]

# Limits


def test_max_connections(connect: Connect) -> None:
    recorder = Recorder(max_connections=2)
    (_, peer), _ = members(recorder.manager, connect, 2)
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
    members(recorder.manager, connect, 2)
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
    members(recorder.manager, connect, 1)
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


# Whatever fails between the admission and the connection's own thread

FAILURES = [
    "wsthread.hub.lifecycle.enter", "wsthread.hub.Link", "wsthread.hub.Connection", "wsthread.hub.thread.start",
    "wsthread.link.Protocol", "wsthread.link.Receiver", "wsthread.upgrader.Detached", "wsthread.detach.Transport",
    "wsthread.sending.Sender.open", "wsthread.writing.Writer.write", "wsthread.receiving.Receiver.open",
    "wsthread.receiving.Receiver._take", "wsthread.hub.Hub.arrive", "wsthread.upgrader._Body",
    "wsthread.upgrader._Body.__init__", "wsthread.upgrader._Switch._open", "wsthread.link.Link.open",
    "wsthread.upgrader.encode_response", "wsthread.thread._let_others_run_first",
]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("name", FAILURES)
def test_an_admission_comes_back(monkeypatch: pytest.MonkeyPatch, name: str, error: type[BaseException]) -> None:
    calls: list[str] = []
    manager = ListenableManager(
        on_connect=lambda conn: calls.append("connect"), on_close=lambda conn: calls.append("close"),
        max_connections=1)

    def fail(*args: object, **options: object) -> None:
        if threading.current_thread().name == "wsthread-housekeeper":  # No signal handler runs there.
            raise MemoryError("injected")
        raise error("injected")

    def is_empty() -> bool:
        return hub_of(manager).registry.admitted == 0

    app = Upgrader(manager)
    testing.connect(app, "/").close()
    wait_until(is_empty)
    descriptors = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(name, fail)
        for _ in range(3):
            with suppress(testing.Refused, MemoryError, KeyboardInterrupt, TimeoutError):
                testing.connect(app, "/", timeout=0.5).terminate()
            wait_until(is_empty)
    assert calls.count("connect") == calls.count("close")
    testing.connect(app, "/").close()
    wait_until(is_empty)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
    begun = time.monotonic()
    assert manager.shutdown(timeout=5)
    assert time.monotonic() - begun < 2


def test_a_thread_whose_start_was_interrupted(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a signal handler that raises: the thread runs, and nobody will open its connection."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name != "wsthread-housekeeper":
            raise KeyboardInterrupt

    manager = ListenableManager()
    connect(manager)
    wait_until(lambda: manager.connections)
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        environ = EnvironBuilder("/ws").get_environ()
        with pytest.raises(KeyboardInterrupt):
            hub_of(manager).prepare(Snapshot(Request(environ)), None, None)
    wait_until(lambda: threading.active_count() == threads)
    assert manager.stats()["threads"] == 1


# Broadcasts


@pytest.mark.parametrize("where", ["on_connect", "on_message", "on_close"])
def test_broadcasting_in_a_callback(connect: Connect, where: str) -> None:
    manager = ListenableManager()
    (_, other_peer), = members(manager, connect, 1)
    setattr(manager, where, lambda conn, *args: manager.broadcast(where))
    _, peer = connect(manager)
    peer.send(Opcode.TEXT, b"go")
    peer.close_frame()
    assert other_peer.read() == (Opcode.TEXT, where.encode())
    if where != "on_close":
        assert peer.read() == (Opcode.TEXT, where.encode())
    assert peer.read_close() == 1000


# What an operator sees


def test_stats(connect: Connect) -> None:
    recorder = Recorder(max_connections=2)
    manager = recorder.manager
    assert manager.stats() == {
        "connections": {"open": 0, "closing": 0}, "threads": 0, "accepted": 0, "refused": {}, "closed": {}, "slow": 0,
        "greedy": 0, "speedups": active, "queued_bytes": 0, "inbox_bytes": 0, "lingering": 0, "messages_received": 0,
        "messages_sent": 0, "messages_dropped": 0, "bytes_received": 0, "bytes_sent": 0, "history": None,
        "backplane": None,
    }
    (ada, ada_peer), (bob, bob_peer) = members(manager, connect, 2)
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
    wait_until(lambda: recorder.manager.stats()["threads"] == 0)
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
