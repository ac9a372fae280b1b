"""Werkzeug's server, and ``flask run``, which is the same.

It says nothing when it stops: the process ends, and ``atexit`` is early enough, for nobody kills it.
"""

from __future__ import annotations

from typing import Any

from .server import Server, read_rest


class Werkzeug(Server):
    """Werkzeug's server for development, with threads or without."""

    own_keys = ("werkzeug.",)  # Some are of Werkzeug's requests, which must not be kept alive either.

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the socket that the server has put into the environ."""
        return environ.get("werkzeug.socket")

    def take_unread(self, environ: dict[str, Any]) -> bytes:
        """Read what is left in the buffered file that the server parses requests from."""
        return read_rest(environ["wsgi.input"])
