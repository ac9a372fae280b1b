"""What an exception in a callback becomes: once through the application's own path, and once through ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from flask import Flask, abort, g, got_request_exception, request

from wsthread import Connection, ConnectionClosed, ListenableManager, testing
from wsthread.flask import WebSockets

Open = Callable[..., testing.WebSocket]


class Bug(Exception):
    """An error of the application's."""


class Refusal(Exception):
    """What an error handler of the application answers with a 403."""


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.before_request(lambda: setattr(g, "user", "Ada"))
    return app


@pytest.fixture
def ws(app: Flask) -> WebSockets:
    return WebSockets(app)


@pytest.fixture
def signals(app: Flask) -> Iterator[list[tuple[BaseException, str, str]]]:
    """Return what a receiver like those of Sentry and Rollbar sees: the exception, the request, the user."""
    seen: list[tuple[BaseException, str, str]] = []

    def receive(sender: Flask, exception: BaseException, **extra: Any) -> None:
        seen.append((exception, request.url, g.user))

    with got_request_exception.connected_to(receive, app):
        yield seen


def fail(*args: object) -> None:
    raise Bug("in a callback")


def add_rule(ws: WebSockets, where: str, function: Callable[..., Any]) -> ListenableManager:
    """Add one whose callback, or handler, is the function."""
    manager = ListenableManager()
    if where == "handler":
        ws.route("/ws")(function)
    elif where == "messages":
        ws.route("/ws")(lambda conn: [function() for message in ws.messages(conn)])
    else:
        setattr(manager, where, function)
        ws.mount("/ws", manager)
    return manager


def provoke(found: testing.WebSocket, where: str = "on_message") -> None:
    """Let a callback run, and let the connection end."""
    if where != "on_close":
        with suppress(ConnectionClosed):
            found.send("hi")
            found.receive()
    found.close()


WHERE = ["on_connect", "on_message", "on_close", "handler", "messages"]


@pytest.mark.parametrize("where", WHERE)
def test_error(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, signals: list[Any], where: str,
) -> None:
    """Also root handlers, such as those that send mail, see one error."""
    add_rule(ws, where, fail)
    found = websocket(app, "/ws?q=x")
    if where == "on_close":
        pytest.raises(Bug, found.close)
    else:
        provoke(found)
        assert found.close_code == 1011
    assert [(str(error), url, user) for error, url, user in signals] == [
        ("in a callback", "http://localhost/ws?q=x", "Ada")]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [(error.name, error.getMessage()) for error in errors] == [(app.name, "Exception on /ws [GET]")]
    ours = [record for record in caplog.records if record.name == "wsthread"]
    assert [(record.levelname, record.getMessage()) for record in ours] == [
        ("WARNING", "WebSocket local '/ws': error in a callback, see the log of the application: Bug('in a callback')")]
    assert caplog.text.count("Traceback") == 1


def test_error_in_on_error(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, signals: list[Any],
) -> None:
    """Each is told once."""
    def fail_again(conn: Connection, error: Exception) -> None:
        raise ArithmeticError("in on_error")

    add_rule(ws, "on_message", fail).on_error = fail_again
    provoke(websocket(app, "/ws"))
    assert [type(error) for error, *_ in signals] == [Bug, ArithmeticError]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR", "WARNING"]


def test_error_in_on_slow(app: Flask, ws: WebSockets, websocket: Open, signals: list[Any]) -> None:
    """It runs in another thread, here in that of the test."""
    manager = ListenableManager(max_outbox_size=1, on_slow=fail)
    ws.mount("/ws", manager)
    found = websocket(app, "/ws")
    while manager.broadcast(bytes(1 << 16)) and not signals:
        pass
    assert [(str(error), url) for error, url, _ in signals] == [("in a callback", "http://localhost/ws")]
    pytest.raises(Bug, found.terminate)


def test_the_same_exception_again(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, signals: list[Any],
) -> None:
    """Some raise an object that is made once."""
    bug = Bug("made once")

    def fail_with_it(*args: object) -> None:
        raise bug

    add_rule(ws, "on_message", fail_with_it)
    for _ in range(2):
        provoke(websocket(app, "/ws"))
    assert [error for error, *_ in signals] == [bug, bug]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * 2


