"""Django's views under real servers."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.urls import path
from django_site import site, tables
from servers import Server, serve, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from wsthread import Connection, ListenableManager, Opcode
from wsthread.django import request_of, websocket

__all__ = ["site", "tables"]


@pytest.fixture(params=["gthread", "sync", "run_simple"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param, "apps.django_app:application") as server:
        yield server
    assert not server.errors()


def log_in(server: Server, name: str) -> dict[str, str]:
    """Return the headers of somebody who is logged in."""
    with urllib.request.urlopen(server.url(f"/login?name={name}"), timeout=10) as response:
        cookies = [str(header).partition(";")[0] for header in response.headers.get_all("Set-Cookie")]
    return {"Cookie": "; ".join(cookies)}


def test_log_in_chat_log_out(server: Server) -> None:
    ada, grace = log_in(server, "ada"), log_in(server, "grace")
    url = server.url("/ws", "ws")
    with pytest.raises(InvalidStatus) as caught:
        connect(url)
    assert caught.value.response.status_code == 401 and caught.value.response.body is not None
    assert b"Log in first." in caught.value.response.body
    with connect(url, additional_headers=ada) as one, connect(url, additional_headers=grace) as two:
        wait_until(lambda: server.stats()["connections"] == 2)
        one.send("hi")
        assert one.recv(timeout=10) == two.recv(timeout=10) == "ada of 2: hi"
        request = urllib.request.Request(server.url("/logout"), headers=ada)
        urllib.request.urlopen(request, timeout=10).close()
        with pytest.raises(ConnectionClosed) as closed:
            one.recv(timeout=10)
        assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (
            4401, "logged out")
        two.send("bye")
        assert two.recv(timeout=10) == "grace of 2: bye"
    if server.kind != "run_simple":  # It has no access log of this form.
        wait_until(lambda: server.access("/ws", 101) == 2)


def test_fifty_idle_sockets_hold_no_database(server: Server) -> None:
    ada = log_in(server, "ada")
    with ExitStack() as stack:
        opened = [
            stack.enter_context(connect(server.url(url, "ws"), additional_headers=ada, max_queue=None))
            for url in ("/ws", "/loop") for _ in range(25)]
        wait_until(lambda: server.stats()["connections"] == 50)
        for one in opened:  # So that the thread of each has been in the database.
            one.send("hi")
        for one in opened[:25]:
            assert {one.recv(timeout=10) for _ in range(25)} == {"ada of 1: hi"}
        for one in opened[25:]:
            assert {one.recv(timeout=10) for _ in range(25)} == {"1: hi"}
        wait_until(lambda: server.stats()["databases"] == 0)
        assert server.stats()["connections"] == 50
    wait_until(lambda: server.stats()["connections"] == 0)


def test_the_server_stops(server: Server) -> None:
    with connect(server.url("/loop", "ws")) as one:
        wait_until(lambda: server.stats()["connections"] == 1)
        server.stop()
        with pytest.raises(ConnectionClosed) as closed:
            one.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001


@contextmanager
def runserver(application: Any) -> Iterator[str]:
    """Serve an application with what ``manage.py runserver`` is made of; yield its URL."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadedWSGIServer(("127.0.0.1", 0), Quiet) as server:
        server.set_app(application)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.server_address[1]}/ws"
        finally:
            server.shutdown()
            thread.join()


def test_runserver(site: list[Any], settings_for_localhost: None) -> None:
    manager = ListenableManager()

    @manager.on_message
    def echo(conn: Connection, opcode: Opcode, payload: str) -> None:
        conn.send(f"{request_of(conn).path}: {payload}")

    site.append(path("ws", websocket(manager)))
    with runserver(get_wsgi_application()) as url, connect(url) as client:
        client.send("hello")
        assert client.recv(timeout=10) == "/ws: hello"


@pytest.fixture
def settings_for_localhost() -> Iterator[None]:
    from django.test import override_settings

    with override_settings(ALLOWED_HOSTS=["127.0.0.1"]):
        yield
