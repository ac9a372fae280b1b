"""WebSockets in tests: no server, no port, no threads of yours.

::

    from wsthread import testing

    with testing.connect(app, "/echo") as ws:       # any WSGI application, or a test client of Werkzeug or Flask
        ws.send("hello")
        assert ws.receive() == "hello"

:func:`connect` calls the application in the calling thread, as Werkzeug's test client does, and shows it one end of a
socketpair where a server shows its socket. So what runs is all that runs in production but for the HTTP server: the
view, the upgrade, the connection with its thread. The other end is a :class:`WebSocket`, which belongs to the test.

Everything waits for the other side and nothing waits for ever: each wait has a deadline and raises TimeoutError. Only
the view takes the time it takes, because it runs in the calling thread. So a test never has to sleep:

- :func:`connect` returns when the connection is among those of its manager, and a broadcast reaches it;
- :meth:`WebSocket.receive` returns what the application sent;
- :meth:`WebSocket.ping` returns when the application has handled all that was sent before;
- :meth:`WebSocket.close` returns when ``on_close`` has returned.

:func:`advance` lets time pass for keepalive and deadlines without waiting for it.
"""

from __future__ import annotations

import base64
import math
import re
import secrets
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from werkzeug.datastructures import Headers
from werkzeug.test import Client, TestResponse

from . import lifecycle
from .connection import Connection
from .exceptions import ConnectionClosed, WebSocketError
from .housekeeper import TICK
from .manager import Manager
from .servers.in_process import SOCKET_KEY
from .wire.frames import CloseCode, Frame, Opcode, encode_frame
from .wire.handshake import WEBSOCKET_VERSION
from .wire.messages import Message, MessageReader, Payload, to_octets
from .wire.protocol import Close, encode_close, parse_close

_RECV_SIZE = 1 << 16
_THREAD = re.compile(r"wsthread-[0-9a-f]{16}")  # What the threads of connections are called, with their ids.
_TOKEN = "wsthread.testing"  # Where a request's environ has what tells it from all others.


class Refused(WebSocketError):
    """The application did not answer with a 101.

    Attributes:
        response: what it answered with, as from ``client.get()``.
    """

    def __init__(self, response: TestResponse) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"{self.response.status}: {self.response.data.decode(errors='replace')[:200].strip()}"


