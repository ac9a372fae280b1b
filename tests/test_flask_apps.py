"""Whole Flask applications with the extension, under real servers."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from pathlib import Path

import pytest
import websocket
from apps import sock_style
from flask import Flask
from herd import Herd
from servers import Server, serve, touch, wait_until

from wsthread import ConnectionClosed, testing

# A chat with Flask-Login and Flask-SQLAlchemy


class Member:
    """Somebody with a browser: a session cookie and some WebSockets."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        response = self._post("/chat/login", name=name)
        self.cookie = response.headers["Set-Cookie"].partition(";")[0]

    def _post(self, path: str, **form: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": getattr(self, "cookie", "")}
        connection.request("POST", path, urllib.parse.urlencode(form), headers)
        response = connection.getresponse()
        self.text = response.read().decode()
        connection.close()
        assert response.status == 200, self.text
        return response

    def logout(self) -> int:
        """Log out; return how many WebSockets the server closed."""
        self._post("/chat/logout")
        return int(self.text)

    def connect(self, path: str) -> websocket.WebSocket:
        return websocket.create_connection(self._server.url(path, "ws"), cookie=self.cookie, timeout=10)


def close_code(client: websocket.WebSocket) -> tuple[int, bytes]:
    """Return what the Close says that comes next."""
    opcode, data = client.recv_data(control_frame=True)
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    client.shutdown()
    return int.from_bytes(data[:2], "big"), data[2:]


def ask(client: websocket.WebSocket, text: str) -> str | bytes:
    client.send(text)
    return client.recv()


@pytest.mark.parametrize("kind", ["gthread", pytest.param("werkzeug", marks=pytest.mark.slow)])
def test_chat_with_login_and_database(kind: str, tmp_path: Path) -> None:
    """Twenty who are idle hold none of the database connections, of which there is one."""
    app = "apps.members:create_app" + "()" * (kind == "gthread")
    with serve(kind, app, env={"DATABASE": f"sqlite:///{tmp_path / 'chat.db'}"}) as server:
        ada, grace = Member(server, "Ada"), Member(server, "Grace")
        idle = [ada.connect(path) for path in ("/chat/kitchen", "/chat/strict/kitchen") for _ in range(5)]
        watching = [ada.connect("/chat/watch") for _ in range(10)]
        assert {client.recv() for client in watching} == {"Ada watches"}
        other = grace.connect("/chat/kitchen")

        for number in range(10):
            begun = time.monotonic()
            history = json.loads(server.get("/chat/history"))
            assert time.monotonic() - begun < 2.5  # The pool waits for 3.
            assert history == [f"Grace: {said}" for said in range(number)]
            assert ask(other, str(number)) == f"Grace: {number}"
            assert {client.recv() for client in idle} == {f"Grace: {number}"}
            assert ask(watching[number], "how many") == f"Ada: {number + 1}"

        assert ada.logout() == 20
        assert {close_code(client) for client in [*idle, *watching]} == {(4401, b"logged out")}
        assert ask(other, "still here") == "Grace: still here"
        wait_until(lambda: server.get("/chat/history").count("Ada: left with 1000") == 10)  # Their answers.
        other.close()
        assert server.errors() == []


def test_chat_refuses_strangers(tmp_path: Path) -> None:
    with serve("gthread", "apps.members:create_app()", env={"DATABASE": f"sqlite:///{tmp_path / 'chat.db'}"}) as server:
        with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
            websocket.create_connection(server.url("/chat/strict/kitchen", "ws"), timeout=10)
        client = websocket.create_connection(server.url("/chat/kitchen", "ws"), timeout=10)
        assert close_code(client) == (4401, b"Unauthorized")
        assert server.errors() == []


# An application that came from flask-sock


@pytest.fixture
def sock_app() -> Flask:
    return sock_style.create_app()


def test_sock_route(sock_app: Flask) -> None:
    with testing.connect(sock_app, "/echo") as ws:
        for payload in ("text", b"binary"):
            ws.send(payload)
            assert ws.receive() == payload


def test_sock_blueprint(sock_app: Flask) -> None:
    with testing.connect(sock_app, "/rooms/Ada/7?token=x") as ws:
        assert list(ws) == ["Ada in 7, /rooms/Ada/7, True"]
        assert ws.close_code == 1000
    with pytest.raises(testing.Refused, match="a token is missing"):
        testing.connect(sock_app, "/rooms/Ada/7")


def test_sock_receive_with_timeout(sock_app: Flask) -> None:
    with testing.connect(sock_app, "/impatient") as ws:
        assert ws.receive() == "nothing came"
        ws.send("hi")
        while (answer := ws.receive()) == "nothing came":
            pass
        assert answer == "got 'hi'"


def test_sock_push(sock_app: Flask) -> None:
    with testing.connect(sock_app, "/clock") as ws:
        assert [ws.receive() for _ in range(3)] == ["0", "1", "2"]
        ws.send("stop")
        assert len(list(ws)) < 100
        assert ws.close_code == 1000


def test_sock_close(sock_app: Flask) -> None:
    with testing.connect(sock_app, "/close") as ws:
        ws.send("go on")
        with pytest.raises(ConnectionClosed):
            ws.receive()
        assert (ws.close_code, ws.close_reason) == (4000, "that was all")


def test_sock_client_closes(sock_app: Flask) -> None:
    testing.connect(sock_app, "/last-words").close(4001, "bye")
    assert sock_style.ended[-1] == (4001, "bye")


def test_sock_options(sock_app: Flask) -> None:
    with testing.connect(sock_app, "/echo") as ws:
        testing.advance(25)
        ws.ping()
        assert ws.pings == 1
        ws.send("x" * 1001)
        assert list(ws) == []
        assert ws.close_code == 1009


# Ways to run an application factory

WAYS: dict[str, tuple[str, list[str]]] = {
    "flask": ("werkzeug", []),
    "flask --with-threads": ("werkzeug", ["--with-threads"]),
    "flask --without-threads": ("werkzeug", ["--without-threads"]),
    "flask --debug": ("werkzeug", ["--debug"]),
    "flask --debug --without-threads": ("werkzeug", ["--debug", "--without-threads"]),
    "gunicorn": ("gthread", []),
    "gunicorn --preload": ("gthread", ["--preload"]),
    "gunicorn sync": ("sync", []),
}


def factory(kind: str) -> str:
    return "apps.sock_style:create_app" + "()" * (kind in ("gthread", "sync"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), WAYS.values(), ids=WAYS)
def test_ways_to_run(kind: str, options: list[str]) -> None:
    with serve(kind, factory(kind), *options) as server, Herd(server.url("/echo", "ws"), 50) as herd:
        assert herd.ask("hi") == ["hi"] * 50
        assert plain_request(server, "/echo") == 426
        for client in herd.clients:
            client.close()
        herd.wait(herd.ended)
        assert herd.codes() == {1000: 50}
        wait_until(lambda: server.access("/echo", 101) == 50)
        assert server.errors() == []


def plain_request(server: Server, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--without-threads"]])
def test_touched_file(options: list[str], tmp_path: Path) -> None:
    """With flask run --debug, whose process ends and comes again while there are WebSockets."""
    watched = tmp_path / "watched"
    watched.touch()
    with serve("werkzeug", factory("werkzeug"), "--debug", "--extra-files", str(watched), *options) as server:
        with Herd(server.url("/echo", "ws"), 50) as herd:
            assert herd.ask("hi") == ["hi"] * 50
            touch(watched, server, "Detected change")
            herd.wait(herd.ended, timeout=10)
            assert herd.codes() == {1001: 50}
        wait_until(lambda: server.log().count("Debugger PIN") == 2)
        with Herd(server.url("/echo", "ws"), 1) as herd:
            assert herd.ask("again") == ["again"]
        assert server.errors() == []
