"""The standard library's validator around the application finds nothing to say against an upgrade (PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from wsgiref.validate import validator

import flask
import pytest
from clients import RawClient
from servers import serve
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.middleware.shared_data import SharedDataMiddleware
from werkzeug.test import Client
from werkzeug.wrappers import Response
from wire import client_frame

from wsthread import ListenableManager, Opcode, Upgrader, testing
from wsthread.flask import WebSockets

Application = Callable[..., Any]


def echo() -> Upgrader:
    return Upgrader(ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload)))


@pytest.mark.parametrize("wrap", [
    validator,
    lambda app: validator(validator(app)),
    lambda app: validator(ProxyFix(validator(app))),
    lambda app: validator(DispatcherMiddleware(Response("page"), {"/ws": validator(app)})),
    lambda app: validator(SharedDataMiddleware(app, {})),
])
def test_upgrade(wrap: Callable[[Application], Application]) -> None:
    with testing.connect(wrap(echo()), "/ws") as ws:
        assert "Content-Type" not in ws.response.headers
        ws.send("hello")
        assert ws.receive() == "hello"


def test_upgrade_of_flask() -> None:
    app = flask.Flask(__name__)
    app.secret_key = "key"
    WebSockets(app).mount("/ws", ListenableManager())

    @app.before_request
    def log_in() -> None:
        flask.session["user"] = "Ada"

    with testing.connect(validator(app), "/ws") as ws:
        assert "Set-Cookie" in ws.response.headers
        ws.ping()


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 426),
    ({"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}, 501),
])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_refusals(headers: dict[str, str], status: int, method: str) -> None:
    """Those are ordinary responses."""
    response = Client(validator(echo())).open("/?a=b", method=method, headers=headers, buffered=True)
    assert response.status_code == (405 if method != "GET" and not headers else status)


def test_refusal_when_the_server_calls() -> None:
    """A 503 in place of the 101."""
    app = validator(Upgrader(ListenableManager(max_connections=1)))
    with testing.connect(app):
        with pytest.raises(testing.Refused, match="503"):
            testing.connect(app)


@pytest.mark.parametrize("kind", ["gthread", "sync", "run_simple"])
def test_servers(kind: str) -> None:
    """Under real ones as well, whose log has no error."""
    with serve(kind, "apps.validated:app") as server:
        with RawClient(server.port).open("/echo") as client:
            client.send(client_frame(Opcode.TEXT, b"hello"))
            assert client.recv_frame() == (Opcode.TEXT, b"hello")
        log = server.log()
    assert "AssertionError" not in log and "Traceback" not in log
