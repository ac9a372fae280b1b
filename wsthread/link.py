"""What is inside a connection: its two halves, from the handshake to the end.

::

    CONNECTING ──101 is on its way──> OPEN ──any event of wsthread.ending──> CLOSING ──socket closed──> CLOSED

A connection has a thread of its own (:mod:`wsthread.thread`). It receives, and it brings the connection to CLOSED:
whoever wants the connection to end lets it begin to close, or cuts it, and the thread wakes up from its read. While it
runs the application's code, the housekeeper's thread does both in its place (:mod:`wsthread.receiving`).
"""

from __future__ import annotations

import itertools
import random
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from . import clock
from .deadlines import Deadlines
from .ending import State
from .housekeeper import Housekeeper
from .locks import taking
from .logs import name_of
from .options import Options
from .receiving import Receiver
from .registry import Registry
from .sending import Sender
from .snapshot import Snapshot
from .stats import Totals
from .transport import Transport
from .wire.deflate import Agreement
from .wire.frames import CloseCode
from .wire.protocol import Close, Protocol

_USUAL_REQUEST = 1 << 14  # Bytes of a handshake that do not count as held. What browsers send is smaller.
#: ``scope(conn)`` returns a context manager, within which a piece of the application's code runs.
Scope: TypeAlias = "Callable[[Any], AbstractContextManager[Any]]"

_numbers = itertools.count()


