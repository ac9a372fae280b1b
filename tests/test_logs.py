"""What the library tells the operator, what it calls things, and what that may cost."""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest
from servers import wait_until
from werkzeug.test import EnvironBuilder

from wsthread import logs
from wsthread.logs import logger, name_of, reset_after_fork, tell, tell_aside


@pytest.mark.parametrize(("path", "address", "name"), [
    ("/ws", "127.0.0.1", "WebSocket 127.0.0.1 '/ws'"),
    ("/ws?token=secret", "::1", "WebSocket ::1 '/ws'"),  # Secrets are in queries.
    ("/ws", None, "WebSocket local '/ws'"),  # A Unix socket.
    ("/two%0Alines", "127.0.0.1", r"WebSocket 127.0.0.1 '/two\nlines'"),
])
def test_name_of(path: str, address: str | None, name: str) -> None:
    environ = EnvironBuilder(path, environ_base={} if address is None else {"REMOTE_ADDR": address}).get_environ()
    assert name_of(environ) == name


def test_logger() -> None:
    assert logger.name == "wsthread"


# What a line may cost


class Handler(logging.Handler):
    """Keeps lines, and does what it is told to before that."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.action: Callable[[], object] = lambda: None

    def handle(self, record: logging.LogRecord) -> bool:
        """Unlike emit() it is guarded by nothing of logging, as no filter is."""
        self.action()
        self.records.append(record)
        self.lines.append(record.getMessage())
        return True


@pytest.fixture
def handler() -> Iterator[Handler]:
    """Return a handler of the library's logger."""
    handler = Handler()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    wait_until(lambda: not telling())


def telling() -> list[threading.Thread]:
    """Return the threads that tell for others."""
    return [thread for thread in threading.enumerate() if thread.name == "wsthread-log"]


class Thing:
    """Something that a line is about."""

    def __str__(self) -> str:
        return "a thing"


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_nothing_is_raised(handler: Handler, error: type[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error("in a filter")

    handler.action = fail
    tell(logging.ERROR, "a line")
    tell_aside(logging.ERROR, "another", patience=5)
    assert capsys.readouterr().err.count(f"{error.__name__}: in a filter") == 2


def test_a_line_keeps_nothing_alive(handler: Handler) -> None:
    for tell_it in (tell, tell_aside):
        thing = Thing()
        gone = weakref.ref(thing)
        tell_it(logging.ERROR, "%s: %d %r", thing, 1, "text")
        wait_until(lambda: handler.lines and not telling())
        del thing
        assert gone() is None
        assert handler.lines.pop() == "a thing: 1 'text'"


def test_lines_are_told_in_order_and_in_the_context_of_the_caller(handler: Handler) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    seen: list[int] = []
    handler.action = lambda: seen.append(variable.get())
    for number in range(100):
        variable.set(number)
        tell_aside(logging.ERROR, "%d", number)
    wait_until(lambda: len(handler.lines) == 100)
    assert seen == list(range(100))
    assert handler.lines == list(map(str, range(100)))


def test_what_nobody_wants_costs_nothing(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", None)
    tell_aside(logging.DEBUG, "a line", patience=5)
    assert handler.lines == []


def test_patience(handler: Handler) -> None:
    tell_aside(logging.ERROR, "a line", patience=5)
    assert handler.lines == ["a line"]


def test_a_handler_that_is_stuck(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    """It delays nobody for long, takes one thread, and what is kept for it is bounded; then it is told what is lost."""
    monkeypatch.setattr(logs, "PATIENCE", 0.2)
    go_on, stuck = threading.Event(), threading.Event()

    def block() -> None:
        stuck.set()
        go_on.wait(10)

    handler.action = block
    tell_aside(logging.ERROR, "first")
    assert stuck.wait(10)
    time.sleep(0.3)
    begun = time.monotonic()
    for number in range(3000):
        tell_aside(logging.ERROR, "%d", number, patience=1)
    assert time.monotonic() - begun < 2
    assert len(telling()) == 1
    go_on.set()
    wait_until(lambda: not telling())
    lost = "2000 lines were lost, a handler of the log took too long"
    assert handler.lines == ["first", lost, *map(str, range(1000))]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_no_thread_is_to_be_had(handler: Handler, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """The line waits for the next one."""
    def fail(thread: threading.Thread) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        tell_aside(logging.ERROR, "first", patience=5)
    assert handler.lines == []
    tell_aside(logging.ERROR, "second", patience=5)
    assert handler.lines == ["first", "second"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_has_a_log_of_its_own(handler: Handler) -> None:
    go_on, stuck = threading.Event(), threading.Event()

    def block() -> None:
        stuck.set()
        go_on.wait(10)

    handler.action = block
    tell_aside(logging.ERROR, "of the parent")
    assert stuck.wait(10)
    tell_aside(logging.ERROR, "of the parent too")
    child = os.fork()
    if child == 0:
        reset_after_fork()
        handler.action = lambda: None
        tell_aside(logging.ERROR, "of the child", patience=5)
        os._exit(handler.lines != ["of the child"])
    go_on.set()
    assert os.waitpid(child, 0)[1] == 0
