"""One WebSocket connection: the protocol, its socket, its deadlines, and the calls an application makes.

Threads. Every connection has a thread of its own. That thread alone receives and ends the connection; callbacks
run in it. Everything else (:meth:`Connection.send`, :meth:`Connection.ping`, :meth:`Connection.close`,
:meth:`Connection.terminate` and the attributes) may be used from any thread. The send lock guards the protocol's
send half, the outbox and each write to the socket; nobody waits for the peer or calls foreign code, logging included,
while holding it.

Life::

    CONNECTING ──101 is on its way──> OPEN ──Close sent or received──> CLOSING ──socket closed──> CLOSED
                                        └───────connection lost, terminate()──────────────────────^

A connection ends in one way only: its thread leaves :meth:`Connection.finish`. Whoever else wants it to end asks
for it (:meth:`Connection.close` sends a Close, :meth:`Connection.terminate` shuts the socket down), and the thread
wakes up from its read.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum, IntEnum, auto
from typing import Any, NamedTuple

from werkzeug.wrappers import Request

from .deadlines import Action, Deadlines
from .deflate import Agreement
from .exceptions import ConnectionClosed, ProtocolError
from .frames import CloseCode, Opcode
from .housekeeper import Housekeeper
from .messages import Message, Payload, PreparedMessage
from .options import Options
from .outbox import Entry, Outbox
from .protocol import Close, Protocol, encode_close
from .registry import Registry
from .transport import IDLE_RECV_SIZE, RECV_SIZE, Transport

logger = logging.getLogger("wsthread")


class State(IntEnum):
    """The life of a connection, with the numbers of the browser's ``readyState``."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


class Totals(NamedTuple):
    """Counts of a connection, or of several."""

    messages_received: int = 0
    messages_sent: int = 0
    messages_dropped: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0


class Posted(Enum):
    """What became of a message that does not wait for its peer."""

    SENT = auto()
    QUEUED = auto()
    DROPPED = auto()
    FULL = auto()  # Nothing yet: with overflow="block", wait and try again.


# Plain names: looking a member up in its enum costs as much as a function call.
_OPEN, _TEXT, _BINARY = State.OPEN, Opcode.TEXT, Opcode.BINARY
# Replies that leave together are at most so many, and each smaller than so many bytes.
_HOLD_MESSAGES, _HOLD_LIMIT = 64, 4096
_REASON_LIMIT = 120  # Our own reasons are ASCII; a Close has room for 123 bytes.


