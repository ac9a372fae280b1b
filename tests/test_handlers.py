"""The functions of an application: each way to give them, and those that are refused because they could never work."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest
from flask import Flask
from peer import Connect, Peer, connect

from wsthread import Connection, ListenableManager, Manager, Opcode, SimpleManager, testing
from wsthread.flask import WebSockets

__all__ = ["connect"]

PARAMETERS = {
    "on_connect": ("conn",), "on_message": ("conn", "opcode", "payload"), "on_error": ("conn", "error"),
    "on_slow": ("conn",), "on_close": ("conn",), "handler": ("conn",),
}
CALLBACKS = [name for name in PARAMETERS if name != "handler"]


def by_keyword(name: str, function: Any) -> Manager:
    return ListenableManager(**{name: function})


def by_assignment(name: str, function: Any) -> Manager:
    manager = ListenableManager()
    setattr(manager, name, function)
    return manager


def by_decorator(name: str, function: Any) -> Manager:
    manager = ListenableManager()
    assert getattr(manager, name)(function) is function
    return manager


def by_subclass(name: str, function: Any) -> Manager:
    manager: Manager = type("Subclass", (ListenableManager,), {name: staticmethod(function)})()
    return manager


def as_handler(name: str, function: Any) -> Manager:
    return SimpleManager(function)


WAYS = [(name, way) for name in CALLBACKS for way in (by_keyword, by_assignment, by_decorator, by_subclass)]
WAYS.append(("handler", as_handler))
each_way = pytest.mark.parametrize("name, way", WAYS, ids=[f"{name}-{way.__name__}" for name, way in WAYS])


async def coroutine(*args: Any) -> None: ...


async def async_generator(*args: Any) -> Any:
    yield


def generator(*args: Any) -> Iterator[None]:
    yield


class Bound:
    async def coroutine(self, *args: Any) -> None: ...

    def generator(self, *args: Any) -> Iterator[None]:
        yield

    @classmethod
    async def of_class(cls, *args: Any) -> None: ...

    @staticmethod
    async def static(*args: Any) -> None: ...


class CalledAsync:
    async def __call__(self, *args: Any) -> None: ...


class CalledGenerator:
    def __call__(self, *args: Any) -> Iterator[None]:
        yield


#: What only runs when somebody awaits it or iterates over it.
NEVER_RUN: dict[str, Any] = {
    "async def": coroutine,
    "an async generator": async_generator,
    "a generator": generator,
    "a bound async def": Bound().coroutine,
    "a bound generator": Bound().generator,
    "an async class method": Bound.of_class,
    "an async static method": Bound.static,
    "an async static method before its class": staticmethod(coroutine),
    "an object with async __call__": CalledAsync(),
    "an object with a generator as __call__": CalledGenerator(),
    "a partial": functools.partial(coroutine),
    "a partial of a partial": functools.partial(functools.partial(coroutine), "more"),
    "a partial of a method": functools.partial(Bound().coroutine),
    "a partial of an object": functools.partial(CalledAsync()),
    "a partial of a generator": functools.partial(generator),
    "an AsyncMock": AsyncMock(),
}


@each_way
@pytest.mark.parametrize("kind", NEVER_RUN)
def test_what_would_never_run_is_refused(name: str, way: Callable[[str, Any], Manager], kind: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} runs in a thread and .* is .*: write a plain def$"):
        way(name, NEVER_RUN[kind])


@each_way
@pytest.mark.parametrize("function", [7, "print", b"", [print], (), object()], ids=repr)
def test_what_is_no_function_is_refused(name: str, way: Callable[[str, Any], Manager], function: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} is .*, it must be a function$"):
        way(name, function)


def nothing() -> None: ...


def keyword_only(*, conn: Any) -> None: ...


def needs_a_keyword(*args: Any, flag: bool) -> None: ...


def takes_nine(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, i: Any) -> None: ...


class Plain:
    def __init__(self) -> None: ...

    def nothing(self) -> None: ...

    def __call__(self) -> None: ...


#: What takes other parameters than any of the callbacks.
WRONG_PARAMETERS: dict[str, Any] = {
    "none": nothing,
    "none, as a lambda": lambda: None,
    "keywords": keyword_only,
    "a keyword besides": needs_a_keyword,
    "nine": takes_nine,
    "a bound method": Plain().nothing,
    "an object": Plain(),
    "a class": Plain,
    "a partial that has them all": functools.partial(lambda conn: None, "conn"),
    "a builtin": [].reverse,
    "a mock of a function": create_autospec(nothing),
}


@each_way
@pytest.mark.parametrize("kind", WRONG_PARAMETERS)
def test_other_parameters_are_refused(name: str, way: Callable[[str, Any], Manager], kind: str) -> None:
    call = rf"{name}\({', '.join(PARAMETERS[name])}\)"
    with pytest.raises(TypeError, match=rf"^{name} is called as {call}, and .* takes \("):
        way(name, WRONG_PARAMETERS[kind])


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("count", range(5))
def test_the_number_of_parameters(name: str, count: int) -> None:
    plain = eval(f"lambda {', '.join('abcd'[:count])}: None")
    method = eval(f"lambda {', '.join('sabcd'[:count + 1])}: None")
    if count == len(PARAMETERS[name]):
        ListenableManager(**{name: plain})
        type("Subclass", (ListenableManager,), {name: method})()
        return
    with pytest.raises(TypeError, match=f"^{name} is called as "):
        ListenableManager(**{name: plain})
    with pytest.raises(TypeError, match=f"^{name} is called as .*<bound method "):
        type("Subclass", (ListenableManager,), {name: method})()


def test_a_refused_callback_changes_nothing(connect: Connect) -> None:
    """The one before stays."""
    manager = ListenableManager(on_message=lambda conn, opcode, payload: conn.send("before"))
    for function in (coroutine, nothing, 7):
        with pytest.raises(TypeError):
            manager.on_message = function  # type: ignore[assignment]
    assert echoed(connect(manager)[1]) == "before"


def echoed(peer: Peer) -> str:
    """Send a message and return the answer."""
    peer.send(Opcode.TEXT, b"hi")
    opcode, payload = peer.read()
    assert opcode == Opcode.TEXT, payload
    return payload.decode()


def answer(conn: Connection, opcode: Opcode, payload: str) -> None:
    conn.send(f"re {payload}")


def with_defaults(conn: Connection, opcode: Opcode = Opcode.TEXT, payload: str = "", more: int = 0) -> None:
    answer(conn, opcode, payload)


def with_stars(*args: Any, **kwargs: Any) -> None:
    assert not kwargs
    answer(*args)


def positional_only(conn: Connection, opcode: Opcode, payload: str, /) -> None:
    answer(conn, opcode, payload)


@functools.wraps(nothing)
def wrapping_other_parameters(conn: Connection, opcode: Opcode, payload: str) -> None:
    answer(conn, opcode, payload)


@functools.wraps(coroutine)
def running_a_coroutine(conn: Connection, opcode: Opcode, payload: str) -> None:
    """Like asgiref's async_to_sync: it is known to wrap an async def, and works."""
    async def run() -> None:
        answer(conn, opcode, payload)

    asyncio.run(run())


