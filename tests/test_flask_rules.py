"""Handshakes and rules: redirects, pages, plain requests, and factories that run more than once."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clients import RawClient, ask, handshake
from flask import Blueprint, Flask, current_app, g, redirect, request
from servers import Server, serve
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from wsthread import Connection, ListenableManager, SimpleManager, Upgrader, testing
from wsthread.flask import WebSockets

Open = Callable[..., testing.WebSocket]


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


def tell_path(conn: Connection, **view_args: object) -> None:
    conn.send(f"{request.path} {request.endpoint} {view_args} {conn.request.path}")


def refusal(app: Any, path: str, **options: Any) -> tuple[int, str]:
    """Return what a handshake is answered with."""
    with pytest.raises(testing.Refused) as caught:
        testing.connect(app, path, **options)
    assert "Location" not in caught.value.response.headers
    return caught.value.response.status_code, caught.value.response.text


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "wsthread"]


# Redirects


#: Rules, more arguments for them, and paths with what is told of each.
REDIRECTS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "slash": ("/x/", {}, {"/x/": "/x/ x {} /x/", "/x": "/x/ x {} /x/", "//x": "/x/ x {} /x/", "/x//": "/x/ x {} /x/"}),
    "slash behind a value": (
        "/x/<name>/", {}, {"/x/k%C3%BCche": "/x/küche/ x {'name': 'küche'} /x/küche/", "/x/a%20b": (
            "/x/a b/ x {'name': 'a b'} /x/a b/"), "/x//%C3%BC": "/x/ü/ x {'name': 'ü'} /x/ü/"}),
    "slashes": ("/x/y", {}, {"/x//y": "/x/y x {} /x/y"}),
    "query": ("/x/", {}, {"/x?a=1&b=%2F": "/x/ x {} /x/"}),
    "no slash": ("/x/", {"strict_slashes": False}, {"/x": "/x x {} /x"}),
}


@pytest.mark.parametrize("way", ["route", "mount", "blueprint", "view"])
@pytest.mark.parametrize("case", REDIRECTS)
def test_redirect(app: Flask, websocket: Open, way: str, case: str) -> None:
    rule, options, paths = REDIRECTS[case]
    ws = WebSockets(app)
    manager = ListenableManager(on_connect=lambda conn: tell_path(conn, **(request.view_args or {})))
    match way:
        case "route":
            ws.route(rule, endpoint="x", **options)(tell_path)
        case "mount":
            ws.mount(rule, manager, endpoint="x", **options)
        case "blueprint":
            bp = Blueprint("bp", __name__)
            ws.route(rule, endpoint="x", bp=bp, **options)(tell_path)
            app.register_blueprint(bp)
        case "view":
            app.add_url_rule(rule, "x", lambda **view_args: ws.upgrade(manager), websocket=True, **options)
    for path, text in paths.items():
        # As a client sends it: an URL would begin with a host.
        environ = {"PATH_INFO": path.partition("?")[0]} if path.startswith("//") else {}
        found = websocket(app, path.replace("//x", "/x") if environ else path, environ_overrides=environ)
        expected = text.replace(" x ", " bp.x ") if way == "blueprint" else text
        assert found.receive() == expected


def test_redirect_below_a_mount(app: Flask, websocket: Open) -> None:
    WebSockets(app).route("/x/", endpoint="x")(lambda conn: conn.send(request.root_path + request.path))
    both = DispatcherMiddleware(Flask("other"), {"/mounted": app})
    assert websocket(both, "/mounted/x").receive() == "/mounted/x/"


def test_redirect_does_not_go_round_who_decides(app: Flask, websocket: Open) -> None:
    """The functions of the blueprint are called for the rule that is used."""
    bp = Blueprint("bp", __name__, url_prefix="/bp")

    @bp.url_value_preprocessor
    def prepare(endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.endpoint = endpoint

    @bp.before_request
    def check() -> tuple[str, int] | None:
        return None if request.args.get("token") == "secret" else (f"no token for {g.endpoint}", 401)

    WebSockets(app).route("/x/", bp=bp, endpoint="x")(lambda conn: conn.send(f"{g.endpoint} {request.blueprint}"))
    app.register_blueprint(bp)
    assert refusal(app, "/bp/x") == (401, "no token for bp.x")
    assert websocket(app, "/bp/x?token=secret").receive() == "bp.x bp"


def test_redirect_of_the_application(
    app: Flask, websocket: Open, caplog: pytest.LogCaptureFixture,
) -> None:
    """Of rules: within it is followed, to elsewhere or in a circle it is refused. Of views it is as for pages."""
    ws = WebSockets(app)
    ws.route("/new", endpoint="new")(tell_path)
    for rule, target in {"/old": "/new", "/away": "ws://other.example/new", "/circle": "/circle"}.items():
        app.url_map.add(app.url_rule_class(rule, endpoint="new", websocket=True, redirect_to=target))
    ws.route("/defaults/<int:page>", endpoint="page")(tell_path)
    ws.route("/defaults", endpoint="page", defaults={"page": 1})(app.view_functions["page"])
    app.add_url_rule("/view", "view", lambda: redirect("/new", 302), websocket=True)
    assert websocket(app, "/old").receive() == "/new new {} /new"
    assert websocket(app, "/defaults/1").receive() == "/defaults page {'page': 1} /defaults"
    for path, target in {"/away": "ws://other.example/new", "/circle": "ws://localhost/circle"}.items():
        caplog.clear()
        status, text = refusal(app, path)
        assert status == 400 and f"This address redirects to {target}, and clients of WebSockets follow no" in text
        assert f"refused handshake: 'GET' '{path}'" in told(caplog)[0]
    with pytest.raises(testing.Refused, match="302"):
        testing.connect(app, "/view")


def test_redirect_to_nothing_and_to_a_page(app: Flask) -> None:
    ws = WebSockets(app)
    app.url_map.add(app.url_rule_class("/gone", endpoint="gone", websocket=True, redirect_to="/nothing"))
    app.url_map.add(app.url_rule_class("/moved", endpoint="moved", websocket=True, redirect_to="/page"))
    ws.route("/x/")(tell_path)
    app.add_url_rule("/page", "page", lambda: "a page")
    assert refusal(app, "/gone")[0] == 404
    status, text = refusal(app, "/moved")
    assert status == 400 and "is for pages" in text
    assert refusal(app, "/y/")[0] == 404


def test_pages_are_redirected_as_ever(app: Flask) -> None:
    WebSockets(app)
    app.add_url_rule("/x/", "x", lambda: "a page")
    response = app.test_client().get("/x")
    assert (response.status_code, response.location) == (308, "http://localhost/x/")


# Pages and plain requests


PAGES: dict[str, Callable[[WebSockets], Callable[..., Any]]] = {
    "handler": lambda ws: ws.handler(tell_path),
    "upgrade": lambda ws: lambda **view_args: ws.upgrade(ListenableManager()),
    "page": lambda ws: lambda **view_args: "a page",
}


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("path", ["/x", "/x/Ada/"])
def test_handshake_for_a_page(app: Flask, caplog: pytest.LogCaptureFixture, kind: str, path: str) -> None:
    rule = path.replace("Ada", "<name>")
    app.add_url_rule(rule, "x", PAGES[kind](WebSockets(app)))
    status, text = refusal(app, path)
    shown = rule.replace("<", "&lt;").replace(">", "&gt;")
    assert status == 400 and f"The rule &#39;{shown}&#39; is for pages" in text
    assert told(caplog) == [
        f"refused handshake: 'GET' '{path}' from None: 400 Bad Request: The rule '{rule}' is for pages. If its view is "
        f"to open WebSockets, with ws.handler or ws.upgrade, say so: @app.route('{rule}', websocket=True)."]


def test_handshake_for_a_form(app: Flask) -> None:
    """For which a GET would be wrong as well."""
    WebSockets(app)
    app.add_url_rule("/form", "form", lambda: "", methods=["POST"])
    assert refusal(app, "/form")[0] in (400, 405)


@pytest.mark.parametrize("upgrade", ["h2c, websocket", "websocket, h2c", "WebSocket,"])
def test_list_of_protocols(app: Flask, websocket: Open, upgrade: str) -> None:
    """Werkzeug takes it for a plain request (RFC 9110 7.8)."""
    WebSockets(app).route("/x")(tell_path)
    status, text = refusal(app, "/x", headers={}, environ_overrides={"HTTP_UPGRADE": upgrade})
    assert status == 400 and f"Upgrade is &#39;{upgrade}&#39;. Let the client" in text


def served() -> Flask:
    """Return an application for real servers."""
    app = Flask(__name__)
    ws = WebSockets(app)
    ws.route("/x/")(lambda conn: conn.send(request.path))
    app.add_url_rule("/page/", "page", ws.handler(tell_path))
    return app


@pytest.fixture(scope="module", params=["gthread", "werkzeug"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param, "test_flask_rules:served" + "()" * (request.param == "gthread")) as running:
        yield running


@pytest.mark.parametrize(("path", "status", "text"), [
    ("/x", 101, ""), ("//x", 101, ""), ("/x//", 101, ""), ("/page/", 400, "is for pages"), ("/none", 404, "")])
def test_served(server: Server, path: str, status: int, text: str) -> None:
    if status == 101:
        with RawClient(server.port) as client:
            client.open(path)
            assert client.recv_frame()[1] == b"/x/"
    else:
        found, headers, body = ask(server.port, handshake(path, server.port))
        assert (found, headers["Location"]) == (status, None) and text in body
        assert headers["Wsthread-Refused"] == ("request" if text else None)
    assert server.errors() == []


# Factories


def test_factory_that_defines_routes(websocket: Open) -> None:
    """Also when the first application has served; each has its own functions."""
    ws = WebSockets()
    ws.route("/common")(lambda conn: conn.send(current_app.name))

    def create_app(name: str) -> Flask:
        app = Flask(name)
        ws.init_app(app)

        @ws.route("/b/<letter>", endpoint="twice")
        @ws.route("/a", endpoint="twice", defaults={"letter": "a"})
        def twice(conn: Connection, letter: str) -> None:
            conn.send(f"{name} {current_app.name} {letter}")

        ws.mount("/mounted", ListenableManager(on_connect=lambda conn: conn.send(f"{name} {current_app.name}")))
        return app

    apps: list[Flask] = []
    for name in ("one", "two", "three"):
        apps.append(create_app(name))
        for app in apps:
            assert websocket(app, "/a").receive() == f"{app.name} {app.name} a"
            assert websocket(app, "/b/b").receive() == f"{app.name} {app.name} b"
            assert websocket(app, "/mounted").receive() == f"{app.name} {app.name}"
            assert websocket(app, "/common").receive() == app.name
            assert len([rule for rule in app.url_map.iter_rules() if rule.websocket]) == 4


def test_factory_whose_applications_serve_later(websocket: Open) -> None:
    ws = WebSockets()
    apps = []
    for name in ("one", "two"):
        apps.append(Flask(name))
        ws.init_app(apps[-1])
        ws.route("/x", endpoint="x")(lambda conn, name=name: conn.send(f"{name} {current_app.name}"))
    for app in apps:
        assert websocket(app, "/x").receive() == f"{app.name} {app.name}"


def test_factory_that_differs(websocket: Open) -> None:
    """The second application has a rule that the first one has not, and another function at a third address."""
    ws = WebSockets()
    first, second = Flask("first"), Flask("second")
    ws.init_app(first)
    ws.route("/x", endpoint="x")(lambda conn: conn.send("first"))
    websocket(first, "/x")
    ws.init_app(second)
    ws.route("/y", endpoint="x")(lambda conn: conn.send("second"))
    ws.route("/z", endpoint="z")(lambda conn: conn.send("new"))
    assert websocket(first, "/x").receive() == "first"
    assert websocket(second, "/y").receive() == "second"
    assert websocket(second, "/z").receive() == "new"
    assert refusal(first, "/z")[0] == 404


def test_factory_keeps_no_application_alive() -> None:
    ws = WebSockets()

    def create_app() -> weakref.ref[Flask]:
        app = Flask(__name__)
        ws.init_app(app)
        ws.route("/x", endpoint="x")(lambda conn: conn.send(app.name))
        testing.connect(app, "/x").close()
        return weakref.ref(app)

    apps = [create_app() for _ in range(5)]
    gc.collect()
    assert [app() is not None for app in apps] == [False] * 4 + [True]  # The last one's rule is there for others.


@pytest.mark.parametrize("late", [False, True])
def test_two_functions_of_one_name(app: Flask, late: bool) -> None:
    """Without a factory that is a mistake, as for pages."""
    ws = WebSockets(app) if late else WebSockets()
    ws.route("/x", endpoint="x")(tell_path)
    with pytest.raises(AssertionError, match="overwriting an existing endpoint"):
        ws.route("/y", endpoint="x")(tell_path)
        ws.init_app(app)


def test_rule_that_comes_too_late(app: Flask, websocket: Open) -> None:
    """For the only application there is, that is a mistake as well."""
    ws = WebSockets(app)
    ws.route("/x", endpoint="x")(tell_path)
    websocket(app, "/x")
    with pytest.raises(AssertionError, match="first request"):
        ws.route("/y", endpoint="y")(tell_path)


# What log lines call a connection


@pytest.mark.parametrize(("path", "name"), [
    ("/mounted", "'/mounted'"), ("/mounted/", "'/mounted/'"), ("/mounted/k%C3%BCche/x", "'/mounted/küche/x'")])
def test_path_in_the_log(websocket: Open, caplog: pytest.LogCaptureFixture, path: str, name: str) -> None:
    caplog.set_level(logging.INFO, "wsthread")
    mounted = DispatcherMiddleware(Flask("other"), {"/mounted": Upgrader(SimpleManager(lambda conn: None))})
    websocket(mounted, path).close()
    with pytest.raises(testing.Refused):
        testing.connect(mounted, path, headers={"Origin": "https://evil.example"})
    closed, refused = told(caplog)
    assert closed.startswith(f"WebSocket local {name}: closed with 1000")
    assert refused.startswith(f"refused handshake: 'GET' {name} from None: 403 Forbidden: Origin is")
