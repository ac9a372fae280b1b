"""The room of cheroot, with what it would put into the environ."""

from __future__ import annotations

import io
import math
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from peer import TIMEOUT

from wsthread import servers
from wsthread.detach import Detached
from wsthread.servers.cheroot import Cheroot


def test_exchange() -> None:
    """The socket is found below the file that requests are read from, and what the file has read is kept."""
    ours, client = socket.socketpair()
    ours.settimeout(TIMEOUT)
    with ours, client, ours.makefile("rb") as file:
        client.sendall(b"GET / HTTP/1.1\r\n\r\na frame")
        assert [file.readline(), file.readline()] == [b"GET / HTTP/1.1\r\n", b"\r\n"]
        environ = {"SERVER_SOFTWARE": "Cheroot/11.1.2", "wsgi.input": SimpleNamespace(rfile=file)}
        server, found = servers.find(environ)
        assert isinstance(server, Cheroot) and found is ours
        detached = Detached(environ)
        with detached.socket:
            assert detached.unread == b"a frame"
            client.sendall(b"another")
            assert detached.socket.recv(99) == b"another"
            detached.release()


@pytest.mark.parametrize("environ", [
    {}, {"wsgi.input": io.BytesIO()}, {"wsgi.input": SimpleNamespace(rfile=None)},
    {"wsgi.input": SimpleNamespace(rfile=io.BytesIO())},
])
def test_not_its_request(environ: dict[str, Any]) -> None:
    assert Cheroot().find_socket(environ) is None


def test_end() -> None:
    """It does not tell, and does not kill."""
    assert not Cheroot().is_stopping()
    assert Cheroot().time_to_stop() == math.inf
