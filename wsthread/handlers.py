"""The two styles of an application: callbacks (:class:`ListenableManager`), or a blocking function per connection
(:class:`SimpleManager`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import clock
from .callbacks import Callback, callbacks_of, check_function
from .connection import Connection, link_of, settle
from .manager import NO_CALLBACK, Manager, ManagerOptions
from .options import argument, option, takes
from .wire.frames import Opcode


@dataclass(frozen=True, kw_only=True)
class ListenableOptions(ManagerOptions):
    """What a :class:`ListenableManager` may be told: callbacks, besides the options of all managers."""

    on_connect: Callable[[Connection], Any] | None = option(
        None,
        "A function that is called as on_connect(conn) when the connection is OPEN, before any message. When it has "
        "returned without closing, the connection is let in: it is one of the manager's connections.",
        none=NO_CALLBACK)
    on_message: Callable[[Connection, Opcode, Any], Any] | None = option(
        None,
        "A function that is called as on_message(conn, opcode, payload) for each message. The payload is a str for "
        "Opcode.TEXT and bytes for Opcode.BINARY.",
        none=NO_CALLBACK)
    on_error: Callable[[Connection, Exception], Any] | None = option(
        None,
        "A function that is called as on_error(conn, error) for an exception that another callback raised. The "
        "exception was logged already, and the connection is being closed with 1011.",
        none=NO_CALLBACK)
    on_slow: Callable[[Connection], Any] | None = option(
        None,
        "A function that is called as on_slow(conn), in the thread of a broadcast, when the peer leaves more than "
        "max_outbox_size untaken. It is not called again before the peer has taken all.",
        none=NO_CALLBACK)
    on_close: Callable[[Connection], Any] | None = option(
        None,
        "A function that is called as on_close(conn) exactly once after each on_connect, when the connection is "
        "CLOSED. conn.close_code and conn.close_reason tell why. It is called too when on_connect refused the "
        "connection, and conn.context is what on_connect has left there.",
        none=NO_CALLBACK)


class ListenableManager(Manager):
    """Callbacks for what happens to a connection.

    Each callback may be given as a keyword, assigned (``manager.on_message = f``), registered with the attribute
    as a decorator (``@manager.on_message``) or defined as a method of a subclass; one function each, the last one
    counts. Those of one connection run one after the other, in the connection's thread, in the order of the wire.

    In a subclass that defines it, the attribute is that method, and no decorator.
    """

    on_connect: Callback[Callable[[Connection], Any]] = Callback("conn")
    on_message: Callback[Callable[[Connection, Opcode, Any], Any]] = Callback("conn", "opcode", "payload")
    on_error: Callback[Callable[[Connection, Exception], Any]] = Callback("conn", "error")
    on_slow: Callback[Callable[[Connection], Any]] = Callback("conn")
    on_close: Callback[Callable[[Connection], Any]] = Callback("conn")

    @takes(ListenableOptions)
    def __init__(self, **options: Any) -> None:
        """Make a manager; nothing starts before its first connection.

        Args:
            **options: those of :class:`ListenableOptions`.

        Raises:
            TypeError: an unknown option; a callback that is no function, is ``async def``, or takes other parameters.
            ValueError: a value that makes no sense.
        """
        super().__init__(**options)
        self._functions = callbacks_of(self)  # At hand: nothing in between may fail when on_close is due.

    def serve(self, conn: Connection) -> None:
        """Call back until the connection closes."""
        self.call(conn, "on_connect", self._functions["on_connect"])
        settle(conn)
        link = link_of(conn)
        link.receiver.ends_at_once = True  # on_close comes behind the end.
        callbacks, receive, scope = self._functions, link.receiver.receive_message, link.scope
        while True:
            opcode, payload = receive()
            link.callback = "on_message", clock.now()
            if scope is None:  # As nearly always, so it does not cost a call.
                callbacks["on_message"](conn, opcode, payload)
            else:
                link.call_aside(callbacks["on_message"], conn, opcode, payload)
            del payload  # The next one may take long to come.
            link.callback = None

    def report_error(self, conn: Connection, error: BaseException) -> None:
        """Call ``on_error``."""
        link_of(conn).call_aside(self._functions["on_error"], conn, error)

    def report_slow(self, conn: Connection) -> None:
        """Call ``on_slow``."""
        link_of(conn).call_aside(self._functions["on_slow"], conn)

    def report_close(self, conn: Connection) -> None:
        """Call ``on_close``."""
        self.call(conn, "on_close", self._functions["on_close"])


@dataclass(frozen=True)
class SimpleOptions(ManagerOptions):
    """What a :class:`SimpleManager` may be told: the handler by position, the options by name."""

    handler: Callable[[Connection], Any] = field(metadata=argument(
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
    def __init__(self, handler: Callable[[Connection], Any], **options: Any) -> None:
        """Make a manager; nothing starts before its first connection.

        Args:
            **options: those of :class:`SimpleOptions`.

        Raises:
            TypeError: an unknown option; a handler that is no function, is ``async def``, or takes other parameters.
            ValueError: a value that makes no sense.
        """
        super().__init__(**options)
        check_function(handler, "handler", ("conn",))
        self._handler = handler

    def serve(self, conn: Connection) -> None:
        """Run the handler."""
        self.call(conn, "handler", self._handler)
