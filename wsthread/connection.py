"""One WebSocket connection: the protocol, its socket, its deadlines, and the calls an application makes.

Threads. Every connection has a thread of its own. That thread alone receives and ends the connection; callbacks
run in it. Everything else (:meth:`Connection.send`, :meth:`Connection.ping`, :meth:`Connection.close`,
:meth:`Connection.terminate` and the attributes) may be used from any thread. :mod:`wsthread.sending` has the sending
half and its lock.

Life::

    CONNECTING ──101 is on its way──> OPEN ──Close sent or received──> CLOSING ──socket closed──> CLOSED
                                        └───────connection lost, terminate()──────────────────────^

A connection ends in one way only: its thread leaves :meth:`Connection.finish`. Whoever else wants it to end asks
for it (:meth:`Connection.close` sends a Close, :meth:`Connection.terminate` shuts the socket down), and the thread
wakes up from its read.
"""

from __future__ import annotations

import logging
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from werkzeug.wrappers import Request

from .deadlines import Action, Deadlines
from .exceptions import ConnectionClosed, ProtocolError
from .housekeeper import Housekeeper
from .options import Options
from .registry import Registry
from .sending import Sender, State, Totals
from .transport import IDLE_RECV_SIZE, RECV_SIZE, Transport
from .wire.deflate import Agreement
from .wire.frames import CloseCode, Opcode
from .wire.messages import Message
from .wire.protocol import Close, Protocol

logger = logging.getLogger("wsthread")

#: ``scope(conn)`` returns a context manager, within which a piece of the application's code runs.
Scope: TypeAlias = "Callable[[Connection], AbstractContextManager[Any]]"

# Plain names: looking a member up in its enum or a function up in its module costs as much as a function call.
_OPEN, _TEXT, _BINARY = State.OPEN, Opcode.TEXT, Opcode.BINARY
_get_ident, _monotonic = threading.get_ident, time.monotonic
_EOF = "the TCP connection was closed without a Close frame"
_LAST_READS = 0.1  # Seconds after a deadline to read what has come; a peer may send Pings, or parts, without end.
_REASON_LIMIT = 120  # Our own reasons are ASCII; a Close has room for 123 bytes.


