"""One WebSocket connection: the protocol, its socket, its deadlines, and the calls an application makes.

Threads. Every connection has a thread of its own. That thread alone receives and ends the connection; callbacks
run in it. Everything else (:meth:`Connection.send`, :meth:`Connection.ping`, :meth:`Connection.close`,
:meth:`Connection.terminate` and the attributes) may be used from any thread. The send lock guards the protocol's
send half, the outbox and each write to the socket; nobody waits for the peer while holding it.

Life::

    CONNECTING ──101 is on its way──> OPEN ──Close sent or received──> CLOSING ──socket closed──> CLOSED
                                        └───────connection lost, terminate()──────────────────────^

A connection ends in one way only: its thread leaves :meth:`Connection.finish`. Whoever else wants it to end asks
for it (:meth:`Connection.close` sends a Close, :meth:`Connection.terminate` shuts the socket down), and the thread
wakes up from its read.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from werkzeug.wrappers import Request

from .deflate import Agreement
from .exceptions import ConnectionClosed, ProtocolError
from .frames import CloseCode, Opcode
from .housekeeper import Housekeeper
from .messages import Message, Payload, PreparedMessage
from .outbox import Outbox
from .protocol import Close, Protocol, encode_close
from .transport import RECV_SIZE, Transport

logger = logging.getLogger("wsthread")


class State(IntEnum):
    """The life of a connection, with the numbers of the browser's ``readyState``."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


