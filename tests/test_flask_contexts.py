"""Flask's contexts and session after the handshake."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, current_app, flash, g, get_flashed_messages, request, session, url_for
from flask.sessions import SessionInterface, SessionMixin
from flask_app import Open, app, ending, ws

from wsthread import Connection, ListenableManager, Opcode, Upgrader
from wsthread.flask import WebSockets

__all__ = ["app", "ws"]


class Contexts:
    """Tells of the contexts of an application as they end."""

    def __init__(self, app: Flask) -> None:
        self.ended: list[tuple[str, str | None]] = []
        app.teardown_appcontext(self._end)

    def _end(self, error: BaseException | None) -> None:
        self.ended.append((g.get("name", "none"), None if error is None else repr(error)))


@pytest.fixture
def contexts(app: Flask) -> Contexts:
    """What became of the contexts; the first is that of the handshake."""
    return Contexts(app)


def test_each_callback_has_contexts_of_its_own(
    app: Flask, ws: WebSockets, contexts: Contexts, websocket: Open,
) -> None:
    manager = ListenableManager()

    def note(name: str) -> None:
        assert "name" not in g
        g.name = name
        assert (request.path, request.args["q"], current_app.name) == ("/ws", "x", app.name)

    manager.on_connect = lambda conn: note("connect")
    manager.on_error = lambda conn, error: note("error")
    manager.on_close = lambda conn: note("close")

    @manager.on_message
    def message(conn: Connection, opcode: Opcode, payload: str) -> None:
        note(payload)
        if payload == "raise":
            raise KeyError("a bug")

    ws.mount("/ws", manager)
    found = websocket(app, "/ws?q=x")
    found.send("message")
    found.send("raise")
    assert ending(found) == (1011, "")
    assert contexts.ended == [
        ("none", None), ("connect", None), ("message", None), ("raise", "KeyError('a bug')"), ("error", None),
        ("close", None)]


def test_a_handler_has_one_context(app: Flask, ws: WebSockets, contexts: Contexts, websocket: Open) -> None:
    @ws.route("/")
    def handler(conn: Connection) -> None:
        g.name = "handler"
        for message in conn:
            conn.send(g.name)

    with websocket(app, "/") as found:
        for _ in range(3):
            found.send("hi")
            assert found.receive() == "handler"
        assert len(contexts.ended) == 1
    assert contexts.ended[1:] == [("handler", None)]


def test_messages_have_contexts_of_their_own(app: Flask, ws: WebSockets, contexts: Contexts, websocket: Open) -> None:
    @ws.route("/")
    def handler(conn: Connection) -> None:
        g.name = "before"
        for message in ws.messages(conn):
            assert g.name == "before" and request.path == "/"
            g.name = str(message)
            conn.send(f"got {g.name}")
        assert g.name == "before" and request.path == "/"
        g.name = "after"

    with websocket(app, "/") as found:
        found.ping()  # It waits for a message.
        assert contexts.ended[1:] == [("before", None)]
        for message in ("one", "two"):
            found.send(message)
            assert found.receive() == f"got {message}"
            found.ping()
            assert contexts.ended[-1] == (message, None)
    assert contexts.ended[1:] == [("before", None), ("one", None), ("two", None), ("after", None)]


@pytest.mark.parametrize(("message", "code", "end"), [
    ("break", 1000, [("after break", None)]),
    ("raise", 1011, [("raise", "KeyError('a bug')")]),
    ("abort", 4403, [("abort", None)]),
    ("return", 1000, [("return", None)]),
    ("close", 4001, [("close", None), ("after close", None)]),
    ("finally", 1011, [("finally", "KeyError('a bug')")]),
    ("again", 1000, [("again", None), ("after again", None)]),
])
def test_ways_out_of_messages(
    app: Flask, ws: WebSockets, contexts: Contexts, websocket: Open, message: str, code: int, end: list[object],
) -> None:
    @ws.route("/")
    def handler(conn: Connection) -> None:
        for message in ws.messages(conn):
            g.name = str(message)
            match message:
                case "break":
                    break
                case "abort":
                    abort(403)
                case "return":
                    return
                case "close":
                    conn.close(4001)
                case "again":
                    list(ws.messages(conn))
                    break
                case "raise" | "finally":
                    try:
                        raise KeyError("a bug")
                    finally:
                        assert request.path == "/"
        g.name = "after " + str(message)

    found = websocket(app, "/")
    found.send(message)
    if message == "again":
        found.close()
    assert ending(found)[0] == code
    assert contexts.ended[2:] == end


@pytest.mark.parametrize("path", ["/de/route", "/de/mounted"])
def test_values_of_the_url(app: Flask, ws: WebSockets, websocket: Open, path: str) -> None:
    """As Flask's documentation keeps the language of a multilingual application."""
    bp = Blueprint("bp", __name__, url_prefix="/<lang>")

    @bp.url_defaults
    def add_language(endpoint: str, values: dict[str, Any]) -> None:
        values.setdefault("lang", g.lang)

    @bp.url_value_preprocessor
    def take_language(endpoint: str | None, values: dict[str, Any] | None) -> None:
        assert values is not None
        g.lang = values.pop("lang")

    def tell(conn: Connection, *args: object) -> None:
        conn.send(f"{g.lang} {request.view_args} {url_for('.page')}")

    @ws.route("/route", bp=bp)
    def tell_each(conn: Connection) -> None:
        for _ in ws.messages(conn):
            tell(conn)

    bp.add_url_rule("/page", "page", lambda: "a page")
    ws.mount("/mounted", ListenableManager(on_message=tell), bp=bp)
    app.register_blueprint(bp)
    found = websocket(app, path)
    found.send("hi")
    assert found.receive() == "de {} /de/page"


