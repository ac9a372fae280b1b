"""When the configuration of a Flask application is read, and what single routes say instead."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

import wsthread
from wsthread import Connection, ConnectionClosed, Deflate, ListenableManager, testing
from wsthread.configuration import Configuration, RouteOptions
from wsthread.flask import WebSockets
from wsthread.manager import Manager

Open = Callable[..., testing.WebSocket]
PAGE = {"Origin": "https://example.com"}


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


def echo(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# When it is read


def test_key_after_init_app(app: Flask, websocket: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that is changed, and one that is taken out."""
    app.config.update(WSTHREAD_PING_INTERVAL=1, WSTHREAD_READ_TIMEOUT=1)
    ws = WebSockets(app)
    ws.route("/")(echo)
    app.config.update(WSTHREAD_ORIGINS=["https://example.com"], WSTHREAD_PING_INTERVAL=5, WSTHREAD_MAX_MESSAGE_SIZE=3)
    del app.config["WSTHREAD_READ_TIMEOUT"]
    found = websocket(app, headers=PAGE)
    found.send("1234")
    assert list(found) == []
    assert found.close_code == 1009
    options = ws.manager.options
    assert (options.ping_interval, options.read_timeout) == (5, None)
    assert not any("too late" in text for text in warnings(caplog))


@pytest.mark.parametrize("first", ["handshake", "refused handshake", "plain request", "manager"])
def test_change_too_late(app: Flask, websocket: Open, caplog: pytest.LogCaptureFixture, first: str) -> None:
    """It is named once, and does not count."""
    app.config.update(WSTHREAD_SUBPROTOCOLS=["one"], WSTHREAD_ORIGINS=["https://example.com"])
    ws = WebSockets(app)
    ws.route("/")(echo)
    match first:
        case "handshake":
            websocket(app)
        case "refused handshake":
            pytest.raises(testing.Refused, testing.connect, app, headers={"Origin": "https://other.example"})
        case "plain request":
            app.test_client().get("/")
        case "manager":
            ws.manager
    caplog.clear()
    app.config["WSTHREAD_SUBPROTOCOLS"].append("two")
    app.config["WSTHREAD_PING_INTERVAL"] = 1
    app.config["WSTHREAD_UNKNOWN"] = 1
    del app.config["WSTHREAD_ORIGINS"]
    app.config["OTHER"] = 1
    for _ in range(2):
        assert websocket(app, subprotocols=["two"], headers=PAGE).subprotocol is None
    assert ws.manager.options.ping_interval == 20
    assert [text.partition(" ")[0] for text in warnings(caplog)] == [
        "WSTHREAD_ORIGINS", "WSTHREAD_PING_INTERVAL", "WSTHREAD_SUBPROTOCOLS", "WSTHREAD_UNKNOWN"]
    assert "has changed too late and counts as it was" in caplog.text


@pytest.mark.parametrize(("key", "value", "message"), [
    ("WSTHREAD_PING_INTERVALL", 5, "WSTHREAD_PING_INTERVALL; there is only"),
    ("WSTHREAD_PING_INTERVAL", "5", "ping_interval is '5'"),
    ("WSTHREAD_SUBPROTOCOLS", "chat", "subprotocols is"),
])
def test_wrong_key_after_init_app(app: Flask, websocket: Open, key: str, value: object, message: str) -> None:
    """It is an error as soon as it counts, until it is right."""
    app.testing = True
    ws = WebSockets(app)
    ws.route("/")(echo)
    app.config[key] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            testing.connect(app)
        with app.app_context(), pytest.raises(ValueError, match=message):
            ws.manager
    del app.config[key]
    websocket(app)


def test_iterator_before_init_app(app: Flask, websocket: Open) -> None:
    """It is read twice then."""
    app.config["WSTHREAD_ORIGINS"] = iter(["https://example.com"])
    WebSockets(app).route("/")(echo)
    app.config["WSTHREAD_PING_INTERVAL"] = 5
    websocket(app, headers=PAGE)


def test_manager_is_made_once() -> None:
    """Whoever comes first."""
    made: list[Manager] = []

    def make(**options: Any) -> Manager:
        made.append(Manager(**options))
        return made[-1]

    configuration = Configuration({"WSTHREAD_PING_INTERVAL": 5}, make, "app")
    assert made == []
    assert configuration.manager is configuration.manager is made[0]
    assert len(made) == 1


