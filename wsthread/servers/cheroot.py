"""cheroot, which is CherryPy's server.

The application gets a body with the length of the request's, around the buffered file that requests are read from. The
server ends its threads when it stops, and then the process; ``atexit`` is early enough.
"""

from __future__ import annotations

from typing import Any

from .server import Server, read_rest, socket_below


class Cheroot(Server):
    """cheroot's server for WSGI."""

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the socket below the file that the server reads requests from."""
        return socket_below(_file(environ))

    def take_unread(self, environ: dict[str, Any]) -> bytes:
        """Read what is left in that file."""
        return read_rest(_file(environ))


def _file(environ: dict[str, Any]) -> object:
    return getattr(environ.get("wsgi.input"), "rfile", None)
