"""What is inside a manager: its connections from the handshake to the end, and what is done to many of them.

Two lists. *Alive* are the connections that are open or closing: the housekeeper looks at their deadlines, and a
shutdown ends them. *Members* (:mod:`wsthread.registry`) are those of them that an application sees: the ones that were
let in and are not closing.

Any thread may call what does not say otherwise. Nothing starts at construction: threads begin with the first connection
of a process, so a manager may be made before the server forks its workers.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from werkzeug.wrappers import Request

from . import clock, lifecycle, servers, speedups, thread
from .addressing import Addressees, choose
from .connection import Connection, let_in, link_of, senders_of
from .exceptions import ConnectionClosed, HandshakeError
from .housekeeper import survive
from .link import Link, Scope
from .logs import logger
from .options import Options
from .overflow import Posted
from .registry import Registry
from .shutdown import Shutdown, wait_ended
from .speedups import send_each
from .stats import Counters, Totals
from .wire.deflate import Agreement
from .wire.messages import PreparedMessage
from .wire.protocol import Close

_LINGERING = 10.0  # Seconds after the end of a connection from which on its handler is told of.
_TOLD = 10  # Of how many of them in one check: each costs a millisecond, and other connections wait.


class Broadcast(NamedTuple):
    """What became of a broadcast, in numbers of connections. It is false when no connection took the message.

    Attributes:
        sent: the kernel has it.
        queued: it waits in the connection's outbox.
        dropped: the peer is too slow, see ``overflow``.
        failed: the connection was closing or closed.
    """

    sent: int
    queued: int
    dropped: int
    failed: int

    def __bool__(self) -> bool:
        return self.sent + self.queued > 0


class Reports(Protocol):
    """What a manager does with a connection; the hub calls it."""

    def serve(self, conn: Connection) -> None:
        """Do the work of one connection, in its thread."""

    def report_error(self, conn: Connection, error: Exception) -> None:
        """The application's code raised an exception."""

    def report_slow(self, conn: Connection) -> None:
        """A peer became too slow."""

    def report_close(self, conn: Connection) -> None:
        """A connection has ended."""