class WebSocket:
    """The client's end of a WebSocket. It belongs to one thread, and answers Pings only while it is called.

    Attributes:
        response: the 101 as a response of Werkzeug's test client, with its headers.
        connection: the application's side, to look at; None when that was over at once.
        subprotocol: the subprotocol agreed on, or None.
        timeout: seconds that a call waits unless it is told otherwise.
        pings: how many Pings of the server came so far.
        close_code: None while it is open; then the code of the server's Close, 1005 when that had none, or 1006 when
            the connection ended without one.
        close_reason: likewise; the server's reason, or "" without one.
    """

    def __init__(
        self, sock: socket.socket, response: TestResponse, unread: bytes, timeout: float,
        connection: Connection | None,
    ) -> None:
        self.response = response
        self.connection = connection
        self.subprotocol = response.headers.get("Sec-WebSocket-Protocol")
        self.timeout = timeout
        self.pings = 0
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._socket = sock
        self._reader = MessageReader(masked=False)
        self._reader.feed(unread)
        self._messages: deque[str | bytes] = deque()  # Those that came while something else was waited for.
        self._pong = b""  # The payload of the last one.
        self._close_sent = False

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        """Close it; after an exception only drop it, so that nothing hides what went wrong."""
        if error is None:
            self.close()
        else:
            self._socket.close()

    def send(self, payload: Payload, *, timeout: float | None = None) -> None:
        """Send a message.

        Args:
            payload: a str goes as text; bytes, bytearray or memoryview go as binary.
            timeout: seconds, None for those of the WebSocket.

        Raises:
            ConnectionClosed: the server has closed it.
            TimeoutError: the application does not read.
            TypeError: the payload is neither str nor bytes-like.
        """
        opcode, octets = to_octets(payload)
        self._send(Frame(opcode, octets), self._deadline(timeout))

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Return the next message: a str for text, bytes for binary.

        Args:
            timeout: seconds, None for those of the WebSocket.

        Raises:
            ConnectionClosed: there are no more; its code and reason are those of the server's Close.
            TimeoutError: none came in time.
        """
        deadline = self._deadline(timeout)
        while not self._messages:
            self._raise_if_closed()
            self._read(deadline)
        return self._messages.popleft()

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield messages until the server closes. Raises TimeoutError when one does not come in time."""
        while True:
            try:
                message = self.receive()
            except ConnectionClosed:
                return
            yield message

    def ping(self, timeout: float | None = None) -> None:
        """Send a Ping and wait for its Pong, which comes when the application has handled all that was sent before.

        The server's Pings are answered meanwhile, and messages kept for :meth:`receive`.

        Args:
            timeout: seconds, None for those of the WebSocket.

        Raises:
            ConnectionClosed: it is closed, or was instead.
            TimeoutError: there was no Pong in time, perhaps because a callback takes longer.
        """
        deadline, payload = self._deadline(timeout), secrets.token_bytes(4)
        self._send(Frame(Opcode.PING, payload), deadline)
        while self._pong != payload:
            self._raise_if_closed()
            self._read(deadline)

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "", *, timeout: float | None = None) -> None:
        """Close it, unless the server did, and wait until the application is done with it, ``on_close`` included.

        Messages that come meanwhile can still be received. Nothing happens the second time.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.
            timeout: seconds, None for those of the WebSocket.

        Raises:
            TimeoutError: the application takes longer; the connection is cut.
            ValueError: the code may not be sent or the reason is too long.
        """
        encode_close(Close(code, reason))
        if self._socket.fileno() < 0:
            return
        deadline = self._deadline(timeout)
        try:
            self._take_arrived()
            self._send_close(Close(code, reason), deadline)
            while self.close_code is None:
                self._read(deadline)
            while self._recv(deadline):  # Nothing counts behind a Close, but the server ends the connection.
                pass
        finally:
            self._socket.close()
        self._join(deadline)

    def terminate(self, *, timeout: float | None = None) -> None:
        """Cut it without a Close, as a client does that loses its network, and wait like :meth:`close`.

        Args:
            timeout: seconds, None for those of the WebSocket.

        Raises:
            TimeoutError: the application takes longer.
        """
        self._socket.close()
        self._note_close(Close(CloseCode.ABNORMAL_CLOSURE))
        self._join(self._deadline(timeout))

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    def _raise_if_closed(self) -> None:
        if self.close_code is not None:
            raise ConnectionClosed(self.close_code, self.close_reason or "")

    def _send(self, frame: Frame, deadline: float) -> None:
        self._take_arrived()
        self._raise_if_closed()
        try:
            self._write(frame, deadline)
        except TimeoutError:
            raise TimeoutError("the application does not read") from None
        except OSError:
            while self.close_code is None:  # What it said before it closed.
                self._read(deadline)
            self._raise_if_closed()

    def _reply(self, frame: Frame, deadline: float) -> None:
        try:
            self._write(frame, deadline)
        except OSError:
            pass  # The application closed, or does not read; whoever waits for it is going to see that.

    def _write(self, frame: Frame, deadline: float) -> None:
        """Write a frame; keep what comes meanwhile, for the application may read on only when that is taken."""
        rest = memoryview(encode_frame(frame, secrets.token_bytes(4)))
        arrived: list[bytes] = []
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        try:
            while rest:
                try:
                    self._socket.settimeout(0.0)
                    rest = rest[self._socket.send(rest):]
                except BlockingIOError:
                    left = deadline - time.monotonic()
                    if left <= 0 or not (events := poll.poll(math.ceil(left * 1000))):
                        raise TimeoutError from None
                    if events[0][1] & select.POLLIN:
                        arrived.append(self._recv(deadline))
                        if not arrived[-1]:
                            raise BrokenPipeError from None
        finally:
            self._reader.feed(b"".join(arrived))

    def _send_close(self, close: Close, deadline: float) -> None:
        if not self._close_sent:
            self._close_sent = True
            self._reply(Frame(Opcode.CLOSE, encode_close(close)), deadline)

    def _read(self, deadline: float) -> None:
        """Take the next frame or message, or the end of the connection; answer what wants an answer."""
        while (message := self._reader.next_message()) is None:
            data = self._recv(deadline)
            if not data:
                self._note_close(Close(CloseCode.ABNORMAL_CLOSURE))
                return
            self._reader.feed(data)
        self._handle(message, deadline)

    def _handle(self, message: Message, deadline: float) -> None:
        opcode, payload = message
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            self._messages.append(payload)
            return
        assert isinstance(payload, bytes)
        if opcode is Opcode.PING:
            self.pings += 1
            self._reply(Frame(Opcode.PONG, payload), deadline)
        elif opcode is Opcode.PONG:
            self._pong = payload
        else:
            close = parse_close(payload)
            self._send_close(Close(close.code), deadline)
            self._note_close(close)

    def _take_arrived(self) -> None:
        """Do what a client does that reads all the time, before it sends."""
        try:
            while self.close_code is None:
                self._read(0.0)
        except TimeoutError:
            pass  # That was all.

    def _recv(self, deadline: float) -> bytes:
        try:
            self._settimeout(deadline)
            return self._socket.recv(_RECV_SIZE)
        except (TimeoutError, BlockingIOError):
            raise TimeoutError("the application sent nothing in time") from None
        except OSError:
            return b""

    def _settimeout(self, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.0))  # With 0 it raises BlockingIOError.

    def _note_close(self, close: Close) -> None:
        if self.close_code is None:
            self.close_code, self.close_reason = close

    def _join(self, deadline: float) -> None:
        if self.connection is not None:
            name = _thread_name(self.connection)
            for thread in [one for one in threading.enumerate() if one.name == name]:
                thread.join(max(deadline - time.monotonic(), 0.0))
                if thread.is_alive():
                    raise TimeoutError("the application is not done with the connection")