@pytest.mark.parametrize("path", ["/kitchen/route", "/kitchen/mounted"])
def test_values_of_the_url_that_are_none_any_more(
    app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture, path: str,
) -> None:
    rooms = {"kitchen"}
    handled: list[str | bytes] = []
    manager = ListenableManager(
        on_message=lambda conn, opcode, payload: handled.append(payload), on_close=lambda conn: handled.append("close"))
    bp = Blueprint("bp", __name__, url_prefix="/<room>")

    @bp.url_value_preprocessor
    def find_room(endpoint: str | None, values: dict[str, Any] | None) -> None:
        assert values is not None
        if values.pop("room") not in rooms:
            abort(404)

    ws.route("/route", bp=bp)(lambda conn: handled.extend(ws.messages(conn)))
    ws.mount("/mounted", manager, bp=bp)
    app.register_blueprint(bp)
    found = websocket(app, path)
    found.send("one")
    found.ping()
    rooms.clear()
    found.send("two")
    assert ending(found) == (4404, "Not Found")
    assert handled == ["one"] + ["close"] * (path == "/kitchen/mounted")
    assert caplog.records == []


def test_teardown_that_raises(app: Flask, ws: WebSockets, websocket: Open, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the handler goes on, within contexts."""
    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if g.pop("name", "none") == "bad":
            raise KeyError("a bug")

    @ws.route("/")
    def handler(conn: Connection) -> None:
        g.name = "bad"
        for message in ws.messages(conn):
            conn.send(f"{message!r} {request.path} {'name' in g}")

    with websocket(app, "/") as found:
        for _ in range(2):
            found.send("hi")
            assert found.receive() == "'hi' / False"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "WebSocket local '/': error in a teardown function")]
    assert caplog.text.count("KeyError: 'a bug'") == 1


def test_messages_is_for_routes(app: Flask, ws: WebSockets, websocket: Open) -> None:
    errors: list[Exception] = []
    manager = ListenableManager(
        on_connect=lambda conn: ws.messages(conn), on_error=lambda conn, error: errors.append(error))
    ws.mount("/", manager)
    assert ending(websocket(app, "/"))[0] == 1011
    assert ending(websocket(Upgrader(manager)))[0] == 1011
    assert [str(error) for error in errors] == [
        "messages() is for the handlers of routes, in their own threads", "the connection is none of a route"]


def test_messages_is_for_the_thread_of_the_handler(app: Flask, ws: WebSockets, websocket: Open) -> None:
    errors: list[str] = []

    def elsewhere(conn: Connection) -> None:
        try:
            ws.messages(conn)
        except RuntimeError as error:
            errors.append(str(error))

    @ws.route("/")
    def handler(conn: Connection) -> None:
        thread = threading.Thread(target=elsewhere, args=(conn,))
        thread.start()
        thread.join()
        conn.send(request.path)

    assert websocket(app, "/").receive() == "/"
    assert errors == ["messages() is for the handlers of routes, in their own threads"]


def test_on_slow_in_a_callback(app: Flask, ws: WebSockets, contexts: Contexts, websocket: Open) -> None:
    """Contexts of one connection within those of another, in one thread."""
    manager = ListenableManager(max_outbox_size=1)
    seen: list[object] = []

    @manager.on_message
    def message(conn: Connection, opcode: Opcode, payload: str) -> None:
        g.name = request.path
        while not seen:
            manager.broadcast(bytes(1 << 16), exclude=conn)
        seen.append((g.name, request.path))

    @manager.on_slow
    def slow(conn: Connection) -> None:
        seen.append((g.get("name"), request.path))
        g.name = "slow"

    ws.mount("/<name>", manager)
    websocket(app, "/stuck")
    with websocket(app, "/busy") as busy:
        busy.send("go")
        busy.ping()
    assert seen == [(None, "/stuck"), ("/busy", "/busy")]
    assert contexts.ended.index(("slow", None)) < contexts.ended.index(("/busy", None))


def test_broadcast_of_a_view(app: Flask, ws: WebSockets, contexts: Contexts, websocket: Open) -> None:
    """Also from there, on_slow has contexts of its own, and those of the view are as they were."""
    manager = ListenableManager(max_outbox_size=1)
    seen: list[object] = []
    manager.on_slow = lambda conn: seen.append((request.path, g.get("name"), dict(session)))

    @app.route("/broadcast")
    def broadcast() -> str:
        session["key"] = g.name = "view"
        while not seen:
            manager.broadcast(bytes(1 << 16))
        return f"{g.name} {request.path}"

    ws.mount("/stuck", manager)
    websocket(app, "/stuck")
    assert app.test_client().get("/broadcast").text == "view /broadcast"
    assert seen == [("/stuck", None, {})]


def test_flask_logger(app: Flask, ws: WebSockets, websocket: Open, capsys: pytest.CaptureFixture[str]) -> None:
    """It looks for the error stream of the request."""
    @ws.route("/")
    def handler(conn: Connection) -> None:
        current_app.logger.addHandler(flask_handler)
        current_app.logger.error("something to tell")

    from flask.logging import default_handler as flask_handler

    assert ending(websocket(app, "/")) == (1000, "")
    assert "something to tell" in capsys.readouterr().err


# The session


def test_session_of_the_handshake(app: Flask, ws: WebSockets, websocket: Open) -> None:
    @app.before_request
    def visit() -> None:
        session["visits"] = session.get("visits", 0) + 1

    @app.after_request
    def note(response: Any) -> Any:
        session["after"] = True
        return response

    @ws.route("/")
    def tell(conn: Connection) -> None:
        conn.send(f"{session['visits']} {session['name']} {session['after']} {session.permanent} {session.modified}")

    client = app.test_client()
    with client.session_transaction() as saved:
        saved["name"] = "Ada"
    for visits in (1, 2):
        assert websocket(client, "/").receive() == f"{visits} Ada True False False"
    with client.session_transaction() as saved:
        assert saved["visits"] == 2


WRITES: dict[str, Callable[[], object]] = {
    "set": lambda: session.__setitem__("key", 1),
    "del": lambda: session.__delitem__("key"),
    "pop": lambda: session.pop("key", None),
    "popitem": lambda: session.popitem(),
    "clear": lambda: session.clear(),
    "update": lambda: session.update(key=1),
    "setdefault": lambda: session.setdefault("key", 1),
    "permanent": lambda: setattr(session, "permanent", True),
    "modified": lambda: setattr(session, "modified", True),
    "or": lambda: getattr(session, "__ior__")({"key": 1}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("secret", ["for tests only", None])
def test_session_cannot_be_written(
    app: Flask, ws: WebSockets, websocket: Open, write: Callable[[], object], secret: str | None,
) -> None:
    app.secret_key = secret

    @ws.route("/")
    def handler(conn: Connection) -> None:
        before = dict(session)
        with pytest.raises(RuntimeError, match="session is read-only in a WebSocket: it is saved by a cookie"):
            write()
        assert dict(session) == before
        conn.send("well")

    client = app.test_client()
    if secret is not None:
        with client.session_transaction() as saved:
            saved["key"] = 0
    assert websocket(client, "/").receive() == "well"


def test_session_of_the_server(app: Flask, ws: WebSockets, websocket: Open) -> None:
    """Those of Flask-Session have an attribute that tells which it is."""
    class Session(dict[str, Any], SessionMixin):
        sid = ""

    class Interface(SessionInterface):
        def open_session(self, app: Flask, request: Any) -> Session:
            found = Session(name="Ada")
            found.sid = "7"
            return found

        def save_session(self, app: Flask, session: SessionMixin, response: Any) -> None: ...

    app.session_interface = Interface()
    ws.route("/")(lambda conn: conn.send(f"{getattr(session, 'sid')} {session['name']} {session.modified}"))
    assert websocket(app, "/").receive() == "7 Ada False"


def test_flashed_messages_are_for_the_next_page(app: Flask, ws: WebSockets, websocket: Open) -> None:
    @ws.route("/")
    def handler(conn: Connection) -> None:
        conn.send(str(get_flashed_messages()))

    def flash_message() -> str:
        flash("a message")
        return ""

    app.add_url_rule("/flash", "flash", flash_message)
    app.add_url_rule("/page", "page", lambda: str(get_flashed_messages()))
    client = app.test_client()
    client.get("/flash")
    assert websocket(client, "/").receive() == "[]"
    assert client.get("/page").text == "['a message']"
