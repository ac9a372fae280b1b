"""The public face of a connection: the calls and attributes of an application.

A :class:`Connection` holds session data and hands every call on to its :class:`wsthread.link.Link`. The rest of the
package gets at the link by :func:`link_of`, so that an application sees nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, Protocol

from werkzeug.wrappers import Request

from .ending import State
from .exceptions import ConnectionClosed, InvalidJSON
from .link import Link
from .locks import taking
from .presence import member_now
from .registry import Registry
from .sending import Sender
from .speedups import send_small
from .wire.frames import CloseCode
from .wire.messages import Message, Payload, PreparedMessage
from .wire.protocol import check_close


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} has no JSON")


# Strict, as RFC 8259 is; json.loads() would let NaN and infinities pass.
_encode_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_decode_json = json.JSONDecoder(parse_constant=_refuse_constant).decode


class Home(Protocol):
    """What a connection needs of its manager."""

    registry: Registry[Connection]

    def post(self, conn: Connection, message: PreparedMessage) -> bool:
        """Put a message on its way without waiting for the peer; see :meth:`Connection.post`."""

    def catch_up(self, conn: Connection) -> None:
        """Give a client that has come back what it has missed; the connection's thread calls it."""


class Connection:
    """A WebSocket connection.

    Attributes:
        context: session data of the application; None at first. The library never touches it.
        id: a random name, unique among all connections.
        subprotocol: the subprotocol agreed on, or None.
    """

    __slots__ = ("context", "id", "subprotocol", "_link", "_sender", "_home", "__weakref__")

    def __init__(self, link: Link, home: Home, subprotocol: str | None = None) -> None:
        self.context: Any = None
        self.id = link.sender.id
        self.subprotocol = subprotocol
        self._link = link
        self._sender = link.sender
        self._home = home

    def __str__(self) -> str:
        return str(self._link)

    # What it is: any thread

    @property
    def request(self) -> Request:
        """The opening handshake as a Werkzeug Request (Flask's, when it came through Flask).

        It has args, headers, cookies and view_args, and is a snapshot without body and without the server's objects.
        When it came through :mod:`wsthread.django`, it is Django's HttpRequest.
        """
        request: Request = self._link.snapshot.request
        return request

    @request.setter
    def request(self, request: Request) -> None:
        self._link.snapshot.request = request

    @property
    def remote_address(self) -> str | None:
        """The client's address as the WSGI server, or ProxyFix, told it; None for a Unix socket."""
        return self._link.snapshot.environ.get("REMOTE_ADDR") or None

    @property
    def state(self) -> State:
        """The :class:`State` of this moment."""
        return self._link.state

    @property
    def connected(self) -> bool:
        """Whether messages can go both ways: false as soon as a Close was sent or came, or the connection broke."""
        return self._link.state is State.OPEN and not self._link.receiver.has_peer_left

    @property
    def closed(self) -> bool:
        """Whether the connection is CLOSED: its socket is gone."""
        return self._link.state is State.CLOSED

    @property
    def close_code(self) -> int | None:
        """Why the connection ended, as soon as that is known; None before (RFC 6455 7.1.5).

        It is the code of the peer's Close, 1005 when that had none; or the code that the connection was failed with
        when the peer broke the protocol; or 1006 when no Close came.
        """
        outcome = self._link.outcome
        return None if outcome is None else outcome.code

    @property
    def close_reason(self) -> str | None:
        """None as long as ``close_code`` is; then the peer's reason, or in our words what went wrong."""
        outcome = self._link.outcome
        return None if outcome is None else outcome.reason

    @property
    def latency(self) -> float | None:
        """Seconds between the last keepalive Ping and its Pong; None before the first."""
        return self._sender.deadlines.latency

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the peer."""
        return self._sender.outbox.size

    @property
    def groups(self) -> frozenset[str]:
        """The groups it is in; none when it is closing or closed."""
        return self._home.registry.groups(self.id)

    # Groups

    def join(self, group: str, *, info: Any = None) -> None:
        """Put the connection into a group, for ``manager.broadcast(to=group)``. Any thread may call it.

        It leaves its groups when it begins to close. Joining twice is joining once.

        Args:
            group: its name.
            info: who it is, for ``manager.members(group)`` of all processes: anything that has JSON. None when it is to
                be no member there, or when what it told before still holds.

        Raises:
            ConnectionClosed: the connection is closing or closed.
            TypeError: the group is no str; the info has no JSON.
            ValueError: the info has no JSON.
        """
        if not isinstance(group, str):
            raise TypeError(f"a group is a str, not {group!r}")
        told = None if info is None else member_now(self.id, info)
        self._let_in()
        if not self._home.registry.join(self.id, group, told):
            with taking(self._sender.send_lock):
                raise self._sender.closed_error()

    def leave(self, group: str) -> None:
        """Take the connection out of a group; nothing happens when it is not in it. Any thread may call it.

        Raises:
            TypeError: the group is no str.
        """
        if not isinstance(group, str):
            raise TypeError(f"a group is a str, not {group!r}")
        self._home.registry.leave(self.id, group)

    # Receiving: the connection's thread

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Wait for the next message. Only the connection's thread may call it.

        Pings are answered meanwhile.

        Args:
            timeout: seconds, None for no limit.

        Returns:
            A str for a text message, bytes for a binary one.

        Raises:
            TimeoutError: no message came in time; the connection is as it was and nothing is lost.
            ConnectionClosed: the connection is closing; no more messages will come.
            RuntimeError: called from another thread.
        """
        return self.receive_message(timeout).payload

    def receive_message(self, timeout: float | None = None) -> Message:
        """Wait for the next message like :meth:`receive`; return it with its opcode, TEXT or BINARY."""
        if not self._sender.is_let_in or self._sender.is_behind:
            settle(self)
        return self._link.receiver.receive_message(timeout)

    def receive_json(self, timeout: float | None = None) -> Any:
        """Wait for the next message like :meth:`receive`; return the value that its JSON stands for (RFC 8259).

        In a binary message it is JSON in UTF-8.

        Raises:
            InvalidJSON: the message is no JSON, or nested too deeply. It is a ValueError too; the connection stays
                open.
            TimeoutError, ConnectionClosed, RuntimeError: see :meth:`receive`.
        """
        message = self.receive(timeout)
        try:
            return _decode_json(message if isinstance(message, str) else message.decode())
        except (ValueError, RecursionError) as error:
            raise InvalidJSON(message, str(error)) from error

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield messages until the connection closes. Only the connection's thread may iterate."""
        while True:
            try:
                message = self.receive()
            except ConnectionClosed:
                return
            yield message
            del message  # The next one may take long to come.

    # Sending

    def send(self, payload: Payload, *, timeout: float | None = None) -> None:
        """Send a message and wait until the kernel has all of it. Any thread may call it.

        Messages of several threads never mix; those of one thread leave in its order.

        Args:
            payload: a str goes as text; bytes, bytearray or memoryview go as binary.
            timeout: seconds the whole call may take; None to wait as long as the peer takes something within
                each ``write_timeout``.

        Raises:
            ConnectionClosed: the connection is closing or closed; the peer did not get the message, or not all of it.
            TimeoutError: the peer was too slow. A part of the message may have left, so the connection is terminated.
            TypeError: the payload is neither str nor bytes-like.
        """
        sender = self._sender
        if sender.is_corked or not send_small(sender, payload, timeout):
            if not sender.is_let_in:
                self._let_in()
            sender.send(payload, timeout)

    def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send a value as JSON in a text message (RFC 8259), like :meth:`send`.

        Raises:
            TypeError: the value has no JSON.
            ValueError: likewise: it holds a NaN, an infinity or itself, or is nested too deeply.
            ConnectionClosed, TimeoutError: see :meth:`send`.
        """
        try:
            text = _encode_json(value)
        except RecursionError as error:
            raise ValueError("the value is nested too deeply for JSON") from error
        self.send(text, timeout=timeout)

    def post(self, payload: Payload) -> bool:
        """Send a message without waiting for the peer, as a broadcast to this one does. Any thread may call it.

        What the peer does not take at once waits for it. When more than ``max_outbox_size`` bytes wait, the
        ``overflow`` policy holds: with ``"block"`` the call does wait.

        Args:
            payload: as for :meth:`send`.

        Returns:
            False when the message was dropped because the peer is too slow.

        Raises:
            ConnectionClosed: the connection is closing or closed.
            TypeError: the payload is neither str nor bytes-like.
        """
        message = PreparedMessage(payload)
        self._let_in()
        return self._home.post(self, message)

    def ping(self, payload: bytes = b"") -> None:
        """Send a Ping (RFC 6455 5.5.2) without waiting for anything. Any thread may call it.

        Args:
            payload: at most 125 bytes, which the Pong will repeat.

        Raises:
            ConnectionClosed: the connection is closing or closed.
            TypeError: the payload is not bytes-like.
            ValueError: the payload is too long.
        """
        if not isinstance(payload, (bytes, bytearray, memoryview)):  # bytes(20) would be 20 zeros.
            raise TypeError(f"the payload of a Ping is bytes-like, not {payload!r}")
        self._let_in()
        self._sender.ping(bytes(payload))

    # Ending

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Start the closing handshake (RFC 6455 7.1.2) without waiting for its end. Any thread may call it.

        The connection is CLOSED when the peer has answered, or after ``close_timeout``. A connection that is
        closing already stays as it is.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.

        Raises:
            TypeError: the code is no int or the reason no str.
            ValueError: the code may not be sent or the reason is too long.
        """
        self._sender.close(check_close(code, reason))  # A wrong call is wrong in every state.

    def terminate(self, reason: str = "terminated") -> None:
        """Cut the connection without a closing handshake. Any thread may call it; it waits for nothing.

        ``close_code`` will be 1006 unless a Close of the peer came before.

        Args:
            reason: what ``close_reason`` will be.
        """
        self._sender.terminate(reason)

    def _let_in(self) -> None:
        if not self._sender.is_let_in:
            self._sender.let_in(self)


def link_of(conn: Connection) -> Link:
    """Return the inside of a connection, for the rest of the package."""
    return conn._link


def senders_of(connections: Iterable[Connection]) -> tuple[Sender, ...]:
    """Return the sending halves of connections."""
    return tuple([conn._sender for conn in connections])


def let_in(conn: Connection) -> None:
    """Make a connection one of its manager's, as long as it is open."""
    conn._let_in()


def settle(conn: Connection) -> None:
    """Let a connection in, and give a client that has come back what it has missed.

    It is called when the application has done what it does first, such as joining groups.
    """
    conn._let_in()
    if conn._sender.is_behind and conn._sender.is_own_thread():
        conn._sender.is_behind = False
        conn._home.catch_up(conn)
