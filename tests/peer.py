"""A connection of a manager over a loopback TCP connection, without an HTTP server, and a raw peer at its other end."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from servers import wait_until
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request
from wire import client_frame

from wsthread import (
    Connection, ConnectionClosed, HandshakeError, ListenableManager, Manager, Opcode, SimpleManager, clock,
)
from wsthread.connection import link_of
from wsthread.deadlines import Deadlines
from wsthread.housekeeper import Housekeeper
from wsthread.link import Scope
from wsthread.manager import hub_of
from wsthread.options import Options
from wsthread.registry import Registry
from wsthread.sending import Sender
from wsthread.snapshot import Snapshot
from wsthread.transport import Transport
from wsthread.wire.deflate import Agreement
from wsthread.wire.protocol import Protocol

TIMEOUT = 10.0


class Peer:
    """The client's end, speaking raw frames."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(TIMEOUT)
        self._buffer = bytearray()

    def send(self, opcode: int, payload: bytes = b"", **fields: Any) -> None:
        """Send one masked frame."""
        self.socket.sendall(client_frame(opcode, payload, **fields))

    def close_frame(self, code: int = 1000, reason: str = "") -> None:
        """Send a Close."""
        self.send(Opcode.CLOSE, struct.pack("!H", code) + reason.encode())

    def read(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        first, length = self._take(2)
        if length == 126:
            length, = struct.unpack("!H", self._take(2))
        elif length == 127:
            length, = struct.unpack("!Q", self._take(8))
        return first & 0x0F, self._take(length)

    def read_close(self) -> int:
        """Return the code of the Close that comes next, 1005 for none."""
        opcode, payload = self.read()
        assert opcode == Opcode.CLOSE, (opcode, payload[:50])
        code: int = struct.unpack("!H", payload[:2])[0] if payload else 1005
        return code

    def at_eof(self) -> bool:
        """Tell whether the server closed the TCP connection, waiting for that."""
        assert not self._buffer
        return self.socket.recv(1) == b""

    def reset(self) -> None:
        """Cut the TCP connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"the server closed, {len(self._buffer)} bytes are left")
            self._buffer += data
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken


class Recorder:
    """A ListenableManager's callbacks, noted down."""

    def __init__(self, **options: Any) -> None:
        self.messages: list[tuple[Opcode, str | bytes]] = []
        self.closes: list[tuple[int | None, str | None]] = []
        self.errors: list[Exception] = []
        self.connected = threading.Event()
        self.closed = threading.Event()
        self.manager = ListenableManager(
            on_connect=self._on_connect, on_message=self._on_message, on_error=self._on_error,
            on_close=self._on_close, **options)

    def _on_connect(self, conn: Connection) -> None:
        self.connected.set()

    def _on_message(self, conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
        self.messages.append((opcode, payload))

    def _on_error(self, conn: Connection, error: Exception) -> None:
        self.errors.append(error)

    def _on_close(self, conn: Connection) -> None:
        self.closes.append((conn.close_code, conn.close_reason))
        self.closed.set()

    def wait_closed(self) -> tuple[int | None, str | None]:
        """Wait for on_close, make sure that it came once, and return code and reason."""
        assert self.closed.wait(TIMEOUT)
        assert len(self.closes) == 1
        return self.closes[0]


Connect = Callable[..., "tuple[Connection, Peer]"]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Return a function that opens a connection of a manager and returns it with its peer."""
    sockets: list[socket.socket] = []

    def open_connection(
        manager: Manager, path: str = "/ws?name=Ada", agreement: Agreement | None = None, unread: bytes = b"",
        scope: Scope | None = None, is_resuming: bool = False,
    ) -> tuple[Connection, Peer]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        sockets.append(client)
        environ = EnvironBuilder(path, environ_base={"REMOTE_ADDR": "127.0.0.1"}).get_environ()
        conn = hub_of(manager).prepare(Snapshot(Request(environ)), None, agreement, scope, is_resuming=is_resuming)
        link_of(conn).open(Transport(server), b"", unread)
        return conn, Peer(client)

    yield open_connection
    for sock in sockets:
        sock.close()


def sender_of(conn: Connection) -> Sender:
    """Return the sending half of a connection."""
    return link_of(conn).sender


def transport_of(conn: Connection) -> Transport:
    """Return the socket of a connection that has not ended."""
    transport = sender_of(conn).transport
    assert transport is not None
    return transport


def members(manager: Manager, connect: Connect, number: int) -> list[tuple[Connection, Peer]]:
    """Open connections and wait until all of them are members."""
    pairs = [connect(manager) for _ in range(number)]
    wait_until(lambda: len(manager.connections) == number)
    return pairs


def fill(conn: Connection) -> threading.Thread:
    """Send more than the kernel takes, in a thread."""
    thread = threading.Thread(
        target=lambda: pytest.raises((ConnectionClosed, TimeoutError), conn.send, bytes(64 << 20)))
    thread.start()
    wait_until(lambda: sender_of(conn).outbox.size)
    return thread


def refused(manager: Manager) -> HandshakeError:
    """Return why no more connections are accepted."""
    environ = EnvironBuilder("/ws", environ_base={"REMOTE_ADDR": "127.0.0.1"}).get_environ()
    with pytest.raises(HandshakeError) as error:
        hub_of(manager).prepare(Snapshot(Request(environ)), None, None)
    assert ("Retry-After", "5") in error.value.headers
    return error.value


class Half:
    """A sending half over a Unix socket, without a thread: deadlines are looked at when the test says so.

    Args:
        **options: of the manager that it does not have. Without them there are no Pings.
    """

    def __init__(self, **options: Any) -> None:
        server, client = socket.socketpair()
        self.peer = Peer(client)
        self.protocol = Protocol()
        self.opened_at = clock.now()
        self.registry: Registry[object] = Registry()
        self._housekeeper = Housekeeper()  # Its thread never starts.
        given = Options(**{"ping_interval": None, **options})
        deadlines = Deadlines(given, self.opened_at)
        self.sender = Sender("id", given, self._housekeeper, self.registry, self.protocol, deadlines)
        self.sender.open(Transport(server), b"")
        self.sender.let_in(self)

    def check(self, after: float) -> None:
        """Look at the deadlines so many seconds after the opening; the application waits for a message since then."""
        self.sender.check(self.opened_at + after, received=0, is_deaf=False, idle_since=self.opened_at)

    def is_cut(self) -> bool:
        """Tell whether the TCP connection was given up; what was sent before that is read."""
        self.peer.socket.setblocking(False)
        try:
            while self.peer.socket.recv(1 << 20):
                pass
        except BlockingIOError:
            return False
        return True

    def end(self) -> None:
        """Close all sockets."""
        if self.sender.transport is not None:
            self.sender.finish(self.sender.transport)
        self._housekeeper.close_after_fork()
        self.peer.socket.close()


@pytest.fixture
def open_half() -> Iterator[Callable[..., Half]]:
    """Return a function that makes a :class:`Half`."""
    halves: list[Half] = []

    def make(**options: Any) -> Half:
        halves.append(Half(**options))
        return halves[-1]

    yield make
    for half in halves:
        half.end()


def run_handler(connect: Connect, handler: Callable[[Connection], None], **options: Any) -> tuple[Connection, Peer]:
    """Open a connection of a SimpleManager."""
    return connect(SimpleManager(handler, **options))


@contextmanager
def ignoring(error: type[BaseException]) -> Iterator[None]:
    """Let Python ignore an exception that a signal handler raises in a finalizer, and no other one."""
    before = sys.unraisablehook
    ignored: list[Any] = []
    sys.unraisablehook = ignored.append  # Nothing in which a signal handler could raise again.
    try:
        yield
    finally:
        sys.unraisablehook = before
    for one in ignored:
        if one.exc_type is not error:
            before(one)