class Hub:
    """The inside of one manager.

    Args:
        reports: the manager.
        options: its options.

    Attributes:
        registry: the members.
        counters: for the operator.
    """

    def __init__(self, reports: Reports, options: Options) -> None:
        self._reports = reports
        self._options = options
        self.reset()

    def __str__(self) -> str:
        return type(self._reports).__name__

    def reset(self) -> None:
        """Begin without connections."""
        self.registry: Registry[Connection] = Registry()
        self.counters = Counters()
        self._shutdown = Shutdown()
        self._lock = threading.Lock()  # Guards changes of the next four.
        self._alive: dict[int, Connection] = {}  # By the ids of their threads, as the next one.
        self._departed: dict[int, Connection] = {}  # CLOSED, and counted; the last callback may run.
        # Those whose handlers go on, with the time from which on that deserves a line in the log.
        self._lingering: dict[Connection, float] = {}
        self._to_tell = _TOLD  # Of how many more of these in this check.

    # One connection

    def prepare(
        self, request: Request, subprotocol: str | None, agreement: Agreement | None, scope: Scope | None = None,
    ) -> Connection:
        """Return a CONNECTING connection whose thread has started and waits.

        Raises:
            HandshakeError: 503 or 429, when there may be no more connections.
        """
        if self._shutdown.close is not None:
            raise _overload("the server is stopping")
        options = self._options
        address = request.remote_addr or ""
        full = self.registry.admit(address, options.max_connections, options.max_connections_per_address)
        if full is not None:
            status = HTTPStatus.SERVICE_UNAVAILABLE if full == "max_connections" else HTTPStatus.TOO_MANY_REQUESTS
            raise _overload(f"{full} is {getattr(options, full)}", status)
        try:
            housekeeper = lifecycle.enter(self, options.shortest_deadline() / 4)
            link = Link(request, options, housekeeper, self.registry, agreement=agreement, scope=scope)
            conn = Connection(link, self, subprotocol)
            thread.start(conn, self)
        except (RuntimeError, OSError) as error:
            self.registry.dismiss(address)
            raise _overload(f"no thread can be started ({error})") from error
        return conn

    def arrive(self, conn: Connection) -> None:
        """Note that a connection is OPEN; its thread calls it."""
        with self._lock:
            self.counters.accept()
            self._alive[threading.get_ident()] = conn
        self._shutdown.tell(conn)  # It came while the process began to stop.

    def serve(self, conn: Connection) -> None:
        """Do the work of one connection, in its thread."""
        self._reports.serve(conn)

    def report_error(self, conn: Connection, error: Exception) -> None:
        """Tell of an exception of the application's code."""
        self._reports.report_error(conn, error)

    def depart(self, conn: Connection) -> None:
        """Note that a connection is CLOSED; its thread calls it."""
        link = link_of(conn)
        totals = link.totals()
        with self._lock:  # So that stats() counts it once.
            own = threading.get_ident()
            self._alive.pop(own, None)
            self._lingering.pop(conn, None)
            self._departed[own] = conn
            self.counters.finish(conn.close_code or 0, totals)
        logger.info(
            "%s: closed with %s %r after %.1f s; %d messages of %d bytes in, %d of %d out, %d dropped",
            conn, conn.close_code, conn.close_reason, link.age, totals.messages_received, totals.bytes_received,
            totals.messages_sent, totals.bytes_sent, totals.messages_dropped)

    def report_close(self, conn: Connection) -> None:
        """Tell of the end of a connection; its thread calls it."""
        self._reports.report_close(conn)

    def dismiss(self, conn: Connection) -> None:
        """Note that the thread of a connection ends; it calls it."""
        with self._lock:
            self._departed.pop(threading.get_ident(), None)
        link_of(conn).sender.registry.dismiss(conn.request.remote_addr or "")  # After a fork it is the parent's.

    @property
    def current(self) -> Connection | None:
        """The connection whose thread is the calling one; None in any other thread."""
        own = threading.get_ident()
        return self._alive.get(own) or self._departed.get(own)

    def alive(self) -> list[Connection]:
        """Return the connections that are open or closing, in the order in which their threads began."""
        with self._lock:
            return list(self._alive.values())

    # Many connections

    def broadcast(self, message: PreparedMessage, to: Addressees | None, exclude: Addressees) -> Broadcast:
        """Send a message to members; see :meth:`wsthread.Manager.broadcast`."""
        current = self.current
        if current is not None:
            let_in(current)
        members, gone = choose(self.registry, to, exclude)
        sent, others = send_each(senders_of(members), message.encode(None))
        queued = len(members) - sent - len(others)
        outcomes = Counter(self._post(members[index], message) for index in others)
        return Broadcast(
            sent + outcomes[Posted.SENT], queued + outcomes[Posted.QUEUED], outcomes[Posted.DROPPED],
            gone + outcomes[None])

    def post(self, conn: Connection, message: PreparedMessage) -> bool:
        """Put a message on its way to one peer; see :meth:`wsthread.Connection.post`."""
        posted = self._post(conn, message)
        if posted is None:
            sender = link_of(conn).sender
            with sender.send_lock:
                raise sender.closed_error()
        return posted is not Posted.DROPPED

    def _post(self, conn: Connection, message: PreparedMessage) -> Posted | None:
        """Return what became of the message, None when the connection was closing."""
        sender = link_of(conn).sender
        try:
            while True:
                posted, is_newly_slow = sender.post(message)
                if is_newly_slow:
                    self._note_slow(conn)
                if posted is not Posted.FULL:
                    return posted
                sender.wait_progress()
        except (ConnectionClosed, TimeoutError):
            return None

    def _note_slow(self, conn: Connection) -> None:
        logger.warning("%s: the peer is too slow, %d bytes wait (%s)", conn, conn.queued_bytes, self._options.overflow)
        self.counters.slow()
        thread.guard(conn, self, self._reports.report_slow)

    def close(self, members: tuple[Connection, ...], close: Close) -> int:
        """Close members; return how many those are."""
        for conn in members:
            conn.close(*close)
        return len(members)

    # For the operator

    def stats(self) -> dict[str, Any]:
        """Return numbers, fit for JSON."""
        with self._lock:
            alive, counts = list(self._alive.values()), self.counters.snapshot()
        totals = Totals.sum((counts.finished, *(link_of(conn).totals() for conn in alive)))
        states = Counter(link_of(conn).stage for conn in alive)
        return {
            "connections": {stage: states[stage] for stage in ("open", "closing")},
            "lingering": states["lingering"],
            "threads": self.registry.admitted,
            "accepted": counts.accepted,
            "refused": counts.refused,
            "closed": counts.closed,
            "slow": counts.slow,
            "speedups": speedups.active,
            "queued_bytes": sum(conn.queued_bytes for conn in alive),
            "inbox_bytes": sum(link_of(conn).receiver.inbox_size for conn in alive),
            **totals._asdict(),
        }

    def dump(self) -> str:
        """Return a line for each connection."""
        now = clock.now()
        lines = [
            f"{link_of(conn).describe(now)}, groups: {', '.join(sorted(conn.groups)) or 'none'}"
            for conn in self.alive()]
        return "\n".join([f"{len(lines)} connections", *lines])

    # The housekeeper's thread, and the life of the process

    def check(self, now: float) -> None:
        """Look at the deadlines, and whether the server is stopping."""
        if self._shutdown.close is None and servers.is_stopping():
            self.begin_shutdown()
        self._shutdown.go_on(now)
        self._to_tell = _TOLD
        for conn in self.alive():
            survive(self._check, conn, now)

    def _check(self, conn: Connection, now: float) -> None:
        link = link_of(conn)
        link.check(now)
        if link.is_over:
            self._note_lingering(conn, now)

    def _note_lingering(self, conn: Connection, now: float) -> None:
        """Tell the operator once of a handler that goes on long after its connection has ended."""
        with self._lock:
            if self._alive.get(link_of(conn).sender.thread_id) is not conn:
                return  # It has just departed.
            told_at = self._lingering.setdefault(conn, now + _LINGERING)
            if now < told_at or self._to_tell == 0:
                return
            self._to_tell -= 1
            self._lingering[conn] = math.inf
        logger.warning(
            "%s: its handler goes on, %g s after the connection has ended; it holds a thread, and counts in "
            "max_connections:\n%s", conn, _LINGERING, link_of(conn).stack())

    @property
    def shutdown_timeout(self) -> float:
        """Seconds it would like to have for stopping."""
        return self._options.shutdown_timeout

    def begin_shutdown(self, close: Close | None = None, spread: float | None = None) -> float:
        """Refuse new connections and start to close those there are.

        Args:
            close: what they are told; None for ``shutdown_code``.
            spread: seconds over which the Closes are spread; None for ``shutdown_spread``.

        Returns:
            When that began, perhaps some time ago, in seconds on the clock.
        """
        options = self._options
        wanted = options.shutdown_spread if spread is None else spread
        # What is spread leaves half of the time to the closing handshakes.
        spread = min(wanted, servers.time_to_stop(options.shutdown_timeout) / 2)
        return self._shutdown.begin(Close(options.shutdown_code) if close is None else close, spread, self.alive())

    def finish_shutdown(self, timeout: float) -> bool:
        """Wait until the connections are gone, ``timeout`` seconds at most; tell whether they are.

        The one in whose thread it is called does not count.
        """
        own = self.current
        return wait_ended(
            lambda seconds: self.registry.wait_gone(own is not None, seconds),
            lambda: [conn for conn in self.alive() if conn is not own], timeout)

    def reset_after_fork(self) -> None:
        """Forget the parent's connections, and close this process' copies of their sockets."""
        # Without the lock, which another thread of the parent may have held.
        for conn in [*self._alive.values(), *self._departed.values()]:
            link_of(conn).close_after_fork()
        self.reset()


def _overload(reason: str, status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE) -> HandshakeError:
    return HandshakeError(status, f"No more connections: {reason}.", [("Retry-After", "5")])
