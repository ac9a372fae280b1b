"""wsthread below Flask and what is put around applications: a handshake is a request like any other."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from email.message import Message
from http.cookies import SimpleCookie
from typing import Any

import pytest
import websocket
from clients import CLOSE, TEXT, RawClient, ask, frame, handshake
from servers import Server, serve, wait_until

BOTH = ("gthread", "werkzeug")


@pytest.fixture(scope="module", params=BOTH)
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with apps.views, one for all tests."""
    with serve(request.param, "apps.views:app") as running:
        yield running


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """A server with apps.views, without WebSockets at the beginning, that logs no error during the test."""
    wait_until(lambda: is_idle(shared))
    before = len(shared.errors())
    yield shared
    assert shared.errors()[before:] == []


def is_idle(server: Server) -> bool:
    """Tell whether on_close was called for each connection that there was."""
    names = [name for name, _ in events(server)]
    return names.count("on_connect") == names.count("on_close")


def connect(server: Server, path: str, **options: Any) -> tuple[websocket.WebSocket, dict[str, Any]]:
    """Open a WebSocket; return it and what the application saw of the request."""
    client = websocket.create_connection(server.url(path, "ws"), **{"timeout": 10, **options})
    return client, json.loads(client.recv())


def refused(server: Server, path: str) -> tuple[int, Message]:
    """Try to open a WebSocket; return the status and the headers of the answer."""
    status, headers, _ = ask(server.port, handshake(path, server.port))
    return status, headers


def events(server: Server) -> list[list[Any]]:
    """Return what was noted, without the requests for it."""
    found: list[list[Any]] = json.loads(server.get("/events"))
    return found


def events_since(server: Server, before: list[list[Any]], name: str) -> list[Any]:
    """Return the details of the events of one name."""
    return [detail for found, detail in events(server)[len(before):] if found == name]


# The 101 is the application's response


def test_session_and_after_request(server: Server) -> None:
    client, _ = connect(server, "/session")
    headers = client.getheaders() or {}
    assert headers["x-after-request"] == "was here"
    assert headers["x-visits"] == "1"
    cookie = SimpleCookie(headers["set-cookie"])["session"].value
    assert "content-type" not in headers and "content-length" not in headers
    client.close()
    again, seen = connect(server, "/session", cookie=f"session={cookie}")
    assert (again.getheaders() or {})["x-visits"] == "2"
    assert seen["cookies"] == {"session": cookie}
    again.close()


