"""Bytes on their way out of one connection: written, held together, waiting in the outbox, drained.

One lock, the send lock, guards everything here, the state of the connection, and each write to the socket. Nobody waits
for the peer or calls foreign code, logging included, while holding it.

What the kernel does not take at once waits in the outbox. A thread that waits for it (:meth:`Writer.wait_until`)
empties the outbox itself, one such thread at a time. What no thread waits for, the housekeeper sends.

Replies to messages that came together leave together: they are *held* until the connection's thread reads again, or
until the housekeeper sends them a moment later.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from . import clock
from .deadlines import Deadlines
from .ending import Ending, State
from .exceptions import ConnectionClosed
from .housekeeper import Housekeeper
from .locks import taking
from .options import Options
from .outbox import Entry, Outbox
from .registry import Registry
from .speedups import SendState
from .transport import Transport
from .wire.frames import CloseCode
from .wire.protocol import Protocol

_OPEN = State.OPEN  # Looking a member up in its enum costs as much as a function call.
# Replies that leave together are at most so many, and each smaller than so many bytes.
_HELD_MESSAGES, HELD_SIZE = 64, 4096
_FLUSHES = 16  # Writes without a pause.
_INTERRUPTED = "interrupted within a frame"
_LONGEST_POLL = 1.0  # Seconds. Whoever closes the socket wakes a poll, unless it begins in that moment.


class Writer(SendState):
    """What writes to one connection. The caller holds the send lock, where a method does not say otherwise.

    Attributes:
        id: the connection's.
        registry: where the connection is a member as long as it is open and was let in.
        ending: the connection's state.
        outbox: what the kernel did not take yet.
        transport: the connection's socket; None before it is open and after it is closed.
        deadlines: the connection's.
        is_let_in: whether the connection has become one of its manager's ``connections``. Nothing is clear before.
        is_resuming: whether the client has agreed to the subprotocol of clients that come back. Nothing is clear then,
            for each message needs a head (:mod:`wsthread.wire.resume`).
        options: the manager's.
        held: replies that are to leave together.
        messages_dropped: how many were given up for a peer that is too slow.
        is_slow: whether the outbox has overflown since it was empty.
    """

    __slots__ = (
        "id", "registry", "ending", "outbox", "transport", "deadlines", "is_let_in", "is_resuming", "messages_dropped",
        "options", "is_slow", "_housekeeper", "_is_watched", "_polled_by", "_progress", "held", "_is_flushed_soon",
        "_late_pong",
    )

    def __init__(
        self, id: str, options: Options, housekeeper: Housekeeper, registry: Registry[Any], ending: Ending,
        deadlines: Deadlines, protocol: Protocol,
    ) -> None:
        self.send_lock = threading.Lock()
        self.fd = -1
        self.clear = False
        self.compressed_from = protocol.compressed_from
        self.compression = protocol.compression
        self.bytes_sent = self.messages_sent = self.messages_dropped = 0
        self.id = id
        self.ending = ending
        self.outbox = Outbox()
        self.transport: Transport | None = None
        self.deadlines = deadlines
        self.is_let_in = self.is_resuming = False
        self.options = options
        self._housekeeper = housekeeper
        self.registry = registry
        self._is_watched = False  # Whether the housekeeper waits for the socket to take what is in the outbox.
        self._polled_by = 0  # The id of the thread that waits for the socket to take more, and is going to send it.
        self._progress: threading.Condition | None = None  # For the others who wait; made by the first of them.
        self.held: list[bytes] = []
        self._is_flushed_soon = False  # Whether the housekeeper was told of them.
        self.is_slow = False
        self._late_pong = b""  # What to send when the outbox is empty.

    # Without the send lock

    def renew_lock(self) -> None:
        """Let a child of a fork send; the thread that held the lock may not run there."""
        self.send_lock, self._progress = threading.Lock(), None

    @property
    def is_forgotten(self) -> bool:
        """Whether something waits, and nobody is going to send it: a signal handler raised in whoever had to see to it.
        """
        return self.outbox.size > 0 and not (self._is_watched or self._polled_by) or (
            bool(self.held) and not self._is_flushed_soon)

    def flush(self) -> None:
        """Send what the kernel takes now. Any thread may call it."""
        with taking(self.send_lock):
            self.flush_now()

    # Writing

    def set_transport(self, transport: Transport | None) -> None:
        """Begin to use a transport, or end it."""
        self.transport = transport
        self.fd = -1 if transport is None else transport.raw_descriptor
        self.update_clear()

    def update_clear(self) -> None:
        """Find out whether the next frame may go straight to the socket."""
        self.clear = self.ending.state is _OPEN and self.is_let_in and not (
            self.outbox.size or self.held or self.is_resuming)

    def write(self, data: bytes, messages: int = 0, droppable: bool = False) -> Entry | None:
        """Send bytes or put them into the outbox, for a caller that waits for them; return None when all have left.

        For ``messages`` and ``droppable`` see :class:`wsthread.outbox.Entry`.

        Raises:
            ConnectionClosed: the connection broke; it has been cut.
        """
        if self.held:
            data, messages, droppable = b"".join([*self.held, data]), messages + len(self.held), False
            self.held.clear()
            self.update_clear()
        before, sent = self.bytes_sent, 0
        try:
            if not self.outbox.size:
                sent = self._try(data)
                if sent == len(data):
                    self.messages_sent += messages
                    return None
            return self._keep(memoryview(data)[sent:] if sent else data, messages, droppable and not sent)
        except BaseException:
            self._cut_unless(before)
            raise

    def write_large(self, header: bytes, payload: bytes) -> Entry | None:
        """The same for a message in two pieces, which are not joined unless something waits."""
        if self.held or self.outbox.size:
            return self.write(header + payload, 1)
        before = self.bytes_sent
        try:
            sent = self._try(payload, header)
            missing = len(header) + len(payload) - sent
            if missing == 0:
                self.messages_sent += 1
                return None
            return self._keep(memoryview(payload)[-missing:] if missing < len(payload) else header[sent:] + payload, 1)
        except BaseException:
            self._cut_unless(before)
            raise

    def write_control(self, data: bytes) -> None:
        """Send a control frame, which no caller waits for."""
        try:
            if self.outbox.size and not self.held:
                self.outbox.add_control(data)
                self.clear = False
                self.watch()
            elif self.write(data) is not None:
                self.watch()
        except ConnectionClosed:
            pass

    def write_pong(self, data: bytes) -> None:
        """Send a Pong. A peer that takes nothing gets only the one to its last Ping, when it has taken what waits.

        RFC 6455 5.5.3 allows that.
        """
        if self.outbox.cost < self.options.max_outbox_size:
            self.write_control(data)
        else:
            self._late_pong = data

    def hold(self, data: bytes) -> None:
        """Keep a reply until those to the messages that came with its own leave as well.

        An application that takes its time does not delay them: the housekeeper sends them soon.
        """
        self.held.append(data)
        self.clear = False
        if len(self.held) >= _HELD_MESSAGES:
            self.flush_now()
        elif not self._is_flushed_soon:
            self._housekeeper.flush_soon(self._flush_held)
            self._is_flushed_soon = True

    def _flush_held(self) -> None:  # The housekeeper calls it, without the lock.
        with taking(self.send_lock):
            self._is_flushed_soon = False
            self.flush_now()

    def _try(self, data: bytes | memoryview, header: bytes = b"") -> int:
        """Write what the kernel takes now; return how many bytes that was.

        Raises:
            ConnectionClosed: the connection broke; it has been cut.
        """
        assert self.transport is not None
        try:
            sent = self.transport.send_both(header, bytes(data)) if header else self.transport.send(data)
            self.bytes_sent += sent
            return sent
        except OSError as error:
            self.broke(error)
            raise self.closed_error() from error
        except MemoryError:  # Nothing was sent.
            raise
        except BaseException:  # A signal handler came before that was counted.
            self.cut(_INTERRUPTED)
            raise

    def _cut_unless(self, bytes_sent: int) -> None:
        """Cut the connection after an exception, of a signal handler, say, or for want of memory.

        Unless no more was sent than these bytes: the rest of a frame, of which a part has left, is lost.
        """
        if self.bytes_sent != bytes_sent:
            self.cut(_INTERRUPTED)

    def _keep(self, data: bytes | memoryview, messages: int, droppable: bool = False) -> Entry:
        """Put into the outbox what the kernel does not take now."""
        entry = Entry(data, messages, droppable)
        self.outbox.add(entry)
        self.clear = False
        return entry

    # What send_small() and send_each() call; see SendState

    def write_now(self, frame: bytes) -> int:
        """Write what the kernel takes now; return how many bytes that was.

        Raises:
            OSError: the connection broke.
        """
        assert self.transport is not None
        return self.transport.send(frame)

    def keep_rest(self, frame: bytes, sent: int) -> None:
        """Let the rest of a frame wait of which a part has left."""
        self.bytes_sent += sent
        self._keep(memoryview(frame)[sent:], 1)
        self.watch()

    def send_rest(self, frame: bytes, sent: int, timeout: float | None) -> None:
        """Wait until the rest of a frame has left of which a part has; see :meth:`wait_done`."""
        self.bytes_sent += sent
        self.wait_done(self._keep(memoryview(frame)[sent:], 1), timeout)

    def broke(self, error: OSError) -> None:
        """Cut the connection, because the socket takes nothing any more."""
        self.cut(str(error))

    # Draining

    def flush_now(self) -> None:
        """Send what the kernel takes now, or a good part of it: others wait for the lock, and for the housekeeper."""
        outbox = self.outbox
        if self.transport is None:
            return
        has_waited = outbox.size > 0
        noted = self.bytes_sent
        try:
            if self.held:
                self.write(b"")
                noted = self.bytes_sent
            for _ in range(_FLUSHES):
                if not outbox.size:
                    break
                data = outbox.first
                sent = self._try(data)
                self.messages_sent += outbox.remove(sent)
                noted = self.bytes_sent
                if sent < len(data):
                    break
        except ConnectionClosed:
            pass
        except BaseException:
            self._cut_unless(noted)
            raise
        if outbox.size:
            self.watch()
        else:
            self.is_slow = False
            self.update_clear()
            self._unwatch()
            if has_waited and self.ending.state is State.CLOSING:  # Now the Close has left.
                self.deadlines.closing(clock.now(), self.bytes_sent)
            elif self._late_pong and self.ending.state is _OPEN:
                data, self._late_pong = self._late_pong, b""
                self.write_control(data)
        self._wake()

    def takes_more(self) -> bool:
        """Send what the kernel takes now and tell whether that was anything.

        To be asked before a slow peer is given up: a poll for writing answers only when much of the buffer is free.
        """
        sent = self.bytes_sent
        self.flush_now()
        return self.bytes_sent > sent

    def watch(self) -> None:
        """Let the housekeeper send what waits, if no other thread is going to."""
        if not (self._is_watched or self._polled_by or self.transport is None):
            self.deadlines.waiting(clock.now(), self.bytes_sent)
            self._is_watched = True
            try:
                self._housekeeper.watch(self.transport.fileno(), self.flush)
            except OSError as error:  # The system watches no more sockets.
                self._is_watched = False
                self.broke(error)
            except BaseException:  # Of a signal handler, say.
                self._is_watched = False
                raise

    def _unwatch(self) -> None:
        if self._is_watched and self.transport is not None:
            self._is_watched = False
            self._housekeeper.unwatch(self.transport.fileno())

    def wait_done(self, entry: Entry, timeout: float | None) -> None:
        """Wait until all of an entry has left; see :meth:`wait_until`."""
        self.wait_until(lambda: entry.done, math.inf if timeout is None else clock.now() + timeout)

    def wait_until(self, is_over: Callable[[], bool], deadline: float = math.inf) -> None:
        """Empty the outbox, or wait for another thread that does, until it has come so far.

        The lock is released while waiting.

        Raises:
            ConnectionClosed: the connection broke meanwhile.
            TimeoutError: the peer took nothing for ``write_timeout``, or the deadline is over. The connection is cut.
        """
        patience = math.inf if self.options.write_timeout is None else self.options.write_timeout
        sent, stuck_at = self.bytes_sent, clock.now() + patience
        try:
            while not is_over():
                if self.ending.failure is not None:
                    raise self.closed_error()
                now = clock.now()
                if self.bytes_sent > sent:
                    sent, stuck_at = self.bytes_sent, now + patience
                left = min(stuck_at, deadline) - now
                if left > 0:
                    self._wait(min(left, _LONGEST_POLL))
                elif now >= deadline or not self.takes_more():
                    self.cut("the peer took too long to read")
                    raise TimeoutError("the peer took too long to read; the connection is terminated")
        finally:
            self._wake()  # One of the others has to go on.
            if self.outbox.size:
                self.watch()  # A signal handler may keep us from it; see is_forgotten.

    def _wait(self, timeout: float) -> None:
        """Wait until the peer takes more and send it; the lock is released while waiting."""
        transport, poller, own = self.transport, self._polled_by, threading.get_ident()
        if transport is None or poller not in (0, own):  # A signal handler may send while its own thread waits here.
            if self._progress is None:
                self._progress = threading.Condition(self.send_lock)
            self._progress.wait(timeout)
            return
        self._polled_by = own
        try:
            self._unwatch()
            try:
                self.send_lock.release()  # A signal handler may raise as soon as it is released.
                transport.wait(writable=True, timeout=timeout)
            finally:
                _acquire(self.send_lock)
            self.flush_now()
        finally:
            self._polled_by = poller

    def _wake(self) -> None:
        """Let those who wait for the outbox look at it."""
        if self._progress is not None:
            self._progress.notify_all()

    # Ending

    def closed_error(self) -> ConnectionClosed:
        """Return what to raise in a call that came too late."""
        outcome = self.ending.outcome
        return ConnectionClosed() if outcome is None else ConnectionClosed(*outcome)

    def leave(self) -> None:
        """Be no member any more, for the state is not OPEN."""
        self.clear = False
        if self.is_let_in:
            self.registry.remove(self.id)

    def fail(self, code: int, reason: str) -> None:
        """Note that no Close of the peer will come, or count; see :mod:`wsthread.ending`."""
        self.ending.fail(code, reason)
        self.leave()

    def cut(self, reason: str) -> None:
        """Give up the TCP connection."""
        try:
            self._cut(reason)
        except BaseException:  # Of another signal handler, say, while one is what we are called for.
            self._cut(reason)
            raise

    def _cut(self, reason: str) -> None:  # Each step may be done again.
        self.ending.fail(CloseCode.ABNORMAL_CLOSURE, reason)
        self.clear = False
        try:
            if self.transport is not None:  # First of all, for it wakes the connection's own thread.
                self.transport.shutdown()
            self.held.clear()
            self.outbox.clear()
            self._unwatch()
            self._wake()
        finally:
            self.leave()


def _acquire(lock: threading.Lock) -> None:
    """Take a lock that the caller has to hold, whatever signal handlers raise meanwhile; then raise that."""
    raised: BaseException | None = None
    taken: list[bool] = []
    while not taken:
        try:
            # One step for Python, so that no signal handler comes between taking the lock and noting that.
            taken.extend(map(lock.acquire, (True,)))
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised
