"""The room of waitress, with what it would put into the environ."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from wsthread import servers
from wsthread.detach import Detached
from wsthread.servers.waitress import Waitress


class Channel:
    """What is asked of a connection of waitress."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def check_client_disconnected(self) -> bool:
        """Tell whether the client has left."""
        return False


def environ(channel: Channel) -> dict[str, Any]:
    return {"SERVER_SOFTWARE": "waitress", "waitress.client_disconnected": channel.check_client_disconnected}


def test_find() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server, found = servers.find(environ(Channel(socket=ours)))
        assert isinstance(server, Waitress) and found is ours


@pytest.mark.parametrize("request_of", [
    {}, {"waitress.client_disconnected": None}, {"waitress.client_disconnected": lambda: False},
    environ(Channel()),
])
def test_not_its_request(request_of: dict[str, Any]) -> None:
    assert Waitress().find_socket(request_of) is None


@pytest.mark.parametrize(("attributes", "unread"), [
    ({}, b""),
    ({"requests_lock": threading.Lock(), "request": None}, b""),
    ({"requests_lock": threading.Lock(), "request": SimpleNamespace(header_plus="another version's")}, b""),
    ({"requests_lock": threading.Lock(), "request": SimpleNamespace(header_plus=b"a frame")}, b"a frame"),
])
def test_unread(attributes: dict[str, Any], unread: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(socket=ours, **attributes)
        detached = Detached(environ(channel))
        with contextlib.closing(detached.transport):
            assert detached.unread == unread
            detached.release()
        if unread:
            assert vars(channel)["request"] is None


def test_requests_behind_the_handshake_are_not_served() -> None:
    """Their bytes are gone; what is returned in their place is no frame, so the connection ends with 1002."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        requests = ["the handshake", "smuggled", "another"]
        channel = Channel(socket=ours, requests_lock=threading.Lock(), requests=requests, request="a half one")
        assert Waitress().take_unread(environ(channel)) == b"\r\n\r\n"
        assert (requests, vars(channel)["request"]) == (["the handshake"], None)


def test_the_header_upgrade() -> None:
    """It answers with a 500 when an application sends one."""
    assert not Waitress().takes_upgrade


def test_environ_of_its_own() -> None:
    assert "waitress.client_disconnected".startswith(servers.OWN_KEYS)


def test_end() -> None:
    """It does not tell, and does not kill."""
    assert not Waitress().is_stopping()
    assert Waitress().time_to_stop() == math.inf