class Link:
    """The inside of one connection.

    Args:
        snapshot: the opening handshake.
        options: the manager's.
        housekeeper: the process'.
        registry: the manager's members.
        agreement: what was negotiated about compression, None for nothing.
        scope: within what the application's code runs, each callback anew; None for nothing.
        client: for whom the connection counts, see :mod:`wsthread.client_address`.
        is_resuming: whether the client has agreed to :mod:`wsthread.wire.resume`.

    Attributes:
        number: connections that were accepted later have larger ones.
        sender: the sending half, with the state.
        receiver: the receiving half.
        is_admitted: whether the connection counts in ``max_connections``. The hub owns it.
        callback: what of the application runs, and since when; None between callbacks. The connection's thread owns it.
    """

    __slots__ = (
        "number", "snapshot", "scope", "client", "sender", "receiver", "is_admitted", "callback", "_opened_at",
        "_request_size")

    def __init__(
        self, snapshot: Snapshot, options: Options, housekeeper: Housekeeper, registry: Registry[Any], *,
        agreement: Agreement | None = None, scope: Scope | None = None, client: str | None = None,
        is_resuming: bool = False,
    ) -> None:
        now = clock.now()
        self.number = next(_numbers)
        self.snapshot = snapshot
        self.scope = scope
        self.client = client
        protocol = Protocol(
            max_message_size=options.max_message_size, agreement=agreement, max_empty_frames=options.max_control_rate)
        deadlines = Deadlines(options, now, first_ping=random.uniform(0.5, 1.0))
        self.sender = Sender(secrets.token_hex(8), options, housekeeper, registry, protocol, deadlines)
        self.sender.is_resuming = self.sender.is_behind = is_resuming
        self.receiver = Receiver(snapshot.environ, options, self.sender, now)
        self.is_admitted = True
        self.callback: tuple[str, float] | None = None
        self._opened_at = now
        size = sum([len(value) for value in snapshot.environ.values() if isinstance(value, str)])
        self._request_size = size if size > _USUAL_REQUEST else 0

    def __str__(self) -> str:
        return name_of(self.snapshot.environ)

    @property
    def age(self) -> float:
        """Seconds since the handshake."""
        return clock.now() - self._opened_at

    @property
    def state(self) -> State:
        """The connection's :class:`State`."""
        return self.sender.ending.state

    @property
    def outcome(self) -> Close | None:
        """What the connection ended with; None as long as that is not known."""
        return self.sender.ending.outcome

    @property
    def stage(self) -> str:
        """What the operator calls the state: entering, open, closing; or lingering, when only its handler goes on."""
        state = self.state
        if state is State.OPEN:
            return "open" if self.sender.is_let_in else "entering"
        return "lingering" if state is State.CLOSED else "closing"

    @property
    def is_over(self) -> bool:
        """Whether the connection is CLOSED."""
        return self.state is State.CLOSED

    def call(self, name: str, function: Callable[..., Any], conn: Any, *args: Any) -> None:
        """Call a function of the application within the connection's scope. The connection's thread calls it.

        Args:
            name: what the operator calls it, such as ``on_connect``.
            function: called as ``function(conn, *args)``.
            conn: the connection.
            *args: more arguments.
        """
        self.callback = name, clock.now()
        self.call_aside(function, conn, *args)
        self.callback = None

    def call_aside(self, function: Callable[..., Any], conn: Any, *args: Any) -> None:
        """The same from any thread, whatever the connection's own thread does."""
        if self.scope is None:
            function(conn, *args)
        else:
            with self.scope(conn):
                function(conn, *args)

    # The life

    def open(self, transport: Transport, response: bytes, unread: bytes) -> None:
        """Go from CONNECTING to OPEN: send the 101 and let the connection's thread run."""
        try:
            self.sender.open(transport, response)
            self.receiver.open(transport, unread)
        except BaseException:
            self.sender.finish(transport)
            self.abandon()
            raise

    def abandon(self) -> None:
        """Let the connection's thread end: there will be no 101. Nothing happens when the connection is open."""
        self.receiver.abandon()

    def wait_opened(self) -> bool:
        """Make the calling thread the connection's own and wait until it is OPEN; False when that will not be."""
        self.sender.thread_id = threading.get_ident()
        return self.receiver.wait_opened()

    def finish(self) -> None:
        """Bring the closing handshake to its end and close the socket. The connection's thread, once."""
        self.receiver.finish()

    def close_after_fork(self) -> None:
        """Close the child's copy of the socket, for the handler that forked to find its connection broken."""
        self.receiver.renew_lock()
        self.sender.close_after_fork()

    # The housekeeper's thread

    def check(self, now: float) -> None:
        """Attend the connection while its application works, and do what is due."""
        receiver = self.receiver
        if receiver.waiting_since is None:
            receiver.attend()
        if self.sender.is_forgotten:
            self.sender.flush()
        begun_at, patience = receiver.begun_at, self.sender.options.message_timeout
        if begun_at is not None and patience is not None and now - begun_at >= patience:
            if receiver.is_deaf():  # It is we who do not read.
                receiver.begun_at = now
            else:
                self.sender.close(Close(
                    CloseCode.POLICY_VIOLATION, f"a message took more than {patience:g} s"))
        if self.sender.deadlines.due <= now and not self.is_over:
            self.sender.check(
                now, received=receiver.bytes_received, is_deaf=receiver.is_deaf(), idle_since=receiver.waiting_since)

    def renew(self) -> int:
        """Begin another second for the peer's empty frames; return how many bytes are held for the connection."""
        receiver, sender = self.receiver, self.sender
        sender.protocol.renew_empty_frames()
        return sender.outbox.cost + receiver.held + self._request_size

    def give_up(self, reason: str) -> None:
        """Cut the connection and give up what is held for it."""
        self.sender.terminate(reason)
        self.receiver.forget()
        self._request_size = 0  # It has done its part.

    # For the operator

    def stack(self) -> str:
        """Return where the connection's thread is, as in a traceback; empty when it has ended."""
        frame = sys._current_frames().get(self.sender.thread_id)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def totals(self) -> Totals:
        """Return what went in and out so far."""
        sender, receiver = self.sender, self.receiver
        return Totals(
            messages_received=receiver.messages_received, messages_sent=sender.messages_sent,
            messages_dropped=sender.messages_dropped, bytes_received=receiver.bytes_received,
            bytes_sent=sender.bytes_sent)

    def describe(self, now: float) -> str:
        """Return one line: who it is, and what it does since when."""
        sender = self.sender
        with taking(sender.send_lock):
            queued, last_pong = sender.outbox.size, sender.deadlines.last_pong
        waiting_since, callback = self.receiver.waiting_since, self.callback
        doing = f"in {callback[0]} for {now - callback[1]:.1f} s" if callback is not None else "between callbacks"
        if waiting_since is not None:
            doing = f"waiting for a message for {now - waiting_since:.1f} s"
        inbox_size = self.receiver.inbox_size
        doing += f", {inbox_size} bytes in the inbox" if inbox_size else ""
        doing += ", lingering" if self.is_over else ""
        pong = "no pong yet" if last_pong is None else f"last pong {now - last_pong:.1f} s ago"
        return (
            f"{sender.id} {self} {self.state.name}, open for {now - self._opened_at:.1f} s, {doing}, {queued} bytes "
            f"queued, {pong}")
