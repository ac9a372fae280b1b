"""The room of what stands for a server in tests."""

from __future__ import annotations

import socket

from wsthread import servers
from wsthread.servers.in_process import SOCKET_KEY, InProcess


def test_find() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server, found = servers.find({SOCKET_KEY: ours})
        assert isinstance(server, InProcess)
        assert found is ours
        assert server.take_unread({SOCKET_KEY: ours}) == b""


def test_not_its_request() -> None:
    assert InProcess().find_socket({"werkzeug.socket": 1, "gunicorn.socket": 1}) is None


def test_environ_of_its_own() -> None:
    """The socket is dropped; what tells the request from others is not."""
    assert SOCKET_KEY.startswith(servers.OWN_KEYS)
    assert not "wsthread.testing".startswith(servers.OWN_KEYS)
