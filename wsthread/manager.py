"""Managers: a thread for each connection, the registry through which any thread can broadcast, the callbacks.

A :class:`Manager` owns its connections from the handshake to the end. What a connection's thread does in between
is up to a subclass: :class:`ListenableManager` calls back for each message, :class:`SimpleManager` runs one
function that loops over the messages.

Nothing starts at import or at construction: threads begin with the first connection.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from werkzeug.wrappers import Request

from .connection import Connection, Options, State
from .deflate import Agreement
from .exceptions import ConnectionClosed
from .frames import CloseCode, Opcode
from .housekeeper import Housekeeper
from .messages import Payload, PreparedMessage
from .registry import Registry

logger = logging.getLogger("wsthread")

_TICK = 1.0  # Seconds between two looks at the deadlines, or less when a deadline is short.

F = TypeVar("F", bound=Callable[..., Any])


class Manager:
    """Base of the managers: subclass it and override :meth:`serve`.

    Args:
        max_message_size: the largest message to accept, in bytes; larger ones close with 1009. Default 1 MiB,
            None for no limit.
        max_outbox_size: bytes that may wait for one peer during a broadcast before it is closed as too slow with
            1013. Default 1 MiB.
        read_timeout: seconds without a message after which a connection is closed with 1001. Default None: never.
        write_timeout: seconds in which a peer must take at least something of what waits for it, else it is
            terminated. Default 30, None for no limit.
        close_timeout: seconds for the peer's part of the closing handshake. Default 10.

    Raises:
        ValueError: a limit that is not greater than 0.

    Attributes:
        options: the limits above.
    """

    def __init__(
        self,
        *,
        max_message_size: int | None = 1 << 20,
        max_outbox_size: int = 1 << 20,
        read_timeout: float | None = None,
        write_timeout: float | None = 30.0,
        close_timeout: float = 10.0,
    ) -> None:
        self.options = Options(
            max_message_size=max_message_size,
            max_outbox_size=max_outbox_size,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            close_timeout=close_timeout,
        )
        self._registry: Registry[Connection] = Registry()
        timeouts = [value for value in (read_timeout, write_timeout, close_timeout) if value is not None]
        self._housekeeper = Housekeeper(self._check, min(_TICK, *(value / 4 for value in timeouts)))

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections between their ``on_connect`` and their ``on_close``, oldest first. Any thread may look."""
        return self._registry.snapshot()

    def broadcast(self, payload: Payload) -> None:
        """Send a message to every connection. Any thread may call it; it never waits for a peer.

        What a peer does not take at once waits for it, up to ``max_outbox_size``. Connections that are closing do
        not get it.

        Args:
            payload: a str goes as text; bytes, bytearray or memoryview go as binary.
        """
        message = PreparedMessage(payload)
        for conn in self._registry.snapshot():
            try:
                conn.post(message)
            except ConnectionClosed:
                pass

    def serve(self, conn: Connection) -> None:
        """Do the work of one connection, in its thread. When it returns, the connection is closed with 1000."""
        raise NotImplementedError

    def report_error(self, conn: Connection, error: Exception) -> None:
        """Called for an exception that the application's code raised, after it was logged."""

    def report_close(self, conn: Connection) -> None:
        """Called once, in the connection's thread, when the connection is CLOSED and has left the registry."""

    # For the upgrader

    def prepare(self, request: Request, subprotocol: str | None, agreement: Agreement | None) -> Connection:
        """Return a CONNECTING connection whose thread has started and waits.

        Raises:
            RuntimeError: the system starts no more threads.
        """
        self._housekeeper.start()
        conn = Connection(request, self.options, self._housekeeper, subprotocol=subprotocol, agreement=agreement)
        threading.Thread(target=self._run, args=(conn,), name=f"wsthread {conn}", daemon=True).start()
        return conn

    def _run(self, conn: Connection) -> None:
        if not conn.wait_opened():
            return
        self._registry.add(conn)
        try:
            self._guard(conn, self.serve)
        finally:
            try:
                conn.finish()
            finally:
                self._registry.remove(conn)
                self._guard(conn, self.report_close)

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

    def _check(self, now: float) -> None:
        for conn in self._registry.snapshot():
            conn.check(now)


