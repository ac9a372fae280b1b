"""The testing client, which makes WebSockets in process: with plain WSGI, with Flask and on its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, make_response, redirect, request, session
from flask_app import ws
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client
from werkzeug.wrappers import Response

from wsthread import CloseCode, Connection, ConnectionClosed, ListenableManager, SimpleManager, State, Upgrader
from wsthread.servers.in_process import SOCKET_KEY
from wsthread.testing import Refused, WebSocket, advance, connect

__all__ = ["connect", "ws"]

Open = Callable[..., WebSocket]


def echo(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def served(handler: Callable[[Connection], Any], **options: Any) -> Upgrader:
    """Return a plain WSGI application that runs a handler."""
    return Upgrader(SimpleManager(handler, **options), subprotocols=["chat.v2", "chat.v1"])


# What the application sends


def test_echo(websocket: Open) -> None:
    ws = websocket(served(echo))
    for payload in ("text", b"binary", "", "Grüße 🙂", b"x" * 300_000):
        ws.send(payload)
        assert ws.receive() == payload


def test_large_messages_before_the_answers_are_read(websocket: Open) -> None:
    """Meanwhile the application waits for somebody to take its answers, as browsers do."""
    ws = websocket(served(echo))
    for _ in range(4):
        ws.send(b"x" * (1 << 20))
    assert [len(ws.receive()) for _ in range(4)] == [1 << 20] * 4


def test_messages_in_a_loop(websocket: Open) -> None:
    def count(conn: Connection) -> None:
        for number in range(3):
            conn.send(str(number))

    ws = websocket(served(count))
    assert list(ws) == ["0", "1", "2"]
    assert (ws.close_code, ws.close_reason) == (1000, "")


def test_messages_before_a_close_are_kept() -> None:
    def say_more(conn: Connection) -> None:
        conn.receive()
        conn.send("one")
        conn.send("two")

    ws = connect(served(say_more))
    ws.send("go")
    ws.close()
    assert [ws.receive(), ws.receive()] == ["one", "two"]
    with pytest.raises(ConnectionClosed):
        ws.receive()


# Ends


def test_server_closes(websocket: Open) -> None:
    ws = websocket(served(lambda conn: conn.close(4001, "enough")))
    with pytest.raises(ConnectionClosed) as caught:
        ws.receive()
    assert (caught.value.code, caught.value.reason) == (ws.close_code, ws.close_reason) == (4001, "enough")
    with pytest.raises(ConnectionClosed):
        ws.ping()


def test_sending_to_a_server_that_has_closed(websocket: Open) -> None:
    ws = websocket(served(lambda conn: conn.close(4001)))
    assert ws.connection is not None
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            ws.send("too late")
    assert caught.value.code == 4001


def test_server_cuts(websocket: Open) -> None:
    ws = websocket(served(lambda conn: conn.terminate()))
    with pytest.raises(ConnectionClosed) as caught:
        ws.receive()
    assert caught.value.code == CloseCode.ABNORMAL_CLOSURE


@pytest.mark.parametrize("end", [
    lambda ws: ws.close(), lambda ws: ws.close(3000, "bye"), lambda ws: ws.terminate()], ids=["1000", "3000", "1006"])
def test_on_close_has_returned(end: Callable[[WebSocket], None]) -> None:
    """There is nothing to wait for after close() and terminate()."""
    closed: list[tuple[int | None, str | None]] = []

    def note(conn: Connection) -> None:
        threading.Event().wait(0.05)  # As one who writes to a database.
        closed.append((conn.close_code, conn.close_reason))

    ws = connect(Upgrader(ListenableManager(on_close=note)))
    end(ws)
    assert [code for code, _ in closed] == [ws.close_code]
    if ws.close_code != 1006:
        assert closed == [(ws.close_code, ws.close_reason or "bye" * (ws.close_code == 3000))]
    ws.close()  # Nothing happens.


def test_code_that_may_not_be_sent(websocket: Open) -> None:
    with pytest.raises(ValueError, match="1006"):
        websocket(served(echo)).close(1006)


def test_with_block_closes() -> None:
    with connect(served(echo)) as ws:
        ws.send("hi")
    assert (ws.close_code, ws.receive()) == (1000, "hi")
    with pytest.raises(ZeroDivisionError):
        with connect(served(echo)) as ws:
            raise ZeroDivisionError
    assert ws.close_code is None  # It was not waited for, so that nothing hides the failure.
    for use in (ws.receive, ws.ping, lambda: ws.send("hi")):
        with pytest.raises(ConnectionClosed):
            use()


# Waits have deadlines


def test_nothing_comes(websocket: Open) -> None:
    ws = websocket(served(echo), timeout=0.05)
    with pytest.raises(TimeoutError):
        ws.receive()
    with pytest.raises(TimeoutError):
        ws.receive(timeout=0)
    ws.timeout = 5  # For the closing handshake as well.
    ws.send("still there")
    assert ws.receive() == "still there"


def test_application_is_busy() -> None:
    done = threading.Event()
    ws = connect(served(lambda conn: done.wait(5)), timeout=0.05)
    with pytest.raises(TimeoutError):
        ws.wait_handled()
    with pytest.raises(TimeoutError, match="does not read"):
        for _ in range(32):
            ws.send(b"x" * (1 << 19))
    with pytest.raises(TimeoutError):
        ws.close()
    with pytest.raises(TimeoutError, match="not done"):
        ws.terminate()
    done.set()
    ws.terminate(timeout=5)


# Pings, and time


def test_waiting_until_all_is_handled(websocket: Open) -> None:
    handled: list[str] = []

    def handle(conn: Connection, opcode: int, payload: str) -> None:
        threading.Event().wait(0.02)
        handled.append(payload)
        conn.send(payload)

    ws = websocket(Upgrader(ListenableManager(on_message=handle)))
    for number in range(3):
        ws.send(str(number))
    ws.wait_handled()
    assert handled == ["0", "1", "2"]
    assert [ws.receive(timeout=0) for _ in range(3)] == ["0", "1", "2"]  # They were kept.


def test_pings_of_the_server(websocket: Open) -> None:
    ws = websocket(served(echo, ping_interval=20, ping_timeout=20))
    for count in range(1, 5):
        advance(20)
        ws.ping()  # They are answered on the way.
        assert ws.pings == count
    assert ws.connection is not None and ws.connection.latency is not None
    ws.send("alive")
    assert ws.receive() == "alive"


@pytest.mark.parametrize("steps", [[41], [20, 21], [1] * 41])
def test_a_peer_that_does_not_answer_pings_is_cut(websocket: Open, steps: list[float]) -> None:
    ws = websocket(served(echo, ping_interval=20, ping_timeout=20))
    for step in steps:
        advance(step)
    with pytest.raises(ConnectionClosed):
        ws.receive()
    assert ws.close_code == CloseCode.ABNORMAL_CLOSURE
    ws.close()
    assert ws.connection is not None
    assert ws.connection.close_reason == "no pong within 20 s"


def test_read_timeout(websocket: Open) -> None:
    ws = websocket(served(echo, read_timeout=60, ping_interval=None))
    advance(50)
    ws.send("not idle")
    ws.ping()
    assert ws.receive() == "not idle"
    advance(50)
    ws.ping()
    advance(11)
    with pytest.raises(ConnectionClosed) as caught:
        ws.receive()
    assert (caught.value.code, caught.value.reason) == (1001, "no message for 60 s")


def test_close_timeout(websocket: Open) -> None:
    ws = websocket(served(lambda conn: conn.close(), close_timeout=10))
    conn = ws.connection
    assert conn is not None
    while conn.state is State.OPEN:
        threading.Event().wait(0.001)
    advance(9)
    assert not conn.closed
    advance(1.5)
    ws.terminate()
    assert (conn.close_code, conn.close_reason) == (1006, "no answer to Close 1000: timeout of 10 s")


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        advance(-1)


# While the application works


class Busy:
    """A handler that works until the test releases it, or the connection has ended if it looks.

    Attributes:
        conn: its connection, as soon as it works.
        codes: of what on_close was called with, and of the error that a late send raised.
    """

    def __init__(self, *, looks: bool = False) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()
        self.codes: list[tuple[str, int | None]] = []
        self.conn: Connection | None = None
        self.manager = ListenableManager(on_message=self._work, on_close=self._note)
        self._looks = looks

    def connect(self) -> WebSocket:
        ws = connect(Upgrader(self.manager))
        ws.send("go")
        assert self.begun.wait(5)
        return ws

    def _work(self, conn: Connection, opcode: int, payload: str) -> None:
        self.conn = conn
        self.begun.set()
        while not self.released.wait(0.01):
            if self._looks and not conn.connected:
                break
        try:
            conn.send("too late")
        except ConnectionClosed as error:
            self.codes.append(("send", error.code))

    def _note(self, conn: Connection) -> None:
        self.codes.append(("on_close", conn.close_code))


ENDS: list[tuple[Callable[[WebSocket], None], int]] = [
    (lambda ws: ws.close(), 1000), (lambda ws: ws.close(4001, "enough"), 4001), (lambda ws: ws.terminate(), 1006)]


@pytest.mark.parametrize(("end", "code"), ENDS, ids=["1000", "4001", "1006"])
def test_end_while_a_handler_works_that_looks(end: Callable[[WebSocket], None], code: int) -> None:
    busy = Busy(looks=True)
    end(busy.connect())
    assert busy.codes == [("send", code), ("on_close", code)]


@pytest.mark.parametrize(("end", "code"), [
    (lambda ws: ws.close(timeout=0.5), 1000), (lambda ws: ws.terminate(timeout=0.5), 1006)], ids=["1000", "1006"])
def test_end_while_a_handler_works_that_does_not_look(end: Callable[[WebSocket], None], code: int) -> None:
    """The test is told that it goes on, and its connection is over all the same."""
    busy = Busy()
    ws = busy.connect()
    with pytest.raises(TimeoutError, match="not done"):
        end(ws)
    assert busy.conn is not None
    assert (busy.conn.closed, busy.conn.close_code, ws.close_code) == (True, code, code)
    assert busy.codes == []
    busy.released.set()
    ws.terminate(timeout=5)
    assert busy.codes == [("send", code), ("on_close", code)]


def test_vanishing_while_a_handler_works() -> None:
    """A test that does nothing is a peer that has vanished: the handler learns of it, and on_close is called."""
    busy = Busy(looks=True)
    ws = busy.connect()
    assert busy.conn is not None
    advance(45)
    assert not busy.conn.connected
    assert (busy.conn.close_code, busy.conn.close_reason) == (1006, "no pong within 20 s")
    with pytest.raises(ConnectionClosed):
        ws.receive()
    ws.terminate()
    assert busy.codes == [("send", 1006), ("on_close", 1006)]


def test_pings_while_a_handler_works() -> None:
    """Both ways: those of the test get their Pongs, and those that advance() makes due count."""
    busy = Busy()
    ws = busy.connect()
    assert busy.conn is not None
    for count in range(1, 4):
        advance(20)
        ws.ping()
        assert ws.pings == count
        advance(0.25)  # So that the Pong of the test is read.
        assert busy.conn.latency is not None
        assert busy.conn.connected
    with pytest.raises(TimeoutError):
        ws.wait_handled(timeout=0.3)
    busy.released.set()
    ws.wait_handled()
    assert ws.receive() == "too late"
    ws.close()
    assert busy.codes == [("on_close", 1000)]


@pytest.mark.parametrize("seconds", [0.25, 9.9, 100])
def test_time_for_busy_handlers(seconds: float) -> None:
    """advance() attends them: what was sent before is answered when it returns."""
    busy = Busy()
    ws = busy.connect()
    assert busy.conn is not None
    busy.conn.close(4000)
    with pytest.raises(ConnectionClosed):
        ws.receive()
    advance(seconds)
    assert (busy.conn.closed, busy.conn.close_code) == (True, 4000)
    busy.released.set()
    ws.close()
    assert busy.codes == [("send", 4000), ("on_close", 4000)]


def test_waiting_for_several_messages_that_wait(websocket: Open) -> None:
    """wait_handled() counts those in the inbox."""
    handled: list[str] = []
    go_on = threading.Event()

    def handle(conn: Connection, opcode: int, payload: str) -> None:
        go_on.wait(5)
        handled.append(payload)

    ws = websocket(Upgrader(ListenableManager(on_message=handle)))
    for number in range(20):
        ws.send(str(number))
    ws.ping()  # It is answered, so the messages are in the inbox but for the first.
    assert handled == []
    threading.Timer(0.05, go_on.set).start()
    ws.wait_handled()
    assert handled == [str(number) for number in range(20)]


# Errors of the application


class Bug(Exception):
    """What a test looks for."""


def fail(*args: Any) -> None:
    raise Bug("in a callback")


APPS: dict[str, Callable[[], Upgrader]] = {
    "on_connect": lambda: Upgrader(ListenableManager(on_connect=fail)),
    "on_message": lambda: Upgrader(ListenableManager(on_message=fail)),
    "handler": lambda: served(lambda conn: fail(conn.receive())),
}
in_all_styles = pytest.mark.parametrize("style", APPS)


@in_all_styles
def test_error_is_the_cause_of_what_the_next_call_raises(style: str) -> None:
    with connect(APPS[style]()) as ws:
        if style != "on_connect":
            ws.send("go")
        with pytest.raises(ConnectionClosed) as caught:
            ws.receive()
        assert caught.value.code == CloseCode.INTERNAL_ERROR
        assert isinstance(caught.value.__cause__, Bug)
    # Nothing is raised at the end: the test has seen it.


@in_all_styles
def test_error_that_the_test_has_not_seen_is_raised_by_close(style: str) -> None:
    ws = connect(APPS[style]())
    with pytest.raises((Bug, ConnectionClosed)) as caught:  # The latter when send() sees it first.
        if style != "on_connect":
            ws.send("go")
        ws.close()
    assert isinstance(caught.value, Bug) or isinstance(caught.value.__cause__, Bug)
    ws.close()  # Only once.


@in_all_styles
def test_error_that_the_test_has_not_seen_is_raised_by_with(style: str) -> None:
    with pytest.raises((Bug, ConnectionClosed)) as caught:
        with connect(APPS[style]()) as ws:
            if style != "on_connect":
                ws.send("go")
    assert isinstance(caught.value, Bug) or isinstance(caught.value.__cause__, Bug)


@in_all_styles
def test_error_is_not_raised_if_the_test_asks_for_the_code(style: str) -> None:
    with connect(APPS[style]()) as ws:
        if style != "on_connect":
            ws.send("go")
        assert list(ws) == []
        assert ws.close_code == CloseCode.INTERNAL_ERROR


def test_error_after_a_loop_over_messages_is_raised() -> None:
    """The loop ends as after any Close, so it tells the test nothing."""
    with pytest.raises(Bug):
        with connect(APPS["on_message"]()) as ws:
            ws.send("go")
            assert list(ws) == []


def test_error_in_on_close_is_raised() -> None:
    with pytest.raises(Bug):
        with connect(Upgrader(ListenableManager(on_close=fail))):
            pass


def test_error_of_wait_handled() -> None:
    ws = connect(APPS["on_message"]())
    ws.send("go")
    with pytest.raises(ConnectionClosed) as caught:
        ws.wait_handled()
    assert isinstance(caught.value.__cause__, Bug)
    ws.close()


def test_failed_assertion_of_a_busy_handler_reaches_the_test() -> None:
    """It is raised when the handler is over, which close() waits for."""
    def handler(conn: Connection) -> None:
        while conn.connected:
            threading.Event().wait(0.01)
        assert conn.close_code == 4000, "what the author thought"

    ws = connect(served(handler))
    with pytest.raises(AssertionError, match="what the author thought"):
        ws.close(4001)


def test_error_of_the_test_comes_first() -> None:
    with pytest.raises(ZeroDivisionError):
        with connect(APPS["on_message"]()) as ws:
            ws.send("go")
            raise ZeroDivisionError


def test_errors_of_others_are_not_raised(websocket: Open) -> None:
    quiet = websocket(served(echo))
    with pytest.raises(Bug):
        with connect(APPS["on_connect"]()):
            pass
    quiet.send("fine")
    assert quiet.receive() == "fine"


# The handshake


def test_subprotocol(websocket: Open) -> None:
    app = served(lambda conn: conn.send(str(conn.subprotocol)))
    for offered, chosen in [(["chat.v1"], "chat.v1"), (["other", "chat.v1", "chat.v2"], "chat.v2"), (["other"], None)]:
        ws = websocket(app, subprotocols=offered)
        assert (ws.subprotocol, ws.receive()) == (chosen, str(chosen))


def test_request(websocket: Open) -> None:
    def tell(conn: Connection) -> None:
        seen = conn.request
        conn.send(f"{seen.url} {seen.headers['X-Token']} {seen.cookies['a']} {seen.environ['some.key']}")

    ws = websocket(
        served(tell), "/ws?q=1", headers={"X-Token": "secret", "Cookie": "a=b"}, base_url="https://chat.example",
        environ_overrides={"some.key": 5})
    assert ws.receive() == "https://chat.example/ws?q=1 secret b 5"


@pytest.mark.parametrize("scheme", ["ws", "http", "wss", "https"])
def test_absolute_url(websocket: Open, scheme: str) -> None:
    ws = websocket(served(lambda conn: conn.send(conn.request.url)), f"{scheme}://chat.example/ws?q=1")
    assert ws.receive() == f"{scheme.replace('ws', 'http')}://chat.example/ws?q=1"


def test_headers_of_the_101(websocket: Open) -> None:
    ws = websocket(served(echo))
    assert ws.response.status_code == 101
    accept = ws.response.headers["Sec-WebSocket-Accept"]
    assert list(ws.response.headers) == [
        ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]


def test_refusal() -> None:
    with pytest.raises(Refused, match="403 Forbidden: Origin is") as caught:
        connect(served(echo), headers={"Origin": "https://evil.example"})
    assert caught.value.response.status_code == 403
    assert "https://evil.example" in caught.value.response.text


def test_refusal_that_is_no_text() -> None:
    app = Response(b"\x89PNG", status=403, content_type="image/png")
    with pytest.raises(Refused, match="403 FORBIDDEN: \N{REPLACEMENT CHARACTER}PNG"):
        connect(app)


def test_application_that_raises() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        connect(app)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 101 Switching"])
def test_application_that_does_not_mean_its_101(says: bytes) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ[SOCKET_KEY].sendall(says)
        environ[SOCKET_KEY].shutdown(socket.SHUT_WR)
        start_response("101 Switching Protocols", [])
        return []

    with pytest.raises(Refused, match="101"):
        connect(app)


def test_connection_that_is_over_at_once() -> None:
    """When its thread ends before connect() looks for it."""
    app = Upgrader(SimpleManager(lambda conn: conn.terminate()))
    for _ in range(20):
        with connect(app) as ws:
            assert list(ws) == []
        assert ws.close_code == 1006


def test_connection_that_is_over_at_once_beside_another(websocket: Open) -> None:
    """The thread of the other is not waited for."""
    over_at_once = Upgrader(SimpleManager(lambda conn: conn.terminate()))

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        websocket(served(echo))  # As somebody in another thread.
        return over_at_once(environ, start_response)

    for _ in range(20):
        with connect(app, timeout=1) as ws:
            assert list(ws) == []


def test_a_broadcast_reaches_who_has_connected(websocket: Open) -> None:
    manager = ListenableManager()
    clients = [websocket(Upgrader(manager)) for _ in range(20)]
    assert manager.broadcast("to all").sent == 20
    assert {ws.receive() for ws in clients} == {"to all"}
    assert [ws.connection for ws in clients] == list(manager.connections)


def test_connecting_in_threads() -> None:
    """Each finds its own connection."""
    app = served(echo)
    found: list[bool] = []

    def talk(number: int) -> None:
        with connect(app, f"/{number}") as ws:
            ws.send("hi")
            assert ws.receive() == "hi"
            assert ws.connection is not None
            found.append(ws.connection.request.path == f"/{number}")

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [True] * 20


# Applications and clients


def test_below_a_dispatcher(websocket: Open) -> None:
    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return Response("a page")(environ, start_response)

    app = DispatcherMiddleware(page, {"/ws": served(lambda conn: conn.send(conn.request.root_path))})
    assert websocket(app, "/ws/deeper").receive() == "/ws"
    with pytest.raises(Refused, match="a page"):
        connect(app, "/")


@pytest.fixture
def app() -> Flask:
    """A Flask application without the extension."""
    app = Flask(__name__)
    app.secret_key = "for tests only"
    bp = Blueprint("chat", __name__, url_prefix="/chat")
    upgrader = Upgrader(SimpleManager(lambda conn: conn.send(repr(getattr(conn.request, "view_args")))))

    @bp.route("/<int:room>", websocket=True)
    def chat(room: int) -> Response:
        session["visits"] = session.get("visits", 0) + 1
        if room == 13:
            abort(403)
        response = make_response(upgrader.upgrade(request) if "name" in session else redirect("/login", 302))
        response.set_cookie("seen", str(room))
        return response

    app.register_blueprint(bp)
    return app


def test_route_in_a_blueprint(websocket: Open, app: Flask) -> None:
    client = app.test_client()
    with pytest.raises(Refused, match="302") as caught:
        connect(client, "/chat/7")
    assert caught.value.response.location == "/login"
    assert client.get_cookie("seen") is not None  # Also those of a refusal.
    with client.session_transaction() as saved:
        saved["name"] = "Ada"
    assert websocket(client, "/chat/7").receive() == "{'room': 7}"
    with pytest.raises(Refused, match="403"):
        connect(client, "/chat/13")
    with pytest.raises(Refused, match="404"):
        connect(client, "/chat/x")


def test_cookies_of_the_101_are_kept(websocket: Open, app: Flask) -> None:
    client = app.test_client()
    with client.session_transaction() as saved:
        saved["name"] = "Ada"
    for room in (1, 2):
        websocket(client, f"/chat/{room}")
        cookie = client.get_cookie("seen")
        assert cookie is not None and cookie.value == str(room)
    with client.session_transaction() as saved:
        assert saved["visits"] == 2


def test_client_of_werkzeug(websocket: Open, app: Flask) -> None:
    client = Client(app)
    with pytest.raises(Refused):
        connect(client, "/chat/7")
    assert client.get_cookie("seen") is not None
    with pytest.raises(Refused):  # An application keeps none.
        connect(app, "/chat/7")
