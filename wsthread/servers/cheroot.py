"""cheroot, which is CherryPy's server.

The application gets a body with the length of the request's, around the buffered file that requests are read from. The
server ends its threads when it stops, and then the process; ``atexit`` is early enough.
"""

from __future__ import annotations

from typing import Any

from .server import Server

_READ_SIZE = 65536


class Cheroot(Server):
    """cheroot's server for WSGI."""

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the socket below the file that the server reads requests from."""
        return getattr(getattr(_file(environ), "raw", None), "_sock", None)

    def take_unread(self, environ: dict[str, Any]) -> bytes:
        """Read what is left in that file."""
        file: Any = _file(environ)
        return b"".join(iter(lambda: file.read(_READ_SIZE), b""))


def _file(environ: dict[str, Any]) -> object:
    return getattr(environ.get("wsgi.input"), "rfile", None)
