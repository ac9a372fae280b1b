"""Faults at each point of a connection's life: whatever fails, it costs that connection at most.

A fault is a MemoryError at the call of a function of the library, in the thread that serves the request, in the
connection's own or in the housekeeper's. There are some hundred such points; each is tried once, and then they come at
random, with a log that raises and signals that raise. ``FAULT_SECONDS`` in the environment tells how long that lasts.
"""

from __future__ import annotations

import inspect
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest
from clients import RawClient
from peer import ignoring
from servers import serve_here, wait_until
from wire import BINARY, PING, RSV1, TEXT, client_close, client_frame, client_header, deflated

from wsthread import Connection, ConnectionClosed, Deflate, ListenableManager, Upgrader, housekeeper, testing
from wsthread.manager import hub_of

SECONDS = float(os.environ.get("FAULT_SECONDS", "60"))
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
#: The last things that are done for a connection: there is nothing below them that could do them instead.
SPARED = frozenset({
    "_run", "_live", "guard", "report_close", "call", "call_aside", "dismiss", "_dismiss", "depart", "tell_end",
    "abandon", "taking", "link_of", "finish", "_close", "_take_handle", "handle", "release", "give_up", "__del__",
})
CLOSING_THE_SOCKET = ("wsthread.transport", "close")  # Likewise; others of that name may fail.
ELSEWHERE = ("wsthread.testing", "wsthread.client", "wsthread.logs", "wsthread.locks", "wsthread.wire.client")
READING = ("wsthread.wire.frames", "wsthread.wire.messages")  # What the thread of a request does as a client only.
Profile = Callable[[FrameType, str, Any], None]