@functools.singledispatch
def dispatching(conn: Any, opcode: Opcode, payload: str) -> None:
    raise AssertionError


dispatching.register(Connection, answer)


class Answerer:
    def __init__(self, *args: Any) -> None:
        if args:
            answer(*args)

    def method(self, conn: Connection, opcode: Opcode, payload: str) -> None:
        answer(conn, opcode, payload)

    @classmethod
    def of_class(cls, conn: Connection, opcode: Opcode, payload: str) -> None:
        answer(conn, opcode, payload)

    def __call__(self, conn: Connection, opcode: Opcode, payload: str) -> None:
        answer(conn, opcode, payload)


class EmptyList(list[Any]):
    """An object that is false."""

    def __call__(self, conn: Connection, opcode: Opcode, payload: str) -> None:
        answer(conn, opcode, payload)


WORKING: dict[str, Callable[..., Any]] = {
    "a function": answer,
    "defaults": with_defaults,
    "a lambda with a default": lambda conn, opcode, payload, send=Connection.send: send(conn, f"re {payload}"),
    "stars": with_stars,
    "positional-only": positional_only,
    "a bound method": Answerer().method,
    "a class method": Answerer.of_class,
    "a static method": staticmethod(answer),
    "an object": Answerer(),
    "an object that is false": EmptyList(),
    "a class": Answerer,
    "a partial": functools.partial(answer),
    "a partial with a keyword": functools.partial(lambda conn, opcode, payload, *, more: answer(
        conn, opcode, payload), more=1),
    "a partial that has the first": functools.partial(lambda more, *args: answer(*args), 1),
    "a wrapper of other parameters": wrapping_other_parameters,
    "a wrapper that runs a coroutine": running_a_coroutine,
    "a cached function": functools.lru_cache(answer),
    "a single-dispatch function": dispatching,
    "a Mock": Mock(side_effect=answer),
    "a MagicMock": MagicMock(side_effect=answer),
    "a Mock of a function": Mock(spec=answer, side_effect=answer),
    "a mock with the function's signature": create_autospec(answer, side_effect=answer),
}


@pytest.mark.parametrize("kind", WORKING)
@pytest.mark.parametrize("way", [by_keyword, by_assignment, by_decorator, by_subclass], ids=lambda way: way.__name__)
def test_what_works(connect: Connect, kind: str, way: Callable[[str, Any], Manager]) -> None:
    _, peer = connect(way("on_message", WORKING[kind]))
    assert echoed(peer) == "re hi"


