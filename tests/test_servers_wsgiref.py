"""The room of wsgiref, with what it and Django's runserver would put into the environ."""

from __future__ import annotations

import contextlib
import io
import math
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.handlers.wsgi import LimitedStream
from peer import TIMEOUT

from wsthread import servers
from wsthread.detach import Detached
from wsthread.exceptions import DetachError
from wsthread.servers.wsgiref import Wsgiref

BODIES: list[Callable[[Any], Any]] = [lambda file: file, lambda file: LimitedStream(file, 0)]


@pytest.mark.parametrize("body", BODIES, ids=["wsgiref", "Django"])
def test_exchange(body: Callable[[Any], Any]) -> None:
    """The socket is found below the file, and what the file has read is kept."""
    ours, client = socket.socketpair()
    ours.settimeout(TIMEOUT)
    with ours, client, ours.makefile("rb") as file:
        client.sendall(b"GET / HTTP/1.1\r\n\r\na frame")
        assert [file.readline(), file.readline()] == [b"GET / HTTP/1.1\r\n", b"\r\n"]
        client.sendall(b"another, not read yet")
        environ = {"SERVER_SOFTWARE": "WSGIServer/0.2", "wsgi.input": body(file)}
        server, found = servers.find(environ)
        assert isinstance(server, Wsgiref) and found is ours
        detached = Detached(environ)
        with contextlib.closing(detached.transport):
            assert detached.unread == b"a frame"
            assert detached.transport.recv(99) == b"another, not read yet"
            detached.release()


@pytest.mark.parametrize("environ", [
    {}, {"wsgi.input": io.BytesIO()}, {"wsgi.input": io.BufferedReader(io.BytesIO())},
    {"wsgi.input": SimpleNamespace(_read=len)}, {"wsgi.input": SimpleNamespace(_read=io.BytesIO().read)},
    {"wsgi.input": SimpleNamespace(raw=SimpleNamespace(_sock="a pipe"))},
], ids=["none", "bytes", "a file on bytes", "somebody else's", "a method of another file", "another file"])
def test_not_its_request(environ: dict[str, Any]) -> None:
    """Attributes that another version may have in their place do no harm; the answer is a 501."""
    assert Wsgiref().find_socket(environ) is None
    with pytest.raises(DetachError, match="shows no socket"):
        servers.find(environ)


def test_the_header_upgrade() -> None:
    """It answers with a 500 when an application sends one."""
    assert not Wsgiref().takes_upgrade


def test_end() -> None:
    """It does not tell, and does not kill."""
    assert not Wsgiref().is_stopping()
    assert Wsgiref().time_to_stop() == math.inf