@pytest.mark.parametrize(("kind", "where"), [
    *(("abort", where) for where in WHERE),
    # Among messages the connection would be open.
    *(("closed", where) for where in WHERE if where != "messages"),
])
def test_what_is_no_error(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, signals: list[Any], kind: str,
    where: str,
) -> None:
    def end(conn: Connection | None = None, *args: object) -> None:
        if kind == "abort":
            abort(403)
        if conn is not None:
            conn.close()
        raise ConnectionClosed

    add_rule(ws, where, end)
    provoke(websocket(app, "/ws"), where)
    assert (signals, caplog.records) == ([], [])


@pytest.mark.parametrize("where", WHERE)
def test_error_handler_that_refuses(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, signals: list[Any], where: str,
) -> None:
    """As those of Flask-JWT-Extended and many others do, with their own exceptions."""
    def refuse(*args: object) -> None:
        raise Refusal

    app.register_error_handler(Refusal, lambda error: (f"not {g.user} at {request.path}", 403))
    add_rule(ws, where, refuse)
    found = websocket(app, "/ws")
    provoke(found, where)
    assert (found.close_code, found.close_reason) == ((1000, "") if where == "on_close" else (4403, "Forbidden"))
    assert (signals, caplog.records) == ([], [])


def test_error_handler_for_all(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, signals: list[Any],
) -> None:
    """It is called, and an error is one for all that, which nobody but we may have told."""
    seen: list[Exception] = []

    @app.errorhandler(Exception)
    def answer(error: Exception) -> tuple[str, int]:
        seen.append(error)
        return "sorry", 500

    add_rule(ws, "on_message", fail)
    found = websocket(app, "/ws")
    provoke(found)
    assert (found.close_code, [type(error) for error in seen], signals) == (1011, [Bug], [])
    assert [(record.name, record.levelname) for record in caplog.records] == [("wsthread", "ERROR")]


def test_error_handler_that_fails(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, signals: list[Any],
) -> None:
    @app.errorhandler(Bug)
    def answer(error: Exception) -> str:
        raise KeyError("in an error handler")

    errors: list[Exception] = []
    add_rule(ws, "on_message", fail).on_error = lambda conn, error: errors.append(error)
    provoke(websocket(app, "/ws"))
    assert [repr(error) for error in errors] == [repr(error) for error, *_ in signals]
    assert [repr(error) for error in errors] == ["KeyError('in an error handler')"]
    assert "Bug: in a callback" in caplog.text  # It is part of the traceback.


def test_receiver_that_fails(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture,
) -> None:
    """Both are in our log then."""
    def receive(sender: Flask, exception: BaseException, **extra: Any) -> None:
        raise KeyError("in a receiver")

    add_rule(ws, "on_message", fail)
    with got_request_exception.connected_to(receive, app):
        found = websocket(app, "/ws")
        provoke(found)
    assert found.close_code == 1011
    assert [record.getMessage() for record in caplog.records] == [
        "WebSocket local '/ws': error in what tells of errors", "WebSocket local '/ws': error in a callback"]


def test_error_with_a_log_of_its_own(app: Flask, ws: WebSockets, websocket: Open) -> None:
    """As RotatingFileHandler and SMTPHandler are added to it."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Handler(logging.ERROR)
    app.logger.addHandler(handler)
    try:
        add_rule(ws, "on_message", fail)
        provoke(websocket(app, "/ws"))
    finally:
        app.logger.removeHandler(handler)
    assert [record.exc_info[0] for record in records if record.exc_info] == [Bug]


def test_error_before_the_callback(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, signals: list[Any],
) -> None:
    """What belongs to the URL may fail as well."""
    @app.url_value_preprocessor
    def prepare(endpoint: str | None, values: object) -> None:
        if ready:
            fail()
        ready.append(True)

    ready: list[bool] = []
    add_rule(ws, "on_connect", lambda conn: None)
    found = websocket(app, "/ws")
    provoke(found)
    assert found.close_code == 1011
    assert {type(error) for error, *_ in signals} == {Bug}


def test_application_of_a_subclass(ws: WebSockets, websocket: Open) -> None:
    """Some override what Flask calls."""
    class Application(Flask):
        def log_exception(self, *args: Any) -> None:
            logged.append((args[-1][1], request.path))

    logged: list[tuple[object, str]] = []
    app = Application(__name__)
    ws.init_app(app)
    add_rule(ws, "on_message", fail)
    provoke(websocket(app, "/ws"))
    assert [(str(error), path) for error, path in logged] == [("in a callback", "/ws")]
