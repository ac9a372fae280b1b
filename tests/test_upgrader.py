"""From a request to a WebSocket, without a server or with one that shows no socket."""

from __future__ import annotations

import errno
import io
import logging
import socket
import ssl
import threading
import wsgiref.simple_server
from collections.abc import Iterator
from typing import Any

import pytest
from clients import RawClient, handshake, random_key
from peer import TIMEOUT, Recorder
from servers import wait_until
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder, run_wsgi_app

from wsthread import ListenableManager, Upgrader
from wsthread.servers.in_process import SOCKET_KEY


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


def test_http2_over_tls_is_refused_as_http2() -> None:
    """Not as TLS, with an advice that would not help."""
    with ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(socket.socket(), server_hostname="a") as secure:
        status, body = call(handshake_environ(**{"SERVER_PROTOCOL": "HTTP/2", "gunicorn.socket": secure}))
    assert status.startswith("400 ") and "HTTP/2" in body and "TLS" not in body


def test_a_server_without_a_socket(caplog: pytest.LogCaptureFixture) -> None:
    status, body = call(handshake_environ(SERVER_SOFTWARE="waitress"))
    assert status.startswith("501 ")
    [record] = caplog.records
    assert record.levelno >= logging.WARNING
    for told in (body, record.getMessage()):
        assert "waitress shows no socket" in told and "--worker-class gthread" in told


@pytest.mark.parametrize(("changes", "upgrade"), [
    ({"wsgi.input": io.BytesIO()}, "websocket"), ({"gunicorn.socket": 7}, "websocket"), ({}, None)])
def test_the_header_upgrade_of_a_426(changes: dict[str, Any], upgrade: str | None) -> None:
    """RFC 9110 demands it, and PEP 3333 forbids it; some servers answer with a 500 then."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as file:
        environ = {**handshake_environ(), "wsgi.input": file, **changes}
        environ["HTTP_UPGRADE"] = "h2c"
        del environ["HTTP_SEC_WEBSOCKET_KEY"]
        response = Upgrader(ListenableManager()).upgrade(environ)
    assert (response.status_code, response.headers.get("Upgrade")) == (426, upgrade)


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_wsgiref(caplog: pytest.LogCaptureFixture) -> None:
    """A real server whose socket is hidden by middleware that replaces the body."""
    upgrader = Upgrader(ListenableManager())
    httpd = wsgiref.simple_server.make_server(
        "127.0.0.1", 0, lambda environ, start: upgrader({**environ, "wsgi.input": io.BytesIO()}, start),
        handler_class=QuietHandler)
    with httpd:
        thread = threading.Thread(target=httpd.handle_request)
        thread.start()
        with RawClient(httpd.server_port) as client:
            client.send(handshake("/", httpd.server_port))
            head = client.recv_head()
        thread.join(10)
    assert head.split(b"\r\n")[0].startswith(b"HTTP/1.0 501 ")
    assert "--worker-class gthread" in caplog.text


# With a socket


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The socket that the server shows, and the client's."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT)
    with ours, theirs:
        yield ours, theirs


def test_the_101(ends: tuple[socket.socket, socket.socket]) -> None:
    """It goes over the client's socket, and the server gets one for its dummy."""
    ours, theirs = ends
    recorder = Recorder()
    environ = handshake_environ(**{SOCKET_KEY: ours, "REMOTE_ADDR": "127.0.0.1"})
    response = Upgrader(recorder.manager).upgrade(environ, headers=[("Set-Cookie", "a=b"), ("Set-Cookie", "c=d")])
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):  # Until the server calls the response.
        theirs.recv(1)
    theirs.settimeout(TIMEOUT)
    body, status, _ = run_wsgi_app(response, environ, buffered=True)
    assert (status, b"".join(body)) == ("101 Switching Protocols", b"")
    head = theirs.recv(1000)
    assert head.startswith(b"HTTP/1.1 101 ") and head.endswith(b"\r\n\r\n")
    assert b"\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n" in head
    assert b"content-" not in head.lower()
    wait_until(lambda: recorder.manager.connections)
    conn, = recorder.manager.connections
    kept = conn.request.environ
    assert SOCKET_KEY not in kept  # The request lives on without its server.
    assert {name for name in kept if name.startswith("wsgi.")} == {"wsgi.url_scheme", "wsgi.input"}
    assert conn.request.get_data() == b""
    conn.terminate()
    recorder.wait_closed()


@pytest.mark.parametrize(("error", "told"), [
    (OSError(errno.EMFILE, "100 of 100 file descriptors are in use"), "100 of 100 file descriptors are in use. Raise"),
    (KeyError("a bug"), None),
])
def test_a_socket_that_cannot_be_taken(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, error: Exception, told: str | None,
) -> None:
    """Nothing is left, the connection's thread included."""

    def fail(environ: object) -> None:
        raise error

    monkeypatch.setattr("wsthread.upgrader.Detached", fail)
    recorder = Recorder(max_connections=1)
    environ = handshake_environ(**{SOCKET_KEY: ends[0]})
    for _ in range(3):
        if told is None:
            with pytest.raises(KeyError):
                run_wsgi_app(Upgrader(recorder.manager), environ, buffered=True)
        else:
            body, status, headers = run_wsgi_app(Upgrader(recorder.manager), environ, buffered=True)
            assert (status, headers["Retry-After"]) == ("503 Service Unavailable", "5")
            assert told in b"".join(body).decode()
        wait_until(lambda: recorder.manager.stats()["threads"] == 0)
    assert recorder.manager.stats()["refused"] == ({"503 Service Unavailable": 3} if told else {})
    assert not recorder.connected.is_set()
