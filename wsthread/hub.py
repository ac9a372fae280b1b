"""What is inside a manager: its connections from the handshake to the end.

Two lists. *Alive* are the connections that are open or closing: the housekeeper looks at their deadlines, and a
shutdown ends them. *Members* (:mod:`wsthread.registry`) are those of them that an application sees: the ones that were
let in and are not closing.

Any thread may call what does not say otherwise. Nothing starts at construction: threads begin with the first connection
of a process, so a manager may be made before the server forks its workers.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from . import clock, lifecycle, servers, speedups, thread
from .client_address import client_of, may_be_proxy
from .connection import Connection, link_of
from .deadlines import Deadlines
from .exceptions import HandshakeError
from .fanout import Fanout
from .housekeeper import survive
from .link import Link, Scope
from .locks import taking
from .logs import PATIENCE, tell, tell_aside
from .options import Options
from .overflow import Excess
from .receiving import Receiver
from .shutdown import Shutdown, wait_ended
from .snapshot import Snapshot
from .stats import Counters, Totals
from .wire.deflate import Agreement
from .wire.protocol import Close

_SECOND = 1.0
_LINGERING = 10.0  # Seconds after the end of a connection from which on its handler is told of.
_TOLD = 10  # Of how many of them in one check: each costs a millisecond, and other connections wait.


class Outside(Protocol):
    """What a hub has to say to those who speak to other processes."""

    def start(self) -> None:
        """The first connection is about to open."""

    def note_change(self, group: str, id: str, told: Any) -> None:
        """See :class:`wsthread.registry.Registry`."""

    def check(self, now: float) -> None:
        """Do what is due; the housekeeper calls it."""

    def close(self) -> None:
        """The connections have ended, and there will be no more."""

    def reset_after_fork(self) -> None:
        """Only the forking thread runs."""


class Reports(Protocol):
    """What a manager does with a connection; the hub calls it."""

    def serve(self, conn: Connection) -> None:
        """Do the work of one connection, in its thread."""

    def report_error(self, conn: Connection, error: BaseException) -> None:
        """The application's code raised an exception."""

    def report_slow(self, conn: Connection) -> None:
        """A peer became too slow."""

    def report_close(self, conn: Connection) -> None:
        """A connection has ended."""


@dataclass(slots=True)  # Its attributes cost less than those of a NamedTuple.
class _Alive:
    """A connection that is alive, behind those of its parts that are looked at on every tick."""

    receiver: Receiver
    deadlines: Deadlines
    conn: Connection


