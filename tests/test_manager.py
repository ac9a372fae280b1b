"""Managers: callbacks, the connections, broadcasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, sender_of
from servers import wait_until

from wsthread import Connection, ListenableManager, Manager, Opcode, SimpleManager, State, thread

__all__ = ["connect"]


def test_callbacks_in_each_form(connect: Connect) -> None:
    calls: list[str] = []
    by_keyword = ListenableManager(on_message=lambda conn, opcode, payload: calls.append(f"keyword {payload}"))

    by_decorator = ListenableManager()

    @by_decorator.on_message
    def message(conn: Connection, opcode: Opcode, payload: str) -> None:
        calls.append(f"decorator {payload}")

    assert message.__name__ == "message"  # The decorator returns the function.
    by_assignment = ListenableManager()
    by_assignment.on_message = lambda conn, opcode, payload: calls.append(f"assignment {payload}")

    class BySubclass(ListenableManager):
        def on_message(self, conn: Connection, opcode: Opcode, payload: str) -> None:  # type: ignore[override]
            calls.append(f"subclass {payload}")

    managers = [by_keyword, by_decorator, by_assignment, BySubclass()]
    for manager in managers:
        _, peer = connect(manager)
        peer.send(Opcode.TEXT, b"hi")
        peer.close_frame()
        assert peer.read_close() == 1000
    assert calls == ["keyword hi", "decorator hi", "assignment hi", "subclass hi"]


def test_a_callback_can_be_taken_back(connect: Connect) -> None:
    calls: list[str] = []
    manager = ListenableManager(on_message=lambda conn, opcode, payload: calls.append(payload))
    manager.on_message = None
    _, peer = connect(manager)
    peer.send(Opcode.TEXT, b"hi")
    peer.close_frame()
    assert peer.read_close() == 1000
    assert calls == []


def test_order_of_callbacks(connect: Connect) -> None:
    calls: list[object] = []
    done = threading.Event()

    def closed(conn: Connection) -> None:
        calls.append("close")
        done.set()

    manager = ListenableManager(
        on_connect=lambda conn: calls.append("connect"),
        on_message=lambda conn, opcode, payload: calls.append((opcode, payload)),
        on_close=closed)
    _, peer = connect(manager)
    for i in range(100):
        peer.send(Opcode.TEXT if i % 2 else Opcode.BINARY, b"%d" % i)
    peer.close_frame()
    assert done.wait(TIMEOUT)
    expected = [(Opcode.TEXT, str(i)) if i % 2 else (Opcode.BINARY, b"%d" % i) for i in range(100)]
    assert calls == ["connect", *expected, "close"]


class Scopes:
    """What happens in and around the scopes of connections, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.closed = threading.Event()

    @contextmanager
    def __call__(self, conn: Connection) -> Iterator[None]:
        self.events.append(f"enter {conn.request.path}")
        try:
            yield
        except KeyError as error:
            self.events.append(f"{error} passes")
            raise
        finally:
            self.events.append("leave")

    def note(self, name: str) -> Callable[..., None]:
        """Return a callback that notes that it was called; with the payload "raise" it raises."""

        def callback(conn: Connection, *args: object) -> None:
            self.events.append(name)
            if name == "close":
                self.closed.set()
            if "raise" in args:
                raise KeyError("a bug")

        return callback


def test_each_callback_runs_in_a_scope_of_its_own(connect: Connect) -> None:
    scopes = Scopes()
    callbacks: dict[str, Any] = {
        f"on_{name}": scopes.note(name) for name in ("connect", "message", "error", "close")}
    manager = ListenableManager(**callbacks)
    _, peer = connect(manager, scope=scopes)
    peer.send(Opcode.TEXT, b"hi")
    peer.send(Opcode.TEXT, b"raise")
    assert peer.read_close() == 1011
    peer.close_frame(1011)
    assert scopes.closed.wait(TIMEOUT)
    wait_until(lambda: scopes.events[-1] == "leave")
    assert scopes.events == [
        "enter /ws", "connect", "leave",
        "enter /ws", "message", "leave",
        "enter /ws", "message", "'a bug' passes", "leave",
        "enter /ws", "error", "leave",
        "enter /ws", "close", "leave",
    ]


def test_on_slow_runs_in_a_scope(connect: Connect) -> None:
    scopes = Scopes()
    manager = ListenableManager(on_slow=scopes.note("slow"), max_outbox_size=1)
    connect(manager, scope=scopes)
    wait_until(lambda: manager.connections)
    while "slow" not in scopes.events:
        manager.broadcast(bytes(1 << 20))
    assert scopes.events[-3:] == ["enter /ws", "slow", "leave"]


