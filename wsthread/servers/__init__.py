"""The WSGI servers: all that the library knows of any of them, with one room for each.

The rest of the library asks the functions here and never learns which server it runs under. :class:`.server.Server` is
what a room has to say, and tells how to add one. No server is imported: what they put into the environ and into the
process is enough, and most of them are not installed.
"""

from __future__ import annotations

import socket
from typing import Any

from ..exceptions import DetachError
from .cheroot import Cheroot
from .gunicorn import Gunicorn
from .in_process import InProcess
from .refused import check_socket, no_socket
from .server import Server
from .uwsgi import Uwsgi
from .waitress import Waitress
from .werkzeug import Werkzeug
from .wsgiref import Wsgiref

#: Asked in this order: first those that say who they are, then those that are known by their files.
SERVERS: tuple[Server, ...] = (
    Gunicorn(), Werkzeug(), InProcess(), Uwsgi(), Waitress(), Wsgiref(), Cheroot())
#: How the names begin that servers add to the environ for themselves.
OWN_KEYS = tuple(key for server in SERVERS for key in server.own_keys)


def find(environ: dict[str, Any]) -> tuple[Server, socket.socket | int]:
    """Return the server and the client's socket behind a request. Call it in the thread that serves the request.

    The socket is still the server's, and nothing has been done to it. Of some servers it is only the descriptor.

    Raises:
        DetachError: there is no socket that could be taken; the message tells the operator what to change.
    """
    for server in SERVERS:
        shown = server.find_socket(environ)
        if shown is not None:
            return server, check_socket(shown)
    raise no_socket(environ)


def takes_upgrade(environ: dict[str, Any]) -> bool:
    """Tell whether the response to a request may have the header Upgrade. Call it in the thread that serves it."""
    try:
        return next((server.takes_upgrade for server in SERVERS if server.find_socket(environ) is not None), True)
    except DetachError:  # There is no socket, so there is no 426 either.
        return True


def room() -> tuple[str, ...] | None:
    """Return what this process has in common with those that serve the same application. Any thread may call it."""
    return next((room for room in (server.room() for server in SERVERS) if room is not None), None)


def processes() -> int:
    """Return how many processes serve the application, as far as the server tells. Any thread may call it."""
    return max(server.processes() for server in SERVERS)


def is_stopping() -> bool:
    """Tell whether the server that runs this process is stopping, as far as it lets us know. Any thread may call it."""
    return any(server.is_stopping() for server in SERVERS)


def time_to_stop(wanted: float) -> float:
    """Return how many seconds stopping may take from its beginning, so that the server does not kill the process.

    Any thread may call it.

    Args:
        wanted: seconds; the result is no more than that.
    """
    return min(wanted, *(server.time_to_stop() for server in SERVERS))