@pytest.mark.parametrize("name", ["on_connect", "on_slow", "on_close"])
def test_builtins(name: str) -> None:
    """What tells its parameters is held to them, the rest is trusted."""
    found: list[Any] = []
    builtins: list[Any] = [print, found.append, set().add, dict().update, threading.Event().wait, type]
    for function in builtins:
        by_keyword(name, function)
    with pytest.raises(TypeError, match="^on_message is called as .* takes "):
        by_keyword("on_message", found.append)


class Base(ListenableManager):
    def on_message(self, conn: Connection, opcode: Opcode, payload: str) -> None:  # type: ignore[override]
        conn.send(f"base {payload}")


class Derived(Base):
    def on_message(self, conn: Connection, opcode: Opcode, payload: str) -> None:  # type: ignore[override]
        super().on_message(conn, opcode, payload + "!")


class Mixin:
    def on_message(self, conn: Connection, opcode: Opcode, payload: str) -> None:
        conn.send(f"mixin {payload}")


class Mixed(Mixin, ListenableManager):  # type: ignore[misc]
    pass


class Nothing(Base):
    on_message = None  # type: ignore[assignment]


@pytest.mark.parametrize("kind, reply", [(Base, "base hi"), (Derived, "base hi!"), (Mixed, "mixin hi")])
def test_methods_of_subclasses(connect: Connect, kind: type[ListenableManager], reply: str) -> None:
    manager = kind()
    assert echoed(connect(manager)[1]) == reply
    # They are methods like any.
    conn = Mock()
    getattr(manager, "on_message")(conn, Opcode.TEXT, "call")
    getattr(kind, "on_message")(manager, conn, Opcode.TEXT, "call")
    assert [str(call.args[0])[:5] for call in conn.send.call_args_list] == [reply[:5], reply[:5]]


@pytest.mark.parametrize("kind", [Base, Derived, Mixed])
def test_what_is_given_counts_more_than_a_method(connect: Connect, kind: type[ListenableManager]) -> None:
    assert echoed(connect(kind(on_message=answer))[1]) == "re hi"
    manager = kind()
    manager.on_message = answer
    assert echoed(connect(manager)[1]) == "re hi"
    with pytest.raises(TypeError, match="^on_message runs in a thread"):
        manager.on_message = coroutine
    assert echoed(connect(manager)[1]) == "re hi"
    manager.on_message = None
    _, peer = connect(manager)
    peer.send(Opcode.TEXT, b"hi")
    peer.close_frame()
    assert peer.read_close() == 1000


def test_a_subclass_may_take_a_callback_away(connect: Connect) -> None:
    _, peer = connect(Nothing())
    peer.send(Opcode.TEXT, b"hi")
    peer.close_frame()
    assert peer.read_close() == 1000


@pytest.mark.parametrize("kind", NEVER_RUN)
@pytest.mark.parametrize("way", ["route", "handler"])
def test_handlers_of_flask_that_would_never_run(way: str, kind: str) -> None:
    app = Flask(__name__)
    ws = WebSockets(app)
    rules = len(list(app.url_map.iter_rules()))
    with pytest.raises(TypeError, match="^handler runs in a thread and .* is .*: write a plain def$"):
        (ws.route("/x") if way == "route" else ws.handler)(NEVER_RUN[kind])
    assert len(list(app.url_map.iter_rules())) == rules


@pytest.mark.parametrize("function", [7, "print", None, [print]], ids=repr)
def test_handlers_of_flask_that_are_no_functions(function: Any) -> None:
    with pytest.raises(TypeError, match="^handler is .*, it must be a function$"):
        WebSockets(Flask(__name__)).route("/x")(function)


@pytest.mark.parametrize("function", [nothing, keyword_only, Plain, Plain(), Plain().nothing], ids=repr)
def test_handlers_of_flask_that_take_no_connection(function: Any) -> None:
    """What else they take depends on the rule."""
    with pytest.raises(TypeError, match=r"^handler is called as handler\(conn, \.\.\.\), and .* takes \("):
        WebSockets(Flask(__name__)).route("/x")(function)


def say(conn: Connection, name: str) -> None:
    conn.send(name)


def say_by_keyword(conn: Connection, *, name: str) -> None:
    conn.send(name)


class Sayer:
    def method(self, conn: Connection, name: str) -> None:
        conn.send(name)


@pytest.mark.parametrize("function", [
    say, say_by_keyword, Sayer().method, functools.partial(say), lambda conn, **view_args: say(conn, **view_args),
    Mock(side_effect=say), create_autospec(say, side_effect=say),
], ids=repr)
def test_handlers_of_flask_that_work(function: Any) -> None:
    app = Flask(__name__)
    ws = WebSockets(app)
    ws.route("/say/<name>", endpoint="say")(function)
    with testing.connect(app, "/say/Ada") as client:
        assert client.receive() == "Ada"