def test_a_handler_runs_in_a_scope(connect: Connect) -> None:
    scopes = Scopes()
    _, peer = connect(SimpleManager(scopes.note("close")), scope=scopes)
    assert peer.read_close() == 1000
    wait_until(lambda: scopes.events == ["enter /ws", "close", "leave"])


def test_connections(connect: Connect) -> None:
    recorder = Recorder()
    seen: list[tuple[int, State]] = []

    def closed(conn: Connection) -> None:
        seen.append((len(recorder.manager.connections), conn.state))

    recorder.manager.on_close = closed
    first, peer = connect(recorder.manager)
    second, _ = connect(recorder.manager)
    wait_until(lambda: len(recorder.manager.connections) == 2)
    assert set(recorder.manager.connections) == {first, second}
    peer.close_frame()
    wait_until(lambda: seen)
    assert seen == [(1, State.CLOSED)]
    assert recorder.manager.connections == (second,)


def test_connections_are_in_the_order_of_acceptance(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their threads begin in any order, as on a busy machine."""
    begin, may_begin = thread._let_others_run_first, threading.Event()
    names: list[str] = []

    def begin_late() -> None:
        names.append(threading.current_thread().name)
        if len(names) == 1:
            may_begin.wait(10)
        begin()

    monkeypatch.setattr(thread, "_let_others_run_first", begin_late)
    manager = ListenableManager()
    first, _ = connect(manager)
    wait_until(lambda: names)
    second, _ = connect(manager)
    wait_until(lambda: manager.connections == (second,))
    may_begin.set()
    wait_until(lambda: len(manager.connections) == 2)
    assert manager.connections == (first, second)


def test_broadcast(connect: Connect) -> None:
    recorder = Recorder()
    peers = [connect(recorder.manager)[1] for _ in range(5)]
    wait_until(lambda: len(recorder.manager.connections) == 5)
    peers[0].reset()
    recorder.manager.broadcast("to all")
    for peer in peers[1:]:
        assert peer.read() == (Opcode.TEXT, b"to all")
    with pytest.raises(TypeError):
        recorder.manager.broadcast(None)  # type: ignore[arg-type]


def test_a_broadcast_does_not_wait_for_a_slow_peer(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(close_timeout=0.2)
    slow, slow_peer = connect(recorder.manager)
    fast, fast_peer = connect(recorder.manager)
    wait_until(lambda: len(recorder.manager.connections) == 2)
    for i in range(500):
        recorder.manager.broadcast(bytes([i % 256]) * 65536)
        assert fast_peer.read() == (Opcode.BINARY, bytes([i % 256]) * 65536)
        assert sender_of(slow).outbox.size <= (1 << 20) + 65536
    assert recorder.wait_closed()[0] == 1006
    assert slow.close_reason is not None and slow.close_reason.startswith("no answer to Close 1013")
    assert "too slow" in caplog.text
    assert fast.state is State.OPEN


def test_what_waits_after_a_broadcast_is_sent_when_the_peer_reads(connect: Connect) -> None:
    recorder = Recorder(max_outbox_size=64 << 20)
    conn, peer = connect(recorder.manager)
    wait_until(lambda: recorder.manager.connections)
    payload = bytes(range(256)) * 4096
    for _ in range(16):
        recorder.manager.broadcast(payload)
    assert sender_of(conn).outbox.size > 0
    for _ in range(16):
        assert peer.read() == (Opcode.BINARY, payload)
    wait_until(lambda: sender_of(conn).outbox.size == 0)
    assert conn.state is State.OPEN


@pytest.mark.parametrize("options", [
    {"max_message_size": 0}, {"max_message_size": -1}, {"max_outbox_size": None}, {"close_timeout": None},
    {"write_timeout": 0}, {"read_timeout": "1"}, {"close_timeout": True},
])
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Manager(**options)  # type: ignore[arg-type]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError):
        SimpleManager(print, max_size=1)  # type: ignore[call-arg]


def test_nothing_starts_before_the_first_connection() -> None:
    before = threading.active_count()
    Manager()
    assert threading.active_count() == before


def test_the_base_class_serves_nothing(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    _, peer = connect(Manager())
    assert peer.read_close() == 1011
    assert "NotImplementedError" in caplog.text
