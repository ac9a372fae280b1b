"""The room of gunicorn, with what it would put into the environ and into the process."""

from __future__ import annotations

import io
import math
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsthread import servers
from wsthread.servers.gunicorn import Gunicorn

SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT)


class Worker:
    """What is asked of gunicorn's worker."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def handle(self, *args: object) -> None:
        """Handle a signal."""


SetHandlers = Callable[..., None]


@pytest.fixture
def set_handlers(monkeypatch: pytest.MonkeyPatch) -> SetHandlers:
    """Return a function that sets the handlers of the three signals; None is the default one."""

    def set_all(*handlers: object) -> None:
        table = dict(zip(SIGNALS, handlers))
        monkeypatch.setattr(signal, "getsignal", lambda number: table.get(number, signal.SIG_DFL))

    return set_all


def test_find() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server, found = servers.find({"SERVER_SOFTWARE": "gunicorn/27.0.1", "gunicorn.socket": ours})
        assert isinstance(server, Gunicorn)
        assert found is ours


def test_not_its_request() -> None:
    assert Gunicorn().find_socket({"werkzeug.socket": 1}) is None


def test_response_for_the_dummy() -> None:
    """It has a length, so that gunicorn 20 writes no last chunk."""
    assert Gunicorn().dummy_headers == (("Content-Length", "0"),)


def test_environ_of_its_own() -> None:
    assert "gunicorn.socket".startswith(servers.OWN_KEYS)


# What was read ahead


@pytest.mark.parametrize("at", [0, 3, 7], ids=["rewound", "amid", "at the end"])
def test_unread(at: int) -> None:
    """The parser's buffer is emptied, wherever its position is."""
    buffer = io.BytesIO(b"a frame")
    buffer.seek(at)
    body = SimpleNamespace(reader=SimpleNamespace(unreader=SimpleNamespace(buf=buffer)))
    assert Gunicorn().take_unread({"wsgi.input": body}) == b"a frame"
    assert (buffer.getvalue(), buffer.tell()) == (b"", 0)
    assert Gunicorn().take_unread({"wsgi.input": body}) == b""


@pytest.mark.parametrize("body", [
    io.BytesIO(b"a body"),
    SimpleNamespace(reader=None),
    SimpleNamespace(reader=SimpleNamespace(unreader=SimpleNamespace())),
    SimpleNamespace(reader=SimpleNamespace(unreader=SimpleNamespace(buf=bytearray(b"another version's")))),
], ids=["replaced by middleware", "without a reader", "without a buffer", "another buffer"])
def test_unread_that_is_elsewhere(body: object) -> None:
    assert Gunicorn().take_unread({"wsgi.input": body}) == b""


# What comes behind the response


class ReadOnly:
    """Something around the body, with an attribute that cannot be set."""

    failed = property(lambda self: False)


@pytest.mark.parametrize(("body", "after"), [
    (SimpleNamespace(failed=False), True),  # From gunicorn 27 on.
    (SimpleNamespace(failed=True), True),
    (SimpleNamespace(failed=0), 0),
    (SimpleNamespace(), None),
    (io.BytesIO(b"a body"), None),
    (ReadOnly(), False),
], ids=["a body", "one that has failed", "another meaning", "an older version", "replaced by middleware", "read-only"])
def test_no_more_requests(body: object, after: object) -> None:
    """The body says that it has failed where it can, and nothing else is touched."""
    Gunicorn().expect_no_more({"wsgi.input": body})
    assert getattr(body, "failed", None) is after


def test_no_more_requests_in_the_installed_version() -> None:
    """Its parser looks for no request behind a body that has failed."""
    body = pytest.importorskip("gunicorn.http.body", reason="gunicorn is not installed").Body(reader=None)
    if not hasattr(body, "failed"):
        pytest.skip("this gunicorn looks for one, as those before 27")
    Gunicorn().expect_no_more({"wsgi.input": body})
    parser = SimpleNamespace(mesg=SimpleNamespace(body=body))
    parsers = pytest.importorskip("gunicorn.http.parser", reason="gunicorn is not installed")
    assert parsers.Parser.finish_body(parser, deadline=0) is False


# The end


@pytest.mark.parametrize("place", range(3), ids=[number.name for number in SIGNALS])
@pytest.mark.parametrize("alive", [True, False])
def test_worker_is_asked(set_handlers: SetHandlers, place: int, alive: bool) -> None:
    """By way of the handlers that the application has left."""
    handlers: list[object] = [lambda number, frame: None, signal.SIG_IGN, None]
    handlers[place] = Worker(alive=alive).handle
    set_handlers(*handlers)
    assert Gunicorn().is_stopping() is servers.is_stopping() is not alive


@pytest.mark.parametrize("handler", [
    None, signal.SIG_DFL, lambda number, frame: None, Worker().handle, Worker(alive="yes").handle,
    Worker(alive=lambda: False, cfg=SimpleNamespace(timeout=1)).handle,
], ids=["not from Python", "default", "function", "method", "another alive", "thread"])
def test_no_worker(set_handlers: SetHandlers, handler: object) -> None:
    """Handlers of others do not count, even if they are methods of something with like names."""
    set_handlers(handler, handler, handler)
    assert not servers.is_stopping()
    assert Gunicorn().time_to_stop() == math.inf
    assert servers.time_to_stop(12.5) == 12.5


@pytest.mark.parametrize(("graceful_timeout", "timeout", "allowed"), [
    (30, 30, 28),
    (30, 10, 8),  # The master kills who is silent for so long.
    (10, 30, 8),
    (30, 0, 28),  # 0 is no limit.
    (0, 0, math.inf),
    (2, 30, 0.5),  # A quarter, when the margin leaves less.
    (1, 30, 0.25),
    (2.8, 30, 0.8),
    (None, 10, 8),
    ("30", 10, 8),
])
def test_time_to_stop(set_handlers: SetHandlers, graceful_timeout: Any, timeout: Any, allowed: float) -> None:
    cfg = SimpleNamespace(graceful_timeout=graceful_timeout, timeout=timeout)
    set_handlers(Worker(alive=True, cfg=cfg).handle)
    assert Gunicorn().time_to_stop() == pytest.approx(allowed)
    assert servers.time_to_stop(100) == pytest.approx(min(allowed, 100))
    assert servers.time_to_stop(0.1) == 0.1


@pytest.mark.parametrize("cfg", [{}, {"cfg": None}, {"cfg": SimpleNamespace()}])
def test_time_to_stop_that_is_not_told(set_handlers: SetHandlers, cfg: dict[str, object]) -> None:
    set_handlers(Worker(alive=True, **cfg).handle)
    assert Gunicorn().time_to_stop() == math.inf


def test_the_room_of_a_socket_that_is_in_the_working_directory(
    set_handlers: SetHandlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two applications may call theirs alike, each in its own directory."""
    rooms = []
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("gunicorn.sock")
            set_handlers(Worker(alive=True, sockets=[listener]).handle)
            rooms.append(Gunicorn().room())
    assert None not in rooms and rooms[0] != rooms[1]
