"""Functions of an application that a manager calls: how they are registered, and which could never work.

A callback of a manager is an attribute of its class. It may be given as a keyword, assigned, registered by using the
attribute as a decorator, or defined as a method of a subclass; one function each, the last one counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar, overload

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


class Callback(Generic[F]):
    """A callback of a manager.

    Args:
        *parameters: the names of what it is called with.
    """

    def __init__(self, *parameters: str) -> None:
        self.parameters = parameters

    def __set_name__(self, owner: type[WithCallbacks], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, manager: None, owner: type[WithCallbacks]) -> Callback[F]: ...

    @overload
    def __get__(self, manager: WithCallbacks, owner: type[WithCallbacks]) -> Callable[[F], F]: ...

    def __get__(
        self, manager: WithCallbacks | None, owner: type[WithCallbacks],
    ) -> Callback[F] | Callable[[F], F]:
        return self if manager is None else partial(self._register, manager)

    def __set__(self, manager: WithCallbacks, function: F | None) -> None:
        if function is not None:
            check_function(function, self._name, self.parameters)
        manager._callbacks[self._name] = _ignore if function is None else function

    def _register(self, manager: WithCallbacks, function: F) -> F:
        self.__set__(manager, function)
        return function


class _Method:
    """A callback that a subclass defines as a method. A function that is assigned takes the method's place."""

    def __init__(self, method: Any, callback: Callback[Any]) -> None:
        self._method = method
        self._callback = callback

    def __get__(self, manager: WithCallbacks | None, owner: type[WithCallbacks]) -> Any:
        return self._method.__get__(manager, owner)

    def __set__(self, manager: WithCallbacks, function: Callable[..., Any] | None) -> None:
        self._callback.__set__(manager, function)


class WithCallbacks:
    """Base of what has callbacks."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name, callback in _callbacks(cls):
            method = inspect.getattr_static(cls, name)  # It may be a mixin's.
            if hasattr(method, "__get__") and not isinstance(method, (Callback, _Method)):
                setattr(cls, name, _Method(method, callback))

    def __init__(self, options: dict[str, Any]) -> None:
        """Take the callbacks out of what a constructor was given.

        Raises:
            TypeError: one of them is no function, is ``async def``, or takes other parameters.
        """
        self._callbacks: dict[str, Callable[..., Any]] = {}
        for name, callback in _callbacks(type(self)):
            function = options.pop(name, None)
            if function is None and not isinstance(getattr(type(self), name), Callback):
                function = getattr(self, name)  # A method of a subclass.
            callback.__set__(self, function)


def callbacks_of(owner: WithCallbacks) -> dict[str, Callable[..., Any]]:
    """Return the callbacks of an object by their names, always the same dict, each as it is at the moment."""
    return owner._callbacks


def _callbacks(kind: type) -> Iterator[tuple[str, Callback[Any]]]:
    """Yield the callbacks that a class has, each once, whatever takes its place in a subclass."""
    seen = set()
    for base in kind.__mro__:
        for name, value in vars(base).items():
            if isinstance(value, Callback) and name not in seen:
                seen.add(name)
                yield name, value


def _ignore(*args: Any) -> None:
    """Stand in for a callback that the application does not have."""
