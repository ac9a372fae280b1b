"""From a request to a WebSocket, without a server or with one that shows no socket."""

from __future__ import annotations

import io
import logging
import socket
import threading
import wsgiref.simple_server
from typing import Any

import pytest
from clients import RawClient, handshake, random_key
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder, run_wsgi_app

from wsthread import ListenableManager, Upgrader


def call(environ: dict[str, Any]) -> tuple[str, str]:
    """Call an Upgrader as a WSGI application; return the status and the body."""
    body, status, _ = run_wsgi_app(Upgrader(ListenableManager()), environ, buffered=True)
    return status, b"".join(body).decode()


def handshake_environ(**changes: Any) -> dict[str, Any]:
    headers = Headers({
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": random_key(),
        "Sec-WebSocket-Version": "13"})
    return {**EnvironBuilder("/ws", headers=headers).get_environ(), **changes}


def test_http2_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status, body = call(handshake_environ(**{
            "SERVER_PROTOCOL": "HTTP/2.0", "gunicorn.socket": ours, "wsgi.input": io.BytesIO()}))
        assert status.startswith("400 ") and "HTTP/2.0" in body
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        ours.sendall(b"other streams go on")
        assert theirs.recv(99) == b"other streams go on"


def test_a_server_without_a_socket(caplog: pytest.LogCaptureFixture) -> None:
    status, body = call(handshake_environ(SERVER_SOFTWARE="waitress"))
    assert status.startswith("501 ")
    [record] = caplog.records
    assert record.levelno >= logging.WARNING
    for told in (body, record.getMessage()):
        assert "waitress shows no socket" in told and "--worker-class gthread" in told


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_wsgiref(caplog: pytest.LogCaptureFixture) -> None:
    """A real server that shows no socket."""
    httpd = wsgiref.simple_server.make_server(
        "127.0.0.1", 0, Upgrader(ListenableManager()), handler_class=QuietHandler)
    with httpd:
        thread = threading.Thread(target=httpd.handle_request)
        thread.start()
        with RawClient(httpd.server_port) as client:
            client.send(handshake("/", httpd.server_port))
            head = client.recv_head()
        thread.join(10)
    assert head.split(b"\r\n")[0].startswith(b"HTTP/1.0 501 ")
    assert "--worker-class gthread" in caplog.text
