"""The server of the standard library, and what is built on it: Django's ``runserver``, ``Bottle.run``.

The body of a request is the buffered file that the requests of a connection are parsed from, and the socket is below
it. Django puts a stream of its own before that file, which keeps one of its methods.

Like Werkzeug's server it says nothing when it stops: the process ends, and ``atexit`` is early enough. Django's
autoreload ends it in the same way.
"""

from __future__ import annotations

import io
from typing import Any

from .server import Server, read_rest, socket_below


class Wsgiref(Server):
    """A server for development that was made of :mod:`wsgiref.simple_server`, with threads or without."""

    takes_upgrade = False

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the socket below the request's file."""
        return socket_below(_file(environ))

    def take_unread(self, environ: dict[str, Any]) -> bytes:
        """Read what is left in the buffer of the request's file."""
        return read_rest(_file(environ))


def _file(environ: dict[str, Any]) -> Any:
    body = environ.get("wsgi.input")
    if not isinstance(body, io.BufferedReader):
        body = getattr(getattr(body, "_read", None), "__self__", None)  # Django's LimitedStream
    return body if isinstance(body, io.BufferedReader) else None
