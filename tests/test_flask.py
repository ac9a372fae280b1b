"""The Flask extension, in process: routes, mounted managers, refusals, configuration."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import flask_login
import pytest
from flask import Blueprint, Flask, abort, current_app, g, redirect, request, session, url_for
from flask.testing import FlaskClient
from flask.typing import ResponseReturnValue
from flask_app import Open, app, ending, refusal, ws
from itsdangerous import BadSignature, URLSafeTimedSerializer
from servers import wait_until
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.routing import WebsocketMismatch

from wsthread import Connection, ConnectionClosed, Deflate, ListenableManager, Manager, Opcode, SimpleManager, testing
from wsthread.flask import WebSocketClient, WebSockets

__all__ = ["app", "ws"]


def echo(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


# Routes


def test_route(app: Flask, ws: WebSockets, websocket: Open) -> None:
    @ws.route("/<name>/<int:number>")
    def tell(conn: Connection, name: str, number: int) -> None:
        conn.send(f"{name} {number + 1} {request.args['q']}")

    assert websocket(app, "/küche/6?q=x").receive() == "küche 7 x"
    assert refusal(app, "/küche/six").status_code == 404


def test_route_with_more_options(app: Flask, ws: WebSockets, websocket: Open) -> None:
    @ws.route("/b", endpoint="twice", defaults={"letter": "b"})
    @ws.route("/a", endpoint="twice", defaults={"letter": "a"})
    def tell(conn: Connection, letter: str) -> None:
        conn.send(f"{letter} {request.endpoint} {url_for('twice', letter='b')}")

    for letter in "ab":
        assert websocket(app, f"/{letter}").receive() == f"{letter} twice ws://localhost/b"


def test_handler_below_other_decorators(app: Flask, ws: WebSockets, websocket: Open) -> None:
    def need_token(view: Callable[..., Any]) -> Callable[..., Any]:
        def checked(**view_args: Any) -> Any:
            if request.args.get("token") != "secret":
                abort(401)
            return view(user="Ada", **view_args)
        return checked

    @app.route("/<room>", websocket=True)
    @need_token
    @ws.handler
    def chat(conn: Connection, room: str, user: str) -> None:
        conn.send(f"{user} in {room}")

    assert websocket(app, "/kitchen?token=secret").receive() == "Ada in kitchen"
    assert refusal(app, "/kitchen").status_code == 401


def test_factory(websocket: Open) -> None:
    """Routes that are there before the application, for two of them, and one that comes later."""
    ws = WebSockets()

    @ws.route("/name")
    def name(conn: Connection) -> None:
        conn.send(current_app.name)

    apps = [Flask("one"), Flask("two")]
    for each in apps:
        ws.init_app(each)
        ws.init_app(each)  # Again, which is nothing new.
    ws.route("/late")(name)
    for each in apps:
        assert websocket(each, "/name").receive() == websocket(each, "/late").receive() == each.name
        assert len([rule for rule in each.url_map.iter_rules() if rule.websocket]) == 2


@pytest.mark.parametrize("form", ["blueprint's", "extension's"])
def test_blueprint(websocket: Open, form: str) -> None:
    app = Flask(__name__, subdomain_matching=True)
    app.secret_key = "for tests only"
    ws = WebSockets()
    bp = Blueprint("chat", __name__, url_prefix="/<lang>/chat", subdomain="live")

    @bp.url_value_preprocessor
    def take_language(endpoint: str | None, values: dict[str, Any] | None) -> None:
        assert values is not None
        g.lang = values.pop("lang")

    @bp.before_request
    def check() -> str | None:
        session["lang"] = g.lang
        return None if g.lang == "de" else "no such language"

    def tell(conn: Connection, room: int) -> None:
        conn.send(f"{request.endpoint} {room} {session['lang']} {url_for('.tell', room=8, lang='fr')}")

    if form == "extension's":
        ws.route("/<int:room>", bp=bp)(tell)
    else:
        bp.route("/<int:room>", websocket=True)(ws.handler(tell))
    app.config["SERVER_NAME"] = "example.com"
    ws.init_app(app)
    app.register_blueprint(bp)
    found = websocket(app.test_client(), "/de/chat/7", base_url="http://live.example.com")
    assert found.receive() == "chat.tell 7 de ws://live.example.com/fr/chat/8"
    assert refusal(app, "/fr/chat/7", base_url="http://live.example.com").text == "no such language"
    assert refusal(app, "/de/chat/7").status_code == 404


def test_http_and_websocket_at_one_address(app: Flask, ws: WebSockets, websocket: Open) -> None:
    ws.route("/both")(echo)
    app.add_url_rule("/both", "page", lambda: "a page", methods=["GET", "POST"])
    client = app.test_client()
    assert client.get("/both").text == client.post("/both").text == "a page"
    with websocket(client, "/both") as found:
        found.send("hi")
        assert found.receive() == "hi"


def test_plain_request(app: Flask, ws: WebSockets) -> None:
    ws.route("/echo")(echo)
    response = app.test_client().get("/echo")
    assert (response.status_code, response.headers["Upgrade"]) == (426, "websocket")
    assert "Upgrade is missing" in response.text
    assert app.test_client().post("/echo").status_code == 405


@pytest.mark.parametrize("own", [True, False])
def test_handshake_for_a_page(app: Flask, ws: WebSockets, own: bool) -> None:
    app.add_url_rule("/page", "page", lambda: "a page")
    if own:
        app.register_error_handler(400, lambda error: ("the application's own", 400))
    response = refusal(app, "/page")
    assert response.status_code == 400
    assert (response.text == "the application's own") is own


def test_handshake_for_a_page_from_elsewhere(app: Flask) -> None:
    """The origin is allowed, so it is not what is wrong."""
    app.config["WSTHREAD_ORIGINS"] = ["https://example.com"]
    WebSockets(app)
    app.add_url_rule("/page", "page", lambda: "a page")
    assert refusal(app, "/page", headers={"Origin": "https://example.com"}).status_code == 400


@pytest.mark.parametrize("early", [True, False])
def test_error_handler_of_the_application(app: Flask, early: bool) -> None:
    ws = WebSockets()
    ws.route("/echo")(echo)
    if not early:
        ws.init_app(app)
    app.register_error_handler(WebsocketMismatch, lambda error: ("the application's own", 400))
    if early:
        ws.init_app(app)
    assert app.test_client().get("/echo").text == "the application's own"


def test_coroutine_functions_are_refused(ws: WebSockets) -> None:
    async def handler(conn: Connection) -> None: ...

    with pytest.raises(TypeError, match="async def"):
        ws.route("/")(handler)


# Managers at a rule


def test_mount(app: Flask, ws: WebSockets, websocket: Open) -> None:
    manager = ListenableManager()
    bp = Blueprint("deeper", __name__, url_prefix="/deeper")

    @manager.on_message
    def message(conn: Connection, opcode: Opcode, payload: str) -> None:
        conn.send(f"{payload} {request.endpoint} {request.view_args}")

    ws.mount("/", manager)
    ws.mount("/rooms/<int:room>", manager)
    ws.mount("/named", manager, endpoint="name", defaults={"room": 0})
    ws.mount("/<room>", manager, bp=bp)
    app.register_blueprint(bp)
    for path, answer in {
        "/": "hi websocket {}", "/rooms/7": "hi rooms_int_room {'room': 7}", "/named": "hi name {'room': 0}",
        "/deeper/x": "hi deeper.room {'room': 'x'}",
    }.items():
        found = websocket(app, path)
        found.send("hi")
        assert found.receive() == answer


def test_upgrade_in_a_view(app: Flask, ws: WebSockets, websocket: Open) -> None:
    manager = SimpleManager(lambda conn: conn.send(request.path))

    @app.route("/<name>", websocket=True)
    def view(name: str) -> ResponseReturnValue:
        return redirect("/Ada") if name != "Ada" else ws.upgrade(manager)

    assert websocket(app, "/Ada").receive() == "/Ada"
    assert refusal(app, "/Grace").location == "/Ada"


# Flask-Login


class User(flask_login.UserMixin):
    """Somebody whose name is also the id."""

    def __init__(self, name: str) -> None:
        self.id = name


@pytest.fixture(params=["basic", "strong", None])
def login_app(request: pytest.FixtureRequest, app: Flask, ws: WebSockets) -> Flask:
    """An application in which /login/<name> logs in, and /above and /below want a user."""
    manager = flask_login.LoginManager(app)
    manager.session_protection = request.param
    manager.user_loader(User)

    @app.route("/login/<name>")
    def login(name: str) -> str:
        session["other"] = "data"
        flask_login.login_user(User(name), remember=True)
        return ""

    def who(conn: Connection) -> None:
        for message in ws.messages(conn):
            user = flask_login.current_user
            conn.send(user.id if user.is_authenticated else "nobody")

    app.add_url_rule("/above", "above", flask_login.login_required(ws.handler(who)), websocket=True)
    ws.route("/below", endpoint="below")(flask_login.login_required(who))
    ws.route("/open", endpoint="open")(who)
    return app


def ask(ws: testing.WebSocket) -> str | bytes:
    ws.send("who")
    return ws.receive()


# Flask-Login 0.6.3 still calls utcnow() when it sets the cookie that remembers.
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
@pytest.mark.parametrize("path", ["/above", "/below", "/open"])
@pytest.mark.parametrize("forgotten", ["nothing", "session", "agent"])
def test_current_user(login_app: Flask, websocket: Open, path: str, forgotten: str) -> None:
    """Also when only the cookie that remembers is left, and with another browser, which changes the session."""
    client = login_app.test_client()
    client.get("/login/Ada")
    if forgotten == "session":
        client.delete_cookie("session")
    headers = {"User-Agent": "another"} if forgotten == "agent" else {}
    protection = getattr(login_app, "login_manager").session_protection
    if forgotten == "agent" and protection == "strong" and path != "/open":
        if path == "/above":
            with pytest.raises(testing.Refused, match="401"):
                testing.connect(client, path, headers=headers)
        else:
            assert ending(websocket(client, path, headers=headers)) == (4401, "Unauthorized")
        return
    # As with HTTP: to strong protection a session that began with the cookie that remembers looks stolen too.
    stolen = protection == "strong" and (forgotten == "agent" or (forgotten, path) == ("session", "/above"))
    expected = "nobody" if stolen else "Ada"
    found = websocket(client, path, headers=headers)
    assert [ask(found), ask(found)] == [expected, expected]


def test_login_required(login_app: Flask, websocket: Open) -> None:
    client = login_app.test_client()
    with client.session_transaction() as saved:
        saved["other"] = "data"  # An anonymous session that is not empty is a case of its own for Flask-Login.
    assert refusal(login_app, "/above").status_code == 401
    assert ending(websocket(client, "/below")) == (4401, "Unauthorized")
    assert ask(websocket(client, "/open")) == "nobody"
    getattr(login_app, "login_manager").login_view = "/login/Ada"
    status = refusal(login_app, "/above").status_code
    assert status in (302, 303)  # The latter is what newer versions of Flask redirect with.
    assert ending(websocket(client, "/below"))[0] == 4000 + status


# What would be a response


@pytest.mark.parametrize(("end", "code", "reason"), [
    (lambda: abort(403), 4403, "Forbidden"),
    (lambda: abort(404, "no such room"), 4404, "no such room"),
    (lambda: abort(400, "ü" * 100), 4400, "ü" * 61),
    (lambda: abort(redirect("/login", 302)), 4302, "Found"),
    (lambda: abort(current_app.response_class("too much", 429)), 4429, "Too Many Requests"),
    (lambda: redirect("/login", 302), 4302, "Found"),
    (lambda: ("go away", 401), 4401, "Unauthorized"),
    (lambda: current_app.response_class("well", 200), 1000, ""),
    (lambda: "a string", 1000, ""),
])
def test_refusal_in_a_handler(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, end: Callable[[], object],
    code: int, reason: str,
) -> None:
    ws.route("/")(lambda conn: end())
    assert ending(websocket(app, "/")) == (code, reason)
    assert caplog.records == []


@pytest.mark.parametrize("where", ["on_connect", "on_message", "on_close"])
def test_abort_in_a_callback(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, where: str,
) -> None:
    codes: list[int | None] = []
    manager = ListenableManager(on_close=lambda conn: codes.append(conn.close_code))

    def refuse(conn: Connection, *args: object) -> None:
        codes.append(conn.close_code)
        abort(403)

    setattr(manager, where, refuse)
    ws.mount("/", manager)
    found = websocket(app, "/")
    with suppress(ConnectionClosed):
        found.send("hi")
    found.close()
    assert len(codes) == (1 if where == "on_close" else 2)
    assert (found.close_code == 4403) is (where != "on_close")
    assert caplog.records == []


def test_handshake_is_an_ordinary_response(app: Flask, ws: WebSockets, websocket: Open) -> None:
    """Rate limits, CSRF and headers of all responses come by way of these."""
    @app.before_request
    def limit() -> ResponseReturnValue | None:
        return ("slow down", 429, {"Retry-After": "5"}) if "often" in request.args else None

    @app.after_request
    def add_header(response: Any) -> Any:
        response.headers["X-After"] = "was here"
        return response

    ws.route("/")(echo)
    refused = refusal(app, "/?often")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
    assert websocket(app, "/").response.headers["X-After"] == refused.headers["X-After"] == "was here"


def test_same_origin_by_default(app: Flask, ws: WebSockets, websocket: Open) -> None:
    ws.route("/")(echo)
    websocket(app, "/", headers={"Origin": "http://localhost"})
    assert refusal(app, "/", headers={"Origin": "http://evil.example"}).status_code == 403


# What docs/security.rst recommends


def test_token_in_the_subprotocol(app: Flask, websocket: Open) -> None:
    app.config["WSTHREAD_SUBPROTOCOLS"] = ["chat"]
    ws = WebSockets(app)
    manager = ListenableManager(on_connect=lambda conn: conn.send(request.environ["chat.user"]))

    @app.route("/", websocket=True)
    def chat() -> ResponseReturnValue:
        offered = request.headers.get("Sec-WebSocket-Protocol", "").split(", ")
        token = next((name.removeprefix("token.") for name in offered if name.startswith("token.")), "")
        request.environ["chat.user"] = {"a-secret": "Ada"}.get(token) or abort(401)
        return ws.upgrade(manager)

    found = websocket(app, "/", subprotocols=["chat", "token.a-secret"])
    assert (found.subprotocol, found.receive()) == ("chat", "Ada")
    assert refusal(app, "/", subprotocols=["chat", "token.wrong"]).status_code == 401
    assert refusal(app, "/").status_code == 401


def test_ticket_in_the_query(app: Flask, ws: WebSockets, websocket: Open) -> None:
    tickets = URLSafeTimedSerializer("for tests only", salt="websocket")
    manager = ListenableManager(on_connect=lambda conn: conn.send(request.environ["chat.user"]))

    @app.route("/", websocket=True)
    def chat() -> ResponseReturnValue:
        try:
            request.environ["chat.user"] = tickets.loads(request.args.get("ticket", ""), max_age=30)
        except BadSignature:
            abort(401)
        return ws.upgrade(manager)

    assert websocket(app, f"/?ticket={tickets.dumps('Ada')}").receive() == "Ada"
    assert refusal(app, "/?ticket=wrong").status_code == 401
    assert refusal(app, "/").status_code == 401


# Configuration


def test_configuration(app: Flask, websocket: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_WSTHREAD_PING_INTERVAL", "5")
    monkeypatch.setenv("FLASK_WSTHREAD_ORIGINS", '["https://example.com"]')
    app.config.from_prefixed_env()
    app.config.update(
        WSTHREAD_MAX_MESSAGE_SIZE=10, WSTHREAD_READ_TIMEOUT=None, WSTHREAD_OVERFLOW="drop_oldest",
        WSTHREAD_SHUTDOWN_CODE=1012, WSTHREAD_SUBPROTOCOLS=["chat"], WSTHREAD_COMPRESSION=Deflate(threshold=1),
        WSTHREADED="not ours")
    ws = WebSockets(app)
    ws.route("/")(echo)
    ws.mount("/mounted", ListenableManager())
    options = ws.manager.options
    assert (options.ping_interval, options.max_message_size, options.overflow) == (5, 10, "drop_oldest")
    for path in ("/", "/mounted"):
        found = websocket(app, path, headers={"Origin": "https://example.com"}, subprotocols=["chat"])
        assert found.subprotocol == "chat"
        assert refusal(app, path, headers={"Origin": "http://localhost"}).status_code == 403
        found.send("x" * 11)
        found.ping() if path == "/mounted" else pytest.raises(ConnectionClosed, found.ping)
        assert found.close_code == (None if path == "/mounted" else 1009)


def test_origins_from_an_iterator(app: Flask, websocket: Open) -> None:
    app.config["WSTHREAD_ORIGINS"] = map(str.strip, "https://one.example, https://two.example".split(","))
    ws = WebSockets(app)
    ws.route("/")(echo)
    for origin in ("https://two.example", "https://one.example"):
        websocket(app, "/", headers={"Origin": origin})
    assert refusal(app, "/", headers={"Origin": "http://localhost"}).status_code == 403


@pytest.mark.parametrize(("key", "value", "message"), [
    ("WSTHREAD_PING_INTERVALL", 5, "WSTHREAD_PING_INTERVALL; there is only .*WSTHREAD_PING_INTERVAL, "),
    ("WSTHREAD_HEADERS", {}, "WSTHREAD_HEADERS; there is only"),
    ("WSTHREAD_PING_INTERVAL", "5", "ping_interval is '5', it must be a number"),
    ("WSTHREAD_SHUTDOWN_CODE", 1006, "1006"),
    ("WSTHREAD_SUBPROTOCOLS", "chat", "subprotocols is a list"),
    ("WSTHREAD_ORIGINS", 5, "origins is 5"),
    ("WSTHREAD_COMPRESSION", False, "compression is a Deflate or None, not False"),
])
def test_wrong_configuration(app: Flask, key: str, value: object, message: str) -> None:
    app.config[key] = value
    with pytest.raises(ValueError, match=message):
        WebSockets(app)
    assert "wsthread" not in app.extensions


# Several applications, and none


def test_manager() -> None:
    ws = WebSockets()
    with pytest.raises(RuntimeError, match="there are 0"):
        ws.manager
    one, two = Flask("one"), Flask("two")
    ws.init_app(one)
    manager = ws.manager
    assert isinstance(manager, Manager)
    ws.init_app(two)
    with one.app_context():
        assert ws.manager is manager
        with two.app_context():
            assert ws.manager is not manager
        with Flask("three").app_context(), pytest.raises(RuntimeError, match="three has no WebSockets yet"):
            ws.manager
    with pytest.raises(RuntimeError, match="there are 2"):
        ws.manager


def test_several_extensions_share_a_manager(app: Flask, websocket: Open) -> None:
    first, second = WebSockets(app), WebSockets(app)
    assert first.manager is second.manager
    first.route("/first", endpoint="first")(echo)
    second.route("/second", endpoint="second")(echo)
    for path in ("/first", "/second"):
        websocket(app, path)
    assert len(first.manager.connections) == 2


def test_two_applications_in_one_process(websocket: Open) -> None:
    ws = WebSockets()

    @ws.route("/")
    def join(conn: Connection) -> None:
        conn.join("all")  # It lets the connection in.
        conn.send(f"{current_app.name} {request.root_path} {len(ws.manager.connections)}")
        echo(conn)

    apps = [Flask("one"), Flask("two")]
    for each in apps:
        ws.init_app(each)
    both = DispatcherMiddleware(apps[0], {"/two": apps[1]})
    assert websocket(both, "/").receive() == "one  1"
    assert websocket(both, "/two/").receive() == "two /two 1"
    assert websocket(both, "/two/").receive() == "two /two 2"


def test_application_without_the_extension(app: Flask) -> None:
    app.add_url_rule("/", "index", WebSockets().handler(echo), websocket=True)
    with pytest.raises(RuntimeError, match="has no WebSockets yet: call init_app"):
        testing.connect(app)


def test_threads(app: Flask, ws: WebSockets, websocket: Open) -> None:
    """Contexts of many connections at the same time do not mix."""
    @ws.route("/<name>")
    def tell(conn: Connection, name: str) -> None:
        for message in ws.messages(conn):
            g.name = name
            conn.send(f"{g.name} {request.path} {session.get('name')}")

    def talk(name: str) -> None:
        client = app.test_client()
        with client.session_transaction() as saved:
            saved["name"] = name
        with testing.connect(client, f"/{name}") as found:
            for _ in range(20):
                found.send("hi")
                answers.append(found.receive() == f"{name} /{name} {name}")

    answers: list[bool] = []
    threads = [threading.Thread(target=talk, args=(f"name{number}",)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == [True] * 200
    wait_until(lambda: not ws.manager.connections)


@pytest.mark.parametrize("path", ["/route", "/messages", "/mounted"])
def test_nothing_of_a_connection_is_left(app: Flask, ws: WebSockets, path: str) -> None:
    """Nor has the garbage collector anything to do."""
    ws.route("/route")(echo)
    ws.route("/messages", endpoint="messages")(lambda conn: list(ws.messages(conn)))
    ws.mount("/mounted", ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload)))
    with testing.connect(app, path) as found:
        assert found.connection is not None
        conn = weakref.ref(found.connection)
        with suppress(ConnectionClosed):
            found.send("hi")
    gc.disable()
    try:
        del found
        wait_until(lambda: conn() is None, timeout=2)
    finally:
        gc.enable()


# The test client


def test_client(app: Flask, ws: WebSockets) -> None:
    ws.route("/echo")(echo)
    client = app.test_client()
    assert isinstance(client, WebSocketClient)
    with client, client.websocket("/echo", subprotocols=["none"]) as found:
        found.send("hi")
        assert found.receive() == "hi"
        assert request.path == "/echo"  # As after client.get(), the context is kept.


def test_client_of_the_application(app: Flask) -> None:
    class Client(FlaskClient):
        pass

    app.test_client_class = Client
    ws = WebSockets(app)
    ws.route("/echo")(echo)
    client = app.test_client()
    assert type(client) is Client
    with testing.connect(client, "/echo") as found:
        found.send("hi")
        assert found.receive() == "hi"


def test_nothing_is_logged_that_should_not_be(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the query, which may hold a ticket, nor a cookie."""
    caplog.set_level(logging.DEBUG, "wsthread")
    ws.route("/echo")(echo)
    client = app.test_client()
    client.set_cookie("session", "a-secret")
    websocket(client, "/echo?ticket=a-secret").close()
    with pytest.raises(testing.Refused):
        websocket(client, "/echo?ticket=a-secret", headers={"Origin": "http://evil.example"})
    assert len(caplog.records) == 2
    assert "a-secret" not in caplog.text
