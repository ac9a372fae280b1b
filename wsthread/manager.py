"""Managers: a thread for each connection, the registry through which any thread can broadcast, limits, the end.

A :class:`Manager` owns its connections from the handshake to the end. What a connection's thread does in between
is up to a subclass: :class:`wsthread.ListenableManager` calls back for each message, :class:`SimpleManager` runs one
function that loops over the messages.

Nothing starts at import or at construction: threads begin with the first connection of a process, so a manager may be
made before the server forks its workers.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

from werkzeug.wrappers import Request

from . import lifecycle, servers, speedups
from .connection import Connection, Scope
from .exceptions import ConnectionClosed, HandshakeError
from .options import Options, argument, takes
from .registry import Registry
from .sending import Posted, State, Totals
from .wire.deflate import Agreement
from .wire.frames import CloseCode
from .wire.messages import Payload, PreparedMessage
from .wire.protocol import Close, encode_close

logger = logging.getLogger("wsthread")

_LAST_WAIT = 0.5  # Seconds for the threads of connections that had to be cut.


class Broadcast(NamedTuple):
    """What became of a broadcast, in numbers of connections.

    Attributes:
        sent: the kernel has it.
        queued: it waits in the connection's outbox.
        dropped: the peer is too slow, see ``overflow``.
        failed: the connection was closing.
    """

    sent: int
    queued: int
    dropped: int
    failed: int


class Manager:
    """Base of the managers: subclass it and override :meth:`serve`.

    Attributes:
        options: what it was told, see :class:`wsthread.options.Options`.
        shutdown_timeout: seconds that stopping may take.
    """

    @takes(Options)
    def __init__(self, **options: Any) -> None:
        """Make a manager; nothing starts before its first connection.

        Args:
            **options: those of :class:`wsthread.options.Options`.

        Raises:
            TypeError: an unknown option.
            ValueError: a value that makes no sense.
        """
        self.options = Options(**options)
        self.shutdown_timeout = self.options.shutdown_timeout
        self._shutdown_code = self.options.shutdown_code
        self._shutdown_spread = self.options.shutdown_spread
        self._reset()

    def _reset(self) -> None:
        """Begin without connections, as at construction and in the child of a fork."""
        self._registry: Registry[Connection] = Registry()
        self._lock = threading.Lock()  # Guards everything below, and who enters and leaves the registry.
        self._closing: Close | None = None  # What shutdown says to the connections; None as long as there is none.
        self._closing_since = 0.0  # In monotonic seconds.
        self._to_close: deque[tuple[float, Connection]] = deque()  # When to say it, in monotonic seconds.
        self._accepted = 0
        self._slow = 0
        self._refused: Counter[str] = Counter()
        self._close_codes: Counter[int] = Counter()
        self._finished = Totals()
        self._ending = threading.local()  # Whether the calling thread is in an on_close.

    # What an application asks

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The open connections, oldest first. Any thread may look.

        A connection is among them when its ``on_connect`` is called, and no more when its ``on_close`` is.
        """
        return self._registry.snapshot()

    def get(self, id: str) -> Connection | None:
        """Return the connection with this id, or None. Any thread may call it."""
        return self._registry.get(id)

    def broadcast(
        self,
        payload: Payload,
        *,
        to: str | Iterable[str] | None = None,
        exclude: Connection | Iterable[Connection] = (),
    ) -> Broadcast:
        """Send a message to many connections. Any thread may call it, a Flask view as well as a callback.

        It waits for no peer, unless ``overflow`` is ``"block"``, and no peer's failure is raised. The message is
        encoded once, and once more for each kind of compression that the peers agreed to.

        Args:
            payload: a str goes as text; bytes, bytearray or memoryview go as binary.
            to: a group or several; a connection in more than one gets it once. None for every connection.
            exclude: a connection or several that do not get it.

        Returns:
            How many got it, and how many did not.

        Raises:
            TypeError: the payload is neither str nor bytes-like.
        """
        message = PreparedMessage(payload)
        groups = [to] if isinstance(to, str) else to
        left_out = {exclude} if isinstance(exclude, Connection) else set(exclude)
        connections = self._registry.snapshot(groups)
        if left_out:
            connections = tuple(conn for conn in connections if conn not in left_out)
        sent, missed = speedups.send_each(connections, message.encode(None))
        queued = len(connections) - sent - len(missed)
        outcomes = Counter(self._post(connections[index], message) for index in missed)
        return Broadcast(
            sent + outcomes[Posted.SENT], queued + outcomes[Posted.QUEUED], outcomes[Posted.DROPPED], outcomes[None])

    def _post(self, conn: Connection, message: PreparedMessage) -> Posted | None:
        try:
            while True:
                posted, newly_slow = conn.post(message)
                if newly_slow:
                    self._note_slow(conn)
                if posted is not Posted.FULL:
                    return posted
                conn.wait_progress()
        except (ConnectionClosed, TimeoutError):
            return None

    def _note_slow(self, conn: Connection) -> None:
        logger.warning("%s: the peer is too slow, %d bytes wait (%s)", conn, conn.queued_bytes, self.options.overflow)
        with self._lock:
            self._slow += 1
        self._guard(conn, self.report_slow)

    def close_where(
        self, predicate: Callable[[Connection], bool], code: int = CloseCode.NORMAL_CLOSURE, reason: str = "",
    ) -> int:
        """Close the connections for which a predicate is true, such as those of a user who logged out.

        Any thread may call it; it waits for nothing.

        Args:
            predicate: called as ``predicate(conn)`` in the calling thread; what it raises is raised.
            code: as for :meth:`Connection.close`.
            reason: likewise.

        Returns:
            How many connections those were.

        Raises:
            ValueError: the code may not be sent or the reason is too long.
        """
        encode_close(Close(code, reason))  # A wrong call is wrong even when nobody is chosen.
        chosen = [conn for conn in self._registry.snapshot() if predicate(conn)]
        for conn in chosen:
            conn.close(code, reason)
        return len(chosen)

    def stats(self) -> dict[str, Any]:
        """Return numbers for the operator, fit for JSON. Counts are since the process began. Any thread may call it."""
        with self._lock:
            connections = self._registry.snapshot()
            finished, refused, codes = self._finished, dict(self._refused), dict(self._close_codes)
            accepted, slow = self._accepted, self._slow
        totals = Totals(*map(sum, zip(finished, *(conn.totals() for conn in connections))))
        states = Counter(conn.state.name.lower() for conn in connections)
        return {
            "connections": {name: states[name] for name in ("open", "closing")},
            "threads": self._registry.admitted,
            "accepted": accepted,
            "refused": refused,
            "closed": {str(code): count for code, count in sorted(codes.items())},
            "slow": slow,
            "speedups": speedups.active,
            "queued_bytes": sum(conn.queued_bytes for conn in connections),
            **totals._asdict(),
        }

    def dump(self) -> str:
        """Return a line for each connection: what it does since when, its queue, its pong. Any thread may call it."""
        now = time.monotonic()
        connections = self._registry.snapshot()
        return "\n".join([f"{len(connections)} connections", *(conn.describe(now) for conn in connections)])

    def shutdown(
        self,
        code: int | None = None,
        reason: str = "",
        *,
        timeout: float | None = None,
        spread: float | None = None,
    ) -> bool:
        """Close all connections and refuse new ones for good, with 503. Any thread may call it, also twice.

        It happens by itself when gunicorn stops the worker or the process ends. Handlers that are running may finish
        within the time; a peer that does not answer is cut at its end.

        Args:
            code: as for :meth:`Connection.close`; None for the manager's ``shutdown_code``.
            reason: likewise.
            timeout: seconds to wait for the connections' ends; None for the manager's ``shutdown_timeout``.
            spread: seconds over which the Closes are spread; None for the manager's ``shutdown_spread``.

        Returns:
            Whether all connections have ended, but for those in whose callbacks it is called.

        Raises:
            ValueError: the code may not be sent or the reason is too long.
        """
        self._begin_shutdown(
            Close(self._shutdown_code if code is None else code, reason),
            self._shutdown_spread if spread is None else spread)
        return self._wait_shutdown(self.shutdown_timeout if timeout is None else timeout)

    # What a subclass does

    def serve(self, conn: Connection) -> None:
        """Do the work of one connection, in its thread. When it returns, the connection is closed with 1000.

        What is the application's is called by way of :meth:`Connection.call`, if its scope is to hold.
        """
        raise NotImplementedError

    def report_error(self, conn: Connection, error: Exception) -> None:
        """Called for an exception that the application's code raised, after it was logged."""

    def report_slow(self, conn: Connection) -> None:
        """Called in a broadcasting thread when a peer became too slow: once, until it has taken all that waited."""

    def report_close(self, conn: Connection) -> None:
        """Called once, in the connection's thread, when the connection is CLOSED and has left the registry."""

    # For the upgrader

    def prepare(
        self, request: Request, subprotocol: str | None, agreement: Agreement | None, scope: Scope | None = None,
    ) -> Connection:
        """Return a CONNECTING connection whose thread has started and waits.

        Raises:
            HandshakeError: 503 or 429, when there may be no more connections.
        """
        if self._closing is not None:
            raise _overload("the server is stopping")
        options = self.options
        address = request.remote_addr or ""
        full = self._registry.admit(address, options.max_connections, options.max_connections_per_address)
        if full is not None:
            status = HTTPStatus.SERVICE_UNAVAILABLE if full == "max_connections" else HTTPStatus.TOO_MANY_REQUESTS
            raise _overload(f"{full} is {getattr(options, full)}", status)
        try:
            housekeeper = lifecycle.enter(self, options.shortest_deadline() / 4)
            conn = Connection(
                request, options, housekeeper, self._registry, subprotocol=subprotocol, agreement=agreement,
                scope=scope)
            threading.Thread(target=self._run, args=(conn, address), name=f"wsthread-{conn.id}", daemon=True).start()
        except (RuntimeError, OSError) as error:
            self._registry.dismiss(address)
            raise _overload(f"no thread can be started ({error})") from error
        return conn

    def count_refused(self, status: HTTPStatus) -> None:
        """Note that a handshake was refused."""
        with self._lock:
            self._refused[f"{status.value} {status.phrase}"] += 1

    # The connection's thread

    def _run(self, conn: Connection, address: str) -> None:
        registry = self._registry
        try:
            _be_in_no_hurry()
            if conn.wait_opened():
                self._live(conn)
        finally:
            registry.dismiss(address)

    def _live(self, conn: Connection) -> None:
        with self._lock:
            self._registry.add(conn.id, conn)
            self._accepted += 1
            closing = self._closing
        try:
            if closing is not None:  # It came while the process began to stop.
                conn.close(*closing)
            self._guard(conn, self.serve)
        finally:
            try:
                conn.finish()
            finally:
                self._note_end(conn)
                self._ending.here = True
                self._guard(conn, self.report_close)

    def _note_end(self, conn: Connection) -> None:
        totals = conn.totals()
        with self._lock:
            self._registry.remove(conn.id)
            self._finished = Totals(*map(sum, zip(self._finished, totals)))
            self._close_codes[conn.close_code or 0] += 1
        logger.info(
            "%s: closed with %s %r after %.1f s; %d messages of %d bytes in, %d of %d out, %d dropped",
            conn, conn.close_code, conn.close_reason, conn.age, totals.messages_received, totals.bytes_received,
            totals.messages_sent, totals.bytes_sent, totals.messages_dropped)

    def _guard(self, conn: Connection, work: Callable[[Connection], None]) -> None:
        """Run application code; an exception is logged, reported, and closes the connection with 1011."""
        try:
            work(conn)
        except ConnectionClosed as error:
            if conn.state is State.OPEN:  # It was about another connection.
                self._handle_error(conn, error)
        except Exception as error:
            self._handle_error(conn, error)

    def _handle_error(self, conn: Connection, error: Exception) -> None:
        logger.error("%s: error in a callback", conn, exc_info=error)
        conn.close(CloseCode.INTERNAL_ERROR)
        try:
            self.report_error(conn, error)
        except Exception:
            logger.exception("%s: error in on_error", conn)

    # The housekeeper's thread, and the life of the process

    def check(self, now: float) -> None:
        """Look at the deadlines, and whether the server is stopping."""
        if self._closing is None and servers.is_stopping():
            self.begin_shutdown()
        for conn in self._due_closes(now):
            assert self._closing is not None
            conn.close(*self._closing)
        for conn in self._registry.snapshot():
            if conn.due <= now:
                conn.check(now)

    def begin_shutdown(self) -> float:
        """Refuse new connections and start to close those there are, as this manager was told to.

        Returns:
            When that began, perhaps some time ago, in monotonic seconds.
        """
        return self._begin_shutdown(Close(self._shutdown_code), self._shutdown_spread)

    def finish_shutdown(self, timeout: float) -> None:
        """Wait until the connections are gone, ``timeout`` seconds at most."""
        self._wait_shutdown(timeout)

    def _begin_shutdown(self, close: Close, spread: float) -> float:
        encode_close(close)
        # What is spread leaves half of the time to the closing handshakes.
        spread = min(spread, servers.time_to_stop(self.shutdown_timeout) / 2)
        with self._lock:
            if self._closing is not None:
                return self._closing_since
            self._closing = close
            self._closing_since = now = time.monotonic()
            connections = self._registry.snapshot()
            self._to_close.extend(
                (now + spread * number / len(connections), conn) for number, conn in enumerate(connections))
        if connections:
            logger.info("shutdown: closing %d connections with %d over %g s", len(connections), close.code, spread)
        for conn in self._due_closes(now):
            conn.close(*close)
        return now

    def _due_closes(self, now: float) -> list[Connection]:
        due = []
        with self._lock:
            while self._to_close and self._to_close[0][0] <= now:
                due.append(self._to_close.popleft()[1])
        return due

    def _wait_shutdown(self, timeout: float) -> bool:
        own = getattr(self._ending, "here", False) or any(conn.is_own_thread() for conn in self._registry.snapshot())
        if self._registry.wait_gone(own, timeout):
            return True
        for conn in self._registry.snapshot():
            if not conn.is_own_thread():
                conn.terminate("no time is left for the closing handshake")
        return self._registry.wait_gone(own, _LAST_WAIT)

    def reset_after_fork(self) -> None:
        """Forget the parent's connections, and close this process' copies of their sockets."""
        for conn in self._registry.unlocked_members():
            conn.close_after_fork()
        self._reset()


