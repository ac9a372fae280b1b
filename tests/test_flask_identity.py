"""Who somebody is in callbacks, and what else the handshake's request leaves in ``g``."""

from __future__ import annotations

import json
import logging
import re
from base64 import b64encode
from collections.abc import Callable
from traceback import format_exception
from typing import Any

import pytest
import websocket as websocket_client
from apps import identity
from flask import Flask, g, request
from flask_jwt_extended import create_access_token
from servers import serve, wait_until

from wsthread import Connection, ListenableManager, Opcode, SimpleManager, testing
from wsthread.flask import WebSockets

Open = Callable[..., testing.WebSocket]


@pytest.fixture
def app() -> Flask:
    return identity.create_app()


def token(app: Flask) -> str:
    with app.app_context():
        return str(create_access_token("Ada"))


BASIC = "Basic " + b64encode(b"Ada:secret").decode()
#: For each way to be somebody: the kind, and what a request needs for it, which a function may tell of an application.
WAYS: dict[str, tuple[str, Callable[[Flask], dict[str, Any]]]] = {
    "basic": ("basic", lambda app: {"headers": {"Authorization": BASIC}}),
    "bearer": ("bearer", lambda app: {"headers": {"Authorization": "Bearer secret"}}),
    "jwt in a header": ("jwt", lambda app: {"headers": {"Authorization": f"Bearer {token(app)}"}}),
    "jwt in the query": ("jwt", lambda app: {"query_string": {"jwt": token(app)}}),
    "user of a jwt": ("jwt-user", lambda app: {"query_string": {"jwt": token(app)}}),
    "login by session": ("login", lambda app: {"session": {"_user_id": "Ada"}}),
    "login by request": ("login", lambda app: {"query_string": {"key": "secret"}}),
    "principal": ("principal", lambda app: {"query_string": {"key": "secret"}}),
    "tutorial": ("tutorial", lambda app: {"session": {"user": "Ada"}}),
}


@pytest.mark.parametrize("where", ["above", "below", "mounted"])
@pytest.mark.parametrize("way", WAYS)
def test_identity(app: Flask, websocket: Open, caplog: pytest.LogCaptureFixture, way: str, where: str) -> None:
    """It is that of the handshake in each callback, and what one adds to g is not there in the next."""
    kind, needs = WAYS[way]
    options, client = needs(app), app.test_client()
    with client.session_transaction() as session:
        session.update(options.pop("session", {}))
    found = websocket(client, f"/{kind}/{where}", **options)
    for _ in range(2):
        found.send("hi")
        assert found.receive() == "Ada nothing"
    found.close()
    assert caplog.records == []


@pytest.mark.parametrize("where", ["above", "below", "mounted"])
@pytest.mark.parametrize("kind", identity.KINDS)
def test_no_identity(
    app: Flask, websocket: Open, caplog: pytest.LogCaptureFixture, kind: str, where: str,
) -> None:
    """A browser's script is told below the route, and no error is logged anywhere."""
    if where == "below":
        found = websocket(app, f"/{kind}/below")
        assert list(found) == []
        assert (found.close_code, found.close_reason) == (4401, "Unauthorized")
    else:
        with pytest.raises(testing.Refused, match="401"):
            testing.connect(app, f"/{kind}/{where}")
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["gthread", "werkzeug"])
@pytest.mark.parametrize("where", ["above", "below", "mounted"])
def test_callbacks_begin_when_the_request_is_over(kind: str, where: str) -> None:
    app = "apps.identity:create_app" + "()" * (kind == "gthread")
    with serve(kind, app) as server:
        client = websocket_client.create_connection(
            server.url(f"/basic/{where}", "ws"), header={"Authorization": BASIC}, timeout=10)
        client.send("hi")
        assert client.recv() == "Ada nothing"
        client.close()
        assert json.loads(server.get("/log")) == ["teardown", "callback"]
        assert server.errors() == []


def test_callbacks_begin_when_the_request_is_over_in_tests(app: Flask, websocket: Open) -> None:
    websocket(app, "/basic/mounted", headers={"Authorization": BASIC})
    wait_until(lambda: len(identity.log) == 2)
    assert identity.log == ["teardown", "callback"]


def fragile_app() -> Flask:
    """Return an application whose teardown fails for each request and each callback."""
    app = Flask(__name__)
    ws = WebSockets(app)

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        if request.path != "/":
            raise KeyError("a bug in a teardown function")

    ws.mount("/mounted", ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload)))
    ws.route("/route")(lambda conn: [conn.send(message) for message in ws.messages(conn)])
    return app