def connect(
    app: Callable[..., Any] | Client,
    path: str = "/",
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    timeout: float = 5.0,
    **options: Any,
) -> WebSocket:
    """Open a WebSocket to an application, in process.

    Args:
        app: a WSGI application; or a test client of Werkzeug or Flask, which sends its cookies and keeps those that
            the 101 sets.
        path: of the request, with the query string if there is one; also an absolute URL, as ``url_for`` returns it.
        headers: more headers of the request, such as ``Origin``.
        subprotocols: those the client offers. Compression is not offered.
        timeout: seconds for the connection to run after the 101, and for each later call that is not told otherwise.
            Default 5.
        **options: as for Werkzeug's ``EnvironBuilder``: ``base_url``, ``query_string``, ``environ_overrides``.

    Returns:
        The open WebSocket; it is a context manager that closes it.

    Raises:
        Refused: the answer was no 101; the exception has it. What the application raises is raised as it is.
        TimeoutError: nothing came over the socket behind a 101.
    """
    client = app if isinstance(app, Client) else Client(app, use_cookies=False)
    scheme, host, path, *rest = urlsplit(path)
    path = urlunsplit(("", "", path, *rest))
    if host:
        options["base_url"] = f"{scheme.replace('ws', 'http')}://{host}"
    wanted = Headers(headers)
    wanted.extend({
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": WEBSOCKET_VERSION,
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode()})
    if subprotocols:
        wanted["Sec-WebSocket-Protocol"] = ", ".join(subprotocols)
    token = object()
    before = set(threading.enumerate())
    ours, servers = socket.socketpair()
    ours.settimeout(timeout)
    with servers:
        overrides = {**options.pop("environ_overrides", {}), SOCKET_KEY: servers, _TOKEN: token}
        try:
            response = client.open(
                path, headers=wanted, environ_overrides=overrides, buffered=True, **options)
            if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
                raise Refused(response)
            unread = _take_head(ours, response)
            connection = _find_connection(token, before, timeout)
        except BaseException:
            ours.close()
            raise
    # As Flask's session_transaction does it. The response that the server got had none of these headers.
    client._update_cookies_from_response(
        response.request.host.partition(":")[0], response.request.path, response.headers.getlist("Set-Cookie"))
    return WebSocket(ours, response, unread, timeout, connection)


def _take_head(sock: socket.socket, response: TestResponse) -> bytes:
    """Give a response the headers that came over the socket, and no others; return what came behind them."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = sock.recv(_RECV_SIZE)
        if not received:
            raise Refused(response)
        data += received
    response.headers.clear()
    head, _, unread = data.partition(b"\r\n\r\n")
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        response.headers.add(name, value.strip())
    return unread


def _find_connection(token: object, before: set[threading.Thread], timeout: float) -> Connection | None:
    """Wait until a manager has the connection with this token, and return it; None when it has come and gone.

    Args:
        token: what the environ of its request has.
        before: the threads before its own was started.
        timeout: seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        threads = {one.name for one in threading.enumerate() if _THREAD.fullmatch(one.name) and one not in before}
        for manager in lifecycle.managers():
            for conn in manager.connections if isinstance(manager, Manager) else ():
                if conn.request.environ.get(_TOKEN) is token:
                    return conn
                threads.discard(_thread_name(conn))  # Somebody else's, who may stay.
        if not threads:
            return None
        if time.monotonic() > deadline:
            raise TimeoutError("the connection's thread does not run")
        time.sleep(0.001)  # It only has to be scheduled.


def _thread_name(conn: Connection) -> str:
    return f"wsthread-{conn.id}"


def advance(seconds: float) -> None:
    """Let time pass for all connections of this process: their Pings, and the timeouts of their manager.

    A call that waits, such as the application's ``receive(timeout=5)``, still takes its time. And because nothing
    happens by itself here, a :class:`WebSocket` that does not call :meth:`WebSocket.ping` or another of its methods
    afterwards is a peer that has vanished::

        testing.advance(20)                 # The server sends a Ping, with its default ping_interval.
        ws.ping()                           # It is answered on the way.
        testing.advance(45)                 # The next one is not.
        with pytest.raises(ConnectionClosed):
            ws.receive()

    Args:
        seconds: at least 0. Managers look at their deadlines as often in this time as they would really.

    Raises:
        ValueError: less than 0.
    """
    if seconds < 0:
        raise ValueError(f"time does not go back by {-seconds:g} s")
    begun = time.monotonic()
    while seconds > 0:
        for manager in lifecycle.managers():
            for conn in manager.connections if isinstance(manager, Manager) else ():
                conn.advance(min(seconds, TICK), begun)
            manager.check(time.monotonic())
        seconds -= TICK