class Hub:
    """The inside of one manager.

    Args:
        reports: the manager.
        options: its options.
        outside: who speaks to other processes.

    Attributes:
        counters: for the operator.
        fanout: sends messages to the members.
        registry: the members.
        recovery: the clients that may come back.
    """

    def __init__(self, reports: Reports, options: Options, outside: Outside) -> None:
        self._reports = reports
        self._options = options
        self._outside = outside
        self.fanout = Fanout(self, options, outside.note_change)
        self.reset()
        lifecycle.follow_forks(self)

    def __str__(self) -> str:
        return type(self._reports).__name__

    def reset(self) -> None:
        """Begin without connections."""
        self.registry, self.recovery = self.fanout.registry, self.fanout.recovery
        self.counters = Counters()
        self._shutdown = Shutdown()
        self._renewed_at = clock.now()  # The housekeeper's, as the next one.
        self._to_tell = _TOLD  # Of how many more lingering ones in this check.
        self._lock = threading.Lock()  # Guards changes of the next four.
        self._alive: dict[int, _Alive] = {}  # By the ids of their threads, as the next one.
        self._departed: dict[int, Connection] = {}  # CLOSED, and counted; the last callback may run.
        # Those whose handlers go on, with the time from which on that deserves a line in the log.
        self._lingering: dict[Connection, float] = {}
        self._is_unknown_told = False  # Whether the log has that somebody's address is unknown.

    # One connection

    def prepare(
        self, snapshot: Snapshot, subprotocol: str | None, agreement: Agreement | None, scope: Scope | None = None,
        own: Options | None = None, is_resuming: bool = False,
    ) -> Connection:
        """Return a CONNECTING connection whose thread has started and waits.

        Args:
            snapshot: the opening handshake.
            subprotocol: what was agreed on.
            agreement: likewise, about compression.
            scope: within what the application's code runs; None for nothing.
            own: the options of this connection; None for those of the manager.
            is_resuming: whether the client has agreed to :mod:`wsthread.wire.resume`.

        Raises:
            HandshakeError: 503 or 429, when there may be no more connections.
        """
        if self._shutdown.close is not None:
            raise _overload("the server is stopping")
        self._outside.start()
        options = self._options
        client = None
        if options.max_connections_per_address is not None:
            client = client_of(snapshot.environ, options.ipv6_prefix)
            if client is None:
                self._note_unknown(snapshot.environ)
        full = self.registry.admit(client, options.max_connections, options.max_connections_per_address)
        if full == "max_connections":
            raise _overload(f"{full} is {options.max_connections}")
        if full is not None:
            hint = " for each address, and this one may be a proxy's: apply ProxyFix" if may_be_proxy(
                snapshot.environ) else ""
            raise _overload(f"{full} is {options.max_connections_per_address}{hint}", HTTPStatus.TOO_MANY_REQUESTS)
        link = None
        try:
            housekeeper = lifecycle.enter(self, options.shortest_deadline() / 4)
            link = Link(
                snapshot, own or options, housekeeper, self.registry, agreement=agreement, scope=scope, client=client,
                is_resuming=is_resuming)
            conn = Connection(link, self.fanout, subprotocol)
            thread.start(conn, self)
        except BaseException as error:
            if link is None:
                self.registry.dismiss(client)
            else:  # Its thread may run, if a signal handler has raised.
                link.abandon()
                self._dismiss(link)
            if isinstance(error, (RuntimeError, OSError, MemoryError)):
                raise _overload(f"no thread can be started ({error or type(error).__name__})") from error
            raise
        return conn

    def _note_unknown(self, environ: dict[str, Any]) -> None:
        """Tell the operator once that the limit per address does not hold for all."""
        with taking(self._lock):
            if self._is_unknown_told:
                return
            self._is_unknown_told = True
        tell(
            logging.WARNING,
            "max_connections_per_address does not count clients whose address is unknown, such as this one: "
            "REMOTE_ADDR is %r, X-Forwarded-For is %r. If a proxy is in front, apply Werkzeug's "
            "ProxyFix(app.wsgi_app, x_for=1).",
            environ.get("REMOTE_ADDR"), environ.get("HTTP_X_FORWARDED_FOR"))

    def arrive(self, conn: Connection) -> bool:
        """Note that a connection is OPEN; its thread calls it. Tell whether the application is to see it."""
        link = link_of(conn)
        with taking(self._lock):
            self.counters.accept()
            self._alive[threading.get_ident()] = _Alive(link.receiver, link.sender.deadlines, conn)
        self._shutdown.tell(conn)  # It came while the process began to stop.
        return not link.sender.is_resuming or self.recovery.greet(conn)

    def serve(self, conn: Connection) -> None:
        """Do the work of one connection, in its thread."""
        self._reports.serve(conn)

    def report_error(self, conn: Connection, error: BaseException) -> None:
        """Tell of an exception of the application's code."""
        self._reports.report_error(conn, error)

    def depart(self, conn: Connection) -> None:
        """Note that a connection is CLOSED; its thread calls it."""
        link = link_of(conn)
        self.registry.remove(conn.id)  # It has left, unless that was interrupted.
        with taking(self._lock):  # So that stats() counts it once.
            own = threading.get_ident()
            self._alive.pop(own, None)
            self._lingering.pop(conn, None)
            self._departed[own] = conn
            self.counters.finish(conn.close_code or 0, link.totals())
        if link.sender.is_resuming:
            self.recovery.leave(conn)

    def report_close(self, conn: Connection) -> None:
        """Tell of the end of a connection; its thread calls it."""
        self._reports.report_close(conn)

    def tell_end(self, conn: Connection) -> None:
        """Log the end of a connection; its thread calls it."""
        link = link_of(conn)
        totals = link.totals()
        tell_aside(
            logging.INFO, "%s: closed with %s %r after %.1f s; %d messages of %d bytes in, %d of %d out, %d dropped",
            conn, conn.close_code, conn.close_reason, link.age, totals.messages_received, totals.bytes_received,
            totals.messages_sent, totals.bytes_sent, totals.messages_dropped, patience=PATIENCE)

    def dismiss(self, conn: Connection) -> None:
        """Note that the thread of a connection ends; it calls it."""
        with taking(self._lock):
            self._departed.pop(threading.get_ident(), None)
        self._dismiss(link_of(conn))

    def _dismiss(self, link: Link) -> None:
        with taking(self._lock):
            was_admitted, link.is_admitted = link.is_admitted, False
        if was_admitted:
            link.sender.registry.dismiss(link.client)  # After a fork it is the parent's.

    @property
    def current(self) -> Connection | None:
        """The connection whose thread is the calling one; None in any other thread."""
        own = threading.get_ident()
        alive = self._alive.get(own)
        return self._departed.get(own) if alive is None else alive.conn

    def alive(self) -> list[Connection]:
        """Return the connections that are open or closing, in the order in which their threads began."""
        with taking(self._lock):
            return [one.conn for one in self._alive.values()]

    def note_slow(self, conn: Connection, excess: Excess) -> None:
        """Tell the operator and the application of a peer that has just become too slow; no lock is held."""
        self.counters.slow()
        tell_aside(
            logging.WARNING,
            "%s: the peer is too slow: %d bytes waited when %d more came, max_outbox_size is %d; overflow is %r",
            conn, excess.waited, excess.size, self._options.max_outbox_size, self._options.overflow)
        thread.guard(conn, self, self._reports.report_slow)

    # For the operator

    def stats(self) -> dict[str, Any]:
        """Return numbers, fit for JSON."""
        with taking(self._lock):
            alive, counts = [one.conn for one in self._alive.values()], self.counters.snapshot()
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
            "greedy": counts.greedy,
            "history": self.recovery.stats(),
            "speedups": speedups.active,
            "queued_bytes": sum(conn.queued_bytes for conn in alive),
            "inbox_bytes": sum(link_of(conn).receiver.inbox_size for conn in alive),
            **totals._asdict(),
        }

    def dump(self) -> str:
        """Return a line for each connection."""
        now = clock.now()
        lines = [
            f"{link_of(conn).describe(now)}, groups: {', '.join(sorted(map(_in_a_line, conn.groups))) or 'none'}"
            for conn in self.alive()]
        return "\n".join([f"{len(lines)} connections", *lines])

    # The housekeeper's thread, and the life of the process

    def check(self, now: float) -> None:
        """Look at the deadlines, and whether the server is stopping."""
        if self._shutdown.close is None and servers.is_stopping():
            self.begin_shutdown()
        self._shutdown.go_on(now)
        with taking(self._lock):
            alive = list(self._alive.values())
        self._to_tell = _TOLD
        # Most wait for a message and have nothing due. With thousands of them each object that is touched costs.
        for one in alive:
            receiver = one.receiver
            if receiver.waiting_since is None or receiver.begun_at is not None or one.deadlines.due <= now:
                survive(self._check, one.conn, now)
        self._outside.check(now)
        if now >= self._renewed_at + _SECOND:
            self._renewed_at = now
            self._cut_greedy({one.conn: link_of(one.conn).renew() for one in alive})

    def _check(self, conn: Connection, now: float) -> None:
        link = link_of(conn)
        link.check(now)
        if link.is_over:
            self._note_lingering(conn, now)

    def _cut_greedy(self, held: dict[Connection, int]) -> None:
        """Terminate the connections for which most is held, until the rest is within ``max_held_size``."""
        total, limit = sum(held.values()), self._options.max_held_size
        if limit is None or total <= limit:
            return
        for conn in sorted(held, key=held.__getitem__, reverse=True):
            if total <= limit:
                break
            link_of(conn).give_up(f"{held[conn]} bytes were held for it, and more than max_held_size for all")
            total -= held[conn]
            self.counters.greedy()
            tell_aside(
                logging.WARNING, "%s: terminated, %d bytes were held for it, and %d for all; max_held_size is %d",
                conn, held[conn], total + held[conn], limit)

    def _note_lingering(self, conn: Connection, now: float) -> None:
        """Tell the operator once of a handler that goes on long after its connection has ended."""
        with taking(self._lock):
            alive = self._alive.get(link_of(conn).sender.thread_id)
            if alive is None or alive.conn is not conn:
                return  # It has just departed.
            told_at = self._lingering.setdefault(conn, now + _LINGERING)
            if now < told_at or self._to_tell == 0:
                return
            self._to_tell -= 1
            self._lingering[conn] = math.inf
        tell_aside(
            logging.WARNING, "%s: its handler goes on, %g s after the connection has ended; it holds a thread and "
            "counts in max_connections:\n%s", conn, _LINGERING, link_of(conn).stack())

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
        return self._shutdown.begin(Close(options.shutdown_code) if close is None else close, spread, self.alive)

    def finish_shutdown(self, timeout: float) -> bool:
        """Wait until the connections are gone, ``timeout`` seconds at most; tell whether they are.

        The one in whose thread it is called does not count.
        """
        own = self.current
        have_ended = wait_ended(
            lambda seconds: self.registry.wait_gone(own is not None, seconds),
            lambda: [conn for conn in self.alive() if conn is not own], timeout)
        self._outside.close()
        return have_ended

    def reset_after_fork(self) -> None:
        """Forget the parent's connections, and close this process' copies of their sockets."""
        # Without the lock, which another thread of the parent may have held.
        for conn in [*(one.conn for one in self._alive.values()), *self._departed.values()]:
            link_of(conn).close_after_fork()
        self._outside.reset_after_fork()
        self.fanout.reset()
        self.reset()


def _in_a_line(group: str) -> str:
    return group if group.isprintable() else repr(group)


def _overload(reason: str, status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE) -> HandshakeError:
    return HandshakeError(status, f"No more connections: {reason}.", [("Retry-After", "5")])