@pytest.mark.parametrize("kind", ["gthread", "werkzeug"])
@pytest.mark.parametrize("path", ["/mounted", "/route"])
def test_teardown_that_raises(kind: str, path: str) -> None:
    """It is logged by the server for the handshake, as for any request, and by us afterwards; nobody is cut."""
    app = "test_flask_identity:fragile_app" + "()" * (kind == "gthread")
    with serve(kind, app) as server:
        client = websocket_client.create_connection(server.url(path, "ws"), timeout=10)
        server.wait_log(re.compile("KeyError: 'a bug in a teardown function'"))
        for _ in range(3):
            client.send("hi")
            assert client.recv() == "hi"
        client.send_close()
        assert client.recv_data(control_frame=True)[1] == b"\x03\xe8"
        client.shutdown()


def test_teardown_that_raises_in_tests() -> None:
    """The first is the test's, as for any request."""
    with pytest.raises(Exception) as caught:  # Newer versions of Flask raise a group of them.
        testing.connect(fragile_app(), "/mounted")
    assert "KeyError: 'a bug in a teardown function'" in "".join(format_exception(caught.value))


@pytest.mark.parametrize("fails", ["on_connect", "on_message", "on_close"])
def test_teardown_that_raises_after_a_callback_that_does(
    websocket: Open, caplog: pytest.LogCaptureFixture, fails: str,
) -> None:
    """Both are logged, and the connection ends by the callback's."""
    app = Flask(__name__)
    errors: list[Exception] = []

    def fail(conn: Connection, *args: object) -> None:
        g.fails = True
        raise ArithmeticError("in a callback")

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if "fails" in g:
            raise KeyError("in a teardown function")

    manager = ListenableManager(on_error=lambda conn, error: errors.append(error))
    setattr(manager, fails, fail)
    WebSockets(app).mount("/", manager)
    found = websocket(app)
    if fails == "on_message":
        found.send("hi")
    if fails == "on_close":
        pytest.raises(ArithmeticError, found.close)
    else:
        assert list(found) == []
        found.close()
    assert found.close_code == (1000 if fails == "on_close" else 1011)
    assert [type(error) for error in errors] == [ArithmeticError]
    assert caplog.text.count("KeyError: 'in a teardown function'") == 1


def test_what_the_handshake_collected_is_copied(websocket: Open) -> None:
    """Such as the queries that Flask-SQLAlchemy records, which would grow with each message."""
    app = Flask(__name__)
    ws = WebSockets(app)

    @app.before_request
    def prepare() -> None:
        g.list, g.set, g.dict, g.object = [0], {0}, {0: 0}, object()

    def say(conn: Connection, opcode: Opcode, payload: str) -> None:
        g.list.append(1)
        g.set.add(1)
        g.dict[1] = 1
        g.more = True
        seen.append((len(g.list), len(g.set), len(g.dict), len(vars(g._get_current_object())), g.object))

    seen: list[tuple[Any, ...]] = []
    ws.mount("/", ListenableManager(on_message=say))
    with websocket(app) as found:
        for _ in range(2):
            found.send("hi")
        found.wait_handled()
    assert seen[0] == seen[1] == (2, 2, 2, 5, seen[0][-1])


def test_each_loop_begins_with_what_is_there(websocket: Open) -> None:
    """So the first messages may tell who somebody is."""
    app = Flask(__name__)
    ws = WebSockets(app)

    @ws.route("/")
    def handler(conn: Connection) -> None:
        for message in ws.messages(conn):
            g.user = message
            break
        for message in ws.messages(conn):
            conn.send(f"{g.user} {message!r} {g.pop('said', None)}")
            g.said = message
        g.user

    found = websocket(app)
    for message in ("Ada", "one", "two"):
        found.send(message)
    assert [found.receive(), found.receive()] == ["Ada 'one' None", "Ada 'two' None"]
    found.close()


def test_closing_the_response_fails(websocket: Open, caplog: pytest.LogCaptureFixture) -> None:
    """What an application wants to have called at the end of the response is not ours, and the 101 goes out."""
    manager = SimpleManager(lambda conn: conn.send("hi"))
    app = Flask(__name__)
    ws = WebSockets(app)

    @app.route("/", websocket=True)
    def view() -> Any:
        response = ws.upgrade(manager)
        response.call_on_close(lambda: called.append(True))
        return response

    called: list[bool] = []
    caplog.set_level(logging.INFO, "wsthread")
    assert websocket(app).receive() == "hi"
    assert called == [True]