@dataclass(frozen=True)
class SimpleOptions(Options):
    """What a :class:`SimpleManager` may be told: the handler by position, the options by name."""

    handler: Callable[[Connection], None] = field(metadata=argument(
        "A function that is called as handler(conn) in the connection's thread. When it returns, the connection is "
        "closed."))


class SimpleManager(Manager):
    """One blocking function per connection.

    ::

        def echo(conn):
            for message in conn:
                conn.send(message)

        manager = SimpleManager(echo)
    """

    @takes(SimpleOptions)
    def __init__(self, handler: Callable[[Connection], None], **options: Any) -> None:
        """Make a manager; nothing starts before its first connection.

        Args:
            **options: those of :class:`SimpleOptions`.

        Raises:
            TypeError: an unknown option.
            ValueError: a value that makes no sense.
        """
        super().__init__(**options)
        self._handler = handler

    def serve(self, conn: Connection) -> None:
        """Run the handler."""
        conn.callback = "handler", time.monotonic()
        conn.call(self._handler, conn)


def _be_in_no_hurry() -> None:
    """Let the calling thread not interrupt others when something comes for it.

    Without this, Linux lets a thread that wakes up run in place of the one that holds the GIL, only to find that it has
    to wait for it: two switches for nothing, with hundreds of busy connections most of the time. It also keeps the HTTP
    server's threads ahead of those of the connections.
    """
    if hasattr(os, "SCHED_BATCH"):
        try:
            if os.sched_getscheduler(0) == os.SCHED_OTHER:  # Else somebody has other plans.
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError:
            pass  # A sandbox may forbid it.


def _overload(reason: str, status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE) -> HandshakeError:
    return HandshakeError(status, f"No more connections: {reason}.", [("Retry-After", "5")])
