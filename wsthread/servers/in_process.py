"""No server at all: :mod:`wsthread.testing` calls the application itself, and puts a socket into the environ."""

from __future__ import annotations

from typing import Any

from .server import Server

SOCKET_KEY = "wsthread.testing.socket"
"""Where the environ of a request has the end of a socketpair that stands for the client's socket."""


class InProcess(Server):
    """What stands for a server in tests."""

    own_keys = (SOCKET_KEY,)

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the socket that the test has put into the environ."""
        return environ.get(SOCKET_KEY)