# What is left of Flask-Sock


@pytest.mark.parametrize(("leftover", "advice"), [
    ({"ping_interval": 25}, "write WSTHREAD_PING_INTERVAL = 25"),
    ({"max_message_size": 10, "subprotocols": ["a"], "receive_bytes": 4096, "thread_class": None},
     "write WSTHREAD_MAX_MESSAGE_SIZE = 10, WSTHREAD_SUBPROTOCOLS = ['a']; nothing is needed for receive_bytes, "
     "thread_class"),
    ({"event_class": object}, "nothing is needed for event_class"),
])
@pytest.mark.parametrize("early", [True, False])
def test_leftover(
    app: Flask, websocket: Open, caplog: pytest.LogCaptureFixture, leftover: dict[str, Any], advice: str, early: bool,
) -> None:
    if early:
        app.config["SOCK_SERVER_OPTIONS"] = leftover
    WebSockets(app).route("/")(echo)
    app.config["SOCK_SERVER_OPTIONS"] = leftover
    for _ in range(2):
        websocket(app)
    assert warnings(caplog) == [f"SOCK_SERVER_OPTIONS has no effect here: {advice}"]


def test_leftover_that_says_nothing(app: Flask, websocket: Open, caplog: pytest.LogCaptureFixture) -> None:
    app.config["SOCK_SERVER_OPTIONS"] = {}
    WebSockets(app).route("/")(echo)
    websocket(app)
    assert warnings(caplog) == []


# Options of routes


def routes(app: Flask, way: str, **options: Any) -> None:
    """Add /own with options, and /other without, in one of the ways there are."""
    ws = WebSockets(app)
    manager = ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload))
    match way:
        case "route":
            ws.route("/own", endpoint="own", **options)(echo)
            ws.route("/other", endpoint="other")(echo)
        case "handler":
            app.add_url_rule("/own", "own", ws.handler(None, **options)(echo), websocket=True)
            app.add_url_rule("/other", "other", ws.handler(echo), websocket=True)
        case "mount":
            ws.mount("/own", manager, **options)
            ws.mount("/other", manager)
        case "upgrade":
            app.add_url_rule("/own", "own", lambda: ws.upgrade(manager, **options), websocket=True)
            app.add_url_rule("/other", "other", lambda: ws.upgrade(manager), websocket=True)


WAYS = pytest.mark.parametrize("way", ["route", "handler", "mount", "upgrade"])


@WAYS
def test_subprotocols_of_a_route(app: Flask, websocket: Open, way: str) -> None:
    app.config["WSTHREAD_SUBPROTOCOLS"] = ["ocpp1.6"]
    routes(app, way, subprotocols=["mqtt"] if way == "upgrade" else iter(["mqtt"]))
    for _ in range(2):
        for path, chosen in {"/own": "mqtt", "/other": "ocpp1.6"}.items():
            assert websocket(app, path, subprotocols=["ocpp1.6", "mqtt"]).subprotocol == chosen


@WAYS
def test_required_subprotocol_of_a_route(app: Flask, websocket: Open, way: str) -> None:
    """It may be about those of the configuration."""
    app.config["WSTHREAD_SUBPROTOCOLS"] = ["chat"]
    routes(app, way, require_subprotocol=True)
    websocket(app, "/other")
    websocket(app, "/own", subprotocols=["chat"])
    with pytest.raises(testing.Refused, match="400"):
        testing.connect(app, "/own")


@WAYS
def test_compression_for_a_client(app: Flask, websocket: Open, way: str) -> None:
    routes(app, way, compression=lambda environ: Deflate() if environ["PATH_INFO"] == "/own" else None)
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    assert "Sec-WebSocket-Extensions" in websocket(app, "/own", headers=offer).response.headers


@WAYS
@pytest.mark.parametrize(("general", "own"), [("https://other.example", ["https://example.com"]), (["*"], None)])
def test_origins_of_a_route(app: Flask, websocket: Open, way: str, general: object, own: object) -> None:
    """None has a meaning, and is not as if nothing was said."""
    app.config["WSTHREAD_ORIGINS"] = general
    routes(app, way, origins=own)
    allowed, refused = ("/own", "/other") if own else ("/other", "/own")
    websocket(app, allowed, headers=PAGE)
    with pytest.raises(testing.Refused, match="403"):
        testing.connect(app, refused, headers=PAGE)