class Connection:
    """A WebSocket connection.

    Attributes:
        id: a random name, unique among all connections.
        context: session data of the application; None at first. The library never touches it.
        request: the opening handshake as a Werkzeug Request (Flask's, when it came through Flask): args, headers,
            cookies, view_args. A snapshot without body and without the server's objects.
        subprotocol: the subprotocol agreed on, or None.
        close_code: None until the connection is CLOSED; then the code of the peer's Close (1005 when it had none),
            the code we failed the connection with when the peer broke the protocol, or 1006 when no Close came
            (RFC 6455 7.1.5).
        close_reason: None until CLOSED; then the peer's reason, or in our words what went wrong.
    """

    __slots__ = (
        "id", "context", "request", "subprotocol", "close_code", "close_reason", "callback", "__weakref__",
        "_options", "_housekeeper", "_registry", "_opening", "_opened_at", "_thread_id", "_messages_received",
        "_bytes_received", "_recv_size", "_has_input", "_waiting_since", "_rate_allowance", "_rate_checked",
        "_send_lock", "_state", "_protocol", "_outbox", "_transport", "_watched", "_held", "_flushed_soon", "_progress",
        "_slow", "_failure", "_deadlines", "_messages_dropped",
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
    ) -> None:
        now = time.monotonic()
        self.id = secrets.token_hex(8)
        self.context: Any = None
        self.request = request
        self.subprotocol = subprotocol
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._options = options
        self._housekeeper = housekeeper
        self._registry = registry
        self._opening = threading.Lock()  # Held until it is OPEN, or abandoned. An Event takes 1 KiB.
        self._opening.acquire()
        self._opened_at = now
        # Owned by the connection's thread, as is the protocol's receive half; others may look.
        self._thread_id = 0
        self._messages_received = 0
        self._bytes_received = 0
        self._recv_size = IDLE_RECV_SIZE
        self.callback: tuple[str, float] | None = None  # What the application runs, and since when.
        self._has_input = False  # Whether more messages may have come with the one that is being handled.
        self._waiting_since: float | None = None  # Since when receive() waits; None while the application works.
        self._rate_allowance = max(options.max_message_rate or 1.0, 1.0)  # Messages that it lets through now.
        self._rate_checked = now
        # Guarded by the send lock, as are the protocol's send half and each write to the transport.
        self._send_lock = threading.Lock()
        self._state = State.CONNECTING
        self._protocol = Protocol(max_message_size=options.max_message_size, agreement=agreement)
        self._outbox = Outbox()
        self._transport: Transport | None = None
        self._watched = False  # Whether the housekeeper waits for the socket to take what is in the outbox.
        self._held: list[bytes] = []  # Messages that leave together, before the thread reads again.
        self._flushed_soon = False  # Whether the housekeeper was told of them.
        self._progress: threading.Condition | None = None  # Made by the first who waits for the outbox.
        self._slow = False  # Whether the outbox has overflown since it was empty.
        self._failure: Close | None = None  # Why it ends without a Close of the peer; the first reason counts.
        self._deadlines = Deadlines(options, now, first_ping=random.uniform(0.5, 1.0))
        self._messages_dropped = 0

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

    def receive_message(self, timeout: float | None = None) -> Message:
        """Wait for the next message like :meth:`receive`; return it with its opcode, TEXT or BINARY."""
        if not self.is_own_thread():
            raise RuntimeError("only the connection's own thread may receive")
        deadline = None if timeout is None else time.monotonic() + timeout
        self._waiting_since = time.monotonic()
        try:
            while self._state is _OPEN:
                event = self._next_event()
                if event is None:
                    if self._held:
                        self.flush()
                    if self._state is _OPEN:
                        self._read(deadline)
                    continue
                opcode = event[0]
                if opcode is _TEXT or opcode is _BINARY:
                    self._messages_received += 1
                    self._has_input = self._protocol.has_input
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

    def _next_event(self) -> Message | None:
        """Return the protocol's next event; answer a violation."""
        try:
            return self._protocol.next_event()
        except ProtocolError as error:
            logger.warning("%s: the peer broke the protocol: %s", self, error)
            with self._send_lock:
                self._send_close(Close(error.code, error.reason[:_REASON_LIMIT]))
                self._fail(error.code, error.reason)
            return None

    def _answer(self, event: Message) -> None:
        """Do what a control frame asks for."""
        assert isinstance(event.payload, bytes)
        with self._send_lock:
            if event.opcode is Opcode.PING:
                # A peer that takes nothing gets no more answers; RFC 6455 5.5.3 lets us skip pings.
                if self._state is _OPEN and self._outbox.size < self._options.max_outbox_size:
                    self._write(self._protocol.send_pong(event.payload))
            elif event.opcode is Opcode.PONG:
                self._deadlines.pong(time.monotonic(), event.payload)
            elif event.opcode is Opcode.CLOSE:
                close = self._protocol.close_received
                assert close is not None
                self._send_close(Close(close.code))  # RFC 6455 5.5.1: the same code, typically.

    def _read(self, deadline: float | None) -> None:
        """Wait for bytes and give them to the protocol."""
        assert self._transport is not None
        if deadline is not None and not self._transport.wait(readable=True, timeout=deadline - time.monotonic()):
            raise TimeoutError("no message in time")
        self._receive_data(self._transport.recv)

    def _receive_data(self, recv: Callable[[int], bytes | None]) -> bool:
        """Give the protocol what ``recv`` returns; False when that was the end."""
        try:
            data = recv(self._recv_size)
            reason = "the TCP connection was closed without a Close frame"
        except OSError as error:
            data, reason = b"", str(error)
        if data:
            self._bytes_received += len(data)
            self._recv_size = RECV_SIZE if len(data) == self._recv_size else IDLE_RECV_SIZE
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
            if self._state is not _OPEN:
                raise self._closed_error()
            data = self._protocol.send_message(payload)
            if self._has_input and self._may_hold(data):
                self._hold(data)
                return
            entry = self._write(data, messages=1)
            if entry is not None:
                deadline = math.inf if timeout is None else time.monotonic() + timeout
                self._wait_for(lambda: entry.done, deadline)

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
            if self._state is not _OPEN:
                raise self._closed_error()
            self._write(data)

    def post(self, message: PreparedMessage) -> tuple[Posted, bool]:
        """Put a message on its way as a broadcast does, without waiting for the peer. Any thread may call it.

        Returns:
            What became of it, and whether the peer just became too slow.

        Raises:
            ConnectionClosed: the connection is closing or closed.
        """
        with self._send_lock:
            if self._state is not _OPEN:
                raise self._closed_error()
            data = self._protocol.send_prepared(message)
            slow = self._is_overflowing(len(data))
            newly_slow = slow and not self._slow
            self._slow = self._slow or slow
            if slow and self._options.overflow == "block":
                return Posted.FULL, newly_slow
            if slow and not self._make_room(len(data)):
                return Posted.DROPPED, newly_slow
            entry = self._write(data, messages=1, droppable=True)
            return Posted.SENT if entry is None else Posted.QUEUED, newly_slow

    def wait_progress(self) -> None:
        """Wait until the peer takes something of what waits. Any thread may call it.

        Raises:
            ConnectionClosed: the connection broke meanwhile.
            TimeoutError: it took nothing for ``write_timeout``. The connection is terminated.
        """
        with self._send_lock:
            sent = self._outbox.sent
            self._wait_for(lambda: self._outbox.sent > sent or not self._outbox.size, math.inf)

    def _is_overflowing(self, size: int) -> bool:
        return self._outbox.size > 0 and self._outbox.size + size > self._options.max_outbox_size

    def _make_room(self, size: int) -> bool:
        """Do what the overflow policy says; tell whether there is room now. The send lock is held."""
        outbox, overflow = self._outbox, self._options.overflow
        if overflow == "drop_oldest":
            self._messages_dropped += outbox.drop(max(0, self._options.max_outbox_size - size))
            if not self._is_overflowing(size):
                return True
        self._messages_dropped += 1
        if overflow == "close":
            self._messages_dropped += outbox.drop(0)
            self._send_close(Close(CloseCode.TRY_AGAIN_LATER, "too slow"))
        return False

    def _may_hold(self, data: bytes) -> bool:
        """Tell whether a message of the connection's own thread may leave a little later; the send lock is held."""
        return not self._outbox.size and len(data) < _HOLD_LIMIT and self.is_own_thread()

    def _hold(self, data: bytes) -> None:
        """Keep a message until those that came with its cause are handled as well; the send lock is held.

        Replies to messages that came together leave together. An application that takes its time does not delay them:
        the housekeeper sends them soon.
        """
        self._held.append(data)
        if len(self._held) >= _HOLD_MESSAGES:
            self._flush()
        elif not self._flushed_soon:
            self._flushed_soon = True
            self._housekeeper.flush_soon(self._flush_held)

    def _flush_held(self) -> None:
        with self._send_lock:
            self._flushed_soon = False
            self._flush()

    def _write(self, data: bytes, *, messages: int = 0, droppable: bool = False) -> Entry | None:
        """Send bytes or put them into the outbox, see :meth:`Outbox.write`; the send lock is held."""
        assert self._transport is not None
        if self._held:
            data, messages, droppable = b"".join([*self._held, data]), messages + len(self._held), False
            self._held.clear()
        try:
            entry = self._outbox.write(data, self._transport.send, messages=messages, droppable=droppable)
        except OSError as error:
            self._cut(str(error))
            return Entry(b"", messages, droppable)  # Never done.
        if entry is not None:
            self._watch(True)
        return entry

    def _flush(self) -> None:
        """Send what the kernel takes now; the send lock is held."""
        if self._transport is None:
            return
        if self._held:
            self._write(b"")
        try:
            self._outbox.flush(self._transport.send)
        except OSError as error:
            self._cut(str(error))
        if not self._outbox.size:
            self._slow = False
            self._watch(False)
        self._wake()

    def _wake(self) -> None:
        """Let those who wait for the outbox look at it; the send lock is held."""
        if self._progress is not None:
            self._progress.notify_all()

    def _watch(self, waiting: bool) -> None:
        """Let the housekeeper send what waits, or no more; the send lock is held."""
        if self._watched == waiting or self._transport is None:
            return
        self._watched = waiting
        if waiting:
            self._deadlines.waiting(time.monotonic(), self._outbox.sent)
            self._housekeeper.watch(self._transport.fileno(), self.flush)
        else:
            self._housekeeper.unwatch(self._transport.fileno())

    def flush(self) -> None:
        """Send what the kernel takes now. Any thread may call it."""
        with self._send_lock:
            self._flush()

    def _wait_for(self, is_over: Callable[[], bool], deadline: float) -> None:
        """Wait until the outbox has come so far; the housekeeper empties it. The send lock is held, not while waiting.

        Raises:
            ConnectionClosed: the connection broke meanwhile.
            TimeoutError: the peer took nothing for ``write_timeout``, or the deadline is over. The connection is
                terminated.
        """
        if self._progress is None:
            self._progress = threading.Condition(self._send_lock)
        patience = math.inf if self._options.write_timeout is None else self._options.write_timeout
        sent, stuck_at = self._outbox.sent, time.monotonic() + patience
        while not is_over():
            if self._failure is not None:
                raise self._closed_error()
            now = time.monotonic()
            if self._outbox.sent > sent:
                sent, stuck_at = self._outbox.sent, now + patience
            until = min(stuck_at, deadline)
            if now < until:
                self._progress.wait(None if until == math.inf else until - now)
            elif now >= deadline or not self._takes_more():
                self._cut("the peer took too long to read")
                raise TimeoutError("the peer took too long to read; the connection is terminated")

    def _takes_more(self) -> bool:
        """Send what the kernel takes now and tell whether that was anything; the send lock is held.

        To be asked before a slow peer is given up: a poll for writing answers only when much of the buffer is free.
        """
        sent = self._outbox.sent
        self._flush()
        return self._outbox.sent > sent

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
            self._deadlines.closing(time.monotonic())
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
        self._held.clear()
        self._outbox.clear()
        self._watch(False)
        self._wake()
        if self._transport is not None:
            self._transport.shutdown()

    # For the manager

    def totals(self) -> Totals:
        """Return what went in and out so far."""
        return Totals(
            messages_received=self._messages_received, messages_sent=self._outbox.messages,
            messages_dropped=self._messages_dropped, bytes_received=self._bytes_received, bytes_sent=self._outbox.sent)

    def describe(self, now: float) -> str:
        """Return one line for the operator: who it is, and what it does since when."""
        with self._send_lock:
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

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the peer."""
        return self._outbox.size

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is the connection's own."""
        return threading.get_ident() == self._thread_id

    def close_after_fork(self) -> None:
        """Close the child's copy of the socket; only the forking thread runs there, so no lock is taken."""
        if self._transport is not None:
            self._transport.close_copy()

    @property
    def age(self) -> float:
        """Seconds since the handshake."""
        return time.monotonic() - self._opened_at

    def open(self, transport: Transport, response: bytes, unread: bytes) -> None:
        """Go from CONNECTING to OPEN: send the 101 and let the connection's thread run."""
        with self._send_lock:
            self._transport = transport
            self._state = State.OPEN
            self._write(response)
        self._protocol.receive_data(unread)
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

    def check(self, now: float) -> None:
        """Do what is due; the housekeeper calls it, with the monotonic time."""
        with self._send_lock:
            self._takes_more()
            # As long as a callback runs nobody reads, not even Pongs.
            unread = self._transport is not None and self._transport.wait(readable=True, timeout=0.0)
            action, reason = self._deadlines.check(
                now, received=self._bytes_received, unread=unread, sent=self._outbox.sent,
                waiting=self._outbox.size > 0, idle_since=self._waiting_since)
            if action is Action.PING and self._state is State.OPEN:
                self._write(self._protocol.send_ping(self._deadlines.ping_payload))
            elif action is Action.CLOSE:
                self._send_close(Close(CloseCode.GOING_AWAY, reason))
            elif action is Action.CUT:
                self._cut(reason)

    def finish(self) -> None:
        """Bring the closing handshake to its end and close the socket. The connection's thread, once."""
        transport = self._transport
        assert transport is not None
        self.close()
        while not self._is_over(transport):
            with self._send_lock:
                waiting = self._outbox.size > 0
            # A peer that keeps sending is cut by the housekeeper when close_timeout is over.
            if not transport.wait(readable=True, writable=waiting, timeout=self._options.close_timeout):
                self.terminate(f"timeout of {self._options.close_timeout:g} s")
            elif not self._receive_data(transport.recv_now):
                break
        with self._send_lock:
            self._cut("closed")  # Wakes who still waits in send(), and closes the TCP connection for every copy of it.
            transport.close()
            self._transport = None
            ending = self._ending()
            assert ending is not None
            self.close_code, self.close_reason = ending
            self._state = State.CLOSED

    def _is_over(self, transport: Transport) -> bool:
        """Tell whether nothing is left to send and nothing to wait for."""
        while (event := self._next_event()) is not None:
            if event.opcode is Opcode.CLOSE:  # Messages that come after our Close are dropped, as a browser does.
                self._answer(event)
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