def test_headers_and_cookies_of_the_view(server: Server) -> None:
    with RawClient(server.port) as client:
        client.send(handshake("/decorated", server.port))
        head = client.recv_head().decode().split("\r\n")
    assert head[0] == "HTTP/1.1 101 Switching Protocols"
    assert sorted(head[1:-2]) == sorted([
        "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "Set-Cookie: view=1; Path=/", "X-Twice: one", "X-Twice: two", "X-After-Request: was here"])


def test_request_is_kept(server: Server) -> None:
    client, seen = connect(
        server, "/room/k%C3%BCche/7?tag=a&tag=b&q=%20", cookie="one=1; two=2", header={"User-Agent": "a test"})
    assert seen.pop("url").startswith(f"http://127.0.0.1:{server.port}/room/")
    assert seen == {
        "path": "/room/küche/7",
        "root": "",
        "view_args": {"name": "küche", "seat": 7},
        "endpoint": "room",
        "args": {"tag": ["a", "b"], "q": [" "]},
        "cookies": {"one": "1", "two": "2"},
        "agent": "a test",
        "remote_address": "127.0.0.1",
    }
    client.close()


def test_teardown_runs_at_the_101(server: Server) -> None:
    """The request is over then: what it took, such as a database connection, is given back."""
    before = events(server)
    client, _ = connect(server, "/room/a/1")
    assert events_since(server, before, "teardown")[0] is None
    assert events_since(server, before, "on_close") == []
    client.close()


@pytest.mark.parametrize(("path", "status"), [
    ("/private", 401), ("/moved", 302), ("/session?guest", 403), ("/nowhere", 404), ("/room/a/b", 404)])
def test_ordinary_answers(server: Server, path: str, status: int) -> None:
    before = events(server)
    found, headers = refused(server, path)
    assert found == status
    assert headers["X-After-Request"] == "was here"
    assert headers["Location"] == ("/session" if status == 302 else None)
    assert events_since(server, before, "on_connect") == []


def test_page_and_websocket_at_one_address(server: Server) -> None:
    assert server.get("/both") == "a page"
    client, seen = connect(server, "/both")
    assert seen["path"] == "/both"
    client.close()


def test_plain_request_for_a_websocket_rule(server: Server) -> None:
    """Flask answers by itself, before the view."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/session")
    assert connection.getresponse().status == 400
    connection.close()


# Errors


@pytest.fixture(params=BOTH)
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose log may tell of errors."""
    with serve(request.param, "apps.views:app") as running:
        yield running


def test_exception_in_a_view(own: Server) -> None:
    assert refused(own, "/raises")[0] == 500
    own.wait_log(re.compile("ArithmeticError: the view was asked to raise"))
    assert events_since(own, [], "on_connect") == []


@pytest.mark.parametrize("callback", ["on_connect", "on_message"])
def test_exception_in_a_callback(own: Server, callback: str) -> None:
    told = f"{callback} was asked to raise"
    with RawClient(own.port) as client:
        client.open("/room/a/1" + ("?raise=on_connect" if callback == "on_connect" else ""))
        if callback == "on_message":
            assert client.recv_frame()[0] is TEXT
            client.send(frame(TEXT, "raise"))
        assert client.recv_frame() == (CLOSE, b"\x03\xf3")
        client.send(frame(CLOSE, b"\x03\xf3"))
        assert client.recv_rest() == b""
    wait_until(lambda: events_since(own, [], "on_close"))
    log = own.wait_log(re.compile(rf"Traceback(?:.*\n)+?(?:LookupError|ZeroDivisionError): {told}")).group()
    assert "apps/views.py" in log
    assert own.log().count("Traceback") == 1
    # And again without one: neither is called a second time.
    connect(own, "/room/a/1")[0].close()
    wait_until(lambda: len(events_since(own, [], "on_close")) == 2)
    assert events_since(own, [], "on_error") == [told]
    assert events_since(own, [], "on_close") == [1011, 1000]


# What people put around it


def talk(server: Server, path: str, **options: Any) -> dict[str, Any]:
    """Connect, talk, close; return what the application saw of the request."""
    client, seen = connect(server, path, **options)
    client.send("hello")
    assert client.recv() == "hello"
    client.close()
    return seen


def check_log(server: Server, path: str, count: int) -> None:
    """Check that there is one line per upgrade and none that tells of an error."""
    wait_until(lambda: server.access(path, 101) == count)
    assert server.errors() == []


def test_flask_run_debug() -> None:
    """With its reloader and its debugger."""
    with serve("werkzeug", "apps.views:app", "--debug") as server:
        assert talk(server, "/room/a/1")["path"] == "/room/a/1"
        assert refused(server, "/private")[0] == 401
        check_log(server, "/room/a/1", 1)
        assert refused(server, "/raises")[0] == 500
        server.wait_log(re.compile("ArithmeticError"))
        assert talk(server, "/room/a/1")


@pytest.mark.parametrize("kind", [pytest.param("gthread", marks=pytest.mark.slow), "run_simple"])
@pytest.mark.parametrize("stack", [
    "flask_debugged", "flask_proxied", "flask_dispatched", "flask_below", "flask_timed", "everything"])
def test_stacks(kind: str, stack: str) -> None:
    below = "/below" if stack == "flask_below" else ""
    with serve(kind, f"apps.stacks:{stack}") as server:
        path = f"{below}/room/a/1"
        for _ in range(3):
            seen = talk(server, path)
            assert (seen["root"], seen["path"], seen["view_args"]) == (below, "/room/a/1", {"name": "a", "seat": 1})
        assert refused(server, f"{below}/private")[0] == 401
        check_log(server, path, 3)
        if stack in ("flask_dispatched", "everything"):
            seen = talk(server, "/ws/deeper?q=1")
            assert (seen["root"], seen["path"], seen["args"]) == ("/ws", "/deeper", {"q": ["1"]})
            assert json.loads(server.get("/events"))
            check_log(server, "/ws/deeper", 1)
        if stack in ("flask_timed", "everything"):
            # It measures the handshake; the wait is for a server that closes the iterable after its last write.
            wait_until(lambda: ["timed", "101 Switching Protocols"] in events(server))


@pytest.mark.parametrize("kind", ["gthread", "run_simple"])
@pytest.mark.parametrize("app", ["werkzeug_dispatched", "bare"])
def test_without_flask(kind: str, app: str) -> None:
    with serve(kind, f"apps.stacks:{app}") as server:
        assert server.get("/") == ("bare" if app == "bare" else "page /")
        seen = talk(server, "/ws?q=1")
        assert (seen["root"] + seen["path"].rstrip("/"), seen["args"]) == ("/ws", {"q": ["1"]})
        assert (seen["view_args"], seen["endpoint"]) == (None, None)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/ws")
        response = connection.getresponse()
        assert (response.status, response.headers["Upgrade"]) == (426, "websocket")
        assert b"Upgrade: websocket" in response.read()
        connection.close()
        check_log(server, "/ws", 1)


@pytest.mark.parametrize("stack", ["stacks:flask_proxied", "stacks:everything", "views:app"])
def test_behind_a_proxy(stack: str) -> None:
    """The proxy changes the host, so the origin is compared with what ProxyFix tells; without it, there is a 403."""
    headers = {
        "X-Forwarded-Host": "chat.example", "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https",
        "Origin": "https://chat.example"}
    options: dict[str, Any] = {"header": headers, "suppress_origin": True}
    with serve("gthread", f"apps.{stack}") as server:
        if stack == "views:app":
            with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
                connect(server, "/room/a/1", **options)
        else:
            seen = talk(server, "/room/a/1", **options)
            assert seen["remote_address"] == "192.0.2.7"
            assert seen["url"] == "https://chat.example/room/a/1"
            with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
                connect(server, "/room/a/1", **{**options, "header": {**headers, "Origin": "https://evil.example"}})
        assert server.errors() == []