class Connection(Sender):
    """A WebSocket connection.

    Attributes:
        id: a random name, unique among all connections.
        context: session data of the application; None at first. The library never touches it.
        request: the opening handshake as a Werkzeug Request (Flask's, when it came through Flask): args, headers,
            cookies, view_args. A snapshot without body and without the server's objects.
        subprotocol: the subprotocol agreed on, or None.
        scope: within what the application's code runs, each callback anew; None, the default, for nothing. It comes
            from :meth:`wsthread.Upgrader.upgrade`.
        close_code: None until the connection is CLOSED; then the code of the peer's Close (1005 when it had none),
            the code we failed the connection with when the peer broke the protocol, or 1006 when no Close came
            (RFC 6455 7.1.5).
        close_reason: None until CLOSED; then the peer's reason, or in our words what went wrong.
    """

    __slots__ = (
        "id", "context", "request", "subprotocol", "scope", "close_code", "close_reason", "callback", "__weakref__",
        "_registry", "_opening", "_opened_at", "_messages_received", "_bytes_received", "_recv_size", "_room",
        "_waiting_since", "_rate_allowance", "_rate_checked",
    )

    def __init__(
        self,
        request: Request,
        options: Options,
        housekeeper: Housekeeper,
        registry: Registry[Connection],
        *,
        subprotocol: str | None = None,
        agreement: Agreement | None = None,
        scope: Scope | None = None,
    ) -> None:
        now = _monotonic()
        super().__init__(
            options, housekeeper, Protocol(max_message_size=options.max_message_size, agreement=agreement),
            Deadlines(options, now, first_ping=random.uniform(0.5, 1.0)))
        self.id = secrets.token_hex(8)
        self.context: Any = None
        self.request = request
        self.subprotocol = subprotocol
        self.scope = scope
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._registry = registry
        self._opening = threading.Lock()  # Held until it is OPEN, or abandoned. An Event takes 1 KiB.
        self._opening.acquire()
        self._opened_at = now
        # Owned by the connection's thread, as is the protocol's receive half; others may look.
        self._messages_received = 0
        self._bytes_received = 0
        self._recv_size = IDLE_RECV_SIZE
        self._room: memoryview | None = None  # Where the protocol wants the next bytes, if that matters.
        self.callback: tuple[str, float] | None = None  # What the application runs, and since when.
        self._waiting_since: float | None = None  # Since when receive() waits; None while the application works.
        self._rate_allowance = max(options.max_message_rate or 1.0, 1.0)  # Messages that it lets through now.
        self._rate_checked = now

    def __str__(self) -> str:
        return f"WebSocket {self.remote_address or 'local'} {self.request.path!r}"

    # What it is: any thread

    @property
    def remote_address(self) -> str | None:
        """The client's address as the WSGI server, or ProxyFix, told it; None for a Unix socket."""
        return self.request.remote_addr or None

    @property
    def state(self) -> State:
        """The :class:`State` of this moment."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether the connection is CLOSED."""
        return self._state is State.CLOSED

    @property
    def latency(self) -> float | None:
        """Seconds between the last keepalive Ping and its Pong; None before the first."""
        return self._deadlines.latency

    @property
    def groups(self) -> frozenset[str]:
        """The groups it is in; none when it is closed."""
        return self._registry.groups(self.id)

    def join(self, group: str) -> None:
        """Put the connection into a group, for ``manager.broadcast(to=group)``. Any thread may call it.

        It leaves its groups when it closes. Joining twice is joining once.

        Raises:
            ConnectionClosed: the connection is closed.
        """
        if not self._registry.join(self.id, group):
            raise self._closed_error()

    def leave(self, group: str) -> None:
        """Take the connection out of a group; nothing happens when it is not in it. Any thread may call it."""
        self._registry.leave(self.id, group)

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

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield messages until the connection closes. Only the connection's thread may iterate."""
        while True:
            try:
                message = self.receive()
            except ConnectionClosed:
                return
            yield message
            del message  # The next one may take long to come.

    def receive_message(self, timeout: float | None = None) -> Message:
        """Wait for the next message like :meth:`receive`; return it with its opcode, TEXT or BINARY."""
        if _get_ident() != self._thread_id:
            raise RuntimeError("only the connection's own thread may receive")
        deadline = None if timeout is None else _monotonic() + timeout
        protocol = self._protocol
        try:
            while self._state is _OPEN:
                if not self._has_input:
                    if self._held:
                        self.flush()
                    self._read(deadline)
                    continue
                try:
                    event = protocol.next_event()
                except ProtocolError as error:
                    self._answer_violation(error)
                    continue
                if event is None:
                    self._has_input = False
                    self._room = protocol.room()
                    continue
                opcode = event[0]
                if opcode is _TEXT or opcode is _BINARY:
                    self._messages_received += 1
                    self._has_input = protocol.has_input
                    if self._options.max_message_rate is None or self._is_within_rate(self._options.max_message_rate):
                        return event
                else:
                    self._answer(event)
        finally:
            self._waiting_since = None
        raise self._closed_error()

    def _is_within_rate(self, rate: float) -> bool:
        """Count a message against ``max_message_rate``; close when it is over it."""
        now = time.monotonic()
        # What was not used is saved up, for one second.
        self._rate_allowance = min(max(rate, 1.0), self._rate_allowance + (now - self._rate_checked) * rate)
        self._rate_checked = now
        if self._rate_allowance < 1.0:
            logger.warning("%s: closed, it sends more than %g messages per second", self, rate)
            self.close(CloseCode.POLICY_VIOLATION, f"more than {rate:g} messages per second")
            return False
        self._rate_allowance -= 1.0
        return True

    def _answer_violation(self, error: ProtocolError) -> None:
        logger.warning("%s: the peer broke the protocol: %s", self, error)
        with self.send_lock:
            self._send_close(Close(error.code, error.reason[:_REASON_LIMIT]))
            self._fail(error.code, error.reason)

    def _answer(self, event: Message) -> None:
        """Do what a control frame asks for."""
        assert isinstance(event.payload, bytes)
        with self.send_lock:
            if event.opcode is Opcode.PING:
                # A peer that takes nothing gets no more answers; RFC 6455 5.5.3 lets us skip pings.
                if self._state is _OPEN and self._outbox.size < self._options.max_outbox_size:
                    self._write_unattended(self._protocol.send_pong(event.payload))
            elif event.opcode is Opcode.PONG:
                self._deadlines.pong(time.monotonic(), event.payload)
            elif event.opcode is Opcode.CLOSE:
                close = self._protocol.close_received
                assert close is not None
                self._send_close(Close(close.code))  # RFC 6455 5.5.1: the same code, typically.

    def _read(self, deadline: float | None) -> None:
        """Wait for bytes and give them to the protocol."""
        transport = self._transport
        assert transport is not None
        first = self._waiting_since is None
        if first:
            self._waiting_since = _monotonic()
        if deadline is not None:
            left = deadline - _monotonic()
            if not (first or left > -_LAST_READS) or not transport.wait(readable=True, timeout=left):
                raise TimeoutError("no message in time")
        try:
            if self._room is None:
                self._take(transport.recv(self._recv_size))
            else:
                self._take_into_room(transport.recv_into(self._room))
        except OSError as error:
            self._lose(str(error))

    def _read_now(self, transport: Transport) -> bool:
        """Give the protocol what is there; False when no more will come."""
        try:
            if self._room is None:
                data = transport.recv_now(RECV_SIZE)
                return data is None or self._take(data)
            count = transport.recv_into_now(self._room)
            return count is None or self._take_into_room(count)
        except OSError as error:
            self._lose(str(error))
            return False

    def _take(self, data: bytes) -> bool:
        count = len(data)
        if count:
            self._bytes_received += count
            self._recv_size = RECV_SIZE if count >= IDLE_RECV_SIZE else IDLE_RECV_SIZE
            self._protocol.receive_data(data)
            self._has_input = True
            return True
        self._lose(_EOF)
        return False

    def _take_into_room(self, count: int) -> bool:
        self._room = None
        if count:
            self._bytes_received += count
            self._protocol.filled(count)
            self._has_input = True
            return True
        self._lose(_EOF)
        return False

    def _lose(self, reason: str) -> None:
        """Note that no more bytes will come."""
        with self.send_lock:
            self._fail(CloseCode.ABNORMAL_CLOSURE, reason)

    # For the manager

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function of the application within the connection's scope. Any thread may call it."""
        if self.scope is None:
            function(*args)
        else:
            with self.scope(self):
                function(*args)

    def totals(self) -> Totals:
        """Return what went in and out so far."""
        return Totals(
            messages_received=self._messages_received, messages_sent=self.messages_sent,
            messages_dropped=self._messages_dropped, bytes_received=self._bytes_received, bytes_sent=self.bytes_sent)

    def describe(self, now: float) -> str:
        """Return one line for the operator: who it is, and what it does since when."""
        with self.send_lock:
            queued, last_pong = self._outbox.size, self._deadlines.last_pong
        waiting_since, callback = self._waiting_since, self.callback
        doing = f"in {callback[0]} for {now - callback[1]:.1f} s" if callback is not None else "between callbacks"
        if waiting_since is not None:
            doing = f"waiting for a message for {now - waiting_since:.1f} s"
        pong = "no pong yet" if last_pong is None else f"last pong {now - last_pong:.1f} s ago"
        groups = ", ".join(sorted(self.groups)) or "none"
        return (
            f"{self.id} {self} {self._state.name}, open for {now - self._opened_at:.1f} s, {doing}, {queued} bytes "
            f"queued, {pong}, groups: {groups}")

    def close_after_fork(self) -> None:
        """Close the child's copy of the socket; only the forking thread runs there, so no lock is taken."""
        if self._transport is not None:
            self.clear, self.fd = False, -1
            self._transport.close_copy()

    @property
    def age(self) -> float:
        """Seconds since the handshake."""
        return time.monotonic() - self._opened_at

    def open(self, transport: Transport, response: bytes, unread: bytes) -> None:
        """Go from CONNECTING to OPEN: send the 101 and let the connection's thread run."""
        with self.send_lock:
            self._transport, self.fd = transport, transport.fileno()
            self._state = State.OPEN
            self.clear = self._is_clear()
            self._write_unattended(response)
        if unread:
            self._protocol.receive_data(unread)
            self._has_input = True
        self._opening.release()

    def abandon(self) -> None:
        """Let the connection's thread end: there will be no 101."""
        self._opening.release()

    def wait_opened(self) -> bool:
        """Make the calling thread the connection's own and wait until it is OPEN; False when that will not be."""
        self._thread_id = threading.get_ident()
        self._opening.acquire()
        return self._transport is not None

    @property
    def due(self) -> float:
        """When to call :meth:`check` next, in monotonic seconds."""
        return self._deadlines.due

    def advance(self, seconds: float, now: float) -> None:
        """Let the deadlines be nearer, as if time had passed, for :mod:`wsthread.testing`."""
        with self.send_lock:
            self._deadlines.advance(seconds, now)

    def check(self, now: float) -> None:
        """Do what is due; the housekeeper calls it, with the monotonic time."""
        with self.send_lock:
            self._takes_more()
            # As long as a callback runs nobody reads, not even Pongs.
            unread = self._transport is not None and self._transport.wait(readable=True, timeout=0.0)
            action, reason = self._deadlines.check(
                now, received=self._bytes_received, unread=unread, sent=self.bytes_sent,
                waiting=self._outbox.size > 0, idle_since=self._waiting_since)
            if action is Action.PING and self._state is State.OPEN:
                self._write_unattended(self._protocol.send_ping(self._deadlines.ping_payload))
            elif action is Action.CLOSE:
                self._send_close(Close(CloseCode.GOING_AWAY, reason))
            elif action is Action.CUT:
                self._cut(reason)

    def finish(self) -> None:
        """Bring the closing handshake to its end and close the socket. The connection's thread, once."""
        transport = self._transport
        assert transport is not None
        try:
            self.close()
            while not self._is_over(transport):
                with self.send_lock:
                    waiting = self._outbox.size > 0
                # A peer that keeps sending is cut by the housekeeper when close_timeout is over.
                if not transport.wait(readable=True, writable=waiting, timeout=self._options.close_timeout):
                    self.terminate(f"timeout of {self._options.close_timeout:g} s")
                elif not self._read_now(transport):
                    break
        finally:  # Whatever fails, such as memory: a socket that stays open would be in the way of others.
            with self.send_lock:
                self._cut("closed")  # Wakes who still waits in send(), and closes TCP for every copy of the socket.
                transport.close()
                self._transport, self.fd = None, -1
                ending = self._ending()
                assert ending is not None
                self.close_code, self.close_reason = ending
                self._state = State.CLOSED

    def _is_over(self, transport: Transport) -> bool:
        """Tell whether nothing is left to send and nothing to wait for."""
        try:
            while (event := self._protocol.next_event()) is not None:
                if event.opcode is Opcode.CLOSE:  # Messages that come after our Close are dropped, as a browser does.
                    self._answer(event)
            self._room = self._protocol.room()
        except ProtocolError as error:
            self._answer_violation(error)
        with self.send_lock:
            self._flush()
            if self._outbox.size:
                return False
            if self._failure is None:
                return self._protocol.close_received is not None
            # After a violation the peer still has to read our Close: end our direction and wait for its EOF.
            if self._failure.code != CloseCode.ABNORMAL_CLOSURE:
                transport.shutdown(socket.SHUT_WR)
                return False
            return True
