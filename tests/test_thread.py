"""The threads of connections: what application code does there costs one connection at most."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, members, run_handler
from servers import wait_until

from wsthread import Connection, ConnectionClosed, ListenableManager, Opcode, SimpleManager
from wsthread.connection import link_of

__all__ = ["connect"]


@pytest.mark.parametrize("where", ["on_connect", "on_message"])
def test_an_exception_in_a_callback(connect: Connect, where: str, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()

    def fail(*args: object) -> None:
        raise KeyError("a bug")

    setattr(recorder.manager, where, fail)
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"hi")
    assert peer.read_close() == 1011
    peer.close_frame(1011)
    assert recorder.wait_closed() == (1011, "")
    assert [repr(error) for error in recorder.errors] == ["KeyError('a bug')"]
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [True]


def test_an_exception_in_on_close_and_on_error(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def closed(conn: Connection) -> None:
        raise KeyError("in on_close")

    def error(conn: Connection, error: Exception) -> None:
        done.set()
        raise KeyError("in on_error")

    manager = ListenableManager(on_close=closed, on_error=error)
    _, peer = connect(manager)
    peer.close_frame()
    assert peer.read_close() == 1000
    assert done.wait(TIMEOUT)
    wait_until(lambda: len(caplog.records) == 2)
    assert manager.connections == ()


def test_closing_of_another_connection_is_an_error(connect: Connect) -> None:
    recorder = Recorder()
    other = Recorder()
    gone, other_peer = connect(other.manager)
    other_peer.close_frame()
    other.wait_closed()
    recorder.manager.on_message = lambda conn, opcode, payload: gone.send(payload)
    _, peer = connect(recorder.manager)
    peer.send(Opcode.TEXT, b"hi")
    assert peer.read_close() == 1011
    wait_until(lambda: recorder.errors)
    assert [type(error) for error in recorder.errors] == [ConnectionClosed]


def test_a_handler_may_let_connection_closed_pass(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    def handler(conn: Connection) -> None:
        while True:
            conn.send(conn.receive())

    conn, peer = run_handler(connect, handler)
    peer.close_frame()
    assert peer.read_close() == 1000
    wait_until(lambda: conn.closed)
    assert caplog.records == []


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
    "exits": (lambda conn: sys.exit(3), 1011),
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
    (other, other_peer), = members(manager, connect, 1)
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
    (blocked, blocked_peer), (_, peer) = members(recorder.manager, connect, 2)
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


def test_a_thread_is_like_others(connect: Connect) -> None:
    """It is listed and alive, cannot be started again, and ends; the Event that says so is one for all."""
    found: list[threading.Thread] = []
    done = threading.Event()

    def handler(conn: Connection) -> None:
        found.append(threading.current_thread())
        if len(found) == 2:
            done.set()
        conn.receive()

    manager = SimpleManager(handler)
    _, one = connect(manager)
    _, other = connect(manager)
    assert done.wait(TIMEOUT)
    for thread in found:
        assert thread.is_alive() and thread in threading.enumerate() and "started" in repr(thread)
        with pytest.raises(RuntimeError):
            thread.start()
    assert getattr(found[0], "_started", None) is getattr(found[1], "_started", None)
    for peer in (one, other):
        peer.send(Opcode.CLOSE, b"\x03\xe8")
        assert peer.read_close() == 1000
    for thread in found:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_only_who_ends_at_once_holds_the_answer_back(connect: Connect) -> None:
    """A handler may go on behind the peer's Close, callbacks do not."""
    expected: list[bool] = []
    release = threading.Event()

    def handler(conn: Connection) -> None:
        expected.append(link_of(conn).receiver.ends_at_once)
        release.wait(TIMEOUT)

    for manager in (SimpleManager(handler), ListenableManager(on_message=lambda conn, opcode, payload: handler(conn))):
        _, peer = connect(manager)
        peer.send(Opcode.TEXT, b"a")
        wait_until(lambda: len(expected) == 1 + isinstance(manager, ListenableManager))
    release.set()
    assert expected == [False, True]