@dataclass(frozen=True)
class Options:
    """What a manager's connections have in common; see :class:`wsthread.Manager`."""

    max_message_size: int | None
    max_outbox_size: int
    read_timeout: float | None
    write_timeout: float | None
    close_timeout: float

    def __post_init__(self) -> None:
        for name in ("max_message_size", "max_outbox_size", "read_timeout", "write_timeout", "close_timeout"):
            value = getattr(self, name)
            if value is None and name in ("max_message_size", "read_timeout", "write_timeout"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise ValueError(f"{name} is {value!r}, it must be a number greater than 0")


class Connection:
    """A WebSocket connection.

    Attributes:
        context: session data of the application; None at first. The library never touches it.
        request: the opening handshake as a Werkzeug Request (Flask's, when it came through Flask): args, headers,
            cookies, view_args. A snapshot without body and without the server's objects.
        subprotocol: the subprotocol agreed on, or None.
        close_code: None until the connection is CLOSED; then the code of the peer's Close (1005 when it had none),
            the code we failed the connection with when the peer broke the protocol, or 1006 when no Close came
            (RFC 6455 7.1.5).
        close_reason: None until CLOSED; then the peer's reason, or in our words what went wrong.
    """

    def __init__(
        self,
        request: Request,
        options: Options,
        housekeeper: Housekeeper,
        *,
        subprotocol: str | None = None,
        agreement: Agreement | None = None,
    ) -> None:
        self.context: Any = None
        self.request = request
        self.subprotocol = subprotocol
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._options = options
        self._housekeeper = housekeeper
        self._opened = threading.Event()
        # Owned by the connection's thread, as is the protocol's receive half.
        self._thread_id = 0
        self._messages_received = 0
        self._reading = False
        # Guarded by the send lock, as are the protocol's send half and each write to the transport.
        self._send_lock = threading.Lock()
        self._state = State.CONNECTING
        self._protocol = Protocol(max_message_size=options.max_message_size, agreement=agreement)
        self._outbox = Outbox()
        self._transport: Transport | None = None
        self._watched = False  # Whether the housekeeper waits for the socket to take what is in the outbox.
        self._failure: Close | None = None  # Why it ends without a Close of the peer; the first reason counts.
        self._close_deadline: float | None = None  # Monotonic seconds; when the peer's Close must be here.
        # Owned by the housekeeper: what it saw last, and since when.
        self._seen_received = (0, time.monotonic())
        self._seen_sent = (0, time.monotonic())

    def __str__(self) -> str:
        return f"WebSocket {self.remote_address or 'local'} {self.request.path}"

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

    def receive_message(self, timeout: float | None = None) -> Message:
        """Wait for the next message like :meth:`receive`; return it with its opcode, TEXT or BINARY."""
        if threading.get_ident() != self._thread_id:
            raise RuntimeError("only the connection's own thread may receive")
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._state is State.OPEN:
            event = self._next_event()
            if event is None:
                if self._state is State.OPEN:
                    self._read(deadline)
            elif event.opcode is Opcode.TEXT or event.opcode is Opcode.BINARY:
                self._messages_received += 1
                return event
        raise self._closed_error()

    def _next_event(self) -> Message | None:
        """Return the next event; what the protocol has to answer by itself is answered."""
        try:
            event = self._protocol.next_event()
        except ProtocolError as error:
            logger.warning("%s: the peer broke the protocol: %s", self, error)
            with self._send_lock:
                self._send_close(Close(error.code, error.reason))
                self._fail(error.code, error.reason)
            return None
        if event is None:
            return None
        if event.opcode is Opcode.PING:
            assert isinstance(event.payload, bytes)
            with self._send_lock:
                # A peer that takes nothing gets no more answers; RFC 6455 5.5.3 lets us skip pings.
                if self._state is State.OPEN and self._outbox.size < self._options.max_outbox_size:
                    self._write(self._protocol.send_pong(event.payload))
        elif event.opcode is Opcode.CLOSE:
            close = self._protocol.close_received
            assert close is not None
            with self._send_lock:
                self._send_close(Close(close.code))  # RFC 6455 5.5.1: the same code, typically.
        return event

    def _read(self, deadline: float | None) -> None:
        """Wait for bytes and give them to the protocol."""
        assert self._transport is not None
        if deadline is not None and not self._transport.wait(readable=True, timeout=deadline - time.monotonic()):
            raise TimeoutError("no message in time")
        self._reading = True
        self._receive_data(self._transport.recv)
        self._reading = False

    def _receive_data(self, recv: Callable[[int], bytes | None]) -> bool:
        """Give the protocol what ``recv`` returns; False when that was the end."""
        try:
            data = recv(RECV_SIZE)
            reason = "the TCP connection was closed without a Close frame"
        except OSError as error:
            data, reason = b"", str(error)
        if data:
            self._protocol.receive_data(data)
        elif data is not None:
            with self._send_lock:
                self._fail(CloseCode.ABNORMAL_CLOSURE, reason)
            return False
        return True

    def _closed_error(self) -> ConnectionClosed:
        close = self._ending()
        return ConnectionClosed() if close is None else ConnectionClosed(close.code, close.reason)

    def _ending(self) -> Close | None:
        return self._protocol.close_received or self._failure

    # Sending: any thread

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
        with self._send_lock:
            self._check_open()
            end = self._write(self._protocol.send_message(payload))
            if self._outbox.sent >= end:
                return
        self._wait_sent(end, timeout)

    def ping(self, payload: bytes = b"") -> None:
        """Send a Ping (RFC 6455 5.5.2) without waiting for anything. Any thread may call it.

        Args:
            payload: at most 125 bytes, which the Pong will repeat.

        Raises:
            ConnectionClosed: the connection is closing or closed.
            ValueError: the payload is too long.
        """
        data = self._protocol.send_ping(bytes(payload))
        with self._send_lock:
            self._check_open()
            self._write(data)

    def post(self, message: PreparedMessage) -> None:
        """Put a message on its way without waiting, as a broadcast does. Any thread may call it.

        A peer that leaves more than ``max_outbox_size`` untaken is closed with 1013.

        Raises:
            ConnectionClosed: the connection is closing or closed.
        """
        with self._send_lock:
            self._check_open()
            data = self._protocol.send_prepared(message)
            if self._outbox.size and self._outbox.size + len(data) > self._options.max_outbox_size:
                logger.warning("%s: closed, the peer is too slow: %d bytes wait", self, self._outbox.size)
                self._send_close(Close(CloseCode.TRY_AGAIN_LATER, "too slow"))
            else:
                self._write(data)

    def _check_open(self) -> None:
        """Refuse what the peer would not get; the send lock is held."""
        if self._state is not State.OPEN:
            raise self._closed_error()

    def _write(self, data: bytes) -> int:
        """Put bytes into the outbox, hand over what the kernel takes, return their end; the send lock is held."""
        end = self._outbox.put(data)
        self._flush()
        return end

    def _flush(self) -> None:
        """Hand over what the kernel takes now and leave the rest to the housekeeper; the send lock is held."""
        if self._transport is None:
            return
        try:
            self._outbox.flush(self._transport.send)
        except OSError as error:
            self._cut(str(error))
        if self._watched != (self._outbox.size > 0):
            self._watched = not self._watched
            if self._watched:
                self._housekeeper.watch(self._transport.fileno(), self.flush)
            else:
                self._housekeeper.unwatch(self._transport.fileno())

    def flush(self) -> None:
        """Hand over what the kernel takes now. Any thread may call it."""
        with self._send_lock:
            self._flush()

    def _wait_sent(self, end: int, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        write_timeout = self._options.write_timeout
        while True:
            with self._send_lock:
                sent, transport = self._outbox.sent, self._transport
                if sent >= end:
                    return
                if transport is None or self._failure is not None:
                    raise self._closed_error()
            limits = [write_timeout, None if deadline is None else deadline - time.monotonic()]
            transport.wait(writable=True, timeout=min((one for one in limits if one is not None), default=None))
            with self._send_lock:
                self._flush()
                late = deadline is not None and time.monotonic() >= deadline and self._outbox.sent < end
                if late or self._outbox.sent == sent and self._failure is None:
                    self._cut("the peer took too long to read")
                    raise TimeoutError("the peer took too long to read; the connection is terminated")

    # Ending

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Start the closing handshake (RFC 6455 7.1.2) without waiting for its end. Any thread may call it.

        The connection is CLOSED when the peer has answered, or after ``close_timeout``. A connection that is
        closing already stays as it is.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.

        Raises:
            ValueError: the code may not be sent or the reason is too long.
        """
        close = Close(code, reason)
        encode_close(close)  # A wrong call is wrong in every state.
        with self._send_lock:
            self._send_close(close)

    def terminate(self, reason: str = "terminated") -> None:
        """Cut the connection without a closing handshake. Any thread may call it; it waits for nothing.

        ``close_code`` will be 1006 unless a Close of the peer came before.

        Args:
            reason: what ``close_reason`` will be.
        """
        with self._send_lock:
            self._cut(reason)

    def _send_close(self, close: Close) -> None:
        """Send a Close if the connection is OPEN; the send lock is held."""
        if self._state is State.OPEN:
            self._state = State.CLOSING
            self._close_deadline = time.monotonic() + self._options.close_timeout
            self._write(self._protocol.send_close(close))

    def _fail(self, code: int, reason: str) -> None:
        """Note why no Close of the peer will come; the send lock is held."""
        if self._state is not State.CLOSED:
            self._state = State.CLOSING
        if self._failure is None:
            sent = self._protocol.close_sent
            if sent is not None and code == CloseCode.ABNORMAL_CLOSURE:
                reason = f"no answer to Close {sent.code}: {reason}"
            self._failure = Close(code, reason)

    def _cut(self, reason: str) -> None:
        """Give up the TCP connection; the send lock is held."""
        self._fail(CloseCode.ABNORMAL_CLOSURE, reason)
        self._outbox.clear()
        if self._transport is not None:
            self._transport.shutdown()

    # For the manager

    def open(self, transport: Transport, response: bytes, unread: bytes) -> None:
        """Go from CONNECTING to OPEN: send the 101 and let the connection's thread run."""
        with self._send_lock:
            self._transport = transport
            self._state = State.OPEN
            self._write(response)
        self._protocol.receive_data(unread)
        self._opened.set()

    def abandon(self) -> None:
        """Let the connection's thread end: there will be no 101."""
        self._opened.set()

    def wait_opened(self) -> bool:
        """Make the calling thread the connection's own and wait until it is OPEN; False when that will not be."""
        self._thread_id = threading.get_ident()
        self._opened.wait()
        return self._transport is not None

    def check(self, now: float) -> None:
        """Look at the deadlines; the housekeeper calls it, with the monotonic time."""
        options = self._options
        with self._send_lock:
            if self._close_deadline is not None and now >= self._close_deadline:
                self._cut(f"timeout of {options.close_timeout} s")
            elif self._outbox.size == 0 or self._outbox.sent != self._seen_sent[0]:
                self._seen_sent = (self._outbox.sent, now)
            elif options.write_timeout is not None and now - self._seen_sent[1] >= options.write_timeout:
                self._cut(f"the peer took nothing for {options.write_timeout} s")
            if not self._reading or self._messages_received != self._seen_received[0]:
                self._seen_received = (self._messages_received, now)
            elif options.read_timeout is not None and now - self._seen_received[1] >= options.read_timeout:
                self._send_close(Close(CloseCode.GOING_AWAY, f"no message for {options.read_timeout} s"))

    def finish(self) -> None:
        """Bring the closing handshake to its end and close the socket. The connection's thread, once."""
        transport = self._transport
        assert transport is not None
        self.close()
        while not self._is_over(transport):
            with self._send_lock:
                waiting = self._outbox.size > 0
            remaining = (self._close_deadline or 0.0) - time.monotonic()
            if not transport.wait(readable=True, writable=waiting, timeout=remaining):
                self.terminate(f"timeout of {self._options.close_timeout} s")
            elif not self._receive_data(transport.recv_now):
                break
        with self._send_lock:
            if self._watched:
                self._housekeeper.unwatch(transport.fileno())
            transport.close()
            self._transport = None
            ending = self._ending()
            assert ending is not None
            self.close_code, self.close_reason = ending
            self._state = State.CLOSED

    def _is_over(self, transport: Transport) -> bool:
        """Tell whether nothing is left to send and nothing to wait for."""
        while self._next_event() is not None:
            pass  # Messages that come after our Close are dropped, as a browser does.
        with self._send_lock:
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
