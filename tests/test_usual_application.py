"""One application with what many applications have, under gunicorn: the extensions of :mod:`apps.usual` together."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from base64 import b64encode
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import websocket
from servers import Server, serve, wait_until

NEEDED = [
    "cachelib", "flask_compress", "flask_cors", "flask_httpauth", "flask_jwt_extended", "flask_limiter", "flask_login",
    "flask_session", "flask_sqlalchemy", "flask_talisman", "flask_wtf", "sentry_sdk",
]
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the extra integration is not installed: {', '.join(MISSING)}"),
]
WHERE = ["mounted", "above", "below"]
PAGE = "https://page.example"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    environment = {"DATABASE": f"sqlite:///{tmp_path / 'usual.db'}", "DIRECTORY": str(tmp_path / "sessions")}
    with serve("gthread", "apps.usual:create_app()", env=environment) as running:
        yield running


class Ada:
    """Somebody who has logged in: a cookie of a session, a token, a password."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.cookie = ""
        csrf = self._ask("GET", "/csrf")
        self.token = json.loads(self._ask("POST", "/login", name="Ada", csrf_token=csrf))

    def _ask(self, method: str, path: str, **form: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": self.cookie}
        connection.request(method, path, urllib.parse.urlencode(form), headers)
        response = connection.getresponse()
        text = response.read().decode()
        self.cookie = (response.headers["Set-Cookie"] or self.cookie).partition(";")[0]
        connection.close()
        assert response.status == 200, text
        return text

    def connect(self, name: str, where: str) -> websocket.WebSocket:
        headers = {
            "basic": {"Authorization": "Basic " + b64encode(b"Ada:secret").decode()},
            "token": {"Authorization": f"Bearer {self.token}"}}.get(name, {})
        return websocket.create_connection(
            self._server.url(f"/{name}/{where}", "ws"), cookie=self.cookie, header=headers, origin=PAGE, timeout=10)


def say(client: websocket.WebSocket, text: str) -> dict[str, Any]:
    client.send(text)
    answer: dict[str, Any] = json.loads(client.recv())
    return answer


def close_code(client: websocket.WebSocket) -> int:
    """Return the code of the Close that comes next."""
    opcode, data = client.recv_data(control_frame=True)
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    client.send_close()
    client.shutdown()
    return int.from_bytes(data[:2], "big")


def test_who_it_is(server: Server) -> None:
    """In each callback, in each way; and those who are idle hold none of the database connections, which is one."""
    ada = Ada(server)
    names = ["login", "token", "basic", "open"]
    clients = {(name, where): ada.connect(name, where) for name in names for where in WHERE}
    count = 0
    for turn in range(2):
        for (name, where), client in clients.items():
            count += 1
            assert say(client, f"{name} {where} {turn}") == {
                "login": "Ada", "token": "Ada" if name == "token" else None,
                "basic": "Ada" if name == "basic" else None, "before": "127.0.0.1", "session": 1, "count": count}
            begun = time.monotonic()
            assert len(json.loads(server.get("/messages"))) == count
            assert time.monotonic() - begun < 2.5  # The pool waits for 3.
    for client in clients.values():
        client.close()
    assert server.errors() == []


def test_strangers(server: Server) -> None:
    for name in ("login", "token", "basic"):
        for where in WHERE:
            url = server.url(f"/{name}/{where}", "ws")
            if where == "below":
                assert close_code(websocket.create_connection(url, origin=PAGE, timeout=10)) == 4401
            else:
                with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
                    websocket.create_connection(url, origin=PAGE, timeout=10)
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(server.url("/open/above", "ws"), origin="https://other.example", timeout=10)
    assert server.errors() == []


def test_limits(server: Server) -> None:
    """Each counts handshakes, and not what runs after them."""
    for where in WHERE:
        url = server.url(f"/limited/{where}", "ws")
        for number in range(3):
            client = websocket.create_connection(url, origin=PAGE, timeout=10)
            for _ in range(5):
                assert say(client, "hi")["login"] is None
            client.close()
        if where == "below":
            assert close_code(websocket.create_connection(url, origin=PAGE, timeout=10)) == 4429
        else:
            with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
                websocket.create_connection(url, origin=PAGE, timeout=10)
    assert server.errors() == []


@pytest.mark.parametrize("where", ["mounted", "above"])
def test_errors_reach_sentry(server: Server, where: str) -> None:
    """Once, with the request; and the log has them once."""
    client = websocket.create_connection(server.url(f"/open/{where}?q=x", "ws"), origin=PAGE, timeout=10)
    assert say(client, "hi")["count"] == 1
    client.send("raise")
    assert close_code(client) == 1011
    wait_until(lambda: "sentry:" in server.log() and "see the log of the application" in server.log())
    told = [line for line in server.log().splitlines() if line.startswith("sentry:")]
    assert told == [f"sentry: a bug in a callback http://127.0.0.1:{server.port}/open/{where} open-{where}"]
    assert server.log().count("ArithmeticError: a bug in a callback") == 1


def test_headers_of_the_101(server: Server) -> None:
    """Those of all responses are on it, and what is about a body is not."""
    client = websocket.create_connection(
        server.url("/open/above", "ws"), origin=PAGE, timeout=10, header={"Accept-Encoding": "gzip"})
    headers = client.getheaders() or {}
    client.close()
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" in headers
    assert not {"content-encoding", "content-length", "content-type", "transfer-encoding"} & set(headers)
    assert server.errors() == []
