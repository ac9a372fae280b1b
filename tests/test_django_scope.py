"""What belongs around the application's code in Django: request, session, database connections, errors."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import weakref
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.core.signals import got_request_exception
from django.db import DatabaseError
from django.db import connection as database
from django.db import connections, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import get_script_prefix, path, reverse
from django.utils import translation
from django_site import client, open_databases, site, tables

from wsthread import Connection, ListenableManager, Manager, Opcode
from wsthread.django import get_manager, messages, request_of, websocket
from wsthread.django_testing import connect

__all__ = ["client", "site", "tables"]

pytestmark = pytest.mark.usefixtures("site")


def count_users() -> int:
    return get_user_model().objects.count()


# The request


def test_request(site: list[Any], client: Client) -> None:
    """It is the same in each callback, has what middleware put there, and nothing of the server."""
    found: list[HttpRequest] = []

    def note(conn: Connection, *args: Any) -> None:
        request = request_of(conn)
        found.append(request)
        assert (request.method, request.path, request.GET["a"], request.COOKIES["c"]) == ("GET", "/ws/7", "b", "d")
        assert (request.body, request.POST.dict(), request.FILES.dict()) == (b"", {}, {})
        assert request.resolver_match is not None
        assert (request.resolver_match.view_name, request.resolver_match.kwargs) == ("room", {"room": 7})
        assert not [key for key in request.META if key.startswith(("wsthread.testing.socket", "werkzeug."))]
        assert request.build_absolute_uri() == "http://testserver/ws/7?a=b"
        assert getattr(request, "tenant") == "t"

    manager = ListenableManager(on_connect=note, on_message=note, on_close=note)
    view = websocket(manager)

    def tenant(request: HttpRequest, **kwargs: Any) -> HttpResponse:
        setattr(request, "tenant", "t")
        return view(request, **kwargs)

    site.append(path("ws/<int:room>", tenant, name="room"))
    client.cookies["c"] = "d"
    with connect(client, "/ws/7?a=b") as ws:
        ws.send("hi")
        ws.wait_handled()
    assert len(found) == 3 and len({id(one) for one in found}) == 1


def test_request_goes_with_its_connection(site: list[Any], client: Client) -> None:
    """Without the cyclic collector, unless middleware has tied the request to itself, as that of auth does."""
    found: list[weakref.ref[Any]] = []

    @websocket
    def view(conn: Connection) -> None:
        found.extend([weakref.ref(conn), weakref.ref(request_of(conn)), weakref.ref(request_of(conn).session)])
        for message in messages(conn):
            conn.send(message)

    site.append(path("ws", view))
    gc.disable()
    middleware = ["django.contrib.sessions.middleware.SessionMiddleware"]
    try:
        with override_settings(MIDDLEWARE=middleware), connect(client, "/ws") as ws:
            ws.send("hi")
            ws.receive()
        del ws
        if sys.version_info < (3, 11):  # Its contextlib ties an error of asgiref's that it passes on into a cycle.
            gc.collect()
        assert [one() for one in found] == [None, None, None]
    finally:
        gc.enable()


def test_custom_manager(site: list[Any], client: Client) -> None:
    class Custom(Manager):
        def serve(self, conn: Connection) -> None:
            self.call(conn, "greet", lambda conn: conn.send(request_of(conn).path))

    site.append(path("ws", websocket(Custom())))
    with connect(client, "/ws") as ws:
        assert ws.receive() == "/ws"


def test_what_django_keeps_per_thread(site: list[Any], client: Client) -> None:
    """Addresses have the prefix of a mounted application, and texts the language of the handshake."""

    @websocket
    def tell(conn: Connection) -> None:
        conn.send(f"{reverse('ws')} {translation.get_language()}")

    site.append(path("ws", tell, name="ws"))
    headers = {"Accept-Language": "de"}
    with connect(client, "/ws", headers=headers, environ_overrides={"SCRIPT_NAME": "/app"}) as ws:
        assert ws.receive() == "/app/ws de"
    with connect(client, "/ws") as ws:
        assert ws.receive() == "/ws en"


# The session


@pytest.mark.parametrize("engine", ["db", "cached_db", "file", "signed_cookies"])
def test_session(site: list[Any], client: Client, engine: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is that of the handshake; it is saved when the application says so, and a change is not lost in silence."""
    view = websocket(lambda conn: handle(conn))

    def write(request: HttpRequest) -> HttpResponse:
        request.session["name"] = "ada"
        return view(request)

    def handle(conn: Connection) -> None:
        session = request_of(conn).session
        for message in messages(conn):
            session["message"] = str(message)
            if message == "save":
                session.save()
            conn.send(f"{session['name']} {session['message']}")

    site.append(path("ws", write))
    with override_settings(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}"):
        with connect(client, "/ws") as ws:
            for message in ("save", "lost"):
                ws.send(message)
                assert ws.receive() == f"ada {message}"
        told = [record.message for record in caplog.records if "session.save()" in record.message]
        assert len(told) == 1
        if engine != "signed_cookies":  # Only a response can set that one.
            assert client.session["message"] == "save"


