"""The sending half of a connection: messages and control frames, their order, and what a slow peer gets.

Any thread may call what does not say otherwise. The send lock (:mod:`wsthread.writing`) guards the protocol's send half
and the state, besides what it guards there; :mod:`wsthread.ending` has the table of states.
"""

from __future__ import annotations

import threading
from typing import Any

from . import clock
from .deadlines import Action, Deadlines
from .ending import Ending, State
from .exceptions import ProtocolError
from .housekeeper import Housekeeper
from .locks import taking
from .options import Options
from .outbox import Entry
from .overflow import Excess, Posted, is_overflowing, judge
from .registry import Registry
from .speedups import send_each
from .transport import Transport
from .wire.frames import CloseCode
from .wire.messages import Payload, PreparedMessage
from .wire.protocol import Close, Protocol
from .wire.resume import with_head
from .writing import HELD_SIZE, Writer

_OPEN = State.OPEN  # Looking a member up in its enum or a function up in its module costs as much as a function call.
_get_ident = threading.get_ident
_LARGE = 1 << 15  # Bytes of a payload that is not copied behind its header.
_REASON_LIMIT = 120  # Our own reasons are ASCII; a Close has room for 123 bytes.


class Sender(Writer):
    """The sending half of one connection.

    Attributes:
        protocol: the receiving half has the same one.
        is_corked: whether messages of the peer wait to be handled that came together with the one before, so that
            replies may be held. The connection's thread owns it.
        thread_id: of the connection's own thread; 0 before it runs.
        is_behind: whether the client is still to be given what it has missed. The connection's thread owns it.
    """

    __slots__ = ("protocol", "is_corked", "thread_id", "is_behind", "_window_lock")

    def __init__(
        self, id: str, options: Options, housekeeper: Housekeeper, registry: Registry[Any], protocol: Protocol,
        deadlines: Deadlines,
    ) -> None:
        super().__init__(id, options, housekeeper, registry, Ending(protocol), deadlines, protocol)
        self.protocol = protocol
        self.is_corked = self.is_behind = False
        self.thread_id = 0
        # Guards the compression window, and the order of what refers to it. It comes before the send lock.
        self._window_lock = threading.Lock() if protocol.keeps_window else None

    # Messages

    def send(self, payload: Payload, timeout: float | None) -> None:
        """Send a message and wait until the kernel has all of it; see :meth:`wsthread.Connection.send`."""
        if self.ending.state is not _OPEN:  # Before the work of compressing.
            raise self.closed_error()
        if self.is_resuming:
            payload = with_head(payload)
        if isinstance(payload, bytes) and len(payload) >= _LARGE:
            header = self.protocol.send_header(payload)
            if header is not None:
                with taking(self.send_lock):
                    self._check_open()
                    entry = self.write_large(header, payload)
                    if entry is not None:
                        self.wait_done(entry, timeout)
                return
        if self._window_lock is None:
            data = self.protocol.send_message(payload)
            with taking(self.send_lock):
                entry = self._send(data)
                if entry is not None:
                    self.wait_done(entry, timeout)
            return
        with taking(self._window_lock):
            data = self.protocol.send_message(payload)
            with taking(self.send_lock):
                entry = self._send(data)
        if entry is not None:
            with taking(self.send_lock):
                self.wait_done(entry, timeout)

    def post(self, message: PreparedMessage) -> tuple[Posted, Excess | None]:
        """Put a message on its way as a broadcast does, without waiting for the peer.

        Returns:
            What became of it; and how the peer became too slow, None when it did not just now.

        Raises:
            ConnectionClosed: the connection is closing or closed.
        """
        if self._window_lock is None:
            return self._post(self.protocol.send_prepared(message))
        if not self._window_lock.acquire(blocking=False):  # Another thread compresses, perhaps for long.
            return self._post(message.encode())  # Plain, it leaves the window as it is (RFC 7692 7.2.3.3).
        try:
            return self._post(self.protocol.send_prepared(message))
        finally:
            self._window_lock.release()

    def _post(self, data: bytes) -> tuple[Posted, Excess | None]:
        with taking(self.send_lock):
            self._check_open()
            excess = None
            if is_overflowing(self.outbox, len(data), self.options):
                if not self.is_slow:
                    self.is_slow, excess = True, Excess(self.outbox.size, len(data))
                verdict = judge(self.outbox, len(data), self.options)
                self.messages_dropped += verdict.dropped
                if verdict.close:
                    self._close(Close(CloseCode.TRY_AGAIN_LATER, "too slow"))
                if verdict.posted is not None:
                    return verdict.posted, excess
            if self.write(data, 1, True) is None:
                return Posted.SENT, excess
            self.watch()
            if self.ending.failure is not None:  # The system watches no more sockets.
                raise self.closed_error()
            return Posted.QUEUED, excess

    def wait_progress(self) -> None:
        """Wait until the peer takes something of what waits.

        Raises:
            ConnectionClosed: the connection broke meanwhile.
            TimeoutError: it took nothing for ``write_timeout``. The connection is cut.
        """
        with taking(self.send_lock):
            sent = self.bytes_sent
            self.wait_until(lambda: self.bytes_sent > sent or not self.outbox.size)

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is the connection's own."""
        return _get_ident() == self.thread_id

    # Control frames

    def ping(self, payload: bytes) -> None:
        """Send a Ping; see :meth:`wsthread.Connection.ping`."""
        data = self.protocol.send_ping(payload)
        with taking(self.send_lock):
            self._check_open()
            self.write_control(data)

    def pong(self, payload: bytes) -> None:
        """Answer a Ping."""
        with taking(self.send_lock):
            if self.ending.state is _OPEN:
                self.write_pong(self.protocol.send_pong(payload))

    def note_pong(self, payload: bytes) -> None:
        """Note a Pong of the peer."""
        with taking(self.send_lock):
            self.deadlines.pong(clock.now(), payload)

    # The state

    def let_in(self, member: object) -> None:
        """Make the connection a member, unless it is one already, or is not open any more."""
        with taking(self.send_lock):
            if self.ending.state is _OPEN and not self.is_let_in:
                self.registry.add(self.id, member)
                self.is_let_in = True
                self.update_clear()

    def open(self, transport: Transport, response: bytes) -> None:
        """Go from CONNECTING to OPEN and send the 101."""
        with taking(self.send_lock):
            self.ending.state = _OPEN
            self.set_transport(transport)
            self.write_control(response)

    def close(self, close: Close) -> None:
        """Begin the closing handshake, unless the connection is closing already."""
        with taking(self.send_lock):
            self._close(close)

    def answer_close(self) -> None:
        """Answer the peer's Close, with the same code (RFC 6455 5.5.1)."""
        received = self.protocol.close_received
        assert received is not None
        with taking(self.send_lock):
            self._close(Close(received.code), is_ours=False)

    def answer_violation(self, error: ProtocolError) -> None:
        """Close with what the peer did wrong (RFC 6455 7.1.7)."""
        with taking(self.send_lock):
            self._close(Close(error.code, error.reason[:_REASON_LIMIT]), is_ours=False)
            self.fail(error.code, error.reason)

    def lose(self, reason: str) -> None:
        """Note that no more bytes will come."""
        with taking(self.send_lock):
            self.fail(CloseCode.ABNORMAL_CLOSURE, reason)

    def terminate(self, reason: str) -> None:
        """Cut the connection."""
        with taking(self.send_lock):
            if self.held:
                self.flush_now()  # The kernel was to have it when send() returned.
            self.ending.is_ours = self.ending.is_ours or self.ending.state is _OPEN
            self.cut(reason)

    def finish(self, transport: Transport) -> None:
        """Close the socket: the last step."""
        with taking(self.send_lock):
            try:
                self.cut("closed")  # Wakes who still waits in send(), and closes TCP for every copy of the socket.
            finally:
                try:
                    transport.close()
                finally:
                    self.clear = False
                    self.transport, self.fd = None, -1
                    self.ending.finish()

    def check(self, now: float, *, received: int, is_deaf: bool, idle_since: float | None) -> None:
        """Do what is due; for the arguments see :meth:`wsthread.deadlines.Deadlines.check`."""
        with taking(self.send_lock):
            self.takes_more()
            action, reason = self.deadlines.check(
                now, received=received, unread=is_deaf, sent=self.bytes_sent, waiting=self.outbox.size > 0,
                idle_since=idle_since)
            if action is Action.PING and self.ending.state is _OPEN:
                self.write_control(self.protocol.send_ping(self.deadlines.ping_payload))
            elif action is Action.CLOSE:
                self._close(Close(CloseCode.GOING_AWAY, reason))
            elif action is Action.CUT:
                self.cut(reason)

    def close_after_fork(self) -> None:
        """Close the child's copy of the socket; only the forking thread runs there, so no lock is taken.

        Another thread of the parent may have held the send lock.
        """
        self.renew_lock()
        if self.transport is not None:
            self.clear, self.fd = False, -1
            self.transport.close_copy()

    # The send lock is held

    def _send(self, data: bytes) -> Entry | None:
        if self.ending.state is not _OPEN:
            raise self.closed_error()
        if self.is_corked and len(data) < HELD_SIZE and not self.outbox.size and _get_ident() == self.thread_id:
            self.hold(data)
            return None
        return self.write(data, 1)

    def _check_open(self) -> None:
        if self.ending.state is not _OPEN:
            raise self.closed_error()

    def _close(self, close: Close, *, is_ours: bool = True) -> None:
        if self.ending.close(is_ours=is_ours):
            self.clear = False
            try:
                self.deadlines.closing(clock.now(), self.bytes_sent)
                self.write_control(self.protocol.send_close(close))
            finally:
                self.leave()


def send_at_once(senders: tuple[Sender, ...], message: PreparedMessage) -> tuple[int, list[int]]:
    """Send a message to those whose way is clear, each in the form that it wants; wait for none.

    Args:
        senders: each one once.
        message: the message.

    Returns:
        How many got all of it, and the indices of those who got nothing, in order. The others keep the rest of it.
    """
    size = len(message)
    sent, others = send_each(senders, message.encode(), size, 0)
    for compression in {senders[index].compression for index in others if size >= senders[index].compressed_from} - {0}:
        wanting = [index for index in others if senders[index].compression == compression]
        got, left = send_each(
            tuple([senders[index] for index in wanting]), message.encode(compression), size, compression)
        sent += got
        served = set(wanting).difference([wanting[index] for index in left])
        others = [index for index in others if index not in served]
    return sent, others