class SimpleManager(Manager):
    """One blocking function per connection.

    ::

        def echo(conn):
            for message in conn:
                conn.send(message)

        manager = SimpleManager(echo)

    Args:
        handler: called as ``handler(conn)`` in the connection's thread; when it returns, the connection is closed.
        **options: as for :class:`Manager`.
    """

    def __init__(self, handler: Callable[[Connection], None], **options: Any) -> None:
        super().__init__(**options)
        self._handler = handler

    def serve(self, conn: Connection) -> None:
        """Run the handler."""
        self._handler(conn)


class _Callback(Generic[F]):
    """A callback of a manager: assigned, or registered by using the attribute as a decorator."""

    def __set_name__(self, owner: type[ListenableManager], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, manager: None, owner: type[ListenableManager]) -> _Callback[F]: ...

    @overload
    def __get__(self, manager: ListenableManager, owner: type[ListenableManager]) -> Callable[[F], F]: ...

    def __get__(
        self, manager: ListenableManager | None, owner: type[ListenableManager],
    ) -> _Callback[F] | Callable[[F], F]:
        return self if manager is None else functools.partial(self._register, manager)

    def __set__(self, manager: ListenableManager, function: F | None) -> None:
        manager._callbacks[self._name] = function or _ignore

    def _register(self, manager: ListenableManager, function: F) -> F:
        manager._callbacks[self._name] = function
        return function


class ListenableManager(Manager):
    """Callbacks for what happens to a connection.

    Each callback may be given as a keyword, assigned (``manager.on_message = f``), registered with the attribute
    as a decorator (``@manager.on_message``) or defined as a method of a subclass; one function each, the last one
    counts. Those of one connection run one after the other, in the connection's thread, in the order of the wire.

    Args:
        on_connect: ``on_connect(conn)``, when the connection is OPEN and before any message.
        on_message: ``on_message(conn, opcode, payload)`` for each message, with a str for ``Opcode.TEXT`` and
            bytes for ``Opcode.BINARY``.
        on_error: ``on_error(conn, error)`` for an exception that another callback raised. It was logged already,
            and the connection is being closed with 1011.
        on_close: ``on_close(conn)``, exactly once, when the connection is CLOSED; ``conn.close_code`` and
            ``conn.close_reason`` tell why.
        **options: as for :class:`Manager`.
    """

    on_connect: _Callback[Callable[[Connection], Any]] = _Callback()
    on_message: _Callback[Callable[[Connection, Opcode, Any], Any]] = _Callback()
    on_error: _Callback[Callable[[Connection, Exception], Any]] = _Callback()
    on_close: _Callback[Callable[[Connection], Any]] = _Callback()

    def __init__(
        self,
        *,
        on_connect: Callable[[Connection], Any] | None = None,
        on_message: Callable[[Connection, Opcode, Any], Any] | None = None,
        on_error: Callable[[Connection, Exception], Any] | None = None,
        on_close: Callable[[Connection], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        given = {"on_connect": on_connect, "on_message": on_message, "on_error": on_error, "on_close": on_close}
        self._callbacks: dict[str, Callable[..., Any]] = {}
        for name, function in given.items():
            if function is None and not isinstance(getattr(type(self), name), _Callback):
                function = getattr(self, name)  # A method of a subclass.
            self._callbacks[name] = function or _ignore

    def serve(self, conn: Connection) -> None:
        """Call back until the connection closes."""
        callbacks = self._callbacks
        callbacks["on_connect"](conn)
        while True:
            opcode, payload = conn.receive_message()
            callbacks["on_message"](conn, opcode, payload)

    def report_error(self, conn: Connection, error: Exception) -> None:
        """Call ``on_error``."""
        self._callbacks["on_error"](conn, error)

    def report_close(self, conn: Connection) -> None:
        """Call ``on_close``."""
        self._callbacks["on_close"](conn)


def _ignore(*args: Any) -> None:
    """Stand in for a callback that nobody gave."""
