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

- :func:`connect` returns when the connection is among those of its manager, and a broadcast reaches it; or when its
  ``on_connect``, or a handler that does nothing with it yet, has run for a tenth of a second;
- :meth:`WebSocket.receive` returns what the application sent;
- :meth:`WebSocket.wait_handled` returns when the application has handled all that was sent before;
- :meth:`WebSocket.ping` returns when the Pong has come, whatever the application does;
- :meth:`WebSocket.close` returns when ``on_close`` has returned.

An exception in a callback or a handler reaches the test: it is the cause of the ConnectionClosed that the next call
raises. If the test sees no such error and does not ask for ``close_code`` either, :meth:`WebSocket.close` and the end
of the ``with`` block raise the exception itself.

:func:`advance` lets time pass for keepalive and deadlines without waiting for it.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from werkzeug.datastructures import Headers
from werkzeug.test import Client, TestResponse

from . import clock, lifecycle
from .client import ClientConnection, new_key, receive_answer
from .connection import Connection, link_of
from .ending import State
from .exceptions import ConnectionClosed, HandshakeRefused, ProtocolError
from .housekeeper import TICK
from .hub import Hub
from .link import Link
from .servers.in_process import SOCKET_KEY
from .thread import observers
from .wire.client_handshake import request_headers
from .wire.frames import CloseCode
from .wire.protocol import Close

_THREAD = re.compile(r"wsthread-[0-9a-f]{16}")  # What the threads of connections are called, with their ids.
_PATIENCE = 0.1  # Seconds that a first callback may take before connect() returns without its end.
_EXIT_LIMIT = 0.3  # Seconds for the WebSockets that a test run has left open.
_ERRORS = "wsthread.testing.errors"  # Where a request's environ has a list of its own, for errors of the application.


class Refused(HandshakeRefused):
    """The application did not answer with a 101.

    Attributes:
        response: what it answered with, as from ``client.get()``.
    """

    def __init__(self, response: TestResponse) -> None:
        reason = response.status.partition(" ")[2]
        super().__init__(response.status_code, reason, response.headers, response.data)
        self.response = response


class WebSocket(ClientConnection):
    """A :class:`wsthread.client.ClientConnection` whose end waits for the application's.

    Attributes:
        response: the 101 as a response of Werkzeug's test client, with its headers.
        connection: the application's side, to look at; None when that was over at once.
    """

    def __init__(
        self, sock: socket.socket, response: TestResponse, unread: bytes, timeout: float,
        connection: Connection | None, errors: list[BaseException],
    ) -> None:
        super().__init__(
            sock, unread=unread, subprotocol=response.headers.get("Sec-WebSocket-Protocol"), headers=response.headers,
            timeout=timeout, max_message_size=None)
        self.response = response
        self.connection = connection
        self._errors = errors  # Of the application's code; its thread adds to them before it closes.
        self._is_told = False  # Whether the test has seen that there are some.
        self._is_looped = False  # Whether a loop of the test over the messages came to its end, which tells nothing.

    @property
    def close_code(self) -> int | None:
        """None while it is open; then the code of the server's Close, 1005 for none, or 1006 when no Close came."""
        self._is_told = self._is_told or bool(self._errors)
        return super().close_code

    def closed_error(self, ending: Close) -> ConnectionClosed:
        """Return what calls raise that come too late, with the application's exception as its cause."""
        error = super().closed_error(ending)
        if self._errors:
            self._is_told, error.__cause__ = True, self._errors[0]
        return error

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield messages until the server closes. Raises TimeoutError when one does not come in time."""
        is_told = self._is_told
        yield from super().__iter__()
        self._is_told, self._is_looped = is_told, True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        """Close it; after an exception only drop it, so that nothing hides what went wrong."""
        super().__exit__(kind, error, traceback)
        if error is None:
            self._raise_error()

    def wait_handled(self, timeout: float | None = None) -> None:
        """Wait until the application has handled all that was sent before, and waits for a message again.

        Args:
            timeout: seconds, None for those of the WebSocket.

        Raises:
            ConnectionClosed: it is closed, or was instead.
            TimeoutError: the application takes longer.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self.ping(timeout)
        while self.connection is not None and not link_of(self.connection).receiver.is_idle:
            if time.monotonic() > deadline:
                raise TimeoutError("the application is still busy")
            self.ping(max(0.0, deadline - time.monotonic()))  # It tells when the connection has ended.
            time.sleep(0.001)

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "", *, timeout: float | None = None) -> None:
        """Close it like any client, and wait until the application is done with it, ``on_close`` included.

        Raises:
            TimeoutError: the application takes longer; the connection is cut.
            ValueError: the code may not be sent or the reason is too long.
            Exception: what the application's code raised, if the test has not seen that yet.
        """
        begun, was_closed = time.monotonic(), self.closed
        super().close(code, reason, timeout=timeout)
        if not was_closed:
            self._join(begun, timeout)

    def terminate(self, *, timeout: float | None = None) -> None:
        """Cut it without a Close, as a client does that loses its network, and wait like :meth:`close`.

        Raises:
            TimeoutError: the application takes longer.
            Exception: what the application's code raised, if the test has not seen that yet.
        """
        super().terminate()
        self._join(time.monotonic(), timeout)

    def _join(self, begun: float, timeout: float | None) -> None:
        deadline = begun + (self.timeout if timeout is None else timeout)
        if self.connection is not None:
            name = _thread_name(self.connection)
            for thread in [one for one in threading.enumerate() if one.name == name]:
                thread.join(max(deadline - time.monotonic(), 0.0))
                if thread.is_alive():
                    raise TimeoutError("the application is not done with the connection")
        if not self._is_looped:  # Else the test may ask for the code now.
            self._raise_error()

    def _raise_error(self) -> None:
        if self._errors and not self._is_told:
            self._is_told = True
            raise self._errors[0]


