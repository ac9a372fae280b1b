"""Test clients of whatever class have WebSockets, and a test run that leaves some open ends soon."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from typing import Any

import flask_login
import pytest
from flask import Flask
from flask.testing import FlaskClient

from wsthread import Connection, testing
from wsthread.flask import WebSocketClient, WebSockets


class User(flask_login.UserMixin):
    """Somebody whose name is also the id."""

    def __init__(self, name: str) -> None:
        self.id = name


class Custom(FlaskClient):
    """As applications have them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.made_with = options
        super().__init__(*args, **{name: value for name, value in options.items() if name != "user"})


class Mixed(WebSocketClient, flask_login.FlaskLoginClient):
    """With types."""


class OwnFactory(Flask):
    """An application that makes its clients by itself."""

    def test_client(self, use_cookies: bool = True, **options: Any) -> FlaskClient:
        client: FlaskClient = flask_login.FlaskLoginClient(
            self, self.response_class, use_cookies=use_cookies, **options)
        return client


def make_app(kind: type[Flask] = Flask) -> tuple[Flask, WebSockets]:
    app = kind(__name__)
    app.secret_key = "for tests only"
    flask_login.LoginManager(app).user_loader(User)
    return app, WebSockets()


def who(conn: Connection) -> None:
    user = flask_login.current_user
    conn.send(user.id if user.is_authenticated else "nobody")


@pytest.mark.parametrize("kind", [None, Custom, flask_login.FlaskLoginClient, Mixed])
@pytest.mark.parametrize("early", [True, False])
def test_class_of_the_client(kind: type[FlaskClient] | None, early: bool) -> None:
    """Chosen before init_app, or after it by a test."""
    app, ws = make_app()
    if early:
        app.test_client_class = kind
    ws.init_app(app)
    if not early:
        app.test_client_class = kind
    ws.route("/")(who)
    knows_users = kind in (flask_login.FlaskLoginClient, Mixed)
    client: Any = app.test_client(**({"user": User("Ada")} if knows_users else {}))
    assert kind is None or type(client) is kind
    with client.websocket("/") as found:
        assert found.receive() == ("Ada" if knows_users else "nobody")
    assert client.get("/").status_code == 426


def test_arguments_are_passed_on() -> None:
    app, ws = make_app()
    ws.init_app(app)
    app.test_client_class = Custom
    client: Any = app.test_client(use_cookies=False, user="Ada")
    assert client.made_with == {"use_cookies": False, "user": "Ada"}


def test_application_that_makes_its_clients() -> None:
    app, ws = make_app(OwnFactory)
    ws.init_app(app)
    ws.route("/")(who)
    client: Any = app.test_client(user=User("Ada"))
    with client.websocket() as found:
        assert found.receive() == "Ada"


def test_client_with_a_method_of_that_name() -> None:
    class Own(FlaskClient):
        def websocket(self) -> str:
            return "its own"

    app, ws = make_app()
    ws.init_app(app)
    app.test_client_class = Own
    client: Any = app.test_client()
    assert client.websocket() == "its own"


def test_client_without_cookies() -> None:
    app, ws = make_app()
    app.before_request(lambda: None)
    ws.init_app(app)
    ws.route("/")(who)
    with testing.connect(app.test_client(use_cookies=False)) as found:
        assert found.receive() == "nobody"


# The end of a test run


LEFT_OPEN = """
    import time

    from flask import Flask

    from wsthread import ListenableManager
    from wsthread.flask import WebSockets

    app = Flask(__name__)
    ws = WebSockets(app)

    def sleep(conn):
        while True:
            time.sleep(0.05)

    ws.route("/echo", endpoint="echo")(lambda conn: [conn.send(message) for message in conn])
    ws.route("/sleep")(sleep)
    ws.mount("/mounted", ListenableManager(shutdown_timeout=30, shutdown_spread=10))
    clients = [app.test_client().websocket("{path}") for _ in range(3)]
    print("end", flush=True)
"""


@pytest.mark.parametrize("path", ["/echo", "/mounted", "/sleep"])
def test_silent_clients_at_the_end(path: str) -> None:
    """Nobody will answer them; not even where a handler goes on does it take the ten seconds of shutdown_timeout."""
    script = textwrap.dedent(LEFT_OPEN).replace("{path}", path)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "end\n"
        begun = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - begun < 5  # 0.4 s, and 1.5 s where a handler goes on, on a machine that is idle.
