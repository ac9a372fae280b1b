"""The room of Werkzeug's server, with what it would put into the environ."""

from __future__ import annotations

import contextlib
import math
import socket

from peer import TIMEOUT

from wsthread import servers
from wsthread.detach import Detached
from wsthread.servers.werkzeug import Werkzeug


def test_find() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server, found = servers.find({"SERVER_SOFTWARE": "Werkzeug/3.1.3", "werkzeug.socket": ours})
        assert isinstance(server, Werkzeug)
        assert found is ours


def test_not_its_request() -> None:
    assert Werkzeug().find_socket({"gunicorn.socket": 1}) is None


def test_environ_of_its_own() -> None:
    assert all(key.startswith(servers.OWN_KEYS) for key in ("werkzeug.socket", "werkzeug.request"))


def test_unread() -> None:
    """The buffered file that it parses requests from has them, and reading goes on without waiting for more."""
    ours, client = socket.socketpair()
    ours.settimeout(TIMEOUT)
    with ours, client, ours.makefile("rb") as file:
        client.sendall(b"GET / HTTP/1.1\r\n\r\na frame")
        assert [file.readline(), file.readline()] == [b"GET / HTTP/1.1\r\n", b"\r\n"]
        client.sendall(b"another, not read yet")
        detached = Detached({"werkzeug.socket": ours, "wsgi.input": file})
        with contextlib.closing(detached.transport):
            assert detached.unread == b"a frame"
            assert detached.transport.recv(99) == b"another, not read yet"
            detached.release()


def test_end() -> None:
    """It does not tell, and does not kill."""
    assert not Werkzeug().is_stopping()
    assert Werkzeug().time_to_stop() == math.inf
