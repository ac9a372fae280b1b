"""The sending half of a connection: what leaves it, in which order, and what happens to a peer that does not take it.

One lock, the send lock, guards the protocol's send half, the outbox, each write to the socket, and the state of the
connection. Nobody waits for the peer or calls foreign code, logging included, while holding it.

What the kernel does not take at once waits in the outbox. Those who wait for it in :meth:`Sender.send` empty it
themselves, one of them at a time; what nobody waits for, the housekeeper sends.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from enum import Enum, IntEnum, auto
from typing import NamedTuple

from .deadlines import Deadlines
from .exceptions import ConnectionClosed
from .housekeeper import Housekeeper
from .options import Options
from .outbox import Entry, Outbox
from .speedups import SendState, send_small
from .transport import Transport
from .wire.frames import CloseCode
from .wire.messages import Payload, PreparedMessage
from .wire.protocol import Close, Protocol, encode_close


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


# Plain names: looking a member up in its enum or a function up in its module costs as much as a function call.
_OPEN = State.OPEN
_get_ident = threading.get_ident
# Replies that leave together are at most so many, and each smaller than so many bytes.
_HOLD_MESSAGES, _HOLD_LIMIT = 64, 4096
_LARGE = 1 << 15  # Bytes of a payload that is not copied behind its header.
_LONGEST_POLL = 1.0  # Seconds. Whoever closes the socket wakes a poll, unless it begins in that moment.


class Sender(SendState):
    """What of a connection any thread may use; see :class:`wsthread.Connection`."""

    __slots__ = (
        "_options", "_housekeeper", "_thread_id", "_has_input", "_state", "_protocol", "_outbox", "_transport",
        "_watched", "_held", "_flushed_soon", "_polled", "_progress", "_slow", "_failure", "_deadlines",
        "_messages_dropped",
    )

    def __init__(self, options: Options, housekeeper: Housekeeper, protocol: Protocol, deadlines: Deadlines) -> None:
        self._options = options
        self._housekeeper = housekeeper
        self._thread_id = 0  # Of the connection's own thread; 0 before it runs.
        self._has_input = False  # Whether the protocol may have more events; the connection's thread owns it.
        # Guarded by the send lock, as are the protocol's send half and each write to the transport.
        self.send_lock = threading.Lock()
        self.clear = False  # Whether a frame may go straight to the socket: the state is OPEN and nothing waits.
        self.compressed_from = protocol.compressed_from
        self.fd = -1
        self.bytes_sent = 0
        self.messages_sent = 0
        self._state = State.CONNECTING
        self._protocol = protocol
        self._outbox = Outbox()
        self._transport: Transport | None = None
        self._watched = False  # Whether the housekeeper waits for the socket to take what is in the outbox.
        self._held: list[bytes] = []  # Messages that leave together, before the thread reads again.
        self._flushed_soon = False  # Whether the housekeeper was told of them.
        self._polled = False  # Whether a thread waits for the socket to take more, and is going to send it.
        self._progress: threading.Condition | None = None  # For the others who wait; made by the first of them.
        self._slow = False  # Whether the outbox has overflown since it was empty.
        self._failure: Close | None = None  # Why it ends without a Close of the peer; the first reason counts.
        self._deadlines = deadlines
        self._messages_dropped = 0

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is the connection's own."""
        return _get_ident() == self._thread_id

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the peer."""
        return self._outbox.size

    # For the application

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
        if not self._has_input and send_small(self, payload, timeout):
            return
        with self.send_lock:
            if self._state is not _OPEN:
                raise self._closed_error()
            if type(payload) is bytes and len(payload) >= _LARGE:
                entry = self._write_large(payload)
            else:
                data = self._protocol.send_message(payload)
                if self._has_input and self._may_hold(data):
                    self._hold(data)
                    return
                entry = self._write(data, 1)
            if entry is not None:
                self._wait_done(entry, timeout)

    def ping(self, payload: bytes = b"") -> None:
        """Send a Ping (RFC 6455 5.5.2) without waiting for anything. Any thread may call it.

        Args:
            payload: at most 125 bytes, which the Pong will repeat.

        Raises:
            ConnectionClosed: the connection is closing or closed.
            ValueError: the payload is too long.
        """
        data = self._protocol.send_ping(bytes(payload))
        with self.send_lock:
            if self._state is not _OPEN:
                raise self._closed_error()
            self._write_unattended(data)

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
        with self.send_lock:
            self._send_close(close)

    def terminate(self, reason: str = "terminated") -> None:
        """Cut the connection without a closing handshake. Any thread may call it; it waits for nothing.

        ``close_code`` will be 1006 unless a Close of the peer came before.

        Args:
            reason: what ``close_reason`` will be.
        """
        with self.send_lock:
            if self._held:
                self._flush()  # The kernel was to have it when send() returned.
            self._cut(reason)

    # For the manager

    def post(self, message: PreparedMessage) -> tuple[Posted, bool]:
        """Put a message on its way as a broadcast does, without waiting for the peer. Any thread may call it.

        Returns:
            What became of it, and whether the peer just became too slow.

        Raises:
            ConnectionClosed: the connection is closing or closed.
        """
        with self.send_lock:
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
            entry = self._write_unattended(data, 1, True)
            if self._failure is not None:  # The connection broke just now, or we see it only now.
                raise self._closed_error()
            return Posted.SENT if entry is None else Posted.QUEUED, newly_slow

    def wait_progress(self) -> None:
        """Wait until the peer takes something of what waits. Any thread may call it.

        Raises:
            ConnectionClosed: the connection broke meanwhile.
            TimeoutError: it took nothing for ``write_timeout``. The connection is terminated.
        """
        with self.send_lock:
            sent = self.bytes_sent
            self._wait_for(lambda: self.bytes_sent > sent or not self._outbox.size, math.inf)

    def flush(self) -> None:
        """Send what the kernel takes now. Any thread may call it."""
        with self.send_lock:
            self._flush()

    # Everything below: the send lock is held

    def _closed_error(self) -> ConnectionClosed:
        close = self._ending()
        return ConnectionClosed() if close is None else ConnectionClosed(close.code, close.reason)

    def _ending(self) -> Close | None:
        return self._protocol.close_received or self._failure

    def _is_overflowing(self, size: int) -> bool:
        return self._outbox.size > 0 and self._outbox.size + size > self._options.max_outbox_size

    def _make_room(self, size: int) -> bool:
        """Do what the overflow policy says; tell whether there is room now."""
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
        """Tell whether a message of the connection's own thread may leave a little later."""
        return len(data) < _HOLD_LIMIT and not self._outbox.size and self.is_own_thread()

    def _hold(self, data: bytes) -> None:
        """Keep a message until those that came with its cause are handled as well.

        Replies to messages that came together leave together. An application that takes its time does not delay them:
        the housekeeper sends them soon.
        """
        self._held.append(data)
        self.clear = False
        if len(self._held) >= _HOLD_MESSAGES:
            self._flush()
        elif not self._flushed_soon:
            self._flushed_soon = True
            self._housekeeper.flush_soon(self._flush_held)

    def _flush_held(self) -> None:  # The housekeeper calls it, without the lock.
        with self.send_lock:
            self._flushed_soon = False
            self._flush()

    def _write(self, data: bytes, messages: int = 0, droppable: bool = False) -> Entry | None:
        """Send bytes or put them into the outbox, for a caller that waits for them; return None when all have left.

        For ``messages`` and ``droppable`` see :class:`Entry`.
        """
        assert self._transport is not None
        if self._held:
            data, messages, droppable = b"".join([*self._held, data]), messages + len(self._held), False
            self._held.clear()
            self.clear = self._is_clear()
        sent = 0
        if not self._outbox.size:
            try:
                sent = self._transport.send(data)
            except OSError as error:
                return self._break(error)
            self.bytes_sent += sent
            if sent == len(data):
                self.messages_sent += messages
                return None
        return self._keep(memoryview(data)[sent:] if sent else data, messages, droppable and not sent)

    def _write_unattended(self, data: bytes, messages: int = 0, droppable: bool = False) -> Entry | None:
        """The same for a caller that does not wait."""
        entry = self._write(data, messages, droppable)
        if entry is not None:
            self._watch()
        return entry

    def _write_large(self, payload: bytes) -> Entry | None:
        """Send a message without a copy behind its header, if nothing else waits."""
        header = self._protocol.send_header(payload)
        if header is None:
            return self._write(self._protocol.send_message(payload), 1)
        if self._held or self._outbox.size:
            return self._write(header + payload, 1)
        assert self._transport is not None
        try:
            sent = self._transport.send_both(header, payload)
        except OSError as error:
            return self._break(error)
        self.bytes_sent += sent
        missing = len(header) + len(payload) - sent
        if missing == 0:
            self.messages_sent += 1
            return None
        return self._keep(memoryview(payload)[-missing:] if missing < len(payload) else header[sent:] + payload, 1)

    def _keep(self, data: bytes | memoryview, messages: int, droppable: bool = False) -> Entry:
        """Put into the outbox what the kernel does not take now."""
        entry = Entry(data, messages, droppable)
        self._outbox.add(entry)
        self.clear = False
        return entry

    def write_now(self, frame: bytes) -> int:
        """Write what the kernel takes now of a frame whose way is clear."""
        assert self._transport is not None
        return self._transport.send(frame)

    def keep_rest(self, frame: bytes, sent: int) -> None:
        """Keep the rest of a broadcast's frame, of which a part was sent."""
        self.bytes_sent += sent
        self._keep(memoryview(frame)[sent:], 1)
        self._watch()

    def send_rest(self, frame: bytes, sent: int, timeout: float | None) -> None:
        """Send the rest of a message, of which a part was sent."""
        self.bytes_sent += sent
        self._wait_done(self._keep(memoryview(frame)[sent:], 1), timeout)

    def broke(self, error: OSError) -> None:
        """Give up the connection, which broke when something was written."""
        self._cut(str(error))

    def _break(self, error: OSError) -> Entry:
        self.broke(error)
        return Entry(b"")  # Never done.

    def _is_clear(self) -> bool:
        return self._state is _OPEN and not (self._outbox.size or self._held)

    def _flush(self) -> None:
        """Send what the kernel takes now."""
        transport, outbox = self._transport, self._outbox
        if transport is None:
            return
        if self._held:
            self._write(b"")
        try:
            while outbox.size:
                data = outbox.first
                sent = transport.send(data)
                self.bytes_sent += sent
                self.messages_sent += outbox.remove(sent)
                if sent < len(data):
                    break
        except OSError as error:
            self._cut(str(error))
        if self._outbox.size:
            self._watch()
        else:
            self._slow = False
            self.clear = self._is_clear()
            self._unwatch()
        self._wake()

    def _wake(self) -> None:
        """Let those who wait for the outbox look at it."""
        if self._progress is not None:
            self._progress.notify_all()

    def _watch(self) -> None:
        """Let the housekeeper send what waits, if nobody else is going to."""
        if not (self._watched or self._polled or self._transport is None):
            self._deadlines.waiting(time.monotonic(), self.bytes_sent)
            try:
                self._housekeeper.watch(self._transport.fileno(), self.flush)
                self._watched = True
            except OSError as error:  # The system watches no more sockets.
                self._cut(str(error))

    def _unwatch(self) -> None:
        if self._watched and self._transport is not None:
            self._watched = False
            self._housekeeper.unwatch(self._transport.fileno())

    def _wait_for(self, is_over: Callable[[], bool], deadline: float) -> None:
        """Empty the outbox, or wait for another thread that does, until it has come so far.

        The lock is released while waiting.

        Raises:
            ConnectionClosed: the connection broke meanwhile.
            TimeoutError: the peer took nothing for ``write_timeout``, or the deadline is over. The connection is
                terminated.
        """
        patience = math.inf if self._options.write_timeout is None else self._options.write_timeout
        sent, stuck_at = self.bytes_sent, time.monotonic() + patience
        try:
            while not is_over():
                if self._failure is not None:
                    raise self._closed_error()
                now = time.monotonic()
                if self.bytes_sent > sent:
                    sent, stuck_at = self.bytes_sent, now + patience
                left = min(stuck_at, deadline) - now
                if left > 0:
                    self._wait(min(left, _LONGEST_POLL))
                elif now >= deadline or not self._takes_more():
                    self._cut("the peer took too long to read")
                    raise TimeoutError("the peer took too long to read; the connection is terminated")
        finally:
            self._wake()  # One of the others has to go on.
            if self._outbox.size:
                self._watch()

    def _wait_done(self, entry: Entry, timeout: float | None) -> None:
        self._wait_for(lambda: entry.done, math.inf if timeout is None else time.monotonic() + timeout)

    def _wait(self, timeout: float) -> None:
        """Wait until the peer takes more and send it; the lock is released while waiting."""
        transport = self._transport
        if transport is None or self._polled:
            if self._progress is None:
                self._progress = threading.Condition(self.send_lock)
            self._progress.wait(timeout)
            return
        self._polled = True
        self._unwatch()
        self.send_lock.release()
        try:
            transport.wait(writable=True, timeout=timeout)
        finally:
            self.send_lock.acquire()
            try:
                self._flush()
            finally:
                self._polled = False

    def _takes_more(self) -> bool:
        """Send what the kernel takes now and tell whether that was anything.

        To be asked before a slow peer is given up: a poll for writing answers only when much of the buffer is free.
        """
        sent = self.bytes_sent
        self._flush()
        return self.bytes_sent > sent

    def _send_close(self, close: Close) -> None:
        """Send a Close if the connection is OPEN."""
        if self._state is State.OPEN:
            self._state = State.CLOSING
            self.clear = False
            self._deadlines.closing(time.monotonic())
            self._write_unattended(self._protocol.send_close(close))

    def _fail(self, code: int, reason: str) -> None:
        """Note why no Close of the peer will come."""
        if self._state is not State.CLOSED:
            self._state = State.CLOSING
        self.clear = False
        if self._failure is None:
            sent = self._protocol.close_sent
            if sent is not None and code == CloseCode.ABNORMAL_CLOSURE:
                reason = f"no answer to Close {sent.code}: {reason}"
            self._failure = Close(code, reason)

    def _cut(self, reason: str) -> None:
        """Give up the TCP connection."""
        self._fail(CloseCode.ABNORMAL_CLOSURE, reason)
        self._held.clear()
        self._outbox.clear()
        self._unwatch()
        self._wake()
        if self._transport is not None:
            self._transport.shutdown()
