"""What a connection keeps of its handshake, and the request object that is made of it."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from typing import Any

import pytest
from flask import Flask
from flask import Request as FlaskRequest
from flask import request as current_request
from peer import TIMEOUT
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from wsthread import servers
from wsthread.snapshot import Snapshot


def environ_of(more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the environ of a request."""
    builder = EnvironBuilder("/ws?a=1", headers=[("X-One", "two")], environ_base={"REMOTE_ADDR": "192.0.2.7"})
    return {**builder.get_environ(), **(more or {})}


def test_request() -> None:
    """It has what the handshake had, and there is one of it."""
    snapshot = Snapshot(Request(environ_of()))
    made = snapshot.request
    assert type(made) is Request and made is snapshot.request
    assert (made.path, made.args["a"], made.headers["X-One"], made.remote_addr) == ("/ws", "1", "two", "192.0.2.7")
    assert made.environ is snapshot.environ


def test_environ_is_a_copy() -> None:
    environ = environ_of()
    snapshot = Snapshot(Request(environ))
    environ["PATH_INFO"] = "/other"
    assert snapshot.environ["PATH_INFO"] == "/ws"


def test_own_keys_of_the_application_are_kept() -> None:
    mine = object()
    assert Snapshot(Request(environ_of({"app.user": mine}))).environ["app.user"] is mine


@pytest.mark.parametrize("prefix", ["wsgi.", *servers.OWN_KEYS])
def test_nothing_of_the_server_is_kept(prefix: str) -> None:
    class Theirs:
        """Something of the server."""

    one = Theirs()
    reference, environ = weakref.ref(one), environ_of({f"{prefix}one": one})
    snapshot = Snapshot(Request(environ))
    del one
    environ.clear()
    gc.collect()
    assert reference() is None and snapshot.request.path == "/ws"


def test_no_body() -> None:
    environ = environ_of({"wsgi.input": io.BytesIO(b"a body"), "wsgi.url_scheme": "https"})
    snapshot = Snapshot(Request(environ))
    assert snapshot.request.get_data() == b""
    assert snapshot.request.is_secure


def test_strings_that_are_usual_are_shared() -> None:
    """Servers build them anew for each request."""
    one, other = (
        Snapshot(Request(environ_of({"HTTP_UPGRADE": "".join(["web", "socket"])}))).environ["HTTP_UPGRADE"]
        for _ in range(2))
    assert one == "websocket" and one is other


def test_request_of_flask() -> None:
    """It is of the application's class, outlives the context, and has what the router found."""
    class Own(FlaskRequest):
        """The class of an application."""

    app = Flask(__name__)
    app.request_class = Own
    snapshots: list[Snapshot] = []

    @app.route("/rooms/<name>")
    def room(name: str) -> str:
        snapshots.append(Snapshot(current_request))
        return name

    assert app.test_client().get("/rooms/kitchen").data == b"kitchen"
    made = snapshots[0].request
    assert type(made) is Own
    assert (made.endpoint, made.view_args, str(made.url_rule)) == ("room", {"name": "kitchen"}, "/rooms/<name>")


def test_it_is_made_when_asked_for() -> None:
    made: list[object] = []

    class Counted(Request):
        """Counts its objects."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    snapshot = Snapshot(Counted(environ_of()))
    assert len(made) == 1
    assert snapshot.request is made[1] and snapshot.request is made[1]


def test_threads_that_ask_at_once() -> None:
    """All get the same one, although each has begun to make one."""
    barrier = threading.Barrier(4)

    class Slow(Request):
        """Waits until all have begun."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if threading.current_thread() is not threading.main_thread():
                barrier.wait(TIMEOUT)

    snapshot = Snapshot(Slow(environ_of()))
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(snapshot.request)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(found) == 4 and len(set(map(id, found))) == 1


def test_another_request() -> None:
    """Django's request takes the place of Werkzeug's."""
    snapshot, another = Snapshot(Request(environ_of())), object()
    snapshot.request = another
    assert snapshot.request is another
