"""The manager with callbacks."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, overload

from .connection import Connection
from .manager import Manager
from .options import Options, option, takes
from .wire.frames import Opcode

F = TypeVar("F", bound=Callable[..., Any])

_NO_CALLBACK = "the method of that name if a subclass has one, else nothing is called"


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


@dataclass(frozen=True, kw_only=True)
class ListenableOptions(Options):
    """What a :class:`ListenableManager` may be told: the callbacks and the options."""

    on_connect: Callable[[Connection], Any] | None = option(
        None,
        "A function that is called as on_connect(conn) when the connection is OPEN, before any message.",
        none=_NO_CALLBACK)
    on_message: Callable[[Connection, Opcode, Any], Any] | None = option(
        None,
        "A function that is called as on_message(conn, opcode, payload) for each message. The payload is a str for "
        "Opcode.TEXT and bytes for Opcode.BINARY.",
        none=_NO_CALLBACK)
    on_error: Callable[[Connection, Exception], Any] | None = option(
        None,
        "A function that is called as on_error(conn, error) for an exception that another callback raised. The "
        "exception was logged already, and the connection is being closed with 1011.",
        none=_NO_CALLBACK)
    on_slow: Callable[[Connection], Any] | None = option(
        None,
        "A function that is called as on_slow(conn) in the thread of a broadcast, when the peer leaves more than "
        "max_outbox_size untaken. It is not called again before the peer has taken all.",
        none=_NO_CALLBACK)
    on_close: Callable[[Connection], Any] | None = option(
        None,
        "A function that is called as on_close(conn) exactly once, when the connection is CLOSED. conn.close_code and "
        "conn.close_reason tell why.",
        none=_NO_CALLBACK)


_CALLBACKS = {one.name for one in fields(ListenableOptions)} - {one.name for one in fields(Options)}


class ListenableManager(Manager):
    """Callbacks for what happens to a connection.

    Each callback may be given as a keyword, assigned (``manager.on_message = f``), registered with the attribute
    as a decorator (``@manager.on_message``) or defined as a method of a subclass; one function each, the last one
    counts. Those of one connection run one after the other, in the connection's thread, in the order of the wire.
    """

    on_connect: _Callback[Callable[[Connection], Any]] = _Callback()
    on_message: _Callback[Callable[[Connection, Opcode, Any], Any]] = _Callback()
    on_error: _Callback[Callable[[Connection, Exception], Any]] = _Callback()
    on_slow: _Callback[Callable[[Connection], Any]] = _Callback()
    on_close: _Callback[Callable[[Connection], Any]] = _Callback()

    @takes(ListenableOptions)
    def __init__(self, **options: Any) -> None:
        """Make a manager; nothing starts before its first connection.

        Args:
            **options: those of :class:`ListenableOptions`.

        Raises:
            TypeError: an unknown option.
            ValueError: a value that makes no sense.
        """
        given = {name: options.pop(name, None) for name in _CALLBACKS}
        super().__init__(**options)
        self._callbacks: dict[str, Callable[..., Any]] = {}
        for name, function in given.items():
            if function is None and not isinstance(getattr(type(self), name), _Callback):
                function = getattr(self, name)  # A method of a subclass.
            self._callbacks[name] = function or _ignore

    def serve(self, conn: Connection) -> None:
        """Call back until the connection closes."""
        self._call("on_connect", conn)
        callbacks, receive, clock, scope = self._callbacks, conn.receive_message, time.monotonic, conn.scope
        while True:
            opcode, payload = receive()
            conn.callback = "on_message", clock()
            if scope is None:  # As nearly always, so it does not cost a call.
                callbacks["on_message"](conn, opcode, payload)
            else:
                conn.call(callbacks["on_message"], conn, opcode, payload)
            del payload  # The next one may take long to come.
            conn.callback = None

    def report_error(self, conn: Connection, error: Exception) -> None:
        """Call ``on_error``."""
        conn.call(self._callbacks["on_error"], conn, error)

    def report_slow(self, conn: Connection) -> None:
        """Call ``on_slow``."""
        conn.call(self._callbacks["on_slow"], conn)

    def report_close(self, conn: Connection) -> None:
        """Call ``on_close``."""
        self._call("on_close", conn)

    def _call(self, name: str, conn: Connection, *args: Any) -> None:
        conn.callback = name, time.monotonic()
        conn.call(self._callbacks[name], conn, *args)
        conn.callback = None


def _ignore(*args: Any) -> None:
    """Stand in for a callback that nobody gave."""
