"""The standard library's wsgiref, and what is made of it, such as Django's ``runserver`` and Bottle's ``run``.

Requests are read from a buffered file on the socket. The application gets that file as its body, or Django's
LimitedStream, which keeps bound methods of it. The server tells nothing when it stops, as Werkzeug's: the process ends,
and ``atexit`` is early enough.
"""

from __future__ import annotations

from typing import Any

from .server import Server

_READ_SIZE = 65536


class Wsgiref(Server):
    """A server made of :mod:`wsgiref`, with threads or without."""

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the socket below the file that the server reads requests from."""
        return getattr(getattr(_file(environ), "raw", None), "_sock", None)

    def take_unread(self, environ: dict[str, Any]) -> bytes:
        """Read what is left in that file."""
        file: Any = _file(environ)
        return b"".join(iter(lambda: file.read(_READ_SIZE), b""))


def _file(environ: dict[str, Any]) -> object:
    body = environ.get("wsgi.input")
    return getattr(getattr(body, "_read", None), "__self__", body)