def test_no_session(site: list[Any], client: Client) -> None:
    site.append(path("ws", websocket(lambda conn: conn.send(str(hasattr(request_of(conn), "session"))))))
    with override_settings(MIDDLEWARE=[]), connect(client, "/ws") as ws:
        assert ws.receive() == "False"


# Database connections


def test_idle_connections_hold_no_database(site: list[Any], client: Client) -> None:
    """Neither in callbacks nor in functions that loop over messages(), whatever CONN_MAX_AGE says."""
    held: list[int] = []
    manager = ListenableManager(on_connect=lambda conn: count_users())

    @manager.on_message
    def message(conn: Connection, opcode: Opcode, payload: str) -> None:
        conn.send(f"{payload}: {count_users()}")
        held.append(open_databases())

    @websocket
    def loop(conn: Connection) -> None:
        count_users()
        for message in messages(conn):
            conn.send(f"{message!s}: {count_users()}")
            held.append(open_databases())
        count_users()

    site += [path("callbacks", websocket(manager)), path("loop", loop)]
    users = count_users()
    database.settings_dict["CONN_MAX_AGE"] = None
    connections.close_all()
    try:
        opened = [connect(client, url) for url in ("/callbacks", "/loop") for _ in range(25)]
        for ws in opened:
            ws.send("hi")
            assert ws.receive() == f"hi: {users}"
        for ws in opened:
            ws.wait_handled()
        connections.close_all()  # That of this thread, where the handshakes were.
        assert open_databases() == 0
        for ws in opened:
            ws.close()
        assert open_databases() == 0 and max(held) > 0
    finally:
        database.settings_dict["CONN_MAX_AGE"] = 0


def test_functions_hold_their_database_without_messages(site: list[Any], client: Client) -> None:
    """Which is why there is messages()."""

    @websocket
    def loop(conn: Connection) -> None:
        count_users()
        for message in conn:
            conn.send(message)

    site.append(path("ws", loop))
    connections.close_all()
    with connect(client, "/ws") as ws:
        ws.wait_handled()
        connections.close_all()
        assert open_databases() == 1
    assert open_databases() == 0


def test_on_slow_leaves_the_database_of_its_thread_alone(site: list[Any], client: Client) -> None:
    """It runs in the broadcasting one, perhaps in the middle of a transaction."""
    told = threading.Event()
    manager = ListenableManager(max_outbox_size=1, overflow="drop_newest", on_slow=lambda conn: told.set())
    site.append(path("ws", websocket(manager)))
    with connect(client, "/ws") as ws:
        with transaction.atomic():
            count_users()
            for _ in range(1000):
                manager.broadcast(bytes(100_000))
                if told.is_set():
                    break
            assert told.is_set()
            count_users()
        assert get_script_prefix() == "/"
        ws.terminate()


def test_a_database_connection_that_cannot_be_closed_ends_nothing(
    site: list[Any], client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: Any) -> None:
        raise DatabaseError("gone")

    site.append(path("ws", websocket(ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload)))))
    with connect(client, "/ws") as ws:
        with monkeypatch.context() as patch:
            patch.setattr(type(connections), "close_all", fail)
            ws.send("one")
            ws.receive()
            ws.wait_handled()
        ws.send("two")
        assert ws.receive() == "two"
    assert "error at closing a database connection" in caplog.text


# messages()


def test_messages_in_a_transaction(site: list[Any], client: Client) -> None:
    @websocket
    def loop(conn: Connection) -> None:
        with pytest.raises(RuntimeError, match="transaction.atomic"), transaction.atomic():
            for _ in messages(conn):
                pass
        for message in messages(conn):
            conn.send(message)

    site.append(path("ws", loop))
    with connect(client, "/ws") as ws:
        ws.send("hi")
        assert ws.receive() == "hi"