class Plan:
    """Where the next fault is to be.

    Attributes:
        points: the functions at whose calls there were faults.
        last: the last of them.
    """

    def __init__(self) -> None:
        self.points: Counter[str] = Counter()
        self.last = ""

    def profile(self, number: int, but: tuple[str, ...] = ()) -> Profile:
        """Return a profile function that lets the call fail that comes after so many, but for those of some modules.

        It fails once.
        """
        left = number

        def profile(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal left
            name = frame.f_globals.get("__name__", "")
            if event != "call" or not name.startswith("wsthread.") or name.startswith(ELSEWHERE + but):
                return
            if frame.f_code.co_name in SPARED or frame.f_code.co_flags & inspect.CO_GENERATOR:
                return
            if (name, frame.f_code.co_name) == CLOSING_THE_SOCKET:
                return
            left -= 1
            if left == -1:
                self.last = f"{name}.{frame.f_code.co_name}"
                self.points[self.last] += 1
                raise MemoryError("injected")

        return profile

    @contextmanager
    def in_connections(self, choose: Callable[[], int]) -> Iterator[None]:
        """Let faults happen in the threads of connections that begin within the block."""

        def begin(frame: FrameType, event: str, argument: Any) -> None:
            name = threading.current_thread().name
            is_connection = name.startswith("wsthread-") and name not in ("wsthread-log", "wsthread-housekeeper")
            sys.setprofile(self.profile(choose()) if is_connection else None)

        threading.setprofile(begin)
        try:
            yield
        finally:
            threading.setprofile(None)

    @contextmanager
    def here(self, number: int, but: tuple[str, ...] = ()) -> Iterator[None]:
        """Let a fault happen in this thread."""
        sys.setprofile(self.profile(number, but))
        try:
            yield
        finally:
            sys.setprofile(None)


class Application:
    """A manager that counts."""

    def __init__(self, **options: Any) -> None:
        self._lock = threading.Lock()
        self.connected: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.manager = ListenableManager(
            on_connect=lambda conn: self._count(self.connected, conn), on_message=self._received,
            on_close=lambda conn: self._count(self.closed, conn),
            **{"close_timeout": 1.0, "ping_interval": None, **options})

    def _count(self, counter: Counter[str], conn: Connection) -> None:
        with self._lock:
            counter[conn.id] += 1

    def _received(self, conn: Connection, opcode: object, payload: str | bytes) -> None:
        conn.send(payload)
        self.manager.broadcast("all", exclude=conn, to=[conn])

    def check(self, remaining: int) -> None:
        """Wait until only those are left that are meant to be, and compare what was counted."""
        wait_until(lambda: hub_of(self.manager).registry.admitted == remaining)
        alive = {conn.id for conn in self.manager.connections}
        assert set(self.connected) - set(self.closed) == alive
        assert max(self.closed.values(), default=1) == max(self.connected.values(), default=1) == 1


def live(port: int) -> None:
    """Lead the life of a connection, until it ends by itself or is ended; nothing may take long."""
    with suppress(EOFError, ConnectionError), RawClient(port, timeout=8) as client:
        try:
            client.open("/ws", DEFLATE)
        except AssertionError:
            return  # No 101.
        client.send(client_frame(TEXT, b"hello") * 3)
        client.recv(7)
        client.send(client_frame(TEXT, deflated(b"hello" * 500), rsv=RSV1) + client_frame(PING, b"well?"))
        client.recv(2)
        client.send(client_header(BINARY, 70_000) + bytes(40_000))
        client.send(bytes(30_000))
        client.recv(100)
        client.send(client_frame(BINARY, b"parts", fin=False) + client_frame(0, b"parts") + client_close(1000))
        client.recv_rest()


class Bystander:
    """A client whom nothing of it concerns."""

    def __init__(self, port: int) -> None:
        self._client = RawClient(port).open("/ws")
        self.check()  # So the thread of its connection has begun before there are faults.

    def check(self) -> None:
        """Assert that it gets its answers."""
        self._client.send(client_frame(TEXT, b"still here"))
        assert self._client.recv_frame() == (TEXT, b"still here")

    def leave(self) -> None:
        """Say goodbye."""
        self._client.send(client_close(1000))
        self._client.recv_rest()
        self._client.socket.close()


COMPRESSION = Deflate(threshold=100, server_context_takeover=True, client_context_takeover=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_point_in_the_thread_of_a_connection() -> None:
    """Several at a time, for most of it is waiting."""
    plan, application = Plan(), Application()
    failures: list[BaseException] = []
    numbers = iter(range(100_000))

    def try_to_live() -> None:
        try:
            live(port)
        except BaseException as error:
            failures.append(error)

    with serve_here(application.manager, compression=COMPRESSION) as port:
        bystander = Bystander(port)
        before = -1
        while plan.points.total() > before:
            before = plan.points.total()
            with plan.in_connections(lambda: next(numbers)):
                threads = [threading.Thread(target=try_to_live) for _ in range(16)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            application.check(1)
            bystander.check()
            assert failures == [], plan.points
        bystander.leave()
        application.check(0)
    assert plan.points.total() > 200
    assert application.manager.shutdown(timeout=5)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_point_in_the_thread_of_a_request() -> None:
    plan, application = Plan(), Application(max_connections=2)
    app = Upgrader(application.manager, compression=COMPRESSION)
    descriptors = len(os.listdir("/proc/self/fd"))
    with testing.connect(app) as bystander:
        for number in range(500):
            before = plan.points.total()
            with suppress(testing.Refused, MemoryError, TimeoutError):
                with plan.here(number, READING):
                    ws = testing.connect(app, headers=[DEFLATE.split(": ")], timeout=1)  # type: ignore[list-item]
                ws.send("hello")
                ws.receive()
                ws.close()
            application.check(1)
            bystander.ping()
            if plan.points.total() == before:
                break
    assert number > 20
    application.check(0)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 4)  # The housekeeper's.


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_point_in_the_housekeepers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does its work at the next tick."""
    plan, application = Plan(), Application(ping_interval=0.05, ping_timeout=60)
    numbers = iter(range(100_000))
    survive = housekeeper.survive

    def survive_fault(function: Callable[..., None], *args: float) -> None:
        def work(*args: float) -> None:
            with plan.here(next(numbers) % 60):
                function(*args)
        survive(work, *args)

    with serve_here(application.manager, send_buffer=4096) as port:
        bystander = Bystander(port)
        monkeypatch.setattr(housekeeper, "survive", survive_fault)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            live(port)
            application.check(1)
        monkeypatch.undo()
        slow = RawClient(port, receive_buffer=4096).open("/ws")
        wait_until(lambda: len(application.manager.connections) == 2)
        slow.socket.close()
        bystander._client.socket.close()
        application.check(0)
    assert len(plan.points) > 10


class Alarm(Exception):
    """Raised by a signal handler."""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_faults_at_random(capsys: pytest.CaptureFixture[str]) -> None:
    plan, application = Plan(), Application(max_outbox_size=100_000)
    manager, end = application.manager, time.monotonic() + SECONDS
    failures: list[BaseException] = []
    random_log = _RandomLog()
    logger = logging.getLogger("wsthread")
    logger.addHandler(random_log)

    def crowd() -> None:
        try:
            while time.monotonic() < end:
                live(port)
        except BaseException as error:
            failures.append(error)

    def watch() -> None:
        try:
            while time.monotonic() < end:
                bystander.check()
                time.sleep(0.01)
            bystander.leave()
        except BaseException as error:
            failures.append(error)

    armed = False

    def on_alarm(*args: object) -> None:
        if armed:
            raise Alarm

    with serve_here(manager, compression=COMPRESSION) as port:
        bystander = Bystander(port)
        threads = [threading.Thread(target=watch), *(threading.Thread(target=crowd) for _ in range(6))]
        for thread in threads:
            thread.start()
        handler_before = signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        try:
            with ignoring(Alarm), plan.in_connections(lambda: random.randrange(2000)):
                while time.monotonic() < end:
                    try:
                        armed = True
                        for conn in manager.connections:
                            if conn.request.headers.get("Sec-WebSocket-Extensions"):  # Not the bystander.
                                with suppress(ConnectionClosed, TimeoutError):
                                    conn.send("from the main thread" * 100)
                        armed = False
                    except Alarm:
                        armed = False
                    time.sleep(0.001)
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler_before)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a hang"
        logger.removeHandler(random_log)
        application.check(0)
    assert failures == []
    assert len(plan.points) > 30
    assert manager.shutdown(timeout=5)


class _RandomLog(logging.Handler):
    """A handler that raises now and then, whatever it likes."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Nothing of logging guards it."""
        if random.random() < 0.5:
            raise random.choice([LookupError, MemoryError, SystemExit, KeyboardInterrupt])
        return True
