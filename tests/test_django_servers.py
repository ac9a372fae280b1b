"""Django's views under real servers."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from django_site import site, tables
from servers import Server, serve, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

__all__ = ["site", "tables"]


@pytest.fixture(params=["gthread", "sync", "run_simple", "runserver"])
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