@pytest.mark.parametrize("act", ["return", "break", "raise", "404", "close"])
def test_ways_out_of_messages(site: list[Any], client: Client, act: str) -> None:
    codes = {"return": 1000, "break": 1000, "raise": 1011, "404": 4404, "close": 4001}
    after: list[int] = []

    @websocket
    def loop(conn: Connection) -> None:
        for message in messages(conn):
            count_users()
            match message:
                case "return":
                    return
                case "break":
                    break
                case "raise":
                    raise KeyError("a bug")
                case "404":
                    raise Http404
                case "close":
                    conn.close(4001)
        after.append(count_users())

    site.append(path("ws", loop))
    connections.close_all()
    ws = connect(client, "/ws")
    ws.send(act)
    assert (list(ws), ws.close_code) == ([], codes[act])
    ws.close()
    assert len(after) == (act in ("break", "close"))
    connections.close_all()
    assert open_databases() == 0


def test_messages_from_elsewhere(site: list[Any], client: Client) -> None:
    site += [path("ws", websocket(ListenableManager())), path("loop", websocket(lambda conn: list(conn)))]
    for url in ("/ws", "/loop"):
        with connect(client, url) as ws:
            assert ws.connection is not None
            with pytest.raises(RuntimeError, match="in their own threads"):
                messages(ws.connection)


# Errors


@pytest.mark.parametrize(("error", "code", "reason"), [
    (PermissionDenied(), 4403, "Forbidden"),
    (PermissionDenied("not yours"), 4403, "not yours"),
    (Http404("ä" * 100), 4404, "ä" * 61),
    (BadRequest(), 4400, "Bad Request"),
    (SuspiciousOperation("what"), 4400, "what"),
], ids=repr)
@pytest.mark.parametrize("style", ["on_connect", "on_message", "function"])
def test_exceptions_that_are_answers(
    site: list[Any], client: Client, style: str, error: Exception, code: int, reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(conn: Connection, *args: Any) -> None:
        raise error

    manager = ListenableManager()
    if style != "function":
        setattr(manager, style, fail)
    site.append(path("ws", websocket(fail if style == "function" else manager)))
    ws = connect(client, "/ws")
    if style == "on_message":
        ws.send("hi")
    assert (list(ws), ws.close_code, ws.close_reason) == ([], code, reason)
    ws.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert manager.connections == get_manager().connections == ()


@pytest.mark.parametrize("style", ["on_connect", "on_message", "on_close", "function"])
def test_errors_are_told_once(
    site: list[Any], client: Client, style: str, caplog: pytest.LogCaptureFixture,
) -> None:
    """To receivers of the signal and to django.request, with the request; the log of wsthread has a short line."""
    received: list[tuple[Any, str]] = []

    def fail(conn: Connection, *args: Any) -> None:
        raise KeyError("a bug")

    def receive(sender: Any, request: HttpRequest, **rest: Any) -> None:
        received.append((sender, request.path))

    manager = ListenableManager()
    if style != "function":
        setattr(manager, style, fail)
    site.append(path("ws", websocket(fail if style == "function" else manager)))
    got_request_exception.connect(receive)
    try:
        ws = connect(client, "/ws")
        if style == "on_message":
            ws.send("hi")
        if style == "on_close":
            with pytest.raises(KeyError):
                ws.close()
        else:
            assert (list(ws), ws.close_code) == ([], 1011)
            ws.close()
    finally:
        got_request_exception.disconnect(receive)
    assert received == [(None, "/ws")]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [(record.name, record.getMessage()) for record in errors] == [
        ("django.request", "Error in a WebSocket: /ws")]
    assert errors[0].exc_info and isinstance(errors[0].exc_info[1], KeyError)
    assert vars(errors[0])["status_code"] == 500 and vars(errors[0])["request"].path == "/ws"


def test_a_receiver_that_fails(site: list[Any], client: Client, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*args: Any, **rest: Any) -> None:
        raise KeyError("a bug")

    site.append(path("ws", websocket(fail)))
    got_request_exception.connect(fail)
    try:
        ws = connect(client, "/ws")
        assert (list(ws), ws.close_code) == ([], 1011)
        ws.close()
    finally:
        got_request_exception.disconnect(fail)
    assert "error in what tells of errors" in caplog.text


def test_the_end_of_a_connection_is_no_error(
    site: list[Any], client: Client, caplog: pytest.LogCaptureFixture,
) -> None:
    site.append(path("ws", websocket(lambda conn: conn.receive())))
    connect(client, "/ws").close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