@WAYS
@pytest.mark.parametrize("own", [None, Deflate()])
def test_compression_of_a_route(app: Flask, websocket: Open, way: str, own: Deflate | None) -> None:
    app.config["WSTHREAD_COMPRESSION"] = None if own else Deflate()
    routes(app, way, compression=own)
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    for path in ("/own", "/other"):
        agreed = websocket(app, path, headers=offer).response.headers.get("Sec-WebSocket-Extensions")
        assert bool(agreed) is ((path == "/own") is bool(own))


@WAYS
@pytest.mark.parametrize("own", [None, 3])
def test_max_message_size_of_a_route(app: Flask, websocket: Open, way: str, own: int | None) -> None:
    routes(app, way, max_message_size=own)
    for path, limit in {"/own": own, "/other": 1 << 20}.items():
        for size in (3, 4, 1 << 20, (1 << 20) + 1):
            found = websocket(app, path)
            with suppress(ConnectionClosed):  # A large one, before all of it has gone.
                found.send(bytes(size))
            if limit is None or size <= limit:
                assert found.receive() == bytes(size)
            else:
                assert list(found) == []
                assert found.close_code == 1009


@WAYS
@pytest.mark.parametrize(("options", "error"), [
    ({"subprotocols": "mqtt"}, TypeError), ({"origins": 5}, TypeError), ({"compression": True}, TypeError),
    ({"max_message_size": 0}, ValueError), ({"max_message_size": "1 MiB"}, ValueError),
])
def test_wrong_option_of_a_route(app: Flask, way: str, options: dict[str, Any], error: type[Exception]) -> None:
    """It is an error where it is said; within a view, when that runs."""
    app.testing = True
    with pytest.raises(error, match=next(iter(options))):
        routes(app, way, **options)
        testing.connect(app, "/own")


def test_option_for_what_is_a_view_already(app: Flask) -> None:
    ws = WebSockets(app)
    view = ws.route("/one")(echo)
    ws.route("/two")(view)
    with pytest.raises(TypeError, match="is a view already; options belong to"):
        ws.route("/three", subprotocols=["mqtt"])(view)
    with pytest.raises(TypeError, match="is a view already; options belong to"):
        ws.handler(max_message_size=None)(view)


def test_route_options() -> None:
    assert not RouteOptions.of(...)
    assert RouteOptions.of(..., origins=..., subprotocols=()) == ({"subprotocols": ()}, ...)
    assert RouteOptions.of(None) == ({}, None)
    assert RouteOptions.of(None)


TYPES = """
    from collections.abc import Callable

    from flask import Flask

    from wsthread import Connection, Deflate, Manager
    from wsthread.flask import WebSockets

    ws = WebSockets(Flask(__name__))
    manager = Manager()

    @ws.route("/right", subprotocols=["mqtt"], origins=None, compression=Deflate(), max_message_size=None, endpoint="x")
    def right(conn: Connection) -> None: ...

    @ws.handler
    def bare(conn: Connection) -> None: ...

    @ws.handler(subprotocols=("mqtt",), max_message_size=5)
    def called(conn: Connection) -> None: ...

    ws.mount("/mounted", manager, origins="*", defaults={"room": 1})
    ws.upgrade(manager, compression=None)
    ws.route("/wrong", subprotocols=5)
    ws.handler(compression=True)
    ws.mount("/wrong", manager, origins=5)
    ws.upgrade(manager, max_message_size="5")
    ws.upgrade(manager, wrong=5)
"""


@pytest.mark.slow
def test_types_of_options(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    source = textwrap.dedent(TYPES)
    (tmp_path / "application.py").write_text(source)
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "application.py"], cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(wsthread.__file__).parents[1])}, capture_output=True, text=True)
    wrong = [number for number, line in enumerate(source.splitlines(), 1) if line.startswith("ws.") and (
        "wrong" in line or "True" in line or '"5"' in line)]
    assert len(wrong) == 5
    assert sorted({int(line.split(":")[1]) for line in result.stdout.splitlines() if "error:" in line}) == wrong, result
