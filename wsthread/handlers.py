"""The two styles of an application: callbacks (:class:`ListenableManager`), or a blocking function per connection
(:class:`SimpleManager`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, overload

from . import clock
from .connection import Connection, let_in, link_of
from .manager import Manager
from .options import Options, argument, option, takes
from .wire.frames import Opcode

F = TypeVar("F", bound=Callable[..., Any])


def check_function(
    function: Callable[..., Any], name: str, parameters: tuple[str, ...], *, more: bool = False,
) -> None:
    """Refuse a function of the application that could never work.

    Args:
        function: the function.
        name: what the application calls it, such as ``on_message``.
        parameters: what it is called with.
        more: whether it is called with others besides, which are not known yet.

    Raises:
        TypeError: it is no function, or one that only runs when awaited or iterated over, or it takes other parameters.
    """
    if not callable(function):
        raise TypeError(f"{name} is {function!r}, it must be a function")
    body: Any = function
    while isinstance(body, (partial, staticmethod)):
        body = body.func if isinstance(body, partial) else body.__func__
    bodies = [body]
    if not inspect.isroutine(body) and not inspect.isclass(body):
        bodies.append(type(body).__call__)  # An object that is called.
    for is_kind, kind in (
        (inspect.iscoroutinefunction, "async def"), (inspect.isasyncgenfunction, "async def"),
        (inspect.isgeneratorfunction, "a generator, by its yield"),
    ):
        if any(_tells(is_kind, one) for one in bodies):
            raise TypeError(f"{name} runs in a thread and {function!r} is {kind}: write a plain def")
    _check_parameters(function, name, parameters, more)


def _tells(is_kind: Callable[[Any], bool], body: Any) -> bool:
    try:
        return is_kind(body)
    except TypeError:  # A mock that claims to be a function.
        return False


def _check_parameters(function: Callable[..., Any], name: str, parameters: tuple[str, ...], more: bool) -> None:
    try:
        # A decorator may give the function below it more arguments than it gets itself.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # Some functions in C do not tell.
    bind = signature.bind_partial if more else signature.bind
    try:
        bind(*parameters)
    except TypeError as error:
        call = f"{name}({', '.join([*parameters, '...'] if more else parameters)})"
        raise TypeError(f"{name} is called as {call}, and {function!r} takes {signature}") from error


class _Callback(Generic[F]):
    """A callback of a manager: assigned, or registered by using the attribute as a decorator."""

    def __init__(self, *parameters: str) -> None:
        self.parameters = parameters

    def __set_name__(self, owner: type[ListenableManager], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, manager: None, owner: type[ListenableManager]) -> _Callback[F]: ...

    @overload
    def __get__(self, manager: ListenableManager, owner: type[ListenableManager]) -> Callable[[F], F]: ...

    def __get__(
        self, manager: ListenableManager | None, owner: type[ListenableManager],
    ) -> _Callback[F] | Callable[[F], F]:
        return self if manager is None else partial(self._register, manager)

    def __set__(self, manager: ListenableManager, function: F | None) -> None:
        if function is not None:
            check_function(function, self._name, self.parameters)
        manager._callbacks[self._name] = _ignore if function is None else function

    def _register(self, manager: ListenableManager, function: F) -> F:
        self.__set__(manager, function)
        return function


class _Method:
    """A callback that a subclass defines as a method: a method as any, and what is assigned takes its place."""

    def __init__(self, method: Any, callback: _Callback[Any]) -> None:
        self._method = method
        self._callback = callback

    def __get__(self, manager: ListenableManager | None, owner: type[ListenableManager]) -> Any:
        return self._method.__get__(manager, owner)

    def __set__(self, manager: ListenableManager, function: Callable[..., Any] | None) -> None:
        self._callback.__set__(manager, function)


_NO_CALLBACK = "the method of that name if a subclass has one, else nothing is called"


@dataclass(frozen=True, kw_only=True)
class ListenableOptions(Options):
    """What a :class:`ListenableManager` may be told: callbacks, besides the options of all managers."""

    on_connect: Callable[[Connection], Any] | None = option(
        None,
        "A function that is called as on_connect(conn) when the connection is OPEN, before any message. When it has "
        "returned without closing, the connection is let in: it is one of the manager's connections.",
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
        "A function that is called as on_slow(conn), in the thread of a broadcast, when the peer leaves more than "
        "max_outbox_size untaken. It is not called again before the peer has taken all.",
        none=_NO_CALLBACK)
    on_close: Callable[[Connection], Any] | None = option(
        None,
        "A function that is called as on_close(conn) exactly once after each on_connect, when the connection is "
        "CLOSED. conn.close_code and conn.close_reason tell why. It is called too when on_connect refused the "
        "connection, and conn.context is what on_connect has left there.",
        none=_NO_CALLBACK)


_CALLBACKS = tuple(inspect.get_annotations(ListenableOptions))


class ListenableManager(Manager):
    """Callbacks for what happens to a connection.

    Each callback may be given as a keyword, assigned (``manager.on_message = f``), registered with the attribute
    as a decorator (``@manager.on_message``) or defined as a method of a subclass; one function each, the last one
    counts. Those of one connection run one after the other, in the connection's thread, in the order of the wire.

    In a subclass that defines it, the attribute is that method, and no decorator.
    """

    on_connect: _Callback[Callable[[Connection], Any]] = _Callback("conn")
    on_message: _Callback[Callable[[Connection, Opcode, Any], Any]] = _Callback("conn", "opcode", "payload")
    on_error: _Callback[Callable[[Connection, Exception], Any]] = _Callback("conn", "error")
    on_slow: _Callback[Callable[[Connection], Any]] = _Callback("conn")
    on_close: _Callback[Callable[[Connection], Any]] = _Callback("conn")

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in _CALLBACKS:
            method = inspect.getattr_static(cls, name)  # It may be a mixin's.
            if hasattr(method, "__get__") and not isinstance(method, (_Callback, _Method)):
                setattr(cls, name, _Method(method, getattr(ListenableManager, name)))

    @takes(ListenableOptions)
    def __init__(self, **options: Any) -> None:
        """Make a manager; nothing starts before its first connection.

        Args:
            **options: those of :class:`ListenableOptions`.

        Raises:
            TypeError: an unknown option; a callback that is no function, is ``async def``, or takes other parameters.
            ValueError: a value that makes no sense.
        """
        given = {name: options.pop(name, None) for name in _CALLBACKS}
        super().__init__(**options)
        self._callbacks: dict[str, Callable[..., Any]] = {}
        for name, function in given.items():
            callback = getattr(ListenableManager, name)
            if function is None and not isinstance(getattr(type(self), name), _Callback):
                function = getattr(self, name)  # A method of a subclass.
            callback.__set__(self, function)

    def serve(self, conn: Connection) -> None:
        """Call back until the connection closes."""
        self.call(conn, "on_connect", self._callbacks["on_connect"])
        let_in(conn)
        link = link_of(conn)
        callbacks, receive, scope = self._callbacks, link.receiver.receive_message, link.scope
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
        link_of(conn).call_aside(self._callbacks["on_error"], conn, error)

    def report_slow(self, conn: Connection) -> None:
        """Call ``on_slow``."""
        link_of(conn).call_aside(self._callbacks["on_slow"], conn)

    def report_close(self, conn: Connection) -> None:
        """Call ``on_close``."""
        self.call(conn, "on_close", self._callbacks["on_close"])


@dataclass(frozen=True)
class SimpleOptions(Options):
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


def _ignore(*args: Any) -> None:
    """Stand in for a callback that the application does not have."""