def _note_error(conn: Connection, error: BaseException) -> None:
    errors = link_of(conn).snapshot.environ.get(_ERRORS)
    if errors is not None:
        errors.append(error)


observers.append(_note_error)


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
    if subprotocols:
        wanted.remove("Sec-WebSocket-Protocol")
    wanted.extend(request_headers(new_key(), subprotocols))
    lifecycle.limit_exit(_EXIT_LIMIT)
    errors: list[BaseException] = []
    before = set(threading.enumerate())
    ours, servers = socket.socketpair()
    with servers:
        overrides = {**options.pop("environ_overrides", {}), SOCKET_KEY: servers, _ERRORS: errors}
        try:
            response = client.open(
                path, headers=wanted, environ_overrides=overrides, buffered=True, **options)
            if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
                raise Refused(response)
            unread = _take_head(ours, response, timeout)
            connection = _find_connection(errors, before, timeout)
        except BaseException:
            ours.close()
            raise
    # As Flask's session_transaction does it. The response that the server got had none of these headers.
    client._update_cookies_from_response(
        response.request.host.partition(":")[0], response.request.path, response.headers.getlist("Set-Cookie"))
    return WebSocket(ours, response, unread, timeout, connection, errors)


def _take_head(sock: socket.socket, response: TestResponse, timeout: float) -> bytes:
    """Give a response the headers that came over the socket, and no others; return what came behind them."""
    try:
        answer, unread = receive_answer(sock, timeout)
    except (ConnectionClosed, ProtocolError) as error:
        raise Refused(response) from error
    response.headers.clear()
    response.headers.extend(answer.headers)
    return unread


def _find_connection(errors: list[BaseException], before: set[threading.Thread], timeout: float) -> Connection | None:
    """Wait until a manager has let a connection in; return it, None when it has come and gone.

    Args:
        errors: what the environ of its request has, and no other.
        before: the threads before its own was started.
        timeout: seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        threads = {one.name for one in threading.enumerate() if _THREAD.fullmatch(one.name) and one not in before}
        for conn in _alive():
            if link_of(conn).snapshot.environ.get(_ERRORS) is not errors:
                threads.discard(_thread_name(conn))  # Somebody else's, who may stay.
            elif _is_settled(link_of(conn), min(_PATIENCE, timeout / 2)):
                return conn
        if not threads:
            return None
        if time.monotonic() > deadline:
            raise TimeoutError("the connection's thread does not run")
        time.sleep(0.001)  # It only has to be scheduled.


def _is_settled(link: Link, patience: float) -> bool:
    """Tell whether a connection was let in, or will not be, or its first callback takes its time."""
    if link.sender.is_let_in or link.state is not State.OPEN:
        return True
    if link.sender.is_resuming and link.callback is None:
        return True  # It waits for what its client has seen.
    return link.callback is not None and clock.now() - link.callback[1] > patience


def _alive() -> list[Connection]:
    return [conn for hub in lifecycle.managers() if isinstance(hub, Hub) for conn in hub.alive()]


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
        seconds: at least 0. Deadlines are looked at as often in this time as they would be really.

    Raises:
        ValueError: less than 0.
    """
    if seconds < 0:
        raise ValueError(f"time does not go back by {-seconds:g} s")
    while seconds > 0:
        clock.advance(min(seconds, TICK))
        for hub in lifecycle.managers():
            hub.check(clock.now())
        seconds -= TICK
